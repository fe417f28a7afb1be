package broker

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/taskgate/taskgate/authz"
)

// turns lets the gated calls of one agent ask one after the other: an agent with
// many connections cannot make the brokers ask the clusters faster than that. It
// also counts the calls of each agent that are held open. The zero value is ready.
type turns struct {
	mu     sync.Mutex
	agents map[string]*agentTurn // those with a call in line or held
}

type agentTurn struct {
	token chan struct{} // held by the call whose turn it is
	users int           // calls in line or held
	held  int
}

// take waits for the agent's turn; release ends it. The error is that of ctx.
func (t *turns) take(ctx context.Context, agent string) (release func(), err error) {
	turn := t.enter(agent)
	select {
	case turn.token <- struct{}{}:
		return func() { <-turn.token; t.leave(agent, turn) }, nil
	case <-ctx.Done():
		t.leave(agent, turn)
		return nil, ctx.Err()
	}
}

func (t *turns) enter(agent string) *agentTurn {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.agents == nil {
		t.agents = map[string]*agentTurn{}
	}
	turn := t.agents[agent]
	if turn == nil {
		turn = &agentTurn{token: make(chan struct{}, 1)}
		t.agents[agent] = turn
	}
	turn.users++
	return turn
}

func (t *turns) leave(agent string, turn *agentTurn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if turn.users--; turn.users == 0 {
		delete(t.agents, agent)
	}
}

// maxHeld is how many calls of one agent are held open at a time; the others are
// answered at once.
const maxHeld = 4

// holding takes one of the agent's places for held calls; nil if all are taken.
func (t *turns) holding(agent string) (release func()) {
	turn := t.enter(agent)
	t.mu.Lock()
	room := turn.held < maxHeld
	if room {
		turn.held++
	}
	t.mu.Unlock()
	if !room {
		t.leave(agent, turn)
		return nil
	}
	return func() {
		t.mu.Lock()
		turn.held--
		t.mu.Unlock()
		t.leave(agent, turn)
	}
}

// How long a call is held open, and how often people's answer is looked for.
const (
	holdFor   = 30 * time.Second
	holdEvery = time.Second
)

// hold keeps a call open that waits for people, and reports whether they have
// settled it. It ends early with whatever ends calls that go on: the agent, its
// grant, its SVID, the broker.
//
// Errors on the way are not the end of waiting: what is asked next asks again.
func (x *exchange) hold() (settled bool, cut *refusal) {
	release := x.b.turns.holding(x.conn.agent)
	if release == nil {
		return false, nil
	}
	defer release()
	ctx, done := x.b.live.add(x.r.Context(), x)
	defer done()
	end := time.NewTimer(holdFor)
	defer end.Stop()
	every := time.NewTicker(holdEvery)
	defer every.Stop()
	for {
		select {
		case <-ctx.Done():
			errors.As(context.Cause(ctx), &cut) // nil: the agent is gone
			return false, cut
		case <-end.C:
			return false, nil
		case <-every.C:
			if s, err := x.standing(); err == nil && s.state != waiting {
				return true, nil
			}
		}
	}
}

// changedMeanwhile refuses a call whose grant does not allow it any more, or at
// whose way another gate stands now.
func (x *exchange) changedMeanwhile() *refusal {
	if r := x.stillAllowed(x.b.now()); r != nil {
		return x.denied(r)
	}
	if x.r.Context().Err() != nil {
		return unavailable(authz.NotReady, "ClientGone", "the agent left before its approval was used")
	}
	return nil
}
