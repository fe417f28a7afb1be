package demo

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// shell does what is typed.
type shell interface {
	// run runs a command line to its end.
	run(ctx context.Context, who role, line string) (result, error)
	// watch runs a command line that goes on until something ends it: what
	// meanwhile does, once the command has said all it has to say for now. That is
	// before; the result holds the rest, and how long the end took from there.
	watch(ctx context.Context, who role, line string, meanwhile func(before string) error) (result, error)
}

const (
	// runLimit is how long a command may take; the machine may be busy.
	runLimit = 90 * time.Second
	// quiet is how long a watching command says nothing before it is thought to
	// have said all: kubectl lists first and watches then.
	quiet = time.Second
	// endLimit is how long it may go on once it should end.
	endLimit = 10 * time.Second
)

// posixShell is sh.
type posixShell struct{ cast *cast }

func (s posixShell) run(ctx context.Context, who role, line string) (result, error) {
	limited, cancel := context.WithTimeout(ctx, runLimit)
	defer cancel()
	output := new(outputBuffer)
	command := s.command(limited, who, line, output)
	begin := time.Now()
	err := command.Run()
	return outcome(ctx, command, err, output.text(), time.Since(begin))
}

func (s posixShell) watch(ctx context.Context, who role, line string, meanwhile func(string) error) (result, error) {
	endable, end := context.WithCancel(ctx)
	defer end()
	output := new(outputBuffer)
	command := s.command(endable, who, line, output)
	if err := command.Start(); err != nil {
		return result{}, fmt.Errorf("running %q: %w", line, err)
	}
	ended := make(chan error, 1)
	go func() { ended <- command.Wait() }()
	before, waitErr := output.settle(ctx)
	begin := time.Now()
	if waitErr == nil {
		waitErr = meanwhile(before)
	}
	if waitErr != nil {
		end()
		<-ended
		return result{}, waitErr
	}
	late := time.AfterFunc(endLimit, end)
	defer late.Stop()
	err := <-ended
	return outcome(ctx, command, err, output.text()[len(before):], time.Since(begin))
}

// command is a shell of its own process group, so that it ends with all that it
// started, and Ctrl-C reaches only us.
func (s posixShell) command(ctx context.Context, who role, line string, output *outputBuffer) *exec.Cmd {
	command := exec.CommandContext(ctx, "sh", "-c", line)
	command.Dir = s.cast.folder
	command.Env = append([]string{"HOME=" + filepath.Join(s.cast.folder, "home", string(who))}, s.cast.environments[who]...)
	command.Stdout, command.Stderr = output, output
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	command.Cancel = func() error { return syscall.Kill(-command.Process.Pid, syscall.SIGKILL) }
	command.WaitDelay = time.Second
	return command
}

// outcome tells a command that ended, well or not, from one that could not be
// run or that we gave up because ctx ended.
func outcome(ctx context.Context, command *exec.Cmd, err error, output string, took time.Duration) (result, error) {
	switch {
	case ctx.Err() != nil:
		return result{}, context.Cause(ctx)
	case command.ProcessState == nil:
		return result{}, fmt.Errorf("running %q: %w", command.Args[2], err)
	}
	return result{output: output, code: command.ProcessState.ExitCode(), took: took}, nil
}

// outputBuffer collects what a running command says.
type outputBuffer struct {
	mu      sync.Mutex
	content bytes.Buffer
	last    time.Time
}

func (b *outputBuffer) Write(data []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.last = time.Now()
	return b.content.Write(data)
}

func (b *outputBuffer) text() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.content.String()
}

// settle waits until there is output and no more of it comes.
func (b *outputBuffer) settle(ctx context.Context) (string, error) {
	const step = 20 * time.Millisecond
	for deadline := time.Now().Add(runLimit); ; {
		b.mu.Lock()
		text, last := b.content.String(), b.last
		b.mu.Unlock()
		if text != "" && time.Since(last) >= quiet || time.Now().After(deadline) {
			return text, nil
		}
		select {
		case <-ctx.Done():
			return "", context.Cause(ctx)
		case <-time.After(step):
		}
	}
}
