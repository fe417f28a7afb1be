package identity_test

import (
	"context"
	"crypto/tls"
	"errors"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/taskgate/taskgate/identity"
	"github.com/taskgate/taskgate/internal/spiffetest"
)

// clock is one that tests move.
type clock struct{ ahead atomic.Int64 }

func (c *clock) now() time.Time          { return time.Now().Add(time.Duration(c.ahead.Load())) }
func (c *clock) advance(d time.Duration) { c.ahead.Add(int64(d)) }

func TestWaitForTheFirstSVID(t *testing.T) {
	a := newAPI(t, spiffetest.Update{}, identity.Config{})
	if err := a.source.Ready(); !errors.Is(err, identity.ErrNoSVID) {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	err := a.source.Wait(ctx)
	if !errors.Is(err, identity.ErrNoSVID) || !strings.Contains(err.Error(), "no identity issued") {
		t.Errorf("the reason is missing: %v", err)
	}
	if _, err := a.source.ID(); !errors.Is(err, identity.ErrNoSVID) {
		t.Errorf("%v", err)
	}
	if _, err := a.source.GetX509BundleForTrustDomain(domainA); !errors.Is(err, identity.ErrNoSVID) {
		t.Errorf("%v", err)
	}
	ca := newCA(t, domainA)
	a.Server.Set(update(ca, issue(t, ca, spiffetest.Leaf{ID: a1})))
	if err := a.source.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	if id := must(a.source.ID())(t); id != a1 {
		t.Errorf("%s", id)
	}
}

func TestBadAddress(t *testing.T) {
	t.Setenv("SPIFFE_ENDPOINT_SOCKET", "")
	for _, address := range []string{"", "nowhere", "http://localhost", "unix:relative", "tcp://host:1"} {
		if _, err := identity.Open(t.Context(), identity.Config{Address: address}); err == nil || !strings.Contains(err.Error(), "give its address, such as unix:///run/spire/agent.sock") {
			t.Errorf("%q: %v", address, err)
		}
	}
}

func TestAddressFromEnvironment(t *testing.T) {
	ca := newCA(t, domainA)
	a := ready(t, update(ca, issue(t, ca, spiffetest.Leaf{ID: a1})))
	t.Setenv("SPIFFE_ENDPOINT_SOCKET", "unix://"+a.socket)
	source := must(identity.Open(t.Context(), identity.Config{}))(t)
	defer source.Close()
	if err := source.Wait(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestExpiredSVID shows that an SVID that was not renewed is an error from its end
// on, for everything that would use it.
func TestExpiredSVID(t *testing.T) {
	ca := newCA(t, domainA)
	var c clock
	svid := issue(t, ca, spiffetest.Leaf{ID: a1, TTL: time.Hour})
	a := newAPI(t, update(ca, svid), identity.Config{Now: c.now})
	if err := a.source.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	s := serve(t, a.source, a.source.ServerTLS([]spiffeid.TrustDomain{domainA}), identity.Limits{})
	c.advance(time.Hour + time.Second)
	err := a.source.Ready()
	if !errors.Is(err, identity.ErrNoSVID) || !strings.Contains(err.Error(), "the one held ended at "+svid.Certificates[0].NotAfter.UTC().Format(time.RFC3339)) {
		t.Errorf("%v", err)
	}
	if _, err := a.source.GetX509SVID(); !errors.Is(err, identity.ErrNoSVID) {
		t.Errorf("%v", err)
	}
	// As a server there is nothing to show; as a client there is nothing to send.
	if _, err := s.ask(t, hostile(issue(t, ca, spiffetest.Leaf{ID: a1, TTL: 3 * time.Hour}))); err == nil || !strings.Contains(err.Error(), "internal error") {
		t.Errorf("the server: %v", err)
	}
	other := ready(t, update(ca, issue(t, ca, spiffetest.Leaf{ID: broker, TTL: 3 * time.Hour})))
	real := serve(t, other.source, other.source.ServerTLS([]spiffeid.TrustDomain{domainA}), identity.Limits{})
	if _, err := real.ask(t, a.source.ClientTLS(broker)); !errors.Is(err, identity.ErrNoSVID) {
		t.Errorf("the client: %v", err)
	}
}

// TestRotation shows that new connections use the newest SVID, old ones stay.
func TestRotation(t *testing.T) {
	ca := newCA(t, domainA)
	a := ready(t, update(ca, issue(t, ca, spiffetest.Leaf{ID: broker})))
	s := serve(t, a.source, a.source.ServerTLS([]spiffeid.TrustDomain{domainA}), identity.Limits{})
	client := hostile(issue(t, ca, spiffetest.Leaf{ID: a1}))
	old := must(tls.Dial("tcp", s.address, client))(t)
	defer old.Close()
	next := issue(t, ca, spiffetest.Leaf{ID: broker})
	a.set(t, update(ca, next))
	fresh := must(tls.Dial("tcp", s.address, client))(t)
	defer fresh.Close()
	if got := fresh.ConnectionState().PeerCertificates[0].SerialNumber; got.Cmp(next.Certificates[0].SerialNumber) != 0 {
		t.Errorf("a new connection shows serial %s", got)
	}
	if answer, err := askOn(old); answer != "y" {
		t.Errorf("the old connection: %q %v", answer, err)
	}
}

func TestHint(t *testing.T) {
	ca := newCA(t, domainA)
	other := spiffeid.RequireFromString("spiffe://td-a/other")
	internal := issue(t, ca, spiffetest.Leaf{ID: other, Hint: "internal"})
	external := issue(t, ca, spiffetest.Leaf{ID: a1, Hint: "external"})
	both := spiffetest.Update{SVIDs: []*x509svid.SVID{internal, external}, Bundle: ca.Bundle()}
	for hint, want := range map[string]spiffeid.ID{"": other, "internal": other, "external": a1} {
		a := newAPI(t, both, identity.Config{Hint: hint})
		if err := a.source.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := must(a.source.ID())(t); got != want {
			t.Errorf("hint %q: %s", hint, got)
		}
	}
	a := newAPI(t, both, identity.Config{Hint: "missing"})
	eventually(t, "the reason is known", func() bool {
		err := a.source.Ready()
		return errors.Is(err, identity.ErrNoSVID) && strings.Contains(err.Error(), `none of the 2 X509-SVIDs offered has the hint "missing"`)
	})
}

// TestDeniedLater shows that an SVID stays in force to its end when the entry is
// gone (T027): what was granted is the broker's business.
func TestDeniedLater(t *testing.T) {
	ca := newCA(t, domainA)
	a := ready(t, update(ca, issue(t, ca, spiffetest.Leaf{ID: a1})))
	a.Server.Set(spiffetest.Update{})
	time.Sleep(50 * time.Millisecond) // nothing tells when the refusal has arrived
	if err := a.source.Ready(); err != nil {
		t.Error(err)
	}
}

// TestWorkloadAPIComesBack shows that it is found again soon, however long it was
// away.
func TestWorkloadAPIComesBack(t *testing.T) {
	t.Parallel()
	ca := newCA(t, domainA)
	a := ready(t, update(ca, issue(t, ca, spiffetest.Leaf{ID: a1})))
	a.Server.Close()
	away := 4 * time.Second
	if testing.Short() {
		away = 500 * time.Millisecond
	}
	time.Sleep(away)
	if err := a.source.Ready(); err != nil {
		t.Errorf("during the outage: %v", err)
	}
	next := issue(t, ca, spiffetest.Leaf{ID: a1})
	updated := a.source.Updated()
	back := must(spiffetest.Listen(a.socket, update(ca, next)))(t)
	defer back.Close()
	began := time.Now()
	select {
	case <-updated:
	case <-time.After(patience):
		t.Fatal("not found again")
	}
	if took := time.Since(began); took > 7*time.Second {
		t.Errorf("found again after %s", took)
	}
}

func TestClose(t *testing.T) {
	ca := newCA(t, domainA)
	a := ready(t, update(ca, issue(t, ca, spiffetest.Leaf{ID: a1})))
	if err := a.source.Close(); err != nil {
		t.Error(err)
	}
	if err := a.source.Ready(); !errors.Is(err, identity.ErrNoSVID) || !strings.Contains(err.Error(), "the source is closed") {
		t.Errorf("%v", err)
	}
}

// TestOpenOutlivesItsContext shows that the end of the program's context does not
// take the SVID away from the last calls.
func TestOpenOutlivesItsContext(t *testing.T) {
	ca := newCA(t, domainA)
	a := ready(t, update(ca, issue(t, ca, spiffetest.Leaf{ID: a1})))
	ctx, cancel := context.WithCancel(t.Context())
	source := must(identity.Open(ctx, identity.Config{Address: "unix://" + a.socket}))(t)
	defer source.Close()
	cancel()
	if err := source.Wait(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(a.socket); err != nil {
		t.Error(err)
	}
}
