package broker

import (
	"errors"
	"net/http"
	"slices"

	"github.com/taskgate/taskgate/authz"
	"github.com/taskgate/taskgate/broker/mask"
)

// masks reports whether the answer to the call has to be masked: it is about
// Secrets, and the decision does not show values. The zero decision masks.
func (x *exchange) masks() bool {
	return x.request.Call.Secrets() && !x.decision.Values
}

// staysMasked refuses what would show a value in spite of the mask, or destroy
// one because of it.
func (x *exchange) staysMasked() *refusal {
	if !x.masks() {
		return nil
	}
	if operations, ok := x.request.Object.([]any); ok && slices.ContainsFunc(operations, moves) {
		return x.denied(refuse(authz.OutsideGrant, "Values", http.StatusForbidden,
			"the grant %s shows no values of Secrets, and a JSON patch that copies, moves or tests parts of one could. Next: use add, replace and remove only", x.decision.Grant.Name))
	}
	if x.request.Call.Verb.Mutates() && holdsMask(x.request.Object) {
		return x.denied(refuse(authz.BadBody, "Masked", http.StatusBadRequest,
			"the body holds the mask %q where a value belongs, and writing it would destroy the value. Next: send the real value, or patch only what changes", mask.Text))
	}
	return nil
}

// moves reports whether an operation of a JSON patch does more than write what
// the agent sent: a value that is copied into a label, or into a field in which it
// is an error, is shown; a test says whether it was guessed. Tests that guard
// against changes by others are harmless. Unknown operations count as moves.
func moves(operation any) bool {
	fields, _ := operation.(map[string]any)
	switch fields["op"] {
	case "add", "replace", "remove":
		return false
	case "test":
		return fields["path"] != "/metadata/resourceVersion" && fields["path"] != "/metadata/uid"
	}
	return true
}

// holdsMask finds the mask at any depth of a body.
func holdsMask(value any) bool {
	switch value := value.(type) {
	case string:
		return value == mask.Text || value == mask.Data
	case map[string]any:
		for _, below := range value {
			if holdsMask(below) {
				return true
			}
		}
	case []any:
		return slices.ContainsFunc(value, holdsMask)
	}
	return false
}

// maskedHeader asks the cluster for an answer that can be masked: in JSON,
// unpacked, and whole.
func maskedHeader(from http.Header) http.Header {
	return http.Header{"Accept": {mask.Accept(from.Values("Accept"))}, "User-Agent": from.Values("User-Agent")}
}

// beginMasked prepares the head of an answer that is masked, and reports whether
// the body can be. The head of a watch goes out at once; of every other answer
// only with the first piece, so that one that cannot be masked becomes a refusal.
func (x *exchange) beginMasked(a *admission, response *http.Response) bool {
	header := x.w.Header()
	for _, name := range []string{"Content-Length", "Content-Encoding", "Etag", "Last-Modified", "Warning"} {
		header.Del(name) // of the answer with the values
	}
	if !mask.Readable(response.Header.Get("Content-Type"), response.Header.Get("Content-Encoding")) {
		x.withhold(a, response.StatusCode, x.unreadable(response.StatusCode))
		return false
	}
	header.Set("Content-Type", "application/json")
	x.warn(header, a.meter)
	addWarning(header, "values of Secrets are masked: the grant "+x.decision.Grant.Name+" shows keys only")
	if x.request.Live {
		x.w.WriteHeader(response.StatusCode)
	}
	return true
}

// relayMasked passes an answer on without the values in it. It returns whether
// anything was written, with the error that ended it.
//
// Fails closed: what cannot be read is not passed on. Most answers are then a
// refusal; of a long list the beginning is out already, and it is broken off.
func (x *exchange) relayMasked(g *going, tally *tally) (begun bool, err error) {
	control := http.NewResponseController(x.w)
	if x.request.Live {
		begun = true
		if err := control.Flush(); err != nil {
			return begun, err
		}
	}
	err = mask.Copy(g.body, x.request.Live, func(piece []byte) error {
		if err := x.account(g, tally, piece); err != nil {
			return err
		}
		if !begun {
			begun = true
			x.w.WriteHeader(g.code)
		}
		if _, err := x.w.Write(piece); err != nil || !x.request.Live {
			return err
		}
		return control.Flush()
	})
	var unreadable *mask.UnreadableError
	if errors.As(err, &unreadable) {
		x.b.log.Warn().Str("auditID", x.auditID).Int64("offset", unreadable.Offset).Msg("an answer about Secrets cannot be masked")
		err = x.unreadable(g.code)
	}
	return begun, err
}

// unreadable is told in place of an answer that cannot be masked. That the
// cluster is busy, or broken, is told with its own status, so that clients wait
// as long as they were asked to.
func (x *exchange) unreadable(code int) *refusal {
	status, text := http.StatusBadGateway, "the answer of the cluster cannot be masked, so it is not shown. Next: tell an operator the audit ID "+x.auditID
	switch {
	case code >= http.StatusInternalServerError, code == http.StatusTooManyRequests:
		status, text = code, "the cluster cannot answer at the moment. Next: repeat the same command in a few seconds"
	case x.request.Call.Verb.Mutates():
		text = "the cluster took the call, and its answer cannot be masked, so it is not shown. Next: look before you repeat it"
	}
	return refuse(authz.UpstreamDenied, "Unreadable", status, "%s", text)
}

// withhold ends a call whose answer the agent sees nothing of.
func (x *exchange) withhold(a *admission, code int, r *refusal) {
	x.decision.Reason, x.decision.Cause = r.reason, r.cause
	x.complete(a, code, nil, outcomeKept)
	x.b.metrics.refused(r.reason)
	x.answer(r)
}
