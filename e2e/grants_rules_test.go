package e2e_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/taskgate/taskgate/recorder"
)

const (
	grantsNodes  = "/api/v1/nodes"
	grantsPods   = "/api/v1/namespaces/grants/pods"
	grantsLog    = "/api/v1/namespaces/grants/pods/web/log"
	grantsApps   = "/apis/apps/v1/namespaces/grants/deployments"
	grantsOthers = "/api/v1/namespaces/default/pods"
)

// TestGrantsRules: under a policy that allows everything, a grant gives what its
// rules say and nothing else. Each is used alone, by pinning the call to it.
func TestGrantsRules(t *testing.T) {
	g := newGrantsRig(t)
	who := g.newAgent(t, "grants-rules")
	broker := who.ways(t)[1]
	g.allow(t, "rules", who.id, openPolicy, everything)
	all := []string{grantsNodes, grantsPods, grantsLog, grantsApps, grantsOthers}
	var refused []faultAnswer
	rows := []struct {
		name, rule string
		gives      []string // targets that are served; the others are OutsideGrant
	}{
		{"one verb of one resource", `{namespaces: [grants], apiGroups: [""], resources: [pods], verbs: [list]}`, []string{grantsPods}},
		{"every verb is no subresource", `{namespaces: [grants], apiGroups: ["*"], resources: [pods], verbs: ["*"]}`, []string{grantsPods}},
		{"every resource of one group", `{namespaces: [grants], apiGroups: [""], resources: ["*"], verbs: [get, list]}`, []string{grantsPods, grantsLog}},
		{"every group", `{namespaces: [grants], apiGroups: ["*"], resources: ["*"], verbs: [list]}`, []string{grantsPods, grantsApps}},
		{"every namespace", `{namespaces: ["*"], apiGroups: [""], resources: [pods, nodes], verbs: [list]}`, []string{grantsPods, grantsOthers, grantsNodes}},
		{"a subresource of all", `{namespaces: [grants], apiGroups: [""], resources: ["*/log"], verbs: [get]}`, []string{grantsLog}},
		{"all subresources is no word", `{namespaces: [grants], apiGroups: [""], resources: ["pods/*"], verbs: ["*"]}`, nil},
		{"no namespace", `{namespaces: [""], apiGroups: ["*"], resources: ["*"], verbs: ["*"]}`, nil},
		{"a namespace that looks like a pattern", `{namespaces: ["grant*"], apiGroups: ["*"], resources: ["*"], verbs: ["*"]}`, nil},
		{"no resource", `{namespaces: ["*"], apiGroups: ["*"], resources: [""], verbs: ["*"]}`, nil},
		{"a resource that looks like a pattern", `{namespaces: ["*"], apiGroups: ["*"], resources: ["pod*", "*s"], verbs: ["*"]}`, nil},
		{"no verb", `{namespaces: ["*"], apiGroups: ["*"], resources: ["*"], verbs: [""]}`, nil},
		{"verbs in capitals", `{namespaces: ["*"], apiGroups: ["*"], resources: ["*"], verbs: [GET, LIST, "get,list", " list"]}`, nil},
		{"resources in capitals", `{namespaces: ["*"], apiGroups: ["*"], resources: [Pods, Pod, pod], verbs: ["*"]}`, nil},
		{"an empty name", `{namespaces: ["*"], apiGroups: ["*"], resources: ["*"], resourceNames: [""], verbs: ["*"]}`, nil},
		{"a name that looks like a pattern", `{namespaces: ["*"], apiGroups: ["*"], resources: ["*"], resourceNames: ["*"], verbs: ["*"]}`, nil},
	}
	pinTo := func(i int) string { return fmt.Sprintf("grants-rules-%d", i) }
	for i, r := range slices.Backward(rows) { // what is served comes last: then the rest is known too
		g.give(t, pinTo(i), "rules", who.id, "1h", r.rule)
	}
	g.served(t, who, grantsPods)
	for i, r := range rows {
		for _, target := range all {
			got := broker.do(t, "GET", target, map[string]string{"Taskgate-Grant": pinTo(i)}, "")
			switch {
			case slices.Contains(r.gives, target) && got.code != 200, !slices.Contains(r.gives, target) && got.reason() != "OutsideGrant":
				t.Errorf("%s %s: GET %s: %d %s", r.name, r.rule, target, got.code, got.reason())
			case got.code != 200:
				refused = append(refused, faultAnswer{code: got.code, auditID: got.auditID(), reason: got.reason()})
			}
		}
	}
	g.judgeRefusals(t, who, refused...)
}

// TestGrantsOfOthers: the grant of one agent never serves another, not even one
// that the same policy is about, and not by its name.
func TestGrantsOfOthers(t *testing.T) {
	g := newGrantsRig(t)
	one, other := g.newAgent(t, "grants-one"), g.newAgent(t, "grants-other")
	g.seed(t, "one")
	g.allow(t, "one", "spiffe://example.org/ns/agents/sa/*", openPolicy, mapRule("one"))
	g.give(t, "grants-one", "one", one.id, "1h", mapRule("one"))
	g.served(t, one, mapTarget("one"))
	var refused []faultAnswer
	for _, way := range other.ways(t) {
		for _, pin := range []string{"-", "grants-one"} {
			got := way.do(t, "GET", mapTarget("one"), map[string]string{"Taskgate-Grant": pin}, "")
			if got.reason() != "NoGrant" {
				t.Errorf("%s pinned to %s: %d %s", way.name, pin, got.code, got.body)
			}
			if strings.Contains(got.body, "the grant grants-one") { // the policy, of the same name, is about both
				t.Errorf("%s pinned to %s learns of the other's grant: %s", way.name, pin, got.body)
			}
			refused = append(refused, faultAnswer{code: got.code, auditID: got.auditID(), reason: got.reason()})
		}
	}
	g.judgeRefusals(t, other, refused...)
	// The end of one's grant is not the end of the other's.
	g.give(t, "grants-other", "one", other.id, "1h", mapRule("one"))
	g.served(t, other, mapTarget("one"))
	watch := asFault(other).open(t, mapWatch("one"))
	g.patch(t, grantsResource, "grants-one", revokeAndResume)
	if got := callUntilRefused(t, one, mapTarget("one"), 5*time.Second); got.refused.reason != "GrantRevoked" {
		t.Errorf("%s", got.refused)
	}
	if got := other.do(t, "GET", mapTarget("one"), nil, ""); got.code != 200 {
		t.Errorf("after the other's end: %d %s", got.code, got.body)
	}
	if line := <-watch.lines; !strings.Contains(line, "ADDED") {
		t.Errorf("the watch of the other begins with %s", line)
	}
	select {
	case line, open := <-watch.lines:
		t.Errorf("the watch of the other (open: %t) says %s", open, line)
	case <-time.After(300 * time.Millisecond): // silence is what is wanted
	}
}

// TestGrantsSeveral: of several grants that cover a call the one that ends first
// is charged, and its end ends what was begun under it; the call then goes on
// under the next. T089 is about their gates.
func TestGrantsSeveral(t *testing.T) {
	g := newGrantsRig(t)
	who := g.newAgent(t, "grants-several")
	g.seed(t, "several")
	g.allow(t, "several", who.id, openPolicy, mapRule("several"))
	for name, ttl := range map[string]string{"late": "3h", "soon": "1h", "middle": "2h"} {
		g.give(t, "grants-"+name, "several", who.id, ttl, mapRule("several"))
	}
	g.create(t, grantsResource, grantManifest("grants-denied", "grants-several", who.id, "1m", `{namespaces: [grants], apiGroups: [""], resources: [configmaps], verbs: [get]}`))
	g.until(t, "grants-denied", "Approved=False Active=False Ended=True OutsidePolicy")
	g.served(t, who, mapTarget("several"))
	charged := func(what, grant, candidates string) {
		t.Helper()
		got := who.do(t, "GET", mapTarget("several"), nil, "")
		if got.code != 200 {
			t.Fatalf("%s: %d %s", what, got.code, got.body)
		}
		record := g.journal.of(t, got.auditID())[got.auditID()][0]
		if record.Annotations[recorder.AnnotationGrant] != grant || record.Annotations[recorder.AnnotationCandidates] != candidates {
			t.Errorf("%s: charged %s of %q; want %s of %q", what, record.Annotations[recorder.AnnotationGrant], record.Annotations[recorder.AnnotationCandidates], grant, candidates)
		}
		uid := string(g.read(t, grant).UID)
		for _, seen := range g.upstream(t)[got.auditID()] {
			if seen.ImpersonatedUser != nil && !slices.Equal(seen.ImpersonatedUser.Extra["grant.taskgate.dev"], []string{uid}) {
				t.Errorf("%s: the API server was told of the grant %v", what, seen.ImpersonatedUser.Extra)
			}
		}
	}
	charged("three grants", "grants-soon", "grants-soon,grants-middle,grants-late")
	watch := asFault(who).open(t, mapWatch("several"))
	g.patch(t, grantsResource, "grants-soon", revokeAndResume)
	if last := watch.last(t, 5*time.Second); faultEvent(t, last) != "GrantRevoked" {
		t.Errorf("the watch under the revoked grant ended with %s", last)
	}
	charged("two grants", "grants-middle", "grants-middle,grants-late")
	g.remove(t, grantsResource, "grants-middle")
	eventually(t, 5*time.Second, "the deleted grant is charged no more", func() error {
		got := who.do(t, "GET", mapTarget("several"), nil, "")
		record := g.journal.of(t, got.auditID())[got.auditID()][0]
		if record.Annotations[recorder.AnnotationGrant] != "grants-late" {
			return fmt.Errorf("%s", record.Annotations[recorder.AnnotationGrant])
		}
		return nil
	})
	charged("one grant", "grants-late", "")
	g.judgeCut(t, watch.auditID, "GrantRevoked", "grants-soon")
}

// TestGrantsPending: a grant that waits for people, or for its policy, gives
// nothing, and the agent is told that it waits.
func TestGrantsPending(t *testing.T) {
	g := newGrantsRig(t)
	who := g.newAgent(t, "grants-pending")
	g.seed(t, "pending")
	g.create(t, grantsResource, grantManifest("grants-pending", "grants-pending", who.id, "1h", mapRule("pending")))
	const waits = "Approved=Unknown Active=False Ended=False "
	var refused []faultAnswer
	told := func(what, reason string) {
		t.Helper()
		answer := asFault(who).call(t.Context(), "GET", mapTarget("pending"), "")
		if answer.reason != reason {
			t.Errorf("%s: %s", what, answer)
		}
		refused = append(refused, answer)
	}
	g.until(t, "grants-pending", waits+"PolicyMissing")
	told("without a policy", "GrantPending")
	g.allow(t, "pending", who.id, "grant: {maxTTL: 4h, approval: {approvers: 2, groups: [sre]}}", mapRule("pending"))
	waiting := g.until(t, "grants-pending", waits+"ApprovalPending")
	if message := waiting.Status.Conditions[0].Message; !strings.Contains(message, "2 approvals of sre") {
		t.Errorf("the condition says %q", message)
	}
	told("before people agreed", "GrantPending")
	g.judgeRefusals(t, who, refused...)
	g.patch(t, grantsPolicies, "grants-pending", `{"spec":{"grant":{"approval":"None"}}}`)
	g.until(t, "grants-pending", "Approved=True Active=True Ended=False Active")
	g.served(t, who, mapTarget("pending"))
}
