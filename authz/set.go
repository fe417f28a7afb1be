package authz

import (
	"cmp"
	"slices"
	"time"
)

// Set is everything that decides about one agent, compiled. It never changes; a
// [Pin] replaces it when something it was made of has changed.
type Set struct {
	boundary  *Boundary
	policies  []*Policy // that are about the agent, by name
	suspended string    // name of a suspended one of them
	builtins  []builtin // built-in gates that stand
	forReads  []builtin // … and of those the ones that can stand before a read
	waived    []builtin // … and those that do not
	gates     []compiledGate
	grants    []heldGrant // as byStandingThenEnd orders them
}

// heldGrant is a grant of the agent with its standing at the generation of the
// set. Time is not part of it: an active grant may have run out since.
type heldGrant struct {
	*Grant
	standing standing
	rules    []matcher
	end      time.Time
	policy   *Policy // nil if there is none; then the grant is worth nothing
}

// standing is what a grant is worth, but for time. The zero value is worth
// nothing.
type standing uint8

const (
	refused standing = iota // denied or never judged: as if it did not exist
	pending
	active
	revoked // also deleted, and no longer within its policy
	spent
	expired
)

// reason is what the agent is told when a grant of that standing would have
// covered its call.
func (s standing) reason() Reason {
	switch s {
	case pending:
		return GrantPending
	case revoked:
		return GrantRevoked
	case spent:
		return BudgetSpent
	case expired:
		return GrantExpired
	}
	return NoGrant
}

func (g *heldGrant) standingAt(now time.Time) standing {
	if g.standing == active && !now.Before(g.end) {
		return expired
	}
	return g.standing
}

// coveringRule returns the rule that covers the call, or nil. A call that also
// creates needs a rule for that as well.
func (g *heldGrant) coveringRule(c *Call) *Rule {
	rule := g.ruleFor(c, c.Verb)
	if rule != nil && c.Creates && g.ruleFor(c, Create) == nil && g.createFor(c) == nil {
		return nil
	}
	return rule
}

// ruleFor prefers a rule that lets the pod run as it wants to, and of those
// about Secrets the one that says most about this one (see Rule.preference).
func (g *heldGrant) ruleFor(c *Call, verb Verb) *Rule {
	var best *Rule
	most := -1
	for i := range g.rules {
		if !g.rules[i].match(c, verb) || g.Rules[i].refuses(c) != "" {
			continue
		}
		if preference := g.Rules[i].preference(c); preference > most {
			best, most = &g.Rules[i], preference
		}
		if most > 0 && !c.Secrets() {
			return best // no rule can be better
		}
	}
	return best
}

// preference orders the rules of a grant that match the same call. Where one rule
// redacts and another does not, the agent cannot choose between seeing keys at
// once and asking for values: a rule that names the Secret goes before one that is
// about all of them, and otherwise the rule that redacts goes first. So a grant on
// everything can keep Secrets masked, and one that masks them can except one.
func (r *Rule) preference(c *Call) int {
	preference := 0
	if r.runsAs(c.ServiceAccount) {
		preference += 4
	}
	if c.Secrets() && len(r.ResourceNames) > 0 {
		preference += 2
	}
	if c.Secrets() && r.Redacted {
		preference++
	}
	return preference
}

// runsAs reports whether pods under the rule may use the service account.
func (r *Rule) runsAs(account string) bool {
	return account == "" || account == "default" || slices.Contains(r.ServiceAccounts, account)
}

// createFor asks for create as RBAC would be asked: without a name.
func (g *heldGrant) createFor(c *Call) *Rule {
	nameless := *c
	nameless.Name = ""
	return g.ruleFor(&nameless, Create)
}

// cover finds the grant that is charged: of the active ones that cover the call
// the one that ends first. If there is none, it finds the most useful reason.
func (q *Question) cover(d *Decision) {
	s := q.Set
	best, actives := standing(refused), 0
	var only *Grant
	var since time.Time
	for i := range s.grants {
		g := &s.grants[i]
		if q.Pinned != "" && g.Name != q.Pinned {
			continue
		}
		now := g.standingAt(q.Now)
		if now == active {
			actives++
			only = g.Grant
		}
		rule := g.coveringRule(q.Call)
		if rule == nil || now == refused {
			continue
		}
		if now == active {
			d.Covering++
			if d.Covering == 1 {
				d.Grant, d.Rule, d.Policy, best = g.Grant, rule, g.policy, active
			}
			continue
		}
		if d.Covering == 0 && better(now, g.overSince(), best, since) {
			d.Grant, d.Rule, best, since = g.Grant, rule, now, g.overSince()
		}
	}
	switch {
	case d.Covering > 0:
	case best != refused:
		d.Reason, d.Rule = best.reason(), nil
	case actives > 0:
		d.Reason, d.Cause = OutsideGrant, q.brokenBy()
		if actives == 1 {
			d.Grant = only // so that the record says which task it happened in
		}
	default:
		d.Reason = NoGrant
	}
}

// better prefers a grant that may still come over one that is over, and of those
// the one that ended last: that is what the agent remembers.
func better(candidate standing, since time.Time, best standing, bestSince time.Time) bool {
	switch {
	case best == refused:
		return true
	case best == pending:
		return false
	}
	return candidate == pending || since.After(bestSince)
}

// Candidates names every active grant that covers the call, the charged one
// first. It allocates and is meant for the record.
func (s *Set) Candidates(q Question) []string {
	var names []string
	for i := range s.grants {
		g := &s.grants[i]
		if (q.Pinned == "" || g.Name == q.Pinned) && g.standingAt(q.Now) == active && g.coveringRule(q.Call) != nil {
			names = append(names, g.Name)
		}
	}
	return names
}

// Held is a grant as the agent may be told about it.
type Held struct {
	*Grant
	Active bool
}

// Held lists the agent's grants at a moment, active ones first.
func (s *Set) Held(now time.Time) []Held {
	held := make([]Held, 0, len(s.grants))
	for i := range s.grants {
		held = append(held, Held{s.grants[i].Grant, s.grants[i].standingAt(now) == active})
	}
	return held
}

// gated turns a covered call into an allowed one unless a gate stands before it.
func (s *Set) gated(c *Call, d *Decision) {
	if !d.Rule.runsAs(c.ServiceAccount) {
		d.Reason, d.Cause = PolicyDenied, "PodPolicy"
		return
	}
	d.Values = !(c.Secrets() && d.Rule.Redacted)
	d.certain = s.certain(c, d.Rule)
	for i := range s.waived {
		if s.waived[i].stands(c, d.Rule) {
			d.waived = s.waived[i].gate.Name
			break
		}
	}
	if d.Conditional = s.conditional(c, d.certain); d.Conditional != nil {
		d.Verdict, d.Reason, d.Gate = NeedsApproval, ApprovalRequired, d.Conditional[0]
		return
	}
	d.settled()
}

// certain returns the strictest gate that is before the call in any case: the one
// that asks for most people, and of those one that says of which groups.
func (s *Set) certain(c *Call, rule *Rule) *Gate {
	var strictest *Gate
	builtins := s.builtins
	if !c.Verb.Mutates() {
		builtins = s.forReads
	}
	for i := range builtins {
		if builtins[i].stands(c, rule) {
			strictest = &builtins[i].gate
			break
		}
	}
	for i := range s.gates {
		if g := &s.gates[i]; g.Condition == nil && g.match(c) && g.outdoes(strictest) {
			strictest = g.Gate
		}
	}
	return strictest
}

// conditional returns the gates that may be before the call and would be stricter
// than the certain one, or as strict. It allocates only if there are any.
func (s *Set) conditional(c *Call, certain *Gate) []*Gate {
	var gates []*Gate
	for i := range s.gates {
		if g := &s.gates[i]; g.Condition != nil && g.match(c) && g.outdoes(certain) {
			gates = append(gates, g.Gate)
		}
	}
	slices.SortStableFunc(gates, func(a, b *Gate) int {
		return cmp.Or(b.Approvers-a.Approvers, min(len(b.Groups), 1)-min(len(a.Groups), 1))
	})
	return gates
}
