package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// asMain makes the test binary run main, in a process of its own.
const asMain = "TASKGATE_TEST_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(asMain) != "" {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// TestProcess runs the whole program: probes, the protection of its memory, and
// both signals.
func TestProcess(t *testing.T) {
	for _, signal := range []os.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(signal.String(), func(t *testing.T) {
			dir := t.TempDir()
			health := freeAddress(t)
			environment := append(os.Environ(), asMain+"=1", "TASKGATE_HEALTH="+health)
			program := exec.Command(os.Args[0], "--broker", "127.0.0.1:1", "--broker-id", "spiffe://td/broker", "--listen", "127.0.0.1:0",
				"--workload-api", "unix://"+dir+"/none.sock", "--state-dir", dir+"/state", "--agent-dir", dir+"/agent", "--agent-file-mode", "0644")
			var log bytes.Buffer
			program.Env, program.Stderr = environment, &log
			if err := program.Start(); err != nil {
				t.Fatal(err)
			}
			defer program.Process.Kill()
			probe := func(state string) (string, int) {
				command := exec.Command(os.Args[0], "probe", state)
				command.Env = environment
				out, err := command.CombinedOutput()
				var exit *exec.ExitError
				if errors.As(err, &exit) {
					return string(out), exit.ExitCode()
				}
				return string(out), 0
			}
			for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
				if _, code := probe("live"); code == 0 {
					break
				}
			}
			if line, code := probe("live"); code != 0 || line != "livez check passed\n" {
				t.Errorf("live: %d %q", code, line)
			}
			for _, state := range []string{"ready", "startup"} {
				if line, code := probe(state); code != 1 || !strings.HasPrefix(line, "sidecar: ") || !strings.Contains(line, "[-]svid failed") || strings.Count(line, "\n") != 1 {
					t.Errorf("%s: %d %q", state, code, line)
				}
			}
			if err := program.Process.Signal(signal); err != nil {
				t.Fatal(err)
			}
			if err := program.Wait(); err != nil {
				t.Errorf("%v: %s", err, log.String())
			}
			if !strings.Contains(log.String(), `"message":"stopped"`) {
				t.Errorf("the log ends with: %s", log.String())
			}
			token, err := os.ReadFile(filepath.Join(dir, "agent/serviceaccount/token"))
			if err != nil || bytes.Contains(log.Bytes(), token) {
				t.Errorf("the token: %v", err)
			}
		})
	}
}

// TestNotDumpable shows that other processes of the sidecar's user cannot look into
// it: the kernel gives the files of a process that is not dumpable to root, and
// writes no core for it.
func TestNotDumpable(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to run the program as somebody else")
	}
	const nobody = 65534
	dir, err := os.MkdirTemp("", "tg")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	binary, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(dir, "sidecar")
	if err := errors.Join(os.WriteFile(copied, binary, 0o755), os.Chown(dir, nobody, nobody)); err != nil {
		t.Fatal(err)
	}
	program := exec.Command(copied, "--broker", "127.0.0.1:1", "--broker-id", "spiffe://td/broker", "--listen", "127.0.0.1:0", "--health", freeAddress(t),
		"--workload-api", "unix://"+dir+"/none.sock", "--state-dir", dir+"/state", "--agent-dir", dir+"/agent")
	program.Env = append(os.Environ(), asMain+"=1")
	program.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	if err := program.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { program.Process.Kill(); program.Wait() }()
	path := fmt.Sprintf("/proc/%d/environ", program.Process.Pid)
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		info, err := os.Stat(path)
		if err == nil && info.Sys().(*syscall.Stat_t).Uid == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s belongs to the user: %v", path, err)
		}
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}
