package bench

import (
	"fmt"
	"math"
)

// Gate is one promise about speed or memory, and whether it was kept.
type Gate struct {
	Name     string   `json:"name"`
	Promise  string   `json:"promise"`
	Measured Interval `json:"measured"`
	Unit     string   `json:"unit,omitempty"`
	Limit    float64  `json:"limit"`
	AtLeast  bool     `json:"atLeast"` // the limit is a lower one
	Pass     bool     `json:"pass"`
	Note     string   `json:"note,omitempty"`
}

// The limits. What they are about is said in judge.
const (
	maxAddedToTwin     = 1.25
	minRateToTwin      = 0.9
	maxRecordingCost   = 0.10
	maxDecision        = 100
	maxDecisionAllocs  = 0
	maxOthersRatio     = 1.02 // what can be told from no difference at all
	maxReadySeconds    = 20
	minExecToTwin      = 0.5
	maxExecBroker      = 8
	maxManyGrantsMB    = 500
	maxWatchKB         = 24
	maxBigListMB       = 32
	minRecords         = 20_000
	gateClientsLatency = 1
	gateClientsRate    = 16
	gateClientsRecord  = 64
	gateWriters        = "64"
)

// judge compares what was measured with what was promised.
func (r *Report) judge(options Options) {
	for _, g := range []struct {
		part string
		gate Gate
	}{
		{PartGet, Gate{Name: "a", Promise: "a recorded GET adds to the p50 of one client at most 1.25 times what the twin adds", Limit: maxAddedToTwin, Measured: r.addedToTwin()}},
		{PartGet, Gate{Name: "b", Promise: "with 16 clients, at least 0.9 of the twin's GETs per second", Limit: minRateToTwin, AtLeast: true, Measured: r.rateToTwin()}},
		{PartRecording, Gate{Name: "c", Promise: "recording takes at most 10 % of the GETs per second of 64 clients", Limit: maxRecordingCost, Measured: r.recordingCost()}},
		{PartDecision, Gate{Name: "d1", Promise: "100,000 grants of others do not change a decision (ratio)", Limit: maxOthersRatio, Measured: r.DecisionRatio}},
		{PartDecision, Gate{Name: "d2", Promise: "a decision takes less than 100 ns", Unit: "ns", Limit: maxDecision, Measured: r.decision(func(d Decision) Interval { return d.Nanoseconds })}},
		{PartDecision, Gate{Name: "d3", Promise: "a decision allocates nothing", Unit: "allocations", Limit: maxDecisionAllocs, Measured: r.decision(func(d Decision) Interval { return d.Allocations })}},
		{PartWatches, Gate{Name: "e", Promise: "at most 24 KB of broker RSS per idle watch", Unit: "KB", Limit: maxWatchKB, Measured: r.brokerPerWatch()}},
		{PartBigList, Gate{Name: "f", Promise: "a list of 100 MB raises the broker's RSS by less than 32 MB", Unit: "MB", Limit: maxBigListMB, Measured: r.brokerRise()}},
		{PartSpool, Gate{Name: "g", Promise: "at least 20,000 durable records per second with 64 writers", Unit: "records/s", Limit: minRecords, AtLeast: true, Measured: r.records()}},
		{PartGrants, Gate{Name: "h", Promise: fmt.Sprintf("with %d grants in the API server a broker is ready in less than 20 s", options.Grants), Unit: "s", Limit: maxReadySeconds, Measured: r.manyGrants(func(m *ManyGrants) Interval { return m.Ready })}},
		{PartExec, Gate{Name: "j", Promise: "a command prints at no less than half the twin's speed", Limit: minExecToTwin, AtLeast: true, Measured: r.exec(func(e Exec) Interval { return e.ToTwin })}},
		{PartExec, Gate{Name: "k", Promise: "the broker takes at most 8 ns per byte of it", Unit: "ns", Limit: maxExecBroker, Measured: r.exec(func(e Exec) Interval { return e.CPU["broker"] })}},
		{PartGrants, Gate{Name: "i", Promise: "… and takes less than 500 MB", Unit: "MB", Limit: maxManyGrantsMB, Measured: r.manyGrants(func(m *ManyGrants) Interval { return m.Peak })}},
	} {
		if !options.wants(g.part) {
			continue
		}
		gate := g.gate
		gate.decide()
		if gate.Name == "d1" {
			gate.decideDifference()
		}
		r.Gates = append(r.Gates, gate)
	}
}

// decide passes the gate if the worse end of the interval is within the limit.
func (g *Gate) decide() {
	within := func(value float64) bool { return value <= g.Limit }
	worse := g.Measured.High
	if g.AtLeast {
		within, worse = func(value float64) bool { return value >= g.Limit }, g.Measured.Low
	}
	switch {
	case g.Measured.Count == 0:
		g.Note = "not measured"
	case within(worse):
		g.Pass = true
	case within(g.Measured.Median):
		g.Note = "the median is within the limit, but the interval is not: more rounds, or a quieter machine"
	}
}

// decideDifference passes the gate unless a difference was seen: here the
// question is not how sure it is that there is none.
func (g *Gate) decideDifference() {
	g.Pass = g.Measured.Count > 0 && g.Measured.Low <= g.Limit
	if g.Pass {
		g.Note = ""
	}
}

// Failed says whether a gate is not passed.
func (r *Report) Failed() bool {
	for _, g := range r.Gates {
		if !g.Pass {
			return true
		}
	}
	return false
}

// String is the gate in a line.
func (g Gate) String() string {
	verdict, bound, decimals := "FAIL", "at most", 2
	if g.Pass {
		verdict = "PASS"
	}
	if g.AtLeast {
		bound = "at least"
	}
	if g.Limit >= 1000 {
		decimals = 0
	}
	line := fmt.Sprintf("%s (%s) %s: %s %s, limit %s %g", verdict, g.Name, g.Promise, g.Measured.format(decimals), g.Unit, bound, g.Limit)
	if g.Note != "" {
		line += "; " + g.Note
	}
	return line
}

func (r *Report) addedToTwin() Interval {
	b := r.block(PartGet, gateClientsLatency)
	if b == nil {
		return Interval{}
	}
	return b.values(func(t map[string]turn) float64 {
		twin := t[Twin].P50 - t[Direct].P50
		if twin <= 0 {
			return math.NaN() // noise: two more hops are not faster
		}
		return (t[Taskgate].P50 - t[Direct].P50) / twin
	})
}

func (r *Report) rateToTwin() Interval {
	b := r.block(PartGet, gateClientsRate)
	if b == nil {
		return Interval{}
	}
	return b.values(func(t map[string]turn) float64 { return t[Taskgate].RPS / t[Twin].RPS })
}

func (r *Report) recordingCost() Interval {
	b := r.block(PartRecording, gateClientsRecord)
	if b == nil {
		return Interval{}
	}
	return b.values(func(t map[string]turn) float64 { return 1 - t[Taskgate].RPS/t[Unrecorded].RPS })
}

// decision is the worse of the two cases.
func (r *Report) decision(of func(Decision) Interval) Interval {
	var worst Interval
	for _, d := range r.Decisions {
		if i := of(d); worst.Count == 0 || i.High > worst.High {
			worst = i
		}
	}
	return worst
}

func (r *Report) brokerPerWatch() Interval {
	for _, m := range r.Watches {
		if m.Contender == Taskgate && m.Process == "broker" {
			return m.Resident
		}
	}
	return Interval{}
}

func (r *Report) brokerRise() Interval {
	for _, l := range r.BigLists {
		if l.Contender == Taskgate && l.Process == "broker" {
			return l.Rise
		}
	}
	return Interval{}
}

func (r *Report) manyGrants(of func(*ManyGrants) Interval) Interval {
	if r.ManyGrants == nil {
		return Interval{}
	}
	return of(r.ManyGrants)
}

func (r *Report) exec(of func(Exec) Interval) Interval {
	for _, e := range r.Execs {
		if e.Contender == Taskgate {
			return of(e)
		}
	}
	return Interval{}
}

func (r *Report) records() Interval {
	for _, s := range r.Spool {
		if s.Writers == gateWriters {
			return s.Records
		}
	}
	return Interval{}
}
