package broker

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/taskgate/taskgate/authz"
	"github.com/taskgate/taskgate/broker/condition"
	"github.com/taskgate/taskgate/recorder"
)

// TestConditionalGates: a gate whose condition is about the request costs no call;
// one about the object makes a dry run and a read, which are on record and never
// shown; and what cannot be looked at is gated.
func TestConditionalGates(t *testing.T) {
	const target = "/apis/apps/v1/namespaces/shop/deployments/web"
	json, patch := "application/json", http.Header{"Content-Type": {"application/merge-patch+json"}}
	object := func(replicas string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", json)
			_, _ = io.WriteString(w, `{"kind":"Deployment","metadata":{"name":"web"},"spec":{"replicas":`+replicas+`}}`)
		}
	}
	for _, row := range []struct {
		name, when, method, target, body string
		answer                           http.HandlerFunc
		reason                           string
		upstream                         []string
	}{
		{"about the request, no", "request.namespace == 'bank'", "PATCH", target, "{}", object("1"), "", []string{"PATCH "}},
		{"about the request, yes", "request.namespace == 'shop'", "PATCH", target, "{}", object("1"), "ApprovalRequired", nil},
		{"about the task", "params.task == 'INC-1'", "PATCH", target, "{}", object("1"), "ApprovalRequired", nil},
		{"about the object, no", "object.spec.replicas > 10", "PATCH", target, "{}", object("5"), "", []string{"GET ", "PATCH dryRun=All", "PATCH "}},
		{"about the object, yes", "object.spec.replicas > 10", "PATCH", target, "{}", object("11"), "ApprovalRequired", []string{"GET ", "PATCH dryRun=All"}},
		{"a dry run of its own", "object.spec.replicas > 10", "PATCH", target + "?dryRun=All&fieldManager=x", "{}", object("5"), "", []string{"GET ", "PATCH dryRun=All&fieldManager=x", "PATCH dryRun=All&fieldManager=x"}},
		{"a create", "object.spec.replicas > 10", "POST", "/apis/apps/v1/namespaces/shop/deployments", "{}", object("5"), "", []string{"POST dryRun=All", "POST "}},
		{"a delete", "oldObject.spec.replicas > 10", "DELETE", target, "", object("5"), "", []string{"GET ", "DELETE "}},
		{"a list has no object", "object.spec.replicas > 10", "GET", "/apis/apps/v1/namespaces/shop/deployments", "", object("5"), "ApprovalRequired", nil},
		{"no such field", "object.spec.surprise > 10", "PATCH", target, "{}", object("5"), "ApprovalRequired", []string{"GET ", "PATCH dryRun=All"}},
		{"no dry run", "object.spec.replicas > 10", "PATCH", target, "{}", answerWith(500, json, "{}"), "ApprovalRequired", []string{"GET "}},
		{"no object", "object.spec.replicas > 10", "PATCH", target, "{}", answerWith(200, json, "[]"), "ApprovalRequired", []string{"GET "}},
	} {
		r := newRig(t)
		compiled, err := condition.Compile(row.when)
		if err != nil {
			t.Fatal(err)
		}
		r.grant(time.Hour, allow("*", "deployments"))
		r.policy(func(p *authz.Policy) {
			p.Gates = []authz.Gate{{Name: "big", Approvers: 1, Resources: []string{"deployments"}, When: row.when, Condition: compiled}}
		})
		r.stub.set(row.answer)
		header := http.Header{}
		switch row.method {
		case "PATCH":
			header = patch
		case "POST":
			header.Set("Content-Type", json)
		}
		got := r.do(row.method, row.target, header, row.body)
		if got.reason() != row.reason {
			t.Errorf("%s: got %d %s", row.name, got.code, got.body)
		}
		var upstream []string
		for _, seen := range r.stub.requests() {
			upstream = append(upstream, seen.Method+" "+seen.URL.RawQuery)
		}
		if strings.Join(upstream, ", ") != strings.Join(row.upstream, ", ") {
			t.Errorf("%s: the cluster saw %q, want %q", row.name, upstream, row.upstream)
		}
		parent, previews := got.header.Get("Audit-Id"), 0
		for _, e := range r.recorded() {
			if e.AuditID != parent {
				previews++
				if e.Annotations[recorder.AnnotationPurpose] != "preview" || e.Annotations[recorder.AnnotationParent] != parent || e.Annotations[recorder.AnnotationDecision] != "allow" {
					t.Errorf("%s: a preview is on record as %v", row.name, e.Annotations)
				}
			}
		}
		looks := len(row.upstream)
		if row.reason == "" {
			looks-- // the call itself
		}
		if previews != 2*looks {
			t.Errorf("%s: %d records of previews, want %d", row.name, previews, 2*looks)
		}
	}
}

// TestConditionalWatch: a watch that a condition lets pass stays open, also after
// its query is not kept any more.
func TestConditionalWatch(t *testing.T) {
	r := newRig(t)
	compiled, err := condition.Compile("request.namespace == 'bank' || request.query.watch != 'true'")
	if err != nil {
		t.Fatal(err)
	}
	g := r.grant(time.Hour, allow("watch", "pods"))
	r.policy(func(p *authz.Policy) {
		p.Gates = []authz.Gate{{Name: "far", Approvers: 1, Condition: compiled, When: "…"}}
	})
	r.stub.set(endless(event))
	_, lines := r.open("/api/v1/namespaces/shop/pods?watch=true")
	r.boundary.live.recheck(r.boundary.now)
	gone := *g
	gone.Revoked = true
	if err := r.boundary.index.PutGrant(&gone); err != nil {
		t.Fatal(err)
	}
	if rest := readAll(lines); !strings.Contains(rest, "GrantRevoked") {
		t.Errorf("it ends with %s", rest)
	}
}

// TestConditionalGateApproved: people are asked by the strictest gate that holds,
// and a yes to it counts, though a stricter one was found not to hold.
func TestConditionalGateApproved(t *testing.T) {
	const maps = "/api/v1/namespaces/shop/configmaps/settings"
	r := newGatedRig(t, newPeople(t))
	gate := func(name string, approvers int, when string) authz.Gate {
		compiled, err := condition.Compile(when)
		if err != nil {
			t.Fatal(err)
		}
		return authz.Gate{Name: name, Policy: "shop", Approvers: approvers, Resources: []string{"configmaps"}, TTL: time.Minute, UseWithin: time.Minute, When: when, Condition: compiled}
	}
	r.policy(func(p *authz.Policy) {
		p.Gates = []authz.Gate{
			gate("asked", 3, "request.query.fieldManager == 'y'"), gate("black", 2, "object.data.colour == 'black'"),
			gate("red", 1, "object.data.colour == 'red' && oldObject.data.colour == 'blue' && request.query.fieldManager == 'x'"),
		}
	})
	const target, body = maps + "?fieldManager=x", `{"data":{"colour":"red"}}`
	first := r.call("PATCH", target, body, "ApprovalRequired")
	if !strings.Contains(first.status.Message, "needs 1 approval (gate red)") {
		t.Errorf("got %q", first.status.Message)
	}
	r.approve()
	r.call("PATCH", target, body, "")
	if r.people.consumed != 1 {
		t.Errorf("%d approvals were used", r.people.consumed)
	}
	for _, e := range of(r.recorded(), first.header.Get("Audit-Id")) {
		if e.Annotations[recorder.AnnotationDecision] != "deny" || e.Annotations[annotationGate] != "red" {
			t.Errorf("the record says %v", e.Annotations)
		}
	}
}

// TestConditionalGateChanged: a gate that people have not been asked about, and
// that comes while they are, is not passed by what they said of another.
func TestConditionalGateChanged(t *testing.T) {
	const maps, body = "/api/v1/namespaces/shop/configmaps/settings", `{"data":{"colour":"red"}}`
	r := newGatedRig(t, newPeople(t))
	gate := func(when string, approvers int) authz.Gate {
		compiled, err := condition.Compile(when)
		if err != nil {
			t.Fatal(err)
		}
		return authz.Gate{Name: "maps", Policy: "shop", Approvers: approvers, Resources: []string{"configmaps"}, TTL: time.Minute, UseWithin: time.Minute, When: when, Condition: compiled}
	}
	one, two := gate("object.data.colour == 'red'", 1), gate("object.data.colour == 'black'", 2)
	r.policy(func(p *authz.Policy) { p.Gates = []authz.Gate{one, two} })
	r.call("PATCH", maps, body, "ApprovalRequired")
	r.approve()
	seen := 0
	r.people.onAsked = func() { // at the second reading the policy has changed
		if seen++; seen == 1 {
			two = gate("object.data.colour != 'green'", 2)
			r.policy(func(p *authz.Policy) { p.Gates = []authz.Gate{one, two} })
		}
	}
	r.call("PATCH", maps, body, "ApprovalRequired")
	if r.people.consumed != 0 {
		t.Error("the approval was used")
	}
}
