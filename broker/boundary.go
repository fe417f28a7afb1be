package broker

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime/debug"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/rs/zerolog"

	"github.com/taskgate/taskgate/authz"
	"github.com/taskgate/taskgate/broker/control"
	"github.com/taskgate/taskgate/broker/notify"
	"github.com/taskgate/taskgate/broker/request"
	"github.com/taskgate/taskgate/broker/tasks"
	"github.com/taskgate/taskgate/identity"
	"github.com/taskgate/taskgate/recorder"
)

// boundary serves the sidecars. It is the http.Handler of the broker.
type boundary struct {
	identity *identity.Source
	index    *authz.Index
	never    authz.Boundary
	recorder *recorder.Recorder
	upstream *upstream
	tasks    *tasks.Server
	parser   *request.Parser
	live     *liveCalls
	metrics  *metrics
	log      zerolog.Logger
	now      func() time.Time

	// charge takes a call out of the budget of its grant (control.Controller).
	charge func(context.Context, *authz.Grant, *authz.Policy, control.Use) (*control.Meter, error)
	// kindOf looks a resource up in what the cluster serves (catalog).
	kindOf func(group, resource, subresource string) (kindInfo, bool)
	// ready says why calls cannot be served at all, nil if they can.
	ready func() error

	// cluster is the name of the guarded cluster.
	cluster string
	// approvals is where people are asked; without it no gated call is let through.
	approvals approvals
	asking    Approvals // how much one agent may ask
	turns     turns
	streams   streams          // how streams are carried
	notify    *notify.Notifier // nil: nobody is told

	conns sync.Map // net.Conn → *agentConn, while it is open
}

// bodyDeadline is the time a request has to arrive whole.
const bodyDeadline = 30 * time.Second

// ServeHTTP takes one request through the boundary. What it does before an answer
// that goes on begins to, it does on another goroutine: the stack it needs for
// that is several times what waiting for events takes, and a thousand idle watches
// would keep it. Sidecars send such calls over HTTP/2, and no others.
func (b *boundary) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	x := &exchange{b: b, conn: connOf(r), w: &patientWriter{ResponseWriter: w, limit: silenceTime}, r: r, started: b.now(), auditID: uuid.NewString()}
	if r.ProtoMajor == 2 {
		apart(x.serve)
	} else {
		x.serve()
	}
	if x.going != nil {
		x.goOn()
	}
}

// apart does something on another goroutine and returns when it is done. A panic
// there goes on here, where net/http expects it.
func apart(do func()) {
	done := make(chan any)
	go func() {
		defer func() {
			problem := recover()
			if problem != nil && problem != http.ErrAbortHandler {
				problem = fmt.Sprintf("%v\n%s", problem, debug.Stack())
			}
			done <- problem
		}()
		do()
	}()
	if problem := <-done; problem != nil {
		panic(problem)
	}
}

// serve takes a request up to the end of its answer, or to the beginning of one
// that goes on.
func (x *exchange) serve() {
	b, w, r := x.b, x.w, x.r
	if x.conn == nil {
		x.conn = &agentConn{agent: "unknown", sources: sources(r.RemoteAddr)}
		x.refuse(&refusal{reason: authz.IdentityUnknown, status: http.StatusUnauthorized, close: true, text: "the identity of the connection could not be verified"})
		return
	}
	if r.ProtoMajor == 1 {
		x.conn.unread.Add(-1)
		_ = http.NewResponseController(w).SetWriteDeadline(time.Time{}) // that of a call that was cut before on this connection
	}
	if refused := x.conn.identify(x.started); refused != nil {
		x.refuse(refused)
		return
	}
	if refused := x.parse(); refused != nil {
		x.refuse(refused)
		return
	}
	admission, refused := x.admitOrAnswer()
	switch {
	case refused != nil:
		x.refuse(refused)
	case admission != nil && x.request.Stream != nil:
		x.open(admission)
	case admission != nil:
		x.forward(admission)
	}
	b.metrics.served(x)
}

// parse reads the request. The deadline holds for the body only: an answer may
// take as long as it likes. It stays for what is left of a refused body.
func (x *exchange) parse() *refusal {
	control := http.NewResponseController(x.w)
	if x.r.Body != http.NoBody {
		_ = control.SetReadDeadline(time.Now().Add(bodyDeadline)) // cannot fail on the server's own writers
	}
	if x.r.ProtoMajor == 1 && len(x.r.TransferEncoding) > 0 {
		// net/http does not tell whether there was a Content-Length too. Then the
		// connection must not go on (RFC 9112, section 6.3).
		x.w.Header().Set("Connection", "close")
	}
	parsed, refused := x.b.parser.Parse(x.r)
	x.request = parsed
	if refused != nil {
		return notUnderstood(refused)
	}
	_ = control.SetReadDeadline(time.Time{})
	return nil
}

// admitOrAnswer admits a call to the cluster, or answers one that is about the
// agent itself; then it returns neither.
func (x *exchange) admitOrAnswer() (*admission, *refusal) {
	switch {
	case x.request.Call.AsksAboutItself():
		return nil, x.review()
	case x.request.Call.OwnObjects():
		return nil, x.own()
	}
	return x.admit()
}

// recordMalformed records that a peer sent what is no HTTP request. What it was
// is not kept: it was never understood.
func (b *boundary) recordMalformed(conn *agentConn) {
	now := recorder.MicroTime{Time: b.now()}
	e := &recorder.Event{
		AuditID: uuid.NewString(), Stage: recorder.StageResponseComplete, User: recorder.UserInfo{Username: conn.agent}, SourceIPs: conn.sources,
		RequestReceivedTimestamp: now, StageTimestamp: now,
		ResponseStatus: &recorder.ResponseStatus{Status: "Failure", Code: http.StatusBadRequest, Reason: string(authz.BadHeader)},
		Annotations: map[string]string{
			recorder.AnnotationSVID: conn.svid, recorder.AnnotationDecision: "deny",
			recorder.AnnotationReason: string(authz.BadHeader), recorder.AnnotationCause: "Malformed",
		},
	}
	if _, err := b.recorder.Append(e); err != nil {
		b.log.Warn().Err(err).Msg("cannot record a malformed request; it was refused all the same")
	}
	b.metrics.refused(authz.BadHeader)
}

// shutdown ends the calls that go on and waits for all others.
func (b *boundary) shutdown(ctx context.Context, server *http.Server) error {
	b.live.close(unavailable(authz.NotReady, "ShuttingDown", "the broker is shutting down. Next: repeat the same command"))
	// The server does not wait for connections that were taken over.
	return errors.Join(server.Shutdown(ctx), b.live.wait(ctx))
}
