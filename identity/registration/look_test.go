package registration

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/taskgate/taskgate/internal/spiffetest"
)

func TestLook(t *testing.T) {
	t.Parallel()
	ca, err := spiffetest.NewCA("example.org")
	if err != nil {
		t.Fatal(err)
	}
	stranger, err := spiffetest.NewCA("example.org")
	if err != nil {
		t.Fatal(err)
	}
	issue := func(ca *spiffetest.CA, name, hint string) *x509svid.SVID {
		svid, err := ca.Issue(spiffetest.Leaf{ID: spiffeid.RequireFromString("spiffe://example.org/" + name), TTL: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		svid.Hint = hint
		return svid
	}
	socket := filepath.Join(t.TempDir(), "s")
	server, err := spiffetest.Listen(socket, spiffetest.Update{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	if _, err := Look(t.Context(), "unix://"+socket, ""); !errors.Is(err, ErrNoIdentity) {
		t.Errorf("without an entry: %v", err)
	}
	server.Set(spiffetest.Update{SVIDs: []*x509svid.SVID{issue(ca, "fallback", ""), issue(ca, "agent", Hint)}, Bundle: ca.Bundle()})
	for hint, want := range map[string]string{"": "spiffe://example.org/fallback", Hint: "spiffe://example.org/agent", "else": ""} {
		seen, err := Look(t.Context(), "unix://"+socket, hint)
		if err != nil || len(seen) != 2 {
			t.Fatalf("%v, %v", seen, err)
		}
		picked := ""
		for _, s := range seen {
			if s.Picked {
				picked += s.ID
			}
		}
		if picked != want {
			t.Errorf("with the hint %q %q is picked, want %q", hint, picked, want)
		}
	}
	server.Set(spiffetest.Update{SVIDs: []*x509svid.SVID{issue(stranger, "agent", Hint)}, Bundle: ca.Bundle()})
	if seen, err := Look(t.Context(), "unix://"+socket, ""); err == nil || errors.Is(err, ErrNoIdentity) {
		t.Errorf("an SVID of a stranger was taken: %v", seen)
	}
	if _, err := Look(t.Context(), "nonsense", ""); err == nil || errors.Is(err, ErrNoIdentity) {
		t.Errorf("no address at all: %v", err)
	}
}

func TestJudge(t *testing.T) {
	t.Parallel()
	now := time.Now()
	one := Seen{ID: "spiffe://example.org/one", Hint: Hint, Until: now.Add(time.Hour), Picked: true}
	ended, other := one, one
	ended.Until = now
	other.Picked = false
	for _, test := range []struct {
		name, expected, hint string
		seen                 []Seen
		want                 string // "" is nothing
	}{
		{"as expected", one.ID, Hint, []Seen{one}, ""},
		{"none in particular", "", "", []Seen{one}, ""},
		{"nothing", "", "", nil, "none of the SVIDs"},
		{"not picked", "", "else", []Seen{other}, "none of the SVIDs has the hint"},
		{"two with the hint", "", Hint, []Seen{one, other}, "2 SVIDs could be picked"},
		{"another ID", "spiffe://example.org/two", "", []Seen{one}, "the identity is spiffe://example.org/one, not"},
		{"run out", "", "", []Seen{ended}, "the SVID has run out"},
	} {
		var expected spiffeid.ID
		if test.expected != "" {
			expected = spiffeid.RequireFromString(test.expected)
		}
		got := strings.Join(Judge(test.seen, expected, test.hint, now), "; ")
		if (test.want == "") != (got == "") || !strings.HasPrefix(got, test.want) {
			t.Errorf("%s: got %q, want %q", test.name, got, test.want)
		}
	}
}
