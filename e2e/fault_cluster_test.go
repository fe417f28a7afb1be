package e2e_test

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/taskgate/taskgate/e2e/testbed"
)

// faultStale is how long decisions may rest on what was last proven fresh, in
// these tests.
const faultStale = 5 * time.Second

// TestFaultCluster takes the API server away in several ways.
func TestFaultCluster(t *testing.T) {
	t.Parallel()
	wire := newFaultWire(t)
	b := startFault(t, testbed.Options{
		Node: testbed.NoNode, WithoutControllers: true,
		BrokerConfiguration: func(_ int, configuration map[string]any) {
			wire.toCluster(configuration)
			configuration["staleAfter"] = faultStale.String()
		},
	})
	// A call on a connection that is lost while it waits. It is looked at in the
	// end, because it may take as long as the API server itself may take: a minute.
	hanging := make(chan faultAnswer, 1)
	for _, part := range []struct {
		name string
		test func(*testing.T, *faultBed, *faultWire)
	}{
		{"connections lost", func(t *testing.T, b *faultBed, wire *faultWire) { testClusterLost(t, b, wire, hanging) }},
		{"default", testStaleDefault},
		{"stopped", testClusterStopped},
		{"held", testClusterHeld},
		{"etcd held", testEtcdHeld},
		{"unreachable", testClusterUnreachable},
		{"revoked while the watch is cut", testClusterRevoked},
		{"guard removed", testClusterGuard},
		{"a call on a lost connection ends", func(t *testing.T, _ *faultBed, _ *faultWire) {
			answer := <-hanging
			if answer.err != nil || answer.code < 500 {
				t.Errorf("it ended with %s", answer)
			}
			t.Logf("it ended after %s", answer.took)
		}},
	} {
		t.Run(part.name, func(t *testing.T) { part.test(t, b, wire) })
		wire.open()
		if t.Failed() {
			if err := b.Component(testbed.ComponentAPIServer).Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			b.alpha.untilOK(t, 90*time.Second)
		}
	}
	if report := b.mustVerify(t); faultEnds(report)["open"] != 1 || len(report.Streams) > 2 {
		t.Errorf("there are %d streams: the broker was started again", len(report.Streams))
	}
}

// testStaleDefault asks the configuration that the broker prints, and a broker
// that was given none.
func testStaleDefault(t *testing.T, b *faultBed, _ *faultWire) {
	if got := b.command(t, "", b.Environment().Programs+"/broker", "config"); !strings.Contains(got.stdout, "staleAfter: 30s") {
		t.Errorf("the example configuration is %s", got)
	}
	broker := b.runBroker(t, func(config map[string]any) {
		delete(config, "staleAfter")
		config["name"] = "other"
		config["listen"] = map[string]any{"agents": "127.0.0.1:0", "health": "127.0.0.1:" + faultPort(t)}
		recorder := config["recorder"].(map[string]any)
		recorder["spool"] = recorder["spool"].(string) + "-other"
	}, nil)
	var left []time.Duration
	eventually(t, 20*time.Second, "the broker has proven its policies fresh", func() error {
		_, page := faultFetch(broker.health + "/metrics")
		_, value, found := strings.Cut(page, "\ntaskgate_policies_stale_timestamp_seconds ")
		var at float64
		if _, err := fmt.Sscan(value, &at); !found || err != nil || at <= 0 {
			return fmt.Errorf("no time")
		}
		left = append(left, time.Until(time.Unix(int64(at), 0)))
		if len(left) < 10 {
			return fmt.Errorf("%d samples", len(left))
		}
		return nil
	})
	if most := slices.Max(left); most > 30*time.Second || most < 24*time.Second {
		t.Errorf("decisions of a broker with the default may rest on what was proven for another %s", most)
	}
	if code, output := broker.stop(t); code != 0 {
		t.Errorf("the other broker ended with %d: %s", code, output)
	}
}

// faultPort is a port that was free a moment ago.
func faultPort(t testing.TB) string {
	t.Helper()
	wire := newFaultWire(t)
	_ = wire.listener.Close() // to be free
	_, port, _ := strings.Cut(wire.address(), ":")
	return port
}

// gone watches what the broker does while the API server is away, from began on:
// clear refusals first, PolicyStale then, and not ready.
func (b *faultBed) gone(t *testing.T, began time.Time) (stale, notReady time.Duration) {
	t.Helper()
	reasons := map[string]int{}
	stale = -1
	eventually(t, faultStale+10*time.Second, "calls are refused PolicyStale", func() error {
		answer := b.alpha.get(t.Context())
		reasons[answer.reason]++
		if answer.ok() {
			return fmt.Errorf("%s", answer)
		}
		if !answer.is("PolicyStale") && !answer.is("NotReady") && answer.err == nil || answer.err == nil && answer.code != http.StatusServiceUnavailable {
			t.Errorf("while the API server is away: %s", answer)
		}
		if answer.is("NotReady") && !strings.Contains(answer.body, "the cluster does not answer. Next: repeat the same command") {
			t.Errorf("the agent is not told what to do: %s", answer)
		}
		if !answer.is("PolicyStale") {
			return fmt.Errorf("%s", answer)
		}
		if !strings.Contains(answer.body, "Next: repeat the same command in a minute") {
			t.Errorf("the agent is not told what to do: %s", answer)
		}
		return nil
	})
	stale = faultSince(began)
	for _, answer := range []faultAnswer{b.alpha.create(t.Context(), "stale"), b.beta.get(t.Context()), b.beta.call(t.Context(), http.MethodGet, "/version", "")} {
		if !answer.is("PolicyStale") {
			t.Errorf("while policies are stale: %s", answer)
		}
	}
	b.untilNotReady(t, 5*time.Second, "policies", "not proven fresh")
	t.Logf("meanwhile agents were told %v", reasons)
	return stale, faultSince(began)
}

// testClusterStopped ends the API server and starts it again.
func testClusterStopped(t *testing.T, b *faultBed, _ *faultWire) {
	watch := b.alpha.open(t, faultMaps+"?watch=true")
	began := time.Now()
	if err := b.Component(testbed.ComponentAPIServer).Kill(); err != nil {
		t.Fatal(err)
	}
	first := b.alpha.get(t.Context())
	if first.reason != "NotReady/UpstreamUnavailable" || first.code != http.StatusServiceUnavailable || first.took > 2*time.Second {
		t.Errorf("with no API server: %s", first)
	}
	write := b.alpha.create(t.Context(), "nowhere")
	if write.reason != "NotReady/UpstreamUnavailable" || !strings.Contains(write.body, "whether the call took effect is not known") {
		t.Errorf("a write with no API server: %s", write)
	}
	watch.last(t, 5*time.Second)
	ended := faultSince(began)
	stale, notReady := b.gone(t, began)
	if stale > faultStale+2*time.Second {
		t.Errorf("PolicyStale only after %s", stale)
	}
	if err := b.Component(testbed.ComponentAPIServer).Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	healed := b.alpha.untilOK(t, 60*time.Second)
	ready := healed + b.untilReady(t, 20*time.Second)
	records := b.sealed(t, 20*time.Second, first, write)
	for _, answer := range []faultAnswer{first, write} {
		if last := records[answer.auditID][len(records[answer.auditID])-1]; last.Annotations["taskgate.dev/outcome"] != "unknown" {
			t.Errorf("the record of %s ends with %v", answer, last.Annotations)
		}
	}
	t.Logf("API server killed: 503 after %s, the watch ended after %s, PolicyStale after %s, not ready after %s; served again %s after it was back, ready %s",
		first.took, ended, stale, notReady, healed, ready)
}

// testClusterHeld stops the API server with SIGSTOP: connections stay, nothing
// answers.
func testClusterHeld(t *testing.T, b *faultBed, _ *faultWire) {
	watch := b.alpha.open(t, faultMaps+"?watch=true")
	began := time.Now()
	server := b.Component(testbed.ComponentAPIServer)
	if err := server.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	stale, notReady, ended := b.staleWithoutAnswers(t, began, watch)
	if err := server.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	healed := b.alpha.untilOK(t, 60*time.Second)
	t.Logf("API server held: PolicyStale after %s, the watch was told after %s, not ready after %s; served again %s after it went on", stale, ended, notReady, healed)
	b.untilReady(t, 20*time.Second)
}

// testEtcdHeld holds etcd: the API server is there and can do nothing. Nobody may
// take what its caches still know for the present.
func testEtcdHeld(t *testing.T, b *faultBed, _ *faultWire) {
	watch := b.alpha.open(t, faultMaps+"?watch=true&fieldSelector=metadata.name=seed")
	began := time.Now()
	etcd := b.Component(testbed.ComponentEtcd)
	if err := etcd.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	stale, notReady, ended := b.staleWithoutAnswers(t, began, watch)
	if err := etcd.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	healed := b.alpha.untilOK(t, 60*time.Second)
	t.Logf("etcd held: PolicyStale after %s, the watch was told after %s, not ready after %s; served again %s after it went on", stale, ended, notReady, healed)
	b.untilReady(t, 20*time.Second)
}

// staleWithoutAnswers waits for PolicyStale where a forwarded call hangs. The
// watch must be told the same.
func (b *faultBed) staleWithoutAnswers(t *testing.T, began time.Time, watch *faultWatch) (stale, notReady, ended time.Duration) {
	t.Helper()
	hanging := make(chan faultAnswer, 1)
	go func() { hanging <- b.beta.getWithin(t.Context(), faultStale+2*time.Second) }()
	notReady = b.untilNotReady(t, faultStale+5*time.Second, "policies", "not proven fresh")
	b.alpha.until(t, 5*time.Second, "PolicyStale")
	stale = faultSince(began)
	if stale > faultStale+3*time.Second {
		t.Errorf("PolicyStale only after %s", stale)
	}
	line := watch.last(t, 5*time.Second)
	ended = faultSince(began)
	if reason := faultEvent(t, line); reason != "PolicyStale" {
		t.Errorf("the watch ended with %q: %s", reason, line)
	}
	if answer := <-hanging; answer.ok() {
		t.Errorf("a call was answered while nothing answers: %s", answer)
	}
	return stale, notReady, ended
}

// testClusterUnreachable drops every byte between broker and API server, without
// a reset, on old connections and new ones.
func testClusterUnreachable(t *testing.T, b *faultBed, wire *faultWire) {
	watch := b.alpha.open(t, faultMaps+"?watch=true")
	began := time.Now()
	wire.hold(true)
	stale, notReady, _ := b.staleWithoutAnswers(t, began, watch)
	wire.open()
	healed := b.alpha.untilOK(t, 60*time.Second)
	t.Logf("API server unreachable: PolicyStale after %s, not ready after %s; served again after %s", stale, notReady, healed)
	b.untilReady(t, 20*time.Second)
}

// testClusterRevoked revokes beta's grant while the broker cannot hear of it.
// When it hears again it must not act on the old grant for a moment.
func testClusterRevoked(t *testing.T, b *faultBed, wire *faultWire) {
	watch := b.alpha.open(t, faultMaps+"?watch=true")
	wire.hold(true)
	b.staleWithoutAnswers(t, time.Now(), watch)
	for name := range strings.FieldsSeq(b.admin(t, "get", "taskgrants", "--output=name")) {
		if strings.Contains(name, "fault-beta-") {
			b.admin(t, "patch", name, "--type=merge", "--patch", revokeAndResume)
		}
	}
	wire.open()
	began := time.Now()
	var first faultAnswer
	eventually(t, 60*time.Second, "the grant is revoked", func() error {
		answer := b.beta.get(t.Context())
		switch {
		case answer.ok():
			t.Errorf("%s after the connection was back, a revoked grant was used: %s", faultSince(began), answer)
		case answer.is("GrantRevoked"):
			first = answer
			return nil
		}
		return fmt.Errorf("%s", answer)
	})
	took := faultSince(began)
	b.alpha.untilOK(t, 20*time.Second)
	b.sealed(t, 20*time.Second, first)
	t.Logf("a grant revoked while the watch was cut: PolicyStale meanwhile, GrantRevoked %s after", took)
	b.grantAgain(t)
}

// testClusterLost loses the connections there are: those of the watches never
// bring anything again and are never closed, while new connections work. What was
// revoked must be refused within staleAfter all the same.
func testClusterLost(t *testing.T, b *faultBed, wire *faultWire, hanging chan<- faultAnswer) {
	wire.hold(false)
	before := len(faultSpoolLines(t, b.Environment().BrokerSpool))
	ctx := context.WithoutCancel(t.Context())
	go func() { hanging <- b.alpha.getWithin(ctx, 80*time.Second) }()
	eventually(t, 5*time.Second, "the call is under way", func() error {
		if len(faultSpoolLines(t, b.Environment().BrokerSpool)) == before {
			return fmt.Errorf("no intent")
		}
		return nil
	})
	wire.lose()
	b.admin(t, "patch", "taskgrant/fault-beta", "--type=merge", "--patch", revokeAndResume)
	began := time.Now()
	last, used, hung := time.Duration(0), 0, 0
	eventually(t, 20*time.Second, "a revoked grant is refused", func() error {
		answer := b.beta.getWithin(t.Context(), time.Second)
		if answer.ok() {
			last, used = faultSince(began), used+1
		}
		if answer.err != nil {
			hung++
		}
		if !answer.is("PolicyStale") && !answer.is("GrantRevoked") {
			return fmt.Errorf("%s", answer)
		}
		return nil
	})
	closed := faultSince(began)
	if last > faultStale+time.Second {
		t.Errorf("a revoked grant was used for %s", last)
	}
	healed := b.alpha.untilOK(t, 30*time.Second) // pings find it after 15 s
	if answer := b.beta.get(t.Context()); !answer.is("GrantRevoked") {
		t.Errorf("afterwards beta is answered %s", answer)
	}
	t.Logf("connections lost: a revoked grant was used %d times, for %s, and refused after %s; %d calls hung on lost connections; alpha served again after %s",
		used, last, closed, hung, closed+healed)
	b.untilReady(t, 20*time.Second)
	b.grantAgain(t)
}

// grantAgain gives beta a new grant.
func (b *faultBed) grantAgain(t *testing.T) {
	t.Helper()
	setup := strings.TrimSuffix(strings.ReplaceAll(faultSetup, "RULE", faultRule), "---\n")
	last := setup[strings.LastIndex(setup, "---\n"):]
	b.apply(t, strings.ReplaceAll(last, "fault-beta", fmt.Sprintf("fault-beta-%d", time.Now().UnixNano())))
	b.beta.untilOK(t, 20*time.Second)
}

// testClusterGuard takes the admission policy away that judges pods.
func testClusterGuard(t *testing.T, b *faultBed, _ *faultWire) {
	binding := b.admin(t, "get", "validatingadmissionpolicybinding/taskgate-pods", "--output=yaml")
	b.admin(t, "delete", "validatingadmissionpolicybinding/taskgate-pods")
	began := time.Now()
	b.untilNotReady(t, 15*time.Second, "admission-policies", "is absent; in the guarded cluster")
	b.alpha.until(t, 5*time.Second, "NotReady")
	took := faultSince(began)
	lines := strings.SplitAfter(binding, "\n")
	b.apply(t, strings.Join(slices.DeleteFunc(lines, func(line string) bool {
		return strings.Contains(line, "resourceVersion:") || strings.Contains(line, "uid:")
	}), ""))
	t.Logf("without the admission policy's binding: refused after %s, served again %s after it was back", took, b.alpha.untilOK(t, 20*time.Second))
	b.untilReady(t, 20*time.Second)
}
