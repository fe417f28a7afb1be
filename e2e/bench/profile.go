package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/taskgate/taskgate/e2e/testbed"
)

// ProfileOptions says what to look into.
type ProfileOptions struct {
	Call     string // get, list or create
	Clients  int
	Duration time.Duration // under load
	Watches  int           // idle ones; 0 leaves them out
	Lines    int           // of each list
	Output   string        // folder for the raw profiles
	Progress io.Writer
}

// UsualProfile looks into a GET of 16 clients and a thousand idle watches.
func UsualProfile() ProfileOptions {
	return ProfileOptions{Call: PartGet, Clients: 16, Duration: 10 * time.Second, Watches: 1000, Lines: 30, Progress: io.Discard}
}

// heapSampling makes heap profiles of a few kilobytes per watch exact enough: one
// sample every so many bytes.
const heapSampling = "GODEBUG=memprofilerate=2048"

// Profile prints where CPU time and memory go.
func Profile(ctx context.Context, options ProfileOptions, out io.Writer) error {
	calls := map[string]call{PartGet: getPod(), PartList: listPods(), PartCreate: createConfigMap()}
	what, known := calls[options.Call]
	if !known || options.Clients < 1 || options.Duration < time.Second {
		return fmt.Errorf("call must be one of %v, with at least 1 client and 1s", slices.Sorted(maps.Keys(calls)))
	}
	p := profiler{options: options, out: out}
	var err error
	if p.folder, err = os.MkdirTemp("", "taskgate-bench-profile-"); err != nil {
		return fmt.Errorf("making a folder: %w", err)
	}
	if options.Output == "" {
		p.options.Output = filepath.Join(p.folder, "profiles")
	} else {
		defer func() { _ = os.RemoveAll(p.folder) }() // in the system's folder for temporary files
	}
	if err := errors.Join(os.Chmod(p.folder, 0o755), os.MkdirAll(p.options.Output, 0o755), p.prepare()); err != nil {
		return fmt.Errorf("making a folder: %w", err)
	}
	p.say("building broker and sidecar with profiles")
	if err := buildProfiled(ctx, p.programs()); err != nil {
		return err
	}
	if err := p.within(ctx, nil, func(w *world) error { return p.profileCalls(ctx, w, what) }); err != nil {
		return err
	}
	if options.Watches > 0 {
		if err := p.within(ctx, []string{heapSampling}, func(w *world) error { return p.profileWatches(ctx, w) }); err != nil {
			return err
		}
	}
	line(out, "\nThe raw profiles are in %s.", p.options.Output)
	return nil
}

type profiler struct {
	options ProfileOptions
	folder  string
	out     io.Writer
}

func (p *profiler) say(format string, arguments ...any) {
	line(p.options.Progress, format, arguments...)
}

func (p *profiler) programs() string { return filepath.Join(p.folder, "programs") }

// prepare makes the folders; with SPIRE, others would write sockets too.
func (p *profiler) prepare() error {
	return errors.Join(os.Mkdir(p.programs(), 0o755), os.Mkdir(filepath.Join(p.folder, "sockets"), 0o755))
}

// within starts a world of profiled programs for one purpose.
func (p *profiler) within(ctx context.Context, environment []string, do func(*world) error) error {
	environment = append(environment, "TASKGATE_BENCH_PROFILES="+filepath.Join(p.folder, "sockets", "%d.sock"))
	w, err := startWorld(ctx, worldOptions{
		spiffe: testbed.Dev, progress: p.say, programs: p.programs(), broker: environment, sidecar: environment,
	})
	if err != nil {
		return err
	}
	return errors.Join(do(w), w.stop(context.WithoutCancel(ctx)))
}

// profiled is a hop whose profiles can be asked for.
func (p *profiler) endpoint(hop component) profileEndpoint {
	return newProfileEndpoint(filepath.Join(p.folder, "sockets", fmt.Sprintf("%d.sock", hop.pid())))
}

// store keeps a raw profile.
func (p *profiler) store(name string, content []byte) error {
	if err := os.WriteFile(filepath.Join(p.options.Output, name), content, 0o644); err != nil {
		return fmt.Errorf("keeping a profile: %w", err)
	}
	return nil
}

// hopProfile is what was learned about one process under load.
type hopProfile struct {
	cpu           []byte // pprof
	before, after runtimeMemory
}

func (p *profiler) profileCalls(ctx context.Context, w *world, what call) error {
	c := w.taskgate
	transport := newTransport(c.tls, false)
	defer transport.CloseIdleConnections()
	p.say("profiling %s with %d clients for %s", p.options.Call, p.options.Clients, p.options.Duration)
	if _, err := drive(ctx, c, transport, what, p.options.Clients, 2*time.Second); err != nil {
		return err
	}
	profiles := make([]hopProfile, len(c.hops))
	times, err := w.cpuTimes(c)
	if err != nil {
		return err
	}
	group, groupContext := errgroup.WithContext(ctx)
	for i, hop := range c.hops {
		group.Go(func() error {
			var err error
			profiles[i], err = p.endpoint(hop).underLoad(groupContext, p.options.Duration)
			return err
		})
	}
	var load sample
	group.Go(func() error {
		var err error
		load, err = drive(groupContext, c, transport, what, p.options.Clients, p.options.Duration)
		return err
	})
	if err := group.Wait(); err != nil {
		return err
	}
	ended, err := w.cpuTimes(c)
	if err != nil {
		return err
	}
	line(p.out, "# %s, %d clients: %d calls, %.0f per second", p.options.Call, p.options.Clients, load.calls, float64(load.calls)/load.elapsed.Seconds())
	for i, hop := range c.hops {
		used := microseconds(ended[hop.name]-times[hop.name]) / float64(load.calls)
		if err := p.reportCalls(hop.name, profiles[i], load.calls, used); err != nil {
			return err
		}
	}
	return nil
}

func (p *profiler) reportCalls(name string, found hopProfile, calls int, used float64) error {
	if err := p.store(name+"-cpu.pprof", found.cpu); err != nil {
		return err
	}
	cpu, err := parseProfile(found.cpu, "cpu")
	if err != nil {
		return err
	}
	perCall := func(v float64) float64 { return v / float64(calls) }
	line(p.out, "\n## %s: %.1f us CPU per call (%.1f in the profile)", name, used, perCall(cpu.total)/1e3)
	delta := found.after.minus(found.before)
	line(p.out, "%.0f allocations and %.1f KB per call, %.1f collections per 1000 calls, %d goroutines, live heap about %.1f MB",
		perCall(delta.Mallocs), perCall(delta.TotalAlloc)/1024, 1000*perCall(delta.NumGC), int(found.after.Goroutines), found.after.HeapAlloc/(1<<20))
	for _, list := range []struct {
		title  string
		values map[string]float64
	}{
		{"by kind of work, each sample once", cpu.by(kindOfWork)},
		{"our packages, with all they call", cpu.cumulative(ourPackage)},
		{"our functions, with all they call", cpu.cumulative(ourFunction)},
		{"all functions, with all they call", cpu.cumulative(anyFunction)},
		{"all functions, alone", cpu.by(leafFunction)},
	} {
		p.list(list.title+" (us per call)", list.values, 1e3*float64(calls))
	}
	return nil
}

// list prints the largest values.
func (p *profiler) list(title string, values map[string]float64, unit float64) {
	line(p.out, "\n%s:", title)
	names := slices.SortedFunc(maps.Keys(values), func(a, b string) int {
		if values[a] == values[b] {
			return 0
		} else if values[a] > values[b] {
			return -1
		}
		return 1
	})
	for _, name := range names[:min(len(names), p.options.Lines)] {
		line(p.out, "%10.2f  %s", values[name]/unit, name)
	}
}

func (p *profiler) profileWatches(ctx context.Context, w *world) error {
	c := w.taskgate
	p.say("profiling %d idle watches", p.options.Watches)
	transport := newTransport(c.tls, false)
	defer transport.CloseIdleConnections()
	if _, err := drive(ctx, c, transport, getPod(), churnClients, churnFor); err != nil {
		return err
	}
	look := func() ([]idleProfile, error) {
		var all []idleProfile
		for _, hop := range c.hops {
			found, err := p.endpoint(hop).idle(ctx, hop.pid())
			if err != nil {
				return nil, err
			}
			all = append(all, found)
		}
		return all, nil
	}
	before, err := look()
	if err != nil {
		return err
	}
	closeAll, err := c.watchAll(watchQuiet(), p.options.Watches)
	defer closeAll()
	if err != nil {
		return err
	}
	if err := pause(ctx, settleFor); err != nil {
		return err
	}
	after, err := look()
	if err != nil {
		return err
	}
	for i, hop := range c.hops {
		if err := p.reportWatches(hop.name, before[i], after[i]); err != nil {
			return err
		}
	}
	return nil
}

func (p *profiler) reportWatches(name string, before, after idleProfile) error {
	if err := errors.Join(p.store(name+"-heap-before.pprof", before.heap), p.store(name+"-heap-after.pprof", after.heap), p.store(name+"-goroutines.pprof", after.goroutines)); err != nil {
		return err
	}
	heapBefore, err1 := parseProfile(before.heap, "inuse_space")
	heapAfter, err2 := parseProfile(after.heap, "inuse_space")
	threadsBefore, err3 := parseProfile(before.goroutines, "goroutine")
	threadsAfter, err4 := parseProfile(after.goroutines, "goroutine")
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return err
	}
	watches := float64(p.options.Watches)
	delta := after.memory.minus(before.memory)
	kb := func(bytes float64) float64 { return bytes / 1024 / watches }
	line(p.out, "\n## %s: memory of an idle watch, right after a collection that gave back all it could", name)
	line(p.out, "RSS %.1f KB = heap in use %.1f (live objects %.1f) + stacks %.1f + runtime and other %.1f; %.2f goroutines",
		kb(float64(after.resident-before.resident)), kb(delta.HeapInuse), kb(delta.HeapAlloc), kb(delta.StackInuse),
		kb(float64(after.resident-before.resident)-delta.HeapInuse-delta.StackInuse), delta.Goroutines/watches)
	line(p.out, "(a collector left alone keeps garbage up to as much again as the live objects)")
	p.list("live heap, by who allocated it (KB per watch)", difference(heapAfter.by(anyAllocator), heapBefore.by(anyAllocator)), 1024*watches)
	p.list("live heap, our functions with all they call (KB per watch)", difference(heapAfter.cumulative(ourFunction), heapBefore.cumulative(ourFunction)), 1024*watches)
	p.list("goroutines, by where they began and wait (per watch)", difference(threadsAfter.by(beginAndWait), threadsBefore.by(beginAndWait)), watches)
	return nil
}

func difference(after, before map[string]float64) map[string]float64 {
	left := maps.Clone(after)
	for name, value := range before {
		left[name] -= value
	}
	return left
}
