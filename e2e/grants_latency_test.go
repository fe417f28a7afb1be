package e2e_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"
)

// TestGrantsEndAtOnce: T093. The time from the moment the API server has accepted
// the end of a grant to the answer of the last call that was accepted under it,
// and to the end of a watch. TASKGATE_E2E_TRIALS says how many grants end; 1,000
// are asked for.
func TestGrantsEndAtOnce(t *testing.T) {
	g := newGrantsRig(t)
	who := g.newAgent(t, "grants-latency")
	g.seed(t, "latency")
	g.allow(t, "latency", who.id, openPolicy, mapRule("latency"))
	var used, cut []time.Duration
	var refused []faultAnswer
	for trial := range numberFrom(t, "TASKGATE_E2E_TRIALS", 60) {
		calls, watch, refusal := g.timeEnd(t, who, trial)
		used, cut, refused = append(used, calls), append(cut, watch), append(refused, refusal)
	}
	g.judgeRefusals(t, who, refused...)
	for what, took := range map[string][]time.Duration{"calls": used, "watches": cut} {
		worst, p99 := slices.Max(took), faultPercentile(took, 99)
		t.Logf("T093: %d trials, %s went on for: median %s, p99 %s, most %s", len(took), what, faultPercentile(took, 50), p99, worst)
		if p99 >= time.Second || worst > 5*time.Second {
			t.Errorf("T093: %s go on for too long: p99 %s, most %s", what, p99, worst)
		}
	}
}

// timeEnd revokes or deletes a grant that two callers use without a pause and
// that a watch is open under. A negative time says that the last accepted call
// was answered before the API server had accepted the end.
func (g *grantsRig) timeEnd(t testing.TB, who *agent, trial int) (calls, watch time.Duration, refusal faultAnswer) {
	t.Helper()
	name := fmt.Sprintf("grants-latency-%d", trial)
	g.give(t, name, "latency", who.id, "1h", mapRule("latency"))
	g.served(t, who, mapTarget("latency"))
	live := asFault(who).open(t, mapWatch("latency"))
	var got [2]grantsEnds
	var callers sync.WaitGroup
	started := make(chan struct{}, len(got))
	for i := range got {
		callers.Go(func() { got[i] = callOn(t.Context(), who, mapTarget("latency"), started) })
	}
	for range got {
		<-started // both have been accepted once
	}
	if trial%2 == 0 {
		g.patch(t, grantsResource, name, revokeAndResume)
	} else {
		g.remove(t, grantsResource, name)
	}
	ended := time.Now()
	last := live.last(t, 10*time.Second)
	watch = time.Since(ended)
	callers.Wait()
	for _, end := range got {
		if end.refused.reason != "GrantRevoked" {
			t.Fatalf("%s: refused with %s", name, end.refused)
		}
	}
	if faultEvent(t, last) != "GrantRevoked" {
		t.Fatalf("%s: the watch ended with %s", name, last)
	}
	calls = max(got[0].lastDone.Sub(ended), got[1].lastDone.Sub(ended))
	return max(calls, 0), watch, got[0].refused
}

// callOn calls until a call is not accepted, and says when the first one was.
func callOn(ctx context.Context, who *agent, target string, started chan<- struct{}) (got grantsEnds) {
	for {
		sent := time.Now()
		answer := asFault(who).call(ctx, "GET", target, "")
		if got.lastSent.IsZero() {
			started <- struct{}{}
		}
		if !answer.ok() {
			got.refused, got.at = answer, time.Now()
			return got
		}
		got.lastSent, got.lastDone = sent, time.Now()
	}
}
