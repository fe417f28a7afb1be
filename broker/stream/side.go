package stream

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/gorilla/websocket"
)

// side is one end of a stream. read is for one goroutine, write and finish for
// another, ping and the methods of the link for any.
type side interface {
	// read returns the next event. It calls lend for the buffer of a piece of data,
	// which the event then holds, also if there is an error. io.EOF means that the
	// peer has left or ended the stream.
	read(lend func() (*buffer, error)) (event, error)
	// write passes an event on; one that means nothing to the peer is dropped.
	write(e *event) error
	// ping asks the peer for a sign of life. It does not wait for it.
	ping()
	// finish says a last thing, if it is not nil, on every error channel that is
	// open, and ends the protocol in order.
	finish(last []byte) error
	link() *link
}

// link is the connection of a side: the deadlines of its peer, and its end.
type link struct {
	net.Conn
	// silence is how long the peer may do nothing at all, and may take nothing.
	silence time.Duration

	// over is closed when the connection is.
	over  chan struct{}
	close sync.Once

	mu sync.Mutex
	// last is the end of all deadlines, once the stream is ending.
	last time.Time
}

func newLink(conn net.Conn) *link { return &link{Conn: conn, over: make(chan struct{})} }

// Close implements net.Conn.
func (l *link) Close() error {
	l.close.Do(func() { close(l.over) })
	return l.Conn.Close()
}

// listen gives the peer its time to be heard of, from now on.
func (l *link) listen() error { return l.SetReadDeadline(time.Now().Add(l.silence)) }

// SetReadDeadline, SetWriteDeadline and SetDeadline set no later deadline than the
// last one.
func (l *link) SetReadDeadline(t time.Time) error { return l.set(t, l.Conn.SetReadDeadline) }

// SetWriteDeadline is like SetReadDeadline.
func (l *link) SetWriteDeadline(t time.Time) error { return l.set(t, l.Conn.SetWriteDeadline) }

// SetDeadline is like SetReadDeadline.
func (l *link) SetDeadline(t time.Time) error { return l.set(t, l.Conn.SetDeadline) }

func (l *link) set(t time.Time, apply func(time.Time) error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.last.IsZero() && (t.IsZero() || t.After(l.last)) {
		t = l.last
	}
	return apply(t)
}

// endBy ends whatever goes on here, and whatever will, at the latest at that
// moment.
func (l *link) endBy(last time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last = last
	_ = l.Conn.SetDeadline(last) // a connection that takes none is closed already
}

// closeWrite says that nothing more comes. What was written arrives: to close while
// something unread is on its way would make the kernel throw it away (RFC 1122,
// section 4.2.2.13).
func (l *link) closeWrite() {
	half, ok := l.Conn.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		l.Close()
	}
}

// drain waits for the peer to close, until the last deadline, and closes.
func (l *link) drain() {
	_, _ = io.Copy(io.Discard, l.Conn) // ends with the peer or at the deadline
	l.Close()
}

// errClosing says that the library has told the peer that it closes: whoever reads
// from the peer knows why.
var errClosing = errors.New("closing")

// why says what an error of reading or writing means: io.EOF for a peer that is
// gone, and otherwise one of the errors of this package. What is not known as a
// failure of the connection is one of the protocol.
func why(err error) error {
	var closed *websocket.CloseError
	var network net.Error
	switch {
	case err == nil, errors.Is(err, ErrProtocol):
		return err
	case errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &network) && network.Timeout():
		return ErrSilent
	case errors.Is(err, websocket.ErrCloseSent):
		return errClosing
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed), errors.Is(err, io.ErrClosedPipe), errors.As(err, &network):
		return io.EOF
	case errors.As(err, &closed):
		return io.EOF
	}
	return fmt.Errorf("%w: %w", ErrProtocol, err)
}
