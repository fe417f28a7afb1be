package broker

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/taskgate/taskgate/authz"
	"github.com/taskgate/taskgate/broker/request"
	"github.com/taskgate/taskgate/broker/stream"
	"github.com/taskgate/taskgate/recorder"
)

// streams is what all streams have in common.
type streams struct {
	limits stream.Limits
	window *stream.Window
}

// How long a stream waits for its record, and for a sign of life of its sides.
const (
	frameTime   = 30 * time.Second
	silenceTime = 50 * time.Second
)

func newStreams(config *Streams) streams {
	return streams{
		limits: stream.Limits{Bytes: config.MaxBytes, Time: config.MaxTime.Duration, Recorder: frameTime, Silence: silenceTime},
		window: stream.NewWindow(config.ReadAhead),
	}
}

// annotationExitCode is that of the command of an exec or attach.
const annotationExitCode = "taskgate.dev/exit-code"

// open opens an admitted stream, whose intent is durable, and carries it to its
// end.
func (x *exchange) open(a *admission) {
	// Once the connection is taken over, the context of the request says nothing.
	ctx, done := x.b.live.add(context.WithoutCancel(x.r.Context()), x)
	defer done()
	if r := x.samePod(); r != nil {
		x.refuse(x.notSent(a, r))
		return
	}
	// From a refusal on nothing more is read from the agent, on either end.
	x.w.Header().Set("Connection", "close")
	opening, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(x.r.Context(), cancel)
	response := x.send(opening, a, func(ctx context.Context) (*http.Response, error) { return x.b.upstream.open(ctx, a, x.r.Header) })
	stop()
	if response == nil {
		return
	}
	defer response.Body.Close()
	pod, open := response.Body.(*stream.Pod)
	if !open {
		response.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(response.Body, maxRefusal), response.Body}
		response.Header.Del("Content-Length") // the body may be cut
		if x.begin(a, response) {
			x.relay(&going{admission: a, code: response.StatusCode, body: response.Body})
		}
		return
	}
	x.w.Header().Del("Connection")
	x.carryStream(ctx, a, pod)
}

// maxRefusal bounds what is passed on of an answer that is no stream.
const maxRefusal = 64 << 10

// switched reports whether the cluster opened the stream that was asked for.
func switched(response *http.Response) bool {
	_, open := response.Body.(*stream.Pod)
	return open
}

// samePod looks at the pod once more, as the last thing before the stream is
// opened: people agreed to, and the record names, one pod and not whatever has its
// name. What is left open is the moment between this look and the call.
//
// Fails closed: a pod that is gone, was replaced or cannot be read is not opened.
func (x *exchange) samePod() *refusal {
	intended := x.podUID
	if x.gated != nil {
		intended = x.gated.target.uid
	}
	if r := x.showsSidecar(); r != nil {
		return r
	}
	found := x.podUID
	x.podUID = intended
	switch {
	case found == "" || intended == "":
		return refuse(authz.UpstreamDenied, "Preview", http.StatusNotFound, "the pod %s is not there. Next: look at kubectl get pods", x.request.Call.Name)
	case found == intended:
		return nil
	case x.gated != nil:
		return refuse(authz.ApprovalMismatch, "TargetChanged", http.StatusForbidden,
			"the pod was replaced since it was approved (UID %s then, %s now). Next: repeat the same command to ask anew", intended, found)
	}
	return unavailable(authz.NotReady, "TargetChanged", "the pod was replaced at this moment (UID %s before, %s now). Next: repeat the same command", intended, found)
}

// carryStream answers the agent's upgrade and carries the stream.
func (x *exchange) carryStream(ctx context.Context, a *admission, pod *stream.Pod) {
	var err error
	if x.stream, err = x.b.recorder.Stream(x.auditID); err == nil {
		defer x.stream.Close()
		err = x.opened(http.StatusSwitchingProtocols)
	}
	if err != nil {
		x.complete(a, http.StatusSwitchingProtocols, nil, outcomeKept)
		x.answer(x.unrecorded(err))
		return
	}
	header := http.Header{headerAuditID: {x.auditID}}
	x.warn(header, a.meter)
	agent, err := stream.Accept(x.w, x.r, header, streamRequest(x.request), pod.Protocol)
	if err != nil {
		x.b.log.Debug().Err(err).Str("auditID", x.auditID).Msg("an agent left before its stream was open")
		x.complete(a, http.StatusSwitchingProtocols, nil, outcomeGone)
		return
	}
	carrier := &stream.Carrier{
		Journal: journal{x.stream}, Window: x.b.streams.window, Limits: x.b.streams.limits,
		Account: func(bytes int) error {
			if a.meter == nil {
				return nil
			}
			if err := a.meter.Out(bytes, x.decision.Policy); err != nil {
				return x.spent(err)
			}
			return nil
		},
		Farewell: x.farewellStatus,
	}
	outcome := carrier.Carry(ctx, agent, pod)
	x.completeStream(a, &outcome)
}

// journal records the frames of one stream.
type journal struct{ stream *recorder.Stream }

// Append implements stream.Journal.
func (j journal) Append(ctx context.Context, f *stream.Frame) (stream.Receipt, error) {
	receipt, err := j.stream.Append(ctx, &recorder.Frame{
		Time: f.Time, Connection: f.Connection, Port: f.Port, Channel: recorder.Channel(f.Channel), End: f.End, Data: f.Data,
	})
	return receipt, err
}

// farewellStatus is what the agent reads on the error channel when a stream is
// cut; kubectl prints its message.
func (x *exchange) farewellStatus(cause error) []byte {
	status := x.status(x.cutOf(cause))
	encoded, err := json.Marshal(&status)
	if err != nil { // plain strings always encode
		return nil
	}
	return encoded
}

// cutOf says why a stream ended in the words of refusals.
func (x *exchange) cutOf(cause error) *refusal {
	var cut *refusal
	switch {
	case errors.As(cause, &cut):
		return cut
	case errors.Is(cause, stream.ErrRecorder):
		return unavailable(authz.RecorderUnavailable, "", "the stream cannot be recorded any more, so it was cut. Next: look at what the command did; repeat it in a minute")
	case errors.Is(cause, stream.ErrProtocol):
		return refuse(authz.BadUpgrade, "Protocol", http.StatusBadRequest, "the stream was cut: %v. Next: use kubectl or client-go", stream.ErrProtocol)
	case errors.Is(cause, stream.ErrSilent):
		return unavailable(authz.NotReady, "Silent", "the stream was cut: one of its ends gave no sign of life, or took nothing, for %s. Next: look at what the command did", x.b.streams.limits.Silence)
	case errors.Is(cause, stream.ErrBytes):
		return refuse(authz.BudgetSpent, "streamBytes", http.StatusForbidden, "the stream was cut after %d bytes, as much as one may carry. Next: move less at a time", x.b.streams.limits.Bytes)
	case errors.Is(cause, stream.ErrTime):
		return refuse(authz.BudgetSpent, "streamTime", http.StatusForbidden, "the stream was cut after %s, as long as one may be open. Next: repeat the same command", x.b.streams.limits.Time)
	}
	return unavailable(authz.NotReady, "UpstreamUnavailable", "the cluster broke the stream off; how the command ended is not known. Next: look at what it did before you repeat it")
}

// completeStream records how a stream ended and what it carried.
func (x *exchange) completeStream(a *admission, o *stream.Outcome) {
	outcome := ""
	switch {
	case errors.Is(o.Cause, stream.ErrBroken):
		outcome = outcomeUnknown
		x.note(o.Cause)
	case o.Cause != nil:
		outcome = outcomeCut
		x.note(o.Cause)
	case o.AgentLeft:
		outcome = outcomeGone
	}
	x.exitCode = o.ExitCode
	x.complete(a, http.StatusSwitchingProtocols, nil, outcome)
}

func (x *exchange) note(cause error) {
	cut := x.cutOf(cause)
	x.decision.Reason, x.decision.Cause = cut.reason, cut.cause
	x.b.log.Info().Str("auditID", x.auditID).Str("agent", x.conn.agent).Str("reason", string(cut.reason)).AnErr("cause", cause).Msg("cut a stream")
}

// describeStream writes into the closing record what a stream carried.
func (x *exchange) describeStream(e *recorder.Event) {
	if x.stream == nil {
		return
	}
	x.stream.Describe(e)
	if x.exitCode != nil {
		e.Annotations[annotationExitCode] = strconv.Itoa(*x.exitCode)
	}
}

// streamRequest is what a call asks to open.
func streamRequest(r *request.Request) stream.Request {
	return stream.Request{
		WebSocket: r.Stream.WebSocket, PortForward: r.Call.Subresource == "portforward",
		Stdin: r.Call.Stream.Stdin, Stdout: r.Stream.Stdout, Stderr: r.Stream.Stderr, TTY: r.Call.Stream.TTY, Ports: r.Stream.Ports,
	}
}

// streamWords is what a stream wants in the pod, one word after the other: for the
// digest, and for people to read.
func streamWords(s *authz.Stream) []string {
	words := []string{"container=" + s.Container, "stdin=" + strconv.FormatBool(s.Stdin), "tty=" + strconv.FormatBool(s.TTY)}
	return append(append(words, "--"), s.Command...)
}
