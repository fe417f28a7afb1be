package authz

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-memdb"
)

// Policy is one AgentPolicy as plain values. Rows are never changed once they
// are in the index.
type Policy struct {
	Name      string
	UID       string
	Agents    []string
	Suspended bool
	Allow     []Rule
	Gates     []Gate
	Waive     []string
	// MaxTTL is the longest life a grant may be asked for.
	MaxTTL time.Duration
	// Limits are about the number of grants.
	Limits Limits
	// Budget is what one grant may use up, and PerDay what one agent may under the
	// policy in a day (UTC); nil fields do not limit.
	Budget, PerDay Budget
	// Invalid says why the policy cannot be understood; then it grants nothing,
	// and its gates and its suspension still hold.
	Invalid string
}

// Budget is an amount of use. Who counts is not the business of this package; a
// decision only says which policy its grant is under.
type Budget struct {
	Requests, Mutations, Streams, BytesOut *int64
}

// Grant is one TaskGrant as plain values, with the parts of its status that
// decide. Rows are never changed once they are in the index.
type Grant struct {
	Name   string
	UID    string
	Agent  string // exact SPIFFE ID
	Task   string
	Policy string
	Rules  []Rule
	TTL    time.Duration

	Revoked bool // spec.revoked, or being deleted
	Deleted bool // the object is gone; the row is its tombstone
	Pending bool // waits for people

	// Active is the brokers' word that the grant was inside its policy and
	// everybody agreed. It counts only between ActiveFrom and End.
	Active     bool
	ActiveFrom time.Time
	ExpiresAt  time.Time
	EndReason  string // why it is over; empty while it is not
	// EndedAt is when it was written down as over; zero before that. It says which
	// of several the agent remembers, and how long the grant counted (Limits).
	EndedAt time.Time
}

// End is when the grant is over at the latest: what its status says, but never
// later than its life from the moment it became active. Zero is long past.
func (g *Grant) End() time.Time {
	if g.ActiveFrom.IsZero() || g.TTL <= 0 {
		return time.Time{}
	}
	end := g.ActiveFrom.Add(g.TTL)
	if g.ExpiresAt.Before(end) {
		return g.ExpiresAt
	}
	return end
}

// Waiting reports whether the grant is neither active nor over: for people, for its
// policy, or for a broker to look at it.
func (g *Grant) Waiting() bool {
	return !g.Active && !g.Revoked && !g.Deleted && g.EndReason == "" && g.EndedAt.IsZero()
}

// Index holds all policies and grants. Writers (one at a time) and readers may
// work concurrently. go-memdb keeps the rows; it is read when a [Pin] finds that
// something about its agent has changed, never per call.
type Index struct {
	db       *memdb.MemDB
	boundary Boundary
	changed  chan struct{}

	freshUntil atomic.Int64  // unix nanoseconds; zero: never proven
	policies   atomic.Uint64 // generation of all policies
	agents     sync.Map      // agent → *atomic.Uint64, generation of its grants
}

// policyRow is a policy and its compiled form. Of grants there may be many, and few
// of their agents are connected, so a table holds them as they are and their rules
// are compiled with a set.
type policyRow struct {
	*Policy
	Name     string // for the table's index
	patterns []pattern
	gates    []compiledGate
}

// NewIndex makes an empty index. It is not fresh: every decision is PolicyStale
// until Fresh is called.
func NewIndex(boundary Boundary) (*Index, error) {
	table := func(name string, key memdb.Indexer) *memdb.TableSchema {
		id := &memdb.IndexSchema{Name: "id", Unique: true, Indexer: key}
		return &memdb.TableSchema{Name: name, Indexes: map[string]*memdb.IndexSchema{"id": id}}
	}
	// One index finds a grant and, by the first half of its key, all of an agent. A
	// second one would cost as much memory as the grants themselves.
	agentAndUID := &memdb.CompoundIndex{Indexes: []memdb.Indexer{&memdb.StringFieldIndex{Field: "Agent"}, &memdb.StringFieldIndex{Field: "UID"}}}
	db, err := memdb.NewMemDB(&memdb.DBSchema{Tables: map[string]*memdb.TableSchema{
		"policy": table("policy", &memdb.StringFieldIndex{Field: "Name"}),
		"grant":  table("grant", agentAndUID),
	}})
	if err != nil {
		return nil, err
	}
	return &Index{db: db, boundary: boundary, changed: make(chan struct{}, 1)}, nil
}

// Changed delivers a value after one or more changes; it is for one receiver.
func (x *Index) Changed() <-chan struct{} { return x.changed }

// Fresh says that decisions may be made on what the index holds until that
// moment. An earlier moment than the one known changes nothing.
func (x *Index) Fresh(until time.Time) {
	for {
		known := x.freshUntil.Load()
		if until.UnixNano() <= known || x.freshUntil.CompareAndSwap(known, until.UnixNano()) {
			return
		}
	}
}

// FreshUntil is the moment from which decisions are PolicyStale.
func (x *Index) FreshUntil() time.Time {
	if known := x.freshUntil.Load(); known != 0 {
		return time.Unix(0, known)
	}
	return time.Time{}
}

// PutPolicy adds or replaces a policy.
func (x *Index) PutPolicy(p *Policy) error {
	row := &policyRow{Policy: p, Name: p.Name}
	for _, text := range p.Agents {
		if pattern, err := parsePattern(text); err == nil { // unreadable: matches nobody
			row.patterns = append(row.patterns, pattern)
		}
	}
	for i := range p.Gates {
		row.gates = append(row.gates, compileGate(&p.Gates[i]))
	}
	return x.commit(func(txn *memdb.Txn) error { return txn.Insert("policy", row) }, &x.policies)
}

// DeletePolicy takes a policy away, and with it what its grants are worth.
func (x *Index) DeletePolicy(name string) error {
	return x.commit(func(txn *memdb.Txn) error {
		_, err := txn.DeleteAll("policy", "id", name)
		return err
	}, &x.policies)
}

// PutGrant adds or replaces a grant. A deleted grant is put as its tombstone, so
// that the agent hears GrantRevoked and not NoGrant.
func (x *Index) PutGrant(g *Grant) error { return x.PutGrants([]*Grant{g}) }

// PutGrants is PutGrant for several at once, of any agents: no decision is made on
// some of them only.
func (x *Index) PutGrants(grants []*Grant) error {
	generations := make([]*atomic.Uint64, 0, len(grants))
	for _, g := range grants {
		generations = append(generations, x.agent(g.Agent))
	}
	return x.commit(func(txn *memdb.Txn) error {
		for _, g := range grants {
			if err := txn.Insert("grant", g); err != nil {
				return err
			}
		}
		return nil
	}, generations...)
}

// ForgetGrant drops a tombstone.
func (x *Index) ForgetGrant(g *Grant) error {
	return x.commit(func(txn *memdb.Txn) error {
		_, err := txn.DeleteAll("grant", "id", g.Agent, g.UID)
		return err
	}, x.agent(g.Agent))
}

// commit publishes the rows before the generations: whoever sees a new generation
// finds the new rows.
func (x *Index) commit(change func(*memdb.Txn) error, generations ...*atomic.Uint64) error {
	txn := x.db.Txn(true)
	defer txn.Abort() // no effect after Commit
	if err := change(txn); err != nil {
		return err
	}
	txn.Commit()
	for _, generation := range generations {
		generation.Add(1)
	}
	select {
	case x.changed <- struct{}{}:
	default: // one is waiting already
	}
	return nil
}

// agent is the generation counter of one agent's grants.
func (x *Index) agent(id string) *atomic.Uint64 {
	if counter, found := x.agents.Load(id); found {
		return counter.(*atomic.Uint64)
	}
	counter, _ := x.agents.LoadOrStore(id, new(atomic.Uint64))
	return counter.(*atomic.Uint64)
}

// Policies lists all policies by name.
func (x *Index) Policies() ([]*Policy, error) {
	rows, err := x.db.Txn(false).Get("policy", "id")
	if err != nil {
		return nil, err
	}
	var policies []*Policy
	for row := rows.Next(); row != nil; row = rows.Next() {
		policies = append(policies, row.(*policyRow).Policy)
	}
	return policies, nil
}

// Grants lists the grants of one agent, tombstones included.
func (x *Index) Grants(agent string) ([]*Grant, error) { return grantsOf(x.db.Txn(false), agent) }

// grantsOf reads the grants whose key begins with the agent. The empty second half of
// the prefix has the first one end where the name does: without it other agents'
// grants, whose names go on, would be found too.
func grantsOf(txn *memdb.Txn, agent string) ([]*Grant, error) {
	rows, err := txn.Get("grant", "id_prefix", agent, "")
	if err != nil {
		return nil, err
	}
	var grants []*Grant
	for row := rows.Next(); row != nil; row = rows.Next() {
		if grant := row.(*Grant); grant.Agent == agent {
			grants = append(grants, grant)
		}
	}
	return grants, nil
}
