package e2e_test

import (
	"bytes"
	"errors"
	"io"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
)

// lockedBuffer can be read while it is written to.
type lockedBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// running is a kubectl that has not ended.
type running struct {
	command        *exec.Cmd
	stdin          io.WriteCloser
	stdout, stderr *lockedBuffer
	ended          chan struct{}
}

// begins starts kubectl. It ends, at the latest, with the test.
func (r *streamsRig) begins(t testing.TB, kubeconfig, environment string, arguments ...string) *running {
	t.Helper()
	command, stdout, stderr := r.prepare(t.Context(), kubeconfig, environment, arguments...)
	stdin, err := command.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	k := &running{command, stdin, stdout, stderr, make(chan struct{})}
	go func() {
		_ = command.Wait() // how it ended is in its ProcessState
		close(k.ended)
	}()
	t.Cleanup(func() {
		_ = command.Process.Kill() // it may have ended
		<-k.ended
	})
	return k
}

// until waits until standard output holds a text, and returns all of it.
func (k *running) until(t testing.TB, text string) string {
	t.Helper()
	eventually(t, 20*time.Second, "kubectl prints "+text, func() error {
		if shown := k.stdout.String(); !strings.Contains(shown, text) {
			return errors.New("it shows " + shown + k.stderr.String())
		}
		return nil
	})
	return k.stdout.String()
}

func (k *running) types(t testing.TB, text string) {
	t.Helper()
	if _, err := io.WriteString(k.stdin, text); err != nil {
		t.Fatal(err)
	}
}

// leave interrupts kubectl and waits for its end.
func (k *running) leave(t testing.TB) {
	t.Helper()
	if err := k.command.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	k.wait(t, 10*time.Second)
}

// wait waits until kubectl has ended by itself, and returns its exit code.
func (k *running) wait(t testing.TB, patience time.Duration) int {
	t.Helper()
	select {
	case <-k.ended:
		return k.command.ProcessState.ExitCode()
	case <-time.After(patience):
		t.Fatalf("kubectl has not ended within %s; it shows %s%s", patience, k.stdout, k.stderr)
		return 0
	}
}

// terminal runs kubectl in a terminal of 33 rows and 77 columns and holds a
// conversation: each line that is typed, and what is waited for after it. The last
// line ends it.
func (r *streamsRig) terminal(t testing.TB, kubeconfig, environment string, conversation [][2]string, arguments ...string) (code int) {
	t.Helper()
	command, _, _ := r.prepare(t.Context(), kubeconfig, environment, arguments...)
	command.Stdout, command.Stderr = nil, nil
	command.Env = append(command.Env, "TERM=xterm")
	terminal, err := pty.StartWithSize(command, &pty.Winsize{Rows: 33, Cols: 77})
	if err != nil {
		t.Fatal(err)
	}
	defer terminal.Close()
	var shown lockedBuffer
	read := make(chan struct{})
	go func() {
		defer close(read)
		_, _ = io.Copy(&shown, terminal) // ends with an error when the other end is closed
	}()
	for _, line := range conversation {
		if _, err := io.WriteString(terminal, line[0]+"\r"); err != nil {
			t.Fatal(err)
		}
		eventually(t, 20*time.Second, "the terminal shows "+line[1], func() error {
			if !strings.Contains(shown.String(), line[1]) {
				return errors.New("it shows " + shown.String())
			}
			return nil
		})
	}
	<-read
	_ = command.Wait() // how it ended is in its ProcessState
	return command.ProcessState.ExitCode()
}
