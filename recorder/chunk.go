package recorder

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"
)

// chunk is one stored object with consecutive frames of a stream. A record with
// the stream's audit ID names it, so its hash is signed as that record is.
type chunk struct {
	AuditID string
	Number  uint64 // from 1 within the stream, without a gap
	Key     string
	Version string `json:",omitempty"` // empty if the store's answer was lost
	SHA256  string
	Size    int64
	Frames  uint64
	Bytes   uint64 // of data in the frames
}

// pendingChunks are the chunks of one portion of the spool on their way. Their
// bytes are in a file of their own, one behind the other.
type pendingChunks struct {
	Chunks []chunk
	End    position // of the portion
	File   string
}

// otherFile is where the bytes of the next pending chunks go. Two files take turns:
// the state that says that the ones before are stored is not saved for that alone,
// so until the next one is, a crash comes back to them and wants their bytes.
func otherFile(last string) string {
	if last == "chunks-0.zst" {
		return "chunks-1.zst"
	}
	return "chunks-0.zst"
}

// chunkPuts is how many chunks are stored at once. Each stream has one in a
// portion, so that many streams do not wait for each other.
const chunkPuts = 8

// storeChunks makes a chunk of each stream's pieces and does not return before the
// bucket has them. As with segments, the bytes are durable here before they are
// first sent: a crash from now on is followed by sending the same bytes again.
func (s *sealer) storeChunks(ctx context.Context, p *portion) error {
	if len(p.order) > 0 {
		s.state.Day = s.day()
		body, err := s.makeChunks(p)
		if err != nil {
			return s.fate.die(fmt.Errorf("reading the spool back: %w", err))
		}
		if err := s.persist(ctx, s.state.Chunks.File, body); err != nil {
			return err
		}
		if err := s.saveState(ctx); err != nil {
			return err
		}
		if err := s.settleChunks(ctx, body, false); err != nil {
			return err
		}
	}
	for _, id := range p.ended {
		delete(s.state.Last, id) // nothing of it follows
	}
	return nil
}

// makeChunks makes the pending chunks of a portion and returns their bytes, which
// are good until it is called again.
func (s *sealer) makeChunks(p *portion) ([]byte, error) {
	w := &s.work
	w.body = w.body[:0]
	s.file = otherFile(s.file)
	made := &pendingChunks{End: p.end, File: s.file}
	for _, id := range p.order {
		c := chunk{AuditID: id, Number: s.state.Last[id] + 1}
		c.Key = chunkKey(s.state.Cluster, s.state.Day, id, c.Number)
		w.lines = slices.Grow(w.lines[:0], linesOf(p.pieces[id]))
		for _, piece := range p.pieces[id] {
			f, err := parsePiece(piece)
			if err != nil {
				return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
			}
			w.lines = appendLine(w.lines, &f)
			c.Frames++
			c.Bytes += uint64(len(f.Data))
		}
		start := len(w.body)
		if err := w.compress(); err != nil {
			return nil, err
		}
		c.SHA256, c.Size = hashOf(w.body[start:]), int64(len(w.body)-start)
		made.Chunks = append(made.Chunks, c)
	}
	s.state.Chunks = made
	return w.body, nil
}

// linesOf is how many bytes pieces take as lines, or some more.
func linesOf(pieces [][]byte) int {
	size := 0
	for _, piece := range pieces {
		size += maxLine - MaxFrame/3*4 + len(piece)/3*4
	}
	return size
}

// workspace is the memory of the sealer, a few times what a portion has. It is let
// go when there is nothing to seal.
type workspace struct {
	data    []byte // read back from the spool
	lines   []byte // of one chunk
	body    []byte // compressed chunks
	encoder *zstd.Encoder
}

// compress appends the lines to the body. With the window that suits a processor's
// cache this takes 2.5 ns per byte of text; a better level would take several times
// that, and what cannot be compressed is stored as it is, as base64.
func (w *workspace) compress() (err error) {
	if w.encoder == nil {
		w.encoder, err = zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1),
			zstd.WithWindowSize(512<<10), zstd.WithEncoderCRC(false), zstd.WithSingleSegment(false))
		if err != nil {
			return err
		}
	}
	w.body = w.encoder.EncodeAll(w.lines, w.body)
	return nil
}

// resumeChunks goes on with chunks an earlier process may have sent.
func (s *sealer) resumeChunks(ctx context.Context) error {
	s.file = s.state.Chunks.File
	path := filepath.Join(s.directory, s.file)
	body, err := os.ReadFile(path)
	if err != nil {
		return s.fate.die(fmt.Errorf("reading the pending chunks: %w", err))
	}
	rest := body
	for _, c := range s.state.Chunks.Chunks {
		if int64(len(rest)) < c.Size || hashOf(rest[:c.Size]) != c.SHA256 {
			return s.fate.die(fmt.Errorf("reading the pending chunks: %w: %s is not what was to be sent", ErrDamaged, path))
		}
		rest = rest[c.Size:]
	}
	return s.settleChunks(ctx, body, true)
}

// settleChunks stores what is pending, of which body has the bytes. unknown says
// that it may be stored already.
func (s *sealer) settleChunks(ctx context.Context, body []byte, unknown bool) error {
	p := s.state.Chunks
	group, grouped := errgroup.WithContext(ctx)
	group.SetLimit(chunkPuts)
	forked := make([]bool, len(p.Chunks))
	for i := range p.Chunks {
		c := &p.Chunks[i]
		data := body[:c.Size]
		body = body[c.Size:]
		group.Go(func() error {
			unknown := unknown // of this one
			_, err := s.insist(grouped, c.Key, &unknown, func() ([]byte, error) { return data, nil },
				func(stored Stored) { c.Version = stored.Version })
			forked[i] = errors.Is(err, ErrExists)
			return err
		})
	}
	err := group.Wait()
	for i, c := range p.Chunks {
		if forked[i] {
			return s.fork(ctx, c.Key)
		}
	}
	if err != nil {
		return err
	}
	if s.state.Last == nil {
		s.state.Last = map[string]uint64{}
	}
	for _, c := range p.Chunks {
		s.state.Last[c.AuditID] = c.Number
		if _, done := s.named[c.Key]; !done {
			s.state.Owed = append(s.state.Owed, c)
		}
	}
	// The state is saved before the spool's files go, or before more is sent. A
	// crash until then finds the same chunks pending, and stored.
	s.state.Chunked, s.state.Chunks = p.End, nil
	return s.name(ctx)
}

// name records the chunks that are stored. It leaves those the spool has no room
// for: files may go as soon as the state says what is owed.
func (s *sealer) name(ctx context.Context) error {
	var receipts []Receipt
	for _, c := range s.state.Owed {
		receipt, err := s.spool.last(c.record(s.config.Now()), kindChunk)
		if err != nil && !errors.Is(err, ErrUnavailable) {
			return err
		}
		receipts = append(receipts, receipt) // the zero one is never durable
	}
	var owed []chunk
	for i, receipt := range receipts {
		switch err := receipt.Wait(ctx); {
		case errors.Is(err, ErrUnavailable):
			owed = append(owed, s.state.Owed[i])
		case err != nil:
			return err
		}
	}
	s.state.Owed = owed
	return nil
}

// nameAll records all chunks that are stored.
func (s *sealer) nameAll(ctx context.Context) error {
	return s.patiently(ctx, func() error {
		if err := s.name(ctx); err != nil {
			return err
		}
		if len(s.state.Owed) > 0 {
			return fmt.Errorf("%w: there is no room to record what is stored", ErrUnavailable)
		}
		return nil
	})
}

// record is the record that names a chunk.
func (c *chunk) record(now time.Time) *Event {
	event := &Event{AuditID: c.AuditID, Stage: StageResponseStarted, StageTimestamp: MicroTime{now}}
	event.Annotations = map[string]string{
		AnnotationStream: c.Key, AnnotationChunk: strconv.FormatUint(c.Number, 10), AnnotationChunkSHA256: c.SHA256,
		AnnotationStreamFrames: strconv.FormatUint(c.Frames, 10), AnnotationStreamBytes: strconv.FormatUint(c.Bytes, 10),
	}
	if c.Version != "" {
		event.Annotations[AnnotationChunkVersion] = c.Version
	}
	return event
}

// recoverNames learns which chunks have a record in the spool although the state
// does not say so, so that none gets two.
func (s *sealer) recoverNames() error {
	if s.state.Chunks == nil && len(s.state.Owed) == 0 {
		return nil
	}
	for _, file := range s.spool.before(^uint64(0)) {
		data, err := os.ReadFile(file.path)
		if err != nil {
			return err
		}
		_, _, err = scanFile(data, file.number, func(f frame, _ int64) error {
			if f.kind != kindChunk {
				return nil
			}
			event, err := decodeEvent(f.line[:len(f.line)-1])
			if err == nil {
				s.named[event.Annotations[AnnotationStream]] = struct{}{}
			}
			return err
		})
		if err != nil {
			return damage(s.directory, file.path, err)
		}
	}
	var owed []chunk
	for _, c := range s.state.Owed {
		if _, done := s.named[c.Key]; !done {
			owed = append(owed, c)
		}
	}
	s.state.Owed = owed
	return nil
}
