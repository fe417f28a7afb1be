package recorder

import (
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// chunkFact is what a record says about one chunk of a stream.
type chunkFact struct {
	auditID string
	number  uint64
	day     string
	version string
	sha256  [32]byte
	frames  uint64
	bytes   uint64
	seq     uint64 // of the record
}

// endFact is what a closing record says about its stream.
type endFact struct {
	auditID string
	seq     uint64
	time    time.Time
	// totals are nil if nothing was recorded of it, or its end was lost.
	totals *totals
}

// parseChunk reads a record that names a chunk. It is false for any other record,
// and an error says that a recorder would not have made it.
func parseChunk(event *Event, cluster string) (chunkFact, bool, error) {
	c := chunkFact{auditID: event.AuditID, seq: event.Seq(), version: event.Annotations[AnnotationChunkVersion]}
	number, found := event.Annotations[AnnotationChunk]
	if !found {
		return c, false, nil
	}
	n := numbers{event: event}
	c.number = n.parse(AnnotationChunk)
	c.frames, c.bytes = n.parse(AnnotationStreamFrames), n.parse(AnnotationStreamBytes)
	sum, err := hex.DecodeString(event.Annotations[AnnotationChunkSHA256])
	copy(c.sha256[:], sum)
	key := event.Annotations[AnnotationStream]
	rest, _ := strings.CutPrefix(key, streamPrefix+"cluster="+cluster+"/dt=")
	c.day, _, _ = strings.Cut(rest, "/")
	if n.err != nil || err != nil || len(sum) != len(c.sha256) || c.number == 0 || c.frames == 0 || !(period{}).includes(c.day) ||
		event.Stage != StageResponseStarted || !validName(c.auditID) || key != chunkKey(cluster, c.day, c.auditID, c.number) {
		return c, false, fmt.Errorf("a record that names chunk %q of a stream contradicts itself", number)
	}
	return c, true, nil
}

// parseEnd reads what a closing record says about a stream; false if it says
// nothing, and is not of a stream as far as can be seen.
func parseEnd(event *Event) (endFact, bool, error) {
	end := endFact{auditID: event.AuditID, seq: event.Seq(), time: event.StageTimestamp.Time}
	unknown := event.Annotations[AnnotationOutcome] == OutcomeUnknown
	if event.Stage != StageResponseComplete || unknown || event.Annotations[AnnotationStreamFrames] == "" {
		return end, unknown, nil
	}
	n := numbers{event: event}
	end.totals = &totals{frames: n.parse(AnnotationStreamFrames)}
	for channel := range end.totals.bytes {
		if name := bytesOf(Channel(channel)); event.Annotations[name] != "" {
			end.totals.bytes[channel] = n.parse(name)
		}
	}
	if n.err == nil && n.parse(AnnotationStreamBytes) != end.totals.sum() {
		n.err = fmt.Errorf("the bytes of a stream are not the sum of its channels")
	}
	return end, true, n.err
}

// numbers parses annotations and keeps the first error.
type numbers struct {
	event *Event
	err   error
}

func (n *numbers) parse(annotation string) uint64 {
	value, err := strconv.ParseUint(n.event.Annotations[annotation], 10, 63)
	if err != nil && n.err == nil {
		n.err = fmt.Errorf("%s: %w", annotation, err)
	}
	return value
}

// note keeps what a record says about streams.
func (f *segmentFacts) note(event *Event, cluster string) error {
	c, found, err := parseChunk(event, cluster)
	if err != nil {
		return err
	}
	if found {
		f.chunks = append(f.chunks, c)
	}
	end, found, err := parseEnd(event)
	if err != nil {
		return err
	}
	if found {
		f.ends = append(f.ends, end)
	}
	return nil
}
