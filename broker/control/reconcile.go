package control

import (
	"context"
	"errors"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/taskgate/taskgate/api/v1alpha1"
	"github.com/taskgate/taskgate/authz"
)

// reconcileGrant writes what became of one grant.
func (c *Controller) reconcileGrant(ctx context.Context, name string) error {
	seen := c.grants.get(name)
	if seen == nil || seen.over {
		return nil
	}
	if seen.whole == nil {
		goesOn, err := c.goesOn(seen)
		if err != nil {
			return err
		}
		if goesOn {
			c.wakeAt(name, seen.End())
			return nil
		}
		return c.reconcileLive(ctx, name)
	}
	evaluation, err := c.evaluation(ctx, seen.whole, c.cachedPolicy(seen.Policy), c.seenVerdict)
	if err != nil {
		return err
	}
	status := evaluation.status()
	if weighty(&seen.whole.Status, &status) {
		return c.reconcileLive(ctx, name)
	}
	return c.write(ctx, evaluation, &status)
}

// goesOn reports whether a grant is active and stays so, as far as has been seen.
func (c *Controller) goesOn(seen *seenGrant) (bool, error) {
	if !seen.Active {
		return false, nil
	}
	t := term{grant: &seen.Grant, spent: c.budgets.spent(seen.UID), now: c.config.Now()}
	if policy := c.cachedPolicy(seen.Policy); policy != nil {
		t.policy = c.understand(policy)
	}
	if t.policy != nil && t.policy.Limits != (authz.Limits{}) {
		var err error
		if t.siblings, err = c.config.Index.Grants(seen.Agent); err != nil {
			return false, err
		}
	}
	reason, _ := t.over()
	return reason == "", nil
}

// reconcileLive is reconcileGrant on what the API server says now. What has been
// seen may be behind; what gives or cannot be taken back does not rest on it.
func (c *Controller) reconcileLive(ctx context.Context, name string) error {
	grant, err := c.client.getGrant(ctx, name)
	if err != nil {
		return err
	}
	policy, err := c.livePolicy(ctx, grant.Spec.Policy)
	if err != nil {
		return err
	}
	evaluation, err := c.evaluation(ctx, grant, policy, c.counted)
	if err != nil {
		return err
	}
	status := evaluation.status()
	return c.write(ctx, evaluation, &status)
}

// write writes a status unless the grant has it already, and sees to it that the
// grant is looked at when time changes it.
func (c *Controller) write(ctx context.Context, e *evaluation, status *v1alpha1.TaskGrantStatus) error {
	if status.ExpiresAt != nil && meta.IsStatusConditionTrue(status.Conditions, v1alpha1.GrantActive) {
		c.wakeAt(e.grant.Name, status.ExpiresAt.Time)
	}
	c.lookAgainAt(e.grant.Name, e)
	if same(&e.grant.Status, status) {
		return nil
	}
	update := e.grant.DeepCopy()
	update.Status = *status
	if err := c.client.updateStatus(ctx, grants, update.Name, update); err != nil {
		return err
	}
	c.tellOfGrant(e.grant, status, e.verdict.By)
	return nil
}

// lookAgain is how often something that waits for people is looked at without a
// Decision having been seen: time runs out, and rights and admission policies
// change without anything telling.
const lookAgain = 30 * time.Second

// verdicts finds out what people decided. If nothing counts at the moment it says
// why.
type verdicts func(context.Context, Requirement) (verdict Verdict, uncounted string, err error)

// lookAgainAt looks again at a grant that waits for people, soon if their word does
// not count at the moment.
func (c *Controller) lookAgainAt(name string, e *evaluation) {
	if !e.asksPeople() {
		return
	}
	after := lookAgain
	if e.uncounted != "" {
		after = guardEvery
	}
	c.queue.AddAfter(item{grants, name}, after)
}

// evaluation gathers what a grant's status depends on.
func (c *Controller) evaluation(ctx context.Context, grant *v1alpha1.TaskGrant, policy *v1alpha1.AgentPolicy, decided verdicts) (*evaluation, error) {
	siblings, err := c.config.Index.Grants(grant.Spec.Agent)
	if err != nil {
		return nil, err
	}
	e := &evaluation{
		grant: grant, policy: policy, siblings: siblings, spent: c.budgets.spent(string(grant.UID)),
		held: c.holding(grant.Spec.Agent, grant.Spec.Policy), now: c.config.Now(),
	}
	if policy != nil {
		e.unclear = c.understand(policy).Invalid
	}
	if e.asksPeople() {
		e.verdict, e.uncounted, err = decided(ctx, grantRequirement(grant, policy))
	}
	return e, err
}

// seenVerdict rests on the Decisions an informer has seen: a reason to look at the
// real ones, and nothing else.
func (c *Controller) seenVerdict(_ context.Context, need Requirement) (Verdict, string, error) {
	return Judge(need, c.seenDecisions(need.UID), c.config.Now()), "", nil
}

// counted is VerdictOn, with the finding that nothing counts at the moment as a
// text and not as an error: it is no reason to try again at once.
func (c *Controller) counted(ctx context.Context, need Requirement) (Verdict, string, error) {
	verdict, err := c.VerdictOn(ctx, need)
	var wrong *guardError
	if errors.As(err, &wrong) {
		return Verdict{}, wrong.Error(), nil
	}
	return verdict, "", err
}

// seenDecisions are the Decisions about a target that an informer knows of.
func (c *Controller) seenDecisions(uid string) []v1alpha1.Decision {
	objects, _ := c.decisions.GetIndexer().ByIndex(byTarget, uid) // the index is ours and exists
	seen := make([]v1alpha1.Decision, 0, len(objects))
	for _, object := range objects {
		seen = append(seen, *object.(*v1alpha1.Decision))
	}
	return seen
}

// tellOfGrant makes an Event of what this replica has just written.
func (c *Controller) tellOfGrant(grant *v1alpha1.TaskGrant, after *v1alpha1.TaskGrantStatus, by []string) {
	became := func(kind string) *metav1.Condition {
		if meta.IsStatusConditionTrue(grant.Status.Conditions, kind) || !meta.IsStatusConditionTrue(after.Conditions, kind) {
			return nil
		}
		return meta.FindStatusCondition(after.Conditions, kind)
	}
	asks := func(status *v1alpha1.TaskGrantStatus) bool {
		approved := meta.FindStatusCondition(status.Conditions, v1alpha1.GrantApproved)
		return approved != nil && approved.Status == metav1.ConditionUnknown && approved.Reason == reasonApproval
	}
	if asks(after) && !asks(&grant.Status) {
		c.tell(grant, "TaskGrantRequested", "waits for people to agree")
	} else if over := became(v1alpha1.GrantEnded); over != nil && after.ActiveFrom == nil {
		c.tell(grant, "TaskGrantDenied", over.Reason, by...)
	} else if over != nil {
		c.tell(grant, "TaskGrantEnded", over.Reason)
	} else if became(v1alpha1.GrantActive) != nil {
		c.tell(grant, "TaskGranted", meta.FindStatusCondition(after.Conditions, v1alpha1.GrantApproved).Reason, by...)
	}
}

// wakeAt looks at an active grant again when its time is up.
func (c *Controller) wakeAt(name string, end time.Time) {
	c.queue.AddAfter(item{grants, name}, max(end.Sub(c.config.Now()), time.Millisecond))
}

func (c *Controller) cachedPolicy(name string) *v1alpha1.AgentPolicy {
	object, exists, err := c.policies.GetStore().GetByKey(name)
	if err != nil || !exists {
		return nil
	}
	return object.(*v1alpha1.AgentPolicy)
}

// livePolicy is nil without an error if there is no such policy.
func (c *Controller) livePolicy(ctx context.Context, name string) (*v1alpha1.AgentPolicy, error) {
	policy, err := c.client.getPolicy(ctx, name)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	return policy, err
}

// missingEvery is how often a policy is looked at again while the broker may not
// act for it: somebody is probably about to allow it.
const missingEvery = 3 * time.Second

// reconcilePolicy writes the conditions of one policy.
func (c *Controller) reconcilePolicy(ctx context.Context, name string) error {
	policy := c.cachedPolicy(name)
	if policy == nil || name == HeartbeatObject {
		return nil
	}
	update := policy.DeepCopy()
	set := func(kind string, is bool, reason, message string) {
		status := metav1.ConditionFalse
		if is {
			status = metav1.ConditionTrue
		}
		meta.SetStatusCondition(&update.Status.Conditions, metav1.Condition{
			Type: kind, Status: status, Reason: reason, Message: message, ObservedGeneration: policy.Generation,
		})
	}
	if invalid := c.understand(policy).Invalid; invalid != "" {
		set(v1alpha1.PolicyValid, false, "Invalid", invalid)
	} else {
		set(v1alpha1.PolicyValid, true, "Understood", "the policy is understood")
	}
	missing, err := c.guards.missingImpersonation(ctx, name)
	switch {
	case err != nil:
		return err
	case missing != "":
		c.queue.AddAfter(item{policies, name}, missingEvery)
		set(v1alpha1.PolicyUpstreamReady, false, "ImpersonationMissing", missing)
	default:
		set(v1alpha1.PolicyUpstreamReady, true, "MayImpersonate", "the broker may act upstream as the group taskgate:policy:"+name)
	}
	set(v1alpha1.PolicyWaived, len(policy.Spec.Waive) > 0, "Gates", waived(policy))
	if equality.Semantic.DeepEqual(policy.Status, update.Status) {
		return nil
	}
	return c.client.updateStatus(ctx, policies, name, update)
}

func waived(policy *v1alpha1.AgentPolicy) string {
	if len(policy.Spec.Waive) == 0 {
		return "all built-in gates stand"
	}
	return "switched off unless another policy of the agent keeps them: " + strings.Join(policy.Spec.Waive, ", ")
}
