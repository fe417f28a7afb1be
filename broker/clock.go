package broker

import (
	"sync/atomic"
	"time"
)

// steadyClock never goes back: a grant that has ended stays ended when somebody
// sets the machine's clock. It follows the clock forward, so it is right again
// as soon as the clock is. The zero value is ready; safe for concurrent use.
type steadyClock struct{ last atomic.Int64 }

func (c *steadyClock) Now() time.Time {
	for {
		now, last := time.Now().UnixNano(), c.last.Load()
		if now <= last {
			return time.Unix(0, last)
		}
		if c.last.CompareAndSwap(last, now) {
			return time.Unix(0, now)
		}
	}
}
