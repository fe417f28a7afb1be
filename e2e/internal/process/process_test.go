package process_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/taskgate/taskgate/e2e/internal/process"
)

// parentOf makes this test program start an attached child with the log given,
// print its pid, and wait to be killed.
const parentOf = "TASKGATE_TEST_PARENT_OF"

func TestMain(m *testing.M) {
	if log := os.Getenv(parentOf); log != "" {
		child := process.New(process.Spec{Name: "child", Path: "/bin/sleep", Arguments: []string{"600"}, Log: log}, process.Attached)
		fmt.Println(child.Launch(), child.Identity().PID)
		time.Sleep(time.Hour)
	}
	os.Exit(m.Run())
}

func shell(t *testing.T, script string) process.Spec {
	t.Helper()
	return process.Spec{
		Name: "example", Path: "/bin/sh", Arguments: []string{"-c", script}, Directory: t.TempDir(),
		Environment: []string{"PATH=" + os.Getenv("PATH"), "MARK=" + t.Name()},
		Log:         filepath.Join(t.TempDir(), "example.log"), Patience: 10 * time.Second,
	}
}

func run(t *testing.T, spec process.Spec, lifetime process.Lifetime) *process.Process {
	t.Helper()
	p := process.New(spec, lifetime)
	if err := p.Launch(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Kill(); err != nil {
			t.Error(err)
		}
	})
	return p
}

func TestStop(t *testing.T) {
	for name, lifetime := range map[string]process.Lifetime{"attached": process.Attached, "detached": process.Detached} {
		t.Run(name, func(t *testing.T) {
			t.Run("gracefully", func(t *testing.T) {
				p := run(t, shell(t, "trap 'echo bye; exit 7' TERM; while :; do sleep 0.02; done"), lifetime)
				time.Sleep(100 * time.Millisecond) // the shell sets its trap
				stop(t, p)
				if exit := p.Exit(); lifetime == process.Attached && (exit == nil || exit.ExitCode() != 7) {
					t.Errorf("it ended with %v, not code 7", exit)
				}
				if tail := process.Tail(p.Spec().Log); len(tail) != 1 || tail[0] != "bye" {
					t.Errorf("its log ends in %q", tail)
				}
			})
			t.Run("by force", func(t *testing.T) {
				spec := shell(t, "trap '' TERM; while :; do sleep 0.02; done")
				spec.Grace = 200 * time.Millisecond
				stop(t, run(t, spec, lifetime))
			})
			t.Run("while it is held", func(t *testing.T) {
				p := run(t, shell(t, "exec sleep 600"), lifetime)
				if err := p.Signal(syscall.SIGSTOP); err != nil {
					t.Fatal(err)
				}
				stop(t, p)
			})
		})
	}
}

func stop(t *testing.T, p *process.Process) {
	t.Helper()
	if !p.Alive() {
		t.Fatal("it does not run")
	}
	if err := p.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if p.Alive() {
		t.Error("it still runs")
	}
	if err := p.Stop(t.Context()); err != nil {
		t.Errorf("stopping again: %v", err)
	}
}

func TestRestart(t *testing.T) {
	p := run(t, shell(t, "exec sleep 600"), process.Attached)
	first := p.Identity()
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := p.Launch(); err != nil {
		t.Fatal(err)
	}
	second := p.Identity()
	if first.Alive() || !second.Alive() || first == second {
		t.Errorf("first %+v alive %t, second %+v alive %t", first, first.Alive(), second, second.Alive())
	}
}

func TestWaitReady(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	answer := http.StatusServiceUnavailable
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(answer)
		answer = http.StatusOK
	})}
	defer func() { _ = server.Close() }() // its listener too
	go func() { _ = server.Serve(listener) }()

	spec := shell(t, "exec sleep 600")
	spec.Ready = process.Probe{URL: "http://" + listener.Addr().String() + "/readyz"}
	if err := run(t, spec, process.Attached).WaitReady(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestWaitReadyFailure(t *testing.T) {
	spec := shell(t, "echo one; echo two; exit 3")
	spec.Advice = "try something else"
	spec.Ready = process.Probe{Socket: "/nowhere/at/all.sock"}
	wantError(t, run(t, spec, process.Attached).WaitReady(t.Context()), "example ended before it was ready", "    one\n    two\n", "what to do: try something else")

	spec = shell(t, "exec sleep 600")
	spec.Patience = 200 * time.Millisecond
	spec.Ready = process.Probe{Socket: "/nowhere/at/all.sock"}
	p := run(t, spec, process.Detached)
	wantError(t, p.WaitReady(t.Context()), "example was not ready within 200ms", "all.sock", "(it is empty)")

	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("somebody pressed a key"))
	wantError(t, p.WaitReady(ctx), "waiting for example: somebody pressed a key")
}

func wantError(t *testing.T, err error, wanted ...string) {
	t.Helper()
	for _, text := range wanted {
		if err == nil || !strings.Contains(err.Error(), text) {
			t.Errorf("the error does not say %q: %v", text, err)
		}
	}
}

func TestAttachedChildDiesWithItsParent(t *testing.T) {
	executable, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	parent := exec.Command(executable)
	parent.Env = []string{parentOf + "=" + filepath.Join(t.TempDir(), "child.log")}
	output, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(output).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	child, err := strconv.Atoi(strings.TrimSpace(strings.TrimPrefix(line, "<nil> ")))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(child, 0); err != nil {
		t.Fatalf("the child does not run: %v", err)
	}
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = parent.Wait() // it was killed
	waitFor(t, func() bool {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", child))
		return err != nil || strings.Contains(string(status), ") Z ")
	})
}

// TestAdopt is what another program does with what was written down.
func TestAdopt(t *testing.T) {
	p := run(t, shell(t, "exec sleep 600"), process.Detached)
	identity := p.Identity()
	later := identity
	later.Started++
	earlier := identity
	earlier.Boot = "another"
	for _, stranger := range []process.Identity{later, earlier, {}} {
		if err := process.Adopt(p.Spec(), stranger).Kill(); err != nil {
			t.Error(err)
		}
		if !p.Alive() {
			t.Fatalf("it was killed in the name of %+v", stranger)
		}
	}
	stop(t, process.Adopt(p.Spec(), identity))
}

// TestSweep finds a child that has left its parent and its session.
func TestSweep(t *testing.T) {
	p := run(t, shell(t, "setsid sleep 600 & echo $!; exit 0"), process.Detached)
	waitFor(t, func() bool { return !p.Alive() && len(process.Tail(p.Spec().Log)) > 0 })
	if err := process.Sweep("MARK=" + t.Name() + "x"); err != nil {
		t.Fatal(err)
	}
	child, err := strconv.Atoi(process.Tail(p.Spec().Log)[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(child, 0); err != nil {
		t.Fatalf("a sweep for another mark ended the child: %v", err)
	}
	if err := process.Sweep("MARK=" + t.Name()); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { return syscall.Kill(child, 0) != nil })
}

func waitFor(t *testing.T, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it did not happen within 10 seconds")
		}
	}
}
