package authz

import (
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-memdb"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Pin keeps the compiled set of one agent at hand, for as long as a connection
// lives. Safe for concurrent use.
type Pin struct {
	index *Index
	agent spiffeid.ID
	own   *atomic.Uint64 // generation of the agent's grants
	last  atomic.Pointer[pinned]
}

// pinned is a set and the generations it was made at.
type pinned struct {
	set           *Set
	policies, own uint64
}

// Pin makes a pin for an agent.
func (x *Index) Pin(agent spiffeid.ID) *Pin {
	return &Pin{index: x, agent: agent, own: x.agent(agent.String())}
}

// Set returns the agent's set as of now; it is compiled anew only if a policy or
// a grant of this agent has changed. An error means that the index is broken;
// the caller must deny.
func (p *Pin) Set() (*Set, error) {
	policies, own := p.index.policies.Load(), p.own.Load()
	if last := p.last.Load(); last != nil && last.policies == policies && last.own == own {
		return last.set, nil
	}
	// The generations were read before the rows, so the set may be newer than
	// they say, and is then compiled once more; it is never older.
	set, err := p.index.compile(p.agent)
	if err != nil {
		return nil, err
	}
	p.last.Store(&pinned{set, policies, own})
	return set, nil
}

func (x *Index) compile(agent spiffeid.ID) (*Set, error) {
	txn := x.db.Txn(false)
	policies, err := matchingPolicies(txn, agent)
	if err != nil {
		return nil, err
	}
	set := &Set{boundary: &x.boundary}
	set.addPolicies(policies)
	grants, err := grantsOf(txn, agent.String())
	if err != nil {
		return nil, err
	}
	for _, grant := range grants {
		set.grants = append(set.grants, hold(grant, policies, grants))
	}
	slices.SortStableFunc(set.grants, byStandingThenEnd)
	return set, nil
}

// matchingPolicies returns the policies that are about the agent, by name.
func matchingPolicies(txn *memdb.Txn, agent spiffeid.ID) (map[string]*policyRow, error) {
	rows, err := txn.Get("policy", "id")
	if err != nil {
		return nil, err
	}
	matching := map[string]*policyRow{}
	for row := rows.Next(); row != nil; row = rows.Next() {
		policy := row.(*policyRow)
		if slices.ContainsFunc(policy.patterns, func(p pattern) bool { return p.match(agent) }) {
			matching[policy.Name] = policy
		}
	}
	return matching, nil
}

// addPolicies takes over gates, waivers and suspension of all matching policies.
func (s *Set) addPolicies(policies map[string]*policyRow) {
	for _, name := range slices.Sorted(maps.Keys(policies)) {
		policy := policies[name]
		s.policies = append(s.policies, policy.Policy)
		if policy.Suspended {
			s.suspended = policy.Name
		}
		s.gates = append(s.gates, policy.gates...)
	}
	for _, b := range builtins() {
		if waivedByAll(policies, b.gate.Name) {
			s.waived = append(s.waived, b)
			continue
		}
		s.builtins = append(s.builtins, b)
		if !b.writesOnly {
			s.forReads = append(s.forReads, b)
		}
	}
}

// waivedByAll is false without any policy.
func waivedByAll(policies map[string]*policyRow, gate string) bool {
	for _, policy := range policies {
		if !slices.Contains(policy.Waive, gate) {
			return false
		}
	}
	return len(policies) > 0
}

func hold(grant *Grant, policies map[string]*policyRow, siblings []*Grant) heldGrant {
	held := heldGrant{Grant: grant, rules: make([]matcher, 0, len(grant.Rules)), end: grant.End()}
	for i := range grant.Rules {
		held.rules = append(held.rules, compileRule(&grant.Rules[i]))
	}
	if match := policies[grant.Policy]; match != nil {
		held.policy = match.Policy
	}
	held.standing = judge(grant, held.policy)
	if held.standing == active && held.policy.Limits.Exceeded(grant, siblings) != "" {
		held.standing = refused
	}
	return held
}

// judge says what a grant is worth under its policy, nil if the policy is
// missing or is not about the agent. Whether it lies inside the policy is
// computed here again and not taken from the status, so that a change of the
// policy is in force before any broker has written it down.
func judge(g *Grant, policy *Policy) standing {
	switch {
	case g.EndReason == EndExpired:
		return expired
	case g.EndReason == EndBudgetSpent:
		return spent
	case g.EndReason == EndLimit, g.EndReason == EndReleased:
		return refused // the agent is to ask anew
	case g.Revoked, g.Deleted, g.EndReason != "":
		return revoked
	case !g.Active && g.Pending:
		return pending
	case !g.Active:
		return refused
	case policy == nil, policy.Invalid != "", len(Missing(policy.Allow, g.Rules)) > 0:
		return revoked
	}
	return active
}

// The end reasons of a grant.
const (
	EndExpired       = "Expired"
	EndRevoked       = "Revoked"
	EndBudgetSpent   = "BudgetSpent"
	EndPolicyChanged = "PolicyChanged"
	EndSuspended     = "Suspended"
	EndLimit         = "LimitReached"
	EndReleased      = "Released" // given back by the agent
)

// byStandingThenEnd puts active grants first, the earliest end before the others.
func byStandingThenEnd(a, b heldGrant) int {
	switch {
	case a.standing == active && b.standing == active:
		return a.end.Compare(b.end)
	case a.standing == active:
		return -1
	case b.standing == active:
		return 1
	}
	return 0
}

// overSince is when a grant ended. One that was just taken away, and is not
// written down as over yet, counts as the latest.
func (g *heldGrant) overSince() time.Time {
	switch {
	case !g.EndedAt.IsZero():
		return g.EndedAt
	case g.standing == revoked:
		return time.Unix(1<<40, 0)
	}
	return g.end
}
