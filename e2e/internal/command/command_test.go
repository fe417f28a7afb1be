package command_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/taskgate/taskgate/e2e/internal/command"
	"github.com/taskgate/taskgate/e2e/testbed/testbedtest"
)

// asCommand makes this test program be the command testbed.
const asCommand = "TASKGATE_TEST_AS_COMMAND"

func TestMain(m *testing.M) {
	if os.Getenv(asCommand) == "" {
		os.Exit(m.Run())
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := command.New(os.Stdout).ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "testbed:", err)
		os.Exit(1)
	}
}

// self is the path of the command.
func self(t *testing.T) string {
	t.Helper()
	t.Setenv(asCommand, "yes")
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return program
}

// TestCommand goes through the life of a testbed as a person would see it.
func TestCommand(t *testing.T) {
	program := self(t)
	directory := filepath.Join(testbedtest.Directory(t), "bed")
	run := func(wantCode int, arguments ...string) string {
		t.Helper()
		code, output := execute(t, program, append(arguments, "--dir", directory)...)
		if code != wantCode {
			t.Fatalf("testbed %v ended with code %d, not %d:\n%s", arguments, code, wantCode, output)
		}
		return output
	}
	contains := func(output string, wanted ...string) {
		t.Helper()
		for _, text := range wanted {
			if !strings.Contains(output, text) {
				t.Errorf("%q is missing in:\n%s", text, output)
			}
		}
	}
	t.Cleanup(func() { run(0, "down") })
	up := []string{"up", "--without-taskgate", "--node=none"}

	contains(run(0, "down"), "no testbed in")
	contains(run(1, "status"), "there is no testbed here")
	contains(run(0, up...), "kube-apiserver is ready", "the testbed is up", "source "+directory+"/env", "attested")
	contains(run(0, up...), "is up already")
	contains(run(1, append(up, "--s3=minio")...), "take it down")
	contains(run(0, "status"), "etcd", "running")
	contains(sourced(t, directory), "kubectl version says v1.37.")

	run(0, "kill", "s3")
	contains(run(1, "status"), "s3 does not run", "run testbed start s3")
	run(0, "start", "s3")
	run(0, "status")
	run(0, "restart", "dev-workload-api")

	contains(run(0, "down"), "is gone")
	gone(t, directory)
}

// sourced uses the file env as a shell does.
func sourced(t *testing.T, directory string) string {
	t.Helper()
	const script = `. "$1/env" && "$TASKGATE_BIN/kubectl" --kubeconfig "$TASKGATE_ADMIN_KUBECONFIG" version | sed -n 's/Server Version: /kubectl version says /p'`
	output, err := exec.CommandContext(t.Context(), "sh", "-euc", script, "sh", directory).CombinedOutput()
	if err != nil {
		t.Fatalf("using the file env: %v\n%s", err, output)
	}
	return string(output)
}

// TestCrash kills "testbed up" in the middle, after a reader has seen that
// something runs, and takes down what is left.
func TestCrash(t *testing.T) {
	program := self(t)
	for moment, node := range map[string]string{
		"s3 is ready": "none", "etcd is ready": "none", "kube-apiserver is ready": "none", "a pod has run": "real",
	} {
		t.Run(moment, func(t *testing.T) {
			directory := filepath.Join(testbedtest.Directory(t), "bed")
			up := exec.CommandContext(t.Context(), program, "up", "--without-taskgate", "--node", node, "--dir", directory)
			output, err := up.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := up.Start(); err != nil {
				t.Fatal(err)
			}
			lines := bufio.NewScanner(output)
			for lines.Scan() && !strings.HasPrefix(lines.Text(), moment) {
				continue
			}
			if err := up.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = up.Wait() // it was killed
			if len(marked(t, directory)) == 0 {
				t.Error("nothing was left running, so this test proves nothing")
			}
			if code, output := execute(t, program, "down", "--dir", directory); code != 0 {
				t.Errorf("down after a crash ended with code %d:\n%s", code, output)
			}
			gone(t, directory)
		})
	}
}

// TestInterrupt presses Ctrl-C in the middle.
func TestInterrupt(t *testing.T) {
	program := self(t)
	directory := filepath.Join(testbedtest.Directory(t), "bed")
	up := exec.CommandContext(t.Context(), program, "up", "--without-taskgate", "--node=none", "--dir", directory)
	output, err := up.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := up.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(output)
	for lines.Scan() && !strings.HasPrefix(lines.Text(), "etcd is ready") {
		continue
	}
	if err := up.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := up.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 1 {
		t.Errorf("up ended with %v when it was interrupted", err)
	}
	if left := marked(t, directory); len(left) > 0 {
		t.Errorf("these processes are left: %q", left)
	}
}

// TestRefusals are mistakes a person makes.
func TestRefusals(t *testing.T) {
	program := self(t)
	occupied := t.TempDir()
	if err := os.WriteFile(filepath.Join(occupied, "precious"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, mistake := range []struct {
		arguments []string
		wanted    string
	}{
		{[]string{"up", "--dir", occupied}, "no testbed made it: choose another directory"},
		{[]string{"down", "--dir", occupied}, "no testbed in"},
		{[]string{"up", "--s3=floppy", "--dir", occupied}, "S3=floppy is not known; it can be versitygw or minio"},
		{[]string{"up", "--dir", "/tmp/" + strings.Repeat("long", 30)}, "choose a shorter directory"},
	} {
		_, output := execute(t, program, mistake.arguments...)
		if !strings.Contains(output, mistake.wanted) {
			t.Errorf("testbed %v does not say %q:\n%s", mistake.arguments, mistake.wanted, output)
		}
	}
	if _, err := os.Stat(filepath.Join(occupied, "precious")); err != nil {
		t.Error(err)
	}
}

func execute(t *testing.T, program string, arguments ...string) (int, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour) // the first time builds everything
	defer cancel()
	up := exec.CommandContext(ctx, program, arguments...)
	output, err := up.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return up.ProcessState.ExitCode(), string(output)
}

// gone checks that neither a process nor a file of the testbed is left.
func gone(t *testing.T, directory string) {
	t.Helper()
	if left := marked(t, directory); len(left) > 0 {
		t.Errorf("these processes are left: %q", left)
	}
	if _, err := os.Stat(directory); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory is left: %v", err)
	}
}

// marked answers the processes of a testbed, by what they were started with.
func marked(t *testing.T, directory string) []string {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err == nil && strings.Contains(string(content), directory) {
			found = append(found, file)
		}
	}
	return found
}
