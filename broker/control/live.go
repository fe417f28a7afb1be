package control

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/taskgate/taskgate/api/v1alpha1"
)

// What follows is read from and written to the API server itself, never an
// informer: these functions decide whether a call is let through. An error means
// that nothing is known, and the call must be refused.

// ConflictError says that an object was changed since it was read: by the replica
// that consumed it, or by one that wrote down what people decided. Whoever gets it
// has to read everything anew.
type ConflictError struct{ Name string }

func (e *ConflictError) Error() string {
	return fmt.Sprintf("the approval %q was changed since it was read", e.Name)
}

// ReadApproval reads an Approval. That there is none is an error that
// apierrors.IsNotFound knows.
func (c *Controller) ReadApproval(ctx context.Context, name string) (*v1alpha1.Approval, error) {
	approval := new(v1alpha1.Approval)
	if err := c.client.get(ctx, approvals, name, approval); err != nil {
		return nil, fmt.Errorf("reading the approval %q: %w", name, err)
	}
	return approval, nil
}

// ApprovalsFor lists the Approvals with a digest, none being no error.
func (c *Controller) ApprovalsFor(ctx context.Context, digest string) ([]v1alpha1.Approval, error) {
	var list v1alpha1.ApprovalList
	if err := c.client.list(ctx, approvals, "spec.digest", digest, &list); err != nil {
		return nil, fmt.Errorf("listing the approvals of one digest: %w", err)
	}
	return list.Items, nil
}

// ApprovalsOf lists the Approvals of an agent, none being no error.
func (c *Controller) ApprovalsOf(ctx context.Context, agent string) ([]v1alpha1.Approval, error) {
	var list v1alpha1.ApprovalList
	if err := c.client.list(ctx, approvals, "spec.agent", agent, &list); err != nil {
		return nil, fmt.Errorf("listing the approvals of one agent: %w", err)
	}
	return list.Items, nil
}

// CreateApproval creates an Approval and returns it as it was stored. If another
// replica was first the error is one that apierrors.IsAlreadyExists knows; then
// the one that is there has to be read.
func (c *Controller) CreateApproval(ctx context.Context, approval *v1alpha1.Approval) (*v1alpha1.Approval, error) {
	created := new(v1alpha1.Approval)
	if err := c.client.create(ctx, approvals, approval, created); err != nil {
		return nil, fmt.Errorf("creating the approval %q: %w", approval.Name, err)
	}
	c.tell(created, "ApprovalRequested", fmt.Sprintf("waits for %d approvals%s at the gate %s",
		created.Spec.Approvers, ofGroups(created.Spec.Groups), created.Spec.Gate))
	return created, nil
}

// RequirementOf says who has to agree to an Approval. It reads the grant, because
// who asked for that does not count; a grant that is gone is an error.
func (c *Controller) RequirementOf(ctx context.Context, approval *v1alpha1.Approval) (Requirement, error) {
	grant, err := c.client.getGrant(ctx, approval.Spec.Grant)
	if err != nil {
		return Requirement{}, fmt.Errorf("reading the grant of the approval %q: %w", approval.Name, err)
	}
	if string(grant.UID) != approval.Spec.GrantUID {
		return Requirement{}, fmt.Errorf("the approval %q: %w", approval.Name, errReplaced)
	}
	return approvalRequirement(approval, grant.Spec.RequestedBy), nil
}

// approvalRequirement excludes the agent, and who asked for the grant it works under.
func approvalRequirement(approval *v1alpha1.Approval, requestedBy string) Requirement {
	return Requirement{
		Kind: v1alpha1.TargetApproval, Name: approval.Name, UID: string(approval.UID), Digest: approval.Spec.Digest,
		Approvers: int(approval.Spec.Approvers), Groups: approval.Spec.Groups,
		Excluded: []string{approval.Spec.Agent, requestedBy},
	}
}

// VerdictOn says what people have decided, as the API server knows it now. The
// admission policies that make Decisions true are compared with those of this
// version first; while one is absent or changed nothing counts. Then every person
// whose yes would count is asked for the right to decide once more.
//
// A no stays a no, even if the person has lost the right since.
//
// What this does not see is an admission policy that was absent for a while and
// is back: whoever may change those in the control cluster could approve
// anything.
func (c *Controller) VerdictOn(ctx context.Context, r Requirement) (Verdict, error) {
	if err := c.deciding.atOnce(ctx); err != nil {
		return Verdict{}, fmt.Errorf("no decision counts: %w", err)
	}
	return c.verdictOn(ctx, r)
}

// verdictOn is VerdictOn without a look at the admission policies.
func (c *Controller) verdictOn(ctx context.Context, r Requirement) (Verdict, error) {
	if !r.complete() {
		return Verdict{}, nil
	}
	var list v1alpha1.DecisionList
	if err := c.client.list(ctx, decisions, "spec.target.uid", r.UID, &list); err != nil {
		return Verdict{}, fmt.Errorf("listing the decisions about %s/%s: %w", r.Kind, r.Name, err)
	}
	var lost []string
	var askErr error
	counting := slices.DeleteFunc(list.Items, func(d v1alpha1.Decision) bool {
		if askErr != nil || !r.concerns(&d) || !r.agrees(&d) {
			return false
		}
		may, err := c.mayDecide(ctx, &d.Spec)
		if err != nil {
			askErr = err
		} else if !may {
			lost = append(lost, d.Spec.By)
		}
		return !may
	})
	if askErr != nil {
		return Verdict{}, askErr
	}
	verdict := Judge(r, counting, c.config.Now())
	if verdict.State == Undecided && len(lost) > 0 {
		verdict.Reason += fmt.Sprintf("; no longer allowed to decide, or not by the groups they named: %s", strings.Join(lost, ", "))
	}
	return verdict, nil
}

// mayDecide asks the control cluster whether a person may create Decisions, with
// the groups the Decision rests on.
func (c *Controller) mayDecide(ctx context.Context, d *v1alpha1.DecisionSpec) (bool, error) {
	review, err := c.deciding.client.AuthorizationV1().SubjectAccessReviews().Create(ctx, &authorizationv1.SubjectAccessReview{
		Spec: authorizationv1.SubjectAccessReviewSpec{
			User:   d.By,
			Groups: append([]string{"system:authenticated"}, d.Groups...),
			ResourceAttributes: &authorizationv1.ResourceAttributes{
				Verb: "create", Group: v1alpha1.GroupVersion.Group, Version: v1alpha1.GroupVersion.Version, Resource: decisions,
			},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return false, fmt.Errorf("asking whether %q may decide: %w", d.By, err)
	}
	return review.Status.Allowed && !review.Status.Denied, nil
}

// Consume uses an Approval up for one call, or returns *ConflictError if it was
// changed or used since it was read. The Approval must have been read before the
// verdict on it was asked for: then nothing can have happened in between. If the
// error is another one the write may have been applied, and the call must not be
// made.
func (c *Controller) Consume(ctx context.Context, approval *v1alpha1.Approval, auditID string, now time.Time) error {
	if approval.UID == "" || approval.ResourceVersion == "" || auditID == "" {
		return fmt.Errorf("consuming the approval %q: it was not read from the cluster, or there is no audit ID", approval.Name)
	}
	if consumed(approval) {
		return &ConflictError{approval.Name}
	}
	update := approval.DeepCopy()
	at := metav1.NewMicroTime(now)
	update.Status.ConsumedBy, update.Status.ConsumedAt = auditID, &at
	meta.SetStatusCondition(&update.Status.Conditions, metav1.Condition{
		Type: v1alpha1.ApprovalConsumed, Status: metav1.ConditionTrue, Reason: "CallLetThrough",
		Message: "used by the call " + auditID, LastTransitionTime: metav1.NewTime(now),
	})
	err := c.client.updateStatus(ctx, approvals, approval.Name, update)
	if apierrors.IsConflict(err) {
		return &ConflictError{approval.Name}
	}
	if err != nil {
		return fmt.Errorf("consuming the approval %q: %w", approval.Name, err)
	}
	c.tell(approval, "ApprovalConsumed", "used by the call "+auditID)
	return nil
}

// consumed is true as soon as anything in the status says so.
func consumed(approval *v1alpha1.Approval) bool {
	return approval.Status.ConsumedBy != "" || approval.Status.ConsumedAt != nil ||
		meta.IsStatusConditionTrue(approval.Status.Conditions, v1alpha1.ApprovalConsumed)
}
