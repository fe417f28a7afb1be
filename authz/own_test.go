package authz_test

import (
	"fmt"
	"testing"

	"github.com/taskgate/taskgate/authz"
)

// TestOffer says what an agent is told to ask for.
func TestOffer(t *testing.T) {
	secrets := rule("get,list", "shop", "", "secrets")
	secrets.Redacted = true
	named := rule("get", "shop", "", "configmaps")
	named.ResourceNames = []string{"settings"}
	builder := rule("create", "shop", "", "pods")
	builder.ServiceAccounts = []string{"builder"}
	w := world{
		boundary: authz.Boundary{Namespaces: []string{"taskgate-system"}},
		policies: []*authz.Policy{
			{Name: "a-broken", Agents: []string{alpha}, Allow: []authz.Rule{everything}, Invalid: "x"},
			{Name: "b-shop", Agents: []string{alpha}, Allow: []authz.Rule{rule("get,delete", "shop", "", "pods"), secrets, named, builder}},
			{Name: "c-bank", Agents: []string{alpha}, Allow: []authz.Rule{rule("*", "bank,taskgate-system", "*", "*"), rule("list", "*", "", "nodes"), rule("patch,create", "bank", "", "leases")}},
			{Name: "d-else", Agents: []string{"spiffe://example.org/ns/agents/sa/beta"}, Allow: []authz.Rule{everything}},
		},
	}
	set := w.set(t, alpha)
	apply := call("patch bank:leases x")
	apply.Creates = true
	asBuilder := call("create shop:pods")
	asBuilder.ServiceAccount = "builder"
	for _, row := range []struct {
		call *authz.Call
		want string
	}{
		{call("get shop:pods web-0"), "b-shop [shop] [] [pods] [get] [web-0]"},
		{call("delete bank:deployments.apps/scale web"), "c-bank [bank] [apps] [deployments/scale] [delete] [web]"},
		{call("list nodes"), "c-bank [*] [] [nodes] [list] []"},
		{call("get shop:secrets db"), "b-shop [shop] [] [secrets] [get] [db] redacted"},
		{call("get shop:configmaps settings"), "b-shop [shop] [] [configmaps] [get] [settings]"},
		{apply, "c-bank [bank] [] [leases] [patch create] []"},
		{asBuilder, "b-shop [shop] [] [pods] [create] [] as [builder]"},
		{call("get shop:configmaps else"), ""},
		{call("list shop:pods"), ""},
		{call("list pods"), ""},
		{call("get taskgate-system:pods x"), ""}, // never, whatever the ceiling says
		{call("get /metrics"), ""},
	} {
		got := ""
		if offer, found := set.Offer(row.call); found {
			r := offer.Rule
			groups := r.APIGroups
			if groups[0] == "" {
				groups = nil
			}
			got = fmt.Sprintf("%s %v %v %v %v %v", offer.Policy.Name, r.Namespaces, groups, r.Resources, r.Verbs, r.ResourceNames)
			if r.Redacted {
				got += " redacted"
			}
			if r.ServiceAccounts != nil {
				got += fmt.Sprintf(" as %v", r.ServiceAccounts)
			}
			// What is offered would let the call pass.
			g := grant("offered", r)
			g.Policy = offer.Policy.Name
			granted := w
			granted.grants = []*authz.Grant{g}
			if d := decide(t, granted, row.call); d.Reason != "" && d.Reason != authz.ApprovalRequired {
				t.Errorf("%v: with what was offered it is %s", row.call, outcome(d))
			}
		}
		if got != row.want {
			t.Errorf("%+v:\n got %s\nwant %s", row.call, got, row.want)
		}
	}
}

// TestReleasedGrant is as if it had never been: the agent is to ask anew.
func TestReleasedGrant(t *testing.T) {
	g := with(grant("g", everything), func(g *authz.Grant) { g.EndReason = authz.EndReleased })
	w := world{policies: []*authz.Policy{shop()}, grants: []*authz.Grant{g}}
	if got := outcome(decide(t, w, call("get shop:pods web-0"))); got != "deny NoGrant" {
		t.Error(got)
	}
}
