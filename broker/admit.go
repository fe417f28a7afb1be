package broker

import (
	"errors"
	"net/http"
	"strings"

	"github.com/taskgate/taskgate/authz"
	"github.com/taskgate/taskgate/broker/control"
	"github.com/taskgate/taskgate/broker/request"
	"github.com/taskgate/taskgate/recorder"
)

// admission is the right to forward one call. Only admit makes one that is
// granted; the zero value forwards nothing.
type admission struct {
	granted   bool
	request   *request.Request
	principal principal
	user      *recorder.UserInfo // principal, once a record needed it
	auditID   string
	// intent is the record of the call; for a mutation it is durable already, for
	// a read the answer must wait for it.
	intent recorder.Receipt
	meter  *control.Meter // nil if no grant is charged
	// verbatim says that the agent may read the answer as the cluster wrote it;
	// without it the answer is masked (values.go).
	verbatim bool
}

// admit is the one door. It decides about the call, finds out which conditional
// gates stand before it, asks people where a gate
// stands, charges the grant, puts the intent on record, and uses up the approval;
// a mutation, and whatever needed an approval, leaves admit with its intent
// durable.
//
// Fails closed: no decision, an unproven policy source, an approval that is not
// there for exactly this call, a budget that cannot be reserved and a record that
// cannot be kept are all refusals.
func (x *exchange) admit() (*admission, *refusal) {
	if r := x.decide(); r != nil {
		return nil, r
	}
	if x.decision.Verdict == authz.NeedsApproval {
		if r := x.passGate(); r != nil {
			return nil, r
		}
	}
	a := &admission{request: x.request, principal: principalOf(x.conn.agent, x.decision.Grant), auditID: x.auditID, verbatim: !x.masks()}
	if !a.principal.valid() {
		return nil, x.invariant("a grant without agent, task or policy was about to be used")
	}
	if r := x.charge(a); r != nil {
		return nil, r
	}
	if r := x.intend(a); r != nil {
		return nil, r
	}
	if x.gated != nil {
		if r := x.consume(); r != nil {
			return nil, x.notSent(a, r)
		}
	}
	a.granted = true
	return a, nil
}

// passGate returns nil if people have said yes to exactly this call. From then on
// the call is one that is allowed, and will use the approval up.
func (x *exchange) passGate() *refusal {
	if r := x.seekApproval(); r != nil {
		return r
	}
	pinned := ""
	if x.decision.Gate.PinVersion {
		pinned = x.gated.target.version
	}
	if err := x.request.BindTarget(x.gated.target.uid, pinned); err != nil {
		return x.invariant("delete options that were decoded cannot be encoded")
	}
	x.decision.Verdict, x.decision.Reason = authz.Allow, ""
	return nil
}

// intend puts the intent on record, and waits for it where it must be durable
// before the call.
func (x *exchange) intend(a *admission) *refusal {
	e := x.event(recorder.StageRequestReceived)
	withPrincipal(e, a)
	object, err := requestObject(x.request)
	if err != nil {
		return x.invariant("a body that was decoded cannot be encoded")
	}
	e.RequestObject = object
	if a.intent, err = x.b.recorder.Append(e); err != nil {
		return x.unrecorded(err)
	}
	if x.request.Call.Verb.Mutates() || x.gated != nil {
		if err := a.intent.Wait(x.r.Context()); err != nil {
			return x.notSent(a, x.unrecorded(err))
		}
	}
	return nil
}

// notSent ends a call whose intent is on record: nothing of it left the broker.
func (x *exchange) notSent(a *admission, r *refusal) *refusal {
	x.denied(r)
	if x.r.Context().Err() == nil { // an agent that has left was refused nothing
		x.decision.Reason, x.decision.Cause = r.reason, r.cause
	}
	x.complete(a, 0, nil, outcomeNotSent)
	r.concluded = true
	return r
}

// decide asks the grants, and what only the cluster knows about the call. Nil
// means that the call is allowed, or that it needs an approval.
func (x *exchange) decide() *refusal {
	if err := x.b.ready(); err != nil {
		return unavailable(authz.NotReady, "", "the broker is not ready: %v. Next: repeat the same command in a few seconds; if it stays like this, tell an operator", err)
	}
	set, err := x.conn.pin.Set()
	if err != nil {
		return x.invariant("the index cannot be read: " + err.Error())
	}
	x.question = authz.Question{
		Set: set, Call: &x.request.Call, Now: x.b.now(), FreshUntil: x.b.index.FreshUntil(),
		Pinned: x.r.Header.Get(headerGrant),
	}
	x.decision = authz.Decide(x.question)
	if x.decision.Verdict == authz.Deny {
		return undecided(&x.decision, &x.question)
	}
	if r := x.knownToCluster(); r != nil {
		return r
	}
	if r := x.staysMasked(); r != nil {
		return r
	}
	x.settle()
	return nil
}

// headerGrant carries the name of the grant a sidecar is pinned to. An agent
// that sets it itself only narrows what it may do.
const headerGrant = "Taskgate-Grant"

// knownToCluster refuses resources the cluster does not serve, and objects
// addressed in the wrong scope: a rule with wildcards would cover them, and what
// they become later is not known. It narrows reads over all namespaces to those
// that are not out of reach.
func (x *exchange) knownToCluster() *refusal {
	c := &x.request.Call
	if c.Resource == "" || x.decision.Self {
		return nil
	}
	kind, known := x.b.kindOf(c.Group, c.Resource, c.Subresource)
	if !known {
		x.decision.Verdict = authz.Deny
		return refuse(authz.OutsideGrant, "UnknownResource", http.StatusForbidden,
			"the cluster serves no %s. Next: look at kubectl api-resources", qualified(c))
	}
	own := c.Group == "" && c.Resource == "namespaces"
	if !kind.namespaced && c.Namespace != "" && !own {
		x.decision.Verdict = authz.Deny
		return refuse(authz.OutsideGrant, "Scope", http.StatusForbidden, "%s are not in a namespace. Next: leave the namespace out", qualified(c))
	}
	if kind.namespaced && c.Namespace == "" && !c.Verb.Mutates() {
		x.narrow()
	}
	return x.showsSidecar()
}

// narrow keeps the objects of namespaces that are out of reach out of an answer
// over all namespaces.
func (x *exchange) narrow() {
	var selectors []string
	for _, namespace := range x.b.never.Namespaces {
		selectors = append(selectors, "metadata.namespace!="+namespace)
	}
	if len(selectors) > 0 {
		x.request.Narrow(strings.Join(selectors, ","))
	}
}

// charge takes the call out of the budget of its grant.
func (x *exchange) charge(a *admission) *refusal {
	d := &x.decision
	if d.Grant == nil {
		return nil
	}
	meter, err := x.b.charge(x.r.Context(), d.Grant, d.Policy, control.Use{
		Mutation: x.request.Call.Verb.Mutates() && !x.request.DryRun && x.request.Stream == nil,
		Stream:   x.request.Stream != nil,
	})
	if err != nil {
		return x.spent(err)
	}
	a.meter = meter
	return nil
}

// spent refuses what a budget does not allow, or may not allow: one that cannot be
// reserved counts as spent, for the moment.
func (x *exchange) spent(err error) *refusal {
	d := &x.decision
	var spent *control.SpentError
	if !errors.As(err, &spent) {
		x.b.log.Warn().Err(err).Str("grant", d.Grant.Name).Msg("cannot reserve a budget")
		return unavailable(authz.NotReady, "BudgetNotReserved", "the budget of the grant %s cannot be reserved at the moment. Next: repeat the same command in a few seconds", d.Grant.Name)
	}
	d.Reason, d.Cause = authz.BudgetSpent, spent.Budget
	if spent.Today {
		d.Cause = causePerDay + spent.Budget
	}
	return undecided(d, &x.question)
}

// invariant reports a state that must not exist: loudly to the operators, without
// details to the agent.
func (x *exchange) invariant(what string) *refusal {
	x.b.log.Error().Str("auditID", x.auditID).Str("agent", x.conn.agent).Msg("InvariantViolation: " + what)
	x.b.metrics.invariants.Inc()
	return refuse(authz.NotReady, "InvariantViolation", http.StatusInternalServerError, "the broker refused because of a defect of its own. Next: tell an operator the audit ID %s", x.auditID)
}
