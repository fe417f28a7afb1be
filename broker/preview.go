package broker

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/google/uuid"

	"github.com/taskgate/taskgate/authz"
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
	c := &x.request.Call
	if c.Group != "" || c.Resource != "pods" || c.Name == "" {
		return nil
	}
	switch c.Subresource {
	case "log", "exec", "attach", "portforward", "ephemeralcontainers":
	default:
		return nil
	}
	status, body, refused := x.preview("/api/v1/namespaces/" + c.Namespace + "/pods/" + c.Name)
	switch {
	case refused != nil:
		return refused
	case status == http.StatusNotFound:
		return nil
	case status != http.StatusOK:
		return x.denied(refuse(authz.UpstreamDenied, "Preview", http.StatusForbidden,
			"the broker has to see the pod first, and the cluster refused that (HTTP %d). Next: ask an operator to run: taskgate policy rbac %s", status, x.decision.Grant.Policy))
	}
	var pod struct {
		Spec struct {
			Containers, InitContainers []struct{ Name string }
		}
	}
	if err := json.Unmarshal(body, &pod); err != nil {
		return x.denied(unavailable(authz.NotReady, "Preview", "the pod could not be read. Next: repeat the same command"))
	}
	for _, container := range append(pod.Spec.Containers, pod.Spec.InitContainers...) {
		if container.Name == sidecarContainer {
			x.decision.Reason, x.decision.Cause = authz.PolicyDenied, "Sidecar"
			return x.denied(undecided(&x.decision, c))
		}
	}
	return nil
}

// denied takes an allowing decision back, so that the record says deny.
func (x *exchange) denied(r *refusal) *refusal {
	x.decision.Verdict = authz.Deny
	return r
}

// preview reads an object under the agent's own principal. It is a call of its
// own, with its own audit ID and records that name this call as the parent; its
// answer never reaches the agent.
func (x *exchange) preview(path string) (int, []byte, *refusal) {
	return x.previewOf(&http.Request{Method: http.MethodGet, RequestURI: (&url.URL{Path: path}).EscapedPath(), Header: http.Header{"Accept": {"application/json"}}, Body: http.NoBody})
}

// previewOf makes any call that changes nothing, as preview does.
func (x *exchange) previewOf(asked *http.Request) (int, []byte, *refusal) {
	parsed, notParsed := x.b.parser.Parse(asked)
	if notParsed != nil {
		return 0, nil, x.invariant("a preview is not understood: " + notParsed.Text)
	}
	if parsed.Call.Verb.Mutates() && !parsed.DryRun {
		return 0, nil, x.invariant("a preview would change something")
	}
	look := &exchange{b: x.b, conn: x.conn, r: x.r, started: x.b.now(), auditID: uuid.NewString(), request: parsed, decision: x.decision}
	look.decision.Verdict = authz.Allow // to look; the call itself may have to wait
	a := &admission{request: parsed, principal: principalOf(x.conn.agent, x.decision.Grant), auditID: look.auditID}
	if !a.principal.valid() {
		return 0, nil, x.invariant("a preview without a principal")
	}
	intent := look.previewEvent(x, a, recorder.StageRequestReceived)
	receipt, err := x.b.recorder.Append(intent)
	if err != nil {
		return 0, nil, x.unrecorded(err)
	}
	a.intent, a.granted = receipt, true
	status, body, err := look.fetch(a, asked.Header)
	outcome := look.previewEvent(x, a, recorder.StageResponseComplete)
	if err != nil {
		outcome.Annotations[recorder.AnnotationOutcome] = outcomeUnknown
	} else {
		outcome.ResponseStatus = &recorder.ResponseStatus{Code: int32(status)}
	}
	if _, lost := x.b.recorder.Append(outcome); lost != nil {
		x.b.log.Warn().Err(lost).Msg("cannot record the outcome of a preview; it will be recorded as unknown")
	}
	if err != nil {
		return 0, nil, unavailable(authz.NotReady, "UpstreamUnavailable", "the cluster does not answer. Next: repeat the same command in a few seconds")
	}
	return status, body, nil
}

// previewPatience is how long the call waits for a preview.
const previewPatience = 15 * time.Second

func (x *exchange) fetch(a *admission, header http.Header) (int, []byte, error) {
	ctx, cancel := context.WithTimeout(x.r.Context(), previewPatience)
	defer cancel()
	if a.request.Call.Verb.Mutates() { // a dry run: admission plugins may see it
		if err := a.intent.Wait(ctx); err != nil {
			return 0, nil, err
		}
	}
	response, err := x.b.upstream.send(ctx, a, header)
	if err != nil {
		return 0, nil, err
	}
	defer response.Body.Close()
	if err := a.intent.Wait(ctx); err != nil {
		return 0, nil, err
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, maxPreview))
	return response.StatusCode, body, err
}

func (x *exchange) previewEvent(parent *exchange, a *admission, stage recorder.Stage) *recorder.Event {
	e := x.event(stage)
	e.RequestURI = x.request.URI()
	withPrincipal(e, a)
	e.Annotations[recorder.AnnotationPurpose] = "preview"
	e.Annotations[recorder.AnnotationParent] = parent.auditID
	return e
}
