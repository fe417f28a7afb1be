package sidecar

import (
	"context"
	"errors"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// idleTimeout is how long an unused connection is kept.
	idleTimeout = 80 * time.Second
	// maxIdle bounds the unused HTTP/1.1 connections.
	maxIdle = 256
	// readsPerConnection spreads long-running reads over several connections: one
	// HTTP/2 connection is served by one goroutine, so by one core at most.
	readsPerConnection = 100
)

// uplink holds the connections to the broker that were opened with one SVID and
// one set of trust bundles.
type uplink struct {
	short *http.Transport // HTTP/1.1: cheaper per call, and connection headers survive
	long  *readPool       // HTTP/2: cheaper per idle watch

	// staleAt is when the connections here are half way to the end of their SVIDs,
	// in nanoseconds since 1970; zero while there are none. New calls go elsewhere
	// from then on, so that none is cut when the end comes.
	staleAt atomic.Int64
}

func newUplink(d *dialer) *uplink {
	u := &uplink{}
	dial := func(protocol string) func(context.Context, string, string) (net.Conn, error) {
		return func(ctx context.Context, _, _ string) (net.Conn, error) {
			conn, end, err := d.dial(ctx, protocol)
			if err != nil {
				return nil, err
			}
			u.age(time.Now(), end)
			return conn, nil
		}
	}
	// Proxy stays nil: proxy variables of the environment do not count.
	u.short = &http.Transport{
		DialTLSContext:      dial("http/1.1"),
		Protocols:           protocols((*http.Protocols).SetHTTP1),
		DisableCompression:  true,
		MaxIdleConnsPerHost: maxIdle,
		IdleConnTimeout:     idleTimeout,
	}
	u.long = &readPool{address: net.JoinHostPort(d.host, d.port), transport: &http.Transport{
		DialTLSContext:     dial("h2"),
		Protocols:          protocols((*http.Protocols).SetHTTP2),
		DisableCompression: true,
		IdleConnTimeout:    idleTimeout,
		HTTP2:              &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 10 * time.Second},
	}}
	return u
}

func protocols(set func(*http.Protocols, bool)) *http.Protocols {
	p := &http.Protocols{}
	set(p, true)
	return p
}

func (u *uplink) age(now, end time.Time) {
	stale := now.Add(max(end.Sub(now)/2, time.Second)).UnixNano()
	for {
		held := u.staleAt.Load()
		if held != 0 && held <= stale || u.staleAt.CompareAndSwap(held, stale) {
			return
		}
	}
}

func (u *uplink) stale(now time.Time) bool {
	at := u.staleAt.Load()
	return at != 0 && now.UnixNano() >= at
}

// retire closes what is unused. What is in use closes when its last call ends,
// HTTP/2 connections up to idleTimeout later.
func (u *uplink) retire() {
	u.short.CloseIdleConnections()
	u.long.closeIdle()
}

// readPool spreads reads over as many HTTP/2 connections as needed. The pool of
// net/http would open one connection for each read that comes while the first is
// being opened, and a thousand watches often come at once.
type readPool struct {
	transport *http.Transport
	address   string

	mu      sync.Mutex
	open    []*http.ClientConn
	dialing *opening // nil while no connection is being opened
}

// opening is one attempt to open a connection, shared by all who wait for it.
type opening struct {
	done chan struct{}
	// Set before done is closed; one of the two.
	conn *http.ClientConn
	err  error
}

// RoundTrip sends a read without a body. If the connection it got was an old one
// and breaks before an answer came, the read is sent once more.
func (p *readPool) RoundTrip(request *http.Request) (*http.Response, error) {
	conn, fresh, err := p.reserve(request.Context())
	if err != nil {
		return nil, err
	}
	answer, err := conn.RoundTrip(request)
	if err == nil || fresh || request.Context().Err() != nil {
		return answer, err
	}
	if conn, _, err = p.reserve(request.Context()); err != nil {
		return nil, err
	}
	return conn.RoundTrip(request)
}

// reserve returns a connection with a place taken for one call, and whether it
// was opened just now.
func (p *readPool) reserve(ctx context.Context) (_ *http.ClientConn, fresh bool, _ error) {
	for {
		p.mu.Lock()
		if conn := p.vacantLocked(); conn != nil {
			p.mu.Unlock()
			return conn, fresh, nil
		}
		attempt := p.dialing
		if attempt == nil {
			attempt = &opening{done: make(chan struct{})}
			p.dialing = attempt
			p.mu.Unlock()
			p.dial(ctx, attempt)
		} else {
			p.mu.Unlock()
		}
		select {
		case <-attempt.done:
		case <-ctx.Done():
			return nil, false, ctx.Err()
		}
		if attempt.err != nil {
			return nil, false, attempt.err
		}
		if attempt.conn.Err() != nil {
			return nil, false, &dialError{errors.New("the broker closed a new connection at once; it may not accept this pod's identity")}
		}
		fresh = true
	}
}

func (p *readPool) vacantLocked() *http.ClientConn {
	p.open = slices.DeleteFunc(p.open, func(conn *http.ClientConn) bool { return conn.Err() != nil })
	for _, conn := range p.open {
		if conn.InFlight() < readsPerConnection && conn.Reserve() == nil {
			return conn
		}
	}
	return nil
}

// dial does not end with the call that came first: others wait for it too. It is
// bounded by dialTimeout.
func (p *readPool) dial(ctx context.Context, attempt *opening) {
	conn, err := p.transport.NewClientConn(context.WithoutCancel(ctx), "https", p.address)
	if err != nil && !errors.As(err, new(*dialError)) {
		err = &dialError{err}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil {
		p.open = append(p.open, conn)
	}
	p.dialing = nil
	attempt.conn, attempt.err = conn, err
	close(attempt.done)
}

func (p *readPool) closeIdle() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, conn := range p.open {
		if conn.InFlight() == 0 {
			conn.Close()
		}
	}
}
