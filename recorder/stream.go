package recorder

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"
)

// Channel of a Frame, as numbered by channel.k8s.io (KEP-4006). A port-forward
// uses Stdin toward the pod, Stdout from it, and ErrorChannel for errors.
type Channel uint8

// The channels of an exec or attach.
const (
	Stdin Channel = iota
	Stdout
	Stderr
	ErrorChannel // a metav1.Status, last
	Resize       // {"Width":…,"Height":…}
	channels     = iota
)

// String is the name of the channel.
func (c Channel) String() string {
	if int(c) < channels {
		return [channels]string{"stdin", "stdout", "stderr", "error", "resize"}[c]
	}
	return strconv.Itoa(int(c))
}

// MaxFrame is how many bytes of data one frame can have. The spool's files may be
// smaller than that.
const MaxFrame = 256 << 10

// Frame is one piece of a stream as it passed.
type Frame struct {
	Time       time.Time // set by Append if zero; microseconds
	Connection uint32    // of a port-forward: 1, 2, … ; 0 for exec and attach
	Port       uint16    // of a port-forward
	Channel    Channel
	End        bool // the channel was closed by its sender
	Data       []byte
}

// Stream records what passes in one exec, attach or port-forward. All methods are
// safe for concurrent use.
type Stream struct {
	recorder *Recorder
	id       string

	// The spool's mutex guards what follows.
	ended  bool
	queued int64 // bytes that are neither durable nor refused yet
	passed totals
}

// totals is what a record of a whole stream or of one chunk says about it.
type totals struct {
	frames uint64
	bytes  [channels]uint64 // of data
}

func (t *totals) add(channel Channel, data int) {
	t.frames++
	t.bytes[channel] += uint64(data)
}

func (t *totals) sum() uint64 {
	var sum uint64
	for _, bytes := range t.bytes {
		sum += bytes
	}
	return sum
}

// Stream begins the recording of the one stream that belongs to an audit ID, whose
// intent was appended before. An audit ID has one stream in its life: the caller
// makes sure of that. Errors are those of Append; ErrInvalid if the ID is no name
// for objects in a bucket (1 to 63 letters, digits, dots, dashes and underscores)
// or its stream was begun already.
func (r *Recorder) Stream(auditID string) (*Stream, error) {
	if err := r.refusal(); err != nil {
		return nil, err
	}
	if !validName(auditID) {
		return nil, fmt.Errorf("%w: a stream cannot be filed under the audit ID %q", ErrInvalid, auditID)
	}
	s := &Stream{recorder: r, id: auditID}
	return s, r.live.spool.beginStream(s)
}

// Append queues a frame to be made durable, after all frames appended before; it
// copies what it needs before it returns. What the frame holds may be passed on
// only after [Receipt.Wait]. Waiting can say that the frame was not recorded
// (ErrUnavailable); it may then be appended again, or the stream ended.
//
// While streams take up their share of memory or of the spool, or the recorder is
// unavailable, Append waits until it can go on, until ctx ends or for
// Config.StreamStall; then the error wraps ErrUnavailable. Other errors wrap
// ErrInvalid (the stream was closed, or this frame never will be recorded),
// ErrClosed or ErrDead.
func (s *Stream) Append(ctx context.Context, f *Frame) (Receipt, error) {
	if f.Channel >= channels || len(f.Data) > MaxFrame {
		return Receipt{}, fmt.Errorf("%w: a frame of %d bytes in channel %d", ErrInvalid, len(f.Data), f.Channel)
	}
	spool := s.recorder.live.spool
	piece := spool.encodePiece(s, f)
	receipt, err := s.append(ctx, spool, piece, f)
	if err != nil {
		spool.recycle(piece)
	}
	return receipt, err
}

// stallRetry is how often a stalled stream asks again if nobody tells it to.
const stallRetry = 50 * time.Millisecond

func (s *Stream) append(ctx context.Context, spool *spool, piece *record, f *Frame) (Receipt, error) {
	receipt, room, err := s.try(spool, piece, f)
	if !errors.Is(err, ErrUnavailable) {
		return receipt, err
	}
	patience := time.NewTimer(s.recorder.config.StreamStall)
	defer patience.Stop()
	again := time.NewTicker(stallRetry)
	defer again.Stop()
	for errors.Is(err, ErrUnavailable) {
		select {
		case <-room:
		case <-again.C:
		case <-patience.C:
			return Receipt{}, fmt.Errorf("a stream has waited for %s: %w", s.recorder.config.StreamStall, err)
		case <-ctx.Done():
			return Receipt{}, fmt.Errorf("%w (%w)", err, ctx.Err())
		}
		receipt, room, err = s.try(spool, piece, f)
	}
	return receipt, err
}

// try appends a piece if that is possible now. If not for lack of room, the
// channel is closed when there is some.
func (s *Stream) try(spool *spool, piece *record, f *Frame) (Receipt, <-chan struct{}, error) {
	if err := s.recorder.refusal(); err != nil {
		return Receipt{}, nil, err
	}
	return spool.addPiece(piece, f)
}

// Describe closes the stream and writes what was recorded of it into its closing
// record: the annotations that Verify holds against the chunks. It waits until no
// frame is on its way to the disk.
func (s *Stream) Describe(e *Event) {
	passed := s.recorder.live.spool.settled(s)
	if e.Annotations == nil {
		e.Annotations = map[string]string{}
	}
	passed.describe(e.Annotations)
}

// describe says the totals as annotations.
func (t *totals) describe(annotations map[string]string) {
	annotations[AnnotationStreamFrames] = strconv.FormatUint(t.frames, 10)
	annotations[AnnotationStreamBytes] = strconv.FormatUint(t.sum(), 10)
	for channel, bytes := range t.bytes {
		if bytes > 0 {
			annotations[bytesOf(Channel(channel))] = strconv.FormatUint(bytes, 10)
		}
	}
}

// bytesOf is the annotation with the bytes of one channel.
func bytesOf(channel Channel) string { return AnnotationStreamBytes + "-" + channel.String() }

// Close ends the stream: no frame can be appended any more, and those that were
// are sealed. It does not wait.
func (s *Stream) Close() { s.recorder.live.spool.closeStream(s) }
