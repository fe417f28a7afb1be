package broker

import (
	"context"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/taskgate/taskgate/authz"
	"github.com/taskgate/taskgate/identity"
)

// agentConn is what is known about a connection: who is at the other end, and
// what it holds. It is made when the connection is accepted.
type agentConn struct {
	peer  *identity.Peer
	pin   *authz.Pin
	agent string // SPIFFE ID
	// ends is when the SVID of one of the two ends expires. The sidecar closes the
	// connection then, so the broker has to tell what is on it before.
	ends time.Time
	svid string // SHA-256 of the leaf certificate, in hexadecimal
	// sources is the address at the other end, as records have it.
	sources []string
	// unread counts requests that began to arrive and have not reached the
	// handler; on HTTP/1.1 one that never does was malformed.
	unread atomic.Int32
}

type connKey struct{}

// connContext ties an accepted connection to its peer. A connection whose peer
// cannot be verified (any more) carries none, and its requests are refused.
func (b *boundary) connContext(ctx context.Context, raw net.Conn) context.Context {
	conn, ok := raw.(*tls.Conn)
	if !ok {
		return ctx
	}
	peer, err := b.identity.Peer(conn.ConnectionState())
	if err != nil {
		return ctx
	}
	leaf := peer.LeafSHA256()
	known := &agentConn{peer: peer, pin: b.index.Pin(peer.ID()), agent: peer.ID().String(), svid: hex.EncodeToString(leaf[:]), ends: peer.NotAfter(), sources: sources(raw.RemoteAddr().String())}
	if own, err := b.identity.GetX509SVID(); err == nil && own.Certificates[0].NotAfter.Before(known.ends) {
		known.ends = own.Certificates[0].NotAfter
	}
	b.conns.Store(raw, known)
	return context.WithValue(ctx, connKey{}, known)
}

// sources is the address without its port; nil if there is none.
func sources(address string) []string {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil
	}
	return []string{host}
}

func connOf(r *http.Request) *agentConn {
	conn, _ := r.Context().Value(connKey{}).(*agentConn)
	return conn
}

// identify checks the peer for this very request.
func (c *agentConn) identify(now time.Time) *refusal {
	err := c.peer.Check(now)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, identity.ErrExpired):
		return expiredIdentity()
	default:
		return &refusal{
			reason: authz.IdentityUnknown, status: http.StatusUnauthorized, close: true,
			text: "no trusted authority stands behind your SVID any more. Next: nothing an agent can do; tell an operator",
		}
	}
}

func expiredIdentity() *refusal {
	return &refusal{
		reason: authz.IdentityExpired, status: http.StatusUnauthorized, close: true,
		text: "the SVID of this connection has expired. Next: the sidecar connects anew; repeat the same command",
	}
}

// connState notices requests that the HTTP server refused to read: they begin,
// and the connection closes without the handler having seen them. That, too,
// goes on record.
func (b *boundary) connState(raw net.Conn, state http.ConnState) {
	known, ok := b.conns.Load(raw)
	if !ok {
		return
	}
	conn := known.(*agentConn)
	switch state {
	case http.StateActive:
		if tlsConn, ok := raw.(*tls.Conn); ok && tlsConn.ConnectionState().NegotiatedProtocol != "h2" {
			conn.unread.Add(1)
		}
	case http.StateClosed, http.StateHijacked:
		b.conns.Delete(raw)
		if conn.unread.Load() > 0 {
			b.recordMalformed(conn)
		}
	}
}
