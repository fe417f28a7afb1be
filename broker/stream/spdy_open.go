package stream

import (
	"fmt"
	"net/http"
	"strconv"

	"github.com/moby/spdystream/spdy"
)

// opened takes a stream the agent opens.
func (s *overSPDY) opened(f *spdy.SynStreamFrame) (event, error) {
	if s.pod || f.CFHeader.Flags != 0 {
		return event{}, fmt.Errorf("%w: a stream that may not be opened", ErrProtocol)
	}
	l := &spdyLane{id: f.StreamId, replied: make(chan struct{}), answered: true}
	close(l.replied)
	if err := s.admit(l, f.Headers); err != nil {
		return event{}, err
	}
	e := s.eventOn(l)
	e.opens = true
	return e, s.send(&spdy.SynReplyFrame{StreamId: l.id})
}

// admit finds out which lane a new stream is, and registers it.
func (s *overSPDY) admit(l *spdyLane, header http.Header) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.id%2 == 0 || l.id <= s.lastID {
		return fmt.Errorf("%w: the number of a stream", ErrProtocol)
	}
	s.lastID = l.id
	if err := s.nameLocked(l, header); err != nil {
		return err
	}
	if s.lanes[l.lane] != nil || len(s.ids) >= 2*maxConnections {
		return fmt.Errorf("%w: a channel that is open already, or too many", ErrProtocol)
	}
	s.lanes[l.lane], s.ids[l.id] = l, l
	return nil
}

// nameLocked reads what the headers say about a stream.
func (s *overSPDY) nameLocked(l *spdyLane, header http.Header) error {
	kind := header.Get(headerStreamType)
	if !s.PortForward {
		channel, known := s.channelOf(kind)
		if !known {
			return fmt.Errorf("%w: a stream of a type that was not asked for", ErrProtocol)
		}
		l.channel = channel
		return nil
	}
	port, err := strconv.ParseUint(header.Get(headerPort), 10, 16)
	if err != nil || port == 0 || !s.mayReach(uint16(port)) {
		return fmt.Errorf("%w: a port that was not asked for", ErrProtocol)
	}
	l.port, l.name = uint16(port), header.Get(headerRequestID)
	switch kind {
	case typeError:
		l.channel = Error
	case typeData:
		l.channel = Stdin
	default:
		return fmt.Errorf("%w: a stream of an unknown type", ErrProtocol)
	}
	if l.name == "" { // old clients open the error stream first, and the data stream right after
		l.name = strconv.Itoa(int(l.id))
		if l.channel == Stdin {
			l.name = strconv.Itoa(int(l.id) - 2)
		}
	}
	if s.names[l.name] == 0 {
		s.count++
		s.names[l.name] = s.count
	}
	l.connection = s.names[l.name]
	return nil
}

// open opens the stream at the pod's side that the agent opened here.
func (s *overSPDY) open(e *event) error {
	l := &spdyLane{lane: e.lane, port: e.Port, replied: make(chan struct{})}
	s.mu.Lock()
	l.id = max(1, s.lastID+s.lastID%2*2) // 1, 3, 5, …
	s.lastID = l.id
	s.lanes[l.lane], s.ids[l.id] = l, l
	s.mu.Unlock()
	return s.send(&spdy.SynStreamFrame{StreamId: l.id, Headers: headerOf(e)})
}

// headerOf is what a client says when it opens a stream.
func headerOf(e *event) http.Header {
	header := http.Header{}
	header.Set(headerStreamType, typeOf(e.lane))
	if e.Connection > 0 {
		header.Set(headerPort, strconv.Itoa(int(e.Port)))
		header.Set(headerRequestID, strconv.Itoa(int(e.Connection)))
	}
	return header
}
