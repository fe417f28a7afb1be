package sidecar

import (
	"context"
	"sync"
	"time"
)

// calls knows what is under way, so that shutting down can end it. The zero
// value is ready. Safe for concurrent use.
type calls struct {
	mu    sync.Mutex
	ended bool
	// open maps each call to whether it is long-running.
	open map[*call]bool
	left chan struct{} // closed when ended and open is empty
}

type call struct{ cancel context.CancelFunc }

// enter adds a call, unless draining has begun. The context ends with leave, or
// when draining cuts the call.
func (c *calls) enter(ctx context.Context, live bool) (_ context.Context, leave func(), ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return nil, nil, false
	}
	ctx, cancel := context.WithCancel(ctx)
	if c.open == nil {
		c.open = map[*call]bool{}
	}
	this := &call{cancel}
	c.open[this] = live
	return ctx, func() { c.leave(this) }, true
}

func (c *calls) leave(this *call) {
	this.cancel()
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.open, this)
	if c.ended && len(c.open) == 0 {
		close(c.left)
	}
}

// drain lets no further call enter, cuts long-running ones at once, since they
// would not end by themselves, and after grace the others. It returns the number
// of those; what waits for the agent rather than the broker ends only when the
// agent's connection is closed.
func (c *calls) drain(grace time.Duration) (cut int) {
	c.mu.Lock()
	c.ended = true
	c.left = make(chan struct{})
	if len(c.open) == 0 {
		close(c.left)
	}
	c.cutLocked(func(live bool) bool { return live })
	c.mu.Unlock()

	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-c.left:
		return 0
	case <-timer.C:
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cutLocked(func(bool) bool { return true })
}

// wait returns when all calls have left. Call it after drain.
func (c *calls) wait() { <-c.left }

func (c *calls) cutLocked(which func(live bool) bool) (cut int) {
	for this, live := range c.open {
		if which(live) {
			this.cancel()
			cut++
		}
	}
	return cut
}
