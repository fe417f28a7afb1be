package recorder

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// ErrClosed says that Close was called.
var ErrClosed = errors.New("the recorder is closed")

// Recorder records what happens in one stream: one start of one broker, for one
// cluster. All methods are safe for concurrent use.
type Recorder struct {
	config   *Config
	fate     *fate
	uploader *uploader
	lock     *os.File
	orphans  []*sealer // streams of earlier starts, oldest first
	live     *sealer   // nil in Drain
	cancel   context.CancelFunc
	closing  chan struct{} // closed by Close
	ended    chan struct{} // closed when the sealing goroutine has ended

	mu      sync.Mutex
	closed  bool
	guard   guard
	waiting string // what stands between Open and being ready; "" when nothing
	sealed  sealed
	result  error // why sealing ended; set before ended is closed
}

// sealed is what Status shows of the goroutine that seals.
type sealed struct {
	last     uint64
	at       time.Time
	manifest string
}

// Open starts a stream. It returns as soon as the spool is in order, whatever
// the bucket does: [Recorder.Ready] tells what is waited for. Streams that an
// earlier process left in the spool are sealed first, in the background, under
// their own names. The end of ctx does not end the recorder: Close does.
//
// It fails if the spool is in use ([ErrLocked]), damaged ([ErrDamaged]) or
// belongs to a forked stream ([Problem]), or if config is not valid.
func Open(ctx context.Context, config Config) (*Recorder, error) {
	r, err := prepare(config)
	if err != nil {
		return nil, err
	}
	if err := r.openLive(); err != nil {
		return nil, errors.Join(err, r.release())
	}
	r.start(context.WithoutCancel(ctx))
	return r, nil
}

// Drain seals the streams that earlier processes left in the spool and opens
// none. It returns nil when the spool is empty, and otherwise why it is not.
func Drain(ctx context.Context, config Config) error {
	r, err := prepare(config)
	if err != nil {
		return err
	}
	if len(r.orphans) == 0 {
		return r.release()
	}
	r.start(ctx)
	<-r.ended
	if err := r.release(); err != nil {
		return err
	}
	if r.result != nil {
		return r.kept(r.result)
	}
	return nil
}

// prepare locks the spool and takes over what is in it.
func prepare(config Config) (*Recorder, error) {
	complete, err := config.withDefaults()
	if err != nil {
		return nil, err
	}
	if err := makeDirectory(complete.Spool); err != nil {
		return nil, err
	}
	r := &Recorder{
		config: complete, fate: newFate(), waiting: "the bucket's safety is not known yet",
		uploader: &uploader{store: complete.Store, config: complete},
		closing:  make(chan struct{}), ended: make(chan struct{}), cancel: func() {},
	}
	if r.lock, err = lockDirectory(complete.Spool); err != nil {
		return nil, err
	}
	if err := r.adoptOrphans(); err != nil {
		return nil, errors.Join(err, r.release())
	}
	return r, nil
}

func (r *Recorder) adoptOrphans() error {
	directories, err := streamDirectories(r.config.Spool)
	if err != nil {
		return err
	}
	limits := r.config.spool(r.fate)
	limits.fileSize, limits.limit = min(limits.fileSize, recoveryFile), math.MaxInt64
	for _, directory := range directories {
		orphan, err := newSealer(r.config, r.uploader, r.fate, directory, limits)
		if err != nil {
			return err
		}
		r.orphans = append(r.orphans, orphan)
		if err := errors.Join(orphan.recoverIntents(), orphan.recoverNames()); err != nil {
			return err
		}
	}
	return nil
}

func (r *Recorder) openLive() error {
	directory, err := newStreamDirectory(r.config, newStream(r.config.Broker, r.config.Now()))
	if err != nil {
		return err
	}
	r.live, err = newSealer(r.config, r.uploader, r.fate, directory, r.config.spool(r.fate))
	return err
}

// release ends what prepare and openLive began, without sealing anything.
func (r *Recorder) release() error {
	for _, s := range r.sealers() {
		s.spool.close()
	}
	return r.lock.Close()
}

func (r *Recorder) sealers() []*sealer {
	if r.live == nil {
		return r.orphans
	}
	return append(r.orphans[:len(r.orphans):len(r.orphans)], r.live)
}

func (r *Recorder) start(ctx context.Context) {
	ctx, r.cancel = context.WithCancel(ctx)
	go func() {
		defer close(r.ended)
		err := r.seal(ctx)
		r.mu.Lock()
		defer r.mu.Unlock()
		r.result = err
	}()
}

// Append encodes an event, gives it the next number and queues it to be made
// durable. It does not wait for that, nor change the event: act on it only after
// [Receipt.Wait]. Errors wrap [ErrUnavailable] (passes by itself), [ErrInvalid]
// (this event never will be recorded), [ErrClosed] or [ErrDead].
func (r *Recorder) Append(event *Event) (Receipt, error) {
	if err := r.refusal(); err != nil {
		return Receipt{}, err
	}
	return r.live.spool.append(event)
}

// refusal is why nothing is to be recorded although the spool could take it: what
// the bucket would not keep, or nobody could verify.
func (r *Recorder) refusal() error {
	r.mu.Lock()
	closed, safe, problem := r.closed, r.guard.safe, r.guard.problem
	r.mu.Unlock()
	if err := r.fate.err(); err != nil {
		return err
	}
	if closed {
		return ErrClosed
	}
	if problem == nil && safe {
		problem = r.uploader.skewed()
	}
	switch {
	case problem != nil:
		return fmt.Errorf("%w: %w", ErrUnavailable, problem)
	case !safe:
		return fmt.Errorf("%w: whether the bucket is safe is not known yet%s", ErrUnavailable, because(r.uploader.failure()))
	}
	return nil
}

// Ready returns nil if records are accepted and the stream is open in the
// bucket. Otherwise the error says what is waited for, and wraps a [*Problem] if
// an operator must act.
func (r *Recorder) Ready() error {
	if err := r.refusal(); err != nil {
		return err
	}
	r.mu.Lock()
	waiting := r.waiting
	r.mu.Unlock()
	if waiting != "" {
		return fmt.Errorf("%s%s", waiting, because(r.uploader.failure()))
	}
	return r.live.spool.unavailable()
}

// because appends a cause that may be absent.
func because(cause error) string {
	if cause == nil {
		return ""
	}
	return ": " + cause.Error()
}

// Dead returns a channel that is closed when the process must end; Err then says
// why, and the next start recovers.
func (r *Recorder) Dead() <-chan struct{} { return r.fate.dead }

// Err is nil unless the recorder is dead.
func (r *Recorder) Err() error { return r.fate.err() }

// Close accepts no more records, seals all of them, closes the stream and
// returns nil when the bucket holds it all. If that takes longer than ctx, the
// spool is kept and the error says what to do. Call it once everything that was
// begun has its outcome: intents without one get outcome=unknown.
func (r *Recorder) Close(ctx context.Context) error {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return ErrClosed
	}
	r.closed = true
	r.mu.Unlock()
	close(r.closing)
	select {
	case <-r.ended:
	case <-ctx.Done():
	}
	r.cancel()
	<-r.ended
	if err := r.release(); err != nil {
		return err
	}
	if r.result != nil {
		return r.kept(r.result)
	}
	return nil
}

// kept tells a person where the records are that are not in the bucket.
func (r *Recorder) kept(err error) error {
	if cause := r.uploader.failure(); cause != nil && r.fate.err() == nil {
		err = fmt.Errorf("%w (%w)", cause, err)
	}
	return fmt.Errorf("not everything is sealed; %s keeps it, and the next start of the broker on it, or `broker drain`, seals it: %w", r.config.Spool, err)
}

// seal is the goroutine that talks to the bucket.
func (r *Recorder) seal(ctx context.Context) error {
	if err := r.awaitSafety(ctx); err != nil {
		return err
	}
	for _, orphan := range r.orphans {
		r.note(fmt.Sprintf("sealing what is left of %s", filepath.Base(orphan.directory)), nil)
		if err := orphan.finish(ctx, endRecovered); err != nil {
			return err
		}
	}
	if r.live == nil {
		return nil
	}
	r.note("opening the stream", nil)
	if err := r.live.begin(ctx); err != nil {
		return err
	}
	r.note("", r.live)
	ticker := time.NewTicker(r.config.SegmentEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-r.fate.dead:
			return r.fate.err()
		case <-r.closing:
			if err := r.awaitSafety(ctx); err != nil {
				return err
			}
			return r.live.finish(ctx, endClosed)
		case <-ticker.C:
		case <-r.live.spool.grown:
		}
		if r.inspect(ctx) != nil {
			continue // nothing goes to a bucket that would not keep it
		}
		if err := r.live.sealAll(ctx); err != nil {
			return err
		}
		if err := r.live.heartbeat(ctx); err != nil {
			return err
		}
		r.note("", r.live)
	}
}

// note publishes how far the sealing goroutine is.
func (r *Recorder) note(waiting string, s *sealer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.waiting = waiting
	if s != nil {
		r.sealed = sealed{last: s.state.Sealed, at: s.touched, manifest: s.state.Previous[len(s.state.Previous)-1]}
	}
}

// awaitSafety returns when the bucket was seen to be safe.
func (r *Recorder) awaitSafety(ctx context.Context) error {
	for attempt := 0; r.inspect(ctx) != nil; attempt++ {
		select {
		case <-r.fate.dead:
			return r.fate.err()
		default:
		}
		if err := r.uploader.pause(ctx, attempt); err != nil {
			return err
		}
	}
	return nil
}

// inspect looks at the bucket's safety if that is due, and returns the verdict
// that stands. A bucket that does not answer keeps its last verdict.
func (r *Recorder) inspect(ctx context.Context) error {
	now := r.config.Now()
	r.mu.Lock()
	due := !now.Before(r.guard.next)
	r.mu.Unlock()
	if due {
		ctx, cancel := context.WithTimeout(ctx, r.config.PutTimeout)
		defer cancel()
		v, err := inspect(ctx, r.config, r.uploader)
		r.uploader.fail(err)
		r.mu.Lock()
		defer r.mu.Unlock()
		if err == nil {
			r.guard.take(v, now, r.config)
		} else if r.guard.safe {
			r.guard.next = now.Add(r.config.RetryMax)
		}
	} else {
		r.mu.Lock()
		defer r.mu.Unlock()
	}
	if !r.guard.safe {
		return errors.New("the bucket is not known to be safe")
	}
	return nil
}
