package control

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/taskgate/taskgate/api/v1alpha1"
	"github.com/taskgate/taskgate/authz"
)

// SpentError says which budget of the grant is used up. Any other error means
// that it is not known, and the call must be refused all the same.
type SpentError struct{ Budget string }

func (e *SpentError) Error() string { return "the budget is spent: " + e.Budget }

// Use is what a call takes out of the budget of its grant.
type Use struct {
	Mutation bool // changes the cluster; dry runs do not
	Stream   bool
}

// budgets holds the meters of all grants that were charged here.
type budgets struct {
	controller *Controller
	mu         sync.Mutex
	meters     map[string]*Meter // by UID of the grant
}

// Meter counts what one grant uses at this replica. Safe for concurrent use.
type Meter struct {
	name, uid string
	requests  atomic.Int64
	bytesOut  atomic.Int64
	spent     atomic.Bool // nothing is left to reserve

	mu        sync.Mutex // held while a share is reserved, so that one call does it
	mutations int64      // reserved and not spent yet
	streams   int64
	reserved  map[string]int64 // what the grant's status said was used, by budget, when last reserved
}

// Charge takes a call out of the budget of the grant that is charged, or returns
// *SpentError. Mutations and streams come out of a share that was reserved in the
// grant's status before; the meter counts the bytes that follow.
func (c *Controller) Charge(ctx context.Context, grant *authz.Grant, budget authz.Budget, use Use) (*Meter, error) {
	m := c.budgets.meter(grant)
	if limit := budget.BytesOut; limit != nil && m.bytesOut.Load() >= *limit {
		return nil, &SpentError{"bytesOut"}
	}
	if requests := m.requests.Add(1); budget.Requests != nil && requests > *budget.Requests {
		return nil, &SpentError{"requests"}
	}
	if use.Mutation && budget.Mutations != nil {
		if err := c.spend(ctx, m, &m.mutations, *budget.Mutations, "mutations", mutationsOf); err != nil {
			return nil, err
		}
	}
	if use.Stream && budget.Streams != nil {
		return m, c.spend(ctx, m, &m.streams, *budget.Streams, "streams", streamsOf)
	}
	return m, nil
}

// Out counts bytes of an answer and reports whether there is room for them.
func (m *Meter) Out(n int, budget authz.Budget) bool {
	total := m.bytesOut.Add(int64(n))
	return budget.BytesOut == nil || total <= *budget.BytesOut
}

func mutationsOf(u *v1alpha1.Usage) *int64 { return &u.Mutations }
func streamsOf(u *v1alpha1.Usage) *int64   { return &u.Streams }

// shareGrace is the time replicas have to spend what they reserved, after one of
// them found nothing left.
const shareGrace = 5 * time.Second

// spent reports whether a grant's mutations or streams were found used up here.
func (b *budgets) spent(uid string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	m := b.meters[uid]
	return m != nil && m.spent.Load()
}

// spend takes one out of the share, after having reserved a new one if it was
// empty.
func (c *Controller) spend(ctx context.Context, m *Meter, share *int64, limit int64, what string, field func(*v1alpha1.Usage) *int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if *share == 0 {
		reserved, err := c.reserve(ctx, m, limit, what, field)
		var spent *SpentError
		if errors.As(err, &spent) && !m.spent.Swap(true) {
			// Other replicas may have a share left; then it ends the grant.
			c.queue.AddAfter(item{grants, m.name}, shareGrace)
		}
		if err != nil {
			return err
		}
		*share = reserved
	}
	*share--
	return nil
}

// reserve raises what the grant's status says is used, by compare-and-swap, and
// returns by how much.
func (c *Controller) reserve(ctx context.Context, m *Meter, limit int64, what string, field func(*v1alpha1.Usage) *int64) (int64, error) {
	var reserved int64
	err := c.changeUsage(ctx, m, func(usage *v1alpha1.Usage) error {
		left := limit - *field(usage)
		if left <= 0 {
			return &SpentError{what}
		}
		reserved = shareOf(left)
		*field(usage) += reserved
		m.reserved[what] = *field(usage) // spend holds m.mu
		return nil
	})
	return reserved, err
}

// NearlySpent names the budgets of which nine tenths are gone, as far as it is
// known here. It is meant for a warning; Charge decides.
func (m *Meter) NearlySpent(budget authz.Budget) []string {
	m.mu.Lock()
	mutations, streams := m.reserved["mutations"]-m.mutations, m.reserved["streams"]-m.streams
	m.mu.Unlock()
	var names []string
	for _, row := range []struct {
		name  string
		used  int64
		limit *int64
	}{
		{"requests", m.requests.Load(), budget.Requests}, {"bytesOut", m.bytesOut.Load(), budget.BytesOut},
		{"mutations", mutations, budget.Mutations}, {"streams", streams, budget.Streams},
	} {
		if row.limit != nil && row.used >= *row.limit-*row.limit/10 {
			names = append(names, row.name)
		}
	}
	return names
}

// shareOf keeps shares small where little is left, so that other replicas get
// some of it.
func shareOf(left int64) int64 { return min(8, max(1, left/4)) }

// reserveTimeout bounds one reservation: calls of the same grant wait for it.
const reserveTimeout = 5 * time.Second

var errReplaced = errors.New("the grant was replaced by another of its name")

// changeUsage changes status.used of the very grant the meter is for. It tries a
// few times, as other replicas write the same object.
func (c *Controller) changeUsage(ctx context.Context, m *Meter, change func(*v1alpha1.Usage) error) error {
	ctx, cancel := context.WithTimeout(ctx, reserveTimeout)
	defer cancel()
	var conflict error
	for attempt := range 10 {
		grant, err := c.client.getGrant(ctx, m.name)
		if err != nil {
			return fmt.Errorf("reading the grant for its budget: %w", err)
		}
		if string(grant.UID) != m.uid {
			return errReplaced
		}
		if grant.Status.Used == nil {
			grant.Status.Used = &v1alpha1.Usage{}
		}
		if err := change(grant.Status.Used); err != nil {
			return err
		}
		if conflict = c.client.updateStatus(ctx, grants, m.name, grant); conflict == nil || !apierrors.IsConflict(conflict) {
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

func (b *budgets) meter(grant *authz.Grant) *Meter {
	b.mu.Lock()
	defer b.mu.Unlock()
	m := b.meters[grant.UID]
	if m == nil {
		m = &Meter{name: grant.Name, uid: grant.UID, reserved: map[string]int64{}}
		b.meters[grant.UID] = m
	}
	return m
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
		m.mu.Lock()
		mutations, streams := m.mutations, m.streams
		m.mutations, m.streams = 0, 0
		m.mu.Unlock()
		if mutations+streams == 0 {
			continue
		}
		err := b.controller.changeUsage(ctx, m, func(usage *v1alpha1.Usage) error {
			usage.Mutations -= mutations
			usage.Streams -= streams
			return nil
		})
		if err != nil && !apierrors.IsNotFound(err) && !errors.Is(err, errReplaced) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
