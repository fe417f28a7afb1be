package cli

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/taskgate/taskgate/api/v1alpha1"
	"github.com/taskgate/taskgate/broker/control"
)

// The kinds people decide about, as a Decision names them.
const (
	kindApproval = "Approval"
	kindGrant    = "TaskGrant"
)

// target is what people decide about, and what is known about it.
type target struct {
	kind, name, uid, digest string
	agent, task, policyName string
	created                 time.Time
	approval                *v1alpha1.Approval    // nil for a TaskGrant
	grant                   *v1alpha1.TaskGrant   // of an Approval the one the call is made under; nil if it cannot be read
	policy                  *v1alpha1.AgentPolicy // of the grant; nil if it cannot be read
	decisions               []v1alpha1.Decision   // about this object and digest, oldest first
	approvers               int                   // 0: not known, or nobody is asked
	groups                  []string
}

func ofApproval(a *v1alpha1.Approval) *target {
	return &target{
		kind: kindApproval, name: a.Name, uid: string(a.UID), digest: a.Spec.Digest, agent: a.Spec.Agent, task: a.Spec.Task,
		policyName: a.Spec.Policy, created: a.CreationTimestamp.Time, approval: a, approvers: int(a.Spec.Approvers), groups: a.Spec.Groups,
	}
}

func ofGrant(g *v1alpha1.TaskGrant) *target {
	digest := g.Status.Digest
	if digest == "" { // no broker has seen it yet
		digest = control.Digest(&g.Spec)
	}
	return &target{
		kind: kindGrant, name: g.Name, uid: string(g.UID), digest: digest, agent: g.Spec.Agent, task: g.Spec.Task,
		policyName: g.Spec.Policy, created: g.CreationTimestamp.Time, grant: g,
	}
}

// under adds the policy; a TaskGrant is approved by whom its policy says.
func (t *target) under(policy *v1alpha1.AgentPolicy) {
	t.policy = policy
	if t.kind == kindGrant && policy != nil {
		t.approvers, t.groups = int(policy.Spec.Grant.Approval.Approvers), policy.Spec.Grant.Approval.Groups
	}
}

// decided adds what people have said about exactly this object.
func (t *target) decided(all []v1alpha1.Decision) {
	for _, d := range all {
		if d.Spec.Target == (v1alpha1.DecisionTarget{Kind: t.kind, Name: t.name, UID: t.uid, Digest: t.digest}) {
			t.decisions = append(t.decisions, d)
		}
	}
	slices.SortStableFunc(t.decisions, func(a, b v1alpha1.Decision) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), strings.Compare(a.Name, b.Name))
	})
}

// path is how a command names it.
func (t *target) path() string { return strings.ToLower(t.kind) + "/" + t.name }

// yeses counts the people whose yes is good here as far as one can tell from
// outside; what counts is decided by the broker.
func (t *target) yeses() int {
	people := map[string]bool{}
	for _, d := range t.decisions {
		if d.Spec.Verdict == v1alpha1.VerdictApprove && !t.askedBy(d.Spec.By) && t.asks(d) {
			people[d.Spec.By] = true
		}
	}
	return len(people)
}

// asks reports whether a Decision rests on a group that is asked.
func (t *target) asks(d v1alpha1.Decision) bool {
	return len(t.groups) == 0 || len(common(d.Spec.Groups, t.groups)) > 0
}

// askedBy reports whether a person asked for it, or for the grant it is under.
func (t *target) askedBy(user string) bool {
	return user == t.agent || t.grant != nil && user == t.grant.Spec.RequestedBy
}

func common(a, b []string) []string {
	var both []string
	for _, x := range a {
		if slices.Contains(b, x) {
			both = append(both, x)
		}
	}
	return both
}

// needs says in words who has to agree.
func (t *target) needs() string {
	switch {
	case t.approvers > 0 && len(t.groups) > 0:
		return fmt.Sprintf("%d of %d from %s", t.yeses(), t.approvers, strings.Join(t.groups, ", "))
	case t.approvers > 0:
		return fmt.Sprintf("%d of %d", t.yeses(), t.approvers)
	case t.policy != nil && t.policy.Spec.Grant.Approval.None:
		return "nobody"
	}
	return "unknown"
}

// standing is how far it has come.
type standing struct {
	word string // Waiting, or what became of it
	open bool   // people are being asked
	good bool   // it may be used
	why  string
}

func (t *target) standing(now time.Time) standing {
	if t.approval != nil {
		return approvalStanding(t.approval, now)
	}
	s := grantStanding(t.grant)
	if s.open && t.policy != nil && t.policy.Spec.Grant.Approval.None {
		s.open = false // it waits for something else
	}
	return s
}

// approvalStanding reads the status, and the clock where the status is late.
func approvalStanding(a *v1alpha1.Approval, now time.Time) standing {
	status := &a.Status
	if meta.IsStatusConditionTrue(status.Conditions, v1alpha1.ApprovalConsumed) {
		return standing{word: "Used", why: "it was approved, and the call was let through" + atTime(status.ConsumedAt)}
	}
	decided := meta.FindStatusCondition(status.Conditions, v1alpha1.ApprovalDecided)
	switch {
	case decided != nil && decided.Status == metav1.ConditionTrue && decided.Reason == v1alpha1.DecidedApproved:
		if status.DecidedAt != nil && !now.Before(status.DecidedAt.Add(a.Spec.UseWithin.Duration)) {
			return standing{word: v1alpha1.DecidedExpired, why: fmt.Sprintf("it was approved%s and not used within %s", atTime(status.DecidedAt), a.Spec.UseWithin.Duration)}
		}
		return standing{word: v1alpha1.DecidedApproved, good: true, why: "approved" + atTime(status.DecidedAt)}
	case decided != nil && decided.Status == metav1.ConditionTrue:
		return standing{word: decided.Reason, why: cmp.Or(decided.Message, strings.ToLower(decided.Reason)+atTime(status.DecidedAt))}
	case !now.Before(a.Spec.ExpiresAt.Time):
		return standing{word: v1alpha1.DecidedExpired, why: "nobody decided before " + clock(a.Spec.ExpiresAt.Time)}
	}
	return standing{word: "Waiting", open: true, why: "waits for people"}
}

func grantStanding(g *v1alpha1.TaskGrant) standing {
	conditions := g.Status.Conditions
	over, active := meta.FindStatusCondition(conditions, v1alpha1.GrantEnded), meta.FindStatusCondition(conditions, v1alpha1.GrantActive)
	switch {
	case over != nil && over.Status == metav1.ConditionTrue && meta.IsStatusConditionFalse(conditions, v1alpha1.GrantApproved):
		return standing{word: "Denied", why: cmp.Or(over.Message, over.Reason)}
	case over != nil && over.Status == metav1.ConditionTrue:
		return standing{word: over.Reason, why: cmp.Or(over.Message, over.Reason)}
	case g.Spec.Revoked || g.DeletionTimestamp != nil:
		return standing{word: "Revoked", why: "revoked"}
	case active == nil:
		return standing{word: "Waiting", open: true, why: "no broker has seen it yet"}
	case active.Status == metav1.ConditionTrue:
		return standing{word: "Active", good: true, why: "active " + active.Message}
	}
	return standing{word: "Waiting", open: true, why: cmp.Or(active.Message, active.Reason)}
}

func atTime(at *metav1.MicroTime) string {
	if at == nil {
		return ""
	}
	return " at " + clock(at.Time)
}

func clock(at time.Time) string { return at.UTC().Format("2006-01-02 15:04:05Z") }

// expires is when nobody is asked any more; zero if that has no end.
func (t *target) expires() time.Time {
	if t.approval != nil {
		return t.approval.Spec.ExpiresAt.Time
	}
	return time.Time{}
}

// resolve reads the Approval or TaskGrant a person named: approval/NAME,
// taskgrant/NAME, or NAME alone if only one of the two has it.
func resolve(ctx context.Context, c *objects, reference string) (*target, error) {
	kind, name, written := strings.Cut(reference, "/")
	if !written {
		kind, name = "", reference
	}
	kind, _, _ = strings.Cut(strings.ToLower(kind), ".")
	var found []*target
	if slices.Contains([]string{"", "approval", approvals, "ap"}, kind) {
		approval, err := get[v1alpha1.Approval](ctx, c, approvals, name)
		if err == nil {
			found = append(found, ofApproval(approval))
		} else if !apierrors.IsNotFound(err) {
			return nil, explain(err, "reading the Approval", roleApprover)
		}
	}
	if slices.Contains([]string{"", "taskgrant", grants, "tg"}, kind) {
		grant, err := get[v1alpha1.TaskGrant](ctx, c, grants, name)
		if err == nil {
			found = append(found, ofGrant(grant))
		} else if !apierrors.IsNotFound(err) {
			return nil, explain(err, "reading the TaskGrant", roleApprover)
		}
	}
	switch {
	case len(found) == 2:
		return nil, couldNot("there is an Approval and a TaskGrant %q: write approval/%s or taskgrant/%s", name, name, name)
	case len(found) == 0:
		return nil, couldNot("there is no Approval and no TaskGrant %q; see what waits with taskgate pending", reference)
	}
	return found[0], nil
}

// find is resolve with everything a person should know before deciding. A grant
// or policy that is gone or hidden from the person stays unknown; Decisions that
// cannot be read are an error.
func find(ctx context.Context, c *objects, reference string) (*target, error) {
	t, err := resolve(ctx, c, reference)
	if err != nil {
		return nil, err
	}
	if t.approval != nil {
		grant, err := get[v1alpha1.TaskGrant](ctx, c, grants, t.approval.Spec.Grant)
		if err == nil && string(grant.UID) == t.approval.Spec.GrantUID {
			t.grant = grant
		} else if err := unlessHidden(err); err != nil {
			return nil, explain(err, "reading the TaskGrant", roleApprover)
		}
	}
	policy, err := get[v1alpha1.AgentPolicy](ctx, c, policies, t.policyName)
	if err == nil {
		t.under(policy)
	} else if err := unlessHidden(err); err != nil {
		return nil, explain(err, "reading the AgentPolicy", roleApprover)
	}
	all, err := list[v1alpha1.DecisionList](ctx, c, decisions, "spec.target.uid="+t.uid)
	if err != nil {
		return nil, explain(err, "listing the Decisions", roleApprover)
	}
	t.decided(all.Items)
	return t, nil
}

func unlessHidden(err error) error {
	if apierrors.IsNotFound(err) || apierrors.IsForbidden(err) {
		return nil
	}
	return err
}
