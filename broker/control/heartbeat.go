package control

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
)

// beats keeps what came back of the heartbeats this process wrote.
type beats struct {
	nonce string // tells this process from a predecessor of the same name

	mu      sync.Mutex
	proven  map[string]time.Time // resource → when the newest value that came back was written
	lastErr error
}

// beat writes a value into one object per watched kind and does so again, until
// ctx ends. A watch that does not bring it back in time is not fresh, whether
// the connection, the API server or etcd is to blame.
func (c *Controller) beat(ctx context.Context) {
	c.beatOnce(ctx)
	every(ctx, c.config.Beat, func() { c.beatOnce(ctx) })
}

func (c *Controller) beatOnce(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, c.config.Beat)
	defer cancel()
	for _, resource := range []string{policies, grants} {
		// The moment is taken before the write: everything committed earlier is
		// visible to whoever sees the value.
		value := c.config.Now().UTC().Format(time.RFC3339Nano) + " " + c.beats.nonce
		if err := c.client.beat(ctx, resource, c.config.Broker, value); err != nil {
			c.beats.fail(fmt.Errorf("writing the heartbeat %s/%s: %w", resource, HeartbeatObject, err))
		}
	}
}

func (b *beats) fail(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lastErr = err
}

func (b *beats) problem() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.lastErr != nil {
		return b.lastErr
	}
	return errors.New("no heartbeat has come back through the watch yet")
}

// sawBeat takes note of the heartbeats an informer delivered. A value that a
// predecessor of the same name left behind proves nothing.
func (c *Controller) sawBeat(resource string, heartbeats map[string]string) {
	written, nonce, _ := strings.Cut(heartbeats[c.config.Broker], " ")
	at, err := time.Parse(time.RFC3339Nano, written)
	if err != nil || nonce != c.beats.nonce || at.After(c.config.Now()) {
		return
	}
	if oldest := c.beats.prove(resource, at); !oldest.IsZero() {
		c.config.Index.Fresh(oldest.Add(c.config.StaleAfter))
	}
}

// prove returns the moment up to which both kinds are proven, zero if one of
// them is not at all.
func (b *beats) prove(resource string, at time.Time) time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.proven[resource], b.lastErr = at, nil
	if b.proven[grants].Before(b.proven[policies]) {
		return b.proven[grants]
	}
	return b.proven[policies]
}
