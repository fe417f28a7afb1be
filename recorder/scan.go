package recorder

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"
)

// Filter picks records. An empty field matches every record.
type Filter struct {
	Cluster  string
	From, To time.Time // StageTimestamp, both included
	Agent    string    // SPIFFE ID
	Task     string
	Grant    string
	Verb     string
	Decision string
	AuditID  string
}

// Match tells whether an event passes.
func (f Filter) Match(event *Event) bool {
	at := event.StageTimestamp.Time
	return (f.From.IsZero() || !at.Before(f.From)) && (f.To.IsZero() || !at.After(f.To)) &&
		matches(f.Agent, event.User.Username) && matches(f.Verb, event.Verb) &&
		matches(f.Task, event.Annotations[AnnotationTask]) && matches(f.Grant, event.Annotations[AnnotationGrant]) &&
		matches(f.Decision, event.Annotations[AnnotationDecision]) && matches(f.AuditID, event.AuditID)
}

func matches(wanted, value string) bool { return wanted == "" || wanted == value }

// Scan yields the records that pass the filter, cluster by cluster, day by day,
// stream by stream, in the order of their numbers. It proves nothing: that is
// [Verify]. A segment that cannot be read ends it with an error.
//
// Segments are filed under the day they were sealed, which is never before the
// day of their records, so earlier days are not looked at. Later days are, as
// far as their streams go back: a record may have waited long for the bucket.
func Scan(ctx context.Context, bucket Bucket, filter Filter) iter.Seq2[*Event, error] {
	return func(yield func(*Event, error) bool) {
		reader, err := newSegmentReader()
		if err != nil {
			yield(nil, err)
			return
		}
		defer reader.decoder.Close()
		s := scanner{bucket: bucket, filter: filter, reader: reader, yield: yield, over: map[string]bool{}}
		if err := s.clusters(ctx); err != nil && !errors.Is(err, errEnough) {
			yield(nil, err)
		}
	}
}

// scanner is one run of Scan. Its methods return errEnough when the consumer
// wants no more.
type scanner struct {
	bucket Bucket
	filter Filter
	reader *segmentReader
	yield  func(*Event, error) bool
	over   map[string]bool // streams that are past filter.To
}

// slack is how far apart the numbers and the times of records may order them.
const slack = time.Hour

func (s *scanner) clusters(ctx context.Context) error {
	ignore := func(string) {}
	clusters, err := layer(ctx, s.bucket, journalPrefix, "cluster=", time.Time{}, ignore)
	if err != nil {
		return err
	}
	for _, cluster := range clusters {
		if !matches(s.filter.Cluster, cluster) {
			continue
		}
		prefix := journalPrefix + "cluster=" + cluster + "/"
		days, err := layer(ctx, s.bucket, prefix, "dt=", time.Time{}, ignore)
		if err != nil {
			return err
		}
		for _, day := range days {
			if !(period{from: s.filter.From}).includes(day) {
				continue
			}
			streams, err := layer(ctx, s.bucket, prefix+"dt="+day+"/", "", time.Time{}, ignore)
			if err != nil {
				return err
			}
			for _, stream := range streams {
				if err := s.stream(ctx, prefix+"dt="+day+"/"+stream+"/", stream); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (s *scanner) stream(ctx context.Context, prefix, stream string) error {
	if start, err := ulid.ParseStrict(streamStart(stream)); err == nil && !s.filter.To.IsZero() && start.Timestamp().After(s.filter.To.Add(slack)) {
		return nil
	}
	for versions, err := range objects(ctx, s.bucket, prefix, time.Time{}) {
		if err != nil {
			return err
		}
		if s.over[stream] {
			return nil
		}
		first, ok := oldest(versions)
		if !ok || !strings.HasSuffix(first.Key, segmentSuffix) {
			continue
		}
		if err := s.segment(ctx, first, stream); err != nil {
			return err
		}
	}
	return nil
}

func (s *scanner) segment(ctx context.Context, version Version, stream string) error {
	content, err := s.bucket.Get(ctx, version.Key, version.ID)
	if err != nil {
		return err
	}
	defer content.Close()
	_, err = s.reader.lines(content, maxSegment, func(line []byte) error {
		if s.filter.To.IsZero() && !bytes.Contains(line, []byte(s.filter.AuditID)) {
			return nil // decoding is what takes the time
		}
		event, err := decodeEvent(line)
		if err != nil {
			return err
		}
		if !s.filter.To.IsZero() && event.StageTimestamp.After(s.filter.To.Add(slack)) {
			s.over[stream] = true
		}
		if s.filter.Match(event) && !s.yield(event, nil) {
			return errEnough
		}
		return nil
	})
	if err != nil && !errors.Is(err, errEnough) {
		return fmt.Errorf("reading %s: %w; `taskgate verify` tells what is wrong with it", version.Key, err)
	}
	return err
}
