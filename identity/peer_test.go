package identity_test

import (
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/taskgate/taskgate/identity"
	"github.com/taskgate/taskgate/internal/spiffetest"
)

// pair is an open connection between an agent and a broker.
type pair struct {
	server *server
	api    *api // the broker's
	conn   *tls.Conn
	peer   *identity.Peer
}

func connect(t *testing.T, a *api, accepted []spiffeid.TrustDomain, client *tls.Config) *pair {
	t.Helper()
	s := serve(t, a.source, a.source.ServerTLS(accepted), identity.Limits{})
	conn := must(tls.Dial("tcp", s.address, client))(t)
	t.Cleanup(func() { conn.Close() })
	if answer, err := askOn(conn); answer != "y" {
		t.Fatalf("%q %v", answer, err)
	}
	return &pair{server: s, api: a, conn: conn, peer: s.lastPeer(t)}
}

// TestPeerEnds is T010: the check holds at its moment, to the nanosecond.
func TestPeerEnds(t *testing.T) {
	ca := newCA(t, domainA)
	a := ready(t, update(ca, issue(t, ca, spiffetest.Leaf{ID: broker})))
	svid := issue(t, ca, spiffetest.Leaf{ID: a1, TTL: time.Minute})
	p := connect(t, a, []spiffeid.TrustDomain{domainA}, hostile(svid))
	end := svid.Certificates[0].NotAfter
	if !p.peer.NotAfter().Equal(end) || p.peer.ID() != a1 || p.peer.LeafSHA256() != sha256.Sum256(svid.Certificates[0].Raw) {
		t.Errorf("%s %s", p.peer.ID(), p.peer.NotAfter())
	}
	for _, before := range []time.Duration{time.Minute, time.Nanosecond} {
		if err := p.peer.Check(end.Add(-before)); err != nil {
			t.Errorf("%s before the end: %v", before, err)
		}
	}
	for _, after := range []time.Duration{0, time.Nanosecond, time.Hour} {
		if err := p.peer.Check(end.Add(after)); !errors.Is(err, identity.ErrExpired) || errors.Is(err, identity.ErrUntrusted) {
			t.Errorf("%s after the end: %v", after, err)
		}
	}
	// An update of the Workload API does not bring it back.
	a.set(t, update(ca, issue(t, ca, spiffetest.Leaf{ID: broker})))
	if err := p.peer.Check(end.Add(time.Second)); !errors.Is(err, identity.ErrExpired) {
		t.Errorf("after an update: %v", err)
	}
}

// TestPeerEndsOnTheWire is T010 on an open connection and with a real clock.
func TestPeerEndsOnTheWire(t *testing.T) {
	t.Parallel()
	ca := newCA(t, domainA)
	a := ready(t, update(ca, issue(t, ca, spiffetest.Leaf{ID: broker})))
	p := connect(t, a, []spiffeid.TrustDomain{domainA}, hostile(issue(t, ca, spiffetest.Leaf{ID: a1, TTL: 2 * time.Second})))
	end := p.peer.NotAfter()
	for {
		sent := time.Now()
		answer, err := askOn(p.conn)
		if err != nil {
			t.Fatal(err)
		}
		if answer == "n" {
			if time.Now().Before(end) {
				t.Error("refused before the end")
			}
			return
		}
		if sent.After(end) {
			t.Fatalf("accepted %s after the end", time.Since(end))
		}
	}
}

// TestAuthorityLeaves is T013: the authority behind an open connection is revoked.
func TestAuthorityLeaves(t *testing.T) {
	old, next := newCA(t, domainA), newCA(t, domainA)
	a := ready(t, update(old, issue(t, old, spiffetest.Leaf{ID: broker})))
	p := connect(t, a, []spiffeid.TrustDomain{domainA}, hostile(issue(t, old, spiffetest.Leaf{ID: a1})))

	// Both authorities are in the bundle while a rotation is under way.
	both := update(next, issue(t, next, spiffetest.Leaf{ID: broker}))
	both.Bundle.AddX509Authority(old.Bundle().X509Authorities()[0])
	a.set(t, both)
	if answer, err := askOn(p.conn); answer != "y" {
		t.Errorf("during the rotation: %q %v", answer, err)
	}
	a.set(t, update(next, issue(t, next, spiffetest.Leaf{ID: broker})))
	if answer, err := askOn(p.conn); answer != "n" {
		t.Errorf("after it: %q %v", answer, err)
	}
	if err := p.peer.Check(time.Now()); !errors.Is(err, identity.ErrUntrusted) || errors.Is(err, identity.ErrExpired) {
		t.Errorf("%v", err)
	}
	// The verdict follows the bundle, not the worst that was ever seen.
	a.set(t, both)
	if answer, err := askOn(p.conn); answer != "y" {
		t.Errorf("after the authority came back: %q %v", answer, err)
	}
}

// TestFederationEnds is T014, and shows that federated IDs stay federated.
func TestFederationEnds(t *testing.T) {
	caA, caB := newCA(t, domainA), newCA(t, domainB)
	own := issue(t, caA, spiffetest.Leaf{ID: broker})
	a := ready(t, update(caA, own, caB.Bundle()))
	b1 := spiffeid.RequireFromString("spiffe://td-b/ns/ns-a/sa/a1")
	p := connect(t, a, []spiffeid.TrustDomain{domainA, domainB}, hostile(issue(t, caB, spiffetest.Leaf{ID: b1})))
	if p.peer.ID() != b1 || p.peer.ID() == a1 || p.peer.ID().MemberOf(domainA) {
		t.Errorf("the peer is %s", p.peer.ID())
	}
	a.set(t, update(caA, own))
	if answer, err := askOn(p.conn); answer != "n" {
		t.Errorf("%q %v", answer, err)
	}
	if err := p.peer.Check(time.Now()); !errors.Is(err, identity.ErrUntrusted) {
		t.Errorf("%v", err)
	}
}

// TestFederatedAuthority shows that bundles are not pooled even where both domains
// are accepted (T007 with more rope).
func TestFederatedAuthority(t *testing.T) {
	caA, caB := newCA(t, domainA), newCA(t, domainB)
	a := ready(t, update(caA, issue(t, caA, spiffetest.Leaf{ID: broker}), caB.Bundle()))
	s := serve(t, a.source, a.source.ServerTLS([]spiffeid.TrustDomain{domainA, domainB}), identity.Limits{})
	forged := issue(t, caB, spiffetest.Leaf{ID: a1})
	if answer, err := s.ask(t, hostile(forged)); err == nil {
		t.Errorf("%q", answer)
	}
	if _, err := a.source.Peer(tls.ConnectionState{PeerCertificates: forged.Certificates}); !errors.Is(err, identity.ErrUntrusted) {
		t.Errorf("%v", err)
	}
}

func TestZeroPeer(t *testing.T) {
	var peer *identity.Peer
	for _, p := range []*identity.Peer{peer, new(identity.Peer)} {
		if err := p.Check(time.Now()); !errors.Is(err, identity.ErrUntrusted) {
			t.Errorf("%v", err)
		}
	}
	zero := new(identity.Peer)
	if !zero.ID().IsZero() || !zero.NotAfter().IsZero() {
		t.Errorf("%s %s", zero.ID(), zero.NotAfter())
	}
}

// TestPeerWithoutSource shows that a closed source vouches for nobody.
func TestPeerWithoutSource(t *testing.T) {
	ca := newCA(t, domainA)
	a := ready(t, update(ca, issue(t, ca, spiffetest.Leaf{ID: broker})))
	peer := must(a.source.Peer(tls.ConnectionState{PeerCertificates: issue(t, ca, spiffetest.Leaf{ID: a1}).Certificates}))(t)
	if err := peer.Check(time.Now()); err != nil {
		t.Fatal(err)
	}
	if _, err := a.source.Peer(tls.ConnectionState{}); !errors.Is(err, identity.ErrUntrusted) {
		t.Errorf("no certificates: %v", err)
	}
	a.source.Close()
	if err := peer.Check(time.Now()); !errors.Is(err, identity.ErrUntrusted) {
		t.Errorf("%v", err)
	}
}

func BenchmarkCheck(b *testing.B) {
	ca := newCA(b, domainA)
	a := ready(b, update(ca, issue(b, ca, spiffetest.Leaf{ID: broker})))
	peer := must(a.source.Peer(tls.ConnectionState{PeerCertificates: issue(b, ca, spiffetest.Leaf{ID: a1}).Certificates}))(b)
	now := time.Now()
	b.ReportAllocs()
	for b.Loop() {
		if err := peer.Check(now); err != nil {
			b.Fatal(err)
		}
	}
}
