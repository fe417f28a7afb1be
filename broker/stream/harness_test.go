package stream_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/remotecommand"
	"k8s.io/klog/v2"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
	"k8s.io/streaming/pkg/httpstream/wsstream"

	"github.com/taskgate/taskgate/broker/stream"
)

func TestMain(m *testing.M) {
	klog.SetSlogLogger(slog.New(slog.DiscardHandler)) // the clients' own complaints
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("k8s.io/klog/v2.(*flushDaemon).run.func1"))
}

// journal keeps frames, and makes them durable a moment after they were appended,
// one batch after the other, as a disk does.
type journal struct {
	mu      sync.Mutex
	frames  []stream.Frame
	durable int           // of frames
	stalled chan struct{} // closed when it goes on; nil if it does
	delay   time.Duration
	discard bool // keep nothing
	count   int  // of frames, if they are not kept
	syncing sync.Mutex
}

type receipt struct {
	of *journal
	n  int
}

func (j *journal) Append(ctx context.Context, f *stream.Frame) (stream.Receipt, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.discard {
		j.count++
		return receipt{j, j.count}, nil
	}
	kept := *f
	kept.Data = bytes.Clone(f.Data)
	j.frames = append(j.frames, kept)
	return receipt{j, len(j.frames)}, nil
}

func (r receipt) Wait(ctx context.Context) error {
	r.of.mu.Lock()
	stalled, delay := r.of.stalled, r.of.delay
	r.of.mu.Unlock()
	if stalled != nil {
		select {
		case <-stalled:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	// One sync at a time; it covers what was appended when it began.
	r.of.syncing.Lock()
	defer r.of.syncing.Unlock()
	r.of.mu.Lock()
	safe, all := r.of.durable >= r.n, max(len(r.of.frames), r.of.count)
	r.of.mu.Unlock()
	if safe {
		return nil
	}
	time.Sleep(delay)
	r.of.mu.Lock()
	defer r.of.mu.Unlock()
	r.of.durable = max(r.of.durable, all)
	return nil
}

// data is what is on record of a channel, durable or not.
func (j *journal) data(channel stream.Channel, connection uint32) string {
	j.mu.Lock()
	defer j.mu.Unlock()
	var all []byte
	for _, f := range j.frames {
		if f.Channel == channel && f.Connection == connection {
			all = append(all, f.Data...)
		}
	}
	return string(all)
}

func (j *journal) ended(channel stream.Channel) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, f := range j.frames {
		if f.Channel == channel && f.End {
			return true
		}
	}
	return false
}

// durably is how many bytes of a channel are safe.
func (j *journal) durably(channel stream.Channel) int {
	j.mu.Lock()
	defer j.mu.Unlock()
	n := 0
	for _, f := range j.frames[:j.durable] {
		if f.Channel == channel {
			n += len(f.Data)
		}
	}
	return n
}

// watched counts what arrives somewhere, and holds it against the journal: nothing
// may arrive that is not safe.
type watched struct {
	t       testing.TB
	journal *journal
	channel stream.Channel
	mu      sync.Mutex
	got     bytes.Buffer
}

func (w *watched) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.got.Write(p)
	if safe := w.journal.durably(w.channel); safe < w.got.Len() {
		w.t.Errorf("%d bytes of channel %d arrived when %d were on record", w.got.Len(), w.channel, safe)
	}
	return len(p), nil
}

func (w *watched) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.got.String()
}

// rig is the broker's part between a client and a pod, without everything else.
type rig struct {
	testing.TB
	pod      *httptest.Server
	broker   *httptest.Server
	journal  *journal
	limits   stream.Limits
	account  func(int) error
	mu       sync.Mutex
	outcomes []stream.Outcome
	cancel   context.CancelCauseFunc
	ended    chan struct{} // one value for each stream
	stdin    *watched
}

func newRig(t testing.TB, serve http.Handler) *rig {
	t.Helper()
	j := &journal{delay: 200 * time.Microsecond}
	r := &rig{TB: t, journal: j, ended: make(chan struct{}, 10_000), stdin: &watched{t: t, journal: j, channel: stream.Stdin},
		limits: stream.Limits{Bytes: 1 << 40, Time: time.Hour, Recorder: 30 * time.Second, Silence: time.Minute}}
	if serve == nil {
		serve = r.podHandler()
	}
	r.pod = httptest.NewServer(serve)
	r.listen(0)
	t.Cleanup(func() {
		r.stop(errors.New("the test is over"))
		r.broker.Close()
		r.pod.CloseClientConnections()
		r.pod.Close()
	})
	return r
}

// listen serves agents, in segments of so many bytes if that is not zero.
func (r *rig) listen(segment int) {
	r.broker = httptest.NewUnstartedServer(r)
	if segment > 0 {
		r.broker.Listener = segmentedListener{r.broker.Listener, segment}
	}
	r.broker.Start()
}

// transport is shared by all streams of a rig.
func (r *rig) transport() *stream.Transport {
	return &stream.Transport{Dialer: &net.Dialer{Timeout: 5 * time.Second}, Patience: 10 * time.Second}
}

func requestOf(r *http.Request) stream.Request {
	is := func(name string) bool { return r.URL.Query().Get(name) == "true" }
	asked := stream.Request{
		WebSocket: strings.EqualFold(r.Header.Get("Upgrade"), "websocket"), PortForward: strings.HasSuffix(r.URL.Path, "portforward"),
		Stdin: is("stdin"), Stdout: is("stdout"), Stderr: is("stderr"), TTY: is("tty"),
	}
	if asked.PortForward {
		asked.Stdin = true
	}
	return asked
}

func (r *rig) ServeHTTP(w http.ResponseWriter, in *http.Request) {
	defer func() { r.ended <- struct{}{} }()
	asked := requestOf(in)
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(in.Context()))
	defer cancel(nil)
	r.mu.Lock()
	r.cancel = cancel
	r.mu.Unlock()
	out, err := http.NewRequestWithContext(stream.For(ctx, asked), in.Method, r.pod.URL+in.URL.RequestURI(), nil)
	if err != nil {
		r.Error(err)
		return
	}
	for _, name := range []string{stream.HeaderProtocol, stream.HeaderWebSocketProtocol} {
		if values := in.Header[name]; len(values) > 0 {
			out.Header[name] = values
		}
	}
	answer, err := r.transport().RoundTrip(out)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer answer.Body.Close()
	pod, ok := answer.Body.(*stream.Pod)
	if !ok {
		w.WriteHeader(max(answer.StatusCode, 200))
		_, _ = io.Copy(w, io.LimitReader(answer.Body, 1<<20))
		return
	}
	agent, err := stream.Accept(w, in, http.Header{"Audit-Id": {"a"}}, asked, pod.Protocol)
	if err != nil {
		return
	}
	carrier := &stream.Carrier{Journal: r.journal, Window: stream.NewWindow(1 << 20), Limits: r.limits, Account: r.account, Farewell: farewell}
	outcome := carrier.Carry(ctx, agent, pod)
	r.mu.Lock()
	r.outcomes = append(r.outcomes, outcome)
	r.mu.Unlock()
}

func farewell(cause error) []byte {
	encoded, _ := json.Marshal(&metav1.Status{Status: metav1.StatusFailure, Message: "cut: " + cause.Error()})
	return encoded
}

// stop cuts the newest stream.
func (r *rig) stop(cause error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cancel != nil {
		r.cancel(cause)
	}
}

// outcome waits for a stream to end.
func (r *rig) outcome() stream.Outcome {
	r.Helper()
	select {
	case <-r.ended:
	case <-time.After(20 * time.Second):
		r.Fatal("the stream does not end")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.outcomes) == 0 {
		return stream.Outcome{}
	}
	return r.outcomes[len(r.outcomes)-1]
}

// podHandler is the pod's side, built on the server halves of the libraries the
// API server and the kubelet use.
func (r *rig) podHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, in *http.Request) {
		asked := requestOf(in)
		switch {
		case asked.PortForward && asked.WebSocket:
			serveTunnel(w, in)
		case asked.PortForward:
			servePorts(w, in)
		case asked.WebSocket:
			r.serveWebSocket(w, in, asked)
		default:
			r.serveSPDY(w, in, asked)
		}
	})
}

// container is what a command sees.
type container struct {
	stdin, resize  io.Reader
	stdout, stderr io.Writer
	status         io.Writer
}

func (r *rig) serveWebSocket(w http.ResponseWriter, in *http.Request, asked stream.Request) {
	channels := []wsstream.ChannelType{wsstream.IgnoreChannel, wsstream.IgnoreChannel, wsstream.IgnoreChannel, wsstream.WriteChannel, wsstream.ReadChannel}
	if asked.Stdin {
		channels[0] = wsstream.ReadChannel
	}
	if asked.Stdout {
		channels[1] = wsstream.WriteChannel
	}
	if asked.Stderr {
		channels[2] = wsstream.WriteChannel
	}
	conn := wsstream.NewConn(map[string]wsstream.ChannelProtocolConfig{
		remotecommand.StreamProtocolV5Name: {Binary: true, Channels: channels},
		remotecommand.StreamProtocolV4Name: {Binary: true, Channels: channels},
	})
	_, streams, err := conn.Open(w, in)
	if err != nil {
		return
	}
	defer conn.Close()
	_, _ = streams[1].Write(nil) // as the API server does, to say that it is open
	r.run(in, &container{streams[0], streams[4], streams[1], streams[2], streams[3]})
}

func (r *rig) serveSPDY(w http.ResponseWriter, in *http.Request, asked stream.Request) {
	if _, err := httpstream.Handshake(in, w, []string{remotecommand.StreamProtocolV4Name}); err != nil {
		return
	}
	type opened struct {
		httpstream.Stream
		replied <-chan struct{}
	}
	streams := make(chan opened)
	done := make(chan struct{})
	defer close(done)
	conn := spdy.NewResponseUpgrader().UpgradeResponse(w, in, func(s httpstream.Stream, replied <-chan struct{}) error {
		select {
		case streams <- opened{s, replied}:
		case <-done:
		}
		return nil
	})
	if conn == nil {
		return
	}
	defer conn.Close()
	expected := 1
	for _, wanted := range []bool{asked.Stdin, asked.Stdout, asked.Stderr, asked.TTY} {
		if wanted {
			expected++
		}
	}
	c := new(container)
	for range expected {
		select {
		case s := <-streams:
			<-s.replied
			switch s.Headers().Get(corev1.StreamType) {
			case corev1.StreamTypeStdin:
				c.stdin = s
			case corev1.StreamTypeStdout:
				c.stdout = s
			case corev1.StreamTypeStderr:
				c.stderr = s
			case corev1.StreamTypeError:
				c.status = s
			case corev1.StreamTypeResize:
				c.resize = s
			}
		case <-conn.CloseChan():
			return
		case <-time.After(10 * time.Second):
			return
		}
	}
	r.run(in, c)
}

// run is the command: cat, exit N, out N, sizes N, sleep, quit.
func (r *rig) run(in *http.Request, c *container) {
	command := in.URL.Query()["command"]
	number := 0
	if len(command) > 1 {
		number, _ = strconv.Atoi(command[1])
	}
	code := 0
	switch command[0] {
	case "cat":
		if _, err := io.Copy(io.MultiWriter(r.stdin, c.stdout), c.stdin); err != nil {
			return
		}
	case "exit":
		fmt.Fprint(c.stderr, "failing\n")
		code = number
	case "out":
		if _, err := c.stdout.Write([]byte(pattern(number))); err != nil {
			return
		}
		if c.stderr != nil {
			fmt.Fprint(c.stderr, pattern(number/2))
		}
	case "zeros":
		piece := make([]byte, 32<<10)
		for n := 0; n < number; n += len(piece) {
			if _, err := c.stdout.Write(piece); err != nil {
				return
			}
		}
	case "sizes":
		decoder := json.NewDecoder(c.resize)
		for {
			var size struct{ Width, Height uint16 }
			if decoder.Decode(&size) != nil {
				return
			}
			fmt.Fprintf(c.stdout, "%dx%d\n", size.Width, size.Height)
			if int(size.Width) == number {
				break
			}
		}
	case "sleep":
		fmt.Fprint(c.stdout, "sleeping\n")
		_, _ = io.Copy(io.Discard, c.stdin)
		return
	case "quit": // the way to the pod breaks
		fmt.Fprint(c.stdout, "begun\n")
		return
	}
	writeStatus(c.status, code)
}

func writeStatus(to io.Writer, code int) {
	status := metav1.Status{Status: metav1.StatusSuccess}
	if code != 0 {
		status = metav1.Status{Status: metav1.StatusFailure, Reason: remotecommand.NonZeroExitCodeReason, Message: "failed",
			Details: &metav1.StatusDetails{Causes: []metav1.StatusCause{{Type: remotecommand.ExitCodeCauseType, Message: strconv.Itoa(code)}}}}
	}
	encoded, _ := json.Marshal(&status)
	_, _ = to.Write(encoded)
}

// pattern is text in which every position can be told from its neighbours.
func pattern(n int) string {
	var b strings.Builder
	for i := 0; b.Len() < n; i++ {
		fmt.Fprintf(&b, "%d,", i)
	}
	return b.String()[:n]
}
