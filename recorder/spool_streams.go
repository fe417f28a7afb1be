package recorder

import "fmt"

// Bounds of what streams may have on their way to the disk, in bytes.
const (
	maxQueued       = 8 << 20 // all streams
	maxStreamQueued = 1 << 20 // one stream
)

// errStalled says that streams have to wait so that records of calls need not.
var errStalled = fmt.Errorf("%w: streams take up their share of the spool; see to the disk and to the bucket, or raise the limit", ErrUnavailable)

// errStreamEnded says that a frame came behind the end of its stream.
var errStreamEnded = fmt.Errorf("%w: the stream was closed", ErrInvalid)

func (s *spool) beginStream(stream *Stream) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.streams[stream.id] != nil {
		return fmt.Errorf("%w: the stream of %s was begun already", ErrInvalid, stream.id)
	}
	s.streams[stream.id] = stream
	return nil
}

// encodePiece makes the record of a frame, without a number.
func (s *spool) encodePiece(stream *Stream, f *Frame) *record {
	at := f.Time
	if at.IsZero() {
		at = s.config.now()
	}
	piece := s.encoded.Get().(*record)
	piece.buffer = appendPiece(piece.buffer[:0], f, at.UnixMicro())
	piece.kind, piece.id, piece.stream = kindPiece, stream.id, stream
	return piece
}

// addPiece queues a piece if streams may take more. If they may not, room is
// closed when it is worth asking again.
func (s *spool) addPiece(piece *record, f *Frame) (_ Receipt, room <-chan struct{}, _ error) {
	now, stream, size := s.config.now(), piece.stream, frameSize(piece.id, piece.buffer)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case stream.ended:
		return Receipt{}, nil, errStreamEnded
	case s.next == 1:
		return Receipt{}, nil, fmt.Errorf("%w: a stream without an intent", ErrInvalid)
	case size > s.config.fileSize-fileHeader:
		return Receipt{}, nil, fmt.Errorf("%w: a frame of %d bytes, in a spool with files of %d", ErrInvalid, len(f.Data), s.config.fileSize)
	}
	if err := s.admitLocked(now, false, false); err != nil {
		return Receipt{}, s.roomLocked(), err
	}
	// A stream with nothing on its way may always send one piece more: otherwise
	// those that send much could keep it out.
	queued := stream.queued > 0 && (s.pieces+size > maxQueued || stream.queued+size > maxStreamQueued)
	if queued || s.unsealed+s.pieces+size > s.config.limit/2 {
		return Receipt{}, s.roomLocked(), errStalled
	}
	stream.passed.add(f.Channel, len(f.Data))
	stream.queued += size
	s.pieces += size
	piece.seq = s.next - 1
	return Receipt{batch: s.queueLocked(piece, size)}, nil, nil
}

// roomLocked returns a channel that is closed when streams have more room.
func (s *spool) roomLocked() chan struct{} {
	if s.room == nil {
		s.room = make(chan struct{})
	}
	return s.room
}

func (s *spool) wakeLocked() {
	if s.room != nil {
		close(s.room)
		s.room = nil
	}
}

// settleLocked notes that the pieces of a batch are on disk or never will be.
func (s *spool) settleLocked(b *batch, durable bool) {
	for _, r := range b.records {
		if r.stream == nil {
			continue
		}
		size := frameSize(r.id, r.buffer)
		s.pieces -= size
		r.stream.queued -= size
		if !durable {
			r.stream.passed.take(r.buffer)
		}
	}
	s.wakeLocked()
}

// settled closes a stream and returns what was recorded of it, once nothing of it
// is on its way.
func (s *spool) settled(stream *Stream) totals {
	s.mu.Lock()
	defer s.mu.Unlock()
	stream.ended = true
	for stream.queued > 0 {
		room := s.roomLocked()
		s.mu.Unlock()
		<-room // the writer comes to every batch, or gives it up
		s.mu.Lock()
	}
	return stream.passed
}

func (s *spool) closeStream(stream *Stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	stream.ended = true
}

// endLocked ends the stream of an audit ID, if there is one: a closing record is
// the last word about it.
func (s *spool) endLocked(auditID string) {
	if stream := s.streams[auditID]; stream != nil {
		stream.ended = true
		delete(s.streams, auditID)
	}
}
