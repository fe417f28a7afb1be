package control

import (
	"context"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/taskgate/taskgate/api/v1alpha1"
	"github.com/taskgate/taskgate/authz"
)

// releaseTries is how often a status is written anew that another replica, or a
// reservation of a budget, has changed in between.
const releaseTries = 10

// Release ends the grant of that name and UID because its agent gives it back. It
// may be repeated: a grant that was released, or is gone, is no error. A grant
// that is over already keeps the reason it ended for; the agent only does not
// see it any more.
//
// With a resource version, the grant must still be at it; otherwise the error is
// a conflict, as it is for another UID. On any error the grant may still be good.
func (c *Controller) Release(ctx context.Context, name, uid, resourceVersion string) error {
	var conflict error
	for attempt := range releaseTries {
		grant, err := c.client.getGrant(ctx, name)
		switch {
		case apierrors.IsNotFound(err):
			return nil
		case err != nil:
			return fmt.Errorf("reading the grant to release: %w", err)
		case string(grant.UID) != uid, resourceVersion != "" && grant.ResourceVersion != resourceVersion:
			return apierrors.NewConflict(v1alpha1.GroupVersion.WithResource(grants).GroupResource(), name, fmt.Errorf("the object is another one now, or has changed"))
		case meta.IsStatusConditionTrue(grant.Status.Conditions, v1alpha1.GrantReleased):
			return nil
		}
		over := meta.IsStatusConditionTrue(grant.Status.Conditions, v1alpha1.GrantEnded)
		grant.Status = released(grant, c.config.Now())
		conflict = c.client.updateStatus(ctx, grants, name, grant)
		switch {
		case conflict == nil:
			if !over {
				c.tell(grant, "TaskGrantEnded", "given back by the agent")
			}
			return nil
		case !apierrors.IsConflict(conflict):
			return fmt.Errorf("releasing the grant: %w", conflict)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Duration(attempt) * 5 * time.Millisecond):
		}
	}
	return fmt.Errorf("releasing the grant: %w", conflict)
}

// released is the status of a grant that its agent gave back.
func released(grant *v1alpha1.TaskGrant, now time.Time) v1alpha1.TaskGrantStatus {
	status := (&evaluation{grant: grant, released: true, now: now}).status()
	meta.SetStatusCondition(&status.Conditions, metav1.Condition{
		Type: v1alpha1.GrantReleased, Status: metav1.ConditionTrue, Reason: authz.EndReleased, Message: "given back by the agent",
		ObservedGeneration: grant.Generation, LastTransitionTime: metav1.NewTime(now),
	})
	return status
}
