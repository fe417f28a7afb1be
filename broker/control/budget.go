package control

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/taskgate/taskgate/api/v1alpha1"
	"github.com/taskgate/taskgate/authz"
)

// SpentError says which budget is used up. Any other error means that it is not
// known, and the call must be refused all the same.
type SpentError struct {
	Budget string
	// Today is set if it is what the agent may use up in one day under the policy of
	// the grant, and not the grant's own.
	Today bool
}

func (e *SpentError) Error() string {
	if e.Today {
		return "the budget of today is spent: " + e.Budget
	}
	return "the budget is spent: " + e.Budget
}

// Use is what a call takes out of a budget.
type Use struct {
	Mutation bool // changes the cluster; dry runs do not
	Stream   bool
}

// budgets holds the accounts of all grants, and of all days of agents, that were
// charged here.
type budgets struct {
	controller *Controller
	mu         sync.Mutex
	meters     map[string]*Meter // by UID of the grant
	days       map[day]*account
}

// day is a UTC day of an agent under a policy.
type day struct{ policyName, policyUID, agent, date string }

func dateOf(t time.Time) string { return t.UTC().Format(time.DateOnly) }

// Meter counts what one grant uses at this replica. Safe for concurrent use.
type Meter struct {
	budgets *budgets
	name    string // of the grant
	agent   string
	grant   account
}

// Charge takes a call out of the budget of the grant that is charged, and out of
// what its agent may use up in a day under the policy, or returns *SpentError.
// Mutations and streams come out of a share that was reserved in the status of the
// grant, or of the policy, before; the meter counts the bytes that follow.
func (c *Controller) Charge(ctx context.Context, grant *authz.Grant, policy *authz.Policy, use Use) (*Meter, error) {
	m := c.budgets.meter(grant)
	if err := m.grant.take(ctx, policy.Budget, use); err != nil {
		var spent *SpentError
		if errors.As(err, &spent) && m.grant.ends(spent.Budget, c.config.Now()) {
			// Other replicas may have a share left; then it ends the grant.
			c.queue.AddAfter(item{grants, m.name}, shareGrace)
		}
		return nil, err
	}
	today := m.today(policy)
	if today == nil {
		return m, nil
	}
	if err := today.take(ctx, policy.PerDay, use); err != nil {
		m.grant.putBack(policy.Budget, use)
		var spent *SpentError
		if errors.As(err, &spent) {
			return nil, &SpentError{Budget: spent.Budget, Today: true}
		}
		return nil, err
	}
	return m, nil
}

// Out counts bytes of an answer, and returns *SpentError if there is no room for
// them.
func (m *Meter) Out(n int, policy *authz.Policy) error {
	if !m.grant.out(n, policy.Budget) {
		return &SpentError{Budget: bytesOut}
	}
	if today := m.today(policy); today != nil && !today.out(n, policy.PerDay) {
		return &SpentError{Budget: bytesOut, Today: true}
	}
	return nil
}

// NearlySpent names the budgets of which nine tenths are gone, as far as it is
// known here. It is meant for a warning; Charge decides.
func (m *Meter) NearlySpent(policy *authz.Policy) []string {
	names := m.grant.nearlySpent(policy.Budget)
	if today := m.today(policy); today != nil {
		for _, name := range today.nearlySpent(policy.PerDay) {
			names = append(names, name+" of today")
		}
	}
	return names
}

// today is the account of the day it is, nil if the policy has no budget for it.
func (m *Meter) today(policy *authz.Policy) *account {
	if policy.PerDay == (authz.Budget{}) {
		return nil
	}
	return m.budgets.day(day{policy.Name, policy.UID, m.agent, dateOf(m.budgets.controller.config.Now())})
}

// shareGrace is the time replicas have to spend what they reserved, after one of
// them found nothing left.
const shareGrace = 5 * time.Second

// spent reports whether a grant's mutations or streams were found used up here, so
// long ago that no replica has a share left.
func (b *budgets) spent(uid string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	m := b.meters[uid]
	if m == nil {
		return false
	}
	at := m.grant.spent.Load()
	return at != nil && b.controller.config.Now().Sub(*at) >= shareGrace
}

func (b *budgets) meter(grant *authz.Grant) *Meter {
	b.mu.Lock()
	defer b.mu.Unlock()
	m := b.meters[grant.UID]
	if m == nil {
		name, uid := grant.Name, grant.UID
		m = &Meter{budgets: b, name: name, agent: grant.Agent}
		m.grant.change = func(ctx context.Context, change func(*v1alpha1.Usage) error) error {
			return b.controller.changeGrant(ctx, name, uid, change)
		}
		b.meters[uid] = m
	}
	return m
}

func (b *budgets) day(d day) *account {
	b.mu.Lock()
	defer b.mu.Unlock()
	a := b.days[d]
	if a == nil {
		for old := range b.days {
			if old.date < d.date {
				delete(b.days, old) // what was reserved of it is of no use to anybody
			}
		}
		a = &account{change: func(ctx context.Context, change func(*v1alpha1.Usage) error) error {
			return b.controller.changeDay(ctx, d, change)
		}}
		b.days[d] = a
	}
	return a
}

func (b *budgets) forget(uid string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.meters, uid)
}

// giveBack returns the shares that were reserved and not spent.
func (b *budgets) giveBack(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	b.mu.Lock()
	defer b.mu.Unlock()
	var errs []error
	for _, m := range b.meters {
		errs = append(errs, m.grant.giveBack(ctx))
	}
	for _, a := range b.days {
		errs = append(errs, a.giveBack(ctx))
	}
	return errors.Join(errs...)
}

// reserveTimeout bounds one reservation: calls that need it wait for it.
const reserveTimeout = 5 * time.Second

var errReplaced = errors.New("the object was replaced by another of its name")

// changeGrant changes what the status of the very grant with that UID says was
// used.
func (c *Controller) changeGrant(ctx context.Context, name, uid string, change func(*v1alpha1.Usage) error) error {
	return swap(ctx, func(ctx context.Context) error {
		grant, err := c.client.getGrant(ctx, name)
		if err != nil {
			return fmt.Errorf("reading the grant for its budget: %w", err)
		}
		if string(grant.UID) != uid {
			return errReplaced
		}
		if grant.Status.Used == nil {
			grant.Status.Used = &v1alpha1.Usage{}
		}
		if err := change(grant.Status.Used); err != nil {
			return err
		}
		return c.client.updateStatus(ctx, grants, name, grant)
	})
}

// changeDay changes what the status of a policy says its agent used on a day.
func (c *Controller) changeDay(ctx context.Context, d day, change func(*v1alpha1.Usage) error) error {
	return swap(ctx, func(ctx context.Context) error {
		policy, err := c.client.getPolicy(ctx, d.policyName)
		if err != nil {
			return fmt.Errorf("reading the policy for its budget of the day: %w", err)
		}
		if string(policy.UID) != d.policyUID {
			return errReplaced
		}
		if err := change(usageOf(&policy.Status, d)); err != nil {
			return err
		}
		return c.client.updateStatus(ctx, policies, d.policyName, policy)
	})
}

// usageOf finds or makes the entry of a day, and drops what is older than a day
// before it: the clocks of the replicas may be on both sides of midnight.
func usageOf(status *v1alpha1.AgentPolicyStatus, d day) *v1alpha1.Usage {
	date, err := time.Parse(time.DateOnly, d.date)
	if err == nil {
		before := dateOf(date.AddDate(0, 0, -1))
		status.Days = slices.DeleteFunc(status.Days, func(u v1alpha1.DayUsage) bool { return u.Day < before })
	}
	i := slices.IndexFunc(status.Days, func(u v1alpha1.DayUsage) bool { return u.Agent == d.agent && u.Day == d.date })
	if i < 0 {
		i = len(status.Days)
		status.Days = append(status.Days, v1alpha1.DayUsage{Agent: d.agent, Day: d.date})
	}
	return &status.Days[i].Usage
}

// swap tries a compare-and-swap a few times, as other replicas write the same
// object.
func swap(ctx context.Context, try func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, reserveTimeout)
	defer cancel()
	var conflict error
	for attempt := range 10 {
		if conflict = try(ctx); conflict == nil || !apierrors.IsConflict(conflict) {
			return conflict
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Duration(attempt) * 5 * time.Millisecond):
		}
	}
	return fmt.Errorf("reserving the budget: %w", conflict)
}
