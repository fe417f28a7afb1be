package control

import (
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/taskgate/taskgate/api/v1alpha1"
	"github.com/taskgate/taskgate/authz"
)

// overAt is a grant that ended at a moment.
func overAt(reason string, at time.Time) *v1alpha1.TaskGrant {
	g := taskGrant(activeSince(at.Add(-time.Minute)))
	g.Status.EndReason = reason
	for i := range g.Status.Conditions {
		c := &g.Status.Conditions[i]
		if c.Type == v1alpha1.GrantEnded {
			c.Status, c.Reason, c.LastTransitionTime = metav1.ConditionTrue, reason, metav1.NewTime(at.Truncate(time.Second))
		}
	}
	return g
}

// agreedAt is a grant that people gave at a moment.
func agreedAt(at time.Time) *v1alpha1.TaskGrant {
	g := taskGrant()
	g.Status = (&evaluation{grant: g, policy: withPeople(), verdict: Verdict{State: Approved, At: noon.Add(-time.Minute)}, now: at}).status()
	return g
}

func withPeople() *v1alpha1.AgentPolicy {
	return policy(func(p *v1alpha1.AgentPolicy) {
		p.Spec.Grant.Approval = v1alpha1.GrantApproval{Approvers: 1, Groups: []string{"sre"}}
	})
}

func seeAll(grants []*v1alpha1.TaskGrant) []*seenGrant {
	var seen []*seenGrant
	for _, grant := range grants {
		seen = append(seen, seeGrant(grant))
	}
	return seen
}

func TestHolds(t *testing.T) {
	revokedNow := taskGrant(activeSince(noon), func(g *v1alpha1.TaskGrant) { g.Spec.Revoked = true })
	revokedBefore := overAt(authz.EndRevoked, noon)
	resume := func(value string) *v1alpha1.TaskGrant {
		g := overAt(authz.EndRevoked, noon)
		g.Annotations = map[string]string{v1alpha1.ResumedAnnotation: value}
		return g
	}
	rows := []struct {
		name   string
		grant  *v1alpha1.TaskGrant
		others []*v1alpha1.TaskGrant
		want   bool
	}{
		{"revoked", revokedBefore, nil, true},
		{"revoked a moment ago", revokedNow, nil, true},
		{"resumed", resume("true"), nil, false},
		{"resumed in another way", resume("yes"), nil, true},
		{"not resumed", resume(""), nil, true},
		{"expired", overAt(authz.EndExpired, noon), nil, false},
		{"released", overAt(authz.EndReleased, noon), nil, false},
		{"budget spent", overAt(authz.EndBudgetSpent, noon), nil, false},
		{"active", taskGrant(activeSince(noon)), nil, false},
		{"expired, and somebody said revoked afterwards", func() *v1alpha1.TaskGrant {
			g := overAt(authz.EndExpired, noon)
			g.Spec.Revoked = true
			return g
		}(), nil, false},
		{"people approved another one since", revokedBefore, []*v1alpha1.TaskGrant{agreedAt(noon.Add(2 * time.Second))}, false},
		{"… before", revokedBefore, []*v1alpha1.TaskGrant{agreedAt(noon.Add(-time.Second))}, true},
		{"… in the same second", revokedBefore, []*v1alpha1.TaskGrant{agreedAt(noon.Add(900 * time.Millisecond))}, true},
		{"… before, and now is the end of it", revokedNow, []*v1alpha1.TaskGrant{agreedAt(noon.Add(time.Hour))}, true},
		{"the policy alone gave another one since", revokedBefore, []*v1alpha1.TaskGrant{taskGrant(activeSince(noon.Add(time.Hour)))}, true},
		{"another one expired since", revokedBefore, []*v1alpha1.TaskGrant{overAt(authz.EndExpired, noon.Add(time.Hour))}, true},
	}
	for _, row := range rows {
		if got := holds(seeGrant(row.grant), seeAll(append(row.others, row.grant))); got != row.want {
			t.Errorf("%s: %t", row.name, got)
		}
	}
}

func TestDisposable(t *testing.T) {
	const keep = time.Hour
	late := noon.Add(-25 * time.Hour) // not today
	denied := taskGrant()
	denied.Status = (&evaluation{grant: denied, policy: policy(func(p *v1alpha1.AgentPolicy) { p.Spec.Allow = nil }), now: noon.Add(-keep)}).status()
	rows := []struct {
		name  string
		grant *v1alpha1.TaskGrant
		want  bool
	}{
		{"over for long", overAt(authz.EndExpired, late), true},
		{"over for a while, and counts for today", overAt(authz.EndExpired, noon.Add(-2*keep)), false},
		{"over for not long enough", overAt(authz.EndExpired, noon.Add(-keep+time.Second)), false},
		{"denied today", denied, true},
		{"active", taskGrant(activeSince(late)), false},
		{"waiting", taskGrant(), false},
		{"holds its agent", overAt(authz.EndRevoked, late), false},
	}
	for _, row := range rows {
		if got := disposable(seeGrant(row.grant), seeAll([]*v1alpha1.TaskGrant{row.grant}), keep, noon); got != row.want {
			t.Errorf("%s: %t", row.name, got)
		}
	}
	if !disposable(seeGrant(overAt(authz.EndRevoked, late)), seeAll([]*v1alpha1.TaskGrant{agreedAt(noon)}), keep, noon) {
		t.Error("a revoked grant stays although people approved another one")
	}
}
