package broker

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/taskgate/taskgate/authz"
)

// question is about alpha, who is under the policies and holds the grants.
func question(t *testing.T, c *authz.Call, policies []*authz.Policy, grants ...*authz.Grant) *authz.Question {
	t.Helper()
	index, err := authz.NewIndex(authz.Boundary{})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range policies {
		if err := index.PutPolicy(p); err != nil {
			t.Fatal(err)
		}
	}
	for _, g := range grants {
		if err := index.PutGrant(g); err != nil {
			t.Fatal(err)
		}
	}
	set, err := index.Pin(spiffeid.RequireFromString(alphaID)).Set()
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	return &authz.Question{Set: set, Call: c, Now: now, FreshUntil: now.Add(time.Minute)}
}

func refusalOf(t *testing.T, q *authz.Question) string {
	t.Helper()
	d := authz.Decide(*q)
	if d.Verdict == authz.Allow {
		t.Fatal("allowed")
	}
	return undecided(&d, q).Error()
}

// TestNextStep is what an agent without a grant reads.
func TestNextStep(t *testing.T) {
	ceiling := authz.Rule{Namespaces: []string{"shop"}, APIGroups: []string{"", "apps"}, Resources: []string{"pods", "deployments"}, Verbs: []string{"get", "list"}}
	redacted := authz.Rule{Namespaces: []string{"shop"}, APIGroups: []string{""}, Resources: []string{"secrets"}, Verbs: []string{"get"}, Redacted: true}
	shop := &authz.Policy{Name: "shop", Agents: []string{alphaID}, Allow: []authz.Rule{ceiling, redacted}, MaxTTL: 20 * time.Minute}
	one := *shop
	one.Limits.MaxActive = 1
	held := &authz.Grant{
		Name: "inc-1", UID: "u", Agent: alphaID, Task: "INC-1", Policy: "shop", TTL: time.Hour, Active: true, ActiveFrom: time.Now(), ExpiresAt: time.Now().Add(time.Hour),
		Rules: []authz.Rule{{Namespaces: []string{"shop"}, APIGroups: []string{""}, Resources: []string{"pods"}, Verbs: []string{"list"}}},
	}
	waits := *held
	waits.Active, waits.Pending = false, true
	pod := &authz.Call{Verb: authz.Get, Resource: "pods", Namespace: "shop", Name: "web-0"}
	const podRule = `{"namespaces":["shop"],"apiGroups":[""],"resources":["pods"],"resourceNames":["web-0"],"verbs":["get"]}`
	command := func(rule string) string {
		return `echo '{"apiVersion":"taskgate.dev/v1alpha1","kind":"TaskGrant","metadata":{"generateName":"task-"},"spec":{"task":"TASK","ttl":"20m","policy":"shop","rules":[` + rule + `]}}' | kubectl create -f -`
	}
	for _, row := range []struct {
		name string
		q    *authz.Question
		want []string
	}{
		{"no grant", question(t, pod, []*authz.Policy{shop}), []string{`[taskgate:NoGrant] no active grant allows you to get pods "web-0" in namespace "shop". Next: ` + command(podRule) + `; write your task for TASK`}},
		{"outside", question(t, pod, []*authz.Policy{shop}, held), []string{"[taskgate:OutsideGrant] your grants do not allow you to get", "Next: " + command(podRule)}},
		{"outside, and no room", question(t, pod, []*authz.Policy{&one}, held), []string{"Next: first kubectl delete taskgrant inc-1 (1 at a time), then " + command(podRule)}},
		{"masked secrets", question(t, &authz.Call{Verb: authz.Get, Resource: "secrets", Namespace: "shop", Name: "db"}, []*authz.Policy{shop}),
			[]string{command(`{"namespaces":["shop"],"apiGroups":[""],"resources":["secrets"],"resourceNames":["db"],"verbs":["get"],"values":"Redacted"}`)}},
		{"not in the ceiling", question(t, &authz.Call{Verb: authz.Delete, Resource: "pods", Namespace: "shop", Name: "web-0"}, []*authz.Policy{shop}), []string{"Your AgentPolicies (shop) allow no TaskGrant for it. Next: do without it, or ask an operator"}},
		{"no policy", question(t, pod, nil), []string{"No AgentPolicy is about you. Next: tell an operator who you are (kubectl auth whoami)"}},
		{"waiting", question(t, &authz.Call{Verb: authz.List, Resource: "pods", Namespace: "shop"}, []*authz.Policy{shop}, &waits), []string{"[taskgate:GrantPending]", "Next: kubectl wait --for=condition=Active taskgrant/inc-1 --timeout=15m, then repeat the same command"}},
	} {
		got := refusalOf(t, row.q)
		for _, want := range row.want {
			if !strings.Contains(got, want) {
				t.Errorf("%s:\n got %s\nwant %s", row.name, got, want)
			}
		}
		if len(got) > 700 {
			t.Errorf("%s: %d characters: %s", row.name, len(got), got)
		}
	}
}

// TestNoShell: a name that means something to a shell is never in a command that
// is meant to be pasted.
func TestNoShell(t *testing.T) {
	everything := authz.Rule{Namespaces: []string{"*"}, APIGroups: []string{"*"}, Resources: []string{"*"}, Verbs: []string{"*"}}
	policy := &authz.Policy{Name: "all", Agents: []string{alphaID}, Allow: []authz.Rule{everything}}
	for char := range 128 {
		for _, c := range []*authz.Call{
			{Verb: authz.Get, Resource: "clusterroles", Name: "a" + string(rune(char)) + "b"}, {Verb: authz.Get, Resource: "pods", Namespace: "a" + string(rune(char))}, {Verb: authz.Get, Resource: "a" + string(rune(char)), Group: "g"},
		} {
			got := refusalOf(t, question(t, c, []*authz.Policy{policy}))
			_, command, found := strings.Cut(got, "echo '")
			harmless := !strange(string(rune(char)))
			if found != harmless {
				t.Errorf("%q: %s", rune(char), got)
			}
			if encoded, _, _ := strings.Cut(command, "' | kubectl"); found && !json.Valid([]byte(encoded)) {
				t.Errorf("%q: %s", rune(char), encoded)
			}
		}
	}
	if strange("system:node-x.y/Z_1*") || !strange("a'b") || !strange("$(x)") || !strange("a b") || !strange("é") {
		t.Error("strange")
	}
}

func TestShort(t *testing.T) {
	for d, want := range map[time.Duration]string{30 * time.Minute: "30m", 4 * time.Hour: "4h", 90 * time.Second: "1m30s", 10*time.Hour + 10*time.Minute: "10h10m", time.Second: "1s"} {
		if got := short(d); got != want {
			t.Errorf("%s: %s", d, got)
		}
	}
}
