package stream

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/moby/spdystream/spdy"
)

// Bounds on what one peer may make the broker hold. Clients send data in frames of
// 32 KiB and a handful of short headers.
const (
	maxData        = 1 << 20
	maxControl     = 64 << 10
	maxHeaderField = 4 << 10
	maxHeaders     = 32
	maxConnections = 512 // of a port-forward at a time
)

// overSPDY is the side of a stream that speaks SPDY/3.1: each channel is a SPDY
// stream, opened by the client. The framer is the library's; what it does not do
// is to hold frames for readers that are slow: the connection is read when there
// is room for what comes.
type overSPDY struct {
	at     *link
	wire   net.Conn // at, or the tunnel through it
	framer *spdy.Framer
	pod    bool // the peer is the pod's side, and this one opens the streams
	wants

	// For reading.
	rest    []byte // of a data frame under way
	restOf  *spdyLane
	restEnd bool

	writing sync.Mutex // for all that is written; never held while mu is
	out     *bufio.Writer
	pingID  uint32

	mu     sync.Mutex
	lanes  map[lane]*spdyLane
	ids    map[spdy.StreamId]*spdyLane
	lastID spdy.StreamId     // of the stream opened last
	count  uint32            // of the connections so far
	names  map[string]uint32 // the client's names for those that are open
}

// spdyLane is one SPDY stream. The two ends of it are guarded by mu of its side.
type spdyLane struct {
	lane
	id       spdy.StreamId
	port     uint16
	name     string // the client's name for the connection
	replied  chan struct{}
	answered bool
	sent     bool // nothing more may be written
	received bool // nothing more comes
}

func newSPDY(at *link, in io.Reader, wire net.Conn, pod bool, w wants) (*overSPDY, error) {
	s := &overSPDY{
		at: at, wire: wire, pod: pod, wants: w, out: bufio.NewWriter(wire), pingID: 2, names: map[string]uint32{},
		lanes: map[lane]*spdyLane{}, ids: map[spdy.StreamId]*spdyLane{},
	}
	if pod {
		s.pingID = 1
	}
	var err error
	s.framer, err = spdy.NewFramerWithOptions(s.out, &smallReads{bufio.NewReader(in)},
		spdy.WithMaxControlFramePayloadSize(maxControl), spdy.WithMaxHeaderFieldSize(maxHeaderField), spdy.WithMaxHeaderCount(maxHeaders))
	return s, err
}

// smallReads refuses to read a data frame that is too large. The framer has room
// made for what a frame says it holds; that room is never used.
type smallReads struct{ io.Reader }

// Read implements io.Reader.
func (r *smallReads) Read(p []byte) (int, error) {
	if len(p) > maxData {
		return 0, fmt.Errorf("%w: a frame of %d bytes", ErrProtocol, len(p))
	}
	return r.Reader.Read(p)
}

func (s *overSPDY) link() *link { return s.at }

func (s *overSPDY) read(lend func() (*buffer, error)) (event, error) {
	for len(s.rest) == 0 && !s.restEnd {
		if err := s.at.listen(); err != nil {
			return event{}, err
		}
		frame, err := s.framer.ReadFrame()
		if err != nil {
			return event{}, err
		}
		if e, found, err := s.understand(frame); found || err != nil {
			return e, err
		}
	}
	e := s.eventOn(s.restOf)
	if len(s.rest) == 0 {
		s.restEnd = false
		return s.ended(s.restOf, false), nil
	}
	held, err := lend()
	if err != nil {
		return event{}, err
	}
	n := copy(held.bytes[1:], s.rest)
	if s.rest = s.rest[n:]; len(s.rest) == 0 {
		s.rest = nil
	}
	e.buffer, e.Data = held, held.bytes[1:1+n]
	return e, nil
}

// understand returns the event that a frame is, if it is one by itself.
func (s *overSPDY) understand(frame spdy.Frame) (_ event, found bool, _ error) {
	switch f := frame.(type) {
	case *spdy.SynStreamFrame:
		e, err := s.opened(f)
		return e, err == nil, err
	case *spdy.SynReplyFrame:
		s.reply(f)
	case *spdy.DataFrame:
		return event{}, false, s.data(f)
	case *spdy.RstStreamFrame:
		if l := s.find(f.StreamId); l != nil && !l.received {
			return s.ended(l, true), true, nil
		}
	case *spdy.PingFrame:
		if ours := f.Id%2 == 1 == s.pod; !ours { // clients use odd numbers
			return event{}, false, s.send(f)
		}
	case *spdy.GoAwayFrame:
		return event{}, false, io.EOF
	}
	return event{}, false, nil // settings, windows and late headers change nothing
}

// data keeps a data frame to be read. What comes for a stream that is over, or
// never was, is dropped, as the library's own connections do.
func (s *overSPDY) data(f *spdy.DataFrame) error {
	l := s.find(f.StreamId)
	if l == nil || l.received {
		return nil
	}
	if len(f.Data) > 0 && l.connection == 0 && !s.sends(l.channel, s.pod) {
		return fmt.Errorf("%w: data on channel %d", ErrProtocol, l.channel)
	}
	if len(f.Data) > 0 && l.connection > 0 && !s.pod && l.channel == Error {
		return fmt.Errorf("%w: data on the error channel", ErrProtocol)
	}
	s.rest, s.restOf, s.restEnd = f.Data, l, f.Flags&spdy.DataFlagFin != 0
	return nil
}

func (s *overSPDY) find(id spdy.StreamId) *spdyLane {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ids[id]
}

func (s *overSPDY) eventOn(l *spdyLane) event {
	e := event{lane: l.lane, Frame: Frame{Connection: l.connection, Port: l.port, Channel: l.channel}}
	if l.connection > 0 && s.pod && l.channel == Stdin {
		e.Channel = Stdout // data of a connection goes both ways on one lane
	}
	return e
}

// ended notes that the peer sends no more on a lane.
func (s *overSPDY) ended(l *spdyLane, reset bool) event {
	s.mu.Lock()
	l.received = true
	l.sent = l.sent || reset
	s.answerLocked(l)
	s.forgetLocked(l)
	s.mu.Unlock()
	e := s.eventOn(l)
	e.End, e.resets = true, reset
	return e
}

// forgetLocked drops a lane that is over in both directions, and a connection with
// the last of its lanes.
func (s *overSPDY) forgetLocked(l *spdyLane) {
	if !l.sent || !l.received {
		return
	}
	delete(s.ids, l.id)
	if l.connection == 0 {
		return // the lanes of a command are there once
	}
	delete(s.lanes, l.lane)
	if s.lanes[lane{l.connection, Stdin}] == nil && s.lanes[lane{l.connection, Error}] == nil {
		delete(s.names, l.name)
	}
}

func (s *overSPDY) reply(f *spdy.SynReplyFrame) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.ids[f.StreamId]; l != nil {
		s.answerLocked(l)
	}
}

func (s *overSPDY) answerLocked(l *spdyLane) {
	if !l.answered {
		l.answered = true
		close(l.replied)
	}
}

func (s *overSPDY) write(e *event) error {
	if e.opens {
		return s.open(e)
	}
	s.mu.Lock()
	l := s.lanes[e.lane]
	over := l == nil || l.sent
	s.mu.Unlock()
	if over {
		return nil // the peer does not want it any more
	}
	if err := s.await(l); err != nil {
		return err
	}
	switch {
	case e.resets:
		s.close(l, true)
		return s.send(&spdy.RstStreamFrame{StreamId: l.id, Status: spdy.Cancel})
	case e.End:
		s.close(l, false)
		return s.send(&spdy.DataFrame{StreamId: l.id, Flags: spdy.DataFlagFin})
	case len(e.Data) == 0:
		return nil
	}
	return s.send(&spdy.DataFrame{StreamId: l.id, Data: e.Data})
}

// await waits for the server's reply: it drops what comes before.
func (s *overSPDY) await(l *spdyLane) error {
	select {
	case <-l.replied:
		return nil
	default:
	}
	patience := time.NewTimer(s.at.silence)
	defer patience.Stop()
	select {
	case <-l.replied:
		return nil
	case <-s.at.over:
		return net.ErrClosed
	case <-patience.C:
		return ErrSilent
	}
}

// close notes that nothing more is written to a lane; after a reset nothing comes
// either.
func (s *overSPDY) close(l *spdyLane, reset bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l.sent = true
	l.received = l.received || reset
	s.forgetLocked(l)
}

func (s *overSPDY) send(frame spdy.Frame) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	return s.sendLocked(frame)
}

func (s *overSPDY) sendLocked(frame spdy.Frame) error {
	if err := s.wire.SetWriteDeadline(time.Now().Add(s.at.silence)); err != nil {
		return err
	}
	return errors.Join(s.framer.WriteFrame(frame), s.out.Flush())
}

// ping leaves out a turn while something is being written: then the deadline of
// that decides.
func (s *overSPDY) ping() {
	if !s.writing.TryLock() {
		return
	}
	defer s.writing.Unlock()
	_ = s.sendLocked(&spdy.PingFrame{Id: s.pingID}) // a peer that is gone is found by reading
	s.pingID += 2
}

func (s *overSPDY) finish(last []byte) error {
	s.mu.Lock()
	var open []*spdyLane
	for _, l := range s.lanes {
		if !l.sent {
			open = append(open, l)
		}
	}
	lastID := s.lastID
	s.mu.Unlock()
	var errs []error
	for _, l := range open {
		if last != nil && l.channel == Error {
			errs = append(errs, s.send(&spdy.DataFrame{StreamId: l.id, Data: last}))
		}
		errs = append(errs, s.send(&spdy.DataFrame{StreamId: l.id, Flags: spdy.DataFlagFin}))
	}
	errs = append(errs, s.send(&spdy.GoAwayFrame{LastGoodStreamId: lastID}))
	return errors.Join(errs...)
}
