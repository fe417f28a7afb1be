package authz_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/taskgate/taskgate/authz"
)

var noon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

const alpha = "spiffe://example.org/ns/agents/sa/alpha"

// rules

func rule(verbs, namespaces, groups, resources string) authz.Rule {
	return authz.Rule{
		Verbs: strings.Split(verbs, ","), Namespaces: strings.Split(namespaces, ","),
		APIGroups: strings.Split(groups, ","), Resources: strings.Split(resources, ","),
	}
}

var everything = rule("*", "*", "*", "*")

// shop is the policy most rows are about.
func shop() *authz.Policy {
	return &authz.Policy{
		Name: "shop", Agents: []string{"spiffe://example.org/ns/agents/sa/*"},
		Allow: []authz.Rule{everything},
	}
}

// grant is active from 11:30 to 12:30.
func grant(name string, rules ...authz.Rule) *authz.Grant {
	return &authz.Grant{
		Name: name, UID: "uid-" + name, Agent: alpha, Task: "INC-1", Policy: "shop", Rules: rules,
		TTL: time.Hour, Active: true, ActiveFrom: noon.Add(-30 * time.Minute), ExpiresAt: noon.Add(30 * time.Minute),
	}
}

func with(g *authz.Grant, change func(*authz.Grant)) *authz.Grant { change(g); return g }

// world is an index made for one row.
type world struct {
	policies []*authz.Policy
	grants   []*authz.Grant
	boundary authz.Boundary
}

func (w world) index(t testing.TB) *authz.Index {
	t.Helper()
	index, err := authz.NewIndex(w.boundary)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range w.policies {
		if err := index.PutPolicy(p); err != nil {
			t.Fatal(err)
		}
	}
	for _, g := range w.grants {
		if err := index.PutGrant(g); err != nil {
			t.Fatal(err)
		}
	}
	return index
}

func (w world) set(t testing.TB, agent string) *authz.Set {
	t.Helper()
	set, err := w.index(t).Pin(spiffeid.RequireFromString(agent)).Set()
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// call reads "verb [namespace/]resource[.group][/subresource] [name]", or
// "get /path".
func call(text string) *authz.Call {
	fields := strings.Fields(text)
	c := &authz.Call{Verb: authz.ParseVerb(fields[0])}
	if strings.HasPrefix(fields[1], "/") {
		c.Path = fields[1]
		return c
	}
	target := fields[1]
	if namespace, rest, found := strings.Cut(target, ":"); found {
		c.Namespace, target = namespace, rest
	}
	target, c.Subresource, _ = strings.Cut(target, "/")
	c.Resource, c.Group, _ = strings.Cut(target, ".")
	if len(fields) > 2 {
		c.Name = fields[2]
	}
	return c
}

func decide(t testing.TB, w world, c *authz.Call) authz.Decision {
	t.Helper()
	return authz.Decide(authz.Question{Set: w.set(t, alpha), Call: c, Now: noon, FreshUntil: noon.Add(time.Second)})
}

// outcome writes a decision as the tables do.
func outcome(d authz.Decision) string {
	text := map[authz.Verdict]string{authz.Deny: "deny", authz.NeedsApproval: "wait", authz.Allow: "allow"}[d.Verdict]
	if d.Self {
		text += " self"
	}
	if d.Reason != "" {
		text += " " + string(d.Reason)
	}
	if d.Cause != "" {
		text += "/" + d.Cause
	}
	if d.Gate != nil {
		text += " " + d.Gate.Name
	}
	if d.Waived != "" {
		text += " waived:" + d.Waived
	}
	if d.Verdict != authz.Deny && d.Rule != nil && !d.Values {
		text += " masked"
	}
	return text
}

// TestDecide is the policy: who may do what, in the words of the documents.
func TestDecide(t *testing.T) {
	reader := world{policies: []*authz.Policy{shop()}, grants: []*authz.Grant{
		grant("read", rule("get,list,watch", "shop", ",apps", "pods,pods/log,deployments,namespaces")),
	}}
	writer := world{policies: []*authz.Policy{shop()}, grants: []*authz.Grant{
		grant("write", rule("update,patch", "shop", "", "configmaps,namespaces")),
	}}
	all := world{policies: []*authz.Policy{shop()}, grants: []*authz.Grant{grant("all", everything)},
		boundary: authz.Boundary{Namespaces: []string{"taskgate-system", "spire"}}}
	none := world{policies: []*authz.Policy{shop()}}
	stranger := world{policies: []*authz.Policy{{Name: "other", Agents: []string{"spiffe://example.org/ns/agents/sa/beta"}, Allow: []authz.Rule{everything}}}}
	stopped := world{policies: []*authz.Policy{shop(), {Name: "stop", Agents: []string{alpha}, Suspended: true}}}

	rows := []struct {
		world world
		call  string
		want  string
	}{
		// a grant covers what it says
		{reader, "get shop:pods web-0", "allow"},
		{reader, "list shop:pods", "allow"},
		{reader, "watch shop:deployments.apps", "allow"},
		{reader, "get shop:pods/log web-0", "allow"},
		{reader, "get shop:namespaces shop", "allow"},
		// … and nothing else
		{reader, "delete shop:pods web-0", "deny OutsideGrant"},
		{reader, "get bank:pods web-0", "deny OutsideGrant"},
		{reader, "list pods", "deny OutsideGrant"},
		{reader, "get shop:deployments.extensions web", "deny OutsideGrant"},
		{reader, "get shop:pods.metrics.k8s.io web-0", "deny OutsideGrant"},
		{reader, "get shop:pods/status web-0", "deny OutsideGrant"},
		{reader, "get shop:namespaces.apps shop", "allow"}, // what the rule says; the API server has no such thing
		{reader, "get /metrics", "deny OutsideGrant"},
		{reader, "get /healthz", "deny OutsideGrant"},
		{reader, "get /", "deny OutsideGrant"},
		{reader, "get /api/v1/x", "deny OutsideGrant"},
		{reader, "get /openapi/v4", "deny OutsideGrant"},
		{reader, "get /versions", "deny OutsideGrant"},
		{reader, "create /version", "deny OutsideGrant"},
		// a resource does not bring its subresources
		{writer, "update shop:namespaces/finalize shop", "deny OutsideGrant"},
		{writer, "patch shop:namespaces/status shop", "deny OutsideGrant"},
		{writer, "update shop:configmaps c", "allow"},
		// discovery and self reviews need no grant
		{none, "get /version", "allow"},
		{none, "get /api", "allow"},
		{none, "get /api/v1", "allow"},
		{none, "get /apis", "allow"},
		{none, "get /apis/apps", "allow"},
		{none, "get /apis/apps/v1", "allow"},
		{none, "get /openapi/v2", "allow"},
		{none, "get /openapi/v3", "allow"},
		{none, "get /openapi/v3/apis/apps/v1", "allow"},
		{none, "create selfsubjectaccessreviews.authorization.k8s.io", "allow self"},
		{none, "create selfsubjectrulesreviews.authorization.k8s.io", "allow self"},
		{none, "create selfsubjectreviews.authentication.k8s.io", "allow self"},
		{none, "get shop:pods web-0", "deny NoGrant"},
		{none, "get /metrics", "deny NoGrant"},
		// never, whatever the grant says
		{all, "get nodes/proxy n1", "deny PolicyDenied/Proxy"},
		{all, "create shop:pods/proxy web-0", "deny PolicyDenied/Proxy"},
		{all, "get shop:services/proxy web", "deny PolicyDenied/Proxy"},
		{all, "create shop:serviceaccounts/token x", "deny PolicyDenied/TokenRequest"},
		{all, "update certificatesigningrequests.certificates.k8s.io/approval x", "deny PolicyDenied/CertificateApproval"},
		{all, "create tokenreviews.authentication.k8s.io", "deny PolicyDenied/Review"},
		{all, "create subjectaccessreviews.authorization.k8s.io", "deny PolicyDenied/Review"},
		{all, "create shop:localsubjectaccessreviews.authorization.k8s.io", "deny PolicyDenied/Review"},
		{all, "update approvals.taskgate.dev/status x", "deny PolicyDenied/OwnObjects"},
		{all, "create approvals.taskgate.dev", "deny PolicyDenied/OwnObjects"},
		{all, "delete approvals.taskgate.dev x", "deny PolicyDenied/OwnObjects"},
		{all, "get approvals.taskgate.dev/status x", "deny PolicyDenied/OwnObjects"},
		{all, "update taskgrants.taskgate.dev x", "deny PolicyDenied/OwnObjects"},
		{all, "patch taskgrants.taskgate.dev x", "deny PolicyDenied/OwnObjects"},
		{all, "create taskgrants.taskgate.dev x", "deny PolicyDenied/OwnObjects"},
		{all, "create taskgrants.taskgate.dev/status x", "deny PolicyDenied/OwnObjects"},
		{all, "deletecollection taskgrants.taskgate.dev", "deny PolicyDenied/OwnObjects"},
		{all, "get shop:taskgrants.taskgate.dev x", "deny PolicyDenied/OwnObjects"},
		{all, "get agentpolicies.taskgate.dev shop", "deny PolicyDenied/OwnObjects"},
		{all, "list decisions.taskgate.dev", "deny PolicyDenied/OwnObjects"},
		{all, "create decisions.taskgate.dev", "deny PolicyDenied/OwnObjects"},
		// an agent's own grants and approvals, with and without a grant
		{all, "create taskgrants.taskgate.dev", "allow self"},
		{none, "create taskgrants.taskgate.dev", "allow self"},
		{none, "get taskgrants.taskgate.dev x", "allow self"},
		{none, "list taskgrants.taskgate.dev", "allow self"},
		{none, "watch taskgrants.taskgate.dev", "allow self"},
		{none, "delete taskgrants.taskgate.dev x", "allow self"},
		{none, "get approvals.taskgate.dev x", "allow self"},
		{none, "list approvals.taskgate.dev", "allow self"},
		{none, "watch approvals.taskgate.dev", "allow self"},
		{none, "get taskgrants.taskgate.example x", "deny NoGrant"},
		// … of whom no policy is about: nothing to ask for, nothing to wait for
		{stranger, "create taskgrants.taskgate.dev", "deny NoGrant/NoPolicy"},
		{stranger, "watch taskgrants.taskgate.dev", "deny NoGrant/NoPolicy"},
		{stranger, "watch approvals.taskgate.dev", "deny NoGrant/NoPolicy"},
		{stranger, "list taskgrants.taskgate.dev", "allow self"},
		{stranger, "delete taskgrants.taskgate.dev x", "allow self"},
		// … and of whom one policy is suspended
		{stopped, "list taskgrants.taskgate.dev", "deny PolicyDenied/Suspended"},
		{stopped, "create taskgrants.taskgate.dev", "deny PolicyDenied/Suspended"},
		{stopped, "delete taskgrants.taskgate.dev x", "deny PolicyDenied/Suspended"},
		{all, "get taskgate-system:configmaps x", "deny PolicyDenied/ProtectedNamespace"},
		{all, "delete taskgate-system:namespaces taskgate-system", "deny PolicyDenied/ProtectedNamespace"},
		{all, "get spire:pods x", "deny PolicyDenied/ProtectedNamespace"},
		{all, "list clusterspiffeids.spire.spiffe.io", "deny PolicyDenied/SPIRERegistration"},
		{all, "get mutatingwebhookconfigurations.admissionregistration.k8s.io x", "deny PolicyDenied/AdmissionConfiguration"},
		{all, "create apiservices.apiregistration.k8s.io", "deny PolicyDenied/APIService"},
		{all, "delete agents:networkpolicies.networking.k8s.io deny-all", "deny PolicyDenied/NetworkPolicy"},
		{all, "patch agents:ciliumnetworkpolicies.cilium.io deny-all", "deny PolicyDenied/NetworkPolicy"},
		{all, "get agents:networkpolicies.networking.k8s.io deny-all", "allow"},
		// the built-in gates; * gives none of them away
		{all, "delete shop:namespaces shop", "wait ApprovalRequired namespace-delete"},
		{all, "update shop:namespaces/finalize shop", "wait ApprovalRequired namespace-delete"},
		{all, "deletecollection shop:pods", "wait ApprovalRequired deletecollection"},
		{all, "create shop:pods/exec web-0", "wait ApprovalRequired exec"},
		{all, "create shop:pods/attach web-0", "wait ApprovalRequired exec"},
		{all, "create shop:pods/portforward web-0", "wait ApprovalRequired port-forward"},
		{all, "patch shop:pods/ephemeralcontainers web-0", "wait ApprovalRequired debug"},
		{all, "get shop:secrets db", "wait ApprovalRequired secret-values"},
		{all, "list secrets", "wait ApprovalRequired secret-values"},
		{all, "watch shop:secrets", "wait ApprovalRequired secret-values"},
		{all, "patch shop:secrets db", "wait ApprovalRequired secret-values"},
		{all, "create shop:secrets", "allow"},
		{all, "create clusterrolebindings.rbac.authorization.k8s.io", "wait ApprovalRequired rbac"},
		{all, "get clusterroles.rbac.authorization.k8s.io x", "allow"},
		{all, "update customresourcedefinitions.apiextensions.k8s.io x", "wait ApprovalRequired crd"},
		{all, "create persistentvolumes", "wait ApprovalRequired pv"},
		{all, "patch nodes n1", "wait ApprovalRequired node"},
		{all, "patch nodes/status n1", "wait ApprovalRequired node"},
		{all, "get shop:pods web-0", "allow"},
		{all, "get shop:secrets.example.com db", "allow"}, // another group's secrets are not Secrets
		// a verb nobody knows
		{all, "impersonate users alice", "deny BadPath"},
	}
	for _, row := range rows {
		if got := outcome(decide(t, row.world, call(row.call))); got != row.want {
			t.Errorf("%s: got %q, want %q", row.call, got, row.want)
		}
	}
}

// TestGrantStanding says what the agent hears about a grant that would have
// covered the call.
func TestGrantStanding(t *testing.T) {
	pods := rule("get", "shop", "", "pods")
	rows := []struct {
		name   string
		grant  *authz.Grant
		policy func(*authz.Policy)
		want   string
	}{
		{"active", grant("g", pods), nil, "allow"},
		{"ends now", with(grant("g", pods), func(g *authz.Grant) { g.ExpiresAt = noon }), nil, "deny GrantExpired"},
		{"a nanosecond is left", with(grant("g", pods), func(g *authz.Grant) { g.ExpiresAt = noon.Add(1) }), nil, "allow"},
		{"status says longer than the ttl", with(grant("g", pods), func(g *authz.Grant) {
			g.TTL, g.ExpiresAt = 10*time.Minute, noon.Add(time.Hour)
		}), nil, "deny GrantExpired"},
		{"no ttl", with(grant("g", pods), func(g *authz.Grant) { g.TTL = 0 }), nil, "deny GrantExpired"},
		{"never became active", with(grant("g", pods), func(g *authz.Grant) { g.ActiveFrom = time.Time{} }), nil, "deny GrantExpired"},
		{"not judged yet", with(grant("g", pods), func(g *authz.Grant) { g.Active = false }), nil, "deny NoGrant"},
		{"waits for people", with(grant("g", pods), func(g *authz.Grant) { g.Active, g.Pending = false, true }), nil, "deny GrantPending"},
		{"revoked", with(grant("g", pods), func(g *authz.Grant) { g.Revoked = true }), nil, "deny GrantRevoked"},
		{"deleted", with(grant("g", pods), func(g *authz.Grant) { g.Deleted = true }), nil, "deny GrantRevoked"},
		{"budget spent", with(grant("g", pods), func(g *authz.Grant) { g.EndReason = authz.EndBudgetSpent }), nil, "deny BudgetSpent"},
		{"ended by status", with(grant("g", pods), func(g *authz.Grant) { g.EndReason = authz.EndPolicyChanged }), nil, "deny GrantRevoked"},
		{"ended for a reason of later versions", with(grant("g", pods), func(g *authz.Grant) { g.EndReason = "Whatever" }), nil, "deny GrantRevoked"},
		{"policy no longer covers", grant("g", pods), func(p *authz.Policy) { p.Allow = []authz.Rule{rule("get", "shop", "", "services")} }, "deny GrantRevoked"},
		{"policy no longer matches", grant("g", pods), func(p *authz.Policy) { p.Agents = []string{"spiffe://example.org/ns/other/sa/*"} }, "deny GrantRevoked"},
		{"policy of another name", with(grant("g", pods), func(g *authz.Grant) { g.Policy = "else" }), nil, "deny GrantRevoked"},
		{"policy has an error", grant("g", pods), func(p *authz.Policy) { p.Invalid = "gate x does not compile" }, "deny GrantRevoked"},
		{"policy suspended", grant("g", pods), func(p *authz.Policy) { p.Suspended = true }, "deny PolicyDenied/Suspended"},
		{"grant of somebody else", with(grant("g", pods), func(g *authz.Grant) { g.Agent = alpha + "0" }), nil, "deny NoGrant"},
		{"no rules", grant("g"), nil, "deny OutsideGrant"},
		{"empty rule", grant("g", authz.Rule{}), nil, "deny OutsideGrant"},
		{"rule without namespaces", grant("g", authz.Rule{Verbs: []string{"*"}, APIGroups: []string{"*"}, Resources: []string{"*"}}), nil, "deny OutsideGrant"},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			policy := shop()
			if row.policy != nil {
				row.policy(policy)
			}
			w := world{policies: []*authz.Policy{policy}, grants: []*authz.Grant{row.grant}}
			if got := outcome(decide(t, w, call("get shop:pods web-0"))); got != row.want {
				t.Errorf("got %q, want %q", got, row.want)
			}
		})
	}
}

// TestSeveralGrants: the one that ends first is charged, a pinned one narrows.
func TestSeveralGrants(t *testing.T) {
	pods := rule("get,list", "shop", "", "pods")
	w := world{policies: []*authz.Policy{shop()}, grants: []*authz.Grant{
		grant("late", pods),
		with(grant("early", pods), func(g *authz.Grant) { g.ExpiresAt = noon.Add(time.Minute) }),
		grant("other", rule("get", "shop", "", "services")),
		with(grant("gone", rule("get", "shop", "", "endpoints")), func(g *authz.Grant) { g.ExpiresAt = noon.Add(-time.Minute) }),
		with(grant("asked", rule("get", "shop", "", "endpoints")), func(g *authz.Grant) { g.Active, g.Pending = false, true }),
	}}
	set := w.set(t, alpha)
	question := authz.Question{Set: set, Call: call("get shop:pods web-0"), Now: noon, FreshUntil: noon.Add(1)}

	d := authz.Decide(question)
	if d.Verdict != authz.Allow || d.Grant.Name != "early" || d.Covering != 2 {
		t.Errorf("got %+v, want early of two", d)
	}
	if got := fmt.Sprint(set.Candidates(question)); got != "[early late]" {
		t.Errorf("candidates: got %s", got)
	}
	question.Pinned = "late"
	if d := authz.Decide(question); d.Verdict != authz.Allow || d.Grant.Name != "late" {
		t.Errorf("pinned: got %+v, want late", d)
	}
	question.Pinned = "other"
	if d := authz.Decide(question); d.Reason != authz.OutsideGrant {
		t.Errorf("pinned to one that does not cover: got %v", d.Reason)
	}
	question.Pinned = "nobody"
	if d := authz.Decide(question); d.Reason != authz.NoGrant {
		t.Errorf("pinned to one that is not there: got %v", d.Reason)
	}
	question.Pinned, question.Call = "", call("get shop:endpoints web")
	if d := authz.Decide(question); d.Reason != authz.GrantPending {
		t.Errorf("one ended, one pending: got %v, want the one that may come", d.Reason)
	}
}

// TestStrictestGateWins, whichever policy it belongs to and whatever it is for.
func TestStrictestGateWins(t *testing.T) {
	grants := []*authz.Grant{grant("all", everything)}
	exec := call("create shop:pods/exec web-0")
	gate := func(name string, approvers int, resources ...string) authz.Gate {
		return authz.Gate{Name: name, Approvers: approvers, Resources: resources}
	}
	first, second := shop(), shop()
	second.Name = "second"

	w := func() world { return world{policies: []*authz.Policy{first, second}, grants: grants} }
	check := func(name, want string, c *authz.Call) {
		t.Helper()
		if got := outcome(decide(t, w(), c)); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	check("built-in", "wait ApprovalRequired exec", exec)
	first.Waive = []string{"exec"}
	check("waived by one of two", "wait ApprovalRequired exec", exec)
	second.Waive = []string{"exec"}
	check("waived by both", "allow waived:exec", exec)
	second.Gates = []authz.Gate{gate("prod-exec", 2, "pods/exec")}
	check("a gate of the policy that grants nothing", "wait ApprovalRequired prod-exec", exec)
	first.Waive = nil
	check("the one that asks for more people", "wait ApprovalRequired prod-exec", exec)
	anybody, experts := gate("anybody", 2, "pods/exec"), gate("experts", 2, "pods/exec")
	experts.Groups = []string{"sre"}
	second.Gates = []authz.Gate{experts, anybody}
	check("as many people, of whom one gate says who", "wait ApprovalRequired experts", exec)
	anybody.When, anybody.Condition = "…", condition{holds: true}
	second.Gates = []authz.Gate{anybody, experts}
	check("… even if the other has a condition", "wait ApprovalRequired experts", exec)
	experts.When, experts.Condition = "…", condition{holds: true}
	second.Gates = []authz.Gate{anybody, experts}
	check("… or both have", "wait ApprovalRequired experts", exec)
	second.Gates = []authz.Gate{{Name: "all-of-it", Approvers: 1}}
	check("a gate without lists holds for everything", "wait ApprovalRequired all-of-it", call("get shop:pods web-0"))
	second.Gates = []authz.Gate{{Name: "one", Approvers: 1, ResourceNames: []string{"web"}}}
	check("another name", "allow", call("get shop:deployments.apps db"))
	check("that name", "wait ApprovalRequired one", call("get shop:deployments.apps web"))
	check("no name", "wait ApprovalRequired one", call("list shop:deployments.apps"))
	second.Gates = []authz.Gate{{Name: "scale", Approvers: 1, Resources: []string{"deployments/scale"}, When: "false"}}
	check("a condition that is not evaluated holds", "wait ApprovalRequired scale", call("patch shop:deployments.apps/scale web"))
	check("gates do not open the never-list", "deny PolicyDenied/Proxy", call("get nodes/proxy n"))
}

// TestConstraints of a rule that covers the call.
func TestConstraints(t *testing.T) {
	policy := shop()
	policy.Waive = []string{"secret-values"}
	builders := everything
	builders.ServiceAccounts = []string{"builder"}
	policy.Allow = append(policy.Allow, builders)
	secrets := rule("*", "shop", "", "secrets,pods")
	redacted := secrets
	redacted.Redacted = true
	deployer := rule("create", "shop", "", "pods")
	deployer.ServiceAccounts = []string{"builder"}

	check := func(name, want string, c *authz.Call, rules ...authz.Rule) {
		t.Helper()
		w := world{policies: []*authz.Policy{policy}, grants: []*authz.Grant{grant("g", rules...)}}
		if got := outcome(decide(t, w, c)); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	get := call("get shop:secrets db")
	check("waived", "allow waived:secret-values", get, secrets)
	check("redaction is about Secrets", "allow", call("get shop:pods web-0"), redacted)

	about := func(rule authz.Rule, names ...string) authz.Rule { rule.ResourceNames = names; return rule }
	for _, waive := range []string{"secret-values", "exec"} {
		policy.Waive = []string{waive}
		values := map[string]string{"secret-values": "allow waived:secret-values", "exec": "wait ApprovalRequired secret-values"}[waive]
		check("redacted", "allow masked", get, redacted)
		check("a redacted write", "allow masked", call("patch shop:secrets db"), redacted)
		check("a redacted creation", "allow masked", call("create shop:secrets"), redacted)
		check("of two rules about all the redacted one", "allow masked", get, secrets, redacted)
		check("… in any order", "allow masked", get, redacted, everything)
		check("a rule that names the Secret", values, get, redacted, about(secrets, "db"))
		check("… another one", "allow masked", get, redacted, about(secrets, "other"))
		check("… both do", "allow masked", get, about(secrets, "db"), about(redacted, "db"))
		check("… a list names none", "allow masked", call("list shop:secrets"), redacted, about(secrets, "db"))
		check("a creation shows what the agent sent", "allow", call("create shop:secrets"), secrets)
	}
	policy.Gates = []authz.Gate{{Name: "mine", Approvers: 1, Resources: []string{"secrets"}}}
	check("a policy's own gate stands before masked answers", "wait ApprovalRequired mine masked", get, redacted)
	policy.Gates = nil
	check("other gates stand", "wait ApprovalRequired deletecollection masked", call("deletecollection shop:secrets"), redacted)

	pod := call("create shop:pods")
	pod.ServiceAccount = "builder"
	check("named service account", "allow", pod, rule("get", "shop", "", "pods"), deployer)
	check("a rule that does not name it", "deny PolicyDenied/PodPolicy", pod, secrets)
	pod.ServiceAccount = "default"
	check("default", "allow", pod, secrets)
	pod.HostAccess = "hostNetwork"
	check("reaches its node", "deny PolicyDenied/PodPolicy", pod, everything)

	token := call("create shop:secrets")
	token.ServiceAccountToken = true
	check("token secret", "deny PolicyDenied/TokenSecret", token, everything)

	apply := call("patch shop:configmaps c")
	apply.Creates = true
	check("apply needs create too", "deny OutsideGrant", apply, rule("patch", "shop", "", "configmaps"))
	check("apply with both", "allow", apply, rule("patch", "shop", "", "configmaps"), rule("create", "shop", "", "configmaps"))
	named := rule("patch,create", "shop", "", "configmaps")
	named.ResourceNames = []string{"c"}
	check("create of a name is not to be had by name", "allow", apply, named)
}

// TestUnproven: nothing is allowed on policies of unknown age, or on nothing.
func TestUnproven(t *testing.T) {
	w := world{policies: []*authz.Policy{shop()}, grants: []*authz.Grant{grant("all", everything)}}
	set, c := w.set(t, alpha), call("get /version")
	rows := map[string]struct {
		question authz.Question
		want     authz.Reason
	}{
		"never fresh":  {authz.Question{Set: set, Call: c, Now: noon}, authz.PolicyStale},
		"fresh before": {authz.Question{Set: set, Call: c, Now: noon, FreshUntil: noon}, authz.PolicyStale},
		"no set":       {authz.Question{Call: c, Now: noon, FreshUntil: noon.Add(1)}, authz.NotReady},
		"no call":      {authz.Question{Set: set, Now: noon, FreshUntil: noon.Add(1)}, authz.NotReady},
		"zero call":    {authz.Question{Set: set, Call: &authz.Call{}, Now: noon, FreshUntil: noon.Add(1)}, authz.BadPath},
		"zero":         {authz.Question{}, authz.NotReady},
	}
	for name, row := range rows {
		if d := authz.Decide(row.question); d.Verdict != authz.Deny || d.Reason != row.want {
			t.Errorf("%s: got %v %v, want a refusal with %v", name, d.Verdict, d.Reason, row.want)
		}
	}
	if (authz.Decision{}).Verdict != authz.Deny {
		t.Error("the zero decision does not deny")
	}
}

// TestWhatTheAgentRemembers: of several grants that are over, the reason of the
// one that ended last is told; a refusal outside of the only active grant names
// that grant, for the record.
func TestWhatTheAgentRemembers(t *testing.T) {
	pods := rule("get", "shop", "", "pods")
	revoked := with(grant("revoked", pods), func(g *authz.Grant) {
		g.EndReason, g.EndedAt = authz.EndRevoked, noon.Add(-10*time.Minute)
	})
	expired := with(grant("expired", pods), func(g *authz.Grant) { g.ExpiresAt = noon.Add(-time.Minute) })
	check := func(want string, grants ...*authz.Grant) {
		t.Helper()
		d := decide(t, world{policies: []*authz.Policy{shop()}, grants: grants}, call("get shop:pods web-0"))
		if got := fmt.Sprintf("%s %s", d.Reason, d.Grant.Name); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	check("GrantExpired expired", revoked, expired)
	check("GrantRevoked just", expired, with(grant("just", pods), func(g *authz.Grant) { g.Revoked = true }))
	check("OutsideGrant other", grant("other", rule("get", "shop", "", "services")))
}

// condition is one whose answer is known.
type condition struct{ holds, needs bool }

func (c condition) NeedsObjects() bool     { return c.needs }
func (c condition) Holds(authz.Facts) bool { return c.holds }

// TestConditionalGates: of the gates that hold the strictest wins; while nobody
// was asked, all of them do.
func TestConditionalGates(t *testing.T) {
	gate := func(name string, approvers int, when authz.Condition) authz.Gate {
		return authz.Gate{Name: name, Approvers: approvers, Resources: []string{"deployments", "pods/exec"}, When: "…", Condition: when}
	}
	yes, no := condition{holds: true}, condition{}
	scale, exec := "patch shop:deployments.apps web", "create shop:pods/exec web-0"
	for _, row := range []struct {
		name, call     string
		gates          []authz.Gate
		asking, answer string
		asked          int
	}{
		{"none holds", scale, []authz.Gate{gate("a", 1, no)}, "wait ApprovalRequired a", "allow", 1},
		{"one holds", scale, []authz.Gate{gate("a", 1, yes)}, "wait ApprovalRequired a", "wait ApprovalRequired a", 1},
		{"the strictest that holds", scale, []authz.Gate{gate("a", 1, yes), gate("b", 3, no), gate("c", 2, yes)}, "wait ApprovalRequired b", "wait ApprovalRequired c", 2},
		{"one without a condition stays", scale, []authz.Gate{gate("a", 1, no), gate("b", 1, nil)}, "wait ApprovalRequired a", "wait ApprovalRequired b", 1},
		{"less strict than one without is not asked", scale, []authz.Gate{gate("a", 1, yes), gate("b", 2, nil)}, "wait ApprovalRequired b", "wait ApprovalRequired b", 0},
		{"a built-in gate stays", exec, []authz.Gate{gate("a", 2, no)}, "wait ApprovalRequired a", "wait ApprovalRequired exec", 1},
		{"not about the call", "get shop:pods web-0", []authz.Gate{gate("a", 1, yes)}, "allow", "allow", 0},
		{"outside the grant", "delete shop:pods web-0", []authz.Gate{{Name: "x", Approvers: 1, Condition: no}}, "deny OutsideGrant", "deny OutsideGrant", 0},
	} {
		policy := shop()
		policy.Gates = row.gates
		w := world{policies: []*authz.Policy{policy}, grants: []*authz.Grant{grant("g", rule("get,patch,create", "shop", ",apps", "deployments,pods,pods/exec"))}}
		d := decide(t, w, call(row.call))
		if got := outcome(d); got != row.asking {
			t.Errorf("%s: before: got %q, want %q", row.name, got, row.asking)
		}
		asked := 0
		d.Settle(func(gate *authz.Gate) bool { asked++; return gate.Condition.Holds(authz.Facts{}) })
		if got := outcome(d); got != row.answer || asked != row.asked || d.Conditional != nil {
			t.Errorf("%s: got %q after %d questions, want %q after %d", row.name, got, asked, row.answer, row.asked)
		}
	}
	policy := shop()
	policy.Waive, policy.Gates = []string{"exec"}, []authz.Gate{gate("a", 1, no)}
	d := decide(t, world{policies: []*authz.Policy{policy}, grants: []*authz.Grant{grant("g", everything)}}, call(exec))
	if d.Settle(func(*authz.Gate) bool { return false }); outcome(d) != "allow waived:exec" {
		t.Errorf("a waived gate: got %q", outcome(d))
	}
}
