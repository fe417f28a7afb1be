package authz

import "time"

// Reason is one word of the closed vocabulary in which the boundary refuses
// (design, section 6). Agents branch on it; it never changes its meaning.
type Reason string

// The reasons.
const (
	NoGrant             Reason = "NoGrant"             // the agent has no active grant, or no policy to ask under
	GrantPending        Reason = "GrantPending"        // a grant that covers the call waits for people
	GrantExpired        Reason = "GrantExpired"        // the grant that covered the call reached its end
	GrantRevoked        Reason = "GrantRevoked"        // … was revoked, deleted, or lost its policy
	OutsideGrant        Reason = "OutsideGrant"        // there is a grant, and the call is not in it
	BudgetSpent         Reason = "BudgetSpent"         // the grant's limit is reached
	RateLimited         Reason = "RateLimited"         // too many calls in a short time
	ApprovalRequired    Reason = "ApprovalRequired"    // a human has to say yes first
	ApprovalDenied      Reason = "ApprovalDenied"      // a human said no
	ApprovalExpired     Reason = "ApprovalExpired"     // the yes came or was used too late
	ApprovalConsumed    Reason = "ApprovalConsumed"    // the yes was used already
	ApprovalMismatch    Reason = "ApprovalMismatch"    // the yes is for another call
	PolicyDenied        Reason = "PolicyDenied"        // never allowed, whatever a grant says
	PolicyStale         Reason = "PolicyStale"         // the policies have not been proven fresh
	BadPath             Reason = "BadPath"             // a path the broker does not understand
	BadQuery            Reason = "BadQuery"            // a query …
	BadHeader           Reason = "BadHeader"           // a header …
	BadBody             Reason = "BadBody"             // a body …
	BadUpgrade          Reason = "BadUpgrade"          // an upgrade the broker does not forward
	RecorderUnavailable Reason = "RecorderUnavailable" // nothing can be recorded
	UpstreamDenied      Reason = "UpstreamDenied"      // the cluster's own no
	UpstreamRedirect    Reason = "UpstreamRedirect"    // the cluster tried to redirect
	IdentityUnknown     Reason = "IdentityUnknown"     // no acceptable identity (any more)
	IdentityExpired     Reason = "IdentityExpired"     // the SVID has ended
	NotReady            Reason = "NotReady"            // the broker has not finished starting
)

// Verdict is the outcome of Decide. The zero Verdict is Deny.
type Verdict uint8

// The verdicts.
const (
	Deny Verdict = iota
	NeedsApproval
	Allow
)

// Decision is what Decide found. The zero Decision denies.
type Decision struct {
	Verdict Verdict
	// Reason says why not; it is set unless the verdict is Allow.
	Reason Reason
	// Cause is a finer word under Reason, such as ProtectedNamespace; often empty.
	Cause string
	// Grant is the grant that is charged, or the one the refusal is about. It is
	// nil where no grant is involved (discovery, self reviews).
	Grant *Grant
	// Rule is the rule of the grant that covers the call, nil if none does.
	Rule *Rule
	// Policy is the one the charged grant is under, with its budgets; nil without a
	// grant.
	Policy *Policy
	// Gate is the gate the call waits at, nil if there is none.
	Gate *Gate
	// Conditional are gates of which it is not known yet whether they hold, the
	// strictest first. Until Settle is told, the verdict is as if all did.
	Conditional []*Gate
	// certain is the strictest of the gates that hold in any case, nil if none does.
	certain *Gate
	// waived is what Waived will be if the call is allowed.
	waived string
	// Covering counts the active grants that cover the call; see Set.Candidates.
	Covering int
	// Waived is the built-in gate that would have stood, had it not been waived.
	Waived string
	// Values says that the answer may show the values of Secrets. Without it every
	// answer to a call on Secrets has to be masked, whatever the verdict.
	Values bool
	// Self is set for calls the broker answers itself: reviews, and the agent's
	// own grants and approvals. They never go to the cluster.
	Self bool
}

// Settle says which of the conditional gates hold; holds is asked about one after
// the other, until one does. The strictest gate that holds is the one the call
// waits at; if none does, the call is allowed.
func (d *Decision) Settle(holds func(*Gate) bool) {
	conditional := d.Conditional
	if len(conditional) == 0 {
		return
	}
	d.Conditional = nil
	for _, gate := range conditional {
		if holds(gate) {
			d.Gate = gate
			return
		}
	}
	d.settled()
}

// settled makes the verdict of the gates that hold in any case.
func (d *Decision) settled() {
	if d.Gate = d.certain; d.Gate != nil {
		d.Verdict, d.Reason = NeedsApproval, ApprovalRequired
		return
	}
	d.Verdict, d.Reason, d.Waived = Allow, "", d.waived
}

// Question is everything a decision depends on.
type Question struct {
	// Set is what the agent holds, as compiled by the index. Nil denies.
	Set *Set
	// Call is what the agent wants to do.
	Call *Call
	// Now is the moment the decision is for.
	Now time.Time
	// FreshUntil is the moment up to which the index is proven fresh.
	FreshUntil time.Time
	// Pinned is the name of the one grant the caller wants to use, empty for any.
	// It only ever narrows.
	Pinned string
}

// Decide says whether a call may happen now. It is pure: the same question has
// the same answer. The order of the checks is the order of the reasons a person
// wants to hear; any of them failing denies.
func Decide(q Question) Decision {
	var d Decision
	q.decide(&d)
	return d
}

// decide writes the answer into a zero Decision: on the way there it is large
// enough for copies to cost as much as the checks.
func (q *Question) decide(d *Decision) {
	switch {
	case q.Set == nil || q.Call == nil:
		d.Reason = NotReady
		return
	case !q.Now.Before(q.FreshUntil): // zero included
		d.Reason = PolicyStale
		return
	case q.Set.suspended != "":
		d.Reason, d.Cause = PolicyDenied, "Suspended"
		return
	case q.Call.Verb == 0:
		d.Reason = BadPath
		return
	case q.Call.discovery():
		d.Verdict = Allow
		return
	case q.Call.AsksAboutItself():
		d.Verdict, d.Self = Allow, true
		return
	case q.Call.OwnObjects():
		*d = q.Set.OwnObjects(q.Call)
		return
	}
	if cause := q.Set.boundary.never(q.Call); cause != "" {
		d.Reason, d.Cause = PolicyDenied, cause
		return
	}
	if q.cover(d); d.Reason == "" {
		q.Set.gated(q.Call, d)
	}
}
