package authz_test

import (
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/taskgate/taskgate/authz"
)

// TestPinSeesChanges: whatever changes, the next question is answered from it.
func TestPinSeesChanges(t *testing.T) {
	pods := grant("g", rule("get", "shop", "", "pods"))
	index := world{}.index(t)
	pin := index.Pin(spiffeid.RequireFromString(alpha))
	verdict := func() string {
		t.Helper()
		set, err := pin.Set()
		if err != nil {
			t.Fatal(err)
		}
		return outcome(authz.Decide(authz.Question{Set: set, Call: call("get shop:pods web-0"), Now: noon, FreshUntil: noon.Add(1)}))
	}
	steps := []struct {
		name   string
		change func() error
		want   string
	}{
		{"nothing", func() error { return nil }, "deny NoGrant"},
		{"grant without its policy", func() error { return index.PutGrant(pods) }, "deny GrantRevoked"},
		{"policy", func() error { return index.PutPolicy(shop()) }, "allow"},
		{"suspended", func() error { p := shop(); p.Suspended = true; return index.PutPolicy(p) }, "deny PolicyDenied/Suspended"},
		{"resumed", func() error { return index.PutPolicy(shop()) }, "allow"},
		{"tombstone", func() error {
			gone := *pods
			gone.Deleted = true
			return index.PutGrant(&gone)
		}, "deny GrantRevoked"},
		{"forgotten", func() error { return index.ForgetGrant(pods) }, "deny NoGrant"},
		{"again", func() error { return index.PutGrant(pods) }, "allow"},
		{"policy gone", func() error { return index.DeletePolicy("shop") }, "deny GrantRevoked"},
	}
	for _, step := range steps {
		if err := step.change(); err != nil {
			t.Fatal(err)
		}
		if got := verdict(); got != step.want {
			t.Errorf("after %s: got %q, want %q", step.name, got, step.want)
		}
	}
	select {
	case <-index.Changed():
	default:
		t.Error("no change was announced")
	}
}

// TestOthersDoNotRecompile: grants of other agents leave a pinned set alone.
func TestOthersDoNotRecompile(t *testing.T) {
	w := world{policies: []*authz.Policy{shop()}, grants: []*authz.Grant{grant("g", everything)}}
	index := w.index(t)
	pin := index.Pin(spiffeid.RequireFromString(alpha))
	before, _ := pin.Set()
	other := grant("o", everything)
	other.Agent = "spiffe://example.org/ns/agents/sa/beta"
	if err := index.PutGrant(other); err != nil {
		t.Fatal(err)
	}
	if after, _ := pin.Set(); after != before {
		t.Error("a grant of another agent made the set anew")
	}
}

// TestManyAtOnce: grants of several agents put together are all there, each for its
// own agent, also where the name of one goes on where that of another ends.
func TestManyAtOnce(t *testing.T) {
	index := world{policies: []*authz.Policy{shop()}}.index(t)
	agents := []string{alpha, alpha + "0", alpha + "/deeper", alpha[:len(alpha)-1]}
	var grants []*authz.Grant
	for i, agent := range agents {
		for j := range 2 {
			g := grant(fmt.Sprintf("g%d-%d", i, j), everything)
			g.Agent = agent
			grants = append(grants, g)
		}
	}
	pin := index.Pin(spiffeid.RequireFromString(alpha))
	before, err := pin.Set()
	if err != nil {
		t.Fatal(err)
	}
	if err := index.PutGrants(grants); err != nil {
		t.Fatal(err)
	}
	if after, err := pin.Set(); err != nil || after == before || len(after.Held(noon)) != 2 {
		t.Errorf("the set is not made anew, or not of the agent's grants: %v", err)
	}
	for i, agent := range agents {
		held, err := index.Grants(agent)
		if err != nil || len(held) != 2 || held[0] != grants[2*i] || held[1] != grants[2*i+1] {
			t.Errorf("%s holds %v (%v)", agent, held, err)
		}
	}
	if err := index.ForgetGrant(grants[0]); err != nil {
		t.Fatal(err)
	}
	for i, agent := range agents {
		if held, err := index.Grants(agent); err != nil || len(held) != min(2, 1+i) {
			t.Errorf("after one was forgotten %s holds %v (%v)", agent, held, err)
		}
	}
}

func TestFreshness(t *testing.T) {
	index := world{}.index(t)
	if !index.FreshUntil().IsZero() {
		t.Error("a new index is fresh")
	}
	index.Fresh(noon)
	index.Fresh(noon.Add(-time.Hour))
	if got := index.FreshUntil(); !got.Equal(noon) {
		t.Errorf("got %v: time went back", got)
	}
}

// TestConcurrentChanges: under a stream of changes every decision is one that
// was right at some moment between the start and the end of the question.
func TestConcurrentChanges(t *testing.T) {
	index := world{policies: []*authz.Policy{shop()}}.index(t)
	var started, finished atomic.Int64 // versions of the grant
	stop := make(chan struct{})
	var wait sync.WaitGroup
	wait.Go(func() {
		for version := int64(1); ; version++ {
			select {
			case <-stop:
				return
			default:
			}
			g := grant("g", rule("get", "shop", "", "pods"))
			g.Task, g.Revoked = fmt.Sprint(version), version%2 == 0
			started.Store(version)
			if err := index.PutGrant(g); err != nil {
				t.Error(err)
			}
			finished.Store(version)
		}
	})
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			pin := index.Pin(spiffeid.RequireFromString(alpha))
			for range 20_000 {
				from := finished.Load()
				set, err := pin.Set()
				if err != nil {
					t.Error(err)
					return
				}
				d := authz.Decide(authz.Question{Set: set, Call: call("get shop:pods web-0"), Now: noon, FreshUntil: noon.Add(1)})
				to := started.Load()
				if d.Grant == nil {
					continue // before the first version
				}
				var version int64
				fmt.Sscan(d.Grant.Task, &version)
				if version < from || version > to || (d.Verdict == authz.Allow) != (version%2 == 1) {
					t.Errorf("decided on version %d (%v), which was not in force between %d and %d", version, d.Verdict, from, to)
					return
				}
			}
		})
	}
	readers.Wait()
	close(stop)
	wait.Wait()
}

// BenchmarkDecide: the price of a decision once the connection is pinned, with
// nobody else and with 100,000 grants of other agents.
func BenchmarkDecide(b *testing.B) {
	for _, others := range []int{0, 100_000} {
		b.Run(fmt.Sprintf("others=%d", others), func(b *testing.B) {
			w := world{policies: []*authz.Policy{shop()}, grants: []*authz.Grant{
				grant("g", rule("get,list", "shop", "apps", "deployments"), rule("get,list,watch", "shop", "", "pods,pods/log,services")),
			}}
			for i := range others {
				g := grant(fmt.Sprint("o", i), everything)
				g.Agent = fmt.Sprintf("spiffe://example.org/ns/agents/sa/other-%d", i)
				w.grants = append(w.grants, g)
			}
			pin := w.index(b).Pin(spiffeid.RequireFromString(alpha))
			c, fresh := call("get shop:pods web-0"), noon.Add(time.Second)
			b.ReportAllocs()
			runtime.GC() // what the grants of others left behind is not the decision's
			for b.Loop() {
				set, _ := pin.Set()
				if d := authz.Decide(authz.Question{Set: set, Call: c, Now: noon, FreshUntil: fresh}); d.Verdict != authz.Allow {
					b.Fatal(d.Reason)
				}
			}
		})
	}
}

// TestDecideAllocates nothing, whatever the answer is.
func TestDecideAllocates(t *testing.T) {
	w := world{policies: []*authz.Policy{shop()}, grants: []*authz.Grant{grant("g", rule("get,list,watch,delete", "shop", "", "pods,pods/log,services,namespaces"))}}
	pin := w.index(t).Pin(spiffeid.RequireFromString(alpha))
	for _, text := range []string{"get shop:pods web-0", "get other:pods web-0", "delete shop:pods web-0", "get shop:secrets x"} {
		c := call(text)
		var d authz.Decision
		if n := testing.AllocsPerRun(100, func() {
			set, _ := pin.Set()
			d = authz.Decide(authz.Question{Set: set, Call: c, Now: noon, FreshUntil: noon.Add(time.Second)})
		}); n != 0 {
			t.Errorf("%s: %v allocations for %v %s", text, n, d.Verdict, d.Reason)
		}
	}
}
