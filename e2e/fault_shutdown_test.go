package e2e_test

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/taskgate/taskgate/e2e/testbed"
	"github.com/taskgate/taskgate/recorder"
)

// TestFaultShutdown ends brokers and sidecars, in order and by force, on one
// testbed with a fake node: pods have logs to follow.
func TestFaultShutdown(t *testing.T) {
	t.Parallel()
	wire := newFaultWire(t)
	b := startFault(t, testbed.Options{BrokerConfiguration: func(_ int, configuration map[string]any) {
		wire.toCluster(configuration)
		configuration["shutdownGrace"] = "4s"
	}})
	b.runPod(t, "web-0")
	for _, part := range []struct {
		name string
		test func(*testing.T, *faultBed, *faultWire)
	}{
		{"calls under way end", testShutdownCalls},
		{"under load", testShutdownLoad},
		{"with the bucket away, then a start", testShutdownKept},
		{"with the bucket away, then drain", testShutdownDrain},
		{"a call that does not end is cut", testShutdownStuck},
		{"broker killed", testBrokerKilled},
		{"broker held", testBrokerHeld},
		{"no write is sent twice", testNoSecondWrite},
		{"sidecar killed", testSidecarKilled},
		{"a spool that cannot be written", testSpoolUnwritable},
		{"a spool that is lost", testSpoolLost},
	} {
		t.Run(part.name, func(t *testing.T) { part.test(t, b, wire) })
		if t.Failed() {
			wire.open()
			if err := b.Broker(0).Start(context.WithoutCancel(t.Context())); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// runPod makes a pod and waits until it runs.
func (b *faultBed) runPod(t *testing.T, name string) {
	t.Helper()
	b.apply(t, fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %s, namespace: shop}\nspec: {containers: [{name: web, image: nginx}]}\n", name))
	b.admin(t, "--namespace=shop", "wait", "--for=condition=Ready", "pod/"+name, "--timeout=30s")
}

// testShutdownCalls has a read, a write, a watch and a followed log under way
// when SIGTERM comes, and holds the API server's answers for a second.
func testShutdownCalls(t *testing.T, b *faultBed, wire *faultWire) {
	watch := b.alpha.open(t, faultMaps+"?watch=true&fieldSelector=metadata.name=seed")
	log := b.alpha.open(t, "/api/v1/namespaces/shop/pods/web-0/log?follow=true")
	if line := <-log.lines; !strings.Contains(line, "hello") {
		t.Fatalf("the log begins with %q", line)
	}
	if line := <-watch.lines; !strings.Contains(line, "ADDED") {
		t.Fatalf("the watch begins with %q", line)
	}
	before := len(b.metricCalls(t))
	wire.hold(true)
	var read, write faultAnswer
	var calls sync.WaitGroup
	calls.Go(func() { read = b.alpha.get(t.Context()) })
	calls.Go(func() { write = b.alpha.create(t.Context(), "under-way") })
	eventually(t, 5*time.Second, "both calls have their intents on the disk", func() error {
		if n := len(b.metricCalls(t)); n < before+2 {
			return fmt.Errorf("%d intents", n-before)
		}
		return nil
	})
	began := time.Now()
	if err := b.Broker(0).Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	line := watch.last(t, 5*time.Second)
	told := faultSince(began)
	if reason := faultEvent(t, line); reason != "NotReady/ShuttingDown" || !strings.Contains(line, "shutting down") {
		t.Errorf("the watch ended with the reason %q: %s", reason, line)
	}
	if line := log.last(t, 5*time.Second); !strings.Contains(line, "taskgate: this log was cut: [taskgate:NotReady] the broker is shutting down") {
		t.Errorf("the followed log ended with %q", line)
	}
	if b.Broker(0).PID() == 0 {
		t.Error("the broker did not wait for the calls under way")
	}
	wire.open()
	calls.Wait()
	code, _ := b.terminate(t)
	took := faultSince(began)
	if !read.ok() || !write.ok() {
		t.Errorf("the calls under way ended with %s and %s", read, write)
	}
	if code != 0 {
		t.Errorf("the broker ended with %d", code)
	}
	if left := faultSpooled(t, b.Environment().BrokerSpool); len(left) > 0 {
		t.Errorf("in the spool is left %v", left)
	}
	report := b.mustVerify(t)
	if ends := faultEnds(report); ends["closed"] != 1 || len(report.Streams) != 1 || report.Unknown != 0 {
		t.Errorf("the journal ended with %v and %d unknown outcomes", ends, report.Unknown)
	}
	records := b.sealed(t, time.Second, read, write, faultAnswer{auditID: watch.auditID}, faultAnswer{auditID: log.auditID})
	for what, id := range map[string]string{"watch": watch.auditID, "log": log.auditID} {
		last := records[id][len(records[id])-1]
		if last.Annotations[recorder.AnnotationOutcome] != "cut" || last.Annotations[recorder.AnnotationReason] != "NotReady" {
			t.Errorf("the record of the %s ends with %v", what, last.Annotations)
		}
	}
	if got := b.command(t, "", b.Environment().Programs+"/taskgate", "verify", "s3://"+b.Store().Bucket, "--broker-id", brokerID, "--cluster", "testbed"); got.code != 0 {
		t.Errorf("taskgate verify: %s", got)
	}
	t.Logf("SIGTERM: the watch was told after %s, the broker ended after %s, of which the calls under way took a part", told, took)
	b.startBroker(t)
}

// metricCalls is the intents and outcomes that lie in the spool's newest stream,
// as lines: what a call under way has written.
func (b *faultBed) metricCalls(t testing.TB) []string {
	t.Helper()
	return faultSpoolLines(t, b.Environment().BrokerSpool)
}

// startBroker starts the broker again and waits until alpha can read.
func (b *faultBed) startBroker(t testing.TB) {
	t.Helper()
	if err := b.Broker(0).Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.alpha.untilOK(t, 20*time.Second)
}

// testShutdownLoad sends SIGTERM into a load of eight clients.
func testShutdownLoad(t *testing.T, b *faultBed, _ *faultWire) {
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var mu sync.Mutex
	var answers []faultAnswer
	var clients sync.WaitGroup
	for client := range 8 {
		a := []*faultAgent{b.alpha, b.beta}[client%2]
		clients.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				answer := a.get(context.WithoutCancel(ctx))
				if client >= 6 {
					answer = a.create(context.WithoutCancel(ctx), fmt.Sprintf("load-%d-%d", client, n))
				}
				mu.Lock()
				answers = append(answers, answer)
				mu.Unlock()
			}
		})
	}
	eventually(t, 20*time.Second, "the load runs", func() error {
		mu.Lock()
		defer mu.Unlock()
		if len(answers) < 500 {
			return fmt.Errorf("%d answers", len(answers))
		}
		return nil
	})
	code, took := b.terminate(t)
	stop()
	clients.Wait()
	if code != 0 {
		t.Errorf("the broker ended with %d", code)
	}
	report := b.mustVerify(t)
	if report.Unknown != 0 || faultEnds(report)["open"] != 0 {
		t.Errorf("%d outcomes are unknown, streams ended with %v", report.Unknown, faultEnds(report))
	}
	records := b.records(t)
	recorded, reasons := 0, map[string]int{}
	for _, answer := range answers {
		reasons[answer.reason]++
		switch {
		case answer.err != nil && !strings.Contains(answer.err.Error(), "EOF"):
			t.Errorf("a call ended with %s", answer)
		case answer.auditID == "": // the sidecar's own
		case len(records[answer.auditID]) == 0 && !answer.is("RecorderUnavailable"):
			t.Errorf("a call has no record: %s", answer)
		default:
			recorded++
		}
	}
	t.Logf("SIGTERM under load: %s until the end; of %d calls %d were answered by the broker; refusals: %v", took, len(answers), recorded, reasons)
	b.startBroker(t)
}

// keep has the broker end while the bucket is away.
func (b *faultBed) keep(t *testing.T) (answers []faultAnswer) {
	t.Helper()
	if err := b.Component(testbed.ComponentStore).Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	for n := range 5 {
		answer := b.alpha.create(t.Context(), fmt.Sprintf("kept-%d-%d", time.Now().UnixNano(), n))
		if !answer.ok() {
			t.Fatalf("with the bucket away: %s", answer)
		}
		answers = append(answers, answer)
	}
	code, took := b.terminate(t)
	if code == 0 {
		t.Error("a broker that could not seal ended with 0")
	}
	log := b.log(t, "broker-0")
	last := log[strings.LastIndex(strings.TrimSpace(log), "\n")+1:]
	for _, wanted := range []string{"not everything is sealed", b.Environment().BrokerSpool, "broker drain"} {
		if !strings.Contains(last, wanted) {
			t.Errorf("the last line does not say %q: %s", wanted, last)
		}
	}
	if left := faultSpooled(t, b.Environment().BrokerSpool); len(left) != 1 {
		t.Errorf("the spool holds %v", left)
	}
	t.Logf("SIGTERM with the bucket away: exit %d after %s: %s", code, took, strings.TrimSpace(last))
	if err := b.Component(testbed.ComponentStore).Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return answers
}

// testShutdownKept has the next start seal what was kept.
func testShutdownKept(t *testing.T, b *faultBed, _ *faultWire) {
	answers := b.keep(t)
	began := time.Now()
	b.startBroker(t)
	b.sealed(t, 20*time.Second, answers...)
	report := b.mustVerify(t)
	if faultEnds(report)["recovered"] != 1 {
		t.Errorf("streams ended with %v", faultEnds(report))
	}
	t.Logf("the next start had sealed it after %s", faultSince(began))
}

// testShutdownDrain has broker drain seal what was kept.
func testShutdownDrain(t *testing.T, b *faultBed, _ *faultWire) {
	answers := b.keep(t)
	began := time.Now()
	drain := b.runBroker(t, nil, nil, "drain")
	code, output := drain.wait(t, time.Minute)
	if code != 0 || len(faultSpooled(t, b.Environment().BrokerSpool)) > 0 {
		t.Fatalf("drain ended with %d and left %v: %s", code, faultSpooled(t, b.Environment().BrokerSpool), output)
	}
	t.Logf("broker drain took %s", faultSince(began))
	b.sealed(t, time.Second, answers...)
	if report := b.mustVerify(t); faultEnds(report)["open"] != 0 {
		t.Errorf("streams ended with %v", faultEnds(report))
	}
	// Nothing to do is no error, and a bucket that is away is one.
	if code, output := b.runBroker(t, nil, nil, "drain").wait(t, time.Minute); code != 0 {
		t.Errorf("a second drain ended with %d: %s", code, output)
	}
	b.startBroker(t)
}

// testShutdownStuck has a call under way that never ends.
func testShutdownStuck(t *testing.T, b *faultBed, wire *faultWire) {
	wire.hold(true)
	answer := make(chan faultAnswer, 1)
	before := len(b.metricCalls(t))
	go func() { answer <- b.alpha.call(context.WithoutCancel(t.Context()), http.MethodGet, faultSeed, "") }()
	eventually(t, 5*time.Second, "the call is under way", func() error {
		if len(b.metricCalls(t)) == before {
			return fmt.Errorf("no intent")
		}
		return nil
	})
	code, took := b.terminate(t)
	if code == 0 || took < 4*time.Second || took > 15*time.Second {
		t.Errorf("the broker ended with %d after %s; the grace was 4 s", code, took)
	}
	if got := <-answer; got.ok() {
		t.Errorf("the call was answered: %s", got)
	}
	wire.open()
	if report := b.mustVerify(t); faultEnds(report)["open"] != 0 {
		t.Errorf("streams ended with %v", faultEnds(report))
	}
	t.Logf("a call that never ends was cut, exit %d after %s", code, took)
	b.startBroker(t)
}

// testBrokerKilled looks at what the sidecar says meanwhile (T246).
func testBrokerKilled(t *testing.T, b *faultBed, _ *faultWire) {
	watch := b.alpha.open(t, faultMaps+"?watch=true")
	if err := b.Broker(0).Kill(); err != nil {
		t.Fatal(err)
	}
	var longest time.Duration
	for range 20 {
		for _, answer := range []faultAnswer{b.alpha.get(t.Context()), b.alpha.create(t.Context(), "nobody")} {
			if !answer.is("BrokerUnavailable") || answer.code != http.StatusServiceUnavailable || answer.took > 2*time.Second {
				t.Errorf("with no broker: %s", answer)
			}
			longest = max(longest, answer.took)
		}
	}
	watch.last(t, 5*time.Second)
	if watch.err == nil {
		t.Error("a watch that broke off seems to have ended by itself")
	}
	began := time.Now()
	if err := b.Broker(0).Launch(); err != nil {
		t.Fatal(err)
	}
	b.alpha.untilOK(t, 20*time.Second)
	t.Logf("503 BrokerUnavailable after %s at most; it could read %s after the broker was started again", longest, faultSince(began))
	b.untilReady(t, 20*time.Second)
}

// testBrokerHeld holds the broker: it takes connections and does nothing.
func testBrokerHeld(t *testing.T, b *faultBed, _ *faultWire) {
	access, err := b.AddSidecar(t.Context(), testbed.SidecarOptions{Name: "fresh", Agent: testbed.Beta})
	if err != nil {
		t.Fatal(err)
	}
	fresh := b.agentOf(t, testbed.Beta, access) // it has no connection to the broker yet
	if err := b.Broker(0).Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	answer := fresh.get(t.Context())
	if err := b.Broker(0).Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if !answer.is("BrokerUnavailable") || answer.took > 2*time.Second {
		t.Errorf("with a broker that hangs: %s", answer)
	}
	t.Logf("a broker that hangs: 503 BrokerUnavailable after %s; it answered %s after it went on", answer.took, fresh.untilOK(t, 20*time.Second))
}

// testNoSecondWrite kills the broker while a write waits for the API server: the
// agent must hear that it may have been made, and nobody may make it twice.
func testNoSecondWrite(t *testing.T, b *faultBed, wire *faultWire) {
	wire.hold(true)
	before := len(b.metricCalls(t))
	answer := make(chan faultAnswer, 1)
	go func() { answer <- b.alpha.create(context.WithoutCancel(t.Context()), "once") }()
	eventually(t, 5*time.Second, "the write is under way", func() error {
		if len(b.metricCalls(t)) == before {
			return fmt.Errorf("no intent")
		}
		return nil
	})
	if err := b.Broker(0).Kill(); err != nil {
		t.Fatal(err)
	}
	got := <-answer
	if got.reason != "BrokerUnavailable/OutcomeUnknown" || !strings.Contains(got.body, "may or may not have been made") {
		t.Errorf("the agent was told %s", got)
	}
	wire.open()
	began := time.Now()
	b.startBroker(t)
	seen := 0
	events, err := b.AuditEvents()
	if err != nil {
		t.Fatal(err)
	}
	for _, event := range events {
		if event.Verb == "create" && event.Stage == "ResponseComplete" && event.RequestObject != nil && bytes.Contains(event.RequestObject.Raw, []byte(`"once"`)) {
			seen++
		}
	}
	if seen > 1 {
		t.Errorf("the write reached the API server %d times", seen)
	}
	eventually(t, 20*time.Second, "the outcome is on record as unknown", func() error {
		for _, events := range b.records(t) {
			first, last := events[0], events[len(events)-1]
			if bytes.Contains(first.RequestObject, []byte(`"once"`)) && last.Annotations[recorder.AnnotationOutcome] == recorder.OutcomeUnknown {
				return nil
			}
		}
		return fmt.Errorf("it is not")
	})
	took := faultSince(began)
	if took > 10*time.Second {
		t.Errorf("the outcome was on record only %s after the restart", took)
	}
	b.mustVerify(t)
	t.Logf("the write reached the API server %d times, its outcome is on record as unknown %s after the restart", seen, took)
}

// testSidecarKilled looks for another way (T239), and goes on with the same
// files after a restart.
func testSidecarKilled(t *testing.T, b *faultBed, _ *faultWire) {
	files := func() string {
		content, err := os.ReadFile(b.alpha.Kubeconfig)
		if err != nil {
			t.Fatal(err)
		}
		return string(content)
	}
	before := files()
	sidecar := b.Sidecar(testbed.Alpha)
	if err := sidecar.Kill(); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, "the connection is refused", func() error {
		answer := b.alpha.get(t.Context()) // one on an old connection ends in EOF
		if answer.err == nil {
			t.Errorf("with no sidecar: %s", answer)
		}
		if answer.err == nil || strings.Contains(answer.err.Error(), "connection refused") {
			return nil
		}
		return answer.err
	})
	if got := b.alpha.kubectl(t, "get", "configmaps", "--namespace=shop"); got.code == 0 || !strings.Contains(got.stderr, "refused") {
		t.Errorf("kubectl with no sidecar: %s", got)
	}
	began := time.Now()
	if err := sidecar.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	took := b.alpha.untilOK(t, 10*time.Second)
	if files() != before {
		t.Error("the kubeconfig has changed")
	}
	if got := b.alpha.kubectl(t, "get", "configmaps", "--namespace=shop"); got.code != 0 {
		t.Errorf("kubectl with the old kubeconfig: %s", got)
	}
	t.Logf("sidecar killed and started again: the same client could read %s after the start (%s after it was ready)", faultSince(began), took)
}

// testSpoolUnwritable starts a broker on a spool that is not its own.
func testSpoolUnwritable(t *testing.T, b *faultBed, _ *faultWire) {
	folder := b.Directory() + "/not-ours"
	if err := os.Mkdir(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	code, output := b.runBroker(t, func(config map[string]any) {
		config["recorder"].(map[string]any)["spool"] = folder + "/spool"
		config["listen"] = map[string]any{"agents": "127.0.0.1:0", "health": "127.0.0.1:0"}
	}, nil).wait(t, 20*time.Second)
	last := strings.TrimSpace(output[strings.LastIndex(strings.TrimSpace(output), "\n")+1:])
	if code == 0 || !strings.Contains(last, folder) || !strings.Contains(last, "permission denied") {
		t.Errorf("a broker that cannot write its spool ended with %d: %s", code, last)
	}
	// The spool of a broker that runs is in use.
	code, output = b.runBroker(t, func(config map[string]any) {
		config["listen"] = map[string]any{"agents": "127.0.0.1:0", "health": "127.0.0.1:0"}
	}, nil).wait(t, 20*time.Second)
	used := strings.TrimSpace(output[strings.LastIndex(strings.TrimSpace(output), "\n")+1:])
	if code == 0 || !strings.Contains(used, "another process uses the spool") {
		t.Errorf("a second broker on the same spool ended with %d: %s", code, used)
	}
	if answer := b.alpha.get(t.Context()); !answer.ok() {
		t.Errorf("the first broker then answered %s", answer)
	}
	t.Logf("said: %q and %q", last, used)
}

// testSpoolLost loses a spool whose records are not in the bucket yet (T206): the
// loss must show.
func testSpoolLost(t *testing.T, b *faultBed, _ *faultWire) {
	b.untilReady(t, 20*time.Second)
	streams := faultSpooled(t, b.Environment().BrokerSpool)
	if err := b.Component(testbed.ComponentStore).Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	lost := b.alpha.create(t.Context(), "lost")
	if !lost.ok() {
		t.Fatal(lost)
	}
	if err := b.Broker(0).Kill(); err != nil {
		t.Fatal(err)
	}
	for _, stream := range streams {
		if err := os.RemoveAll(b.Environment().BrokerSpool + "/" + stream); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Component(testbed.ComponentStore).Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.startBroker(t)
	b.sealed(t, 20*time.Second, b.alpha.get(t.Context()))
	report := b.mustVerify(t)
	if len(b.records(t)[lost.auditID]) != 0 {
		t.Fatal("the record is in the bucket")
	}
	noted := slices.ContainsFunc(report.Notes, func(note recorder.Finding) bool {
		return note.Reason == recorder.StreamOpen && slices.Contains(streams, note.Stream)
	})
	if !noted || faultEnds(report)["open"] != 2 {
		t.Errorf("nothing says that the stream %v was never closed: %v", streams, report.Notes)
	}
	t.Logf("a lost spool shows: %v", report.Notes)
}

// faultSpoolLines is the records that lie in a spool, as they are there.
func faultSpoolLines(t testing.TB, spool string) []string {
	t.Helper()
	var lines []string
	for _, stream := range faultSpooled(t, spool) {
		entries, err := os.ReadDir(spool + "/" + stream)
		if err != nil {
			continue // it was sealed meanwhile
		}
		for _, entry := range entries {
			if !strings.HasSuffix(entry.Name(), ".spool") {
				continue
			}
			content, err := os.ReadFile(spool + "/" + stream + "/" + entry.Name())
			if err != nil {
				continue
			}
			for part := range strings.SplitSeq(string(content), `{"kind":"Event"`) {
				lines = append(lines, part)
			}
			lines = slices.DeleteFunc(lines, func(line string) bool { return !strings.HasPrefix(line, `,"apiVersion"`) })
		}
	}
	return lines
}
