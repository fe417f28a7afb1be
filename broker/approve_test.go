package broker

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/taskgate/taskgate/api/v1alpha1"
	"github.com/taskgate/taskgate/authz"
	"github.com/taskgate/taskgate/broker/control"
	"github.com/taskgate/taskgate/recorder"
)

// TestApprovalOnce is T101 and T102: refused with the name of the Approval and the
// next step, passes once after a yes, and not a second time.
func TestApprovalOnce(t *testing.T) {
	r := newGatedRig(t, newPeople(t))
	first := r.deletes("ApprovalRequired")
	a := r.people.one()
	for _, want := range []string{
		`[taskgate:ApprovalRequired] to delete namespaces "shop" needs 1 approval (gate namespace-delete); request ` + a.Name + " expires " + clock(a.Spec.ExpiresAt.Time),
		". Next: kubectl wait --for=condition=Decided approval/" + a.Name + " --timeout=15m, then repeat the same command. Retrying before that changes nothing",
	} {
		if !strings.Contains(first.status.Message, want) {
			t.Errorf("got %q, want %q", first.status.Message, want)
		}
	}
	r.deletes("ApprovalRequired")
	if a.Spec.Summary != `delete namespaces "shop"` || a.Spec.Call.UID != "ns-uid-1" || a.Spec.GrantUID != "uid-1" || !strings.Contains(a.Spec.Diff, "-uid: ns-uid-1") || !strings.Contains(a.Spec.Diff, "-- example.org/keep") {
		t.Errorf("people are asked %+v", a.Spec)
	}
	r.approve()
	passed := r.deletes("")
	if body := decoded(t, r.world.bodies[0]); fmt.Sprint(body["preconditions"]) != "map[uid:ns-uid-1]" {
		t.Errorf("deleted with %v", body)
	}
	again := r.deletes("ApprovalConsumed")
	r.world.change(func(w *world) { w.gone = true })
	r.deletes("ApprovalConsumed") // also when there is nothing left to delete
	r.later(afterwards + time.Second)
	r.deletes("UpstreamDenied")
	r.world.change(func(w *world) { w.gone, w.uid = false, "ns-uid-2" })
	r.deletes("ApprovalRequired")
	if r.people.count() != 2 || r.people.consumed != 1 {
		t.Errorf("%d approvals, %d used", r.people.count(), r.people.consumed)
	}
	r.checkRecords(first, passed, again, a)
}

func (r *gatedRig) checkRecords(first, passed, again reply, a *v1alpha1.Approval) {
	r.Helper()
	events := r.recorded()
	ids := map[string]string{"refused": first.header.Get("Audit-Id"), "passed": passed.header.Get("Audit-Id"), "again": again.header.Get("Audit-Id")}
	for what, id := range ids {
		for _, e := range of(events, id) {
			if e.Annotations[recorder.AnnotationApproval] != a.Name || e.Annotations[recorder.AnnotationDigest] != a.Spec.Digest {
				r.Errorf("%s: the record does not name the approval: %v", what, e.Annotations)
			}
		}
	}
	through := of(events, ids["passed"])
	if len(through) != 2 || through[0].Annotations[annotationDeciders] != "alice" || through[0].Annotations[recorder.AnnotationDecision] != "allow" ||
		through[0].Annotations[recorder.AnnotationReason] != "" || through[0].ObjectRef.UID != "ns-uid-1" {
		r.Errorf("records of the call that passed: %+v", through)
	}
	if used := r.people.items[a.Name].Status.ConsumedBy; used != ids["passed"] {
		r.Errorf("consumed by %s", used)
	}
	var previews, asked int
	for _, e := range events {
		switch e.Annotations[recorder.AnnotationPurpose] {
		case "preview":
			previews++
		case "approval":
			if asked++; asked == 1 && (e.ObjectRef.Name != a.Name || e.Annotations[recorder.AnnotationParent] != ids["refused"] || len(e.RequestObject) == 0) {
				r.Errorf("the record of the approval: %+v", e)
			}
		}
	}
	if previews == 0 || asked != 2 {
		r.Errorf("%d records of previews, %d of approvals", previews, asked)
	}
}

// TestApprovalChangedCall is T103 and T118: a yes is for one call, to the byte.
func TestApprovalChangedCall(t *testing.T) {
	const maps = "/api/v1/namespaces/shop/configmaps/settings"
	const body = `{"data":{"colour":"red"}}`
	for _, row := range []struct{ name, target, body, reason, says string }{
		{"one byte of the body", maps, `{"data":{"colour":"red "}}`, "ApprovalMismatch", "the body"},
		{"the query", maps + "?fieldManager=x", body, "ApprovalMismatch", "the query"},
		{"a dry run for the real thing", maps + "?dryRun=All", body, "ApprovalMismatch", "the query"},
		{"another object", maps + "-2", body, "ApprovalRequired", "waits"},
		{"another namespace", strings.Replace(maps, "shop", "shop-2", 1), body, "ApprovalRequired", ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := newGatedRig(t, newPeople(t))
			r.policy(func(p *authz.Policy) {
				p.Gates = []authz.Gate{{Name: "maps", Policy: "shop", Resources: []string{"configmaps"}, Approvers: 1, Groups: []string{"sre"}, TTL: time.Minute, UseWithin: time.Minute}}
			})
			first := r.call("PATCH", maps, body, "ApprovalRequired")
			if !strings.Contains(first.status.Message, "needs 1 approval from sre (gate maps)") || !strings.Contains(first.status.Message, "--timeout=1m") {
				t.Errorf("got %q", first.status.Message)
			}
			r.approve()
			changed := r.call("PATCH", row.target, row.body, row.reason)
			if row.reason == "ApprovalMismatch" && !strings.Contains(changed.status.Message, "("+row.says+" differs)") {
				t.Errorf("got %q", changed.status.Message)
			}
			r.call("PATCH", maps, body, "")
		})
	}
}

// TestApprovalOfDryRun is T118 the other way round.
func TestApprovalOfDryRun(t *testing.T) {
	r := newGatedRig(t, newPeople(t))
	r.call("DELETE", theNamespace+"?dryRun=All", "", "ApprovalRequired")
	if a := r.approve(); !strings.Contains(a.Spec.Summary, "a dry run") {
		t.Errorf("summary %q", a.Spec.Summary)
	}
	r.deletes("ApprovalMismatch")
}

// TestApprovalExpires is T106: one that was not decided, or not used, in time.
func TestApprovalExpires(t *testing.T) {
	r := newGatedRig(t, newPeople(t))
	r.deletes("ApprovalRequired")
	r.later(authz.DefaultTTL + time.Second)
	r.deletes("ApprovalExpired")
	a := r.people.one()
	r.people.decide(a.Name, control.Approved, r.boundary.now()) // too late
	r.deletes("ApprovalExpired")
	r.later(afterwards)
	r.deletes("ApprovalRequired") // asks anew
	second := nameOf(a.Spec.Digest, 1)
	r.people.decide(second, control.Approved, r.boundary.now())
	r.later(authz.DefaultUseWithin)
	r.deletes("ApprovalExpired")
	r.later(afterwards)
	r.deletes("ApprovalRequired")
	if r.people.consumed != 0 || r.people.count() != 3 {
		t.Errorf("%d of %d used", r.people.consumed, r.people.count())
	}
}

func TestApprovalDenied(t *testing.T) {
	r := newGatedRig(t, newPeople(t))
	r.deletes("ApprovalRequired")
	a := r.people.one()
	r.people.decide(a.Name, control.Denied, r.boundary.now())
	got := r.deletes("ApprovalDenied")
	if !strings.Contains(got.status.Message, `"not today"`) || strings.Contains(got.status.Message, "alice") {
		t.Errorf("got %q", got.status.Message)
	}
	r.later(50 * time.Minute)
	r.deletes("ApprovalDenied") // for the whole grant
	if records := of(r.recorded(), got.header.Get("Audit-Id")); records[0].Annotations[annotationDeciders] != "alice" {
		t.Errorf("the record does not say who denied: %v", records[0].Annotations)
	}
}

// TestApprovalOfEndedGrant is T111.
func TestApprovalOfEndedGrant(t *testing.T) {
	r := newGatedRig(t, newPeople(t))
	r.deletes("ApprovalRequired")
	r.approve()
	// Between the yes and the use, and between the last look and the use.
	for _, end := range []func(*authz.Grant){func(g *authz.Grant) { g.Revoked = true }, func(g *authz.Grant) { g.UID = "uid-2" }} {
		grant := r.grant(time.Hour, authz.Rule{Namespaces: []string{"*"}, APIGroups: []string{"*"}, Resources: []string{"*"}, Verbs: []string{"*"}})
		ended := *grant
		end(&ended)
		if err := r.boundary.index.PutGrant(&ended); err != nil {
			t.Fatal(err)
		}
		if ended.Revoked {
			r.deletes("GrantRevoked")
			continue
		}
		gone := *grant
		gone.Revoked = true
		if err := r.boundary.index.PutGrant(&gone); err != nil {
			t.Fatal(err)
		}
		r.deletes("ApprovalRequired") // another grant of the same name asks anew
	}
	if r.people.consumed != 0 {
		t.Error("an approval was used")
	}
}

// TestApprovalTargetChanges is T113 and the part of T114 that needs no stream.
func TestApprovalTargetChanges(t *testing.T) {
	r := newGatedRig(t, newPeople(t))
	pin := false
	gate := func() {
		r.policy(func(p *authz.Policy) {
			p.Gates = []authz.Gate{{Name: "ns", Policy: "shop", Resources: []string{"namespaces"}, Approvers: 1, TTL: time.Minute, UseWithin: time.Minute, PinVersion: pin}}
		})
	}
	gate()
	r.deletes("ApprovalRequired")
	r.approve()
	r.world.change(func(w *world) { w.version = "8" })
	r.deletes("") // not pinned
	r.later(2 * time.Minute)
	pin = true
	gate()
	r.deletes("ApprovalRequired")
	newest := func() string {
		name := ""
		for n, a := range r.people.items {
			if a.Status.ConsumedAt == nil && a.Spec.ExpiresAt.After(r.boundary.now()) {
				name = n
			}
		}
		return name
	}
	r.people.decide(newest(), control.Approved, r.boundary.now())
	r.world.change(func(w *world) { w.version = "9" })
	r.deletes("ApprovalMismatch/ApprovalStale")
	r.world.change(func(w *world) { w.uid = "ns-uid-2" })
	if got := r.deletes("ApprovalMismatch/TargetChanged"); !strings.Contains(got.status.Message, "UID ns-uid-1 then, ns-uid-2 now") {
		t.Errorf("got %q", got.status.Message)
	}
	r.world.change(func(w *world) { w.uid, w.version = "ns-uid-1", "8" })
	r.deletes("")
	if body := decoded(t, r.world.bodies[1]); fmt.Sprint(body["preconditions"]) != "map[resourceVersion:8 uid:ns-uid-1]" {
		t.Errorf("deleted with %v", body)
	}
}

// TestApprovalOfCollection is T123: what would be deleted is counted, shown, and
// bound.
func TestApprovalOfCollection(t *testing.T) {
	r := newGatedRig(t, newPeople(t))
	const target = "/api/v1/namespaces/shop/pods?labelSelector=app%3Dweb"
	r.call("DELETE", target, "", "ApprovalRequired")
	a := r.approve()
	if a.Spec.Summary != `deletecollection pods in namespace "shop": 2 objects` || *a.Spec.Call.Objects != 2 || !strings.Contains(a.Spec.Diff, "-shop/web-0\n-shop/web-1\n") {
		t.Errorf("people are shown %+v", a.Spec)
	}
	for _, q := range r.stub.requests() {
		if q.Method == "GET" && q.URL.RawQuery != "labelSelector=app%3Dweb" {
			t.Errorf("counted by %s", q.URL)
		}
	}
	r.world.change(func(w *world) { w.members = append(w.members, "web-2") })
	r.call("DELETE", target, "", "ApprovalMismatch/ApprovalStale")
	r.world.change(func(w *world) { w.members = w.members[:2] })
	r.call("DELETE", target, "", "")
	r.world.change(func(w *world) { w.members = nil })
	r.call("DELETE", target, "", "ApprovalConsumed")
}

// TestApprovalQuota is T125.
func TestApprovalQuota(t *testing.T) {
	r := newGatedRig(t, newPeople(t))
	for i := range r.boundary.asking.MaxOpen {
		r.call("DELETE", fmt.Sprintf("%s-%d", theNamespace, i), "", "ApprovalRequired")
	}
	got := r.call("DELETE", theNamespace+"-one-more", "", "BudgetSpent/ApprovalQuota")
	if got.code != http.StatusForbidden || got.header.Get("Retry-After") != "" || !strings.Contains(got.status.Message, "kubectl get approvals") {
		t.Errorf("got %d %q", got.code, got.status.Message)
	}
	r.call("DELETE", theNamespace+"-0", "", "ApprovalRequired") // those that are there go on
	for name := range r.people.items {
		r.people.decide(name, control.Denied, r.boundary.now())
		break
	}
	r.call("DELETE", theNamespace+"-one-more", "", "ApprovalRequired")
}

// TestApprovalQuotaOfADay: what was decided counts, too.
func TestApprovalQuotaOfADay(t *testing.T) {
	r := newGatedRig(t, newPeople(t))
	for i := range r.boundary.asking.MaxPerDay {
		r.call("DELETE", fmt.Sprintf("%s-%d", theNamespace, i), "", "ApprovalRequired")
		for name, a := range r.people.items {
			if len(a.Status.Conditions) == 0 {
				r.people.decide(name, control.Denied, r.boundary.now())
			}
		}
	}
	if got := r.deletes("BudgetSpent/ApprovalQuota"); !strings.Contains(got.status.Message, "24 hours") {
		t.Errorf("got %q", got.status.Message)
	}
}

// TestApprovalOfManyConnections: one prompt, whoever asks how often at how many
// replicas.
func TestApprovalOfManyConnections(t *testing.T) {
	p := newPeople(t)
	rigs := []*gatedRig{newGatedRig(t, p), newGatedRig(t, p)}
	var wait sync.WaitGroup
	for i := range 24 {
		wait.Go(func() { _ = rigs[i%2].do("DELETE", theNamespace, nil, "") })
	}
	wait.Wait()
	if a := p.one(); a.Name != nameOf(a.Spec.Digest, 0) || p.creates != 1 {
		t.Errorf("%d were made, %s is there", p.creates, a.Name)
	}
	if rigs[0].world.executed()+rigs[1].world.executed() != 0 {
		t.Error("something was executed")
	}
}

// TestApprovalRace is T127: two replicas over one store race for every approval.
func TestApprovalRace(t *testing.T) {
	trials := 1000
	if testing.Short() {
		trials = 100
	}
	p := newPeople(t)
	rigs := []*gatedRig{newGatedRig(t, p), newGatedRig(t, p)}
	clients := make([]*http.Client, 2)
	for i, r := range rigs {
		clients[i] = r.client("h2")
	}
	delete := func(i int, target string) {
		q, err := http.NewRequest("DELETE", "https://"+rigs[i].address+target, http.NoBody)
		if err != nil {
			t.Error(err)
			return
		}
		response, err := clients[i].Do(q)
		if err != nil {
			t.Error(err)
			return
		}
		_ = response.Body.Close()
	}
	for trial := range trials {
		target := fmt.Sprintf("%s-%d", theNamespace, trial)
		delete(trial%2, target)
		for name, a := range p.items {
			if a.Spec.Call.Name == fmt.Sprintf("shop-%d", trial) {
				p.decide(name, control.Approved, rigs[0].boundary.now())
			}
		}
		var wait sync.WaitGroup
		for i := range 4 {
			wait.Go(func() { delete(i%2, target) })
		}
		wait.Wait()
		if done := rigs[0].world.executed() + rigs[1].world.executed(); done != trial+1 {
			t.Fatalf("after %d approvals %d calls were made", trial+1, done)
		}
		p.mu.Lock()
		clear(p.items) // keeps the lists short
		p.mu.Unlock()
	}
	if p.consumed != trials {
		t.Errorf("%d of %d were used", p.consumed, trials)
	}
}

// TestApprovalGateChanges: a yes to less does not count once the policy asks for
// more, and a call whose gate changed while it waited is asked about anew.
func TestApprovalGateChanges(t *testing.T) {
	r := newGatedRig(t, newPeople(t))
	r.deletes("ApprovalRequired")
	r.approve()
	r.policy(func(p *authz.Policy) {
		p.Gates = []authz.Gate{{Name: "namespace-delete", Policy: "shop", Approvers: 2, TTL: time.Minute, UseWithin: time.Minute}}
	})
	if got := r.deletes("ApprovalRequired"); !strings.Contains(got.status.Message, "2 approvals") {
		t.Errorf("got %q", got.status.Message)
	}
	if r.people.count() != 2 || r.people.consumed != 0 {
		t.Errorf("%d approvals, %d used", r.people.count(), r.people.consumed)
	}
}

// TestHold: the call is kept open and passes as soon as people have said yes; it
// ends with the grant.
func TestHold(t *testing.T) {
	hold := func(r *gatedRig) {
		r.policy(func(p *authz.Policy) {
			p.Gates = []authz.Gate{{Name: "ns", Policy: "shop", Resources: []string{"namespaces"}, Approvers: 1, TTL: time.Minute, UseWithin: time.Minute, Hold: true}}
		})
	}
	waiting := func(r *gatedRig) {
		for r.people.count() == 0 || r.boundary.live.count() == 0 {
			time.Sleep(10 * time.Millisecond)
		}
	}
	t.Run("approved", func(t *testing.T) {
		r := newGatedRig(t, newPeople(t))
		hold(r)
		var wait sync.WaitGroup
		wait.Go(func() {
			waiting(r)
			r.approve()
		})
		r.deletes("")
		wait.Wait()
	})
	t.Run("revoked", func(t *testing.T) {
		r := newGatedRig(t, newPeople(t))
		hold(r)
		var wait sync.WaitGroup
		wait.Go(func() {
			waiting(r)
			if err := r.boundary.index.PutGrant(&authz.Grant{Name: "inc-1", UID: "uid-1", Agent: alphaID, Task: "INC-1", Policy: "shop", Revoked: true, TTL: time.Hour, Rules: []authz.Rule{allow("*", "*")}}); err != nil {
				t.Error(err)
			}
		})
		r.deletes("GrantRevoked")
		wait.Wait()
	})
	t.Run("shutdown", func(t *testing.T) {
		r := newGatedRig(t, newPeople(t))
		hold(r)
		var wait sync.WaitGroup
		wait.Go(func() {
			waiting(r)
			r.boundary.live.close(unavailable(authz.NotReady, "ShuttingDown", "the broker is shutting down"))
		})
		r.deletes("NotReady/ShuttingDown")
		wait.Wait()
	})
}
