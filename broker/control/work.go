package control

import (
	"context"
	"errors"
	"runtime/debug"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/cache"
)

// frugalPercent is how much garbage there may be while all grants come in, in percent
// of what is in use; otherwise it is what the runtime is told, mostly 100.
const frugalPercent = 50

// frugal has the collector work more often until every grant was looked at once. A
// first look leaves several times as much garbage as it leaves grants, and the
// process would be sized by it for good. A collector that is told to do more, or
// nothing, is left alone. The setting is the process's: there is one controller.
func (c *Controller) frugal(ctx context.Context) {
	before := debug.SetGCPercent(frugalPercent)
	defer func() { debug.SetGCPercent(before) }()
	if before < frugalPercent {
		return
	}
	if !cache.WaitForCacheSync(ctx.Done(), c.policies.HasSynced, c.grants.HasSynced) {
		return
	}
	settled, cancel := context.WithCancel(ctx)
	defer cancel()
	every(settled, 100*time.Millisecond, func() {
		if c.queue.Len() == 0 {
			cancel()
		}
	})
}

// work takes objects off the queue until it is shut down. What becomes of a grant
// depends on its policy and on the agent's other grants, so it begins when all of
// them are known.
func (c *Controller) work(ctx context.Context) {
	if !cache.WaitForCacheSync(ctx.Done(), c.policies.HasSynced, c.grants.HasSynced) {
		return // the end has come first
	}
	for {
		next, shutdown := c.queue.Get()
		if shutdown {
			return
		}
		err := c.reconcile(ctx, next)
		switch {
		case err == nil, apierrors.IsNotFound(err):
			c.queue.Forget(next)
		case apierrors.IsConflict(err): // another replica was first; its write comes through the watch
			c.queue.AddAfter(next, 50*time.Millisecond)
		case !errors.Is(err, context.Canceled):
			c.config.Log.Warn().Err(err).Str("resource", next.resource).Str("name", next.name).Msg("cannot write a status; trying again")
			c.queue.AddRateLimited(next)
		}
		c.queue.Done(next)
	}
}

func (c *Controller) reconcile(ctx context.Context, next item) error {
	switch next.resource {
	case policies:
		return c.reconcilePolicy(ctx, next.name)
	case approvals:
		return c.reconcileApproval(ctx, next.name)
	}
	return c.reconcileGrant(ctx, next.name)
}
