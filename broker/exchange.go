package broker

import (
	"crypto/sha256"
	"encoding/hex"
	"hash"
	"net/http"
	"strconv"
	"time"

	"github.com/taskgate/taskgate/authz"
	"github.com/taskgate/taskgate/broker/request"
	"github.com/taskgate/taskgate/recorder"
)

// exchange is one call from the first byte to the outcome. It belongs to the
// goroutine of its handler.
type exchange struct {
	b       *boundary
	conn    *agentConn
	w       http.ResponseWriter
	r       *http.Request
	started time.Time
	auditID string

	request  *request.Request
	decision authz.Decision
	question authz.Question

	// last is the record that was begun last; the next one is written over it.
	last *recorder.Event
	// going is the answer that goes on once serve has returned; nil if there is
	// none.
	going *going
	// gated is what is known about the approval of the call; nil for a call that
	// needs none.
	gated *gatedCall
	// podUID is that of the pod a call looks into or opens, when it was looked at
	// last; empty if there was none.
	podUID string
	// stream is the recording of what a stream carries; nil if there is none.
	stream   *recorder.Stream
	exitCode *int // of the command, nil if it is not known
	// cleared are the gates whose conditions are about objects, and did not hold.
	cleared []*authz.Gate
}

// event begins a record about this call. The fields every record of a call
// shares are the same in all of them, so that each line can be read alone. It is
// good until the next one is begun.
func (x *exchange) event(stage recorder.Stage) *recorder.Event {
	if x.last == nil {
		x.last = &recorder.Event{Annotations: make(map[string]string, 8)}
	}
	e := x.last
	clear(e.Annotations)
	*e = recorder.Event{
		AuditID: x.auditID, Stage: stage, RequestURI: x.r.RequestURI, Verb: x.r.Method,
		User:                     recorder.UserInfo{Username: x.conn.agent},
		UserAgent:                x.r.UserAgent(),
		RequestReceivedTimestamp: recorder.MicroTime{Time: x.started},
		StageTimestamp:           recorder.MicroTime{Time: x.b.now()},
		SourceIPs:                x.conn.sources,
		Annotations:              e.Annotations,
	}
	e.Annotations[recorder.AnnotationSVID] = x.conn.svid
	if x.request != nil {
		describeCall(e, x.request)
	}
	x.describeDecision(e)
	if e.ObjectRef != nil && x.podUID != "" {
		e.ObjectRef.UID = x.podUID
	}
	return e
}

// describeCall writes down what the call was understood to be.
func describeCall(e *recorder.Event, r *request.Request) {
	if c := &r.Call; c.Resource != "" {
		e.Verb = c.Verb.String()
		e.ObjectRef = &recorder.ObjectReference{
			Resource: c.Resource, Subresource: c.Subresource, Namespace: c.Namespace, Name: c.Name,
			APIGroup: c.Group, APIVersion: c.Version,
		}
	}
	if r.DryRun {
		e.Annotations[annotationDryRun] = "true"
	}
	if r.Body != nil {
		e.Annotations[recorder.AnnotationRequestBytes] = strconv.Itoa(len(r.Body))
		if !concernsSecrets(r) {
			sum := sha256.Sum256(r.Body)
			e.Annotations[recorder.AnnotationRequestSHA256] = hex.EncodeToString(sum[:])
		}
	}
}

// describeDecision writes down what was decided, and on what.
func (x *exchange) describeDecision(e *recorder.Event) {
	d := &x.decision
	e.Annotations[recorder.AnnotationDecision] = "deny"
	if d.Verdict == authz.Allow {
		e.Annotations[recorder.AnnotationDecision] = "allow"
	}
	if g := d.Grant; g != nil {
		e.Annotations[recorder.AnnotationSession] = g.UID
		e.Annotations[recorder.AnnotationGrant] = g.Name
		e.Annotations[recorder.AnnotationTask] = g.Task
		e.Annotations[recorder.AnnotationPolicy] = g.Policy
	}
	if d.Gate != nil {
		e.Annotations[annotationGate] = d.Gate.Name
	}
	if x.gated != nil {
		x.gated.describe(e)
	}
	if d.Rule != nil && d.Verdict == authz.Allow && x.masks() {
		e.Annotations[annotationValues] = "Redacted"
	}
	if d.Waived != "" {
		e.Annotations[recorder.AnnotationWaived] = d.Waived
	}
	if d.Covering > 1 && x.question.Set != nil {
		e.Annotations[recorder.AnnotationCandidates] = joinNames(x.question.Set.Candidates(x.question))
	}
}

// Annotations of ours that package recorder does not need to know.
const (
	annotationDryRun = "taskgate.dev/dry-run"
	annotationGate   = "taskgate.dev/gate"
	annotationValues = "taskgate.dev/values" // Redacted: the answer was masked
	// annotationDeciders are the people whose Decisions let a gated call through, or
	// the one who said no.
	annotationDeciders = "taskgate.dev/deciders"
)

// withPrincipal notes who the call is in the cluster. A call the broker makes as
// itself has no principal.
func withPrincipal(e *recorder.Event, a *admission) {
	if !a.principal.valid() {
		return
	}
	if a.user == nil {
		a.user = a.principal.user()
	}
	e.ImpersonatedUser = a.user
}

// tally counts and hashes an answer on its way out.
type tally struct {
	bytes int64
	hash  hash.Hash // nil where a hash would let values be guessed
}

func newTally(r *request.Request) *tally {
	if concernsSecrets(r) {
		return &tally{}
	}
	return &tally{hash: sha256.New()}
}

func (t *tally) add(piece []byte) {
	t.bytes += int64(len(piece))
	if t.hash != nil {
		t.hash.Write(piece)
	}
}

func (t *tally) describe(e *recorder.Event) {
	e.Annotations[recorder.AnnotationResponseBytes] = strconv.FormatInt(t.bytes, 10)
	if t.hash != nil {
		e.Annotations[recorder.AnnotationResponseSHA256] = hex.EncodeToString(t.hash.Sum(nil))
	}
}
