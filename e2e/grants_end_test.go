package e2e_test

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"time"
)

// grantEnding is one way a grant ends before its time. Each has a policy and a
// grant of its name, about a config map of its name.
type grantEnding struct {
	name   string
	alone  bool // what is done stops everything of the agent
	end    func(t testing.TB, g *grantsRig, object string)
	reason string // what the agent is told
	says   string // … and in words
	status string // conditions; "" where the object is gone
	tells  string // in the message of the condition
}

func grantEndings() []grantEnding {
	const over = "Approved=True Active=False Ended=True "
	change := func(patch string) func(testing.TB, *grantsRig, string) {
		return func(t testing.TB, g *grantsRig, object string) { g.patch(t, grantsPolicies, object, patch) }
	}
	return []grantEnding{
		{name: "revoked", reason: "GrantRevoked", says: "it was revoked", status: over + "Revoked", tells: "revoked",
			end: func(t testing.TB, g *grantsRig, object string) {
				g.patch(t, grantsResource, object, `{"spec":{"revoked":true}}`)
			}},
		{name: "deleted", reason: "GrantRevoked", says: "it was deleted",
			end: func(t testing.TB, g *grantsRig, object string) { g.remove(t, grantsResource, object) }},
		{name: "finalizer", reason: "GrantRevoked", says: "it was revoked", status: over + "Revoked", tells: "revoked",
			end: func(t testing.TB, g *grantsRig, object string) {
				g.patch(t, grantsResource, object, `{"metadata":{"finalizers":["example.org/slow"]}}`)
				t.Cleanup(func() {
					g.kubectlAfter(t, "patch", "taskgrant/"+object, "--type=merge", "--patch", `{"metadata":{"finalizers":null}}`)
				})
				g.remove(t, grantsResource, object)
			}},
		{name: "narrowed", reason: "GrantRevoked", says: "its policy does not allow it any more", status: over + "PolicyChanged",
			tells: `the AgentPolicy "grants-narrowed" does not allow: get configmaps in namespace grants named narrowed; watch configmaps`,
			end:   change(`{"spec":{"allow":[]}}`)},
		{name: "of-others", reason: "GrantRevoked", says: "its policy does not allow it any more", status: over + "PolicyChanged",
			tells: `the AgentPolicy "grants-of-others" is not about spiffe://example.org/ns/agents/sa/grants-ends`,
			end:   change(`{"spec":{"agents":["spiffe://example.org/ns/agents/sa/somebody"]}}`)},
		{name: "shortened", reason: "GrantRevoked", says: "its policy does not allow it any more", status: over + "PolicyChanged",
			tells: `spec.ttl: 1h0m0s is longer than the 1m0s the AgentPolicy "grants-shortened" allows`,
			end:   change(`{"spec":{"grant":{"maxTTL":"1m"}}}`)},
		{name: "policy-deleted", reason: "GrantRevoked", says: "its policy does not allow it any more", status: over + "PolicyChanged",
			tells: `the AgentPolicy "grants-policy-deleted" is gone`,
			end:   func(t testing.TB, g *grantsRig, object string) { g.remove(t, grantsPolicies, object) }},
		{name: "invalid", reason: "GrantRevoked", says: "its policy does not allow it any more", status: over + "PolicyChanged",
			tells: `the AgentPolicy "grants-invalid" grants nothing: spec.gates[0].when (gate broken)`,
			end:   change(`{"spec":{"gates":[{"name":"broken","resources":["leases"],"when":"1 +"}]}}`)},
		{name: "suspended", alone: true, reason: "PolicyDenied/Suspended", says: "Suspended", status: over + "Suspended",
			tells: `the AgentPolicy "grants-suspended" is suspended`, end: change(`{"spec":{"suspended":true}}`)},
	}
}

// TestGrantsEnd: T093. Each way to end a grant ends calls and watches within
// moments, each in its own words, and nothing else of the agent.
func TestGrantsEnd(t *testing.T) {
	g := newGrantsRig(t)
	shared, alone := g.newAgent(t, "grants-ends"), g.newAgent(t, "grants-suspended")
	for _, ending := range grantEndings() {
		t.Run(ending.name, func(t *testing.T) {
			t.Parallel()
			who := shared
			if ending.alone {
				who = alone
			}
			g.playEnding(t, who, ending)
		})
	}
}

func (g *grantsRig) playEnding(t *testing.T, who *agent, ending grantEnding) {
	object := "grants-" + ending.name
	g.seed(t, ending.name)
	g.allow(t, ending.name, who.id, openPolicy, mapRule(ending.name))
	g.give(t, object, ending.name, who.id, "1h", mapRule(ending.name))
	g.served(t, who, mapTarget(ending.name))
	watch := asFault(who).open(t, mapWatch(ending.name))
	ending.end(t, g, object)
	began := time.Now()
	got := callUntilRefused(t, who, mapTarget(ending.name), 5*time.Second)
	last := watch.last(t, 5*time.Second)
	cut := time.Since(began)
	if got.refused.reason != ending.reason || !strings.Contains(got.refused.body, ending.says) || !strings.Contains(got.refused.body, "Next: ") {
		t.Errorf("refused with %s; want %s and %q", got.refused, ending.reason, ending.says)
	}
	if got.lastSent.Sub(began) > time.Second || cut > 2*time.Second {
		t.Errorf("the last accepted call was sent %s after, the watch ended %s after", got.lastSent.Sub(began), cut)
	}
	if reason := faultEvent(t, last); reason != ending.reason || !strings.Contains(last, ending.says) {
		t.Errorf("the watch ended for %q: %s", reason, last)
	}
	if ending.status != "" {
		grant := g.until(t, object, ending.status)
		if over := grant.Status.Conditions[len(grant.Status.Conditions)-1]; !strings.Contains(over.Message, ending.tells) {
			t.Errorf("the condition %s says %q, want %q", over.Type, over.Message, ending.tells)
		}
		if _, word, _ := strings.Cut(ending.status, "Ended=True "); grant.Status.EndReason != word {
			t.Errorf("endReason is %q, want %q", grant.Status.EndReason, word)
		}
	}
	g.judgeRefusals(t, who, got.refused)
	word, _, _ := strings.Cut(ending.reason, "/")
	g.judgeCut(t, watch.auditID, word, object)
}

// TestGrantsStayEnded: what ended does not come back with what ended it, nor with
// a grant of the same name.
func TestGrantsStayEnded(t *testing.T) {
	g := newGrantsRig(t)
	who := g.newAgent(t, "grants-again")
	g.seed(t, "again")
	g.allow(t, "again", who.id, openPolicy, mapRule("again"))
	g.give(t, "grants-again", "again", who.id, "1h", mapRule("again"))
	first := g.read(t, "grants-again").UID
	g.patch(t, grantsPolicies, "grants-again", `{"spec":{"suspended":true}}`)
	g.until(t, "grants-again", "Approved=True Active=False Ended=True Suspended")
	g.patch(t, grantsPolicies, "grants-again", `{"spec":{"suspended":false}}`)
	var refused faultAnswer
	eventually(t, 5*time.Second, "the policy is no longer suspended", func() error {
		refused = asFault(who).call(t.Context(), "GET", mapTarget("again"), "")
		if refused.is("PolicyDenied") {
			return errors.New(refused.String())
		}
		return nil
	})
	if refused.reason != "GrantRevoked" || !strings.Contains(refused.body, "its policy was suspended") {
		t.Errorf("a grant whose policy was suspended for a while: %s", refused)
	}
	g.judgeRefusals(t, who, refused)

	g.remove(t, grantsResource, "grants-again")
	second := g.give(t, "grants-again", "again", who.id, "1h", mapRule("again"))
	if second.UID == first {
		t.Fatal("it is the same object")
	}
	g.served(t, who, mapTarget("again"))
	watch := asFault(who).open(t, mapWatch("again"))
	g.remove(t, grantsResource, "grants-again")
	g.give(t, "grants-again", "again", who.id, "1h", mapRule("again"))
	if last := watch.last(t, 5*time.Second); faultEvent(t, last) != "GrantRevoked" {
		t.Errorf("the watch under the grant before ended with %s", last)
	}
	g.served(t, who, mapTarget("again"))
}

// TestGrantsExpire: T094, T149. A grant serves until the second its ttl is over,
// and what goes on then is cut with a readable end.
func TestGrantsExpire(t *testing.T) {
	g := newGrantsRig(t)
	who := g.newAgent(t, "grants-expired")
	g.seed(t, "expired")
	logs := `{namespaces: [grants], apiGroups: [""], resources: [pods, pods/log], resourceNames: [web], verbs: [get, list, watch]}`
	g.allow(t, "expired", who.id, openPolicy, mapRule("expired"), logs)
	grant := g.give(t, "grants-expired", "expired", who.id, "4s", mapRule("expired"), logs)
	end := grant.Status.ExpiresAt.Time
	if life := end.Sub(grant.Status.ActiveFrom.Time); life != 4*time.Second {
		t.Errorf("a grant for 4s is active for %s", life)
	}
	g.served(t, who, mapTarget("expired"))
	watch := asFault(who).open(t, mapWatch("expired"))
	log := asFault(who).open(t, "/api/v1/namespaces/grants/pods/web/log?follow=true")
	var kubectlWatch, kubectlLogs result
	var endings [2]time.Time
	var lastLines [2]string
	var wait sync.WaitGroup
	wait.Go(func() { kubectlWatch = who.kubectl(t, "-n", "grants", "get", "pod", "web", "--watch") })
	wait.Go(func() { kubectlLogs = who.kubectl(t, "-n", "grants", "logs", "-f", "web") })
	for i, live := range []*faultWatch{watch, log} {
		wait.Go(func() {
			for lastLine := range live.lines {
				lastLines[i] = lastLine
			}
			endings[i] = time.Now()
		})
	}
	got := callUntilRefused(t, who, mapTarget("expired"), 15*time.Second)
	wait.Wait()

	// Clocks are one here; the tolerance is for the broker's, which never goes back.
	const tolerance = 50 * time.Millisecond
	if got.lastSent.After(end.Add(tolerance)) || got.at.Before(end.Add(-tolerance)) || got.at.Sub(end) > time.Second {
		t.Errorf("it ended at %s; the last accepted call was sent %s after, the first refusal came %s after", end, got.lastSent.Sub(end), got.at.Sub(end))
	}
	if got.refused.reason != "GrantExpired" || !strings.Contains(got.refused.body, "has expired. Next: echo '") {
		t.Errorf("refused with %s", got.refused)
	}
	for i, name := range []string{"watch", "log"} {
		if late := endings[i].Sub(end); late < -tolerance || late > time.Second {
			t.Errorf("T094: the %s ended %s after the grant", name, late)
		}
		t.Logf("T094: the %s ended %s after the grant", name, endings[i].Sub(end).Round(time.Millisecond))
	}
	if reason := faultEvent(t, lastLines[0]); reason != "GrantExpired" {
		t.Errorf("the watch ended with %s", lastLines[0])
	}
	if !strings.Contains(lastLines[1], "taskgate: this log was cut: [taskgate:GrantExpired] the grant grants-expired") {
		t.Errorf("T149: the log ended with %q", lastLines[1])
	}
	if text := kubectlWatch.stdout + kubectlWatch.stderr; !strings.Contains(text, "[taskgate:GrantExpired]") {
		t.Errorf("kubectl get --watch ended with %s", kubectlWatch)
	}
	if !strings.Contains(kubectlLogs.stdout, "[taskgate:GrantExpired]") {
		t.Errorf("kubectl logs -f ended with %s", kubectlLogs)
	}
	ended := g.until(t, "grants-expired", "Approved=True Active=False Ended=True Expired")
	if ended.Status.EndReason != "Expired" {
		t.Errorf("endReason is %q", ended.Status.EndReason)
	}
	g.judgeRefusals(t, who, got.refused)
	g.judgeCut(t, watch.auditID, "GrantExpired", "grants-expired")
	g.judgeCut(t, log.auditID, "GrantExpired", "grants-expired")
}
