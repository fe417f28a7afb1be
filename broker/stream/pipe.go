package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// ahead is how many events a direction may have read and not yet written.
const ahead = 32

// pipe is one direction of a stream. Its two goroutines are readAll and writeAll:
// while one waits for a frame to be durable, the other reads and appends the next
// ones, so that one sync of the disk serves many.
type pipe struct {
	from, to side
	toPod    bool
	carrier  *Carrier
	own      chan struct{} // room for one buffer that is not the window's
	queue    chan queued
	bytes    int64 // written; for writeAll alone until it has returned
	resize   resize
	status   status // what came on the error channel
}

// queued is an event on its way, and the receipt of its frame, nil if it has none.
type queued struct {
	event
	receipt Receipt
}

func newPipe(c *Carrier, from, to side, toPod bool) *pipe {
	p := &pipe{from: from, to: to, toPod: toPod, carrier: c, own: make(chan struct{}, 1), queue: make(chan queued, ahead)}
	p.own <- struct{}{}
	return p
}

// readAll reads until the peer is gone, and returns nil then. Only then is the queue
// closed: after an error what it holds is not the last of the stream.
func (p *pipe) readAll(ctx context.Context) error {
	lend := func() (*buffer, error) { return p.carrier.Window.borrow(ctx, p.own) }
	for {
		e, err := p.from.read(lend)
		if err == nil {
			err = p.take(ctx, e)
		} else {
			p.carrier.Window.giveBack(e.buffer)
			err = why(err)
		}
		switch {
		case errors.Is(err, io.EOF):
			close(p.queue)
			return nil
		case err != nil:
			return err
		}
	}
}

// take records an event and queues it. Changes of the terminal's size are recorded
// when it is known which of them counts.
func (p *pipe) take(ctx context.Context, e event) error {
	q := queued{event: e}
	var err error
	if e.recorded(p.toPod) && !p.resizes(&e) {
		if err = p.carrier.spend(len(e.Data)); err == nil {
			e.Time = p.carrier.now()
			q.receipt, err = p.append(ctx, &e.Frame)
		}
	}
	if err != nil {
		p.carrier.Window.giveBack(e.buffer)
		return err
	}
	select {
	case p.queue <- q:
		return nil
	case <-ctx.Done():
		p.carrier.Window.giveBack(e.buffer)
		return context.Cause(ctx)
	}
}

func (p *pipe) resizes(e *event) bool { return p.toPod && e.Connection == 0 && e.Channel == Resize }

func (p *pipe) append(ctx context.Context, f *Frame) (Receipt, error) {
	receipt, err := p.carrier.Journal.Append(ctx, f)
	if err != nil {
		return nil, recorderError(ctx, err)
	}
	return receipt, nil
}

// settle waits for a frame to be durable.
func (p *pipe) settle(ctx context.Context, receipt Receipt) error {
	if receipt == nil {
		return nil
	}
	patient, cancel := context.WithTimeout(ctx, p.carrier.Limits.Recorder)
	defer cancel()
	if err := receipt.Wait(patient); err != nil {
		return recorderError(ctx, err)
	}
	return nil
}

func recorderError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return fmt.Errorf("%w: %w", ErrRecorder, err)
}

// writeAll writes what was read, once it is durable, until there is no more.
func (p *pipe) writeAll(ctx context.Context) error {
	defer p.resize.stop()
	for {
		var err error
		select {
		case q, more := <-p.queue:
			if !more {
				return p.sendSize(ctx)
			}
			err = p.pass(ctx, &q)
			p.carrier.Window.giveBack(q.buffer)
		case <-p.resize.due():
			err = p.sendSize(ctx)
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
		if err != nil {
			return err
		}
	}
}

func (p *pipe) pass(ctx context.Context, q *queued) error {
	if p.resizes(&q.event) && len(q.Data) > 0 {
		return p.resize.take(q.Data)
	}
	if err := p.settle(ctx, q.receipt); err != nil {
		return err
	}
	if !p.toPod {
		if err := p.carrier.account(len(q.Data)); err != nil {
			return err
		}
		p.status.observe(&q.event)
		if q.End && q.Connection == 0 && q.Channel == Error {
			return nil // the end of the stream ends it; until then there may be more to say
		}
	}
	if err := p.to.write(&q.event); err != nil {
		return why(err)
	}
	p.bytes += int64(len(q.Data))
	return nil
}

// sendSize records the newest size and passes it on, if there is one that was not.
func (p *pipe) sendSize(ctx context.Context) error {
	size := p.resize.newest()
	if size == nil {
		return nil
	}
	e := event{Frame: Frame{Time: p.carrier.now(), Channel: Resize, Data: size}, lane: lane{channel: Resize}}
	if err := p.carrier.spend(len(size)); err != nil {
		return err
	}
	receipt, err := p.append(ctx, &e.Frame)
	if err == nil {
		err = p.settle(ctx, receipt)
	}
	if err == nil {
		err = why(p.to.write(&e))
	}
	if err == nil {
		p.bytes += int64(len(size))
	}
	return err
}

// empty gives back what was read and is not wanted any more. Both goroutines must
// have returned.
func (p *pipe) empty() {
	for {
		select {
		case q, more := <-p.queue:
			if !more {
				return
			}
			p.carrier.Window.giveBack(q.buffer)
		default:
			return
		}
	}
}

func (c *Carrier) now() time.Time { return time.Now() }
