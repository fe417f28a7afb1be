package control

import (
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
	candidates := c.holdCandidates(agent, policy)
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
func holds(grant *v1alpha1.TaskGrant, siblings []*v1alpha1.TaskGrant) bool {
	if !revoked(grant) || resumed(grant) {
		return false
	}
	over := meta.FindStatusCondition(grant.Status.Conditions, v1alpha1.GrantEnded)
	if over == nil || over.Status != metav1.ConditionTrue {
		return true // just now
	}
	since := over.LastTransitionTime.Add(time.Second)
	for _, other := range siblings {
		if byPeople(other) && other.Status.ActiveFrom.After(since) {
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

// grantsByHold finds the grants that have to do with holds, by agent and policy;
// most have not.
func grantsByHold(object any) ([]string, error) {
	grant := object.(*v1alpha1.TaskGrant)
	if grant.Name == HeartbeatObject || !revoked(grant) && !byPeople(grant) && !onHold(grant) {
		return nil, nil
	}
	return []string{holdKey(grant.Spec.Agent, grant.Spec.Policy)}, nil
}

func holdKey(agent, policy string) string { return policy + " " + agent }

func (c *Controller) holdCandidates(agent, policy string) []*v1alpha1.TaskGrant {
	objects, _ := c.grants.GetIndexer().ByIndex(byHold, holdKey(agent, policy)) // the index is ours and exists
	candidates := make([]*v1alpha1.TaskGrant, 0, len(objects))
	for _, object := range objects {
		candidates = append(candidates, object.(*v1alpha1.TaskGrant))
	}
	return candidates
}

// requeueHeld looks again at the grants that wait, after another one of the agent
// has changed.
func (c *Controller) requeueHeld(changed *v1alpha1.TaskGrant) {
	for _, grant := range c.holdCandidates(changed.Spec.Agent, changed.Spec.Policy) {
		if onHold(grant) && grant.Name != changed.Name {
			c.queue.Add(item{grants, grant.Name})
		}
	}
}
