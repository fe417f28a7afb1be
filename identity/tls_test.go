package identity_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/taskgate/taskgate/identity"
	"github.com/taskgate/taskgate/internal/spiffetest"
)

// TestHandshake is T001 to T003, T005, T007 and the limits on what a peer may make
// us parse: who does not get through, and for which reason.
func TestHandshake(t *testing.T) {
	caA, caB, unknown := newCA(t, domainA), newCA(t, domainB), newCA(t, domainA)
	a := ready(t, update(caA, issue(t, caA, spiffetest.Leaf{ID: broker}), caB.Bundle()))
	s := serve(t, a.source, a.source.ServerTLS([]spiffeid.TrustDomain{domainA}), identity.Limits{})
	b1 := spiffeid.RequireFromString("spiffe://td-b/ns/ns-a/sa/a1")

	long := issue(t, caA, spiffetest.Leaf{ID: a1})
	for range 4 {
		long.Certificates = append(long.Certificates, long.Certificates[0])
	}
	for name, test := range map[string]struct {
		svid   *x509svid.SVID
		reason string
	}{
		"T001 no certificate":           {nil, "no_cert"},
		"T002 unknown authority":        {issue(t, unknown, spiffetest.Leaf{ID: a1}), "untrusted"},
		"T003 two URI SANs":             {issue(t, caA, spiffetest.Leaf{ID: a1, Change: twoURIs}), "multiple_uri"},
		"T005 CA flag":                  {issue(t, caA, spiffetest.Leaf{ID: a1, Change: func(c *x509.Certificate) { c.IsCA = true }}), "signing_leaf"},
		"T005 keyCertSign":              {issue(t, caA, spiffetest.Leaf{ID: a1, Change: func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign }}), "signing_leaf"},
		"T005 cRLSign":                  {issue(t, caA, spiffetest.Leaf{ID: a1, Change: func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCRLSign }}), "signing_leaf"},
		"T007 td-b signs an ID of td-a": {issue(t, caB, spiffetest.Leaf{ID: a1}), "untrusted"},
		"td-a signs an ID of td-b":      {issue(t, caA, spiffetest.Leaf{ID: b1}), "untrusted"},
		"a domain not accepted":         {issue(t, caB, spiffetest.Leaf{ID: b1}), "untrusted"},
		"no URI SAN":                    {issue(t, caA, spiffetest.Leaf{ID: a1, Change: func(c *x509.Certificate) { c.URIs = nil }}), "untrusted"},
		"only a DNS name":               {issue(t, caA, spiffetest.Leaf{ID: a1, Change: func(c *x509.Certificate) { c.URIs, c.DNSNames = nil, []string{"broker"} }}), "untrusted"},
		"root path":                     {issue(t, caA, spiffetest.Leaf{ID: domainA.ID()}), "untrusted"},
		"expired":                       {issue(t, caA, spiffetest.Leaf{ID: a1, NotBefore: time.Now().Add(-time.Hour), TTL: -time.Second}), "expired"},
		"not yet valid":                 {issue(t, caA, spiffetest.Leaf{ID: a1, NotBefore: time.Now().Add(time.Hour), TTL: 2 * time.Hour}), "untrusted"},
		"chain of five":                 {long, "untrusted"},
		"leaf of 17 KiB":                {issue(t, caA, spiffetest.Leaf{ID: a1, Change: fat}), "untrusted"},
	} {
		t.Run(name, func(t *testing.T) {
			answer, err := s.ask(t, hostile(test.svid))
			var alert *net.OpError
			if err == nil || answer != "" {
				t.Fatalf("answered %q", answer)
			}
			if errors.As(err, &alert) && alert.Op != "remote error" && !strings.Contains(err.Error(), "reset") && !strings.Contains(err.Error(), "broken pipe") {
				t.Errorf("not an alert: %v", err)
			}
			if got := s.lastRejection(t); got != test.reason {
				t.Errorf("rejected as %q, not %q", got, test.reason)
			}
		})
	}
	if len(s.peers) != 0 {
		t.Errorf("%d peers got through", len(s.peers))
	}
	if answer, err := s.ask(t, hostile(issue(t, caA, spiffetest.Leaf{ID: a1}))); answer != "y" {
		t.Errorf("the control case: %q %v", answer, err)
	}
	if got := s.lastPeer(t).ID(); got != a1 {
		t.Errorf("the peer is %s", got)
	}
}

func fat(c *x509.Certificate) {
	c.DNSNames = nil
	for n := range 600 {
		c.DNSNames = append(c.DNSNames, fmt.Sprintf("a-rather-long-name-of-a-host-%04d.example", n))
	}
	c.UnknownExtKeyUsage = []asn1.ObjectIdentifier{{1, 2, 3}}
}

// TestNobodyIsAccepted shows the zero cases of both sides.
func TestNobodyIsAccepted(t *testing.T) {
	ca := newCA(t, domainA)
	a := ready(t, update(ca, issue(t, ca, spiffetest.Leaf{ID: a1})))
	s := serve(t, a.source, a.source.ServerTLS(nil), identity.Limits{})
	if answer, err := s.ask(t, hostile(issue(t, ca, spiffetest.Leaf{ID: a1}))); err == nil {
		t.Errorf("an empty list accepts somebody: %q", answer)
	}
	open := serve(t, a.source, a.source.ServerTLS([]spiffeid.TrustDomain{domainA}), identity.Limits{})
	_, err := open.ask(t, a.source.ClientTLS(spiffeid.ID{}))
	if !errors.Is(err, identity.ErrUntrusted) || !strings.Contains(err.Error(), "no SPIFFE ID is expected") {
		t.Errorf("the zero ID matches somebody: %v", err)
	}
}

// TestExactServer is T009 on the client's side: only the whole ID counts.
func TestExactServer(t *testing.T) {
	caA, caB := newCA(t, domainA), newCA(t, domainB)
	client := ready(t, update(caA, issue(t, caA, spiffetest.Leaf{ID: a1}), caB.Bundle()))
	for _, text := range []string{
		"spiffe://td-a/ns/taskgate/sa/broker", "spiffe://td-a/ns/taskgate/sa/broker0", "spiffe://td-a/ns/taskgate/sa/broker/x", "spiffe://td-a/ns/taskgate/sa/Broker",
		"spiffe://td-a/ns/taskgate/sa", "spiffe://td-b/ns/taskgate/sa/broker",
	} {
		t.Run(text, func(t *testing.T) {
			id, ca, other := spiffeid.RequireFromString(text), caA, caB
			if id.TrustDomain() == domainB {
				ca, other = caB, caA
			}
			a := ready(t, update(ca, issue(t, ca, spiffetest.Leaf{ID: id}), other.Bundle()))
			s := serve(t, a.source, a.source.ServerTLS([]spiffeid.TrustDomain{domainA}), identity.Limits{})
			answer, err := s.ask(t, client.source.ClientTLS(broker))
			if id == broker {
				if answer != "y" {
					t.Errorf("the broker itself: %q %v", answer, err)
				}
				return
			}
			if !errors.Is(err, identity.ErrUntrusted) || !strings.Contains(err.Error(), "unexpected ID") {
				t.Errorf("%q %v", answer, err)
			}
		})
	}
}

// TestHostileServer shows that the client verifies what the server shows by the
// same rules: T003, T005, T007 in the other direction.
func TestHostileServer(t *testing.T) {
	caA, caB := newCA(t, domainA), newCA(t, domainB)
	client := ready(t, update(caA, issue(t, caA, spiffetest.Leaf{ID: a1}), caB.Bundle()))
	for name, test := range map[string]struct {
		svid *x509svid.SVID
		want error
		text string
	}{
		"foreign authority": {issue(t, caB, spiffetest.Leaf{ID: broker}), identity.ErrUntrusted, "could not verify leaf certificate"},
		"two URI SANs":      {issue(t, caA, spiffetest.Leaf{ID: broker, Change: twoURIs}), identity.ErrUntrusted, "more than one URI SAN"},
		"CA flag":           {issue(t, caA, spiffetest.Leaf{ID: broker, Change: func(c *x509.Certificate) { c.IsCA = true }}), identity.ErrUntrusted, "CA flag"},
		"expired":           {issue(t, caA, spiffetest.Leaf{ID: broker, NotBefore: time.Now().Add(-time.Hour), TTL: -time.Second}), identity.ErrExpired, "has expired"},
	} {
		t.Run(name, func(t *testing.T) {
			certificate := tls.Certificate{Certificate: [][]byte{test.svid.Certificates[0].Raw}, PrivateKey: test.svid.PrivateKey}
			listener := must(tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{certificate}, ClientAuth: tls.RequestClientCert}))(t)
			defer listener.Close()
			received := make(chan int, 1)
			go func() {
				conn, err := listener.Accept()
				if err != nil {
					return
				}
				defer conn.Close()
				n, _ := conn.Read(make([]byte, 100))
				received <- n
			}()
			_, err := tls.Dial("tcp", listener.Addr().String(), client.source.ClientTLS(broker))
			if !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.text) {
				t.Errorf("%v", err)
			}
			if n := <-received; n != 0 {
				t.Errorf("%d bytes were sent to it", n)
			}
		})
	}
}

// keeper is a session cache that tells what it was given.
type keeper struct {
	tls.ClientSessionCache
	put int
}

func (k *keeper) Put(key string, session *tls.ClientSessionState) {
	if session != nil {
		k.put++
	}
	k.ClientSessionCache.Put(key, session)
}

// TestNoResumption is T015 and T017: no ticket is issued, no session resumed, and
// so the second handshake of a client that wants to resume meets the new bundle.
func TestNoResumption(t *testing.T) {
	ca := newCA(t, domainA)
	brokerSVID := issue(t, ca, spiffetest.Leaf{ID: broker})
	a := ready(t, update(ca, brokerSVID))
	s := serve(t, a.source, a.source.ServerTLS([]spiffeid.TrustDomain{domainA}), identity.Limits{})
	cache := &keeper{ClientSessionCache: tls.NewLRUClientSessionCache(8)}
	config := hostile(issue(t, ca, spiffetest.Leaf{ID: a1}))
	config.ClientSessionCache, config.ServerName = cache, "broker"
	for range 2 {
		if answer, err := s.ask(t, config); answer != "y" {
			t.Fatalf("%q %v", answer, err)
		}
	}
	for _, state := range s.states {
		if state.DidResume {
			t.Error("a session was resumed")
		}
	}
	if cache.put != 0 {
		t.Errorf("%d tickets on the wire", cache.put)
	}
	next := newCA(t, domainA)
	a.set(t, update(next, issue(t, next, spiffetest.Leaf{ID: broker})))
	if answer, err := s.ask(t, config); err == nil {
		t.Errorf("answered %q under the new bundle", answer)
	}
	if got := s.lastRejection(t); got != "untrusted" {
		t.Errorf("rejected as %q", got)
	}
	for name, made := range map[string]*tls.Config{"server": a.source.ServerTLS(nil), "client": a.source.ClientTLS(broker)} {
		if !made.SessionTicketsDisabled || made.ClientSessionCache != nil || made.GetConfigForClient != nil || made.MinVersion != tls.VersionTLS13 || made.VerifyConnection == nil {
			t.Errorf("the %s's configuration is not hardened", name)
		}
	}
}

// TestVersions is T018.
func TestVersions(t *testing.T) {
	ca := newCA(t, domainA)
	a := ready(t, update(ca, issue(t, ca, spiffetest.Leaf{ID: broker})))
	s := serve(t, a.source, a.source.ServerTLS([]spiffeid.TrustDomain{domainA}), identity.Limits{})
	svid := issue(t, ca, spiffetest.Leaf{ID: a1})
	for name, change := range map[string]func(*tls.Config){
		"TLS 1.1": func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 },
		"TLS 1.2": func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 },
		"TLS 1.2 RSA": func(c *tls.Config) {
			c.MaxVersion, c.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_RSA_WITH_AES_128_GCM_SHA256}
		},
	} {
		config := hostile(svid)
		change(config)
		if _, err := s.ask(t, config); err == nil || !strings.Contains(err.Error(), "protocol version not supported") {
			t.Errorf("%s: %v", name, err)
		}
	}
	for offered, want := range map[string]string{"": "", "h2": "h2", "http/1.1": "http/1.1"} {
		config := hostile(svid)
		if offered != "" {
			config.NextProtos = []string{offered}
		}
		conn := must(tls.Dial("tcp", s.address, config))(t)
		if got := conn.ConnectionState().NegotiatedProtocol; got != want {
			t.Errorf("offered %q: %q", offered, got)
		}
		if answer, err := askOn(conn); answer != "y" {
			t.Errorf("offered %q: %q %v", offered, answer, err)
		}
		conn.Close()
	}
	config := hostile(svid)
	config.NextProtos = []string{"imap"}
	if _, err := s.ask(t, config); err == nil || !strings.Contains(err.Error(), "no application protocol") {
		t.Errorf("another protocol: %v", err)
	}
}
