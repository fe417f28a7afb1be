package stream_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	gorilla "github.com/gorilla/websocket"
	"github.com/moby/spdystream/spdy"
	client "k8s.io/client-go/tools/remotecommand"

	"github.com/taskgate/taskgate/broker/stream"
)

// segmented delivers at most so many bytes at a time.
type segmented struct {
	net.Conn
	size int
}

func (c segmented) Read(p []byte) (int, error) { return c.Conn.Read(p[:min(len(p), c.size)]) }

func (c segmented) Write(p []byte) (int, error) {
	for n := 0; n < len(p); n += c.size {
		if _, err := c.Conn.Write(p[n:min(len(p), n+c.size)]); err != nil {
			return n, err
		}
	}
	return len(p), nil
}

type segmentedListener struct {
	net.Listener
	size int
}

func (l segmentedListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return segmented{conn, l.size}, nil
}

// TestSegments (T134): what is on record does not depend on how the bytes were cut
// on their way.
func TestSegments(t *testing.T) {
	for _, way := range ways {
		for _, size := range []int{1, 2, 7} {
			r := newRig(t, nil)
			r.broker.Close()
			r.listen(size)
			text := pattern(3000)
			var out bytes.Buffer
			options, command := client.StreamOptions{Stdin: strings.NewReader(text), Stdout: &out}, "cat"
			if way == "websocket-v4" { // stdin cannot end there
				options, command = client.StreamOptions{Stdout: &out}, "out"
			}
			if err := r.exec(way, options, command, "3000"); err != nil {
				t.Fatalf("%s by %d: %v", way, size, err)
			}
			if out.String() != text || r.journal.data(stream.Stdout, 0) != text || command == "cat" && r.journal.data(stream.Stdin, 0) != text {
				t.Errorf("%s by %d: on record are %d and %d bytes", way, size, len(r.journal.data(stream.Stdin, 0)), len(r.journal.data(stream.Stdout, 0)))
			}
			r.outcome()
		}
	}
}

// raw opens an exec and returns the connection behind the answer.
func (r *rig) raw(header string) (net.Conn, *bufio.Reader) {
	r.Helper()
	conn, err := net.Dial("tcp", r.broker.Listener.Addr().String())
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { conn.Close() })
	fmt.Fprintf(conn, "GET /api/v1/namespaces/shop/pods/web-0/exec?command=sleep&stdin=true&stdout=true HTTP/1.1\r\nHost: b\r\nConnection: Upgrade\r\n%s\r\n", header)
	in := bufio.NewReader(conn)
	answer, err := http.ReadResponse(in, nil)
	if err != nil || answer.StatusCode != http.StatusSwitchingProtocols {
		r.Fatalf("%v, %+v", err, answer)
	}
	return conn, in
}

const (
	rawWebSocket = "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n"
	rawSPDY      = "Upgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n"
)

// masked is a frame as a client sends it, with a mask of zeros.
func masked(first byte, data string) string {
	return string([]byte{first, 0x80 | byte(len(data)), 0, 0, 0, 0}) + data
}

// TestBadFrames (T135): what is no frame of a client closes the stream with 1002,
// and what came before stays on record.
func TestBadFrames(t *testing.T) {
	before := masked(0x82, "\x00before")
	for name, bad := range map[string]string{
		"unmasked":               "\x82\x02\x00a",
		"reserved bit":           masked(0xC2, "\x00a"),
		"reserved opcode":        masked(0x83, "\x00a"),
		"long control frame":     "\x89\xfe\x01\x00\x00\x00\x00\x00" + strings.Repeat("x", 256),
		"fragmented control":     masked(0x09, "x"),
		"continuation of none":   masked(0x80, "x"),
		"2^63 bytes":             "\x82\xff\x80\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
		"another in a fragment":  masked(0x02, "\x00x") + masked(0x82, "\x00y"),
		"more than any sends":    "\x82\xff\x00\x00\x00\x00\x00\x20\x00\x00\x00\x00\x00\x00",
		"a channel of the pod's": masked(0x82, "\x01x"),
		"no channel":             masked(0x82, "\x09x"),
		"the end of no channel":  masked(0x82, "\xff\x09"),
		"the end of nothing":     masked(0x82, "\xff"),
		"a size that is none":    masked(0x82, "\x04[1]"),
	} {
		r := newRig(t, nil)
		conn, in := r.raw(rawWebSocket)
		if _, err := io.WriteString(conn, before+bad); err != nil {
			t.Fatal(err)
		}
		_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
		rest, _ := io.ReadAll(in)
		conn.Close()
		outcome := r.outcome()
		if !errors.Is(outcome.Cause, stream.ErrProtocol) {
			t.Errorf("%s: %+v", name, outcome)
		}
		if got := r.journal.data(stream.Stdin, 0); got != "before" {
			t.Errorf("%s: on record: %q", name, got)
		}
		if closing := bytes.Contains(rest, []byte{0x88}); !closing {
			t.Errorf("%s: no closing frame", name)
		}
	}
}

// TestInterleavedControl: pings between fragments change nothing.
func TestInterleavedControl(t *testing.T) {
	r := newRig(t, nil)
	conn, in := r.raw(rawWebSocket)
	fmt.Fprint(conn, masked(0x02, "\x00one")+masked(0x89, "ping")+masked(0x00, "two")+masked(0x8a, "")+masked(0x80, "three")+masked(0x88, "\x03\xe8"))
	rest, _ := io.ReadAll(in)
	conn.Close()
	if !bytes.Contains(rest, []byte("\x8a\x04ping")) {
		t.Errorf("no pong: %q", rest)
	}
	r.outcome()
	if got := r.journal.data(stream.Stdin, 0); got != "onetwothree" {
		t.Errorf("on record: %q", got)
	}
}

// TestBadSPDY (T137): counts and lengths that a frame only claims cost nothing.
func TestBadSPDY(t *testing.T) {
	header := func(kind, length uint32) []byte {
		return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, 0x80030000|kind), length)
	}
	headers := func(raw []byte) []byte { // SYN_STREAM with the header block as it is
		var block bytes.Buffer
		framer, err := spdy.NewFramer(&block, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := framer.WriteFrame(&spdy.SynStreamFrame{StreamId: 1, Headers: http.Header{"streamtype": {string(raw)}}}); err != nil {
			t.Fatal(err)
		}
		return block.Bytes()
	}
	for name, bad := range map[string][]byte{
		"2^31 settings":           append(header(4, 4), 0x80, 0, 0, 0),
		"a control frame of 16M":  header(1, 0xffffff),
		"a data frame of 16M":     append([]byte{0, 0, 0, 1, 0, 0xff, 0xff, 0xff}, make([]byte, 2<<20)...),
		"a header of 1M":          headers(bytes.Repeat([]byte("x"), 1<<20)),
		"no SPDY":                 []byte("GET / HTTP/1.1\r\nHost: b\r\n\r\n"),
		"an unknown type":         append(header(77, 4), 0, 0, 0, 0),
		"a type nobody asked for": headers([]byte("stderr")),
	} {
		r := newRig(t, nil)
		conn, in := r.raw(rawSPDY)
		var m0, m1 runtime.MemStats
		runtime.ReadMemStats(&m0)
		go func() { _, _ = conn.Write(bad) }()
		_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
		if name == "a control frame of 16M" { // the library reads over it first
			go func() { _, _ = conn.Write(make([]byte, 1<<24)) }()
		}
		_, _ = io.Copy(io.Discard, in)
		conn.Close()
		outcome := r.outcome()
		runtime.ReadMemStats(&m1)
		if !errors.Is(outcome.Cause, stream.ErrProtocol) {
			t.Errorf("%s: %+v", name, outcome)
		}
		if grown := int64(m1.Sys) - int64(m0.Sys); grown > 64<<20 {
			t.Errorf("%s: the program grew by %d bytes", name, grown)
		}
	}
}

// TestSilence: a side that answers no pings is closed, one that does is not.
func TestSilence(t *testing.T) {
	r := newRig(t, nil)
	r.limits.Silence = 400 * time.Millisecond
	for _, header := range []string{rawWebSocket, rawSPDY} {
		begin := time.Now()
		r.raw(header)
		outcome := r.outcome()
		if took := time.Since(begin); !errors.Is(outcome.Cause, stream.ErrSilent) || took < r.limits.Silence || took > 5*time.Second {
			t.Errorf("%+v after %v", outcome, took)
		}
	}
	for _, way := range ways {
		in, feed := io.Pipe()
		time.AfterFunc(3*r.limits.Silence, func() { feed.Close(); r.stop(errors.New("enough")) })
		err := r.exec(way, client.StreamOptions{Stdin: in, Stdout: io.Discard}, "sleep")
		if way != "websocket-v4" && err != nil && !strings.Contains(err.Error(), "enough") && !strings.Contains(err.Error(), stream.ErrBroken.Error()) {
			t.Errorf("%s: %v", way, err)
		}
		if outcome := r.outcome(); errors.Is(outcome.Cause, stream.ErrSilent) {
			t.Errorf("%s: a client that answers pings was silent", way)
		}
	}
}

// TestSlowReader: an agent that reads nothing is closed, and holds little.
func TestSlowReader(t *testing.T) {
	r := newRig(t, nil)
	r.limits.Silence = time.Second
	conn, err := net.Dial("tcp", r.broker.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET /api/v1/namespaces/shop/pods/web-0/exec?command=zeros&command=64000000&stdout=true HTTP/1.1\r\nHost: b\r\nConnection: Upgrade\r\n%s\r\n", rawWebSocket)
	outcome := r.outcome()
	if !errors.Is(outcome.Cause, stream.ErrSilent) || outcome.FromPod > 48<<20 {
		t.Errorf("%+v", outcome)
	}
}

// TestRefusedUpgrade: what the cluster answers instead of switching comes back
// whole, and both connections are closed.
func TestRefusedUpgrade(t *testing.T) {
	long := strings.Repeat("no ", 5000)
	for _, header := range []string{rawWebSocket, rawSPDY} {
		closed := make(chan struct{})
		r := newRig(t, nil)
		pod := r.pod
		defer pod.Close()
		r.pod = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, in *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprint(w, long)
		}))
		r.pod.Config.ConnState = func(_ net.Conn, state http.ConnState) {
			if state == http.StateClosed {
				close(closed)
			}
		}
		r.pod.Start()
		conn, err := net.Dial("tcp", r.broker.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "GET /api/v1/namespaces/shop/pods/web-0/exec?command=ls&stdout=true HTTP/1.1\r\nHost: b\r\nConnection: Upgrade\r\n%s\r\n", header)
		answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(answer.Body)
		if answer.StatusCode != http.StatusForbidden || string(body) != long || err != nil {
			t.Errorf("%d, %d bytes, %v", answer.StatusCode, len(body), err)
		}
		conn.Close()
		select {
		case <-closed:
		case <-time.After(5 * time.Second):
			t.Error("the connection to the cluster stays open")
		}
	}
}

// TestOtherSwitch: a switch to something that was not asked for is none.
func TestOtherSwitch(t *testing.T) {
	for name, answer := range map[string]string{
		"h2c":               "Connection: Upgrade\r\nUpgrade: h2c\r\n",
		"another protocol":  "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v1.channel.k8s.io\r\n",
		"no protocol":       "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n",
		"WebSocket, no key": "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n",
	} {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			for {
				conn, err := listener.Accept()
				if err != nil {
					return
				}
				_, _ = http.ReadRequest(bufio.NewReader(conn))
				fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\n%s\r\n", answer)
				_, _ = io.Copy(io.Discard, conn)
				conn.Close()
			}
		}()
		for _, webSocket := range []bool{true, false} {
			asked := stream.Request{WebSocket: webSocket, Stdout: true}
			request, err := http.NewRequestWithContext(stream.For(context.Background(), asked), http.MethodGet, "http://"+listener.Addr().String()+"/", nil)
			if err != nil {
				t.Fatal(err)
			}
			request.Header[stream.HeaderProtocol] = []string{"v4.channel.k8s.io"}
			if webSocket {
				delete(request.Header, stream.HeaderProtocol)
				request.Header[stream.HeaderWebSocketProtocol] = []string{"v5.channel.k8s.io"}
			}
			transport := &stream.Transport{Dialer: new(net.Dialer), Patience: time.Second}
			got, err := transport.RoundTrip(request)
			if err != nil {
				continue
			}
			if _, ok := got.Body.(*stream.Pod); ok {
				t.Errorf("%s: taken for a stream (WebSocket %v)", name, webSocket)
			}
			got.Body.Close()
		}
		listener.Close()
	}
}

// FuzzAgent feeds anything, in any pieces, to a stream that is open. Whatever it
// is, the pod gets nothing that is not on record, and the stream ends.
func FuzzAgent(f *testing.F) {
	f.Add(true, byte(3), []byte(masked(0x82, "\x00echo")+masked(0x82, "\xff\x00")))
	f.Add(true, byte(1), []byte(masked(0x02, "\x00a")+masked(0x89, "")+masked(0x80, "b")))
	f.Add(false, byte(5), spdySession(f))
	f.Add(false, byte(200), []byte{0x80, 3, 0, 4, 0, 0, 0, 4, 0x80, 0, 0, 0})
	r := newRig(f, nil)
	r.limits.Recorder = time.Second
	f.Fuzz(func(t *testing.T, webSocket bool, step byte, data []byte) {
		r.TB = t
		header := rawSPDY
		if webSocket {
			header = rawWebSocket
		}
		conn, in := r.raw(header)
		defer conn.Close()
		for len(data) > 0 {
			n := min(len(data), 1+int(step))
			if _, err := conn.Write(data[:n]); err != nil {
				break
			}
			data = data[n:]
		}
		_ = conn.(*net.TCPConn).CloseWrite()
		endsSoon(t, r, conn, in)
	})
}

// spdySession is what a client sends that opens an exec and says something.
func spdySession(t testing.TB) []byte {
	var sent bytes.Buffer
	framer, err := spdy.NewFramer(&sent, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i, kind := range []string{"error", "stdin", "stdout"} {
		if err := framer.WriteFrame(&spdy.SynStreamFrame{StreamId: spdy.StreamId(1 + 2*i), Headers: http.Header{"streamtype": {kind}}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := framer.WriteFrame(&spdy.DataFrame{StreamId: 3, Flags: spdy.DataFlagFin, Data: []byte("echo")}); err != nil {
		t.Fatal(err)
	}
	return sent.Bytes()
}

// FuzzPod feeds anything to a stream from the other side.
func FuzzPod(f *testing.F) {
	f.Add(true, byte(3), []byte("\x82\x06\x01hello\x82\x14\x03{\"status\":\"Success\"}"))
	f.Add(true, byte(1), []byte("\x02\x02\x01a\x89\x00\x80\x01b\x88\x02\x03\xe8"))
	f.Add(false, byte(5), []byte{0, 0, 0, 1, 1, 0, 0, 2, 'h', 'i', 0x80, 3, 0, 7, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0})
	var data []byte
	var step int
	upgrader := gorilla.Upgrader{Subprotocols: []string{"v5.channel.k8s.io"}}
	r := newRig(f, http.HandlerFunc(func(w http.ResponseWriter, in *http.Request) {
		var conn net.Conn
		if in.Header.Get("Upgrade") == "websocket" {
			ws, err := upgrader.Upgrade(w, in, nil)
			if err != nil {
				return
			}
			conn = ws.NetConn()
		} else {
			w.Header().Set("Connection", "Upgrade")
			w.Header().Set("Upgrade", "SPDY/3.1")
			w.Header().Set("X-Stream-Protocol-Version", "v4.channel.k8s.io")
			w.WriteHeader(http.StatusSwitchingProtocols)
			hijacked, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				return
			}
			conn = hijacked
		}
		defer conn.Close()
		for rest := data; len(rest) > 0; {
			n := min(len(rest), step)
			if _, err := conn.Write(rest[:n]); err != nil {
				return
			}
			rest = rest[n:]
		}
	}))
	f.Fuzz(func(t *testing.T, webSocket bool, pieces byte, sent []byte) {
		r.TB = t
		data, step = sent, 1+int(pieces)
		header := rawSPDY
		if webSocket {
			header = rawWebSocket
		}
		conn, in := r.raw(header)
		defer conn.Close()
		if !webSocket {
			_, _ = conn.Write(spdySession(t))
		}
		endsSoon(t, r, conn, in)
	})
}

// endsSoon waits for a stream to end, which must not take long.
func endsSoon(t *testing.T, r *rig, conn net.Conn, in io.Reader) {
	t.Helper()
	const soon = 4 * time.Second
	_ = conn.SetReadDeadline(time.Now().Add(soon))
	if _, err := io.Copy(io.Discard, in); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the stream does not end")
	}
	conn.Close()
	r.outcome()
}
