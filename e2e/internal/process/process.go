package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/taskgate/taskgate/e2e/internal/namespaces"
)

const (
	// defaultGrace is how long a process may take to end after SIGTERM.
	defaultGrace = 20 * time.Second
	// killPatience is how long the kernel may take to end it after SIGKILL.
	killPatience = 10 * time.Second
	// defaultPatience is how long a process may take until it is ready.
	defaultPatience = 60 * time.Second

	pollInterval = 25 * time.Millisecond
	tailLines    = 15
)

// Lifetime says what happens to a process when the program that started it ends.
type Lifetime int

const (
	// Attached: the process is killed with the program that started it.
	Attached Lifetime = iota
	// Detached: the process lives on in a session of its own.
	Detached
)

// User is whom a process runs as.
type User struct {
	UID uint32 `json:"uid"`
	GID uint32 `json:"gid"`
}

// Spec describes a program to run.
type Spec struct {
	Name        string        `json:"name"`
	Path        string        `json:"path"`
	Arguments   []string      `json:"arguments"`
	Environment []string      `json:"environment"` // all that the process gets
	Directory   string        `json:"directory"`
	User        *User         `json:"user,omitempty"` // nil: whoever we are
	Log         string        `json:"log"`            // file for stdout and stderr, appended to
	Ready       Probe         `json:"ready"`
	Patience    time.Duration `json:"patience,omitempty"` // until ready; zero: a minute
	Grace       time.Duration `json:"grace,omitempty"`    // between SIGTERM and SIGKILL; zero: 20 seconds
	Advice      string        `json:"advice,omitempty"`   // what a person should do when it does not start

	// Isolated makes it process 1 of a PID and a mount namespace of its own. When
	// it ends, the kernel ends all others in them, and their mounts. Needs root.
	Isolated bool `json:"isolated,omitempty"`
	// Inside starts it in the namespaces of another process; nil: in ours.
	Inside *Inside `json:"inside,omitempty"`
}

// Inside names the namespaces that a process starts in.
type Inside struct {
	Socket  string `json:"socket"`            // where they are handed out; see package namespaces
	Network bool   `json:"network,omitempty"` // the network namespace too; else it keeps ours
}

// Process is one program, running or not. Its methods may be called from
// several goroutines; starts and stops of one process happen one after another.
type Process struct {
	spec     Spec
	lifetime Lifetime

	operation sync.Mutex // held for a whole start or stop

	mu       sync.Mutex
	identity Identity
	reaped   chan struct{} // closed when an attached process was waited for; nil for others
	command  *exec.Cmd     // its ProcessState is set when reaped is closed
}

// New describes a process that does not run yet.
func New(spec Spec, lifetime Lifetime) *Process {
	if spec.Patience == 0 {
		spec.Patience = defaultPatience
	}
	if spec.Grace == 0 {
		spec.Grace = defaultGrace
	}
	return &Process{spec: spec, lifetime: lifetime}
}

// Adopt takes over a detached process that another program started.
func Adopt(spec Spec, identity Identity) *Process {
	p := New(spec, Detached)
	p.identity = identity
	return p
}

// Spec is what the process was made from.
func (p *Process) Spec() Spec { return p.spec }

// Identity is that of the last start; zero before the first.
func (p *Process) Identity() Identity {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.identity
}

// Alive says whether the process runs.
func (p *Process) Alive() bool { return p.Identity().Alive() }

// Exit is how the last run of an attached process ended; nil while it runs, and
// for detached processes, which are nobody's children.
func (p *Process) Exit() *os.ProcessState {
	p.mu.Lock()
	reaped, command := p.reaped, p.command
	p.mu.Unlock()
	if reaped == nil {
		return nil
	}
	select {
	case <-reaped:
		return command.ProcessState
	default:
		return nil
	}
}

// Launch starts the process and does not wait until it is ready. A process that
// runs already stays as it is.
func (p *Process) Launch() error {
	p.operation.Lock()
	defer p.operation.Unlock()
	if p.Alive() {
		return nil
	}
	p.mu.Lock()
	reaped := p.reaped
	p.mu.Unlock()
	if reaped != nil {
		<-reaped // its first thread may be gone while others still hold its files and locks
	}
	return p.launch()
}

// WaitReady answers nil once the probe says ready. When the process ends before
// that, or patience does, the error quotes its log and says what to do.
func (p *Process) WaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, p.spec.Patience, errPatience)
	defer cancel()
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	for {
		if !p.Alive() {
			return p.failure("ended before it was ready", nil)
		}
		last := p.spec.Ready.try(ctx)
		if last == nil {
			return nil
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			if cause := context.Cause(ctx); !errors.Is(cause, errPatience) {
				return fmt.Errorf("waiting for %s: %w", p.spec.Name, cause)
			}
			return p.failure(fmt.Sprintf("was not ready within %s", p.spec.Patience), last)
		}
	}
}

var errPatience = errors.New("patience ended")

// Stop asks the process to end and waits; when it does not, it is killed.
// Stopping one that does not run is no error. nil means that it runs no more.
func (p *Process) Stop(ctx context.Context) error {
	p.operation.Lock()
	defer p.operation.Unlock()
	identity := p.Identity()
	if err := identity.signal(syscall.SIGTERM, false); err != nil {
		return err
	}
	// A process held by SIGSTOP would not hear SIGTERM.
	if err := identity.signal(syscall.SIGCONT, false); err != nil {
		return err
	}
	if p.waitGone(ctx, p.spec.Grace) {
		return nil
	}
	return p.kill()
}

// Kill ends the process at once, with SIGKILL, together with its children.
func (p *Process) Kill() error {
	p.operation.Lock()
	defer p.operation.Unlock()
	return p.kill()
}

func (p *Process) kill() error {
	if err := p.Identity().signal(syscall.SIGKILL, true); err != nil {
		return err
	}
	if !p.waitGone(context.Background(), killPatience) {
		return fmt.Errorf("%s (process %d) does not end even after SIGKILL: look at it with ps -p %[2]d -o pid,stat,wchan,args",
			p.spec.Name, p.Identity().PID)
	}
	return nil
}

// Signal sends any signal, such as SIGSTOP, to the process alone.
func (p *Process) Signal(signal syscall.Signal) error {
	identity := p.Identity()
	if !identity.Alive() {
		return fmt.Errorf("%s is not running", p.spec.Name)
	}
	return identity.signal(signal, false)
}

// waitGone answers whether the process ended within patience.
func (p *Process) waitGone(ctx context.Context, patience time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	for p.Alive() {
		select {
		case <-ctx.Done():
			return false
		case <-ticker.C:
		}
	}
	p.mu.Lock()
	reaped := p.reaped
	p.mu.Unlock()
	if reaped != nil {
		<-reaped // soon: the process is dead, only its status is left to read
	}
	return true
}

// launch runs the command; the caller holds operation.
func (p *Process) launch() error {
	if err := os.MkdirAll(filepath.Dir(p.spec.Log), 0o755); err != nil {
		return fmt.Errorf("making the log folder of %s: %w", p.spec.Name, err)
	}
	log, err := os.OpenFile(p.spec.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("opening the log of %s: %w", p.spec.Name, err)
	}
	defer func() { _ = log.Close() }() // the child has its own descriptor
	command := p.prepare(log)
	if p.lifetime == Attached {
		err = p.startAttached(command)
	} else {
		err = p.startDetached(command)
	}
	if err != nil {
		return p.startFailure(err)
	}
	return nil
}

func (p *Process) prepare(log *os.File) *exec.Cmd {
	command := exec.Command(p.spec.Path, p.spec.Arguments...)
	command.Dir = p.spec.Directory
	command.Env = p.spec.Environment
	command.Stdout, command.Stderr = log, log
	attributes := &syscall.SysProcAttr{}
	if p.lifetime == Attached {
		attributes.Setpgid = true // Ctrl-C is for us: we stop the components in order
		if p.spec.Inside == nil {
			attributes.Pdeathsig = syscall.SIGKILL
		} // else it cannot see its parent, and ends with the namespaces it is in
	} else {
		attributes.Setsid = true
	}
	if p.spec.Isolated {
		attributes.Cloneflags = syscall.CLONE_NEWPID | syscall.CLONE_NEWNS
	}
	if p.spec.User != nil {
		attributes.Credential = &syscall.Credential{Uid: p.spec.User.UID, Gid: p.spec.User.GID}
	}
	command.SysProcAttr = attributes
	return command
}

// startAttached starts the command from a thread that lives as long as the
// child, because the kernel sends the parent-death signal when the thread that
// forked ends, not when the program does. The goroutine ends with the child;
// Stop and Kill wait for it.
func (p *Process) startAttached(command *exec.Cmd) error {
	started := make(chan error, 1)
	reaped := make(chan struct{})
	namespaces.Go(func() {
		defer close(reaped)
		err := p.start(command)
		started <- err
		if err == nil {
			_ = command.Wait() // how it ended is in its log
		}
	})
	if err := <-started; err != nil {
		return err
	}
	return p.setIdentity(command, reaped)
}

// startDetached lets go of the child: when it ends before we do it stays a
// zombie until then, which counts as not alive.
func (p *Process) startDetached(command *exec.Cmd) error {
	started := make(chan error, 1)
	namespaces.Go(func() { started <- p.start(command) })
	if err := <-started; err != nil {
		return err
	}
	if err := p.setIdentity(command, nil); err != nil {
		return err
	}
	return command.Process.Release()
}

// start moves the calling thread into the namespaces of the process first.
func (p *Process) start(command *exec.Cmd) error {
	if p.spec.Inside == nil {
		return command.Start()
	}
	set, err := namespaces.Ask(p.spec.Inside.Socket)
	if err != nil {
		return err
	}
	defer func() { _ = set.Close() }() // the child is in the namespaces itself
	if err := set.Enter(p.spec.Inside.Network); err != nil {
		return err
	}
	return command.Start()
}

func (p *Process) setIdentity(command *exec.Cmd, reaped chan struct{}) error {
	identity, err := identify(command.Process.Pid)
	if err != nil && reaped == nil {
		return err
	}
	// An attached process that ended at once may be reaped already: it is then
	// simply not alive, and WaitReady quotes its log.
	p.mu.Lock()
	defer p.mu.Unlock()
	p.identity, p.reaped, p.command = identity, reaped, command
	return nil
}
