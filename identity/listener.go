package identity

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"sync"
	"time"
)

// Limits bound what a peer can use up before it has shown who it is.
type Limits struct {
	// Handshake is the time a peer has to finish the TLS handshake, and ten times
	// the time it has while more than half of Unverified is taken: then silent
	// connections must not be able to hold the rest. Zero means 10 seconds.
	Handshake time.Duration
	// Unverified is the number of handshakes under way at once, over all peers;
	// further connections wait in the kernel's queue. Zero means 256.
	Unverified int
}

// Listener accepts only connections whose TLS handshake, and with it the check
// of the peer's SVID, is complete. A slow or hostile handshake delays nobody
// else; so many of them that Limits.Unverified is reached delay others by a tenth
// of Limits.Handshake.
type Listener struct {
	net.Listener
	config   *tls.Config
	limits   Limits
	rejected func(reason string)

	ready  chan net.Conn
	failed chan error
	stop   context.CancelFunc
	ended  <-chan struct{}
	wait   sync.WaitGroup
}

// NewListener wraps inner. rejected is called with the reason (one of a few
// constant words, fit for a metric) for each peer that did not get through; it
// must be safe for concurrent use.
func NewListener(inner net.Listener, config *tls.Config, limits Limits, rejected func(reason string)) *Listener {
	if limits.Handshake == 0 {
		limits.Handshake = 10 * time.Second
	}
	if limits.Unverified == 0 {
		limits.Unverified = 256
	}
	ctx, stop := context.WithCancel(context.Background())
	l := &Listener{
		Listener: inner, config: config, limits: limits, rejected: rejected,
		ready: make(chan net.Conn), failed: make(chan error, 1),
		stop: stop, ended: ctx.Done(),
	}
	l.wait.Add(1)
	go l.acceptAll(ctx)
	return l
}

// Accept returns the next verified connection, a *tls.Conn.
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.ready:
		return conn, nil
	case err := <-l.failed:
		l.failed <- err // for the next caller
		return nil, err
	}
}

// Close stops accepting, cuts handshakes under way and waits for them.
func (l *Listener) Close() error {
	l.stop()
	err := l.Listener.Close()
	l.wait.Wait()
	return err
}

func (l *Listener) acceptAll(ctx context.Context) {
	defer l.wait.Done()
	slots := make(chan struct{}, l.limits.Unverified)
	for {
		select {
		case slots <- struct{}{}:
		case <-l.ended:
			l.failed <- net.ErrClosed
			return
		}
		conn, err := l.Listener.Accept()
		if err != nil {
			var temporary interface{ Temporary() bool }
			if ctx.Err() == nil && errors.As(err, &temporary) && temporary.Temporary() {
				<-slots
				time.Sleep(10 * time.Millisecond) // out of descriptors: wait for some to close
				continue
			}
			l.failed <- err
			return
		}
		patience := l.limits.Handshake
		if len(slots) > cap(slots)/2 {
			patience /= 10
		}
		l.wait.Add(1)
		go func() {
			defer l.wait.Done()
			defer func() { <-slots }()
			l.handshake(ctx, conn, patience)
		}()
	}
}

func (l *Listener) handshake(ctx context.Context, raw net.Conn, patience time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	conn := tls.Server(raw, l.config)
	if err := conn.HandshakeContext(ctx); err != nil {
		l.rejected(rejection(err))
		raw.Close()
		return
	}
	select {
	case l.ready <- conn:
	case <-l.ended:
		raw.Close()
	}
}

// rejection names why a handshake failed. crypto/tls and go-spiffe have no typed
// errors for some of these; a text that changes there only makes a metric less
// precise ("other"), never a decision.
func rejection(err error) string {
	text := err.Error()
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return "timeout"
	case errors.Is(err, ErrExpired):
		return "expired"
	case strings.Contains(text, "didn't provide a certificate"):
		return "no_cert"
	case strings.Contains(text, "more than one URI SAN"):
		return "multiple_uri"
	case strings.Contains(text, "CA flag"), strings.Contains(text, "key usage"):
		return "signing_leaf"
	case errors.Is(err, ErrUntrusted):
		return "untrusted"
	default:
		return "other"
	}
}
