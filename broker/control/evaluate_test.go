package control

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/taskgate/taskgate/api/v1alpha1"
	"github.com/taskgate/taskgate/authz"
)

var noon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func rule(verb string) v1alpha1.Rule {
	return v1alpha1.Rule{Namespaces: []string{"shop"}, APIGroups: []string{""}, Resources: []string{"pods"}, Verbs: []string{verb}}
}

func policy(changes ...func(*v1alpha1.AgentPolicy)) *v1alpha1.AgentPolicy {
	p := &v1alpha1.AgentPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: "shop"},
		Spec: v1alpha1.AgentPolicySpec{
			Agents: []string{"spiffe://example.org/ns/agents/sa/*"}, Allow: []v1alpha1.Rule{rule("get")},
			Grant: v1alpha1.GrantLimits{MaxTTL: metav1.Duration{Duration: 4 * time.Hour}, Approval: v1alpha1.GrantApproval{None: true}},
		},
	}
	for _, change := range changes {
		change(p)
	}
	return p
}

func taskGrant(changes ...func(*v1alpha1.TaskGrant)) *v1alpha1.TaskGrant {
	g := &v1alpha1.TaskGrant{
		ObjectMeta: metav1.ObjectMeta{Name: "g", UID: "uid-g", CreationTimestamp: metav1.NewTime(noon.Add(-time.Hour))},
		Spec: v1alpha1.TaskGrantSpec{
			Agent: "spiffe://example.org/ns/agents/sa/alpha", Task: "INC-1", Policy: "shop",
			Rules: []v1alpha1.Rule{rule("get")}, TTL: metav1.Duration{Duration: time.Hour},
		},
	}
	for _, change := range changes {
		change(g)
	}
	return g
}

// activeSince makes the grant active, as a broker would have written it.
func activeSince(t time.Time) func(*v1alpha1.TaskGrant) {
	return func(g *v1alpha1.TaskGrant) {
		g.Status = (&evaluation{grant: taskGrant(), policy: policy(), now: t}).status()
	}
}

func summary(status v1alpha1.TaskGrantStatus) string {
	var words []string
	for _, kind := range []string{v1alpha1.GrantApproved, v1alpha1.GrantActive, v1alpha1.GrantEnded} {
		if c := meta.FindStatusCondition(status.Conditions, kind); c != nil {
			words = append(words, kind+"="+string(c.Status))
		}
	}
	active := meta.FindStatusCondition(status.Conditions, v1alpha1.GrantActive)
	return strings.Join(append(words, active.Reason, status.EndReason), " ")
}

func TestGrantStatus(t *testing.T) {
	const (
		isActive  = "Approved=True Active=True Ended=False Active "
		isWaiting = "Approved=Unknown Active=False Ended=False "
		isDenied  = "Approved=False Active=False Ended=True "
		isEnded   = "Approved=True Active=False Ended=True "
	)
	two := int32(2)
	sibling := func(state string) *authz.Grant {
		g := &authz.Grant{UID: state, Policy: "shop", Active: true, TTL: time.Hour, ActiveFrom: noon.Add(-time.Minute), ExpiresAt: noon.Add(time.Hour)}
		switch state {
		case "over":
			g.ExpiresAt = noon
		case "yesterday":
			g.ActiveFrom, g.ExpiresAt = noon.Add(-24*time.Hour), noon.Add(-23*time.Hour)
		case "other policy":
			g.Policy = "bank"
		}
		return g
	}
	limits := func(change func(*v1alpha1.GrantLimits)) func(*v1alpha1.AgentPolicy) {
		return func(p *v1alpha1.AgentPolicy) { change(&p.Spec.Grant) }
	}
	rows := []struct {
		name     string
		grant    *v1alpha1.TaskGrant
		policy   *v1alpha1.AgentPolicy
		siblings []*authz.Grant
		want     string
	}{
		{"inside", taskGrant(), policy(), nil, isActive},
		{"no policy yet", taskGrant(), nil, nil, isWaiting + "PolicyMissing "},
		{"outside", taskGrant(func(g *v1alpha1.TaskGrant) { g.Spec.Rules = []v1alpha1.Rule{rule("delete")} }), policy(), nil, isDenied + "OutsidePolicy "},
		{"too long", taskGrant(func(g *v1alpha1.TaskGrant) { g.Spec.TTL.Duration = 5 * time.Hour }), policy(), nil, isDenied + "OutsidePolicy "},
		{"another agent", taskGrant(func(g *v1alpha1.TaskGrant) { g.Spec.Agent = "spiffe://example.org/ns/other/sa/x" }), policy(), nil, isDenied + "OutsidePolicy "},
		{"federated twin", taskGrant(func(g *v1alpha1.TaskGrant) { g.Spec.Agent = "spiffe://other.org/ns/agents/sa/alpha" }), policy(), nil, isDenied + "OutsidePolicy "},
		{"not an agent", taskGrant(func(g *v1alpha1.TaskGrant) { g.Spec.Agent = "alpha" }), policy(), nil, isDenied + "OutsidePolicy "},
		{"policy without a word about approval", taskGrant(), policy(limits(func(l *v1alpha1.GrantLimits) { l.Approval = v1alpha1.GrantApproval{} })), nil, isDenied + "OutsidePolicy "},
		{"needs approval", taskGrant(), policy(limits(func(l *v1alpha1.GrantLimits) { l.Approval = v1alpha1.GrantApproval{Approvers: 1} })), nil, isWaiting + "ApprovalPending "},
		{"policy suspended", taskGrant(), policy(func(p *v1alpha1.AgentPolicy) { p.Spec.Suspended = true }), nil, isWaiting + "Suspended "},
		{"revoked before it was judged", taskGrant(func(g *v1alpha1.TaskGrant) { g.Spec.Revoked = true }), policy(), nil, isDenied + "Revoked Revoked"},
		{"one of two active", taskGrant(), policy(limits(func(l *v1alpha1.GrantLimits) { l.MaxActive = &two })), []*authz.Grant{sibling("a"), sibling("over"), sibling("other policy")}, isActive},
		{"two of two active", taskGrant(), policy(limits(func(l *v1alpha1.GrantLimits) { l.MaxActive = &two })), []*authz.Grant{sibling("a"), sibling("b")}, isDenied + "LimitReached "},
		{"one of two today", taskGrant(), policy(limits(func(l *v1alpha1.GrantLimits) { l.PerDay = &two })), []*authz.Grant{sibling("over"), sibling("yesterday")}, isActive},
		{"two of two today", taskGrant(), policy(limits(func(l *v1alpha1.GrantLimits) { l.PerDay = &two })), []*authz.Grant{sibling("over"), sibling("a")}, isDenied + "LimitReached "},

		{"was active, still is", taskGrant(activeSince(noon.Add(-time.Minute))), policy(), nil, isActive},
		{"time is up", taskGrant(activeSince(noon.Add(-time.Hour))), policy(), nil, isEnded + "Expired Expired"},
		{"revoked", taskGrant(activeSince(noon), func(g *v1alpha1.TaskGrant) { g.Spec.Revoked = true }), policy(), nil, isEnded + "Revoked Revoked"},
		{"being deleted", taskGrant(activeSince(noon), func(g *v1alpha1.TaskGrant) { g.DeletionTimestamp = &metav1.Time{Time: noon} }), policy(), nil, isEnded + "Revoked Revoked"},
		{"policy gone", taskGrant(activeSince(noon)), nil, nil, isEnded + "PolicyChanged PolicyChanged"},
		{"policy covers no longer", taskGrant(activeSince(noon)), policy(func(p *v1alpha1.AgentPolicy) { p.Spec.Allow = nil }), nil, isEnded + "PolicyChanged PolicyChanged"},
		{"policy allows less time", taskGrant(activeSince(noon)), policy(limits(func(l *v1alpha1.GrantLimits) { l.MaxTTL.Duration = time.Minute })), nil, isEnded + "PolicyChanged PolicyChanged"},
		{"suspended", taskGrant(activeSince(noon)), policy(func(p *v1alpha1.AgentPolicy) { p.Spec.Suspended = true }), nil, isEnded + "Suspended Suspended"},
		{"more active than allowed", taskGrant(activeSince(noon)), policy(limits(func(l *v1alpha1.GrantLimits) { l.MaxActive = &two })), []*authz.Grant{sibling("a"), sibling("b")}, isEnded + "LimitReached LimitReached"},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			e := &evaluation{grant: row.grant, policy: row.policy, siblings: row.siblings, now: noon}
			status := e.status()
			if got := summary(status); got != row.want {
				t.Errorf("got %q, want %q: %+v", got, row.want, status.Conditions)
			}
			again := row.grant.DeepCopy()
			again.Status = status
			if diff := cmp.Diff(status, (&evaluation{grant: again, policy: row.policy, siblings: row.siblings, now: noon}).status()); diff != "" {
				t.Errorf("judging it again changes it:\n%s", diff)
			}
		})
	}
}

// TestFinalStaysFinal: what is denied or over does not come back, whatever
// becomes of its policy or of time.
func TestFinalStaysFinal(t *testing.T) {
	for name, start := range map[string]*evaluation{
		"denied":  {grant: taskGrant(), policy: policy(func(p *v1alpha1.AgentPolicy) { p.Spec.Allow = nil }), now: noon},
		"expired": {grant: taskGrant(activeSince(noon.Add(-time.Hour))), policy: policy(), now: noon},
		"changed": {grant: taskGrant(activeSince(noon)), now: noon},
	} {
		grant := start.grant.DeepCopy()
		grant.Status = start.status()
		for _, now := range []time.Time{noon, noon.Add(-24 * time.Hour), noon.Add(24 * time.Hour)} {
			status := (&evaluation{grant: grant, policy: policy(), now: now}).status()
			if diff := cmp.Diff(grant.Status, status); diff != "" {
				t.Errorf("%s, at %v:\n%s", name, now, diff)
			}
		}
	}
}

func TestActiveGrantHasItsTimes(t *testing.T) {
	status := (&evaluation{grant: taskGrant(), policy: policy(), now: noon}).status()
	grant := taskGrant()
	grant.Status = status
	converted := Grant(grant)
	if !converted.Active || !converted.ActiveFrom.Equal(noon) || !converted.End().Equal(noon.Add(time.Hour)) {
		t.Errorf("got %+v", converted)
	}
}

// TestStatusBelongsToItsSpec: a status that was given for another spec makes
// nothing active.
func TestStatusBelongsToItsSpec(t *testing.T) {
	for name, change := range map[string]func(*v1alpha1.TaskGrantSpec){
		"agent":       func(s *v1alpha1.TaskGrantSpec) { s.Agent += "0" },
		"task":        func(s *v1alpha1.TaskGrantSpec) { s.Task = "INC-2" },
		"rules":       func(s *v1alpha1.TaskGrantSpec) { s.Rules[0].Verbs = []string{"*"} },
		"ttl":         func(s *v1alpha1.TaskGrantSpec) { s.TTL.Duration++ },
		"policy":      func(s *v1alpha1.TaskGrantSpec) { s.Policy = "bank" },
		"requestedBy": func(s *v1alpha1.TaskGrantSpec) { s.RequestedBy = "mallory" },
	} {
		grant := taskGrant(activeSince(noon))
		change(&grant.Spec)
		if Grant(grant).Active {
			t.Errorf("%s changed, and the grant is still active", name)
		}
	}
	revoked := taskGrant(activeSince(noon), func(g *v1alpha1.TaskGrant) { g.Spec.Revoked = true })
	if g := Grant(revoked); !g.Revoked || !g.Active {
		t.Errorf("revoking is not a change of the digest: %+v", g)
	}
}

func TestShares(t *testing.T) {
	for left, want := range map[int64]int64{1: 1, 2: 1, 3: 1, 4: 1, 8: 2, 31: 7, 32: 8, 1000: 8} {
		if got := shareOf(left); got != want {
			t.Errorf("of %d: got %d, want %d", left, got, want)
		}
	}
}

// TestPeople: what people decide about a grant, and what has it wait or end
// otherwise.
func TestPeople(t *testing.T) {
	const (
		isWaiting = "Approved=Unknown Active=False Ended=False "
		isDenied  = "Approved=False Active=False Ended=True "
		isActive  = "Approved=True Active=True Ended=False Active "
	)
	agreed := Verdict{State: Approved, At: noon, By: []string{"alice"}}
	lately := taskGrant(func(g *v1alpha1.TaskGrant) { g.CreationTimestamp = metav1.NewTime(noon.Add(-24 * time.Hour)) })
	one := int32(1)
	rows := []struct {
		name    string
		e       evaluation
		want    string
		message string
	}{
		{"nobody yet", evaluation{policy: withPeople()}, isWaiting + "ApprovalPending ", "has 0 of 1 approvals of sre; to decide: taskgate approve taskgrant/g"},
		{"one of two", evaluation{policy: withPeople(), verdict: Verdict{Reason: "1 of 2 approvals of sre"}}, isWaiting + "ApprovalPending ", "has 1 of 2 approvals of sre; to decide: taskgate approve taskgrant/g"},
		{"nothing counts", evaluation{policy: withPeople(), uncounted: "a policy is absent"}, isWaiting + "ApprovalPending ", "has 0 of 1 approvals of sre; to decide: taskgate approve taskgrant/g; no Decision counts at the moment: a policy is absent"},
		{"agreed", evaluation{policy: withPeople(), verdict: agreed}, isActive, "until 2026-11-23T13:00:00Z"},
		{"agreed, and too many", evaluation{policy: func() *v1alpha1.AgentPolicy { p := withPeople(); p.Spec.Grant.MaxActive = &one; return p }(), verdict: agreed, siblings: []*authz.Grant{{
			UID: "other", Policy: "shop", Active: true, TTL: time.Hour, ActiveFrom: noon.Add(-time.Minute), ExpiresAt: noon.Add(time.Hour)}}}, isDenied + "LimitReached ", ""},
		{"refused", evaluation{policy: withPeople(), verdict: Verdict{State: Denied, At: noon, By: []string{"bob"}, Reason: "not now"}}, isDenied + "Denied ", "denied by bob: not now"},
		{"nobody within a day", evaluation{policy: withPeople(), grant: lately}, isDenied + "ApprovalExpired ", "nobody who had to decided within 24h0m0s"},
		{"agreed after a day", evaluation{policy: withPeople(), grant: lately, verdict: agreed}, isDenied + "ApprovalExpired ", ""},
		{"agreed within the day, seen later", evaluation{policy: withPeople(), grant: lately, verdict: Verdict{State: Approved, At: noon.Add(-time.Second)}}, isActive, ""},
		{"a verdict where nobody was asked", evaluation{policy: policy(), verdict: Verdict{State: Denied}}, isActive, ""},
		{"on hold", evaluation{policy: policy(), held: "old"}, isWaiting + "OnHold ", "the grant old was revoked, so the agent waits until a person lets it go on: taskgate resume"},
		{"on hold, and people agreed", evaluation{policy: withPeople(), held: "old", verdict: agreed}, isActive, ""},
		{"given back", evaluation{policy: policy(), grant: taskGrant(activeSince(noon)), released: true}, "Approved=True Active=False Ended=True Released Released", "released by the agent"},
		{"given back while it waits", evaluation{released: true}, isDenied + "Released Released", "released by the agent"},
		{"revoked and given back", evaluation{policy: policy(), grant: taskGrant(activeSince(noon), func(g *v1alpha1.TaskGrant) { g.Spec.Revoked = true }), released: true}, "Approved=True Active=False Ended=True Revoked Revoked", ""},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			if row.e.now = noon; row.e.grant == nil {
				row.e.grant = taskGrant()
			}
			status := row.e.status()
			if got := summary(status); got != row.want {
				t.Errorf("got %q, want %q: %+v", got, row.want, status.Conditions)
			}
			if got := meta.FindStatusCondition(status.Conditions, v1alpha1.GrantActive).Message; row.message != "" && got != row.message {
				t.Errorf("it says %q, want %q", got, row.message)
			}
			if status.Digest != Digest(&row.e.grant.Spec) {
				t.Errorf("the digest is %q", status.Digest)
			}
			again := row.e
			again.grant = row.e.grant.DeepCopy()
			again.grant.Status = status
			if diff := cmp.Diff(status, again.status()); diff != "" {
				t.Errorf("judging it again changes it:\n%s", diff)
			}
		})
	}
}

// TestApprovedByPeople: the reason says who gave it, to the end.
func TestApprovedByPeople(t *testing.T) {
	grant := agreedAt(noon)
	ended := (&evaluation{grant: grant, now: noon}).status()
	for _, status := range []v1alpha1.TaskGrantStatus{grant.Status, ended} {
		if c := meta.FindStatusCondition(status.Conditions, v1alpha1.GrantApproved); c.Reason != reasonPeople || c.Status != metav1.ConditionTrue {
			t.Errorf("got %+v", c)
		}
	}
}
