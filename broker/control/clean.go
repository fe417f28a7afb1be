package control

import (
	"context"
	"errors"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	"github.com/taskgate/taskgate/api/v1alpha1"
)

// clean deletes, from time to time until ctx ends, what has been over for longer
// than KeepEnded. All replicas do; the second finds nothing.
func (c *Controller) clean(ctx context.Context) {
	every(ctx, min(10*time.Minute, max(time.Second, c.config.KeepEnded/4)), func() {
		if !c.grants.HasSynced() || !c.approvals.HasSynced() || !c.decisions.HasSynced() {
			return
		}
		if err := c.cleanOnce(ctx); err != nil && !errors.Is(err, context.Canceled) {
			c.config.Log.Warn().Err(err).Msg("cannot clean up what is over; trying again")
		}
	})
}

// cleanOnce deletes a grant last, after its approvals, and those before their
// decisions: what is left if it stops half-way is found again.
func (c *Controller) cleanOnce(ctx context.Context) error {
	var errs []error
	for _, grant := range c.grants.all() {
		if !disposable(grant, c.grants.holdCandidates(grant.Agent, grant.Policy), c.config.KeepEnded, c.config.Now()) {
			continue
		}
		err := c.cleanApprovals(ctx, grant.UID)
		if err == nil {
			err = c.cleanDecisions(ctx, grant.UID)
		}
		if err == nil {
			err = c.delete(ctx, grants, grant.Name, types.UID(grant.UID))
		}
		errs = append(errs, err)
	}
	return errors.Join(append(errs, c.cleanOrphans(ctx))...)
}

// disposable reports whether a grant has been over for long enough. A grant that
// holds its agent stays, and so does one that counts for today's limit.
func disposable(grant *seenGrant, siblings []*seenGrant, keep time.Duration, now time.Time) bool {
	switch {
	case !grant.over, now.Before(grant.EndedAt.Add(keep)):
		return false
	case !grant.ActiveFrom.IsZero() && !grant.ActiveFrom.Before(now.UTC().Truncate(24*time.Hour)):
		return false
	}
	return !holds(grant, siblings)
}

// cleanOrphans deletes approvals whose grant is gone, and old decisions about
// nothing that is there.
func (c *Controller) cleanOrphans(ctx context.Context) error {
	there := map[string]bool{}
	for _, grant := range c.grants.all() {
		there[grant.UID] = true
	}
	var errs []error
	for _, object := range c.approvals.GetStore().List() {
		approval := object.(*v1alpha1.Approval)
		if there[string(approval.UID)] = there[approval.Spec.GrantUID]; there[string(approval.UID)] {
			continue
		}
		// The informer of grants may be behind that of approvals.
		if _, err := c.RequirementOf(ctx, approval); gone(err) {
			errs = append(errs, c.cleanApproval(ctx, approval))
		} else if err != nil {
			errs = append(errs, err)
		}
	}
	for _, object := range c.decisions.GetStore().List() {
		d := object.(*v1alpha1.Decision)
		if !there[d.Spec.Target.UID] && c.config.Now().After(d.CreationTimestamp.Add(c.config.KeepEnded)) {
			errs = append(errs, c.delete(ctx, decisions, d.Name, d.UID))
		}
	}
	return errors.Join(errs...)
}

// gone reports whether an error says that the grant is not there any more.
func gone(err error) bool { return apierrors.IsNotFound(err) || errors.Is(err, errReplaced) }

func (c *Controller) cleanApprovals(ctx context.Context, grantUID string) error {
	objects, _ := c.approvals.GetIndexer().ByIndex(byGrant, grantUID) // the index is ours and exists
	var errs []error
	for _, object := range objects {
		errs = append(errs, c.cleanApproval(ctx, object.(*v1alpha1.Approval)))
	}
	return errors.Join(errs...)
}

func (c *Controller) cleanApproval(ctx context.Context, approval *v1alpha1.Approval) error {
	if err := c.delete(ctx, approvals, approval.Name, approval.UID); err != nil {
		return err
	}
	return c.cleanDecisions(ctx, string(approval.UID))
}

func (c *Controller) cleanDecisions(ctx context.Context, targetUID string) error {
	var errs []error
	for _, d := range c.seenDecisions(targetUID) {
		errs = append(errs, c.delete(ctx, decisions, d.Name, d.UID))
	}
	return errors.Join(errs...)
}

// delete deletes exactly that object. That another replica was first is no error.
func (c *Controller) delete(ctx context.Context, resource, name string, uid types.UID) error {
	err := c.client.remove(ctx, resource, name, uid)
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("deleting %s/%s: %w", resource, name, err)
	}
	return nil
}
