package broker

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/taskgate/taskgate/api/v1alpha1"
	"github.com/taskgate/taskgate/authz"
	"github.com/taskgate/taskgate/broker/control"
	"github.com/taskgate/taskgate/recorder"
)

// approvals is what the request path asks of the control cluster about gated
// calls (control.Controller). Every answer MUST be as of now, from the API server
// itself, never from a cache; an error means that nothing is known, and the call
// is refused. All methods may be called by many calls at once.
type approvals interface {
	// ApprovalsFor lists the Approvals with a digest, ApprovalsOf those of an agent;
	// none is no error.
	ApprovalsFor(ctx context.Context, digest string) ([]v1alpha1.Approval, error)
	ApprovalsOf(ctx context.Context, agent string) ([]v1alpha1.Approval, error)
	// CreateApproval MUST fail with an error that apierrors.IsAlreadyExists knows if
	// there is one of that name.
	CreateApproval(ctx context.Context, approval *v1alpha1.Approval) (*v1alpha1.Approval, error)
	// RequirementOf says who has to agree, VerdictOn what people have decided.
	RequirementOf(ctx context.Context, approval *v1alpha1.Approval) (control.Requirement, error)
	VerdictOn(ctx context.Context, r control.Requirement) (control.Verdict, error)
	// Consume MUST let one caller win, over all replicas: who gets nil. The Approval
	// MUST have been read before the verdict on it was asked for. Any error means
	// that the call must not be made, though it may have been consumed;
	// *control.ConflictError says that the Approval changed since it was read.
	Consume(ctx context.Context, approval *v1alpha1.Approval, auditID string, now time.Time) error
}

// gatedCall is one gated call on its way to being let through.
type gatedCall struct {
	elements callElements
	digest   string
	target   target
	// approval is the one the call waits for, was refused by or is let through by;
	// nil as long as there is none.
	approval *v1alpha1.Approval
	deciders []string
}

// describe writes the approval into a record of the call.
func (g *gatedCall) describe(e *recorder.Event) {
	e.Annotations[recorder.AnnotationDigest] = g.digest
	if g.approval != nil {
		e.Annotations[recorder.AnnotationApproval] = g.approval.Name
	}
	if len(g.deciders) > 0 {
		e.Annotations[annotationDeciders] = joinNames(g.deciders)
	}
	if e.ObjectRef != nil && g.target.object != nil {
		e.ObjectRef.UID, e.ObjectRef.ResourceVersion = g.target.uid, g.target.version
	}
}

// standing is what the newest Approval of a digest is worth at a moment. The zero
// standing lets nothing through: people have to be asked.
type standing struct {
	state    approvalState
	approval *v1alpha1.Approval
	number   int           // of the Approval among those of its digest
	since    time.Time     // when it was consumed or ran out
	useBy    time.Time     // of an approved one
	said     string        // why it was denied
	deciders []string      // who settled it
	gone     time.Duration // how long the agent still hears of it
}

type approvalState uint8

const (
	unasked approvalState = iota
	waiting
	denied
	expired
	consumed
	approved
)

// afterwards is how long an agent that repeats its call is told that its approval
// was used or ran out. After that the same call asks anew: an agent that comes
// back late means to do it again. A no is final for the grant.
const afterwards = time.Minute

// controlPatience bounds what one question to the control cluster may take.
const controlPatience = 10 * time.Second

// seekApproval lets a gated call go on if people have said yes to exactly it;
// otherwise it asks them, and the refusal says what to do. Nothing is used up yet:
// that is consume's, as the last thing before the call.
//
// Fails closed: if the control cluster, the guarded cluster or the recorder does
// not answer, or what they say is not understood, the call is refused.
func (x *exchange) seekApproval() *refusal {
	if x.b.approvals == nil {
		return undecided(&x.decision, &x.question)
	}
	state, r := x.attempt()
	if state == waiting && x.decision.Gate.Hold {
		settled, cut := x.hold()
		if cut != nil {
			return cut
		}
		if settled {
			_, r = x.attempt() // the target is looked at again, too
		}
	}
	return r
}

// attempt goes through the states of the approval once. Those of one agent come
// one after the other at this replica, so that many connections make one request
// for approval and count against the same limit.
func (x *exchange) attempt() (approvalState, *refusal) {
	release, err := x.b.turns.take(x.r.Context(), x.conn.agent)
	if err != nil { // the agent is gone
		return unasked, undecided(&x.decision, &x.question)
	}
	defer release()
	seen, r := x.lookAtTarget()
	if r != nil {
		return unasked, r
	}
	x.gated = x.gatedCall(seen)
	s, err := x.standing()
	if err != nil {
		return unasked, x.unknown(err)
	}
	if s.state == unasked {
		return x.ask(s.number)
	}
	return s.state, x.tell(&s)
}

func (x *exchange) gatedCall(seen *target) *gatedCall {
	c := &x.request.Call
	g := &gatedCall{target: *seen, elements: callElements{
		cluster: x.b.cluster, agent: x.conn.agent, grantUID: x.decision.Grant.UID,
		verb: c.Verb.String(), group: c.Group, version: c.Version, resource: c.Resource, subresource: c.Subresource,
		namespace: c.Namespace, name: c.Name, query: x.request.Query(), mediaType: x.request.MediaType, body: x.request.Body,
		targetUID: seen.uid,
	}}
	if c.Stream != nil {
		g.elements.exec = streamWords(c.Stream)
	}
	if x.decision.Gate.PinVersion {
		g.elements.targetVersion = seen.version
	}
	g.digest = g.elements.digest()
	return g
}

// standing reads the Approvals of the call's digest, and what people made of the
// newest. Only that one counts: a newer one is made when the others are over.
func (x *exchange) standing() (standing, error) {
	ctx, cancel := x.forControl()
	defer cancel()
	list, err := x.b.approvals.ApprovalsFor(ctx, x.gated.digest)
	if err != nil {
		return standing{}, err
	}
	var newest *v1alpha1.Approval
	last := -1
	for i := range list {
		number, ours := numberOf(list[i].Name, x.gated.digest)
		if ours && number > last && list[i].Spec.Digest == x.gated.digest {
			newest, last = &list[i], number
		}
	}
	if newest == nil {
		return standing{}, nil
	}
	s, err := x.judge(ctx, newest)
	s.number = last
	switch {
	case err != nil:
		return standing{}, err
	case s.state == denied, s.state == unasked:
		return s, nil
	case !askedFor(newest, x.decision.Gate) && s.state != consumed,
		s.gone > 0 && !x.b.now().Before(s.since.Add(s.gone)):
		return standing{number: last + 1}, nil // over: the next one
	}
	return s, nil
}

// judge says what one Approval is worth now. It was read before its Decisions
// are.
func (x *exchange) judge(ctx context.Context, a *v1alpha1.Approval) (standing, error) {
	s := standing{approval: a}
	now := x.b.now()
	if since, used := consumedAt(a); used {
		s.state, s.since, s.gone = consumed, since, afterwards
		return s, nil
	}
	requirement, err := x.b.approvals.RequirementOf(ctx, a)
	if err != nil {
		return standing{}, err
	}
	verdict, err := x.b.approvals.VerdictOn(ctx, requirement)
	if err != nil {
		return standing{}, err
	}
	s.deciders = verdict.By
	s.useBy = verdict.At.Add(min(a.Spec.UseWithin.Duration, x.decision.Gate.UseWithin))
	end := a.Spec.ExpiresAt.Time
	// Both are whole seconds, that of the Decision rounded down.
	switch yes := verdict.State == control.Approved && verdict.At.Before(end); {
	case verdict.State == control.Denied:
		s.state, s.said = denied, verdict.Reason
	case yes && now.Before(s.useBy):
		s.state = approved
	case yes:
		s.state, s.since, s.gone = expired, s.useBy, afterwards
	case verdict.State == control.Undecided && now.Before(end):
		s.state = waiting
	default: // nobody, or not enough people, in time
		s.state, s.since, s.gone = expired, end, afterwards
	}
	return s, nil
}

// consumedAt is when an Approval was used. Anything in its status that says so is
// taken for it.
func consumedAt(a *v1alpha1.Approval) (time.Time, bool) {
	condition := meta.FindStatusCondition(a.Status.Conditions, v1alpha1.ApprovalConsumed)
	switch {
	case a.Status.ConsumedAt != nil:
		return a.Status.ConsumedAt.Time, true
	case condition != nil && condition.Status == "True":
		return condition.LastTransitionTime.Time, true
	}
	return time.Time{}, a.Status.ConsumedBy != ""
}

// askedFor reports whether the Approval asked for what the gate asks for now: a
// yes to less does not count once a policy asks for more, or for others.
func askedFor(a *v1alpha1.Approval, gate *authz.Gate) bool {
	return a.Spec.Gate == gate.Name && int(a.Spec.Approvers) == gate.Approvers && slices.Equal(a.Spec.Groups, gate.Groups)
}

// sameGate reports whether two decisions met the same gate. No gate is like none.
func sameGate(a, b *authz.Gate) bool {
	return a != nil && b != nil && a.Name == b.Name && a.Policy == b.Policy && a.Approvers == b.Approvers && slices.Equal(a.Groups, b.Groups)
}

// tell notes an Approval in the call, and returns what the agent hears of it: nil
// if it was approved.
func (x *exchange) tell(s *standing) *refusal {
	x.gated.approval, x.gated.deciders = s.approval, s.deciders
	name, does := s.approval.Name, does(&x.request.Call)
	switch s.state {
	case approved:
		return nil
	case waiting:
		return x.required(s.approval)
	case denied:
		return refuse(authz.ApprovalDenied, "", http.StatusForbidden,
			"to %s was denied (request %s), with the reason %s. Next: do without it, or tell whoever gave you the task; the answer holds for this TaskGrant. Retrying changes nothing", does, name, strconv.Quote(s.said))
	case expired:
		return refuse(authz.ApprovalExpired, "", http.StatusForbidden,
			"the request %s to %s ended at %s without being decided and used in time. Next: repeat the same command after %s to ask anew", name, does, clock(s.since), clockSeconds(s.since.Add(afterwards)))
	case consumed:
		return refuse(authz.ApprovalConsumed, "", http.StatusForbidden,
			"the approval %s to %s was used at %s, and is good for one call. Next: look at what the call did; to ask for another one, repeat the command after %s", name, does, clockSeconds(s.since), clockSeconds(s.since.Add(afterwards)))
	}
	return x.invariant("an approval in no state")
}

// required is what an agent hears while people decide.
func (x *exchange) required(a *v1alpha1.Approval) *refusal {
	end := a.Spec.ExpiresAt.Time
	return refuse(authz.ApprovalRequired, "", http.StatusForbidden,
		"to %s needs %s (gate %s); request %s expires %s. Next: kubectl wait --for=condition=Decided approval/%s --timeout=%s, then repeat the same command. Retrying before that changes nothing",
		does(&x.request.Call), approvalsNeeded(int(a.Spec.Approvers), a.Spec.Groups), a.Spec.Gate, a.Name, clock(end), a.Name, patience(end.Sub(x.b.now())))
}

// unknown refuses a call about whose approval nothing is known.
func (x *exchange) unknown(err error) *refusal {
	if x.r.Context().Err() == nil {
		x.b.log.Warn().Err(err).Str("auditID", x.auditID).Msg("cannot find out about an approval; refusing the call")
	}
	return unavailable(authz.NotReady, "ApprovalUnknown", "to %s needs an approval, and whether there is one cannot be found out at the moment. Next: repeat the same command in a minute", does(&x.request.Call))
}

func (x *exchange) forControl() (context.Context, context.CancelFunc) {
	return context.WithTimeout(x.r.Context(), controlPatience)
}

func approvalsNeeded(approvers int, groups []string) string {
	text := "1 approval"
	if approvers != 1 {
		text = fmt.Sprintf("%d approvals", approvers)
	}
	if len(groups) > 0 {
		text += " from " + strings.Join(groups, " or ")
	}
	return text
}

func clock(t time.Time) string        { return t.UTC().Format("15:04Z") }
func clockSeconds(t time.Time) string { return t.UTC().Format("15:04:05Z") }

// patience is a duration as kubectl takes it, in minutes if it is at least one;
// rounded up, but for the second that ends are rounded up by.
func patience(left time.Duration) string {
	if seconds := int((left + time.Second - 1) / time.Second); seconds < 60 {
		return fmt.Sprintf("%ds", max(1, seconds))
	}
	return fmt.Sprintf("%dm", int((left-time.Second+time.Minute-1)/time.Minute))
}
