package recorder

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
)

// recordings is what the verified records say about recorded streams. Segments are
// checked side by side, so their facts come in any order.
type recordings struct {
	mu      sync.Mutex
	open    map[string]*recording // not checked yet, by cluster and audit ID
	checked map[[16]byte]struct{} // hashes of folders that were
}

// recording is what is known of one recorded stream.
type recording struct {
	cluster, journal, auditID string
	chunks                    []chunkFact
	end                       *endFact
}

func newRecordings() *recordings {
	return &recordings{open: map[string]*recording{}, checked: map[[16]byte]struct{}{}}
}

// take keeps the facts of a segment that was found to be what was signed.
func (r *recordings) take(s *streamState, facts segmentFacts) {
	r.mu.Lock()
	defer r.mu.Unlock()
	of := func(auditID string) *recording {
		key := s.cluster + "/" + auditID
		if r.open[key] == nil {
			r.open[key] = &recording{cluster: s.cluster, journal: s.name, auditID: auditID}
		}
		return r.open[key]
	}
	for _, c := range facts.chunks {
		rec := of(c.auditID)
		c.auditID = rec.auditID
		rec.chunks = append(rec.chunks, c)
	}
	for _, end := range facts.ends {
		of(end.auditID).end = &end
	}
}

// whole takes out the recordings of which nothing more is to come.
func (r *recordings) whole() []*recording {
	return r.out(func(rec *recording) bool {
		return rec.end != nil && (rec.end.totals == nil || rec.named().frames >= rec.end.totals.frames)
	})
}

// rest takes out all that are left.
func (r *recordings) rest() []*recording { return r.out(func(*recording) bool { return true }) }

func (r *recordings) out(wanted func(*recording) bool) []*recording {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []*recording
	for key, rec := range r.open {
		if wanted(rec) {
			delete(r.open, key)
			if len(rec.chunks) > 0 || rec.end.totals != nil { // otherwise it is a call like any other
				out = append(out, rec)
			}
		}
	}
	return out
}

func folderHash(folder string) [16]byte {
	sum := sha256.Sum256([]byte(folder))
	return [16]byte(sum[:])
}

func (r *recordings) check(folder string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.checked[folderHash(folder)] = struct{}{}
}

func (r *recordings) isChecked(folder string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, found := r.checked[folderHash(folder)]
	return found
}

// named is what the records of its chunks say about the whole recording.
func (rec *recording) named() (sum struct{ frames, bytes uint64 }) {
	for _, c := range rec.chunks {
		sum.frames += c.frames
		sum.bytes += c.bytes
	}
	return sum
}

func (rec *recording) finding(reason Reason, seq uint64, key, detail string) Finding {
	return Finding{Reason: reason, Cluster: rec.cluster, Stream: rec.journal, Seq: seq, Key: key, Detail: detail}
}

// checkRecordings checks recordings side by side.
func (v *verifier) checkRecordings(ctx context.Context, list []*recording) error {
	group, ctx := v.parallel(ctx)
	for _, rec := range list {
		group.Go(func() error {
			if err := v.checkRecording(ctx, rec); err != nil {
				return fmt.Errorf("verifying the stream of %s: %w", rec.auditID, err)
			}
			return nil
		})
	}
	return group.Wait()
}

// finishRecordings checks the recordings of which more may have been to come.
func (v *verifier) finishRecordings(ctx context.Context) error {
	return v.checkRecordings(ctx, v.recordings.rest())
}

func (v *verifier) checkRecording(ctx context.Context, rec *recording) error {
	v.report.countRecording()
	slices.SortFunc(rec.chunks, func(a, b chunkFact) int { return cmp.Compare(a.number, b.number) })
	next, partial := uint64(1), false
	if !v.period.from.IsZero() && (len(rec.chunks) == 0 || rec.chunks[0].number > 1) {
		partial = true // the beginning was not asked for
		if len(rec.chunks) > 0 {
			next = rec.chunks[0].number
		}
	}
	for _, c := range rec.chunks {
		if c.number != next {
			v.report.find(rec.finding(SequenceGap, c.seq, "", fmt.Sprintf("it names chunk %d of the stream of %s, and chunk %d is to be named", c.number, rec.auditID, next)))
		}
		next = c.number + 1
	}
	var found totals
	sound := true
	for rest := rec.chunks; len(rest) > 0; {
		n := 1
		for n < len(rest) && rest[n].day == rest[0].day { // days never go back
			n++
		}
		ok, err := v.checkFolder(ctx, rec, rest[:n], &found)
		if err != nil {
			return err
		}
		sound, rest = sound && ok, rest[n:]
	}
	if sound && !partial {
		v.checkEnd(rec, &found)
	}
	return nil
}

// checkEnd compares what was found with what the closing record says.
func (v *verifier) checkEnd(rec *recording, found *totals) {
	s := v.streams[rec.cluster+"/"+rec.journal]
	switch {
	case rec.end == nil && s.end != "" && v.period.to.IsZero():
		last := rec.chunks[len(rec.chunks)-1]
		v.report.find(rec.finding(TotalsDiffer, last.seq, "", fmt.Sprintf("no record says how the stream of %s ended", rec.auditID)))
	case rec.end == nil || rec.end.totals == nil || *rec.end.totals == *found:
	case s.end == "" && found.frames < rec.end.totals.frames && s.time.Sub(rec.end.time) <= v.AgeLimit:
		v.report.note(rec.finding(Unproven, rec.end.seq, "", fmt.Sprintf("the last frames of %s are on their way", rec.auditID)))
	default:
		v.report.find(rec.finding(TotalsDiffer, rec.end.seq, "", fmt.Sprintf("the stream of %s has %d frames of %d bytes by its closing record, and %d of %d in its chunks",
			rec.auditID, rec.end.totals.frames, rec.end.totals.sum(), found.frames, found.sum())))
	}
}

// checkFolder checks the chunks of one day against the listing, and that there are
// no others. It adds up what they hold; false says that one is not what it must be.
func (v *verifier) checkFolder(ctx context.Context, rec *recording, named []chunkFact, found *totals) (sound bool, err error) {
	folder := chunkFolder(rec.cluster, named[0].day, rec.auditID)
	v.recordings.check(folder)
	sound = true
	missing := func(before uint64) {
		for len(named) > 0 && (before == 0 || named[0].number < before) {
			sound = false
			v.report.find(rec.finding(MissingObject, named[0].seq, fmt.Sprintf("%s%06d%s", folder, named[0].number, segmentSuffix), "a chunk of a stream is not there"))
			named = named[1:]
		}
	}
	for versions, err := range objects(ctx, v.bucket, folder, v.cutoff) {
		if err != nil {
			return false, err
		}
		number, ok := numberIn(versions[0].Key, segmentSuffix, 6)
		if ok {
			missing(number)
		}
		if !ok || len(named) == 0 || named[0].number != number {
			v.unnamed(rec.cluster, versions, rec.end != nil)
			continue
		}
		ok, err := v.checkChunk(ctx, rec, versions, &named[0], found)
		if err != nil {
			return false, err
		}
		sound = sound && ok
		for c := named[0]; len(named) > 0 && named[0].number == c.number; { // named twice was said already
			named = named[1:]
		}
	}
	missing(0)
	return sound, nil
}

// checkChunk reads the version of a chunk that was named.
func (v *verifier) checkChunk(ctx context.Context, rec *recording, versions []Version, c *chunkFact, found *totals) (sound bool, err error) {
	about := rec.finding("", c.seq, versions[0].Key, "")
	chosen, ok := v.pick(versions, c.version, about)
	if !ok {
		return false, nil
	}
	if err := v.checkLock(ctx, chosen, about); err != nil {
		return false, err
	}
	content, err := v.bucket.Get(ctx, chosen.Key, chosen.ID)
	if errors.Is(err, ErrNotFound) {
		v.report.find(rec.finding(MissingObject, c.seq, chosen.Key, "a chunk of a stream is not there"))
		return false, nil
	}
	if err != nil {
		return false, err
	}
	reader := <-v.readers
	held, bad, err := reader.checkChunk(content, c)
	v.readers <- reader
	if err = errors.Join(err, content.Close()); err != nil {
		return false, fmt.Errorf("reading %s: %w", chosen.Key, err)
	}
	if bad != nil {
		v.report.find(rec.finding(bad.reason, c.seq, chosen.Key, strings.ToValidUTF8(bad.detail, "?")))
		return false, nil
	}
	v.report.countChunk(held)
	found.frames += held.frames
	for channel, bytes := range held.bytes {
		found.bytes[channel] += bytes
	}
	return true, nil
}

// unnamed reports an object among the chunks that no verified record names. While
// a broker is at work its record may be on its way; settled says that it cannot be.
func (v *verifier) unnamed(cluster string, versions []Version, settled bool) {
	version, content := oldest(versions)
	if !content {
		return // delete markers over nothing
	}
	if !settled && v.atWork(cluster, version) {
		v.report.note(Finding{Reason: Unproven, Cluster: cluster, Key: version.Key, Detail: "a chunk of a stream is stored and not named by a record yet"})
		return
	}
	v.report.find(Finding{Reason: UnknownObject, Cluster: cluster, Key: version.Key, Detail: "no verified record names it"})
}

// atWork tells whether the record of an object may still come.
func (v *verifier) atWork(cluster string, version Version) bool {
	if !v.period.to.IsZero() && strings.Contains(version.Key, "/dt="+dayOf(v.period.to)+"/") {
		return true // or lie behind what was asked for
	}
	for _, s := range v.streams {
		if s.cluster == cluster && s.proven && s.end == "" {
			return v.cutoff.IsZero() || v.cutoff.Sub(version.Modified) <= v.AgeLimit
		}
	}
	return false
}

// strayChunks looks for chunks of streams no verified record knows.
func (v *verifier) strayChunks(ctx context.Context) error {
	clusters, err := layer(ctx, v.bucket, streamPrefix, "cluster=", v.cutoff, v.stray)
	if err != nil {
		return err
	}
	for _, cluster := range clusters {
		if v.Cluster != "" && cluster != v.Cluster {
			continue
		}
		days, err := layer(ctx, v.bucket, streamPrefix+"cluster="+cluster+"/", "dt=", v.cutoff, v.stray)
		if err != nil {
			return err
		}
		for _, day := range days {
			if !v.period.includes(day) {
				continue
			}
			if err := v.strayDay(ctx, cluster, day); err != nil {
				return err
			}
		}
	}
	return nil
}

func (v *verifier) strayDay(ctx context.Context, cluster, day string) error {
	streams, err := layer(ctx, v.bucket, streamPrefix+"cluster="+cluster+"/dt="+day+"/", "", v.cutoff, v.stray)
	if err != nil {
		return err
	}
	for _, auditID := range streams {
		folder := chunkFolder(cluster, day, auditID)
		if v.recordings.isChecked(folder) {
			continue
		}
		for versions, err := range objects(ctx, v.bucket, folder, v.cutoff) {
			if err != nil {
				return err
			}
			v.unnamed(cluster, versions, false)
		}
	}
	return nil
}

// maxChunk bounds what a reader takes of one chunk, compressed or not.
const maxChunk = 2 * maxSegment

// limit is how many bytes the lines of a chunk can have.
func (c *chunkFact) limit() int64 {
	return int64(min(maxChunk, c.bytes/3*4+c.frames*(maxLine-MaxFrame/3*4)))
}

// checkChunk reads a chunk and compares it with what its record says. The error
// says that it could not be read to the end; a flaw that it is not what it must be.
func (s *segmentReader) checkChunk(content io.Reader, c *chunkFact) (totals, *flaw, error) {
	sum := sha256.New()
	source := &trackingReader{from: io.TeeReader(io.LimitReader(content, maxChunk), sum)}
	var held totals
	var malformed error
	_, err := s.lines(source, c.limit(), func(line []byte) error {
		f, err := s.line.read(line)
		if err != nil {
			malformed = err
			return err
		}
		held.add(f.Channel, len(f.Data))
		return nil
	})
	// The decompressor stops at what it cannot read; the hash wants the rest too.
	_, drained := io.Copy(io.Discard, source)
	if source.err != nil || drained != nil {
		return held, nil, errors.Join(source.err, drained)
	}
	at := func(reason Reason, detail string) *flaw { return &flaw{reason, c.seq, detail} }
	switch {
	case hex.EncodeToString(sum.Sum(nil)) != hex.EncodeToString(c.sha256[:]):
		return held, at(HashMismatch, "its content is not what was named"), nil
	case malformed != nil:
		return held, at(NotCanonical, malformed.Error()), nil
	case errors.Is(err, errTooLarge):
		return held, at(TooLarge, "it has more bytes than its frames can have"), nil
	case err != nil:
		return held, at(Malformed, err.Error()), nil
	case held.frames != c.frames || held.sum() != c.bytes:
		return held, at(TotalsDiffer, fmt.Sprintf("it holds %d frames of %d bytes, and by its record %d of %d", held.frames, held.sum(), c.frames, c.bytes)), nil
	}
	return held, nil, nil
}
