package broker

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilnet "k8s.io/apimachinery/pkg/util/net"

	"github.com/taskgate/taskgate/authz"
	"github.com/taskgate/taskgate/broker/control"
	"github.com/taskgate/taskgate/broker/request"
	"github.com/taskgate/taskgate/recorder"
)

// refusal is a no on its way to the agent. It implements error.
type refusal struct {
	reason authz.Reason
	cause  string // a finer word, often empty
	status int    // HTTP status
	text   string // what is wrong and what to do next
	close  bool   // the connection is of no more use
	// details are those of the cluster's own refusal; clients branch on its causes.
	details *metav1.StatusDetails
	// word is the cluster's own one for its refusal; empty where status says it.
	word metav1.StatusReason
	// concluded says that the outcome of the call is on record already.
	concluded bool
}

func (r *refusal) Error() string { return "[taskgate:" + string(r.reason) + "] " + r.text }

func refuse(reason authz.Reason, cause string, status int, format string, args ...any) *refusal {
	return &refusal{reason: reason, cause: cause, status: status, text: fmt.Sprintf(format, args...)}
}

func notUnderstood(r *request.Refusal) *refusal {
	return &refusal{reason: r.Reason, cause: r.Cause, status: r.Status, text: r.Text, close: r.Status == http.StatusRequestTimeout}
}

// unavailable are refusals that may heal by themselves.
func unavailable(reason authz.Reason, cause, format string, args ...any) *refusal {
	return refuse(reason, cause, http.StatusServiceUnavailable, format, args...)
}

// undecided turns the outcome of a decision into what the agent reads. The next
// step is always one it can take with what it has.
func undecided(d *authz.Decision, q *authz.Question) *refusal {
	c := q.Call
	r := refuse(d.Reason, d.Cause, http.StatusForbidden, "%s", "")
	name := ""
	if d.Grant != nil {
		name = d.Grant.Name
	}
	switch d.Reason {
	case authz.NoGrant:
		r.text = fmt.Sprintf("no active grant allows you to %s. %s", does(c), nextAsk(q))
	case authz.GrantPending:
		r.text = fmt.Sprintf("the grant %s would allow you to %s and waits for approval. Next: kubectl wait --for=condition=Active taskgrant/%s --timeout=15m, then repeat the same command. Retrying before that changes nothing", name, does(c), name)
	case authz.GrantExpired:
		r.text = fmt.Sprintf("the grant %s allowed you to %s and has expired. %s", name, does(c), nextAsk(q))
	case authz.GrantRevoked:
		r.text = fmt.Sprintf("the grant %s allowed you to %s, and %s. Next: stop, and tell whoever gave you the task. Retrying changes nothing", name, does(c), ending(d.Grant))
	case authz.BudgetSpent:
		r.text = budgetSpent(d, q)
	case authz.OutsideGrant:
		r.text = fmt.Sprintf("your grants do not allow you to %s. %s", does(c), nextAsk(q))
	case authz.ApprovalRequired:
		r.text = fmt.Sprintf("to %s needs %s (gate %s). Next: make the call; the answer names the request for approval", does(c), approvalsNeeded(d.Gate.Approvers, d.Gate.Groups), d.Gate.Name)
	case authz.PolicyDenied:
		r.text = fmt.Sprintf("to %s is never allowed through taskgate, whatever a grant says (%s). Next: do without it. Retrying changes nothing", does(c), d.Cause)
	case authz.PolicyStale:
		r.status, r.text = http.StatusServiceUnavailable, "the policies cannot be proven fresh at the moment, so nothing is allowed. Next: repeat the same command in a minute"
	case authz.NotReady:
		r.status, r.text = http.StatusServiceUnavailable, "the broker is not ready yet. Next: repeat the same command in a few seconds"
	default:
		r.text = "the call is not allowed"
	}
	return r
}

// causePerDay begins the cause of a refusal for what an agent may use in a day.
const causePerDay = "perDay."

func budgetSpent(d *authz.Decision, q *authz.Question) string {
	which := ""
	if d.Cause != "" {
		which = " (" + d.Cause + ")"
	}
	if strings.HasPrefix(d.Cause, causePerDay) {
		return fmt.Sprintf("what you may use in a day under the AgentPolicy %s is spent%s; another grant does not help. Next: repeat the same command after 00:00 UTC. Retrying before that changes nothing", d.Grant.Policy, which)
	}
	return fmt.Sprintf("the budget of the grant %s is spent%s. %s", d.Grant.Name, which, nextAsk(q))
}

// ending says how a grant was taken away.
func ending(g *authz.Grant) string {
	switch {
	case g == nil:
		return "it is over"
	case g.Deleted:
		return "it was deleted"
	case g.Revoked, g.EndReason == authz.EndRevoked:
		return "it was revoked"
	case g.EndReason == authz.EndReleased:
		return "you released it"
	case g.EndReason == authz.EndSuspended:
		return "its policy was suspended"
	}
	return "its policy does not allow it any more"
}

// does says in words what a call does.
func does(c *authz.Call) string {
	if c.Resource == "" {
		return fmt.Sprintf("read %s", c.Path)
	}
	verb := c.Verb.String()
	switch c.Subresource {
	case "exec", "attach", "portforward", "proxy":
		verb = "open"
	}
	text := verb + " " + qualified(c)
	if c.Name != "" {
		text += " " + strconv.Quote(c.Name)
	}
	if c.Namespace != "" && !(c.Resource == "namespaces" && c.Group == "") {
		text += " in namespace " + strconv.Quote(c.Namespace)
	}
	if c.Namespace == "" && c.Name == "" && (c.Verb == authz.List || c.Verb == authz.Watch) {
		text += " in the whole cluster"
	}
	return text
}

func qualified(c *authz.Call) string {
	resource := c.Resource
	if c.Group != "" {
		resource += "." + c.Group
	}
	if c.Subresource != "" {
		resource += "/" + c.Subresource
	}
	return resource
}

// refuse records a no and then says it. If it cannot be recorded, that is what
// the agent hears instead.
func (x *exchange) refuse(r *refusal) {
	if !r.concluded {
		r = x.conclude(r)
	}
	x.b.metrics.refused(r.reason)
	x.answer(r)
}

// conclude records a no, and returns what the agent may hear.
func (x *exchange) conclude(r *refusal) *refusal {
	x.decision.Verdict = authz.Deny
	e := x.event(recorder.StageResponseComplete)
	e.Annotations[recorder.AnnotationReason] = string(r.reason)
	if r.cause != "" {
		e.Annotations[recorder.AnnotationCause] = r.cause
	}
	e.ResponseStatus = &recorder.ResponseStatus{Status: metav1.StatusFailure, Code: int32(r.status), Reason: string(r.reason), Message: r.text}
	if x.request != nil {
		object, err := requestObject(x.request)
		if err == nil {
			e.RequestObject = object
		}
	}
	if err := x.record(e); err != nil {
		return x.unrecorded(err)
	}
	return r
}

// recordPatience is how long an answer that only says no waits for its record.
const recordPatience = 10 * time.Second

// record makes an event durable, whether or not somebody still waits for the
// answer: net/http takes a body that does not arrive for an agent that has left.
func (x *exchange) record(e *recorder.Event) error {
	receipt, err := x.b.recorder.Append(e)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(x.r.Context()), recordPatience)
	defer cancel()
	return receipt.Wait(ctx)
}

// unrecorded is the no that itself cannot be recorded. An agent that has left is
// not waited for, and that is no fault of the recorder.
func (x *exchange) unrecorded(err error) *refusal {
	if x.r.Context().Err() == nil {
		x.b.log.Warn().Err(err).Msg("cannot record; refusing calls")
	}
	return unavailable(authz.RecorderUnavailable, "", "nothing can be recorded at the moment, so nothing is allowed. Next: repeat the same command in a minute")
}

// answer writes a refusal.
func (x *exchange) answer(r *refusal) {
	header := x.w.Header()
	header.Set("Content-Type", "application/json")
	header.Set("Cache-Control", "no-store")
	header.Set(headerAuditID, x.auditID)
	if r.close {
		header.Set("Connection", "close")
	}
	if x.request != nil && x.request.Call.Resource == "" {
		addWarning(header, r.Error()) // kubectl hides the message of a refused discovery
	}
	status := x.status(r)
	x.w.WriteHeader(r.status)
	if encoded, err := json.Marshal(&status); err == nil { // plain strings always encode
		_, _ = x.w.Write(encoded) // an agent that is gone need not be told
	}
}

// status is a refusal in the words of Kubernetes. kubectl prints the message
// only, so it is complete; programs read the causes.
func (x *exchange) status(r *refusal) metav1.Status {
	status := metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"},
		Status:   metav1.StatusFailure, Code: int32(r.status), Reason: statusReason(r.status),
		Message: x.subject() + r.Error(),
		Details: &metav1.StatusDetails{Causes: r.causes()},
	}
	if x.request != nil {
		c := &x.request.Call
		status.Details.Name, status.Details.Group, status.Details.Kind = c.Name, c.Group, c.Resource
	}
	if r.word != "" { // NotFound, Invalid, …: not that it is forbidden
		status.Reason, status.Message = r.word, r.Error()
	}
	if r.details != nil {
		causes := append(status.Details.Causes, r.details.Causes...)
		status.Details = r.details
		status.Details.Causes = causes
	}
	return status
}

func (r *refusal) causes() []metav1.StatusCause {
	causes := []metav1.StatusCause{{Type: metav1.CauseType(r.reason), Message: r.text}}
	if r.cause != "" {
		causes = append(causes, metav1.StatusCause{Type: metav1.CauseType(r.cause), Message: r.text})
	}
	return causes
}

// subject begins the message the way Kubernetes does.
func (x *exchange) subject() string {
	if x.request == nil || x.request.Call.Resource == "" {
		return ""
	}
	c := &x.request.Call
	resource := schema.GroupResource{Group: c.Group, Resource: c.Resource}.String()
	if c.Name == "" {
		return resource + " is forbidden: "
	}
	return fmt.Sprintf("%s %q is forbidden: ", resource, c.Name)
}

func statusReason(status int) metav1.StatusReason {
	switch status {
	case http.StatusForbidden:
		return metav1.StatusReasonForbidden
	case http.StatusUnauthorized:
		return metav1.StatusReasonUnauthorized
	case http.StatusServiceUnavailable:
		return metav1.StatusReasonServiceUnavailable
	case http.StatusRequestEntityTooLarge:
		return metav1.StatusReasonRequestEntityTooLarge
	case http.StatusUnsupportedMediaType:
		return metav1.StatusReasonUnsupportedMediaType
	case http.StatusMethodNotAllowed:
		return metav1.StatusReasonMethodNotAllowed
	case http.StatusBadGateway, http.StatusInternalServerError:
		return metav1.StatusReasonInternalError
	case http.StatusRequestTimeout:
		return metav1.StatusReasonTimeout
	case http.StatusTooManyRequests:
		return metav1.StatusReasonTooManyRequests
	case http.StatusNotAcceptable:
		return metav1.StatusReasonNotAcceptable
	}
	return metav1.StatusReasonBadRequest
}

// soon is how long before its end a grant is worth a warning.
const soon = 5 * time.Minute

// warn tells the agent with every answer that its grant is about to end, or its
// budget to be spent.
func (x *exchange) warn(header http.Header, meter *control.Meter) {
	g := x.decision.Grant
	if g == nil {
		return
	}
	if left := g.End().Sub(x.started); left > 0 && left < soon {
		addWarning(header, fmt.Sprintf("the grant %s ends in %s", g.Name, left.Round(time.Second)))
	}
	if meter == nil {
		return
	}
	if names := meter.NearlySpent(x.decision.Policy); len(names) > 0 {
		addWarning(header, fmt.Sprintf("the budget of the grant %s is nearly spent (%s)", g.Name, joinNames(names)))
	}
}

// addWarning adds a warning that clients print (KEP-1693).
func addWarning(header http.Header, text string) {
	if value, err := utilnet.NewWarningHeader(299, "-", text); err == nil { // plain text is always valid
		header.Add("Warning", value)
	}
}
