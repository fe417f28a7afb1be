package stream

import (
	"context"
	"sync"
)

// pieceSize is how much is recorded, waited for and written at once, in bytes. No
// client of Kubernetes sends more in one message, and servers that read a
// WebSocket message frame by frame must get it in one.
const pieceSize = 32 << 10

// buffer holds one piece, behind room for the number of its channel.
type buffer struct {
	bytes [1 + pieceSize]byte
	home  chan struct{} // where the right to hold it came from
}

// Window is the room that streams share for reading ahead while the recorder is
// busy. Safe for concurrent use.
type Window struct {
	room    chan struct{}
	buffers sync.Pool
}

// NewWindow makes a window of so many bytes.
func NewWindow(size int) *Window {
	w := &Window{room: make(chan struct{}, max(1, size/pieceSize)), buffers: sync.Pool{New: func() any { return new(buffer) }}}
	for range cap(w.room) {
		w.room <- struct{}{}
	}
	return w
}

// borrow waits until own or the window has room. Own has room for one buffer, so
// a stream goes on, more slowly, while others hold the whole window.
func (w *Window) borrow(ctx context.Context, own chan struct{}) (*buffer, error) {
	var home chan struct{}
	select {
	case <-own:
		home = own
	default:
		select {
		case <-own:
			home = own
		case <-w.room:
			home = w.room
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	b := w.buffers.Get().(*buffer)
	b.home = home
	return b, nil
}

// giveBack may be called with nil.
func (w *Window) giveBack(b *buffer) {
	if b == nil {
		return
	}
	home := b.home
	w.buffers.Put(b)
	home <- struct{}{}
}
