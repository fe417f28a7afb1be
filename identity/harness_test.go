package identity_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"go.uber.org/goleak"

	"github.com/taskgate/taskgate/identity"
	"github.com/taskgate/taskgate/internal/spiffetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	domainA = spiffeid.RequireTrustDomainFromString("td-a")
	domainB = spiffeid.RequireTrustDomainFromString("td-b")
	a1      = spiffeid.RequireFromString("spiffe://td-a/ns/ns-a/sa/a1")
	broker  = spiffeid.RequireFromString("spiffe://td-a/ns/taskgate/sa/broker")
)

// patience bounds what must happen soon; nothing waits that long unless it fails.
const patience = 10 * time.Second

// must is used as must(f())(t).
func must[T any](value T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

func newCA(t testing.TB, domain spiffeid.TrustDomain) *spiffetest.CA {
	t.Helper()
	return must(spiffetest.NewCA(domain.Name()))(t)
}

func issue(t testing.TB, ca *spiffetest.CA, leaf spiffetest.Leaf) *x509svid.SVID {
	t.Helper()
	return must(ca.Issue(leaf))(t)
}

func update(ca *spiffetest.CA, svid *x509svid.SVID, federated ...*x509bundle.Bundle) spiffetest.Update {
	return spiffetest.Update{SVIDs: []*x509svid.SVID{svid}, Bundle: ca.Bundle(), Federated: federated}
}

// api is a Workload API and a source that watches it.
type api struct {
	*spiffetest.Server
	socket string
	source *identity.Source
}

func newAPI(t testing.TB, first spiffetest.Update, config identity.Config) *api {
	t.Helper()
	dir := must(os.MkdirTemp("", "tg"))(t) // t.TempDir is too long for a socket
	t.Cleanup(func() { os.RemoveAll(dir) })
	a := &api{socket: filepath.Join(dir, "api.sock")}
	a.Server = must(spiffetest.Listen(a.socket, first))(t)
	t.Cleanup(func() { a.Server.Close() })
	config.Address = "unix://" + a.socket
	a.source = must(identity.Open(t.Context(), config))(t)
	t.Cleanup(func() { a.source.Close() })
	return a
}

func ready(t testing.TB, first spiffetest.Update) *api {
	t.Helper()
	a := newAPI(t, first, identity.Config{})
	if err := a.source.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	return a
}

// set sends an update and waits until the source has it.
func (a *api) set(t testing.TB, next spiffetest.Update) {
	t.Helper()
	updated := a.source.Updated()
	a.Server.Set(next)
	select {
	case <-updated:
	case <-time.After(patience):
		t.Fatal("the update did not arrive")
	}
}

// server accepts connections through an identity.Listener and answers each byte,
// after the peer was checked, with 'y' or 'n'.
type server struct {
	address  string
	listener *identity.Listener
	wait     sync.WaitGroup

	mu       sync.Mutex
	rejected []string
	peers    []*identity.Peer
	states   []tls.ConnectionState
}

func serve(t testing.TB, source *identity.Source, config *tls.Config, limits identity.Limits) *server {
	t.Helper()
	tcp := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	s := &server{address: tcp.Addr().String()}
	s.listener = identity.NewListener(tcp, config, limits, func(reason string) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.rejected = append(s.rejected, reason)
	})
	s.wait.Go(func() {
		for {
			conn, err := s.listener.Accept()
			if err != nil {
				return
			}
			s.wait.Go(func() { s.answer(source, conn.(*tls.Conn)) })
		}
	})
	t.Cleanup(func() {
		s.listener.Close()
		s.wait.Wait()
	})
	return s
}

func (s *server) answer(source *identity.Source, conn *tls.Conn) {
	defer conn.Close()
	state := conn.ConnectionState()
	peer, err := source.Peer(state)
	if err != nil {
		return
	}
	s.mu.Lock()
	s.peers = append(s.peers, peer)
	s.states = append(s.states, state)
	s.mu.Unlock()
	for {
		conn.SetDeadline(time.Now().Add(patience))
		if _, err := conn.Read(make([]byte, 1)); err != nil {
			return
		}
		verdict := "y"
		if peer.Check(time.Now()) != nil {
			verdict = "n"
		}
		if _, err := io.WriteString(conn, verdict); err != nil {
			return
		}
	}
}

func (s *server) lastRejection(t testing.TB) string {
	t.Helper()
	var reason string
	eventually(t, "a rejection", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		if n := len(s.rejected); n > 0 {
			reason = s.rejected[n-1]
			s.rejected = nil
		}
		return reason != ""
	})
	return reason
}

func (s *server) lastPeer(t testing.TB) *identity.Peer {
	t.Helper()
	var peer *identity.Peer
	eventually(t, "a peer", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		if n := len(s.peers); n > 0 {
			peer = s.peers[n-1]
		}
		return peer != nil
	})
	return peer
}

func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		if holds() {
			return
		}
	}
	t.Fatalf("this did not come about: %s", what)
}

// hostile is the configuration of a client that presents what it likes.
func hostile(svid *x509svid.SVID) *tls.Config {
	config := &tls.Config{InsecureSkipVerify: true}
	if svid != nil {
		certificate := tls.Certificate{PrivateKey: svid.PrivateKey}
		for _, c := range svid.Certificates {
			certificate.Certificate = append(certificate.Certificate, c.Raw)
		}
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &certificate, nil }
	}
	return config
}

// ask sends one byte over a new connection and returns the answer. Under TLS 1.3
// a client learns only from its first read that it was rejected.
func (s *server) ask(t testing.TB, config *tls.Config) (string, error) {
	t.Helper()
	conn, err := tls.Dial("tcp", s.address, config)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	return askOn(conn)
}

func askOn(conn *tls.Conn) (string, error) {
	conn.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(conn, "?"); err != nil {
		return "", err
	}
	answer := make([]byte, 1)
	n, err := conn.Read(answer)
	if n > 0 {
		return string(answer), nil
	}
	if err == nil {
		err = errors.New("no answer")
	}
	return "", err
}

func twoURIs(c *x509.Certificate) {
	c.URIs = append(c.URIs, a1.URL())
}
