package e2e_test

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// field is a header field of HTTP/2, in the order it is sent.
type field struct{ name, value string }

// wire is an HTTP/2 connection that sends what a test writes, right or wrong.
type wire struct {
	*http2.Framer
	conn    *tls.Conn
	encoded bytes.Buffer
	encoder *hpack.Encoder
	stream  uint32
}

func dialWire(t testing.TB, d door) *wire {
	t.Helper()
	config := d.config.Clone()
	config.NextProtos = []string{"h2"}
	conn, err := tls.Dial("tcp", d.address, config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() }) // the other side may have closed it
	if conn.ConnectionState().NegotiatedProtocol != "h2" {
		t.Fatalf("%s speaks %q", d.name, conn.ConnectionState().NegotiatedProtocol)
	}
	w := &wire{conn: conn, Framer: http2.NewFramer(conn, conn), stream: 1}
	w.encoder = hpack.NewEncoder(&w.encoded)
	w.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	w.AllowIllegalWrites = true
	if _, err := conn.Write([]byte(http2.ClientPreface)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(w.WriteSettings(), w.WriteWindowUpdate(0, 1<<20)); err != nil {
		t.Fatal(err)
	}
	return w
}

// outcome is how a stream ended: a status, a reset or the end of the connection.
type outcome struct {
	status  string
	reset   http2.ErrCode
	goAway  bool
	closed  bool
	content string
}

func (o outcome) String() string {
	return fmt.Sprintf("status %q, reset %s, go away %t, closed %t: %.200s", o.status, o.reset, o.goAway, o.closed, o.content)
}

// refused says that nothing was done: an error status, a reset, or an end.
func (o outcome) refused() bool { return !strings.HasPrefix(o.status, "2") }

func (w *wire) ask(t testing.TB, fields []field, body string) outcome {
	t.Helper()
	w.encoded.Reset()
	for _, f := range fields {
		if err := w.encoder.WriteField(hpack.HeaderField{Name: f.name, Value: f.value}); err != nil {
			t.Fatal(err)
		}
	}
	id := w.stream
	w.stream += 2
	block := bytes.Clone(w.encoded.Bytes())
	first := block[:min(len(block), 16<<10)]
	_ = w.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: first, EndHeaders: len(first) == len(block), EndStream: body == ""}) // a closed connection shows below
	for rest := block[len(first):]; len(rest) > 0; {
		piece := rest[:min(len(rest), 16<<10)]
		rest = rest[len(piece):]
		if err := w.WriteContinuation(id, len(rest) == 0, piece); err != nil {
			break
		}
	}
	if body != "" {
		_ = w.WriteData(id, true, []byte(body)) // as above
	}
	return w.read(id, 3*time.Second)
}

func (w *wire) read(id uint32, patience time.Duration) outcome {
	var o outcome
	_ = w.conn.SetReadDeadline(time.Now().Add(patience)) // an open connection takes it
	for {
		frame, err := w.ReadFrame()
		if err != nil {
			o.closed = true
			return o
		}
		if _, ok := frame.(*http2.GoAwayFrame); ok {
			o.goAway = true
		}
		if frame.Header().StreamID != id {
			continue
		}
		switch frame := frame.(type) {
		case *http2.MetaHeadersFrame:
			o.status = frame.PseudoValue("status")
		case *http2.DataFrame:
			o.content += string(frame.Data())
		case *http2.RSTStreamFrame:
			o.reset = frame.ErrCode
			return o
		}
		if frame.Header().Flags.Has(http2.FlagDataEndStream) {
			return o
		}
	}
}

// plain is a usual request.
func (d door) plain(method, path string) []field {
	fields := []field{{":method", method}, {":scheme", "https"}, {":authority", d.address}, {":path", path}}
	for line := range strings.SplitSeq(strings.TrimSpace(d.head), "\r\n") {
		if name, value, _ := strings.Cut(line, ": "); name != "Host" {
			fields = append(fields, field{strings.ToLower(name), value})
		}
	}
	return fields
}

// and answers a list of its own, with more at its end.
func and(fields []field, more ...field) []field { return slices.Concat(fields, more) }

// TestHTTP2: what HTTP/2 does not allow is not served.
func TestHTTP2(t *testing.T) {
	rig := newCasesRig(t)
	a := rig.newAgent(t, "case-h2")
	rig.policy(t, "case-h2", a, "", everything)
	rig.grant(t, "case-h2", "case-h2", a, "1h", everything)
	for _, door := range a.doors(t) {
		usual := door.plain("GET", casePod)
		if got := dialWire(t, door).ask(t, usual, ""); got.status != "200" {
			t.Fatalf("control (%s): %s", door.name, got)
		}
		before := len(a.reached(t))
		post := and(door.plain("POST", caseMaps+"?dryRun=All"), field{"content-type", "application/json"})
		rows := []struct {
			id, name string
			fields   []field
			body     string
		}{
			{"T050", "extended connect", and(door.plain("CONNECT", casePod+"/exec"), field{":protocol", "websocket"}), ""},
			{"T050", "extended connect, in order", append([]field{{":method", "CONNECT"}, {":protocol", "websocket"}}, door.plain("CONNECT", casePod+"/exec")[1:]...), ""},
			{"T050", "connect", append([]field{{":method", "CONNECT"}, {":authority", "10.0.0.1:443"}}, usual[4:]...), ""},
			{"T074", "connection", and(usual, field{"connection", "impersonate-user"}), ""},
			{"T074", "connection: x", and(usual, field{"connection", "authorization"}), ""},
			{"T079", "upgrade", and(usual, field{"upgrade", "websocket"}), ""},
			{"T079", "connection: upgrade", and(usual, field{"connection", "upgrade"}, field{"upgrade", "h2c"}), ""},
			{"T078", "transfer-encoding", and(post, field{"transfer-encoding", "xchunked"}), `{"metadata":{"name":"x"}}`},
			{"T078", "length too small", and(post, field{"content-length", "3"}), `{"metadata":{"name":"x"}}`},
			{"T078", "length too large", and(post, field{"content-length", "4000"}), `{"metadata":{"name":"x"}}`},
			{"T014", "impersonation", and(usual, field{"impersonate-user", "admin"}), ""},
			{"T014", "impersonation in upper case", and(usual, field{"Impersonate-User", "admin"}), ""},
			{"T014", "impersonation with a line break", and(usual, field{"x-a", "b\r\nimpersonate-user: admin"}), ""},
			{"T014", "line break in a name", and(usual, field{"x-a\r\nimpersonate-user", "admin"}), ""},
			{"T034", "two paths", append([]field{{":path", "/version"}}, usual...), ""},
			{"T034", "pseudo header at the end", and(usual, field{":path", "/version"}), ""},
			{"T034", "unknown pseudo header", append([]field{{":wrong", "x"}}, usual...), ""},
			{"T034", "empty path", door.plain("GET", ""), ""},
			{"T034", "no slash", door.plain("GET", "api/v1/pods"), ""},
			{"T034", "absolute", door.plain("GET", "https://other/api/v1/pods"), ""},
			{"T034", "dots", door.plain("GET", "/api/v1/namespaces/case-a/../case-b/pods"), ""},
			{"T034", "space", door.plain("GET", "/api/v1/pods x"), ""},
			{"T034", "line break", door.plain("GET", "/api/v1/pods HTTP/1.1\r\nx: y"), ""},
			{"T034", "no method", usual[1:], ""},
			{"T034", "method with a space", door.plain("GET /version HTTP/1.1\r\n", casePod), ""},
			{"T053", "te", and(usual, field{"te", "gzip"}), ""},
		}
		for _, row := range rows {
			if got := dialWire(t, door).ask(t, row.fields, row.body); !got.refused() {
				t.Errorf("%s %s (%s): %s", row.id, row.name, door.name, got)
			}
		}
		if reached := a.reached(t); len(reached) != before {
			for _, event := range reached {
				t.Errorf("(%s): %d calls more: the API server saw %s %s", door.name, len(reached)-before, event.Verb, event.RequestURI)
			}
		}
	}
}

// TestHTTP2Floods cost the broker little, and nobody else anything.
func TestHTTP2Floods(t *testing.T) {
	rig := newCasesRig(t)
	door := rig.all.doors(t)[1]
	before := rssOf(t, rig.Broker(0).PID())
	t.Run("T211 continuation", func(t *testing.T) {
		w := dialWire(t, door)
		w.encoded.Reset()
		for _, f := range door.plain("GET", "/version") {
			if err := w.encoder.WriteField(hpack.HeaderField{Name: f.name, Value: f.value}); err != nil {
				t.Fatal(err)
			}
		}
		_ = w.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: bytes.Clone(w.encoded.Bytes())}) // an end shows below
		piece := bytes.Repeat([]byte{0x00, 0x01, 'a', 0x01, 'b'}, 3000)                                         // literal fields without indexing
		written := 0
		for range 4000 {
			if err := w.WriteContinuation(1, false, piece); err != nil {
				break
			}
			written += len(piece)
		}
		if written > 32<<20 {
			t.Errorf("the broker read %d MiB of header", written>>20)
		}
		t.Logf("the connection ended after %d KiB", written>>10)
	})
	t.Run("T210 rapid reset", func(t *testing.T) {
		w := dialWire(t, door)
		resets := 0
		for range 20_000 {
			w.encoded.Reset()
			for _, f := range door.plain("GET", casePod) {
				if err := w.encoder.WriteField(hpack.HeaderField{Name: f.name, Value: f.value}); err != nil {
					t.Fatal(err)
				}
			}
			id := w.stream
			w.stream += 2
			err := w.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: w.encoded.Bytes(), EndHeaders: true, EndStream: true})
			if err := errors.Join(err, w.WriteRSTStream(id, http2.ErrCodeCancel)); err != nil {
				break
			}
			resets++
		}
		t.Logf("the connection took %d of 20 000 resets", resets)
	})
	if got := rig.reader.do(t, "GET", casePod, nil, ""); got.code != 200 {
		t.Errorf("another agent is answered %d", got.code)
	}
	grown := rssOf(t, rig.Broker(0).PID()) - before
	t.Logf("the broker grew by %d MiB", grown>>20)
	if grown > 96<<20 {
		t.Error("that is too much")
	}
}
