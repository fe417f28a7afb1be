package bench

import (
	"context"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"
)

// sample is what clients saw in one turn.
type sample struct {
	calls     int
	bytes     int64
	elapsed   time.Duration
	latencies []time.Duration // in no order
}

// drive has so many clients call in a closed loop for a while.
func drive(ctx context.Context, c *contender, transport http.RoundTripper, what call, clients int, duration time.Duration) (sample, error) {
	parts := make([]sample, clients)
	group, ctx := errgroup.WithContext(ctx)
	began := time.Now()
	end := began.Add(duration)
	for i := range parts {
		group.Go(func() error { return parts[i].loop(ctx, c, transport, what, end) })
	}
	err := group.Wait()
	total := sample{elapsed: time.Since(began)}
	for _, part := range parts {
		total.calls += part.calls
		total.bytes += part.bytes
		total.latencies = append(total.latencies, part.latencies...)
	}
	return total, err
}

// loop is one client.
func (s *sample) loop(ctx context.Context, c *contender, transport http.RoundTripper, what call, end time.Time) error {
	buffer := make([]byte, 64<<10)
	s.latencies = make([]time.Duration, 0, 1<<12)
	for began := time.Now(); began.Before(end); {
		bytes, err := c.send(transport, what, buffer)
		if err != nil {
			return err
		}
		now := time.Now()
		s.latencies = append(s.latencies, now.Sub(began))
		s.calls++
		s.bytes += bytes
		began = now
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return nil
}

// pause waits, or returns why not.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
