package control

import (
	"fmt"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/taskgate/taskgate/api/v1alpha1"
	"github.com/taskgate/taskgate/authz"
)

// evaluation is what a grant's status depends on.
type evaluation struct {
	grant *v1alpha1.TaskGrant
	// policy is the one the grant names, nil if there is none.
	policy *v1alpha1.AgentPolicy
	// siblings are the agent's grants under the same policy, this one included.
	siblings []*authz.Grant
	spent    bool // a budget that all replicas share is used up
	released bool // the agent gives it back now
	// verdict is what people decided about the grant, Undecided if nobody was
	// asked; uncounted says why no Decision counts at the moment.
	verdict   Verdict
	uncounted string
	held      string // the revoked grant that has the agent wait, "" if none
	// unclear says which condition of a gate of the policy cannot be compiled, ""
	// if all can.
	unclear string
	now     time.Time
}

// outcome is what became of a grant, before it is written as conditions.
type outcome struct {
	state   state
	reason  string
	message string
	people  bool // people agreed to it, and not the policy alone
}

type state uint8

const (
	waiting state = iota // for people, or for its policy
	denied               // final
	active
	ended // final
)

// status computes what the grant's status should be. It is a pure function;
// applied to its own result it changes nothing until time or a spec does.
func (e *evaluation) status() v1alpha1.TaskGrantStatus {
	status := *e.grant.Status.DeepCopy()
	if status.Digest == "" {
		status.Digest = Digest(&e.grant.Spec) // what people decide about, from the first moment
	}
	result := e.outcome()
	if result.state == active && status.ActiveFrom == nil {
		from := metav1.NewMicroTime(e.now)
		until := metav1.NewMicroTime(e.now.Add(e.grant.Spec.TTL.Duration))
		status.ActiveFrom, status.ExpiresAt = &from, &until
		result.message = "until " + until.UTC().Format(time.RFC3339)
	}
	if result.state == ended {
		status.EndReason = result.reason
	}
	approved, activeNow, over := result.state.conditions(status.ActiveFrom != nil)
	e.set(&status, v1alpha1.GrantApproved, approved, result)
	e.set(&status, v1alpha1.GrantActive, activeNow, result)
	e.set(&status, v1alpha1.GrantEnded, over, result)
	return status
}

// conditions are Approved, Active and Ended in this state. A grant that ended
// was approved if it ever was active.
func (s state) conditions(wasActive bool) (approved, activeNow, over metav1.ConditionStatus) {
	switch s {
	case active:
		return metav1.ConditionTrue, metav1.ConditionTrue, metav1.ConditionFalse
	case denied:
		return metav1.ConditionFalse, metav1.ConditionFalse, metav1.ConditionTrue
	case ended:
		if wasActive {
			return metav1.ConditionTrue, metav1.ConditionFalse, metav1.ConditionTrue
		}
		return metav1.ConditionFalse, metav1.ConditionFalse, metav1.ConditionTrue
	}
	return metav1.ConditionUnknown, metav1.ConditionFalse, metav1.ConditionFalse
}

// set writes one condition. The condition Approved keeps the reason it was
// given for when the grant later ends.
func (e *evaluation) set(status *v1alpha1.TaskGrantStatus, kind string, is metav1.ConditionStatus, result outcome) {
	if kind == v1alpha1.GrantApproved && meta.IsStatusConditionPresentAndEqual(status.Conditions, kind, is) && is == metav1.ConditionTrue {
		return
	}
	reason := result.reason
	if kind == v1alpha1.GrantApproved && is == metav1.ConditionTrue {
		reason = reasonWithinPolicy
		if result.people {
			reason = reasonPeople
		}
	}
	meta.SetStatusCondition(&status.Conditions, metav1.Condition{
		Type: kind, Status: is, Reason: reason, Message: result.message,
		ObservedGeneration: e.grant.Generation, LastTransitionTime: metav1.NewTime(e.now),
	})
}

// outcome is the decision about the grant.
func (e *evaluation) outcome() outcome {
	spec, status := &e.grant.Spec, &e.grant.Status
	wasActive := status.ActiveFrom != nil
	switch {
	case status.EndReason != "" || meta.IsStatusConditionTrue(status.Conditions, v1alpha1.GrantEnded):
		return e.recorded()
	case spec.Revoked, e.grant.DeletionTimestamp != nil:
		return outcome{state: ended, reason: authz.EndRevoked, message: "revoked"}
	case e.released:
		return outcome{state: ended, reason: authz.EndReleased, message: "released by the agent"}
	case wasActive:
		if reason, message := e.term().over(); reason != "" {
			return outcome{state: ended, reason: reason, message: message}
		}
		return outcome{state: active, reason: reasonActive, message: "until " + status.ExpiresAt.UTC().Format(time.RFC3339)}
	case e.policy == nil:
		return outcome{state: waiting, reason: reasonPolicyMissing, message: fmt.Sprintf("there is no AgentPolicy %q yet", spec.Policy)}
	}
	if problem := outside(Grant(e.grant), e.understood()); problem != "" {
		return outcome{state: denied, reason: reasonOutsidePolicy, message: problem}
	}
	return e.admit()
}

// understood is the policy as package authz decides on it, nil if there is none.
func (e *evaluation) understood() *authz.Policy {
	if e.policy == nil {
		return nil
	}
	policy := Policy(e.policy)
	policy.Invalid = orElse(policy.Invalid, e.unclear)
	return policy
}

func (e *evaluation) term() *term {
	return &term{grant: Grant(e.grant), policy: e.understood(), siblings: e.siblings, spent: e.spent, now: e.now}
}

// term is what the end of an active grant depends on.
type term struct {
	grant    *authz.Grant
	policy   *authz.Policy  // the one the grant names, nil if there is none
	siblings []*authz.Grant // of the same agent; needed if the policy has limits
	spent    bool           // a budget that all replicas share is used up
	now      time.Time
}

// over says why an active grant ends now, "" if it goes on.
func (t *term) over() (reason, message string) {
	grant, policy := t.grant, t.policy
	switch {
	case grant.Revoked:
		return authz.EndRevoked, "revoked"
	case policy == nil:
		return authz.EndPolicyChanged, fmt.Sprintf("the AgentPolicy %q is gone", grant.Policy)
	case policy.Suspended:
		return authz.EndSuspended, fmt.Sprintf("the AgentPolicy %q is suspended", policy.Name)
	}
	if problem := outside(grant, policy); problem != "" {
		return authz.EndPolicyChanged, problem
	}
	if end := grant.End(); !t.now.Before(end) {
		return authz.EndExpired, "it was active until " + end.UTC().Format(time.RFC3339)
	}
	if limit := policy.Limits.Exceeded(grant, t.siblings); limit != "" {
		return authz.EndLimit, fmt.Sprintf("the agent was given more grants under the AgentPolicy %q at once than it allows (%s)", policy.Name, limit)
	}
	if t.spent {
		return authz.EndBudgetSpent, "the budget is spent"
	}
	return "", ""
}

// recorded repeats what is final.
func (e *evaluation) recorded() outcome {
	over := meta.FindStatusCondition(e.grant.Status.Conditions, v1alpha1.GrantEnded)
	if over == nil {
		return outcome{state: ended, reason: e.grant.Status.EndReason, message: ""}
	}
	if e.grant.Status.EndReason == "" {
		return outcome{state: denied, reason: over.Reason, message: over.Message}
	}
	return outcome{state: ended, reason: e.grant.Status.EndReason, message: over.Message}
}

// outside says in what way a grant does not lie inside its policy, "" if it does.
func outside(grant *authz.Grant, policy *authz.Policy) string {
	if policy.Invalid != "" {
		return fmt.Sprintf("the AgentPolicy %q grants nothing: %s", policy.Name, policy.Invalid)
	}
	id, err := spiffeid.FromString(grant.Agent)
	if err != nil {
		return fmt.Sprintf("spec.agent: %v", err)
	}
	if !policy.Matches(id) {
		return fmt.Sprintf("the AgentPolicy %q is not about %s", policy.Name, grant.Agent)
	}
	if grant.TTL > policy.MaxTTL {
		return fmt.Sprintf("spec.ttl: %s is longer than the %s the AgentPolicy %q allows", grant.TTL, policy.MaxTTL, policy.Name)
	}
	if missing := authz.Missing(policy.Allow, grant.Rules); len(missing) > 0 {
		return fmt.Sprintf("the AgentPolicy %q does not allow: %s", policy.Name, abbreviate(missing))
	}
	return ""
}

func abbreviate(lines []string) string {
	const most = 8
	if len(lines) > most {
		return fmt.Sprintf("%s; and %d more", strings.Join(lines[:most], "; "), len(lines)-most)
	}
	return strings.Join(lines, "; ")
}

// admit decides about a grant that lies inside its policy and was never active.
func (e *evaluation) admit() outcome {
	limits, approval := Policy(e.policy).Limits, &e.policy.Spec.Grant.Approval
	if e.policy.Spec.Suspended {
		return outcome{state: waiting, reason: authz.EndSuspended, message: fmt.Sprintf("the AgentPolicy %q is suspended", e.policy.Name)}
	}
	if approval.None && e.held != "" {
		return outcome{state: waiting, reason: reasonOnHold, message: fmt.Sprintf(
			"the grant %s was revoked, so the agent waits until a person lets it go on: taskgate resume", e.held)}
	}
	if !approval.None {
		if people := e.people(); people.state != active {
			return people
		}
	}
	activeNow, today := e.count()
	if limits.MaxActive > 0 && activeNow >= limits.MaxActive {
		return outcome{state: denied, reason: authz.EndLimit, message: fmt.Sprintf("the agent holds %d active grants under the AgentPolicy %q, which allows %d (maxActive)",
			activeNow, e.policy.Name, limits.MaxActive)}
	}
	if limits.PerDay > 0 && today >= limits.PerDay {
		return outcome{state: denied, reason: authz.EndLimit, message: fmt.Sprintf("the agent was given %d grants under the AgentPolicy %q today, which allows %d (perDay)",
			today, e.policy.Name, limits.PerDay)}
	}
	return outcome{state: active, reason: reasonActive, people: !approval.None}
}

// pendingLimit is how long people have to decide about a grant.
const pendingLimit = 24 * time.Hour

// people says what people made of a grant that waits for them; active means that
// they agreed in time.
func (e *evaluation) people() outcome {
	need := grantRequirement(e.grant, e.policy)
	limit := e.grant.CreationTimestamp.Add(pendingLimit)
	switch {
	case e.verdict.State == Denied:
		return outcome{state: denied, reason: reasonDenied, message: said("denied", &e.verdict)}
	case e.verdict.State == Approved && e.verdict.At.Before(limit):
		return outcome{state: active}
	case !e.now.Before(limit):
		return outcome{state: denied, reason: reasonApprovalExpired, message: fmt.Sprintf("nobody who had to decided within %s", pendingLimit)}
	}
	text := fmt.Sprintf("has %s; to decide: taskgate approve taskgrant/%s", orElse(e.verdict.Reason, need.progress(0)), e.grant.Name)
	if e.uncounted != "" {
		text += "; no Decision counts at the moment: " + e.uncounted
	}
	return outcome{state: waiting, reason: reasonApproval, message: text}
}

// said puts a verdict into words.
func said(what string, v *Verdict) string {
	text := what + " by " + strings.Join(v.By, ", ")
	if v.State == Denied && v.Reason != "" {
		text += ": " + v.Reason
	}
	return text
}

func orElse(text, otherwise string) string {
	if text == "" {
		return otherwise
	}
	return text
}

// grantRequirement says who has to agree to a grant. Whoever asked for it does not
// count, nor does the agent.
func grantRequirement(grant *v1alpha1.TaskGrant, policy *v1alpha1.AgentPolicy) Requirement {
	return Requirement{
		Kind: v1alpha1.TargetTaskGrant, Name: grant.Name, UID: string(grant.UID), Digest: Digest(&grant.Spec),
		Approvers: int(policy.Spec.Grant.Approval.Approvers), Groups: policy.Spec.Grant.Approval.Groups,
		Excluded: []string{grant.Spec.RequestedBy, grant.Spec.Agent},
	}
}

// asksPeople reports whether the grant waits for people and for nothing else.
func (e *evaluation) asksPeople() bool {
	result := e.outcome()
	return result.state == waiting && result.reason == reasonApproval
}

// count returns how many other grants are active, and how many became active
// since midnight UTC.
func (e *evaluation) count() (activeNow, today int) {
	midnight := e.now.UTC().Truncate(24 * time.Hour)
	for _, sibling := range e.siblings {
		if sibling.UID == string(e.grant.UID) || sibling.Policy != e.grant.Spec.Policy || sibling.ActiveFrom.IsZero() || sibling.EndReason == authz.EndLimit {
			continue
		}
		if !sibling.ActiveFrom.Before(midnight) {
			today++
		}
		if sibling.Active && sibling.EndReason == "" && !sibling.Revoked && !sibling.Deleted && e.now.Before(sibling.End()) {
			activeNow++
		}
	}
	return activeNow, today
}

// weighty reports whether the status gives something, or takes it away for good,
// so that it must not rest on an informer's view.
func weighty(before, after *v1alpha1.TaskGrantStatus) bool {
	became := func(kind string) bool {
		return meta.IsStatusConditionTrue(after.Conditions, kind) && !meta.IsStatusConditionTrue(before.Conditions, kind)
	}
	return became(v1alpha1.GrantEnded) || became(v1alpha1.GrantActive)
}

func same(before, after *v1alpha1.TaskGrantStatus) bool {
	return equality.Semantic.DeepEqual(before, after)
}
