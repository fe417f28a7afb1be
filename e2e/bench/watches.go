package bench

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"time"
)

// WatchMemory is what one process holds for each idle watch.
type WatchMemory struct {
	Contender string `json:"contender"`
	Process   string `json:"process"`
	// Resident and Anonymous are kilobytes per watch in a process that has done
	// nothing else.
	Resident  Interval `json:"residentKB"`
	Anonymous Interval `json:"anonymousKB"`
	// Busy is Resident where ordinary calls run before and after the watches are
	// opened: the garbage collector then leaves room for garbage in proportion to
	// what lives.
	Busy Interval `json:"busyResidentKB"`
	// Before is the resident memory of the process without watches, in kilobytes.
	Before Interval `json:"beforeKB"`
	// Sockets is the number of files and sockets opened for all of them.
	Sockets Interval `json:"sockets"`
	// IdleCPU is what all of them cost while nothing happens, in percent of a core.
	IdleCPU Interval `json:"idleCPUPercent"`
}

const (
	// churnFor is how long ordinary calls run where a process is to be busy.
	churnFor     = 2 * time.Second
	churnClients = 4
	// warmFor is enough to have made every kind of object once.
	warmFor = 50 * time.Millisecond
	// idleFor is how long the CPU of idle watches is looked at.
	idleFor = 5 * time.Second

	settleStep     = 250 * time.Millisecond
	settleFor      = 3 * time.Second
	settlePatience = 30 * time.Second
	settleShare    = 0.01 // memory stands still if it changes by no more
)

// watchState is what is known of one process at one moment.
type watchState struct {
	memory  memory
	sockets int
	cpu     time.Duration
}

// watchSeries collects what was found out about one process.
type watchSeries struct {
	contender, process                              string
	resident, anonymous, busy, before, sockets, cpu []float64
}

// measureWatches opens idle watches through taskgate and through the twin, each
// time with fresh processes.
func (w *world) measureWatches(ctx context.Context, watches, repeats int) ([]WatchMemory, error) {
	contenders := []*contender{w.taskgate, w.plain}
	var series []*watchSeries
	for _, c := range contenders {
		for _, hop := range c.hops {
			series = append(series, &watchSeries{contender: c.name, process: hop.name})
		}
	}
	for range repeats {
		for _, busy := range []bool{false, true} {
			if err := w.restart(ctx); err != nil {
				return nil, err
			}
			var found []watchStates
			for _, c := range contenders {
				states, err := w.openWatches(ctx, c, watches, busy)
				if err != nil {
					return nil, err
				}
				found = append(found, states...)
			}
			for i, states := range found {
				series[i].add(states, watches, busy)
			}
		}
	}
	var results []WatchMemory
	for _, s := range series {
		results = append(results, s.result())
	}
	return results, nil
}

func (s *watchSeries) add(states watchStates, watches int, busy bool) {
	before, after := states.before, states.after
	resident := perWatch(after.memory.resident-before.memory.resident, watches)
	if busy {
		s.busy = append(s.busy, resident)
		return
	}
	s.resident = append(s.resident, resident)
	s.anonymous = append(s.anonymous, perWatch(after.memory.anonymous-before.memory.anonymous, watches))
	s.before = append(s.before, float64(before.memory.resident)/1024)
	s.sockets = append(s.sockets, float64(after.sockets-before.sockets))
	s.cpu = append(s.cpu, 100*(states.idle.cpu-after.cpu).Seconds()/idleFor.Seconds())
}

func (s *watchSeries) result() WatchMemory {
	return WatchMemory{
		Contender: s.contender, Process: s.process, Resident: intervalOf(s.resident), Anonymous: intervalOf(s.anonymous), Busy: intervalOf(s.busy),
		Before: intervalOf(s.before), Sockets: intervalOf(s.sockets), IdleCPU: intervalOf(s.cpu),
	}
}

func perWatch(bytes int64, watches int) float64 { return float64(bytes) / 1024 / float64(watches) }

// watchStates are one process before and after the watches are opened, and once
// more after a while of idling.
type watchStates struct{ before, after, idle watchState }

// openWatches looks at the hops of a contender.
func (w *world) openWatches(ctx context.Context, c *contender, watches int, busy bool) ([]watchStates, error) {
	before, err := w.settle(ctx, c, busy)
	if err != nil {
		return nil, err
	}
	closeAll, err := c.watchAll(watchQuiet(), watches)
	defer closeAll()
	if err != nil {
		return nil, err
	}
	after, err := w.settle(ctx, c, busy)
	if err != nil {
		return nil, err
	}
	if err := pause(ctx, idleFor); err != nil {
		return nil, err
	}
	idle, err := states(c)
	if err != nil {
		return nil, err
	}
	var found []watchStates
	for i := range idle {
		found = append(found, watchStates{before[i], after[i], idle[i]})
	}
	return found, nil
}

// watchAll opens watches, one after the other, so that the connection pools of
// net/http do not open one connection for each.
func (c *contender) watchAll(what call, watches int) (closeAll func(), err error) {
	transport := newTransport(c.tls, true)
	var open []*http.Response
	closeAll = func() {
		for _, answer := range open {
			_ = answer.Body.Close() // the watch ends, which is all that is wanted
		}
		transport.CloseIdleConnections()
	}
	for range watches {
		answer, err := c.open(transport, what)
		if err != nil {
			return closeAll, err
		}
		open = append(open, answer)
	}
	return closeAll, nil
}

// settle makes ordinary calls, many if the process is to be busy, and waits until
// memory stands still.
func (w *world) settle(ctx context.Context, c *contender, busy bool) ([]watchState, error) {
	transport := newTransport(c.tls, false)
	clients, duration := 1, warmFor
	if busy {
		clients, duration = churnClients, churnFor
	}
	if _, err := drive(ctx, c, transport, getPod(), clients, duration); err != nil {
		return nil, err
	}
	transport.CloseIdleConnections()
	var seen []int64
	for deadline := time.Now().Add(settlePatience); time.Now().Before(deadline); {
		now, err := states(c)
		if err != nil {
			return nil, err
		}
		var total int64
		for _, state := range now {
			total += state.memory.resident
		}
		seen = append(seen, total)
		if most := int(settleFor / settleStep); len(seen) > most {
			recent := seen[len(seen)-most:]
			if span := slices.Max(recent) - slices.Min(recent); float64(span) <= settleShare*float64(total) {
				break
			}
		}
		if err := pause(ctx, settleStep); err != nil {
			return nil, err
		}
	}
	return states(c)
}

func states(c *contender) ([]watchState, error) {
	var all []watchState
	for _, hop := range c.hops {
		pid := hop.pid()
		held, err := memoryOf(pid)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", hop.name, err)
		}
		sockets, err := descriptors(pid)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", hop.name, err)
		}
		used, err := cpuTime(pid)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", hop.name, err)
		}
		all = append(all, watchState{held, sockets, used})
	}
	return all, nil
}
