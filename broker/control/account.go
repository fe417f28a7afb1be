package control

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/taskgate/taskgate/api/v1alpha1"
	"github.com/taskgate/taskgate/authz"
)

// The names of the budgets, as in v1alpha1.Budget.
const (
	requests  = "requests"
	bytesOut  = "bytesOut"
	mutations = "mutations"
	streams   = "streams"
)

// account counts what is used of one budget at this replica. Safe for concurrent
// use.
type account struct {
	requests atomic.Int64
	bytesOut atomic.Int64
	// spent is when a call first found nothing left to reserve.
	spent atomic.Pointer[time.Time]
	// change changes by compare-and-swap what all replicas together have reserved.
	change func(context.Context, func(*v1alpha1.Usage) error) error

	mu        sync.Mutex // held while a share is reserved, so that one call does it
	mutations share
	streams   share
}

// share is the part of a budget that this replica may spend by itself.
type share struct {
	left     int64 // reserved and not spent yet
	reserved int64 // by all replicas, when this one last reserved
}

// take takes a call out of the budget, all of it or nothing, or returns
// *SpentError. Requests are counted in any case.
func (a *account) take(ctx context.Context, budget authz.Budget, use Use) error {
	if limit := budget.BytesOut; limit != nil && a.bytesOut.Load() >= *limit {
		return &SpentError{Budget: bytesOut}
	}
	if made := a.requests.Add(1); budget.Requests != nil && made > *budget.Requests {
		return &SpentError{Budget: requests}
	}
	if use.Mutation && budget.Mutations != nil {
		if err := a.spend(ctx, mutations, *budget.Mutations); err != nil {
			return err
		}
	}
	if use.Stream && budget.Streams != nil {
		if err := a.spend(ctx, streams, *budget.Streams); err != nil {
			a.putBack(budget, Use{Mutation: use.Mutation})
			return err
		}
	}
	return nil
}

// putBack undoes take, for a call that is not made after all.
func (a *account) putBack(budget authz.Budget, use Use) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if use.Mutation && budget.Mutations != nil {
		a.mutations.left++
	}
	if use.Stream && budget.Streams != nil {
		a.streams.left++
	}
}

// out counts bytes and reports whether there is room for them.
func (a *account) out(n int, budget authz.Budget) bool {
	total := a.bytesOut.Add(int64(n))
	return budget.BytesOut == nil || total <= *budget.BytesOut
}

// ends reports, the first time only, that a budget which all replicas share is
// used up.
func (a *account) ends(budget string, now time.Time) bool {
	return (budget == mutations || budget == streams) && a.spent.CompareAndSwap(nil, &now)
}

// of returns the share of a budget, and where the use of all replicas stands.
func (a *account) of(budget string, usage *v1alpha1.Usage) (*share, *int64) {
	if budget == streams {
		return &a.streams, &usage.Streams
	}
	return &a.mutations, &usage.Mutations
}

// spend takes one out of the share, after having reserved a new one if it was
// empty.
func (a *account) spend(ctx context.Context, budget string, limit int64) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	var mine *share
	if mine, _ = a.of(budget, &v1alpha1.Usage{}); mine.left == 0 {
		var reserved, total int64
		err := a.change(ctx, func(usage *v1alpha1.Usage) error {
			_, used := a.of(budget, usage)
			left := limit - *used
			if left <= 0 {
				return &SpentError{Budget: budget}
			}
			reserved = shareOf(left)
			*used += reserved
			total = *used
			return nil
		})
		if err != nil {
			return err
		}
		mine.left, mine.reserved = reserved, total
	}
	mine.left--
	return nil
}

// shareOf keeps shares small where little is left, so that other replicas get
// some of it.
func shareOf(left int64) int64 { return min(8, max(1, left/4)) }

// nearlySpent names the budgets of which nine tenths are gone.
func (a *account) nearlySpent(budget authz.Budget) []string {
	a.mu.Lock()
	changed, opened := a.mutations.reserved-a.mutations.left, a.streams.reserved-a.streams.left
	a.mu.Unlock()
	var names []string
	for _, row := range []struct {
		name  string
		used  int64
		limit *int64
	}{
		{requests, a.requests.Load(), budget.Requests}, {bytesOut, a.bytesOut.Load(), budget.BytesOut},
		{mutations, changed, budget.Mutations}, {streams, opened, budget.Streams},
	} {
		if row.limit != nil && row.used >= *row.limit-*row.limit/10 {
			names = append(names, row.name)
		}
	}
	return names
}

// giveBack returns what was reserved and not spent. What is gone by now needs no
// giving back.
func (a *account) giveBack(ctx context.Context) error {
	a.mu.Lock()
	changes, opens := a.mutations.left, a.streams.left
	a.mutations.left, a.streams.left = 0, 0
	a.mu.Unlock()
	if changes+opens == 0 {
		return nil
	}
	err := a.change(ctx, func(usage *v1alpha1.Usage) error {
		usage.Mutations -= changes
		usage.Streams -= opens
		return nil
	})
	if apierrors.IsNotFound(err) || errors.Is(err, errReplaced) {
		return nil
	}
	return err
}
