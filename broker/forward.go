package broker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/taskgate/taskgate/authz"
	"github.com/taskgate/taskgate/broker/control"
	"github.com/taskgate/taskgate/internal/relay"
	"github.com/taskgate/taskgate/recorder"
)

// What the record of an outcome says where there is no answer of the cluster.
const (
	outcomeNotSent = "not-sent"              // nothing left the broker
	outcomeUnknown = recorder.OutcomeUnknown // it was sent, and what became of it is not known
	outcomeKept    = "withheld"              // the cluster answered, and the agent saw nothing of it
	outcomeCut     = "cut"                   // the answer was ended before its end
	outcomeGone    = "client-gone"           // the agent left before the end of the answer
)

// forward sends an admitted call and relays the answer.
func (x *exchange) forward(a *admission) {
	x.carry(a, func(ctx context.Context) (*http.Response, error) { return x.b.upstream.send(ctx, a, x.r.Header) })
}

// sender makes a call once, and returns the answer.
type sender func(context.Context) (*http.Response, error)

// carry makes a call whose intent is recorded, and relays the answer. One that
// goes on is only begun: its relaying is left to goOn.
func (x *exchange) carry(a *admission, call sender) {
	if x.request.Live {
		x.carryLive(a, call)
		return
	}
	response := x.send(x.r.Context(), a, call)
	if response == nil {
		return
	}
	defer response.Body.Close()
	if x.begin(a, response) {
		x.relay(&going{admission: a, code: response.StatusCode, body: response.Body})
	}
}

// send returns the answer of the cluster if it may reach the agent, or nil after
// having answered itself.
func (x *exchange) send(ctx context.Context, a *admission, call sender) *http.Response {
	response, err := call(ctx)
	if err != nil {
		x.unsent(a, ctx, err)
		return nil
	}
	// The fsync of a read hides under the call upstream; from here on nothing
	// leaves before it is done.
	if err := a.intent.Wait(ctx); err != nil {
		x.complete(a, response.StatusCode, nil, outcomeKept)
		x.answer(x.unrecorded(err))
	} else if !x.replaced(a, response) {
		return response
	}
	response.Body.Close()
	return nil
}

// unsent ends a call that got no answer. Whether a mutation took effect is then
// not known, and the record and the agent are told so.
func (x *exchange) unsent(a *admission, ctx context.Context, err error) {
	outcome := outcomeUnknown
	if errors.Is(err, errInvariant) {
		outcome = outcomeNotSent
	}
	x.complete(a, 0, nil, outcome)
	var cut *refusal
	switch {
	case errors.As(context.Cause(ctx), &cut):
		x.answer(cut)
	case errors.Is(err, errInvariant):
		x.answer(x.invariant(err.Error()))
	case ctx.Err() != nil: // the agent is gone
	default:
		x.b.log.Warn().Err(err).Str("auditID", x.auditID).Msg("the cluster does not answer")
		text := "the cluster does not answer. Next: repeat the same command in a few seconds"
		if x.request.Call.Verb.Mutates() {
			text = "the cluster did not answer, and whether the call took effect is not known. Next: look before you repeat it"
		}
		x.answer(unavailable(authz.NotReady, "UpstreamUnavailable", "%s", text))
	}
}

// replaced handles answers that must not reach the agent as they are.
func (x *exchange) replaced(a *admission, response *http.Response) bool {
	status := response.StatusCode
	var r *refusal
	switch {
	case switched(response):
		return false
	case status == http.StatusSwitchingProtocols:
		r = refuse(authz.BadUpgrade, "Unasked", http.StatusBadGateway, "the cluster switched protocols without being asked. Next: tell an operator")
	case status >= 300 && status < 400 && status != http.StatusNotModified:
		r = refuse(authz.UpstreamRedirect, "", http.StatusBadGateway, "the cluster answered with a redirect, which is not followed. Next: tell an operator")
	case status == http.StatusUnauthorized:
		x.b.log.Error().Msg("the cluster does not accept the broker's credential; check guarded.kubeconfig or the service account")
		r = unavailable(authz.NotReady, "UpstreamCredential", "the cluster does not accept the broker. Next: tell an operator")
	case status == http.StatusForbidden:
		r = upstreamDenied(response, x.decision.Grant)
	default:
		return false
	}
	x.decision.Reason = r.reason
	x.complete(a, status, nil, "upstream_"+strconv.Itoa(status))
	x.b.metrics.refused(r.reason)
	x.answer(r)
	return true
}

// upstreamDenied is the cluster's own no in its own words and with its own
// details, and what can be done about it.
func upstreamDenied(response *http.Response, grant *authz.Grant) *refusal {
	const most = 64 << 10
	body, err := io.ReadAll(io.LimitReader(response.Body, most))
	if err != nil {
		body = nil
	}
	return deniedByCluster(body, grant)
}

func deniedByCluster(body []byte, grant *authz.Grant) *refusal {
	said := clusterStatus(body)
	r := refuse(authz.UpstreamDenied, "", http.StatusForbidden, "the cluster itself refused: %s", said.Message)
	r.details = said.Details
	// Authorisers name the user: `User "…" cannot get …`, `user "…" … is attempting to grant …`.
	if byRBAC := strings.Contains(strings.ToLower(said.Message), `user "`+upstreamUser+`" `); byRBAC && grant != nil {
		r.text += ". Next: if the task needs it, ask an operator to run: taskgate policy rbac " + grant.Policy
	}
	return r
}

// clusterStatus reads a refusal of the API server, whatever it is encoded as.
func clusterStatus(body []byte) metav1.Status {
	if object, _, err := scheme.Codecs.UniversalDeserializer().Decode(body, nil, nil); err == nil {
		if status, ok := object.(*metav1.Status); ok {
			return *status
		}
	}
	return metav1.Status{Message: "no reason was given"}
}

// begin writes the head of the answer, and reports whether its body may follow.
func (x *exchange) begin(a *admission, response *http.Response) bool {
	header := x.w.Header()
	relay.Headers(header, response.Header)
	header[headerAuditID] = []string{x.auditID}
	x.warn(header, a.meter)
	if x.request.Live {
		if err := x.opened(response.StatusCode); err != nil {
			x.complete(a, response.StatusCode, nil, outcomeKept)
			x.answer(x.unrecorded(err))
			return false
		}
	}
	if !a.verbatim {
		return x.beginMasked(a, response)
	}
	x.w.WriteHeader(response.StatusCode)
	return true
}

// going is an answer of which the head is written, or can be.
type going struct {
	admission   *admission
	code        int
	contentType string
	body        io.ReadCloser

	// Of an answer that goes on: why it has to end, nil as long as it has not, and
	// what is to be done when it has.
	cause func() error
	end   func()
}

// relay passes the body of an answer on, counting and hashing it.
func (x *exchange) relay(g *going) {
	tally, last := newTally(x.request), byte('\n')
	var err error
	if g.admission.verbatim {
		_, err = relay.Body(x.w, g.body, x.request.Live, func(piece []byte) error {
			if err := x.account(g.admission.meter, tally, piece); err != nil {
				return err
			}
			last = piece[len(piece)-1]
			return nil
		})
	} else {
		var begun bool
		if begun, err = x.relayMasked(g, tally); !begun && g.cutBy(err) != nil {
			x.withhold(g.admission, g.code, g.cutBy(err))
			return
		}
	}
	if err == nil {
		x.complete(g.admission, g.code, tally, "")
		return
	}
	x.broken(g, tally, err, last == '\n')
}

// account counts a piece before the agent gets it, or says why it may not.
func (x *exchange) account(meter *control.Meter, tally *tally, piece []byte) error {
	if meter != nil {
		if err := meter.Out(len(piece), x.decision.Policy); err != nil {
			return x.spent(err)
		}
	}
	tally.add(piece)
	return nil
}

// broken ends an answer that did not come to its end.
func (x *exchange) broken(g *going, tally *tally, err error, atLineEnd bool) {
	cut := g.cutBy(err)
	if cut == nil {
		x.complete(g.admission, g.code, tally, outcomeGone)
	} else {
		x.decision.Reason, x.decision.Cause = cut.reason, cut.cause
		x.complete(g.admission, g.code, tally, outcomeCut)
	}
	if cut == nil || !x.request.Live {
		// An answer with a length, or one that is taken for complete at its end:
		// the agent must see that it is not. The header goes first, or a client
		// would take the answer for none and ask again.
		_ = http.NewResponseController(x.w).Flush() // the answer is broken off either way
		panic(http.ErrAbortHandler)
	}
	x.farewell(cut, g.contentType, atLineEnd)
}

// cutBy returns why the broker itself ended an answer, nil if it did not.
func (g *going) cutBy(err error) *refusal {
	var cut *refusal
	if errors.As(err, &cut) || g.cause != nil && errors.As(g.cause(), &cut) {
		return cut
	}
	return nil
}

// farewell tells an agent why its watch or log ends, if the answer is at a place
// where something can be said: behind a whole line.
func (x *exchange) farewell(cut *refusal, contentType string, atLineEnd bool) {
	media, _, _ := strings.Cut(contentType, ";")
	switch {
	case x.request.Call.Verb == authz.Watch && media == "application/json" && atLineEnd:
		status := x.status(cut)
		event := metav1.WatchEvent{Type: string(watch.Error), Object: runtime.RawExtension{Object: &status}}
		if encoded, err := json.Marshal(&event); err == nil {
			_, _ = x.w.Write(append(encoded, '\n'))
		}
	case x.request.Call.Subresource == "log":
		prefix := ""
		if !atLineEnd {
			prefix = "\n"
		}
		_, _ = fmt.Fprintf(x.w, "%staskgate: this log was cut: %s\n", prefix, cut.Error())
	}
}

// opened records that a call that goes on has begun.
func (x *exchange) opened(code int) error {
	e := x.event(recorder.StageResponseStarted)
	e.ResponseStatus = &recorder.ResponseStatus{Code: int32(code)}
	_, err := x.b.recorder.Append(e)
	return err
}

// complete records the outcome. Nobody waits for it: if it is lost, the intent
// stays open and its outcome becomes unknown, which is the truth. code is 0 if the
// cluster gave no answer.
func (x *exchange) complete(a *admission, code int, tally *tally, outcome string) {
	e := x.event(recorder.StageResponseComplete)
	withPrincipal(e, a)
	if code != 0 {
		e.ResponseStatus = &recorder.ResponseStatus{Code: int32(code)}
	}
	if tally != nil {
		tally.describe(e)
	}
	if outcome != "" {
		e.Annotations[recorder.AnnotationOutcome] = outcome
	}
	if x.decision.Reason != "" {
		e.Annotations[recorder.AnnotationReason] = string(x.decision.Reason)
	}
	if x.decision.Cause != "" {
		e.Annotations[recorder.AnnotationCause] = x.decision.Cause
	}
	x.describeStream(e)
	if _, err := x.b.recorder.Append(e); err != nil {
		x.b.log.Warn().Err(err).Str("auditID", x.auditID).Msg("cannot record an outcome; it will be recorded as unknown")
	}
}
