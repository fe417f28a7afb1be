package broker

import (
	"context"
	"errors"
	"net/http"

	"github.com/taskgate/taskgate/authz"
	"github.com/taskgate/taskgate/broker/control"
)

// consumeAttempts is how often a change of the Approval by somebody else is taken
// for what it usually is: a replica that writes down what people decided.
const consumeAttempts = 5

// consume uses the approval up for this call. It is the last thing before the call
// is let through: the intent is durable, so a crash from here on leaves a record
// whose outcome is unknown, and an approval that is either untouched, and nothing
// was sent, or used up for good.
//
// Everything is asked once more, in the order that leaves no gap: the grant, the
// Approval, then the Decisions about it, then the compare-and-swap on the version
// that was read first. Fails closed: a no, a change, a loser of the race, and a
// write whose effect is not known are all refusals.
func (x *exchange) consume() *refusal {
	for range consumeAttempts {
		if r := x.changedMeanwhile(); r != nil {
			return r
		}
		s, err := x.standing()
		switch {
		case err != nil:
			return x.unknown(err)
		case s.state == consumed && s.approval.Status.ConsumedBy == x.auditID:
			return nil // the write was sent twice by the transport, and the first one counted
		case s.state == unasked || s.approval.UID != x.gated.approval.UID:
			return refuse(authz.ApprovalExpired, "", http.StatusForbidden,
				"the approval %s is not the one that stands any more. Next: repeat the same command", x.gated.approval.Name)
		case s.state != approved:
			return x.tell(&s)
		}
		x.gated.deciders = s.deciders
		err = x.swap(&s)
		var conflict *control.ConflictError
		switch {
		case err == nil:
			return nil
		case !errors.As(err, &conflict):
			x.b.log.Error().Err(err).Str("auditID", x.auditID).Str("approval", s.approval.Name).Msg("whether an approval was used up is not known; the call was not made")
			return unavailable(authz.NotReady, "ApprovalUnknown", "whether the approval %s was used up is not known; the call was not made. Next: repeat the same command in a minute", s.approval.Name)
		}
	}
	return unavailable(authz.NotReady, "ApprovalBusy", "the approval %s keeps changing. Next: repeat the same command", x.gated.approval.Name)
}

// swap does not end with the agent: an agent that leaves must not make it unknown
// whether the approval is used up.
func (x *exchange) swap(s *standing) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(x.r.Context()), controlPatience)
	defer cancel()
	return x.b.approvals.Consume(ctx, s.approval, x.auditID, x.b.now())
}
