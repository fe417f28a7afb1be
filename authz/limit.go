package authz

import "time"

// Limits bound the grants one agent holds under a policy. Zero is no limit.
type Limits struct {
	MaxActive int // at once
	PerDay    int // that become active in one day (UTC)
}

// Exceeded names the limit that a grant which became active should not have: two
// brokers, or two workers of one, may have let in more at the same moment than
// each of them saw. The grants that became active first stay. All brokers that
// know the same grants agree, at any time; a grant that is over was active until
// its EndedAt, and for as long as that is not known.
func (l Limits) Exceeded(g *Grant, siblings []*Grant) string {
	if l == (Limits{}) || g.ActiveFrom.IsZero() {
		return ""
	}
	midnight := g.ActiveFrom.UTC().Truncate(24 * time.Hour)
	active, today := 0, 0
	for _, other := range siblings {
		if other.Policy != g.Policy || !other.before(g) {
			continue
		}
		if !other.ActiveFrom.Before(midnight) {
			today++
		}
		if g.ActiveFrom.Before(other.End()) && (other.EndedAt.IsZero() || g.ActiveFrom.Before(other.EndedAt)) {
			active++
		}
	}
	switch {
	case l.MaxActive > 0 && active >= l.MaxActive:
		return "maxActive"
	case l.PerDay > 0 && today >= l.PerDay:
		return "perDay"
	}
	return ""
}

// before orders grants by when they became active. One that never did, or
// exceeded a limit itself, is before nothing.
func (g *Grant) before(other *Grant) bool {
	switch {
	case g.UID == other.UID, g.ActiveFrom.IsZero(), g.EndReason == EndLimit:
		return false
	case g.ActiveFrom.Equal(other.ActiveFrom):
		return g.UID < other.UID
	}
	return g.ActiveFrom.Before(other.ActiveFrom)
}
