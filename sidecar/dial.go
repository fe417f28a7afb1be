package sidecar

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sys/unix"

	"github.com/taskgate/taskgate/identity"
)

const (
	// dialTimeout bounds everything until a connection can be used: name, TCP and
	// TLS, over all addresses of the broker. The agent is told within 2 seconds.
	dialTimeout = 1500 * time.Millisecond
	// attemptTimeout is what one of several addresses gets at least.
	attemptTimeout = 400 * time.Millisecond
	// unackedTimeout is how long sent data may stay unacknowledged (RFC 5482): a
	// broker whose node is gone answers nothing, not even a reset.
	unackedTimeout = 1500 * time.Millisecond
	// endGrace lets the broker cut a connection at the end of an SVID first,
	// because the broker says why.
	endGrace = time.Second
)

// dialError says that a call failed before any of it was sent.
type dialError struct{ err error }

func (e *dialError) Error() string { return e.err.Error() }
func (e *dialError) Unwrap() error { return e.err }

// dialer opens connections to the broker and sees to it that none outlives the
// SVIDs of its two ends. Safe for concurrent use.
type dialer struct {
	source *identity.Source
	host   string
	port   string
	server spiffeid.ID

	mu     sync.Mutex
	wires  map[*wire]struct{}
	closed bool
}

// wire is the TCP side of one connection to the broker.
type wire struct {
	net.Conn
	dialer *dialer

	// Under dialer.mu.
	closed bool
	peer   *identity.Peer
	end    *time.Timer
}

func newDialer(source *identity.Source, broker string, server spiffeid.ID) (*dialer, error) {
	host, port, err := net.SplitHostPort(broker)
	if err != nil {
		return nil, err
	}
	return &dialer{source: source, host: host, port: port, server: server, wires: map[*wire]struct{}{}}, nil
}

// dial returns an authenticated connection and the moment at which one of its two
// SVIDs ends. Every error is a *dialError.
func (d *dialer) dial(ctx context.Context, protocol string) (*tls.Conn, time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	addresses, err := net.DefaultResolver.LookupNetIP(ctx, "ip", d.host)
	if err != nil {
		return nil, time.Time{}, &dialError{err}
	}
	// Spread the sidecars over the brokers.
	rand.Shuffle(len(addresses), func(i, j int) { addresses[i], addresses[j] = addresses[j], addresses[i] })
	for i, address := range addresses {
		var conn *tls.Conn
		var end time.Time
		if conn, end, err = d.attempt(ctx, address, len(addresses)-i, protocol); err == nil {
			return conn, end, nil
		}
		if ctx.Err() != nil || errors.Is(err, identity.ErrNoSVID) {
			break
		}
	}
	return nil, time.Time{}, &dialError{err} // of the address tried last
}

// attempt gives one address its share of the time that is left.
func (d *dialer) attempt(ctx context.Context, address netip.Addr, left int, protocol string) (*tls.Conn, time.Time, error) {
	if deadline, ok := ctx.Deadline(); ok && left > 1 {
		share := max(time.Until(deadline)/time.Duration(left), attemptTimeout)
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, share)
		defer cancel()
	}
	svid, err := d.source.GetX509SVID()
	if err != nil {
		return nil, time.Time{}, err
	}
	tcp := net.Dialer{
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3},
		Control:         boundUnacked,
	}
	raw, err := tcp.DialContext(ctx, "tcp", net.JoinHostPort(address.Unmap().String(), d.port))
	if err != nil {
		return nil, time.Time{}, err
	}
	w := &wire{Conn: raw, dialer: d}
	config := d.source.ClientTLS(d.server, protocol)
	config.ServerName = d.host
	conn := tls.Client(w, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, time.Time{}, fmt.Errorf("%s: %w", raw.RemoteAddr(), err)
	}
	peer, err := d.source.Peer(conn.ConnectionState())
	if err != nil {
		raw.Close()
		return nil, time.Time{}, fmt.Errorf("%s: %w", raw.RemoteAddr(), err)
	}
	// If the SVID was renewed just now the connection ends earlier than it must.
	end := svid.Certificates[0].NotAfter
	if peer.NotAfter().Before(end) {
		end = peer.NotAfter()
	}
	d.keep(w, peer, end)
	return conn, end, nil
}

func boundUnacked(_, _ string, raw syscall.RawConn) error {
	var err error
	controlErr := raw.Control(func(descriptor uintptr) {
		err = unix.SetsockoptInt(int(descriptor), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(unackedTimeout.Milliseconds()))
	})
	return errors.Join(controlErr, err)
}

// keep watches over a connection until it is closed.
func (d *dialer) keep(w *wire, peer *identity.Peer, end time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed || w.closed {
		w.Conn.Close()
		return
	}
	w.peer = peer
	w.end = time.AfterFunc(time.Until(end)+endGrace, func() { w.Close() })
	d.wires[w] = struct{}{}
}

// recheck closes connections to a broker that no trust bundle backs any more.
func (d *dialer) recheck(now time.Time) {
	for _, w := range d.open() {
		if w.peer.Check(now) != nil {
			w.Close()
		}
	}
}

// close cuts all connections; later ones are cut as they come.
func (d *dialer) close() {
	d.mu.Lock()
	d.closed = true
	d.mu.Unlock()
	for _, w := range d.open() {
		w.Close()
	}
}

func (d *dialer) open() []*wire {
	d.mu.Lock()
	defer d.mu.Unlock()
	open := make([]*wire, 0, len(d.wires))
	for w := range d.wires {
		open = append(open, w)
	}
	return open
}

// Close may be called more than once.
func (w *wire) Close() error {
	w.dialer.mu.Lock()
	w.closed = true
	if w.end != nil {
		w.end.Stop()
	}
	delete(w.dialer.wires, w)
	w.dialer.mu.Unlock()
	return w.Conn.Close()
}
