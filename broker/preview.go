package broker

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/google/uuid"

	"github.com/taskgate/taskgate/authz"
	"github.com/taskgate/taskgate/broker/request"
	"github.com/taskgate/taskgate/recorder"
)

// sidecarContainer is the name of the sidecar in an agent's pod; SPIRE's entries
// select by it, so it cannot be another.
const sidecarContainer = "taskgate"

// maxPreview bounds what is read of an object the broker looks at itself.
const maxPreview = 4 << 20

// showsSidecar refuses to open, or to show the logs of, a pod that carries the
// sidecar: an agent must not look into the boundary. The pod is read first, as a
// call of its own.
//
// Fails closed: a pod that cannot be read is not opened; one that is not there is
// left to the cluster to say so.
func (x *exchange) showsSidecar() *refusal {
	x.podUID = ""
	c := &x.request.Call
	if c.Group != "" || c.Resource != "pods" || c.Name == "" {
		return nil
	}
	switch c.Subresource {
	case "log", "exec", "attach", "portforward", "ephemeralcontainers":
	default:
		return nil
	}
	seen, refused := x.look("/api/v1/namespaces/"+c.Namespace+"/pods/"+c.Name, nil, typeJSON)
	switch {
	case refused != nil:
		return refused
	case seen.status == http.StatusNotFound:
		return nil
	case seen.status != http.StatusOK:
		return x.denied(refuse(authz.UpstreamDenied, "Preview", http.StatusForbidden,
			"the broker has to see the pod first, and the cluster refused that (HTTP %d). Next: ask an operator to run: taskgate policy rbac %s", seen.status, x.decision.Grant.Policy))
	}
	var pod struct {
		Metadata struct{ UID string }
		Spec     struct {
			Containers, InitContainers []struct{ Name string }
		}
	}
	if err := json.Unmarshal(seen.body, &pod); err != nil {
		return x.denied(unavailable(authz.NotReady, "Preview", "the pod could not be read. Next: repeat the same command"))
	}
	for _, container := range append(pod.Spec.Containers, pod.Spec.InitContainers...) {
		if container.Name == sidecarContainer {
			x.decision.Reason, x.decision.Cause = authz.PolicyDenied, "Sidecar"
			return x.denied(undecided(&x.decision, &x.question))
		}
	}
	x.podUID = pod.Metadata.UID
	return nil
}

// denied takes an allowing decision back, so that the record says deny.
func (x *exchange) denied(r *refusal) *refusal {
	x.decision.Verdict = authz.Deny
	return r
}

// sight is what the cluster answered to a preview. It never reaches the agent.
type sight struct {
	status int
	body   []byte
}

// typeJSON is how previews want to be answered.
const typeJSON = "application/json"

// look reads something under the agent's own principal.
func (x *exchange) look(path string, query url.Values, accept string) (*sight, *refusal) {
	asked := &http.Request{
		Method: http.MethodGet, RequestURI: (&url.URL{Path: path, RawQuery: query.Encode()}).RequestURI(),
		Header: http.Header{"Accept": {accept}}, Body: http.NoBody,
	}
	parsed, notParsed := x.b.parser.Parse(asked)
	if notParsed != nil {
		return nil, x.invariant("a preview is not understood: " + notParsed.Text)
	}
	return x.preview(parsed, asked.Header)
}

// preview makes a call for the broker's own eyes: one that reads, or a dry run. It
// is a call of its own, with its own audit ID and records that name this call as
// the parent. One that could change something is durable before it is sent.
//
// Fails closed: without a record, an answer, or with an answer too large to be
// judged, it is a refusal of the call it was made for.
func (x *exchange) preview(parsed *request.Request, header http.Header) (*sight, *refusal) {
	if parsed.Call.Verb.Mutates() && !parsed.DryRun {
		return nil, x.invariant("a preview would change something")
	}
	admitted := x.decision // but to look; the call itself may have to wait
	admitted.Verdict, admitted.Reason, admitted.Cause, admitted.Gate = authz.Allow, "", "", nil
	look := &exchange{b: x.b, conn: x.conn, r: x.r, started: x.b.now(), auditID: uuid.NewString(), request: parsed, decision: admitted}
	a := &admission{request: parsed, principal: principalOf(x.conn.agent, x.decision.Grant), auditID: look.auditID, verbatim: true} // for the broker alone
	if !a.principal.valid() {
		return nil, x.invariant("a preview without a principal")
	}
	intent := look.previewEvent(x, a, recorder.StageRequestReceived)
	receipt, err := x.b.recorder.Append(intent)
	if err == nil && parsed.Call.Verb.Mutates() { // admission plugins may see a dry run
		err = receipt.Wait(x.r.Context())
	}
	if err != nil {
		return nil, x.unrecorded(err)
	}
	a.intent, a.granted = receipt, true
	seen, err := look.fetch(a, header)
	outcome := look.previewEvent(x, a, recorder.StageResponseComplete)
	if seen == nil {
		outcome.Annotations[recorder.AnnotationOutcome] = outcomeUnknown
	} else {
		outcome.ResponseStatus = &recorder.ResponseStatus{Code: int32(seen.status)}
	}
	if _, lost := x.b.recorder.Append(outcome); lost != nil {
		x.b.log.Warn().Err(lost).Msg("cannot record the outcome of a preview; it will be recorded as unknown")
	}
	switch {
	case errors.Is(err, errTooLarge):
		return nil, refuse(authz.PolicyDenied, "TooLarge", http.StatusForbidden, "what the call is about is larger than the broker can judge. Next: narrow the call, for instance by a label selector")
	case err != nil:
		return nil, unavailable(authz.NotReady, "UpstreamUnavailable", "the cluster does not answer. Next: repeat the same command in a few seconds")
	}
	return seen, nil
}

var errTooLarge = errors.New("the answer is too large to be judged")

// previewPatience is how long the call waits for a preview.
const previewPatience = 15 * time.Second

// fetch returns what was answered, also with an error if the answer came and
// cannot be used.
func (x *exchange) fetch(a *admission, header http.Header) (*sight, error) {
	ctx, cancel := context.WithTimeout(x.r.Context(), previewPatience)
	defer cancel()
	response, err := x.b.upstream.send(ctx, a, header)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	seen := &sight{status: response.StatusCode}
	if err := a.intent.Wait(ctx); err != nil {
		return seen, err
	}
	seen.body, err = io.ReadAll(io.LimitReader(response.Body, maxPreview+1))
	if err == nil && len(seen.body) > maxPreview {
		err = errTooLarge
	}
	return seen, err
}

func (x *exchange) previewEvent(parent *exchange, a *admission, stage recorder.Stage) *recorder.Event {
	e := x.event(stage)
	e.RequestURI = x.request.URI()
	withPrincipal(e, a)
	e.Annotations[recorder.AnnotationPurpose] = "preview"
	e.Annotations[recorder.AnnotationParent] = parent.auditID
	return e
}
