package recorder

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"
)

// clockTolerance is how far this machine's clock may be from the store's: the
// verifier allows as much, and a lock is made longer by it.
const clockTolerance = 5 * time.Minute

// uploader makes single attempts at the store and keeps what they teach: the
// store's clock, counters, and why the last one failed.
type uploader struct {
	store  Store
	config *Config

	mu      sync.Mutex
	offset  time.Duration // the store's clock minus ours
	counts  Uploads
	failing error // of the last attempt, nil if it worked
}

// Uploads counts attempts to store an object by their outcome.
type Uploads struct {
	Stored  uint64 // stored now, or found stored by an earlier attempt
	Refused uint64 // known not to be stored
	Unknown uint64 // failed, and may be stored all the same
}

// attempt tries once to store an object, locked for the retention from now on
// the store's clock.
func (u *uploader) attempt(ctx context.Context, key string, body []byte, retention time.Duration) (Stored, error) {
	ctx, cancel := context.WithTimeout(ctx, u.config.PutTimeout)
	defer cancel()
	until := u.serverTime().Add(retention + clockTolerance)
	stored, err := u.store.Put(ctx, key, body, until)
	u.clock(stored.ServerTime)
	u.mu.Lock()
	defer u.mu.Unlock()
	switch {
	case err == nil || errors.Is(err, ErrExists):
		u.counts.Stored++
		u.failing = nil
		return stored, err
	case errors.Is(err, ErrRefused):
		u.counts.Refused++
	default:
		u.counts.Unknown++
	}
	u.failing = fmt.Errorf("storing %s: %w", key, err)
	return stored, err
}

// clock learns the store's clock from an answer.
func (u *uploader) clock(server time.Time) {
	if server.IsZero() {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.offset = server.Sub(u.config.Now())
}

func (u *uploader) serverTime() time.Time {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.config.Now().Add(u.offset)
}

func (u *uploader) fail(err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.failing = err
}

func (u *uploader) failure() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.failing
}

// skewed returns a Problem while the clocks are too far apart: what is signed
// now would not verify.
func (u *uploader) skewed() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.offset.Abs() > clockTolerance {
		return &Problem{ClockSkew, fmt.Sprintf("the store's clock is %s from this machine's; set the clock", u.offset.Round(time.Second))}
	}
	if errors.Is(u.failing, ErrClockSkew) {
		return &Problem{ClockSkew, u.failing.Error()}
	}
	return nil
}

// pause waits before another attempt: twice as long each time up to the limit,
// less a random part, so that brokers do not come back all at once.
func (u *uploader) pause(ctx context.Context, attempt int) error {
	longest := u.config.RetryMax
	wait := min(longest/100<<min(attempt, 10), longest)
	wait -= rand.N(wait/2 + 1)
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
