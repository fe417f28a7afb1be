package broker

import (
	"context"
	"fmt"
	"net/http"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	"github.com/taskgate/taskgate/authz"
	"github.com/taskgate/taskgate/recorder"
)

// liveCalls are the calls that go on: watches, followed logs and streams. Each is ended
// when what allowed it ends. Two things see to that: a deadline at the end of the
// grant and of the SVID, exact and without any work, and recheck for everything
// that comes sooner.
type liveCalls struct {
	mu    sync.Mutex
	calls map[*liveCall]struct{}
	// none is closed when there are none, while somebody waits for that.
	none chan struct{}
	// closing is set once and for all when the broker shuts down.
	closing *refusal
}

// liveCall is one of them.
type liveCall struct {
	exchange *exchange
	cancel   context.CancelCauseFunc
}

func newLiveCalls() *liveCalls { return &liveCalls{calls: map[*liveCall]struct{}{}} }

// add registers a call. Its context ends, with a *refusal as the cause, when it
// has to; done has to be called when it is over.
func (l *liveCalls) add(parent context.Context, x *exchange) (ctx context.Context, done func()) {
	ctx, cancel := context.WithCancelCause(parent)
	// A context with a deadline would hold the reason, and more, all the time.
	timer := time.AfterFunc(time.Until(x.ends()), func() { cancel(x.ending()) })
	call := &liveCall{exchange: x, cancel: cancel}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closing != nil {
		cancel(l.closing)
	}
	l.calls[call] = struct{}{}
	return ctx, func() {
		timer.Stop()
		cancel(nil)
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.calls, call)
		if l.none != nil && len(l.calls) == 0 {
			close(l.none)
			l.none = nil
		}
	}
}

// wait returns when all calls are over. Call it after close.
func (l *liveCalls) wait(ctx context.Context) error {
	l.mu.Lock()
	if len(l.calls) == 0 {
		l.mu.Unlock()
		return nil
	}
	if l.none == nil {
		l.none = make(chan struct{})
	}
	none := l.none
	l.mu.Unlock()
	select {
	case <-none:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("streams that do not end: %w", ctx.Err())
	}
}

// carryLive is carry for a call that goes on. It is registered, so that it
// ends with what allowed it, until goOn is through or there is nothing to go on.
func (x *exchange) carryLive(a *admission, call sender) {
	ctx, done := x.b.live.add(x.r.Context(), x)
	release := x.unstick(ctx)
	end := func() { release(); done() }
	defer func() {
		if x.going == nil {
			end()
		}
	}()
	response := x.send(ctx, a, call)
	if response == nil {
		return
	}
	if !x.begin(a, response) {
		response.Body.Close()
		return
	}
	x.going = &going{
		admission: a, code: response.StatusCode, contentType: response.Header.Get("Content-Type"), body: response.Body,
		cause: func() error { return context.Cause(ctx) }, end: end,
	}
	// What the rest does not need would be held for as long as it takes.
	response.Request, response.Header = nil, nil
	clear(x.w.Header()) // the head is written
	a.intent, a.user, x.last = recorder.Receipt{}, nil, nil
	x.request.Sent()
}

// goOn relays an answer that goes on. Its frames stay on the stack while nothing
// happens: it keeps them few and small.
func (x *exchange) goOn() {
	defer x.going.end()
	defer x.going.body.Close()
	x.relay(x.going)
}

// farewellTime is what a call that was cut has to say so.
const farewellTime = 5 * time.Second

// unstick bounds the time that a write may take once the call has to end: an
// agent that does not read must not keep it open. The function it returns has to
// be called before the handler ends.
func (x *exchange) unstick(ctx context.Context) (release func()) {
	finished := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(finished)
		_ = http.NewResponseController(x.w).SetWriteDeadline(time.Now().Add(farewellTime)) // cannot fail on the server's own writers
	})
	return func() {
		if !stop() {
			<-finished
		}
	}
}

// ends is the moment a call ends by itself.
func (x *exchange) ends() time.Time {
	if g := x.decision.Grant; g != nil && g.End().Before(x.conn.ends) {
		return g.End()
	}
	return x.conn.ends
}

// ending is why it ends then.
func (x *exchange) ending() *refusal {
	g := x.decision.Grant
	if g == nil || !g.End().Before(x.conn.ends) {
		return expiredIdentity()
	}
	over := authz.Decision{Reason: authz.GrantExpired, Grant: g}
	return undecided(&over, &x.question)
}

// recheck ends every call that would not be allowed now. It takes the lock only
// to copy: a check may have to verify certificates.
func (l *liveCalls) recheck(now func() time.Time) {
	l.mu.Lock()
	calls := make([]*liveCall, 0, len(l.calls))
	for call := range l.calls {
		calls = append(calls, call)
	}
	l.mu.Unlock()
	for _, call := range calls {
		if reason := call.exchange.stillAllowed(now()); reason != nil {
			call.cancel(reason)
		}
	}
}

// stillAllowed asks the questions of the beginning again, about the same grant.
func (x *exchange) stillAllowed(now time.Time) *refusal {
	if r := x.conn.identify(now); r != nil {
		return r
	}
	set, err := x.conn.pin.Set()
	if err != nil {
		return unavailable(authz.NotReady, "", "the broker cannot read its index")
	}
	again := authz.Question{Set: set, Call: x.question.Call, Now: now, FreshUntil: x.b.index.FreshUntil(), Pinned: x.question.Pinned}
	if x.decision.Grant != nil {
		again.Pinned = x.decision.Grant.Name
	}
	d := authz.Decide(again)
	d.Settle(x.stillHolds)
	// A gate that this very call has passed, or waits at, does not end it.
	passed := d.Verdict == authz.NeedsApproval && sameGate(d.Gate, x.decision.Gate)
	if d.Verdict != authz.Allow && !passed {
		return undecided(&d, &again)
	}
	if d.Grant != nil && d.Grant.UID != x.decision.Grant.UID {
		over := authz.Decision{Reason: authz.GrantRevoked, Grant: x.decision.Grant}
		return undecided(&over, &again)
	}
	return nil
}

// run rechecks after every change of the index, and every second for what
// changes without it: time, trust bundles, freshness.
func (l *liveCalls) run(ctx context.Context, changed <-chan struct{}, now func() time.Time) {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-ticker.C:
		}
		l.recheck(now)
	}
}

// burst is how many calls begin before the memory of their beginning is worth
// giving back.
const burst = 256

// tidy gives memory back to the system once many calls have begun and no more
// do: what beginning them left behind, and half of each stack that was needed for
// it. They may idle for hours, and the collector by itself would wait until as much
// garbage came together as there is memory in use. It costs two collections: the
// first only sets pools aside.
func (l *liveCalls) tidy(ctx context.Context) {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for tidied, last := 0, 0; ; {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		count := l.count()
		if count == last && count >= tidied+burst {
			runtime.GC()
			debug.FreeOSMemory()
			tidied = count
		}
		tidied, last = min(tidied, count), count
	}
}

// close ends all calls, and those that are still to come, with a reason.
func (l *liveCalls) close(reason *refusal) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closing = reason
	for call := range l.calls {
		call.cancel(reason)
	}
}

func (l *liveCalls) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.calls)
}
