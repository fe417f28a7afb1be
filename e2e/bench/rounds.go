package bench

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"slices"
	"time"
)

// block is one kind of call with one number of clients.
type block struct {
	part    string
	title   string
	call    call
	clients int
}

// turn is what one contender did in one round, both halves together.
type turn struct {
	P50 float64 `json:"p50us"`
	P99 float64 `json:"p99us"`
	RPS float64 `json:"rps"`
	// BytesPerSecond of answers.
	BytesPerSecond float64 `json:"bytesPerSecond"`
	// CPU is the microseconds each process used per call, background work
	// included; "client" is this process.
	CPU map[string]float64 `json:"cpuUsPerCall"`
}

// round is all contenders' turns, by name.
type round struct {
	Turns  map[string]turn `json:"turns"`
	Canary canary          `json:"canary"`
	Counts bool            `json:"counts"`
}

// measure runs one block.
func (w *world) measure(ctx context.Context, b block, contenders []*contender, options Options) ([]round, error) {
	transports := map[string]*http.Transport{}
	for _, c := range contenders {
		transports[c.name] = newTransport(c.tls, false)
		defer transports[c.name].CloseIdleConnections()
	}
	var rounds []round
	for number := range options.Rounds {
		r, err := w.round(ctx, b, contenders, transports, options.RoundDuration/2)
		if err != nil {
			return nil, fmt.Errorf("round %d of %s: %w", number+1, b.title, err)
		}
		rounds = append(rounds, r)
	}
	var canaries []canary
	for _, r := range rounds {
		canaries = append(canaries, r.Canary)
	}
	counts, _ := undisturbed(canaries)
	for i := range rounds {
		rounds[i].Counts = counts[i]
	}
	return rounds, nil
}

// round gives every contender two turns, there and back.
func (w *world) round(ctx context.Context, b block, contenders []*contender, transports map[string]*http.Transport, half time.Duration) (round, error) {
	watch, err := w.startWatch()
	if err != nil {
		return round{}, err
	}
	halves := map[string][]halfTurn{}
	backwards := slices.Clone(contenders)
	slices.Reverse(backwards)
	for _, c := range slices.Concat(contenders, backwards) {
		h, err := w.half(ctx, b, c, transports[c.name], half)
		if err != nil {
			return round{}, err
		}
		halves[c.name] = append(halves[c.name], h)
	}
	r := round{Turns: map[string]turn{}}
	for name, parts := range halves {
		r.Turns[name] = turnOf(parts)
	}
	r.Canary, err = watch.stop()
	return r, err
}

// halfTurn is one of the two halves of a turn.
type halfTurn struct {
	sample
	allCalls int                      // those outside of the measured time too
	cpu      map[string]time.Duration // over all the time
}

func (w *world) half(ctx context.Context, b block, c *contender, transport *http.Transport, measured time.Duration) (halfTurn, error) {
	before, err := w.cpuTimes(c)
	if err != nil {
		return halfTurn{}, err
	}
	warm, err := drive(ctx, c, transport, b.call, b.clients, c.lag)
	if err != nil {
		return halfTurn{}, err
	}
	h := halfTurn{cpu: map[string]time.Duration{}}
	if h.sample, err = drive(ctx, c, transport, b.call, b.clients, measured); err != nil {
		return halfTurn{}, err
	}
	h.allCalls = warm.calls + h.calls
	if err := pause(ctx, c.lag); err != nil {
		return halfTurn{}, err
	}
	after, err := w.cpuTimes(c)
	for name := range after {
		h.cpu[name] = after[name] - before[name]
	}
	return h, err
}

func turnOf(parts []halfTurn) turn {
	var total halfTurn
	total.cpu = map[string]time.Duration{}
	for _, part := range parts {
		total.calls += part.calls
		total.allCalls += part.allCalls
		total.bytes += part.bytes
		total.elapsed += part.elapsed
		total.latencies = append(total.latencies, part.latencies...)
		for name, used := range part.cpu {
			total.cpu[name] += used
		}
	}
	slices.Sort(total.latencies)
	t := turn{
		P50: quantile(total.latencies, 0.5), P99: quantile(total.latencies, 0.99),
		RPS:            float64(total.calls) / total.elapsed.Seconds(),
		BytesPerSecond: float64(total.bytes) / total.elapsed.Seconds(),
		CPU:            map[string]float64{},
	}
	for name, used := range total.cpu {
		t.CPU[name] = microseconds(used) / float64(total.allCalls)
	}
	return t
}

// clientProcess is this process in tables.
const clientProcess = "client"

// cpuTimes are the CPU times of all that may work for a contender's calls.
func (w *world) cpuTimes(c *contender) (map[string]time.Duration, error) {
	times := map[string]time.Duration{}
	for _, component := range slices.Concat(c.hops, w.shared) {
		used, err := cpuTime(component.pid())
		if err != nil {
			return nil, fmt.Errorf("%s: %w", component.name, err)
		}
		times[component.name] = used
	}
	var err error
	times[clientProcess], err = cpuTime(os.Getpid())
	return times, err
}

// machineWatch looks at the machine around a round.
type machineWatch struct {
	world  *world
	canary canary
	time   machineTime
	ours   time.Duration
}

func (w *world) startWatch() (*machineWatch, error) {
	m := &machineWatch{world: w}
	var err error
	if m.canary, err = look(); err != nil {
		return nil, err
	}
	if m.ours, err = w.ourTime(); err != nil {
		return nil, err
	}
	m.time, err = readMachineTime()
	return m, err
}

func (m *machineWatch) stop() (canary, error) {
	now, err := readMachineTime()
	if err != nil {
		return canary{}, err
	}
	ours, err := m.world.ourTime()
	if err != nil {
		return canary{}, err
	}
	after, err := look()
	if err != nil {
		return canary{}, err
	}
	const tick = 10 * time.Millisecond // USER_HZ is 100 everywhere
	busy, stolen := now.busy-m.time.busy, now.stolen-m.time.stolen
	all := busy + stolen + now.idle - m.time.idle
	if all == 0 {
		return canary{}, nil
	}
	foreign := float64(time.Duration(busy)*tick-(ours-m.ours)) / float64(time.Duration(all)*tick)
	return canary{
		SHA256: (m.canary.SHA256 + after.SHA256) / 2, Ping: (m.canary.Ping + after.Ping) / 2,
		Stolen: float64(stolen) / float64(all), Foreign: max(0, foreign),
	}, nil
}

// ourTime is the CPU time of this process and of everything it started.
func (w *world) ourTime() (time.Duration, error) {
	pids := []int{os.Getpid()}
	for _, component := range w.bed.Components() {
		pids = append(pids, component.PID())
	}
	if w.twin != nil {
		pids = append(pids, pidOf(w.twin.local)(), pidOf(w.twin.remote)())
	}
	var total time.Duration
	for _, pid := range pids {
		if pid == 0 {
			continue // stopped
		}
		used, err := cpuTime(pid)
		if err != nil {
			return 0, err
		}
		total += used
	}
	return total, nil
}
