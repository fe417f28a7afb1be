package control

import (
	"maps"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/taskgate/taskgate/api/v1alpha1"
	"github.com/taskgate/taskgate/authz"
)

// An agent whose grant was revoked is on hold under that policy: what the policy
// alone would give waits, until a person resumes the revoked grant or people
// approve another one. Otherwise the agent would ask again and go on.

// holding names a revoked grant that keeps an agent on hold under a policy, "" if
// there is none.
func (c *Controller) holding(agent, policy string) string {
	revoked := ""
	candidates := c.grants.holdCandidates(agent, policy)
	for _, grant := range candidates {
		if holds(grant, candidates) && (revoked == "" || grant.Name < revoked) {
			revoked = grant.Name
		}
	}
	return revoked
}

// holds reports whether a grant was revoked, and neither was it resumed nor was
// another one approved by people since. Times are exact to a second, so one that
// was approved within a second of the revocation does not count as later.
func holds(grant *seenGrant, siblings []*seenGrant) bool {
	if !grant.revoked || grant.resumed {
		return false
	}
	if !grant.over {
		return true // just now
	}
	since := grant.EndedAt.Add(time.Second)
	for _, other := range siblings {
		if other.byPeople && other.ActiveFrom.After(since) {
			return false
		}
	}
	return true
}

// revoked also holds for a grant whose end is not written down yet.
func revoked(grant *v1alpha1.TaskGrant) bool {
	if grant.Status.EndReason != "" {
		return grant.Status.EndReason == authz.EndRevoked
	}
	return grant.Spec.Revoked && !meta.IsStatusConditionTrue(grant.Status.Conditions, v1alpha1.GrantEnded)
}

func resumed(grant *v1alpha1.TaskGrant) bool {
	return grant.Annotations[v1alpha1.ResumedAnnotation] == "true"
}

// byPeople reports whether people gave the grant.
func byPeople(grant *v1alpha1.TaskGrant) bool {
	approved := meta.FindStatusCondition(grant.Status.Conditions, v1alpha1.GrantApproved)
	return grant.Status.ActiveFrom != nil && approved != nil && approved.Status == metav1.ConditionTrue && approved.Reason == reasonPeople
}

// onHold reports whether a grant waits because another one was revoked.
func onHold(grant *v1alpha1.TaskGrant) bool {
	active := meta.FindStatusCondition(grant.Status.Conditions, v1alpha1.GrantActive)
	return active != nil && active.Status == metav1.ConditionFalse && active.Reason == reasonOnHold
}

// concernsHolds reports whether a grant has to do with holds; most have not.
func (g *seenGrant) concernsHolds() bool { return g.revoked || g.byPeople || g.onHold }

func holdKey(agent, policy string) string { return policy + " " + agent }

func (s *seenGrants) holdLocked(grant *seenGrant) {
	if !grant.concernsHolds() {
		return
	}
	key := holdKey(grant.Agent, grant.Policy)
	if s.holds[key] == nil {
		s.holds[key] = map[string]*seenGrant{}
	}
	s.holds[key][grant.Name] = grant
}

func (s *seenGrants) unholdLocked(grant *seenGrant) {
	if !grant.concernsHolds() {
		return
	}
	key := holdKey(grant.Agent, grant.Policy)
	if delete(s.holds[key], grant.Name); len(s.holds[key]) == 0 {
		delete(s.holds, key)
	}
}

// holdCandidates are the grants of an agent under a policy that have to do with
// holds.
func (s *seenGrants) holdCandidates(agent, policy string) []*seenGrant {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.Collect(maps.Values(s.holds[holdKey(agent, policy)]))
}

// requeueHeld looks again at the grants that wait, after another one of the agent
// has changed.
func (c *Controller) requeueHeld(changed *seenGrant) {
	for _, grant := range c.grants.holdCandidates(changed.Agent, changed.Policy) {
		if grant.onHold && grant.Name != changed.Name {
			c.queue.Add(item{grants, grant.Name})
		}
	}
}
