package authz_test

import (
	"testing"
	"time"

	"github.com/taskgate/taskgate/authz"
)

func TestLimits(t *testing.T) {
	at := func(uid string, from time.Time, change ...func(*authz.Grant)) *authz.Grant {
		g := &authz.Grant{UID: uid, Policy: "shop", ActiveFrom: from, ExpiresAt: from.Add(time.Hour), TTL: time.Hour}
		for _, c := range change {
			c(g)
		}
		return g
	}
	ended := func(when time.Time) func(*authz.Grant) {
		return func(g *authz.Grant) { g.EndReason, g.EndedAt = authz.EndRevoked, when }
	}
	one, g := authz.Limits{MaxActive: 1, PerDay: 3}, at("b", noon)
	for _, row := range []struct {
		name   string
		limits authz.Limits
		others []*authz.Grant
		want   string
	}{
		{"alone", one, nil, ""},
		{"no limits", authz.Limits{}, []*authz.Grant{at("a", noon), at("c", noon)}, ""},
		{"one was first", one, []*authz.Grant{at("c", noon.Add(-time.Minute))}, "maxActive"},
		{"one came later", one, []*authz.Grant{at("a", noon.Add(time.Microsecond))}, ""},
		{"at the same time the smaller UID stays", one, []*authz.Grant{at("a", noon)}, "maxActive"},
		{"at the same time the larger UID goes", one, []*authz.Grant{at("c", noon)}, ""},
		{"the first was over by then", one, []*authz.Grant{at("a", noon.Add(-time.Hour))}, ""},
		{"the first had ended by then", one, []*authz.Grant{at("a", noon.Add(-time.Minute), ended(noon))}, ""},
		{"the first ended later", one, []*authz.Grant{at("a", noon.Add(-time.Minute), ended(noon.Add(time.Second)))}, "maxActive"},
		{"the first is revoked, since when is not known", one, []*authz.Grant{at("a", noon.Add(-time.Minute), func(g *authz.Grant) { g.Revoked = true })}, "maxActive"},
		{"the first exceeded it too", one, []*authz.Grant{at("a", noon, func(g *authz.Grant) { g.EndReason, g.EndedAt = authz.EndLimit, noon })}, ""},
		{"another policy", one, []*authz.Grant{at("a", noon, func(g *authz.Grant) { g.Policy = "other" })}, ""},
		{"never active", one, []*authz.Grant{at("a", time.Time{})}, ""},
		{"enough for a day", one, []*authz.Grant{at("c", noon.Add(-9*time.Hour)), at("d", noon.Add(-8*time.Hour)), at("e", noon.Add(-7*time.Hour))}, "perDay"},
		{"yesterday", one, []*authz.Grant{at("c", noon.Add(-13*time.Hour)), at("d", noon.Add(-8*time.Hour)), at("e", noon.Add(-7*time.Hour))}, ""},
	} {
		if got := row.limits.Exceeded(g, append(row.others, g)); got != row.want {
			t.Errorf("%s: %q, want %q", row.name, got, row.want)
		}
	}
}
