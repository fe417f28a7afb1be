package identity_test

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/taskgate/taskgate/identity"
	"github.com/taskgate/taskgate/internal/spiffetest"
)

// TestSlowHandshakes shows that silent peers are cut in time and delay others only
// as far as Limits says.
func TestSlowHandshakes(t *testing.T) {
	ca := newCA(t, domainA)
	a := ready(t, update(ca, issue(t, ca, spiffetest.Leaf{ID: broker})))
	limits := identity.Limits{Handshake: 2 * time.Second, Unverified: 8}
	s := serve(t, a.source, a.source.ServerTLS([]spiffeid.TrustDomain{domainA}), limits)
	good := hostile(issue(t, ca, spiffetest.Leaf{ID: a1}))

	began := time.Now()
	var cut sync.WaitGroup
	silent := func(least, most time.Duration) {
		conn := must(net.Dial("tcp", s.address))(t)
		cut.Go(func() {
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(patience))
			if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
				t.Errorf("cut with %v", err)
			}
			if took := time.Since(began); took < least || took > most {
				t.Errorf("cut after %s, not between %s and %s", took, least, most)
			}
		})
	}
	for range 4 {
		silent(limits.Handshake, limits.Handshake+time.Second)
	}
	if answer, err := s.ask(t, good); answer != "y" || time.Since(began) > time.Second {
		t.Errorf("beside four silent peers: %q %v after %s", answer, err, time.Since(began))
	}
	// The other places are let for a tenth of the time.
	for range 4 {
		silent(limits.Handshake/10, limits.Handshake/2)
	}
	if answer, err := s.ask(t, good); answer != "y" || time.Since(began) > time.Second {
		t.Errorf("with every place taken: %q %v after %s", answer, err, time.Since(began))
	}
	cut.Wait()
	if got := s.lastRejection(t); got != "timeout" {
		t.Errorf("rejected as %q", got)
	}
}

// TestGarbage shows that what is not TLS is rejected and nothing comes of it.
func TestGarbage(t *testing.T) {
	ca := newCA(t, domainA)
	a := ready(t, update(ca, issue(t, ca, spiffetest.Leaf{ID: broker})))
	s := serve(t, a.source, a.source.ServerTLS([]spiffeid.TrustDomain{domainA}), identity.Limits{})
	for _, bytes := range []string{"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "\x16\x03\x01\xff\xff", "\x80\x00", ""} {
		conn := must(net.Dial("tcp", s.address))(t)
		io.WriteString(conn, bytes)
		conn.(*net.TCPConn).CloseWrite()
		conn.SetDeadline(time.Now().Add(patience))
		if answer, err := io.ReadAll(conn); len(answer) > 7 { // a TLS alert has 7 bytes
			t.Errorf("%q: answered %q %v", bytes, answer, err)
		}
		conn.Close()
		if got := s.lastRejection(t); got != "other" {
			t.Errorf("%q: rejected as %q", bytes, got)
		}
	}
}

// TestListenerCloses shows that Close ends handshakes under way and waits for them,
// and that Accept then fails for good.
func TestListenerCloses(t *testing.T) {
	ca := newCA(t, domainA)
	a := ready(t, update(ca, issue(t, ca, spiffetest.Leaf{ID: broker})))
	tcp := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	listener := identity.NewListener(tcp, a.source.ServerTLS([]spiffeid.TrustDomain{domainA}), identity.Limits{}, func(string) {})
	silent := must(net.Dial("tcp", tcp.Addr().String()))(t)
	defer silent.Close()
	// A verified connection nobody accepts must not hold Close up either.
	unclaimed := must(tls.Dial("tcp", tcp.Addr().String(), hostile(issue(t, ca, spiffetest.Leaf{ID: a1}))))(t)
	defer unclaimed.Close()
	began := time.Now()
	if err := listener.Close(); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("Close took %s", took)
	}
	for range 2 {
		if _, err := listener.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("%v", err)
		}
	}
	if _, err := net.Dial("tcp", tcp.Addr().String()); err == nil {
		t.Error("it still listens")
	}
}

// flaky fails a few times as a listener does that is out of descriptors.
type flaky struct {
	net.Listener
	mu   sync.Mutex
	left int
}

type outOfDescriptors struct{}

func (outOfDescriptors) Error() string   { return "too many open files" }
func (outOfDescriptors) Temporary() bool { return true }

func (f *flaky) Accept() (net.Conn, error) {
	f.mu.Lock()
	f.left--
	left := f.left
	f.mu.Unlock()
	if left >= 0 {
		return nil, outOfDescriptors{}
	}
	return f.Listener.Accept()
}

func TestTemporaryErrors(t *testing.T) {
	ca := newCA(t, domainA)
	a := ready(t, update(ca, issue(t, ca, spiffetest.Leaf{ID: broker})))
	tcp := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	listener := identity.NewListener(&flaky{Listener: tcp, left: 5}, a.source.ServerTLS([]spiffeid.TrustDomain{domainA}), identity.Limits{Unverified: 1}, func(string) {})
	defer listener.Close()
	client := must(tls.Dial("tcp", tcp.Addr().String(), hostile(issue(t, ca, spiffetest.Leaf{ID: a1}))))(t)
	defer client.Close()
	conn, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}
