package testbed

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/rest"

	"github.com/taskgate/taskgate/e2e/internal/filelock"
	"github.com/taskgate/taskgate/e2e/internal/ports"
	"github.com/taskgate/taskgate/e2e/internal/process"
)

// Testbed is a running stack. Its methods may be called from several goroutines.
type Testbed struct {
	options Options
	tools   map[string]string // path of each program that is not ours
	claims  ports.Claims
	lock    *filelock.Lock // held while an attached testbed runs, or a detached one starts
	admin   *rest.Config
	spire   *SPIREServer // nil without SPIRE
	node    *realNode    // nil without a real node, and after Open
	agents  agents

	mu          sync.Mutex
	processes   []*process.Process // in the order they were started
	environment Environment
	complete    bool
}

// Start brings a testbed up and returns when every component is ready. When one
// does not come up, the error quotes its log and says what to do; the rest is
// stopped again and the directory stays for a look at the logs.
func Start(ctx context.Context, options Options) (*Testbed, error) {
	options, err := options.complete()
	if err != nil {
		return nil, err
	}
	t, err := prepare(options)
	if err != nil {
		return nil, err
	}
	if err := t.start(ctx); err != nil {
		return nil, errors.Join(err, t.Stop(context.WithoutCancel(ctx)))
	}
	if options.Detached {
		return t, t.release()
	}
	return t, nil
}

// prepare makes the directory, and makes sure that nobody else uses it.
func prepare(options Options) (*Testbed, error) {
	if err := errors.Join(options.checkReachable(), removeRemains(options.Directory)); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(options.Directory, 0o755); err != nil {
		return nil, fmt.Errorf("making the testbed's directory: %w", err)
	}
	lock, err := lockDirectory(options.Directory)
	if err != nil {
		return nil, err
	}
	t := &Testbed{options: options, lock: lock, tools: map[string]string{}}
	if err := errors.Join(t.save(), t.makeFolders("bin", "log")); err != nil {
		return nil, errors.Join(err, t.release())
	}
	return t, nil
}

// start runs the components, those that do not need each other at the same time.
func (t *Testbed) start(ctx context.Context) error {
	if err := t.findPrograms(ctx); err != nil {
		return err
	}
	group, groupContext := errgroup.WithContext(ctx)
	group.Go(func() error { return t.startCluster(groupContext) })
	group.Go(func() error { return t.startObjectStore(groupContext) })
	group.Go(func() error { return t.startIdentities(groupContext) })
	if err := group.Wait(); err != nil {
		return err
	}
	for _, step := range []func(context.Context) error{t.startNode, t.installManifests, t.startTaskgate} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	if err := t.claims.ReleaseAll(); err != nil {
		return fmt.Errorf("giving unused ports back: %w", err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.complete = true
	return t.saveLocked()
}

// Stop ends every component, the last started first, and leaves the directory
// for a look at logs and data; Remove removes it. When it answers nil no process
// of the testbed is left. What has not ended when ctx does is killed. Stopping
// twice is no error.
func (t *Testbed) Stop(ctx context.Context) error {
	var errs []error
	for _, tier := range t.tiers() {
		errs = append(errs, stopAll(ctx, tier))
	}
	errs = append(errs, process.Sweep(t.marker()), t.removeRealNode(ctx), t.claims.ReleaseAll(), t.release())
	if t.spire != nil {
		errs = append(errs, t.spire.close())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("stopping the testbed: %w", err)
	}
	return nil
}

// tiers groups the components by what must end first: sidecars before brokers,
// these before all else, so that they can still reach what they depend on.
func (t *Testbed) tiers() [][]*process.Process {
	t.mu.Lock()
	defer t.mu.Unlock()
	tiers := make([][]*process.Process, tierCount)
	for _, p := range t.processes {
		tier := tierOf(p.Spec().Name)
		tiers[tier] = append(tiers[tier], p)
	}
	return tiers
}

func stopAll(ctx context.Context, processes []*process.Process) error {
	var group errgroup.Group
	for _, p := range processes {
		group.Go(func() error { return p.Stop(ctx) })
	}
	return group.Wait()
}

// Remove stops the testbed and removes its directory.
func (t *Testbed) Remove(ctx context.Context) error {
	if err := t.Stop(ctx); err != nil {
		return err
	}
	if err := os.RemoveAll(t.options.Directory); err != nil {
		return fmt.Errorf("removing the testbed's directory: %w", err)
	}
	return nil
}

// Directory holds all that the testbed writes.
func (t *Testbed) Directory() string { return t.options.Directory }

// Environment is what the testbed tells other programs.
func (t *Testbed) Environment() Environment {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.environment
}

// Admin is a client configuration for the cluster's administrator.
func (t *Testbed) Admin() *rest.Config { return rest.CopyConfig(t.admin) }

// Store is the S3 store.
func (t *Testbed) Store() ObjectStore { return t.Environment().Store }

// SPIRE manages registration entries and authorities; nil when SPIFFE is Dev or
// the testbed was opened, not started.
func (t *Testbed) SPIRE() *SPIREServer { return t.spire }

func (t *Testbed) setEnvironment(change func(*Environment)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	change(&t.environment)
}

// path is a path inside the directory.
func (t *Testbed) path(parts ...string) string {
	return filepath.Join(append([]string{t.options.Directory}, parts...)...)
}

// release lets other programs work on the directory.
func (t *Testbed) release() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.lock == nil {
		return nil
	}
	err := t.lock.Release()
	t.lock = nil
	return err
}

func (t *Testbed) say(format string, arguments ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, _ = fmt.Fprintf(t.options.Progress, format+"\n", arguments...) // progress that nobody sees is no failure
}

// run starts a component and waits until it is ready. The ports it is to listen
// on are freed just before.
func (t *Testbed) run(ctx context.Context, spec process.Spec, ports ...int) error {
	begin := time.Now()
	spec = t.completeSpec(spec)
	lifetime := process.Attached
	if t.options.Detached {
		lifetime = process.Detached
	}
	p := process.New(spec, lifetime)
	for _, port := range ports {
		if err := t.claims.Release(port); err != nil {
			return fmt.Errorf("freeing port %d for %s: %w", port, spec.Name, err)
		}
	}
	if err := t.launch(p); err != nil {
		return err
	}
	if err := p.WaitReady(ctx); err != nil {
		return err
	}
	t.say("%s is ready (%s)", spec.Name, time.Since(begin).Round(10*time.Millisecond))
	return nil
}

// launch starts a process and writes it down in one go, so that a program that
// is killed leaves at most this one process unwritten; Sweep finds that.
func (t *Testbed) launch(p *process.Process) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := p.Launch(); err != nil {
		return err
	}
	t.processes = append(t.processes, p)
	return t.saveLocked()
}

// completeSpec adds what all components have in common. They get none of our
// environment, so that neither a proxy nor somebody's credentials reach them.
func (t *Testbed) completeSpec(spec process.Spec) process.Spec {
	if spec.Directory == "" {
		spec.Directory = t.options.Directory
	}
	spec.Log = t.path("log", spec.Name+".log")
	spec.Environment = append([]string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + spec.Directory, "TMPDIR=" + os.TempDir(), t.marker(),
	}, spec.Environment...)
	return spec
}

// marker is in the environment of every process of this testbed, and of their
// children.
func (t *Testbed) marker() string {
	return "TASKGATE_TESTBED_DIRECTORY=" + t.options.Directory
}
