package recorder

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// streamState is how far one stream is proven, kept from day to day.
type streamState struct {
	cluster, name string
	proven        bool   // a manifest of it has verified
	number        uint64 // of the next manifest
	hash          string // of the last verified manifest
	last          uint64 // number of the last record that is signed for
	time          time.Time
	end           string
	// broken is set after a finding in the chain. The next manifest that verifies
	// by itself is then believed about where it stands: its place cannot be
	// proven, and that has been said.
	broken   bool
	bad      Reason   // of the manifests just before, so that a reason is said once
	leftover []string // keys of segments no manifest has named
}

// finding makes a finding about the first record that is not proven.
func (s *streamState) finding(reason Reason, key, detail string) Finding {
	return Finding{Reason: reason, Cluster: s.cluster, Stream: s.name, Seq: s.last + 1, Key: key, Detail: detail}
}

// fetched is one manifest's object with what was read of it.
type fetched struct {
	versions []Version
	version  Version
	present  bool
	data     []byte
	err      error
}

// streamDay checks one stream's manifests of one day in their order, each with
// the segment it names. Both listings ascend, so they are walked side by side.
func (v *verifier) streamDay(ctx context.Context, cluster, day, stream string) error {
	group, ctx := v.parallel(ctx)
	key := cluster + "/" + stream
	if v.streams[key] == nil {
		v.streams[key] = &streamState{cluster: cluster, name: stream, number: 1}
	}
	d := &dayWalk{verifier: v, state: v.streams[key], day: day, group: group}
	under := "cluster=" + cluster + "/dt=" + day + "/" + stream + "/"
	var stop func()
	d.next, stop = iter.Pull2(objects(ctx, v.bucket, journalPrefix+under, v.cutoff))
	defer stop()
	err := d.advance()
	for f := range v.prefetch(ctx, manifestPrefix+under) {
		if err == nil {
			err = f.err
		}
		if err == nil {
			err = d.manifest(ctx, f)
		}
		if err != nil {
			break
		}
	}
	for err == nil && d.segment != nil {
		d.leave()
		err = d.advance()
	}
	// The group's error is the first one of a request; the loop may only have seen
	// the cancellation that followed it.
	if failed := group.Wait(); failed != nil {
		return failed
	}
	return err
}

// prefetch reads manifests ahead, several at once, and yields them in order.
func (v *verifier) prefetch(ctx context.Context, prefix string) iter.Seq[fetched] {
	return func(yield func(fetched) bool) {
		ctx, cancel := context.WithCancel(ctx)
		pipeline := make(chan chan fetched, v.Parallel)
		done := make(chan struct{})
		defer func() { cancel(); <-done }()
		go func() {
			defer close(done)
			defer close(pipeline)
			var readers errgroup.Group
			defer func() { _ = readers.Wait() }() // errors travel in fetched
			readers.SetLimit(v.Parallel)
			for versions, err := range objects(ctx, v.bucket, prefix, v.cutoff) {
				result := make(chan fetched, 1)
				select {
				case pipeline <- result:
				case <-ctx.Done():
					return
				}
				if err != nil {
					result <- fetched{err: err}
					return
				}
				readers.Go(func() error {
					result <- v.fetch(ctx, versions)
					return nil
				})
			}
		}()
		for result := range pipeline {
			if !yield(<-result) {
				return
			}
		}
	}
}

// fetch reads the version of a manifest that counts.
func (v *verifier) fetch(ctx context.Context, versions []Version) fetched {
	f := fetched{versions: versions}
	f.version, f.present = oldest(versions)
	if f.present && !isFolder(f.version.Key) {
		f.data, f.err = readVersion(ctx, v.bucket, f.version, maxManifest)
	}
	return f
}

// dayWalk is the walk through one stream's day.
type dayWalk struct {
	*verifier
	state   *streamState
	day     string
	group   *errgroup.Group
	next    func() ([]Version, error, bool)
	segment []Version // next in the listing of the journal; nil at its end
}

func (d *dayWalk) advance() error {
	versions, err, ok := d.next()
	if !ok {
		d.segment = nil
		return nil
	}
	d.segment = versions
	return err
}

// leave puts a segment no manifest has named aside.
func (d *dayWalk) leave() {
	key := d.segment[0].Key
	if _, ok := numberIn(key, segmentSuffix, 20); !ok {
		d.stray(key)
		return
	}
	if _, content := oldest(d.segment); !content {
		return // delete markers over nothing
	}
	if len(d.state.leftover) < maxFindings {
		d.state.leftover = append(d.state.leftover, key)
	}
}

// manifest checks one manifest and, if it holds, starts the check of its segment.
func (d *dayWalk) manifest(ctx context.Context, f fetched) error {
	s, key := d.state, f.versions[0].Key
	number, ok := numberIn(key, manifestSuffix, 12)
	if !ok {
		d.stray(key)
		return nil
	}
	if !f.present {
		d.report.note(s.finding(DeleteMarker, key, "a delete marker, and no content under it"))
		return nil // the gap shows at the next number
	}
	if err := d.versions(ctx, f); err != nil {
		return err
	}
	m, bad := d.signed(f)
	if bad != nil {
		if s.bad != bad.reason {
			d.report.find(s.finding(bad.reason, key, bad.detail))
		}
		s.bad, s.broken, s.number = bad.reason, true, number+1
		return nil
	}
	s.bad = ""
	for _, bad := range d.continues(m, number) {
		d.report.find(s.finding(bad.reason, key, bad.detail))
	}
	bad, err := d.trust.follow(ctx, d.bucket, m)
	if err != nil {
		return err
	}
	if bad != nil {
		d.report.find(s.finding(bad.reason, trustKey(m.Trust), bad.detail))
	}
	d.report.Manifests++
	d.witness(m.hash)
	s.proven, s.broken = true, false
	s.number, s.hash, s.time, s.end = number+1, m.hash, m.Time.Time, m.End
	if m.Kind == KindSegment {
		if err := d.named(ctx, m); err != nil {
			return err
		}
	}
	s.last = m.Last
	about := s.finding("", "", "")
	d.group.Go(func() error { return d.checkLock(ctx, f.version, about) })
	return nil
}

func (v *verifier) witness(hash string) {
	for _, witnessed := range v.Witnessed {
		if witnessed.Manifest == hash {
			v.heads[hash] = true
		}
	}
}

// versions reports other versions of a manifest: a second one that is validly
// signed is a fork, anything else is only there.
func (d *dayWalk) versions(ctx context.Context, f fetched) error {
	for _, version := range f.versions {
		switch {
		case version == f.version:
		case version.Marker:
			d.report.note(d.state.finding(DeleteMarker, version.Key, "hidden by a delete marker; its content is checked all the same"))
		default:
			data, err := readVersion(ctx, d.bucket, version, maxManifest)
			if err != nil {
				return err
			}
			reason, detail := ExtraVersion, "written again, as version "+version.ID
			if _, bad := d.signed(fetched{version: version, data: data}); bad == nil && hashOf(data) != hashOf(f.data) {
				reason, detail = Fork, "two brokers signed this number"
			}
			d.report.find(d.state.finding(reason, version.Key, detail))
		}
	}
	return nil
}

// signed takes a manifest apart and checks who signed it, when and where for.
func (d *dayWalk) signed(f fetched) (*signedManifest, *flaw) {
	m, err := parseManifest(f.data)
	if err != nil {
		return nil, &flaw{reason: Malformed, detail: err.Error()}
	}
	if bad := d.trust.verify(m, f.version.Modified, d.AgeLimit+clockTolerance); bad != nil {
		return nil, bad
	}
	if m.Cluster != d.state.cluster || m.Stream != d.state.name || manifestKey(m.Cluster, d.day, m.Stream, m.Number) != f.version.Key {
		return nil, &flaw{reason: Misplaced, detail: fmt.Sprintf("it is manifest %d of %s/%s", m.Number, m.Cluster, m.Stream)}
	}
	if detail := m.contradiction(d.day); detail != "" {
		return nil, &flaw{reason: Malformed, detail: detail}
	}
	return m, nil
}

// contradiction says what a broker would never sign, "" if there is nothing.
func (m *Manifest) contradiction(day string) string {
	segment := m.Kind == KindSegment
	switch {
	case !slices.Contains([]Kind{KindOpen, KindSegment, KindHeartbeat, KindClose}, m.Kind):
		return fmt.Sprintf("unknown kind %q", m.Kind)
	case (m.Kind == KindOpen) != (m.Number == 1) || (m.Kind == KindOpen) != (m.Follows != nil) || (m.Kind == KindOpen) != (m.Previous == ""):
		return "only the first manifest opens a stream, names the stream before and no manifest before it"
	case (m.Kind == KindClose) != (m.End == endClosed || m.End == endRecovered):
		return "only a closing manifest says how the stream ended"
	case segment != (m.Count > 0) || segment != (m.Key != ""):
		return "only a segment's manifest names a segment"
	case segment && (m.First == 0 || m.Last-m.First+1 != m.Count || m.Last < m.First || m.Key != segmentKey(m.Cluster, day, m.Stream, m.First)):
		return "its numbers and its key do not fit together"
	case segment && (m.Size <= 0 || m.RawSize <= 0 || m.RawSize > maxSegment || m.Size > maxSegment):
		return "the size of its segment is not possible"
	}
	return ""
}

// continues compares a verified manifest with the one before it. After a break
// that was reported it only reports what is new.
func (d *dayWalk) continues(m *signedManifest, number uint64) []flaw {
	s := d.state
	var bad []flaw
	if !s.proven && !s.broken && number > 1 && !d.period.from.IsZero() {
		s.number, s.broken = number, true // the beginning was not asked for
	}
	switch {
	case number != s.number:
		bad = append(bad, flaw{reason: MissingObject, detail: fmt.Sprintf("manifest %d is not there", s.number)})
	case s.broken:
	case number > 1 && m.Previous != s.hash && !slices.Contains(m.PreviousOr, s.hash):
		bad = append(bad, flaw{reason: ChainBroken, detail: "it does not name the manifest before it"})
	case s.end != "":
		bad = append(bad, flaw{reason: ChainBroken, detail: "the stream goes on after it was closed"})
	case m.Kind == KindSegment && m.First != s.last+1, m.Kind != KindSegment && m.Last != s.last:
		bad = append(bad, flaw{reason: SequenceGap, detail: fmt.Sprintf("it goes on with record %d", max(m.First, m.Last))})
	}
	if m.Follows != nil {
		if gap := d.follows(m.Follows); gap != nil {
			bad = append(bad, *gap)
		}
	}
	return bad
}

// follows checks that the stream an opening manifest names ended where it says.
func (d *dayWalk) follows(link *Link) *flaw {
	if link.Stream == unknownStream {
		return nil
	}
	before := d.streams[d.state.cluster+"/"+link.Stream]
	switch {
	case before == nil && !d.period.from.IsZero():
		return nil // it lies before what was asked for
	case before == nil || !before.proven:
		return &flaw{reason: Truncated, detail: "the broker's stream before, " + link.Stream + ", is not there"}
	case before.hash != link.Manifest && !slices.Contains(link.Or, before.hash):
		return &flaw{reason: Truncated, detail: fmt.Sprintf("the broker's stream before, %s, went on after record %d", link.Stream, before.last)}
	}
	return nil
}

// named finds the segment a manifest names in the listing of the journal.
func (d *dayWalk) named(ctx context.Context, m *signedManifest) error {
	for d.segment != nil && d.segment[0].Key < m.Key {
		d.leave()
		if err := d.advance(); err != nil {
			return err
		}
	}
	s := *d.state
	s.last = m.First - 1
	if d.segment == nil || d.segment[0].Key != m.Key {
		d.report.find(s.finding(MissingObject, m.Key, "a segment is not there"))
		return nil
	}
	versions := d.segment
	d.group.Go(func() error { return d.checkSegment(ctx, m, versions, &s) })
	return d.advance()
}

// checkSegment reads the version of a segment that was signed.
func (d *dayWalk) checkSegment(ctx context.Context, m *signedManifest, versions []Version, s *streamState) error {
	chosen, ok := d.pick(versions, m.Version, s.finding("", m.Key, ""))
	if !ok {
		return nil
	}
	if err := d.checkLock(ctx, chosen, s.finding("", "", "")); err != nil {
		return err
	}
	content, err := d.bucket.Get(ctx, chosen.Key, chosen.ID)
	if errors.Is(err, ErrNotFound) {
		d.report.find(s.finding(MissingObject, m.Key, "a segment is not there"))
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading %s: %w", m.Key, err)
	}
	reader := <-d.readers
	facts, bad, err := reader.check(content, &m.Manifest)
	d.readers <- reader
	if err = errors.Join(err, content.Close()); err != nil {
		return fmt.Errorf("reading %s: %w", m.Key, err)
	}
	if bad != nil {
		s.last = bad.seq - 1
		d.report.find(s.finding(bad.reason, m.Key, strings.ToValidUTF8(bad.detail, "?")))
		return nil
	}
	d.report.count(facts)
	d.recordings.take(s, facts)
	return nil
}
