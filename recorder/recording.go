package recorder

import (
	"bytes"
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"time"
)

// ErrIncomplete says that a recording does not hold the whole stream: it is not
// finished, its end was lost in a crash, or a part is missing or is not what the
// journal says. The text tells which.
var ErrIncomplete = errors.New("the recording is not complete")

// Recording is what the journal says about one recorded stream.
type Recording struct {
	AuditID string
	// Intent and End are the stream's first and last record; nil if they were not
	// found. Of a stream that still runs there is no End.
	Intent, End *Event

	chunks []chunkFact
	keys   []string // of the chunks
	totals *totals  // by End
}

// Record is the intent, or else the closing record, or else an empty one.
func (r *Recording) Record() *Event {
	return cmp.Or(r.Intent, r.End, &Event{AuditID: r.AuditID})
}

// Bytes is how much passed in the stream, in both directions, as far as records
// say.
func (r *Recording) Bytes() uint64 {
	if r.totals != nil {
		return r.totals.sum()
	}
	var sum uint64
	for _, c := range r.chunks {
		sum += c.bytes
	}
	return sum
}

// whole tells whether no more records about it are to come.
func (r *Recording) whole() bool {
	if r.End == nil || r.totals == nil {
		return r.End != nil
	}
	var frames uint64
	for _, c := range r.chunks {
		frames += c.frames
	}
	return frames >= r.totals.frames
}

// take adds what one record says.
func (r *Recording) take(event *Event) error {
	key := event.Annotations[AnnotationStream]
	c, found, err := parseChunk(event, clusterOf(key))
	if err != nil {
		return err
	}
	if found {
		r.chunks, r.keys = append(r.chunks, c), append(r.keys, key)
		return nil
	}
	switch event.Stage {
	case StageRequestReceived:
		r.Intent = event
	case StageResponseComplete:
		end, _, err := parseEnd(event)
		if err != nil {
			return err
		}
		r.End, r.totals = event, end.totals
	}
	return nil
}

// Recordings yields the recorded streams that began within the filter's time and
// pass it otherwise, as they ended, and then those without an end. Like [Scan] it
// proves nothing.
func Recordings(ctx context.Context, bucket Bucket, filter Filter) iter.Seq2[*Recording, error] {
	return func(yield func(*Recording, error) bool) {
		open := map[string]*Recording{}
		var order []string
		out := func(r *Recording) bool {
			recorded := len(r.chunks) > 0 || r.totals != nil
			return !recorded || !filter.Match(r.Record()) || yield(r, nil)
		}
		for event, err := range Scan(ctx, bucket, Filter{Cluster: filter.Cluster, From: filter.From, AuditID: filter.AuditID}) {
			if err != nil {
				yield(nil, err)
				return
			}
			r := open[event.AuditID]
			if r == nil {
				r = &Recording{AuditID: event.AuditID}
				open[event.AuditID] = r
				order = append(order, event.AuditID)
			}
			if err := r.take(event); err != nil {
				yield(nil, fmt.Errorf("reading the records of %s: %w", event.AuditID, err))
				return
			}
			if r.whole() {
				delete(open, event.AuditID)
				if !out(r) {
					return
				}
			}
			order = compact(order, open)
		}
		for _, id := range order {
			if r := open[id]; r != nil && !out(r) {
				return
			}
		}
	}
}

// compact drops what is no longer open, now and then.
func compact(order []string, open map[string]*Recording) []string {
	if len(order) < 1000 || len(order) < 2*len(open) {
		return order
	}
	return slices.DeleteFunc(order, func(id string) bool { return open[id] == nil })
}

// FindRecording finds the recorded stream of an audit ID; the error wraps
// ErrNotFound if there is none.
func FindRecording(ctx context.Context, bucket Bucket, auditID string) (*Recording, error) {
	if !validName(auditID) {
		return nil, fmt.Errorf("%w: %q is not the audit ID of a stream", ErrNotFound, auditID)
	}
	from, err := firstDay(ctx, bucket, auditID)
	if err != nil {
		return nil, err
	}
	for recording, err := range Recordings(ctx, bucket, Filter{AuditID: auditID, From: from}) {
		return recording, err
	}
	return nil, fmt.Errorf("%w: nothing is recorded of a stream with the audit ID %s", ErrNotFound, auditID)
}

// firstDay is a time before the stream's first chunk and its intent, zero if there
// is no chunk: what lies before it need not be read.
func firstDay(ctx context.Context, bucket Bucket, auditID string) (first time.Time, err error) {
	ignore := func(string) {}
	clusters, err := layer(ctx, bucket, streamPrefix, "cluster=", time.Time{}, ignore)
	if err != nil {
		return first, err
	}
	for _, cluster := range clusters {
		days, err := layer(ctx, bucket, streamPrefix+"cluster="+cluster+"/", "dt=", time.Time{}, ignore)
		if err != nil {
			return first, err
		}
		for _, day := range days {
			at, err := time.Parse(time.DateOnly, day)
			if err != nil || !first.IsZero() && !at.Before(first) {
				continue
			}
			for _, err := range objects(ctx, bucket, chunkFolder(cluster, day, auditID), time.Time{}) {
				if err != nil {
					return first, err
				}
				first = at
				break
			}
		}
	}
	if !first.IsZero() {
		first = first.Add(-24 * time.Hour) // a stream may wait that long for its first frame
	}
	return first, nil
}

// Frames yields the frames in their order, from chunks that the journal names and
// that have the hash it says. A frame's data is valid until the next one. What
// comes last is an error that wraps ErrIncomplete, if that is so.
func (r *Recording) Frames(ctx context.Context, bucket Bucket) iter.Seq2[*Frame, error] {
	return func(yield func(*Frame, error) bool) {
		reader, err := newSegmentReader()
		if err != nil {
			yield(nil, err)
			return
		}
		defer reader.decoder.Close()
		var found totals
		next := uint64(1)
		for _, i := range r.order() {
			c := &r.chunks[i]
			if c.number != next {
				err = fmt.Errorf("%w: chunk %d of the stream has no record", ErrIncomplete, next)
			}
			if err == nil {
				err = r.chunk(ctx, bucket, reader, i, func(f *Frame) bool {
					found.add(f.Channel, len(f.Data))
					return yield(f, nil)
				})
			}
			if errors.Is(err, errEnough) {
				return
			}
			if err != nil {
				yield(nil, err)
				return
			}
			next++
		}
		if err := r.ending(&found); err != nil {
			yield(nil, err)
		}
	}
}

// order is the indices of the chunks in the order of their numbers.
func (r *Recording) order() []int {
	order := make([]int, len(r.chunks))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return cmp.Compare(r.chunks[a].number, r.chunks[b].number) })
	return order
}

// chunk reads one chunk, all of it before the first frame: what does not have the
// right hash is not shown.
func (r *Recording) chunk(ctx context.Context, bucket Bucket, reader *segmentReader, i int, visit func(*Frame) bool) error {
	c, key := &r.chunks[i], r.keys[i]
	data, err := r.read(ctx, bucket, c, key)
	if errors.Is(err, ErrNotFound) {
		return fmt.Errorf("%w: %s is not there", ErrIncomplete, key)
	}
	if err != nil {
		return fmt.Errorf("reading %s: %w", key, err)
	}
	if hashOf(data) != hex.EncodeToString(c.sha256[:]) {
		return fmt.Errorf("%w: %s is not what the journal names; `taskgate verify` tells more", ErrIncomplete, key)
	}
	_, err = reader.lines(bytes.NewReader(data), c.limit(), func(line []byte) error {
		f, err := reader.line.read(line)
		if err == nil && !visit(&f) {
			err = errEnough
		}
		return err
	})
	if err != nil && !errors.Is(err, errEnough) {
		return fmt.Errorf("reading %s: %w", key, err)
	}
	return err
}

// read reads the version that was named, or the first one if it is not known.
func (r *Recording) read(ctx context.Context, bucket Bucket, c *chunkFact, key string) ([]byte, error) {
	if c.version == "" {
		return readOldest(ctx, bucket, key, maxSegment)
	}
	content, err := bucket.Get(ctx, key, c.version)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(content, maxSegment+1))
	return data, errors.Join(err, content.Close())
}

// ending says what is missing behind the last chunk, nil if nothing is.
func (r *Recording) ending(found *totals) error {
	switch {
	case r.End == nil:
		return fmt.Errorf("%w: there is no record of its end; the stream still runs, or its broker has not come back", ErrIncomplete)
	case r.End.Annotations[AnnotationOutcome] == OutcomeUnknown:
		return fmt.Errorf("%w: its end was lost; what is here was recorded before that", ErrIncomplete)
	case r.totals == nil:
		return fmt.Errorf("%w: its closing record does not say how long it was", ErrIncomplete)
	case *r.totals != *found:
		return fmt.Errorf("%w: %d of %d frames are here", ErrIncomplete, found.frames, r.totals.frames)
	}
	return nil
}

// clusterOf is the cluster in the key of a chunk.
func clusterOf(key string) string {
	rest, _ := bytes.CutPrefix([]byte(key), []byte(streamPrefix+"cluster="))
	name, _, _ := bytes.Cut(rest, []byte("/"))
	return string(name)
}
