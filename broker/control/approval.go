package control

import (
	"context"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/taskgate/taskgate/api/v1alpha1"
)

// decidedPending is the reason of Decided while nothing is decided again: a person
// whose yes had counted may decide no longer.
const decidedPending = "Pending"

// approvalStatus computes what the status of an Approval should be, for people to
// see; calls are let through on what Decisions say, never on this. It is pure. What
// is denied, expired or consumed stays so; an approval that nobody used in time has
// expired too.
func approvalStatus(approval *v1alpha1.Approval, v Verdict, now time.Time) v1alpha1.ApprovalStatus {
	status := *approval.Status.DeepCopy()
	decided := meta.FindStatusCondition(status.Conditions, v1alpha1.ApprovalDecided)
	isDecided := decided != nil && decided.Status == metav1.ConditionTrue
	if isDecided && (consumed(approval) || decided.Reason != v1alpha1.DecidedApproved) {
		return status
	}
	set := func(is metav1.ConditionStatus, reason, message string) {
		meta.SetStatusCondition(&status.Conditions, metav1.Condition{
			Type: v1alpha1.ApprovalDecided, Status: is, Reason: reason, Message: message,
			ObservedGeneration: approval.Generation, LastTransitionTime: metav1.NewTime(now),
		})
	}
	at := metav1.NewMicroTime(v.At)
	useUntil := v.At.Add(approval.Spec.UseWithin.Duration)
	switch {
	case consumed(approval) && v.State != Approved:
		// Used before anybody wrote down that it was approved; it is too late now.
	case consumed(approval):
		status.DecidedAt = &at
		set(metav1.ConditionTrue, v1alpha1.DecidedApproved, said("approved", &v))
	case v.State == Denied:
		status.DecidedAt = &at
		set(metav1.ConditionTrue, v1alpha1.DecidedDenied, said("denied", &v))
	case v.State == Approved && v.At.Before(approval.Spec.ExpiresAt.Time) && now.Before(useUntil):
		if isDecided {
			return status
		}
		status.DecidedAt = &at
		set(metav1.ConditionTrue, v1alpha1.DecidedApproved, said("approved", &v)+"; the call may be made until "+useUntil.UTC().Format(time.RFC3339))
	case v.State == Approved && v.At.Before(approval.Spec.ExpiresAt.Time):
		status.DecidedAt = &at
		set(metav1.ConditionTrue, v1alpha1.DecidedExpired, said("approved", &v)+", and not used until "+useUntil.UTC().Format(time.RFC3339))
	case !now.Before(approval.Spec.ExpiresAt.Time):
		set(metav1.ConditionTrue, v1alpha1.DecidedExpired, "nobody who had to decided until "+approval.Spec.ExpiresAt.UTC().Format(time.RFC3339))
	case decided != nil:
		status.DecidedAt = nil
		set(metav1.ConditionFalse, decidedPending, "has "+orElse(v.Reason, "no approval that counts"))
	}
	return status
}

// reconcileApproval writes what people decided. What an informer has seen says
// whether it is worth looking; what is written rests on the Decisions themselves.
func (c *Controller) reconcileApproval(ctx context.Context, name string) error {
	object, exists, err := c.approvals.GetStore().GetByKey(name)
	if err != nil || !exists {
		return err
	}
	seen := object.(*v1alpha1.Approval)
	verdict := Verdict{}
	if grant := c.grants.get(seen.Spec.Grant); grant != nil {
		verdict = Judge(approvalRequirement(seen, grant.requestedBy), c.seenDecisions(string(seen.UID)), c.config.Now())
	}
	expected := approvalStatus(seen, verdict, c.config.Now())
	c.wakeAtExpiry(seen, &expected)
	if equality.Semantic.DeepEqual(&seen.Status, &expected) {
		return nil
	}
	approval, err := c.ReadApproval(ctx, name)
	if err != nil {
		return err
	}
	if verdict, err = c.verdictOnApproval(ctx, approval); err != nil {
		return err
	}
	update := approval.DeepCopy()
	update.Status = approvalStatus(approval, verdict, c.config.Now())
	if equality.Semantic.DeepEqual(&approval.Status, &update.Status) {
		if !decidedForGood(&update.Status) {
			c.queue.AddAfter(item{approvals, name}, lookAgain) // a Decision is there and does not count yet
		}
		return nil
	}
	if err := c.client.updateStatus(ctx, approvals, name, update); err != nil {
		return err
	}
	decided := meta.FindStatusCondition(update.Status.Conditions, v1alpha1.ApprovalDecided)
	c.tell(approval, "Approval"+decided.Reason, decided.Message, verdict.By...)
	return nil
}

// verdictOnApproval is nobody's verdict if the grant is gone or nothing counts. For
// a status the last look at the admission policies will do.
func (c *Controller) verdictOnApproval(ctx context.Context, approval *v1alpha1.Approval) (Verdict, error) {
	need, err := c.RequirementOf(ctx, approval)
	if gone(err) || c.DecisionsCount() != nil {
		return Verdict{}, nil
	}
	if err != nil {
		return Verdict{}, err
	}
	return c.verdictOn(ctx, need)
}

// decidedForGood reports whether the status of an Approval changes no more.
func decidedForGood(status *v1alpha1.ApprovalStatus) bool {
	decided := meta.FindStatusCondition(status.Conditions, v1alpha1.ApprovalDecided)
	return meta.IsStatusConditionTrue(status.Conditions, v1alpha1.ApprovalConsumed) ||
		decided != nil && decided.Status == metav1.ConditionTrue && decided.Reason != v1alpha1.DecidedApproved
}

// wakeAtExpiry looks at an Approval again when its time is up.
func (c *Controller) wakeAtExpiry(approval *v1alpha1.Approval, status *v1alpha1.ApprovalStatus) {
	if decidedForGood(status) {
		return
	}
	until := approval.Spec.ExpiresAt.Time
	if status.DecidedAt != nil {
		until = status.DecidedAt.Add(approval.Spec.UseWithin.Duration)
	}
	c.queue.AddAfter(item{approvals, approval.Name}, max(until.Sub(c.config.Now()), time.Second))
}
