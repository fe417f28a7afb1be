package e2e_test

import (
	"fmt"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Agents of these tests never call: only what becomes of their grants counts.
const (
	grantsAnybody = "spiffe://example.org/ns/grants/sa/*"
	grantsSomeone = "spiffe://example.org/ns/grants/sa/someone"
	grantsCeiling = `{namespaces: [grants], apiGroups: [""], resources: [pods], verbs: [get, list]}`
)

const (
	grantsActive  = "Approved=True Active=True Ended=False Active"
	grantsWaits   = "Approved=Unknown Active=False Ended=False "
	grantsOutside = "Approved=False Active=False Ended=True OutsidePolicy"
	grantsLimit   = "Approved=False Active=False Ended=True LimitReached"
	grantsOver    = "Approved=True Active=False Ended=True LimitReached"
)

// TestGrantsCeiling: what lies outside the policy is denied for good, and the
// status says what is missing.
func TestGrantsCeiling(t *testing.T) {
	g := newGrantsRig(t)
	g.allow(t, "ceiling", grantsAnybody, openPolicy, grantsCeiling,
		`{namespaces: [grants], apiGroups: [""], resources: [configmaps], resourceNames: [one], verbs: [get]}`,
		`{namespaces: [grants], apiGroups: [""], resources: [pods/exec], verbs: [create], commands: [[nginx, -t]], stdin: false}`)
	pods := func(verb string) string {
		return `{namespaces: [grants], apiGroups: [""], resources: [pods], verbs: [` + verb + `]}`
	}
	const lacks = `the AgentPolicy "grants-ceiling" does not allow: `
	for i, r := range []struct {
		name, agent, ttl, rules string
		says                    string // "" where it is granted
	}{
		{name: "exactly the ceiling", rules: grantsCeiling},
		{name: "a verb more", rules: pods("get, delete"), says: lacks + "delete pods in namespace grants"},
		{name: "every verb", rules: pods(`"*"`), says: lacks + "* pods in namespace grants"},
		{name: "a namespace more", rules: `{namespaces: [grants, default], apiGroups: [""], resources: [pods], verbs: [get]}`, says: lacks + "get pods in namespace default"},
		{name: "every namespace", rules: `{namespaces: ["*"], apiGroups: [""], resources: [pods], verbs: [get]}`, says: lacks + "get pods in namespace *"},
		{name: "a group more", rules: `{namespaces: [grants], apiGroups: ["", apps], resources: [pods], verbs: [get]}`, says: lacks + "get pods.apps in namespace grants"},
		{name: "a subresource", rules: `{namespaces: [grants], apiGroups: [""], resources: [pods/log], verbs: [get]}`, says: lacks + "get pods/log in namespace grants"},
		{name: "every name", rules: `{namespaces: [grants], apiGroups: [""], resources: [configmaps], verbs: [get]}`, says: lacks + "get configmaps in namespace grants"},
		{name: "another name", rules: mapRule("two"), says: lacks + "get configmaps in namespace grants named two"},
		{name: "any command", rules: `{namespaces: [grants], apiGroups: [""], resources: [pods/exec], verbs: [create], stdin: false}`, says: lacks + "create pods/exec in namespace grants"},
		{name: "with input", rules: `{namespaces: [grants], apiGroups: [""], resources: [pods/exec], verbs: [create], commands: [[nginx, -t]]}`, says: lacks + "create pods/exec in namespace grants"},
		{name: "longer", ttl: "4h1s", rules: pods("get"), says: `spec.ttl: 4h0m1s is longer than the 4h0m0s the AgentPolicy "grants-ceiling" allows`},
		{name: "as long as may be", ttl: "4h", rules: pods("get")},
		{name: "another agent", agent: "spiffe://example.org/ns/others/sa/someone", rules: pods("get"), says: `the AgentPolicy "grants-ceiling" is not about spiffe://example.org/ns/others/sa/someone`},
		{name: "T009 an agent below", agent: grantsSomeone + "/x", rules: pods("get"), says: `is not about`},
		{name: "T006 a twin elsewhere", agent: "spiffe://other.example/ns/grants/sa/someone", rules: pods("get"), says: `is not about`},
		{name: "no SPIFFE ID", agent: "spiffe://example.org/ns/grants/sa/..", rules: pods("get"), says: "spec.agent: "},
	} {
		name, want := fmt.Sprintf("grants-ceiling-%d", i), grantsOutside
		if r.says == "" {
			want = grantsActive
		}
		g.create(t, grantsResource, grantManifest(name, "grants-ceiling", orDefault(r.agent, grantsSomeone), orDefault(r.ttl, "1h"), r.rules))
		grant := g.until(t, name, want)
		for _, condition := range grant.Status.Conditions {
			if !strings.Contains(condition.Message, r.says) || condition.ObservedGeneration != grant.Generation {
				t.Errorf("%s: %s of generation %d says %q, want %q of %d", r.name, condition.Type, condition.ObservedGeneration, condition.Message, r.says, grant.Generation)
			}
		}
		if r.says != "" && (grant.Status.ActiveFrom != nil || grant.Status.ExpiresAt != nil || grant.Status.EndReason != "") {
			t.Errorf("%s: a denied grant has the status %+v", r.name, grant.Status)
		}
	}
}

// TestGrantsColumns: what an operator sees.
func TestGrantsColumns(t *testing.T) {
	g := newGrantsRig(t)
	g.allow(t, "columns", grantsAnybody, openPolicy, grantsCeiling)
	grant := g.give(t, "grants-columns", "columns", grantsSomeone, "1h", grantsCeiling)
	row := func(arguments ...string) (header, line string) {
		t.Helper()
		lines := strings.Split(strings.TrimSpace(g.admin(t, arguments...)), "\n")
		for i, text := range lines {
			lines[i] = strings.Join(regexp.MustCompile(`\s{2,}`).Split(strings.TrimSpace(text), -1), "|")
		}
		if len(lines) != 2 {
			t.Fatalf("%v printed %q", arguments, lines)
		}
		return lines[0], lines[1]
	}
	expires := grant.Status.ExpiresAt.UTC().Format("2006-01-02T15:04:05.000000Z")
	header, line := row("get", "taskgrants", "grants-columns")
	if header != "NAME|TASK|AGENT|ACTIVE|REASON|EXPIRES|AGE" || !strings.HasPrefix(line, "grants-columns|task grants-columns|"+grantsSomeone+"|True|Active|"+expires+"|") {
		t.Errorf("kubectl get taskgrants prints\n%s\n%s", header, line)
	}
	header, line = row("get", "tg", "grants-columns", "--output=wide")
	if header != "NAME|TASK|AGENT|ACTIVE|REASON|EXPIRES|AGE|POLICY|REQUESTED-BY" || !strings.Contains(line, "|grants-columns") {
		t.Errorf("kubectl get tg -o wide prints\n%s\n%s", header, line)
	}
	g.patch(t, grantsResource, "grants-columns", revokeAndResume)
	g.until(t, "grants-columns", "Approved=True Active=False Ended=True Revoked")
	if _, line = row("get", "tg", "grants-columns"); !strings.Contains(line, "|False|Revoked|"+expires) {
		t.Errorf("of a revoked grant kubectl prints %s", line)
	}
	if all := g.admin(t, "get", "taskgate", "--output=name"); !strings.Contains(all, "taskgrant.taskgate.dev/grants-columns") || !strings.Contains(all, "agentpolicy.taskgate.dev/grants-columns") {
		t.Errorf("kubectl get taskgate prints %s", all)
	}
}

// TestGrantsLimits: how many grants an agent may hold, and be given in a day.
func TestGrantsLimits(t *testing.T) {
	if left := time.Until(time.Now().UTC().Truncate(24 * time.Hour).Add(24 * time.Hour)); left < time.Minute {
		t.Skip("a new day is about to begin, and the grants of this one would not count")
	}
	g := newGrantsRig(t)
	g.allow(t, "active", grantsAnybody, "grant: {maxTTL: 4h, approval: None, maxActive: 1}", grantsCeiling)
	ask := func(policy, name, agent, want string) string {
		t.Helper()
		g.create(t, grantsResource, grantManifest(name, "grants-"+policy, agent, "1h", grantsCeiling))
		return g.until(t, name, want).Status.Conditions[0].Message
	}
	const another = "spiffe://example.org/ns/grants/sa/another"
	ask("active", "grants-active-1", grantsSomeone, grantsActive)
	g.settle(t, grantsSomeone)
	if says := ask("active", "grants-active-2", grantsSomeone, grantsLimit); !strings.Contains(says, `the agent holds 1 active grants under the AgentPolicy "grants-active", which allows 1 (maxActive)`) {
		t.Errorf("maxActive: the condition says %q", says)
	}
	ask("active", "grants-active-3", another, grantsActive)
	g.patch(t, grantsResource, "grants-active-1", revokeAndResume)
	g.until(t, "grants-active-1", "Approved=True Active=False Ended=True Revoked")
	ask("active", "grants-active-4", grantsSomeone, grantsActive)
	g.until(t, "grants-active-2", grantsLimit) // what was denied does not come back

	g.allow(t, "day", grantsAnybody, "grant: {maxTTL: 4h, approval: None, perDay: 2}", grantsCeiling)
	for i := range 2 {
		name := fmt.Sprintf("grants-day-%d", i)
		ask("day", name, grantsSomeone, grantsActive)
		g.settle(t, grantsSomeone)
		g.remove(t, grantsResource, name) // deleting does not give it back
	}
	if says := ask("day", "grants-day-3", grantsSomeone, grantsLimit); !strings.Contains(says, `the agent was given 2 grants under the AgentPolicy "grants-day" today, which allows 2 (perDay)`) {
		t.Errorf("perDay: the condition says %q", says)
	}
	ask("day", "grants-day-4", another, grantsActive)
}

// settle lets the brokers read what they wrote themselves: they count grants as
// their watch shows them.
func (g *grantsRig) settle(t testing.TB, agent string) {
	t.Helper()
	name := fmt.Sprintf("grants-settle-%d", time.Now().UnixNano())
	g.create(t, grantsResource, grantManifest(name, "grants-nowhere", agent, "1h", grantsCeiling))
	g.until(t, name, grantsWaits+"PolicyMissing")
}

// TestGrantsLimitsAtOnce: the limits hold for grants that are asked for at the
// same time, too.
func TestGrantsLimitsAtOnce(t *testing.T) {
	g := newGrantsRig(t)
	for _, limit := range []string{"maxActive", "perDay"} {
		policy := strings.ToLower(limit)
		g.allow(t, policy, grantsAnybody, fmt.Sprintf("grant: {maxTTL: 4h, approval: None, %s: 1}", limit), grantsCeiling)
		const asked = 8
		var wait sync.WaitGroup
		for i := range asked {
			object := grantsObject(t, grantManifest(fmt.Sprintf("grants-%s-%d", policy, i), "grants-"+policy, grantsSomeone, "1h", grantsCeiling))
			wait.Go(func() {
				if _, err := g.client(grantsResource).Create(t.Context(), object, metav1.CreateOptions{}); err != nil {
					t.Error(err)
				}
			})
			g.removeAfter(t, grantsResource, fmt.Sprintf("grants-%s-%d", policy, i))
		}
		wait.Wait()
		eventually(t, 10*time.Second, "exactly one is active, and all others are judged", func() error {
			states := map[string]int{}
			for i := range asked {
				grant := g.read(t, fmt.Sprintf("grants-%s-%d", policy, i))
				states[conditionsOf(&grant)]++
			}
			if states[grantsActive] != 1 || states[grantsLimit]+states[grantsOver] != asked-1 {
				return fmt.Errorf("%s: 1: of %d that were asked for at once: %v", limit, asked, states)
			}
			return nil
		})

	}
}
