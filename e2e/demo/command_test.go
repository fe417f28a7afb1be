package demo_test

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/taskgate/taskgate/e2e/testbed"
	"github.com/taskgate/taskgate/e2e/testbed/testbedtest"
)

// titles are the steps that the demo must not lose.
var titles = []string{
	"1. An agent without a credential is given a task",
	"2. Inside the task, plain kubectl works",
	"3. Outside the task, alpha is refused and told why",
	"4. Another agent has no part in it",
	"5. A risky call waits for a person, who says yes to exactly that",
	"6. What happens in a pod is recorded, and can be played back",
	"7. The task ends, and the access with it",
	"8. The record is out of reach",
	"9. The record is whole, and a stranger can prove it",
	"What you have seen",
}

// TestCommand runs the program that make demo and make dev run.
func TestCommand(t *testing.T) {
	program := filepath.Join(t.TempDir(), "demo")
	if output, err := exec.Command("go", "build", "-o", program, "../cmd/demo").CombinedOutput(); err != nil {
		t.Fatalf("building the demo: %v\n%s", err, output)
	}
	for name, test := range map[string]func(*testing.T, string){
		"play": testPlay, "broken world": testBrokenWorld, "interrupt": testInterrupt, "keep": testKeep,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, program)
		})
	}
}

// run is a run of the demo, with a folder of its own for all that it writes.
type run struct {
	*exec.Cmd
	folder           string
	output, progress bytes.Buffer
}

func newRun(t *testing.T, program string, arguments ...string) *run {
	t.Helper()
	r := &run{Cmd: exec.CommandContext(t.Context(), program, arguments...), folder: testbedtest.Directory(t)}
	r.Env = append(os.Environ(), "TMPDIR="+r.folder)
	r.Stdout, r.Stderr = &r.output, &r.progress
	r.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	t.Cleanup(func() {
		if left := processesOf(t, r.folder); len(left) > 0 {
			t.Errorf("these processes are left: %q", left)
		}
	})
	return r
}

// exit waits for the end and checks the exit code.
func (r *run) exit(t *testing.T, want int) {
	t.Helper()
	_ = r.Wait() // the exit code says it all
	if code := r.ProcessState.ExitCode(); code != want {
		t.Fatalf("the exit code is %d, not %d\n%s\n%s", code, want, &r.progress, &r.output)
	}
}

func (r *run) start(t *testing.T) {
	t.Helper()
	if err := r.Start(); err != nil {
		t.Fatal(err)
	}
}

// leavesNothing checks that no file is left.
func (r *run) leavesNothing(t *testing.T) {
	t.Helper()
	left, err := os.ReadDir(r.folder)
	if err != nil || len(left) > 0 {
		t.Errorf("this is left in %s: %v (%v)", r.folder, left, err)
	}
}

func testPlay(t *testing.T, program string) {
	r := newRun(t, program, "--plain")
	r.start(t)
	r.exit(t, 0)
	r.leavesNothing(t)
	text := r.output.String()
	for _, title := range titles {
		if !strings.Contains(text, "\n"+title+"\n") {
			t.Errorf("there is no step %q", title)
		}
	}
	const checks = 21
	if count := strings.Count(text, "✓ "); count < checks || strings.Contains(text, "✗") {
		t.Errorf("%d checks held, not %d or more:\n%s", count, checks, text)
	}
	if strings.Contains(text, r.folder) || regexp.MustCompile(`127\.0\.0\.1:\d{5}`).MatchString(text) {
		t.Errorf("the output differs from run to run:\n%s", text)
	}
}

// testBrokenWorld makes the demo see an API server that has seen refused calls.
func testBrokenWorld(t *testing.T, program string) {
	r := newRun(t, program)
	grep := filepath.Join(t.TempDir(), "grep")
	if err := os.WriteFile(grep, []byte("#!/bin/sh\necho 7\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	r.Env = append(r.Env, "PATH="+filepath.Dir(grep)+":"+os.Getenv("PATH"))
	r.start(t)
	r.exit(t, 1)
	for _, words := range []string{"✗ no: what is refused never reaches the cluster", "expected: exit code 1", "came:     exit code 0"} {
		if !strings.Contains(r.output.String(), words) {
			t.Errorf("it does not say %q:\n%s", words, &r.output)
		}
	}
	if strings.Contains(r.output.String(), "\n4. ") {
		t.Error("it went on after a check that did not hold")
	}
	logs := regexp.MustCompile(`the logs are in (\S+)`).FindStringSubmatch(r.progress.String())
	if logs == nil {
		t.Fatalf("it does not say where the logs are:\n%s", &r.progress)
	}
	if _, err := os.Stat(filepath.Join(logs[1], "broker-0.log")); err != nil {
		t.Error(err)
	}
}

// testInterrupt presses Ctrl-C while a command of the play runs.
func testInterrupt(t *testing.T, program string) {
	r := newRun(t, program)
	r.Stdout = nil
	stdout, err := r.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	r.start(t)
	lines := bufio.NewScanner(stdout)
	for lines.Scan() && !strings.HasPrefix(lines.Text(), "5. ") {
	}
	if err := syscall.Kill(-r.Process.Pid, syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, stdout); err != nil {
		t.Error(err)
	}
	r.exit(t, 130)
	r.leavesNothing(t)
}

// testKeep does what the advice says, in each shell that it names.
func testKeep(t *testing.T, program string) {
	first := newRun(t, program)
	directory := filepath.Join(first.folder, "kept")
	first.Args = append(first.Args, "--keep", "--dir", directory)
	t.Cleanup(func() {
		if err := testbed.Down(context.WithoutCancel(t.Context()), directory); err == nil {
			t.Error("it was not stopped before")
		}
	})
	first.start(t)
	first.exit(t, 0)
	advice := first.output.String()

	again := newRun(t, program, "--keep", "--dir", directory)
	again.start(t)
	again.exit(t, 0)
	if !strings.Contains(again.progress.String(), "it is up already") || again.output.String() != advice {
		t.Errorf("the second time it said:\n%s\n%s", &again.progress, &again.output)
	}
	for _, block := range strings.Split(advice, "\n\n")[1:4] {
		output, err := exec.CommandContext(t.Context(), "sh", "-c", block).CombinedOutput()
		t.Logf("%s\n%s", block, output)
		if err != nil {
			t.Errorf("the last line failed: %v", err)
		}
		if words := expectedOf(block); !strings.Contains(string(output), words) {
			t.Errorf("there is no %q in the output", words)
		}
	}
	if err := testbed.Down(t.Context(), directory); err != nil {
		t.Error(err)
	}
	first.leavesNothing(t)
}

func expectedOf(block string) string {
	switch {
	case strings.Contains(block, "alpha.sh"):
		return "[taskgate:OutsideGrant]"
	case strings.Contains(block, "operator.sh"):
		return "taskgrant.taskgate.dev/inc-4711 created"
	}
	return "PROVEN"
}

// processesOf answers what runs with a folder in its environment.
func processesOf(t *testing.T, folder string) []string {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, file := range files {
		if content, err := os.ReadFile(file); err == nil && bytes.Contains(content, []byte(folder)) {
			name, _ := os.ReadFile(filepath.Join(filepath.Dir(file), "cmdline")) // only for the message
			found = append(found, string(name))
		}
	}
	return found
}
