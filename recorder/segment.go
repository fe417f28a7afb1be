package recorder

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

// segmentReader decompresses segments, one at a time. What it reads may be
// hostile: it never uses more memory than one window and one record.
type segmentReader struct {
	decoder *zstd.Decoder
	buffer  []byte
	line    lineReader
}

func newSegmentReader() (*segmentReader, error) {
	decoder, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(8<<20))
	return &segmentReader{decoder: decoder, buffer: make([]byte, 64<<10)}, err
}

// errTooLarge says that a segment has more bytes than it may.
var errTooLarge = errors.New("more bytes than stated")

// lines calls visit for each line, without its newline, and fails as soon as
// more than limit bytes come out. The slice is only valid during the call.
func (s *segmentReader) lines(compressed io.Reader, limit int64, visit func(line []byte) error) (raw int64, err error) {
	if err := s.decoder.Reset(compressed); err != nil {
		return 0, err
	}
	limited := &io.LimitedReader{R: s.decoder, N: limit + 1}
	scanner := bufio.NewScanner(limited)
	scanner.Buffer(s.buffer, maxRecord+1)
	scanner.Split(splitLines)
	for scanner.Scan() {
		raw += int64(len(scanner.Bytes())) + 1
		if raw > limit {
			break
		}
		if err := visit(scanner.Bytes()); err != nil {
			return raw, err
		}
	}
	if limited.N == 0 {
		return raw, errTooLarge
	}
	return raw, scanner.Err()
}

// splitLines is bufio.ScanLines without its tolerance for carriage returns and
// for a last line that does not end.
func splitLines(data []byte, atEOF bool) (advance int, token []byte, err error) {
	if i := bytes.IndexByte(data, '\n'); i >= 0 {
		return i + 1, data[:i], nil
	}
	if atEOF && len(data) > 0 {
		return 0, nil, fmt.Errorf("%w: the last line does not end", ErrNotCanonical)
	}
	return 0, nil, nil
}

// segmentFacts is what a segment was found to hold.
type segmentFacts struct {
	first, next uint64 // numbers; next is one behind the last
	count       uint64
	raw         int64
	unknown     uint64
	chunks      []chunkFact
	ends        []endFact
}

// flaw is what is wrong with a segment.
type flaw struct {
	reason Reason
	seq    uint64
	detail string
}

// check reads a segment and compares it with what its manifest says. The error
// says that it could not be read to the end; a flaw that it is not what it must be.
func (s *segmentReader) check(content io.Reader, m *Manifest) (segmentFacts, *flaw, error) {
	sum := sha256.New()
	// Read to the end even if it is not the size it must be: what lies there tells
	// an exchanged segment from a broken one.
	source := &trackingReader{from: io.TeeReader(io.LimitReader(content, maxSegment), sum)}
	facts := segmentFacts{next: m.First}
	var bad *flaw
	raw, err := s.lines(source, m.RawSize, func(line []byte) error {
		event, err := decodeEvent(line)
		if err != nil {
			bad = &flaw{NotCanonical, facts.next, err.Error()}
			return err
		}
		if facts.count == 0 {
			facts.first = event.Seq()
		}
		if event.Seq() != facts.next {
			bad = &flaw{SequenceGap, facts.next, fmt.Sprintf("record %d is in the place of record %d", event.Seq(), facts.next)}
			return errEnough
		}
		if event.Annotations[AnnotationOutcome] == OutcomeUnknown {
			facts.unknown++
		}
		if err := facts.note(event, m.Cluster); err != nil {
			bad = &flaw{Malformed, facts.next, err.Error()}
			return err
		}
		facts.count++
		facts.next++
		return nil
	})
	facts.raw = raw
	// The decompressor stops at what it cannot read; the hash wants the rest too.
	_, drained := io.Copy(io.Discard, source)
	if source.err != nil || drained != nil {
		return facts, nil, errors.Join(source.err, drained)
	}
	switch {
	case hex.EncodeToString(sum.Sum(nil)) != m.SHA256:
		return facts, mismatch(facts, m), nil
	case bad != nil:
		return facts, bad, nil
	case errors.Is(err, errTooLarge):
		return facts, &flaw{TooLarge, facts.next, fmt.Sprintf("it has more than the %d bytes its manifest states", m.RawSize)}, nil
	case err != nil:
		return facts, &flaw{Malformed, facts.next, err.Error()}, nil
	case facts.count != m.Count || raw != m.RawSize:
		return facts, &flaw{SequenceGap, facts.next, fmt.Sprintf("it holds %d records of the %d its manifest states", facts.count, m.Count)}, nil
	}
	return facts, nil, nil
}

// mismatch describes content that is not what was signed: it may be whole and of
// another place.
func mismatch(facts segmentFacts, m *Manifest) *flaw {
	if facts.first != 0 && facts.first != m.First {
		return &flaw{Misplaced, m.First, fmt.Sprintf("records from %d on lie where record %d must be", facts.first, m.First)}
	}
	return &flaw{HashMismatch, m.First, "its content is not what was signed"}
}

// trackingReader remembers errors that a decompressor would report as its own:
// a network that fails is not a broken segment.
type trackingReader struct {
	from io.Reader
	err  error
}

func (r *trackingReader) Read(p []byte) (int, error) {
	n, err := r.from.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		r.err = err
	}
	return n, err
}
