package stream

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/websocket"
)

// Pod is the way to the pod, opened by a [Transport]: the body of its answer. Who
// gets one has to Carry or Close it.
type Pod struct {
	side
	// Protocol is the one of those offered that the cluster chose.
	Protocol string
}

// Read is there for Pod to be the body of an answer; there is nothing in it.
func (p *Pod) Read([]byte) (int, error) { return 0, io.EOF }

// Close ends the connection.
func (p *Pod) Close() error { return p.link().Close() }

// Transport opens streams at an API server. It makes a connection for every
// request, over HTTP/1.1, and uses none twice: what the other end thinks of a
// failed upgrade must not matter to anybody else.
type Transport struct {
	// TLS is how to reach a server at https; it is not changed.
	TLS *tls.Config
	// Dialer opens the connections.
	Dialer *net.Dialer
	// Patience is how long the server may take to answer.
	Patience time.Duration

	// buffers lends room for messages on their way out. A message has to leave in
	// one frame: the API server reads frames, not messages.
	buffers sync.Pool
}

type requestKey struct{}

// For ties what a call asks for to the context of its request: RoundTrip offers
// nothing else.
func For(ctx context.Context, asked Request) context.Context {
	return context.WithValue(ctx, requestKey{}, asked)
}

// RoundTrip sends an upgrade that [For] describes. The protocols in its header
// HeaderProtocol or HeaderWebSocketProtocol are offered. The body of an answer
// 101 is a *Pod if, and only if, the server switched to one of them; every other
// answer is returned as it came, with its connection closed with the body.
func (t *Transport) RoundTrip(r *http.Request) (*http.Response, error) {
	asked, ok := r.Context().Value(requestKey{}).(Request)
	if !ok {
		return nil, errors.New("an upgrade that nobody asked for")
	}
	if asked.WebSocket {
		return t.webSocket(r, wants{asked})
	}
	return t.spdy(r, wants{asked})
}

func (t *Transport) spdy(r *http.Request, asked wants) (*http.Response, error) {
	offered := r.Header[HeaderProtocol]
	r = r.Clone(r.Context())
	r.Header["Connection"], r.Header["Upgrade"] = []string{"Upgrade"}, []string{upgradeSPDY}
	var at *link
	dial := func(ctx context.Context, network, address string, secure bool) (net.Conn, error) {
		conn, err := t.dial(ctx, network, address, secure)
		if err != nil {
			return nil, err
		}
		at = newLink(conn)
		return at, nil
	}
	once := &http.Transport{
		DialContext:    func(ctx context.Context, n, a string) (net.Conn, error) { return dial(ctx, n, a, false) },
		DialTLSContext: func(ctx context.Context, n, a string) (net.Conn, error) { return dial(ctx, n, a, true) },
		Protocols:      new(http.Protocols), DisableKeepAlives: true, DisableCompression: true, ResponseHeaderTimeout: t.Patience,
	}
	once.Protocols.SetHTTP1(true)
	answer, err := once.RoundTrip(r)
	if err != nil || answer.StatusCode != http.StatusSwitchingProtocols {
		return answer, err
	}
	chosen := answer.Header.Get(HeaderProtocol)
	in, readable := answer.Body.(io.ReadWriteCloser)
	if !readable || !strings.EqualFold(answer.Header.Get("Upgrade"), upgradeSPDY) || !slices.Contains(offered, chosen) {
		return answer, nil // a switch to something else
	}
	s, err := newSPDY(at, in, at, true, asked)
	if err != nil {
		at.Close()
		return nil, err
	}
	answer.Body = &Pod{side: s, Protocol: chosen}
	return answer, nil
}

// dial opens a connection, with TLS if it has to be secure.
func (t *Transport) dial(ctx context.Context, network, address string, secure bool) (net.Conn, error) {
	if !secure {
		return t.Dialer.DialContext(ctx, network, address)
	}
	config := t.TLS.Clone()
	config.NextProtos = []string{"http/1.1"}
	return (&tls.Dialer{NetDialer: t.Dialer, Config: config}).DialContext(ctx, network, address)
}

func (t *Transport) webSocket(r *http.Request, asked wants) (*http.Response, error) {
	opening := new(opening)
	keep := func(secure bool) func(context.Context, string, string) (net.Conn, error) {
		return func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := t.dial(ctx, network, address, secure)
			if err != nil {
				return nil, err
			}
			opening.take(conn)
			return opening, nil
		}
	}
	dialer := websocket.Dialer{
		NetDialContext: keep(false), NetDialTLSContext: keep(true), HandshakeTimeout: t.Patience,
		Subprotocols: r.Header[HeaderWebSocketProtocol], ReadBufferSize: 4 << 10,
		WriteBufferSize: pieceSize + 64, WriteBufferPool: &t.buffers,
	}
	header := r.Header.Clone()
	delete(header, HeaderWebSocketProtocol)
	address := *r.URL
	address.Scheme = strings.Replace(address.Scheme, "http", "ws", 1)
	stop := context.AfterFunc(r.Context(), opening.abandon)
	defer stop()
	conn, answer, err := dialer.DialContext(r.Context(), address.String(), header)
	switch {
	case errors.Is(err, websocket.ErrBadHandshake):
		return opening.answer(r)
	case err != nil:
		return nil, errors.Join(err, opening.close())
	case !slices.Contains(dialer.Subprotocols, conn.Subprotocol()) || answer.Header.Get("Sec-Websocket-Extensions") != "":
		return answer, opening.close() // a switch to something else
	}
	opening.done()
	var s side = newWebSocket(conn, opening.link, conn.Subprotocol(), true, asked)
	if asked.PortForward {
		if s, err = tunnelled(conn, opening.link, true, asked); err != nil {
			return nil, errors.Join(err, opening.link.Close())
		}
	}
	answer.Body = &Pod{side: s, Protocol: conn.Subprotocol()}
	return answer, nil
}
