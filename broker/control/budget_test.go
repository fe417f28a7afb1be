package control

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/taskgate/taskgate/api/v1alpha1"
	"github.com/taskgate/taskgate/authz"
)

// ledger is where replicas agree on what is used; the API server's
// compare-and-swap is a lock here.
type ledger struct {
	mu    sync.Mutex
	usage v1alpha1.Usage
}

func (l *ledger) change(_ context.Context, change func(*v1alpha1.Usage) error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return change(&l.usage)
}

// TestAccountsShareABudget: however many replicas take from it, it is used up to
// the last one and not overrun, and what is not spent comes back.
func TestAccountsShareABudget(t *testing.T) {
	limit := int64(101)
	budget := authz.Budget{Mutations: &limit}
	var shared ledger
	replicas := make([]account, 3)
	var taken [3]int
	var wait sync.WaitGroup
	for i := range replicas {
		replicas[i].change = shared.change
		wait.Go(func() {
			for replicas[i].take(t.Context(), budget, Use{Mutation: true}) == nil {
				taken[i]++
			}
		})
	}
	wait.Wait()
	if total := taken[0] + taken[1] + taken[2]; total != 101 || shared.usage.Mutations != 101 {
		t.Errorf("taken %v of 101, the ledger says %d", taken, shared.usage.Mutations)
	}
	replicas[0].putBack(budget, Use{Mutation: true})
	if err := replicas[0].giveBack(t.Context()); err != nil || shared.usage.Mutations != 100 {
		t.Errorf("after one was given back: %d, %v", shared.usage.Mutations, err)
	}
	if err := replicas[1].take(t.Context(), budget, Use{Mutation: true}); err != nil {
		t.Errorf("what was given back cannot be taken: %v", err)
	}
}

// TestTakeAllOrNothing: a call that one budget refuses costs nothing of the other.
func TestTakeAllOrNothing(t *testing.T) {
	none, many := int64(0), int64(10)
	var shared ledger
	a := account{change: shared.change}
	for range 30 {
		var spent *SpentError
		if err := a.take(t.Context(), authz.Budget{Mutations: &many, Streams: &none}, Use{Mutation: true, Stream: true}); !errors.As(err, &spent) || spent.Budget != "streams" {
			t.Fatalf("got %v", err)
		}
	}
	for range many {
		if err := a.take(t.Context(), authz.Budget{Mutations: &many}, Use{Mutation: true}); err != nil {
			t.Fatal(err)
		}
	}
	broken := account{change: func(context.Context, func(*v1alpha1.Usage) error) error { return errors.New("no answer") }}
	var spent *SpentError
	if err := broken.take(t.Context(), authz.Budget{Mutations: &many}, Use{Mutation: true}); err == nil || errors.As(err, &spent) {
		t.Errorf("a budget that cannot be reserved: %v", err)
	}
}

// TestDaysOfAPolicy: each agent and day has an entry, and old ones go.
func TestDaysOfAPolicy(t *testing.T) {
	status := &v1alpha1.AgentPolicyStatus{Days: []v1alpha1.DayUsage{
		{Agent: "a", Day: "2026-11-21"}, {Agent: "a", Day: "2026-11-22"}, {Agent: "b", Day: "2026-11-23", Usage: v1alpha1.Usage{Mutations: 3}},
	}}
	usageOf(status, day{agent: "a", date: "2026-11-23"}).Mutations = 5
	usageOf(status, day{agent: "b", date: "2026-11-23"}).Mutations++
	usageOf(status, day{agent: "a", date: "2026-11-23"}).Mutations++
	want := []v1alpha1.DayUsage{
		{Agent: "a", Day: "2026-11-22"}, {Agent: "b", Day: "2026-11-23", Usage: v1alpha1.Usage{Mutations: 4}}, {Agent: "a", Day: "2026-11-23", Usage: v1alpha1.Usage{Mutations: 6}},
	}
	if len(status.Days) != len(want) {
		t.Fatalf("got %+v", status.Days)
	}
	for i := range want {
		if status.Days[i] != want[i] {
			t.Errorf("got %+v, want %+v", status.Days[i], want[i])
		}
	}
}

// TestSpentEndsAfterGrace: a grant whose budget was found used up here does not end
// before other replicas had the time to spend their shares, whatever else makes it
// be looked at meanwhile.
func TestSpentEndsAfterGrace(t *testing.T) {
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	c := &Controller{config: Config{Now: func() time.Time { return now }}}
	c.budgets = budgets{controller: c, meters: map[string]*Meter{}}
	meter := c.budgets.meter(&authz.Grant{UID: "uid"})
	if c.budgets.spent("uid") || c.budgets.spent("another") {
		t.Error("spent before anything was charged")
	}
	if !meter.grant.ends("mutations", now) || meter.grant.ends("mutations", now.Add(time.Second)) {
		t.Error("the first call that finds nothing left ends the grant, and no other")
	}
	if now = now.Add(shareGrace - 1); c.budgets.spent("uid") {
		t.Error("ended while other replicas may still have a share")
	}
	if now = now.Add(1); !c.budgets.spent("uid") {
		t.Error("not ended after the time of grace")
	}
	if meter.grant.ends("requests", now) {
		t.Error("a guard of one replica ends the grant for all")
	}
}
