package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"

	"github.com/taskgate/taskgate/e2e/testbed"
	"github.com/taskgate/taskgate/recorder"
)

const (
	faultReplicas = 2
	// faultProof is how many kills lie between two proofs of the whole journal.
	faultProof = 20
)

// TestFaultKill kills brokers at random moments under mixed load, 200 times
// unless TASKGATE_KILLS says otherwise (T163, T161, T170; "kill -9 at 200 random
// moments"). Two replicas are killed independently of each other, each the half
// of it. Nothing an agent was told may be without its record.
func TestFaultKill(t *testing.T) {
	t.Parallel()
	kills := numberFrom(t, "TASKGATE_KILLS", 200)
	b := startFault(t, testbed.Options{
		Node: testbed.NoNode, WithoutControllers: true, Brokers: faultReplicas, AuditLevel: auditv1.LevelMetadata,
	})
	run := newFaultRun(t, b)
	began := time.Now()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	run.load(ctx)
	var group errgroup.Group
	for _, replica := range run.replicas {
		group.Go(func() error { return replica.kill(ctx, kills/faultReplicas) })
	}
	group.Go(func() error { return run.prove(ctx, kills) })
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	took := faultSince(began)
	stop()
	run.wait.Wait()
	for _, replica := range run.replicas {
		replica.end(t)
	}
	t.Logf("%d kills (%d of them before the broker served) in %s, %d calls acknowledged; first answer after a start: p50 %s, max %s; proofs on the way took %s at most",
		run.killed.Load(), run.early.Load(), took, len(run.ledger), faultPercentile(run.starts, 50), faultPercentile(run.starts, 100), run.longestProof)
	run.judge(t)
}

// faultRun is the load, and what the clients were told.
type faultRun struct {
	bed          *faultBed
	replicas     []*faultReplica
	wait         sync.WaitGroup
	killed       atomic.Int64
	early        atomic.Int64
	longestProof time.Duration

	mu     sync.Mutex
	ledger []faultEntry
	starts []time.Duration // from each start to the first answer
}

// faultEntry is one answer a client got.
type faultEntry struct {
	faultAnswer
	agent, verb, name string
	replica           int
}

// faultReplica is a broker with agents of its own.
type faultReplica struct {
	run    *faultRun
	number int
	agents []*faultAgent
	served atomic.Int64 // answers of the cluster
}

func newFaultRun(t *testing.T, b *faultBed) *faultRun {
	run := &faultRun{bed: b}
	for number := range faultReplicas {
		replica := &faultReplica{run: run, number: number, agents: []*faultAgent{b.alpha, b.beta}}
		if number > 0 {
			replica.agents = nil
			for _, name := range []string{testbed.Alpha, testbed.Beta} {
				access, err := b.AddSidecar(t.Context(), testbed.SidecarOptions{Name: fmt.Sprintf("%s-%d", name, number), Agent: name, Replica: number})
				if err != nil {
					t.Fatal(err)
				}
				a := b.agentOf(t, name, access)
				a.untilOK(t, 20*time.Second)
				replica.agents = append(replica.agents, a)
			}
		}
		run.replicas = append(run.replicas, replica)
	}
	return run
}

// load runs clients until ctx ends, and lets the calls under way end then.
func (run *faultRun) load(until context.Context) {
	ctx := context.WithoutCancel(until)
	for _, replica := range run.replicas {
		for i, a := range replica.agents {
			prefix := fmt.Sprintf("m-%d-%d", replica.number, i)
			for _, work := range []func(){
				func() { replica.note(a, "get", "seed", a.get(ctx)) },
				func() { replica.note(a, "list", "", a.call(ctx, http.MethodGet, faultMaps+"?limit=20", "")) },
				func() {
					replica.note(a, "list", "", a.call(ctx, http.MethodGet, "/api/v1/namespaces/shop/services", ""))
				}, // outside the grant
				func() { replica.watch(ctx, a) },
				replica.mutations(ctx, a, prefix),
				replica.mutations(ctx, a, prefix+"b"),
			} {
				run.wait.Go(func() {
					for until.Err() == nil {
						work()
						time.Sleep(10 * time.Millisecond) // the load, not a wait
					}
				})
			}
		}
	}
}

func (r *faultReplica) mutations(ctx context.Context, a *faultAgent, prefix string) func() {
	next := 0
	return func() {
		next++
		name := fmt.Sprintf("%s-%d", prefix, next)
		r.note(a, "create", name, a.create(ctx, name))
		r.note(a, "delete", name, a.call(ctx, http.MethodDelete, faultMaps+"/"+name, ""))
	}
}

func (r *faultReplica) watch(ctx context.Context, a *faultAgent) {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(100+rand.IntN(900))*time.Millisecond)
	defer cancel()
	r.note(a, "watch", "", a.call(ctx, http.MethodGet, faultMaps+"?watch=true", ""))
}

// note puts an answer into the ledger. What the broker could not record it may
// refuse without a record, and what the sidecar says itself has no audit ID.
func (r *faultReplica) note(a *faultAgent, verb, name string, answer faultAnswer) {
	broken := answer.err != nil && answer.code >= http.StatusBadRequest // what it was refused for is not known
	if answer.auditID == "" || answer.is("RecorderUnavailable") || broken {
		return
	}
	answer.body = ""
	if answer.code < 300 {
		r.served.Add(1)
	}
	r.run.mu.Lock()
	defer r.run.mu.Unlock()
	r.run.ledger = append(r.run.ledger, faultEntry{answer, a.id, verb, name, r.number})
}

// kill kills the broker and starts it again. One time in five it does not even
// get to serve.
func (r *faultReplica) kill(ctx context.Context, times int) error {
	broker := r.run.bed.Broker(r.number)
	for n := range times {
		served := r.served.Load()
		if n%5 == 4 {
			if err := faultPause(ctx, rand.N(1200*time.Millisecond)); err != nil {
				return err
			}
			if r.served.Load() == served {
				r.run.early.Add(1)
			}
		} else {
			began := time.Now()
			for r.served.Load() == served {
				if time.Since(began) > 30*time.Second {
					return fmt.Errorf("replica %d served nothing for 30 s after kill %d; see %s", r.number, n, broker.Log())
				}
				if err := faultPause(ctx, 2*time.Millisecond); err != nil {
					return err
				}
			}
			r.run.mu.Lock()
			r.run.starts = append(r.run.starts, time.Since(began))
			r.run.mu.Unlock()
			if err := faultPause(ctx, rand.N(300*time.Millisecond)); err != nil {
				return err
			}
		}
		if broker.PID() == 0 {
			code, _ := broker.ExitCode()
			return fmt.Errorf("replica %d ended by itself after kill %d with %d; see %s", r.number, n, code, broker.Log())
		}
		if err := broker.Kill(); err != nil {
			return err
		}
		r.run.killed.Add(1)
		if err := broker.Launch(); err != nil {
			return err
		}
	}
	return nil
}

func faultPause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// prove verifies the whole journal every faultProof kills, while they go on.
func (run *faultRun) prove(ctx context.Context, kills int) error {
	for next := int64(faultProof); next < int64(kills); next += faultProof {
		for run.killed.Load() < next {
			if err := faultPause(ctx, 20*time.Millisecond); err != nil {
				return err
			}
		}
		began := time.Now()
		report, err := run.bed.verify(ctx)
		if err != nil {
			return fmt.Errorf("verify after %d kills: %w", next, err)
		}
		if !report.Proven() {
			return fmt.Errorf("verify after %d kills: %v", next, report.Findings[0])
		}
		run.longestProof = max(run.longestProof, faultSince(began))
	}
	return nil
}

// end lets the broker recover, and stops it in order.
func (r *faultReplica) end(t *testing.T) {
	t.Helper()
	broker := r.run.bed.Broker(r.number)
	if err := broker.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := broker.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if code, _ := broker.ExitCode(); code != 0 {
		t.Errorf("replica %d ended with %d", r.number, code)
	}
	spool := strings.Replace(r.run.bed.Environment().BrokerSpool, "/broker/", "/"+[]string{"broker", "broker-1"}[r.number]+"/", 1)
	if left := faultSpooled(t, spool); len(left) > 0 {
		t.Errorf("in the spool of replica %d is left %v", r.number, left)
	}
}

// judge compares what clients were told, what the bucket holds, and what the API
// server saw.
func (run *faultRun) judge(t *testing.T) {
	t.Helper()
	report := run.bed.mustVerify(t)
	ends := faultEnds(report)
	if ends["open"] > 0 || len(report.Streams) != ends["closed"]+ends["recovered"] {
		t.Errorf("streams ended like this: %v", ends)
	}
	records := run.bed.records(t)
	unknown := run.judgeRecords(t, records)
	if uint64(unknown) != report.Unknown {
		t.Errorf("verify counts %d unknown outcomes and there are %d", report.Unknown, unknown)
	}
	run.judgeLedger(t, records)
	unanswered := run.judgeUpstream(t, records)
	t.Logf("%d records in %d streams (%v), %d segments, %d manifests: %d outcomes are unknown; %d reads reached the API server and left no record, none of them was answered",
		report.Records, len(report.Streams), ends, report.Segments, report.Manifests, unknown, unanswered)
}

// judgeRecords looks for exactly one outcome for each intent.
func (run *faultRun) judgeRecords(t *testing.T, records map[string][]*recorder.Event) (unknown int) {
	t.Helper()
	for id, events := range records {
		stages := map[recorder.Stage]int{}
		for _, event := range events {
			stages[event.Stage]++
			if event.Stage == recorder.StageResponseComplete && event.Annotations[recorder.AnnotationOutcome] == recorder.OutcomeUnknown {
				unknown++
			}
		}
		if stages[recorder.StageResponseComplete] != 1 || stages[recorder.StageRequestReceived] > 1 {
			t.Errorf("the call %s has the records %v", id, stages)
		}
	}
	return unknown
}

func (run *faultRun) judgeLedger(t *testing.T, records map[string][]*recorder.Event) {
	t.Helper()
	var errs []error
	for _, entry := range run.ledger {
		errs = append(errs, entry.check(records[entry.auditID]))
	}
	faultReport(t, "acknowledged calls without their record", errs)
}

// check compares what a client was told with the records.
func (e *faultEntry) check(events []*recorder.Event) error {
	describe := func(what string) error {
		return fmt.Errorf("replica %d, %s %s %q, answered %d %s (%s): %s", e.replica, e.agent, e.verb, e.name, e.code, e.reason, e.auditID, what)
	}
	if len(events) == 0 {
		return describe("no record")
	}
	first, last := events[0], events[len(events)-1]
	unknown := last.Annotations[recorder.AnnotationOutcome] == recorder.OutcomeUnknown
	switch {
	case first.User.Username != e.agent || first.Verb != e.verb:
		return describe(fmt.Sprintf("recorded as %s %s", first.User.Username, first.Verb))
	case e.name != "" && e.verb != "create" && first.ObjectRef.Name != e.name:
		return describe("recorded with the name " + first.ObjectRef.Name)
	case e.reason == "" && first.Stage != recorder.StageRequestReceived:
		return describe("no intent")
	case e.reason == "" && !unknown && last.ResponseStatus.Code != int32(e.code):
		return describe(fmt.Sprintf("recorded with the outcome %d", last.ResponseStatus.Code))
	case e.reason != "" && !strings.HasPrefix(e.reason, last.Annotations[recorder.AnnotationReason]) && !unknown:
		return describe("recorded with the reason " + last.Annotations[recorder.AnnotationReason])
	}
	return nil
}

// judgeUpstream joins with the API server's own log. A read may have reached the
// API server in the moment of the kill without a record, but only if nobody was
// answered; a mutation never.
func (run *faultRun) judgeUpstream(t *testing.T, records map[string][]*recorder.Event) (unanswered int) {
	t.Helper()
	events, err := run.bed.AuditEvents()
	if err != nil {
		t.Fatal(err)
	}
	answered := map[string]bool{}
	for _, entry := range run.ledger {
		answered[entry.auditID] = true
	}
	var errs []error
	seen := map[string]bool{}
	for _, event := range events {
		id := string(event.AuditID)
		if event.ImpersonatedUser == nil || seen[id] {
			continue // the broker's own, or a later stage
		}
		seen[id] = true
		read := slices.Contains([]string{"get", "list", "watch"}, event.Verb)
		found := records[id]
		switch {
		case len(found) == 0 && read && !answered[id]:
			unanswered++
		case len(found) == 0:
			errs = append(errs, fmt.Errorf("%s %s (%s, answered: %t)", event.Verb, event.RequestURI, id, answered[id]))
		case found[0].Stage != recorder.StageRequestReceived || found[0].Verb != event.Verb:
			errs = append(errs, fmt.Errorf("%s %s (%s) begins with the record %s %s", event.Verb, event.RequestURI, id, found[0].Verb, found[0].Stage))
		case !read && event.RequestReceivedTimestamp.Time.Before(found[0].RequestReceivedTimestamp.Time):
			errs = append(errs, fmt.Errorf("%s %s (%s) was forwarded before it arrived", event.Verb, event.RequestURI, id))
		}
	}
	faultReport(t, "calls the API server saw without their record", errs)
	errs = nil
	for _, entry := range run.ledger {
		if entry.reason == "" && !seen[entry.auditID] {
			errs = append(errs, fmt.Errorf("%s %s: %s", entry.verb, entry.name, entry.auditID))
		}
	}
	faultReport(t, "answers of the API server that it knows nothing of", errs)
	return unanswered
}

// faultReport fails with the first of many errors.
func faultReport(t *testing.T, what string, errs []error) {
	t.Helper()
	errs = slices.DeleteFunc(errs, func(err error) bool { return err == nil })
	if len(errs) > 0 {
		t.Errorf("%s: %d, the first of them:\n%v", what, len(errs), errors.Join(errs[:min(len(errs), 10)]...))
	}
}
