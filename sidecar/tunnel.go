package sidecar

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/taskgate/taskgate/internal/relay"
)

const (
	// upgradeTimeout is how long the broker may take to answer an upgrade. It may
	// keep a call open while people decide (gates that hold).
	upgradeTimeout = 15 * time.Minute
	// tunnelUnacked takes the place of unackedTimeout on a tunnel: a broker that
	// waits for its disk, or for the pod, reads nothing for a while. It gives up
	// after a minute itself, and says why.
	tunnelUnacked = 90 * time.Second
	// tunnelEnd is how long one direction of a tunnel may go on after the other has
	// ended.
	tunnelEnd = 5 * time.Second
)

// upgrades reports whether a call asks for another protocol on its connection.
func upgrades(r *http.Request) bool { return r.ProtoMajor == 1 && len(r.Header["Upgrade"]) > 0 }

// tunnel carries an upgrade to the broker, over a connection that nothing else
// uses, before or after. Once the broker has switched, the bytes of the two are
// none of the sidecar's business: they pass in both directions until both have
// ended. If the broker goes away in between, the agent's connection breaks: in a
// protocol that is not read here, nothing can be said.
func (f *forwarder) tunnel(ctx context.Context, w http.ResponseWriter, r *http.Request) {
	var wire net.Conn
	headers, _ := f.headers(r.Header)
	asking, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(r.Context(), cancel)
	out := (&http.Request{Method: r.Method, URL: target(r, f.broker), Header: headers, ContentLength: r.ContentLength}).WithContext(asking)
	body := &watchedBody{ReadCloser: r.Body}
	if r.ContentLength != 0 {
		out.Body = body
	}
	once := &http.Transport{
		DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			conn, _, err := f.dialer.dial(ctx, "http/1.1")
			if err != nil {
				return nil, err
			}
			wire = conn
			return conn, patient(conn)
		},
		Protocols: protocols((*http.Protocols).SetHTTP1), DisableCompression: true, ResponseHeaderTimeout: upgradeTimeout,
	}
	defer once.CloseIdleConnections()
	answer, err := once.RoundTrip(out)
	stop()
	if err != nil {
		f.unanswered(ctx, w, r, body, err)
		return
	}
	defer answer.Body.Close()
	f.reached()
	if answer.StatusCode != http.StatusSwitchingProtocols {
		w.Header().Set("Connection", "close")
		relay.Headers(w.Header(), answer.Header)
		w.WriteHeader(answer.StatusCode)
		if _, err := relay.Body(w, answer.Body, false, nil); err != nil {
			panic(http.ErrAbortHandler) // the agent must see that the answer is not whole
		}
		return
	}
	switched, ok := answer.Body.(io.ReadWriteCloser)
	if !ok {
		panic(http.ErrAbortHandler) // net/http promises that it is one
	}
	f.join(ctx, w, answer, &tunnelEnds{ReadWriteCloser: switched, wire: wire})
}

// patient lets a connection wait for a broker that waits.
func patient(conn *tls.Conn) error {
	w, ok := conn.NetConn().(*wire)
	if !ok {
		return nil
	}
	tcp, ok := w.Conn.(*net.TCPConn)
	if !ok {
		return nil
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = raw.Control(func(descriptor uintptr) {
		set = unix.SetsockoptInt(int(descriptor), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(tunnelUnacked.Milliseconds()))
	})
	return errors.Join(err, set)
}

// tunnelEnds is the broker's end of a tunnel.
type tunnelEnds struct {
	io.ReadWriteCloser // reads what came behind the answer, too
	wire               net.Conn
}

// CloseWrite says that nothing more comes from the agent.
func (e *tunnelEnds) CloseWrite() error { return closeWrite(e.wire) }

func closeWrite(conn net.Conn) error {
	if half, ok := conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return conn.Close()
}

// breakOff closes a connection at once. TLS would first tell the other end, and
// wait if it takes nothing.
func breakOff(conn net.Conn) {
	if secure, ok := conn.(*tls.Conn); ok {
		conn = secure.NetConn()
	}
	conn.Close()
}

// join answers the agent as the broker answered, and moves bytes until both
// directions have ended, one has for a while, or ctx ends.
func (f *forwarder) join(ctx context.Context, w http.ResponseWriter, answer *http.Response, broker *tunnelEnds) {
	header := w.Header()
	relay.Headers(header, answer.Header)
	for _, name := range []string{"Connection", "Upgrade", "Sec-Websocket-Accept", "Sec-Websocket-Protocol", "X-Stream-Protocol-Version"} {
		if values := answer.Header[name]; len(values) > 0 {
			header[name] = values
		}
	}
	w.WriteHeader(http.StatusSwitchingProtocols)
	agent, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler) // the agent is gone
	}
	defer agent.Close()
	defer broker.wire.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { breakOff(agent); breakOff(broker.wire) })
	defer stop()
	over := time.AfterFunc(tunnelEnd, cancel)
	over.Stop()
	defer over.Stop()
	var both sync.WaitGroup
	move := func(to io.Writer, from io.Reader, end func() error) {
		_, err := io.Copy(to, from)
		if err != nil {
			cancel() // broken, and not at its end: the other direction has nobody to talk to
			return
		}
		_ = end() // one that is gone cannot be told
		over.Reset(tunnelEnd)
	}
	both.Go(func() { move(broker, buffered.Reader, broker.CloseWrite) })
	both.Go(func() { move(agent, broker, func() error { return closeWrite(agent) }) })
	both.Wait()
}
