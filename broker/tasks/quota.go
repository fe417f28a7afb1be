package tasks

import (
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/taskgate/taskgate/authz"
	"github.com/taskgate/taskgate/broker/request"
)

// What one agent may ask for at this replica. Other replicas count for
// themselves what the index has not shown them yet, so that a few more can come
// together.
const (
	maxWaiting   = 8    // TaskGrants that are neither active nor over
	maxKept      = 1000 // TaskGrants in the control cluster, ended ones included
	maxPerMinute = 30   // creations, whatever became of them
	// unseenFor is how long a grant that was created counts although the index
	// does not show it: it may have been deleted in between.
	unseenFor = time.Minute
)

// quota bounds how much of the control cluster one agent can fill. Safe for
// concurrent use.
type quota struct {
	index *authz.Index
	now   func() time.Time

	mu       sync.Mutex
	accounts map[string]*account // by agent; only those that asked a moment ago
	swept    time.Time
}

// account is what one agent asked for in the last minute. quota.mu is held
// whenever it is touched.
type account struct {
	asked  []time.Time
	open   int                  // creations under way
	unseen map[string]time.Time // UID → when it was created
}

// slot is the right to create one grant. The methods of a nil slot do nothing.
type slot struct {
	quota *quota
	agent string
	once  sync.Once
}

// take reserves a creation, or says why not. An index that cannot be read is a
// refusal. A dry run counts for the rate only.
func (q *quota) take(agent string, dryRun bool) (*slot, *request.Refusal) {
	grants, err := q.index.Grants(agent)
	if err != nil {
		return nil, &request.Refusal{Reason: authz.NotReady, Status: http.StatusServiceUnavailable, Text: "the broker cannot read its index. Next: tell an operator"}
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	now := q.now()
	q.sweep(now)
	a := q.accounts[agent]
	if a == nil {
		a = &account{unseen: map[string]time.Time{}}
		q.accounts[agent] = a
	}
	a.forget(now)
	if len(a.asked) >= maxPerMinute {
		return nil, &request.Refusal{Reason: authz.RateLimited, Cause: "GrantRate", Status: http.StatusTooManyRequests, Text: fmt.Sprintf(
			"you asked for %d TaskGrants within a minute, and no agent may ask for more. Next: repeat the same command in %s", maxPerMinute, a.asked[0].Add(time.Minute).Sub(now).Round(time.Second))}
	}
	a.asked = append(a.asked, now)
	if dryRun {
		return nil, nil
	}
	if refused := a.full(grants); refused != nil {
		return nil, refused
	}
	a.open++
	return &slot{quota: q, agent: agent}, nil
}

// full says that no more grants may wait, or be kept, or nil.
func (a *account) full(grants []*authz.Grant) *request.Refusal {
	waiting, kept := a.open, a.open
	for _, g := range grants {
		delete(a.unseen, g.UID)
		if g.Deleted {
			continue
		}
		kept++
		if g.Waiting() {
			waiting++
		}
	}
	waiting, kept = waiting+len(a.unseen), kept+len(a.unseen)
	refused := &request.Refusal{Reason: authz.BudgetSpent, Cause: "GrantQuota", Status: http.StatusForbidden}
	switch {
	case waiting >= maxWaiting:
		refused.Text = fmt.Sprintf("%d of your TaskGrants are waiting, and no more may wait at once. Next: look with kubectl get taskgrants, and wait for one, or give one back with kubectl delete taskgrant NAME. Retrying before that changes nothing", maxWaiting)
	case kept >= maxKept:
		refused.Text = fmt.Sprintf("%d of your TaskGrants are kept for the record, and no more can be until the oldest go, days after their end. Next: tell an operator. Retrying changes nothing", maxKept)
	default:
		return nil
	}
	return refused
}

func (a *account) forget(now time.Time) {
	a.asked = slices.DeleteFunc(a.asked, func(at time.Time) bool { return now.Sub(at) >= time.Minute })
	for uid, at := range a.unseen {
		if now.Sub(at) >= unseenFor {
			delete(a.unseen, uid)
		}
	}
}

// sweep drops, once a minute, the accounts of agents that have asked for nothing.
func (q *quota) sweep(now time.Time) {
	if now.Sub(q.swept) < time.Minute {
		return
	}
	q.swept = now
	for agent, a := range q.accounts {
		if a.forget(now); len(a.asked) == 0 && a.open == 0 && len(a.unseen) == 0 {
			delete(q.accounts, agent)
		}
	}
}

// created notes a grant that the index may not show yet.
func (s *slot) created(uid string) {
	if s == nil {
		return
	}
	s.quota.mu.Lock()
	defer s.quota.mu.Unlock()
	s.quota.accounts[s.agent].unseen[uid] = s.quota.now()
}

// close ends the creation; further calls do nothing.
func (s *slot) close() {
	if s == nil {
		return
	}
	s.once.Do(func() {
		s.quota.mu.Lock()
		defer s.quota.mu.Unlock()
		s.quota.accounts[s.agent].open--
	})
}
