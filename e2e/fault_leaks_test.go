package e2e_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/taskgate/taskgate/e2e/testbed"
	"github.com/taskgate/taskgate/recorder"
)

const (
	faultAborts  = 10_000
	faultWatches = 1_000
	faultClients = 32
)

// testLeaks aborts 10,000 calls, twice, and opens and closes 1,000 watches; after that
// the programs must hold what they held before (T217).
func testLeaks(t *testing.T, b *faultBed) {
	b.warm(t)
	broker, sidecar := b.Broker(0), b.Sidecar(testbed.Alpha)
	before, beside := faultUsageOf(t, broker.PID()), faultUsageOf(t, sidecar.PID())
	began := time.Now()
	b.watches(t)
	watched := faultSince(began)
	most := faultUsageOf(t, broker.PID())
	began = time.Now()
	ids := b.aborts(t, faultAborts)
	aborted := faultSince(began)
	grown := faultUsageOf(t, broker.PID()).rss
	ids = append(ids, b.aborts(t, faultAborts)...)
	began = time.Now()
	var after, nearby faultUsage
	eventually(t, 110*time.Second, "broker and sidecar hold what they held before", func() error {
		after, nearby = faultUsageOf(t, broker.PID()), faultUsageOf(t, sidecar.PID())
		switch {
		case b.metric(t, "taskgate_live_calls") != 0:
			return fmt.Errorf("%v calls are live", b.metric(t, "taskgate_live_calls"))
		case after.descriptors > before.descriptors+5 || nearby.descriptors > beside.descriptors+5:
			time.Sleep(time.Second) // connections are kept for 80 s
			return fmt.Errorf("the broker holds %s, not %s; the sidecar %s, not %s", after, before, nearby, beside)
		}
		return nil
	})
	settled := faultSince(began)
	// What Go's heap has grown to it gives back slowly, some of it only with the
	// collection that comes every two minutes; the same again must not need more.
	eventually(t, 150*time.Second, "the broker gives memory back", func() error {
		if after = faultUsageOf(t, broker.PID()); after.rss > grown+(32<<20) || after.rss > before.rss+(128<<20) {
			return fmt.Errorf("the broker grew from %s to %d MiB, and with the same again to %s", before, grown>>20, after)
		}
		return nil
	})
	if nearby.rss > beside.rss+(48<<20) {
		t.Errorf("the sidecar grew from %s to %s", beside, nearby)
	}
	b.warm(t)
	left := b.goroutines(t, broker)
	leftBeside := b.goroutines(t, sidecar)
	b.startBroker(t)
	b.warm(t)
	fresh := b.goroutines(t, broker)
	freshBeside := b.goroutines(t, sidecar)
	b.startBroker(t)
	if left > fresh+100 || leftBeside > freshBeside+100 {
		t.Errorf("the broker has %d goroutines, a fresh one %d; the sidecar %d, a fresh one %d", left, fresh, leftBeside, freshBeside)
	}
	t.Logf("%d watches took %s, %d aborted calls took %s (and were made twice), %s later all was let go", faultWatches, watched, faultAborts, aborted, settled)
	t.Logf("broker: before %s; with watches open %s; after %s; %d goroutines, a fresh one has %d", before, most, after, left, fresh)
	t.Logf("sidecar: before %s; after %s; %d goroutines, a fresh one has %d", beside, nearby, leftBeside, freshBeside)
	t.Run("records", func(t *testing.T) { b.judgeAborts(t, ids) })
}

// warm makes as many calls at once as the tests do, so that pools are filled.
func (b *faultBed) warm(t *testing.T) {
	t.Helper()
	b.alpha.untilOK(t, 20*time.Second)
	var wait sync.WaitGroup
	for range faultClients {
		wait.Go(func() {
			for range 20 {
				if answer := b.alpha.get(t.Context()); !answer.ok() {
					t.Errorf("warming up: %s", answer)
				}
			}
		})
	}
	wait.Wait()
}

// watches opens watches, all at the same time, and closes them.
func (b *faultBed) watches(t *testing.T) {
	t.Helper()
	ctx, end := context.WithCancel(t.Context())
	defer end()
	var opened, failed atomic.Int64
	var wait sync.WaitGroup
	slots := make(chan struct{}, faultClients)
	for range faultWatches {
		wait.Go(func() {
			slots <- struct{}{}
			request, err := b.alpha.request(ctx, http.MethodGet, faultMaps+"?watch=true&fieldSelector=metadata.name=seed", "")
			if err != nil {
				panic(err)
			}
			response, err := b.alpha.http.Do(request)
			<-slots
			if err != nil || response.StatusCode != http.StatusOK {
				failed.Add(1)
				return
			}
			opened.Add(1)
			drain := make([]byte, 512)
			for err == nil {
				_, err = response.Body.Read(drain)
			}
			_ = response.Body.Close() // it has ended
		})
	}
	eventually(t, 60*time.Second, "all watches are open", func() error {
		if opened.Load()+failed.Load() < faultWatches {
			return fmt.Errorf("%d are open, %d failed", opened.Load(), failed.Load())
		}
		return nil
	})
	if n := b.metric(t, "taskgate_live_calls"); failed.Load() > 0 || n != faultWatches {
		t.Errorf("%d watches failed, the broker knows of %v", failed.Load(), n)
	}
	end()
	wait.Wait()
}

// aborts makes calls and leaves at a random moment, four in five of them over one
// connection of HTTP/2 to the broker itself, and returns the audit IDs of those
// that were answered all the same.
func (b *faultBed) aborts(t *testing.T, calls int64) (answered []string) {
	t.Helper()
	svid, bundle, err := b.svidOf(t, faultBrokerUID+1)
	if err != nil {
		t.Fatal(err)
	}
	direct, _ := b.direct(t, svid, bundle)
	direct.untilOK(t, 10*time.Second)
	began := time.Now().UnixNano()
	var mu sync.Mutex
	var next atomic.Int64
	var wait sync.WaitGroup
	for range faultClients {
		wait.Go(func() {
			for n := next.Add(1); n <= calls; n = next.Add(1) {
				a := direct
				if n%5 == 0 {
					a = b.alpha
				}
				ctx, cancel := context.WithTimeout(t.Context(), rand.N(20*time.Millisecond))
				var answer faultAnswer
				switch n % 3 {
				case 0:
					answer = a.call(ctx, http.MethodPost, faultMaps, faultMap(fmt.Sprintf("abort-%d-%d", began, n)))
				case 1:
					answer = a.call(ctx, http.MethodGet, faultMaps, "")
				default:
					answer = a.call(ctx, http.MethodGet, faultSeed, "")
				}
				cancel()
				if answer.auditID != "" {
					mu.Lock()
					answered = append(answered, answer.auditID)
					mu.Unlock()
				}
			}
		})
	}
	wait.Wait()
	return answered
}

// goroutines ends a program with SIGQUIT, which has it print all of them, and
// starts it again.
func (b *faultBed) goroutines(t *testing.T, component testbed.Component) int {
	t.Helper()
	before := len(b.log(t, component.Name()))
	if err := component.Signal(syscall.SIGQUIT); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, component.Name()+" has ended", func() error {
		if component.PID() != 0 {
			return fmt.Errorf("it runs")
		}
		return nil
	})
	count := strings.Count(b.log(t, component.Name())[before:], "\ngoroutine ")
	if count == 0 {
		t.Fatalf("%s printed no goroutines", component.Name())
	}
	if err := component.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return count
}

// judgeAborts looks at the records of calls whose callers left: each call has one
// outcome, and what the API server saw is not said to be not sent.
func (b *faultBed) judgeAborts(t *testing.T, answered []string) {
	t.Helper()
	var answers []faultAnswer
	for _, id := range answered {
		answers = append(answers, faultAnswer{auditID: id})
	}
	b.sealed(t, 30*time.Second, answers...)
	upstream := b.upstream(t)
	outcomes := map[string]int{}
	var double, untrue, alarmed []error
	for id, records := range b.records(t) {
		ends := slices.DeleteFunc(slices.Clone(records), func(record *recorder.Event) bool { return record.Stage != recorder.StageResponseComplete })
		if len(ends) != 1 {
			double = append(double, fmt.Errorf("%s %s has %d outcomes: %s", records[0].Verb, id, len(ends), faultOutcomes(ends)))
		}
		for _, end := range ends {
			outcome := end.Annotations[recorder.AnnotationOutcome]
			outcomes[outcome]++
			if outcome == "not-sent" && len(upstream[id]) > 0 {
				untrue = append(untrue, fmt.Errorf("%s %s is said to be not sent, and the API server saw it", end.Verb, id))
			}
			if end.Annotations[recorder.AnnotationReason] == "RecorderUnavailable" {
				alarmed = append(alarmed, fmt.Errorf("%s %s is said to be refused because nothing could be recorded", end.Verb, id))
			}
		}
	}
	faultReport(t, "calls without exactly one outcome", double)
	faultReport(t, "calls whose outcome is not true", untrue)
	faultReport(t, "calls whose caller left, recorded as RecorderUnavailable", alarmed)
	t.Logf("outcomes: %v; %d of the aborted calls were answered in time", outcomes, len(answered))
	b.mustVerify(t)
}

func faultOutcomes(ends []*recorder.Event) string {
	var words []string
	for _, end := range ends {
		words = append(words, end.Annotations[recorder.AnnotationOutcome]+" "+end.Annotations[recorder.AnnotationReason])
	}
	return strings.Join(words, "; ")
}

// testStalledReader opens two watches and reads nothing of them (T154). One has its
// grant revoked, the other has not: the broker must let go of both and say why on
// record, although the agents cannot be told. TASKGATE_E2E_EVENTS says how many
// events nobody takes; 50,000 are asked for.
func testStalledReader(t *testing.T, b *faultBed) {
	for n := range 10 { // more than the buffers on the way hold
		if answer := b.alpha.call(t.Context(), http.MethodPost, faultMaps, fmt.Sprintf(
			`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"large-%d"},"data":{"k":%q}}`, n, strings.Repeat("x", 900<<10))); !answer.ok() {
			t.Fatal(answer)
		}
	}
	revoked, _ := b.delta(t)
	before := faultUsageOf(t, b.Broker(0).PID())
	watches := map[string]string{"GrantRevoked": b.stall(t, revoked), "": b.stall(t, b.alpha)}
	eventually(t, 10*time.Second, "the watches are live", func() error {
		if n := b.metric(t, "taskgate_live_calls"); n != 2 {
			return fmt.Errorf("%v calls are live", n)
		}
		return nil
	})
	for name := range strings.FieldsSeq(b.admin(t, "get", "taskgrants", "--output=name")) {
		if strings.Contains(name, "fault-delta-") {
			b.admin(t, "patch", name, "--type=merge", "--patch", revokeAndResume)
		}
	}
	began := time.Now()
	if answer := revoked.get(t.Context()); !answer.is("GrantRevoked") {
		t.Errorf("another call is answered %s", answer)
	}
	events := numberFrom(t, "TASKGATE_E2E_EVENTS", 500)
	for n := range events {
		if _, err := b.kube.CoreV1().ConfigMaps("shop").Patch(t.Context(), "large-0", types.MergePatchType, fmt.Appendf(nil, `{"data":{"k":"%d %s"}}`, n, strings.Repeat("y", 8<<10)), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, orphan+5*time.Second, "the broker lets go of the watches", func() error {
		if n := b.metric(t, "taskgate_live_calls"); n != 0 {
			time.Sleep(200 * time.Millisecond) // it may take a minute
			return fmt.Errorf("%v calls are live", n)
		}
		return nil
	})
	took := faultSince(began)
	after := faultUsageOf(t, b.Broker(0).PID())
	if after.rss > before.rss+(16<<20) {
		t.Errorf("the broker grew from %s to %s", before, after)
	}
	for reason, id := range watches {
		records := b.sealed(t, 10*time.Second, faultAnswer{auditID: id})[id]
		last, want := records[len(records)-1], "cut"
		if reason == "" {
			want = "client-gone"
		}
		if last.Annotations[recorder.AnnotationReason] != reason || last.Annotations[recorder.AnnotationOutcome] != want {
			t.Errorf("the record ends with %v", last.Annotations)
		}
	}
	t.Logf("two watches nobody reads, with %d events, were let go %s after one's grant was revoked; the broker held %s before and %s after", events, took, before, after)
}

// stall opens a watch of which nobody reads anything, and returns its audit ID.
func (b *faultBed) stall(t *testing.T, agent *faultAgent) string {
	t.Helper()
	request, err := agent.request(t.Context(), http.MethodGet, faultMaps+"?watch=true", "")
	if err != nil {
		t.Fatal(err)
	}
	response, err := agent.http.Do(request)
	if err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("opening a watch: %v", err)
	}
	t.Cleanup(func() { _ = response.Body.Close() }) // it was not read
	return response.Header.Get("Audit-Id")
}
