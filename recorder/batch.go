package recorder

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// batch is what one write and one sync make durable together.
type batch struct {
	spool   *spool
	records []*record
	size    int64
	done    chan struct{}
	err     error // set before done is closed
}

// A Receipt stands for one appended record that is not yet durable. The zero
// Receipt stands for nothing and never becomes durable.
type Receipt struct {
	seq   uint64
	batch *batch
}

// Seq is the record's number, 0 for a frame of a stream. It is final only once
// Wait returned nil.
func (r Receipt) Seq() uint64 { return r.seq }

// Wait returns nil when the record is durable. An error that wraps
// ErrUnavailable says that it was not recorded; one that wraps ErrDead or
// ctx.Err() leaves open whether it was.
func (r Receipt) Wait(ctx context.Context) error {
	if r.batch == nil {
		return fmt.Errorf("%w: nothing was appended", ErrUnavailable)
	}
	select {
	case <-r.batch.done:
		return r.batch.err
	default:
		r.batch.expedite()
	}
	select {
	case <-r.batch.done:
		return r.batch.err
	case <-ctx.Done():
		return fmt.Errorf("waiting for %s to become durable: %w", r.what(), ctx.Err())
	}
}

func (r Receipt) what() string {
	if r.seq == 0 {
		return "a frame"
	}
	return fmt.Sprintf("record %d", r.seq)
}

// lingerTime is how long a record may wait for company that nobody waits for.
const lingerTime = 10 * time.Millisecond

// scheduleLocked has the record written that was just queued. An intent is
// written at once, as the call it is for waits for it, now or when its answer is
// there, and so is a piece of a stream, which somebody waits to see. Everything else was acted on already: it goes with the next intent, or
// when somebody waits after all, or soon. A call so costs one sync, not two; and
// what a crash takes with it is the outcome of a call, which becomes unknown.
func (s *spool) scheduleLocked(kind frameKind) {
	switch {
	case kind == kindIntent || kind == kindPiece || len(s.queue) > 1:
		s.dueLocked()
	case !s.lazy && !s.due:
		s.lazy = true
		s.linger.Reset(lingerTime)
	}
}

func (s *spool) dueLocked() {
	s.due = true
	s.work.Signal()
}

// lingered is called when linger runs out. What was queued meanwhile is written
// sooner than it had to be.
func (s *spool) lingered() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lazy = false
	if len(s.queue) > 0 {
		s.dueLocked()
	}
}

// expedite has the batch written now: somebody waits for it.
func (b *batch) expedite() {
	b.spool.mu.Lock()
	defer b.spool.mu.Unlock()
	if slices.Contains(b.spool.queue, b) {
		b.spool.dueLocked()
	}
}
