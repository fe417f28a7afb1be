package recorder

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sync/errgroup"
)

// ErrNothingProven says that no manifest is signed under the trust bundles given,
// so that nothing can be said about the bucket.
var ErrNothingProven = errors.New("nothing is proven")

// VerifyConfig says what to believe and what to look at.
type VerifyConfig struct {
	// TrustBundles is where trust starts; must hold one at least. A bundle that
	// is archived in the bucket counts only if a manifest names it that verified
	// under one that already counts.
	TrustBundles []*x509bundle.Bundle
	// BrokerIDs are the only SPIFFE IDs whose signatures count; must hold one at
	// least.
	BrokerIDs []spiffeid.ID
	// Witnessed are manifests known from elsewhere (Stream and Manifest; see
	// Status.LastManifest). Each must be in the bucket.
	Witnessed []Link

	// Cluster restricts to one cluster; empty means all.
	Cluster string
	// From and To restrict to days (UTC) between them, both included. A stream
	// that begins before From is taken as it is found there.
	From, To time.Time
	// AgeLimit is the brokers' Config.AgeLimit. Default 10 minutes.
	AgeLimit time.Duration
	// Heartbeat is the brokers' Config.Heartbeat. Default 60 seconds.
	Heartbeat time.Duration
	// MinRetention is how long each object must be locked from when it was
	// stored. Zero accepts any.
	MinRetention time.Duration
	// Parallel is the number of requests at once. Default 16.
	Parallel int
	// Progress, if not nil, is called now and then from several goroutines.
	Progress func(Progress)
}

// Progress is how far Verify is.
type Progress struct {
	Cluster, Day, Stream string
}

// maxReaders bounds the memory of Verify: a hostile segment may make each reader
// take a window of 8 MiB twice.
const maxReaders = 8

// verifier is one run of Verify.
type verifier struct {
	VerifyConfig
	bucket  Bucket
	cutoff  time.Time // zero for a copy
	period  period
	trust   *trust
	report  *Report
	streams map[string]*streamState // by cluster/stream
	heads   map[string]bool         // hashes of Witnessed that were found
	readers chan *segmentReader

	recordings *recordings
}

// Verify proves, from the bucket alone, that the records in it are those the
// brokers signed, all of them, unchanged and locked. It looks at every version
// of every object under v1/.
//
// An error says that it could not check; what it found to be broken is in
// [Report.Findings]. Objects stored after Verify began are left for the next
// run. Time is linear in the bucket; memory does not depend on it, apart from a
// few hundred bytes per stream, and of recorded streams about 50 bytes for each
// and 200 for each chunk of those whose end was not seen yet.
func Verify(ctx context.Context, bucket Bucket, config VerifyConfig) (*Report, error) {
	v, err := newVerifier(ctx, bucket, config)
	if err != nil {
		return nil, err
	}
	for _, step := range []func(context.Context) error{v.clusters, v.finishStreams, v.finishRecordings, v.strayChunks, v.bundles, v.others} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	if v.report.Manifests == 0 {
		reason := "there are no manifests"
		if len(v.report.Findings) > 0 {
			reason = v.report.Findings[0].String()
		}
		return nil, fmt.Errorf("%w: no manifest is signed by a broker under the trust bundle given; give the bundle that was in force at the beginning: %s", ErrNothingProven, reason)
	}
	v.report.sort()
	return v.report, nil
}

func newVerifier(ctx context.Context, bucket Bucket, config VerifyConfig) (*verifier, error) {
	if len(config.TrustBundles) == 0 || len(config.BrokerIDs) == 0 {
		return nil, fmt.Errorf("%w: a trust bundle and the SPIFFE ID of a broker must be given", ErrNothingProven)
	}
	config.AgeLimit = cmp.Or(config.AgeLimit, defaultAgeLimit)
	config.Heartbeat = cmp.Or(config.Heartbeat, defaultHeartbeat)
	config.Parallel = cmp.Or(config.Parallel, 16)
	cutoff, err := bucket.Time(ctx)
	if err != nil {
		return nil, fmt.Errorf("asking the store for its time: %w", err)
	}
	v := &verifier{
		VerifyConfig: config, bucket: bucket, cutoff: cutoff, period: period{config.From, config.To},
		trust: newTrust(config.TrustBundles, config.BrokerIDs), report: &Report{},
		streams: map[string]*streamState{}, heads: map[string]bool{}, recordings: newRecordings(),
		readers: make(chan *segmentReader, min(config.Parallel, maxReaders)),
	}
	if cutoff.IsZero() {
		v.report.notChecked("server times")
		v.report.notChecked("versions")
	}
	for range cap(v.readers) {
		reader, err := newSegmentReader()
		if err != nil {
			return nil, err
		}
		v.readers <- reader
	}
	return v, nil
}

func (v *verifier) stray(key string) {
	v.report.find(Finding{Reason: UnknownObject, Key: key, Detail: "nothing of a broker's is named like this"})
}

// clusters walks the journal and the manifests together: clusters, then days in
// their order, so that a bundle is known before what is signed under it.
func (v *verifier) clusters(ctx context.Context) error {
	journal, err := layer(ctx, v.bucket, journalPrefix, "cluster=", v.cutoff, v.stray)
	if err != nil {
		return err
	}
	manifests, err := layer(ctx, v.bucket, manifestPrefix, "cluster=", v.cutoff, v.stray)
	if err != nil {
		return err
	}
	for _, cluster := range union(journal, manifests) {
		if v.Cluster != "" && cluster != v.Cluster {
			continue
		}
		journal, err := layer(ctx, v.bucket, journalPrefix+"cluster="+cluster+"/", "dt=", v.cutoff, v.stray)
		if err != nil {
			return err
		}
		manifests, err := layer(ctx, v.bucket, manifestPrefix+"cluster="+cluster+"/", "dt=", v.cutoff, v.stray)
		if err != nil {
			return err
		}
		for _, day := range union(journal, manifests) {
			if v.period.includes(day) {
				if err := v.day(ctx, cluster, day); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// day walks the streams of one day in the order in which they began.
func (v *verifier) day(ctx context.Context, cluster, day string) error {
	under := "cluster=" + cluster + "/dt=" + day + "/"
	journal, err := layer(ctx, v.bucket, journalPrefix+under, "", v.cutoff, v.stray)
	if err != nil {
		return err
	}
	manifests, err := layer(ctx, v.bucket, manifestPrefix+under, "", v.cutoff, v.stray)
	if err != nil {
		return err
	}
	streams := union(journal, manifests)
	slices.SortStableFunc(streams, func(a, b string) int { return strings.Compare(streamStart(a), streamStart(b)) })
	for _, stream := range streams {
		if v.Progress != nil {
			v.Progress(Progress{Cluster: cluster, Day: day, Stream: stream})
		}
		err := v.streamDay(ctx, cluster, day, stream)
		if err == nil {
			err = v.checkRecordings(ctx, v.recordings.whole())
		}
		if err != nil {
			return fmt.Errorf("verifying %s/%s of %s: %w", cluster, stream, day, err)
		}
	}
	return nil
}

// finishStreams judges the ends of all streams.
func (v *verifier) finishStreams(context.Context) error {
	for _, key := range union(keysOf(v.streams)) {
		s := v.streams[key]
		v.finishStream(s)
		if s.proven {
			v.report.Streams = append(v.report.Streams, StreamReport{
				Cluster: s.cluster, Stream: s.name, Last: s.last, Time: s.time, Number: s.number - 1,
				Manifest: s.hash, End: cmp.Or(s.end, "open"),
			})
		}
	}
	for _, witnessed := range v.Witnessed {
		if !v.heads[witnessed.Manifest] {
			v.report.find(Finding{Reason: Truncated, Stream: witnessed.Stream, Detail: "a manifest that was witnessed outside the bucket is not in it: " + witnessed.Manifest})
		}
	}
	return nil
}

func keysOf[T any](streams map[string]T) []string {
	keys := make([]string, 0, len(streams))
	for key := range streams {
		keys = append(keys, key)
	}
	return keys
}

// finishStream judges what is left of a stream when all days were seen. To end
// without a closing manifest is no proof of anything and is said as it is; so is
// a single segment that was stored and not yet signed for.
func (v *verifier) finishStream(s *streamState) {
	at := func(reason Reason, detail string) Finding {
		return Finding{Reason: reason, Cluster: s.cluster, Stream: s.name, Seq: s.last + 1, Detail: detail}
	}
	for i, key := range s.leftover {
		first, _ := numberIn(key, segmentSuffix, 20)
		if s.proven && s.end == "" && i == 0 && len(s.leftover) == 1 && first == s.last+1 {
			finding := at(Unproven, "a segment is stored and not signed for yet")
			finding.Key = key
			v.report.note(finding)
			continue
		}
		finding := at(UnknownObject, "no verified manifest names it")
		finding.Key, finding.Seq = key, first
		v.report.find(finding)
	}
	if !s.proven || s.end != "" {
		return
	}
	v.report.note(at(StreamOpen, fmt.Sprintf("no proof after record %d at %s", s.last, s.time.UTC().Format(time.RFC3339))))
	if silence := v.cutoff.Sub(s.time); !v.cutoff.IsZero() && v.period.to.IsZero() && silence > 2*v.Heartbeat {
		v.report.note(at(HeartbeatMissing, fmt.Sprintf("silent for %s: the broker is down, or what it stored is withheld", silence.Round(time.Second))))
	}
}

// bundles checks the archived trust bundles: each must be what its name says.
func (v *verifier) bundles(ctx context.Context) error {
	for versions, err := range objects(ctx, v.bucket, trustPrefix, v.cutoff) {
		if err != nil {
			return err
		}
		key := versions[0].Key
		hash, found := strings.CutSuffix(strings.TrimPrefix(key, trustPrefix), trustSuffix)
		first, ok := v.single(versions)
		switch {
		case !found || !isHash(hash):
			v.stray(key)
			continue
		case !ok:
			continue // said already, and missed if a manifest names it
		}
		if !v.trust.counted[hash] { // the others were read when they were named
			data, err := readVersion(ctx, v.bucket, first, maxBundle)
			if err != nil {
				return err
			}
			if hashOf(data) != hash {
				v.report.find(Finding{Reason: HashMismatch, Key: key, Detail: "its content is not what its name says"})
			}
			v.report.note(Finding{Reason: Unreferenced, Key: key, Detail: "no verified manifest names this trust bundle"})
		}
		if err := v.checkLock(ctx, first, Finding{}); err != nil {
			return err
		}
	}
	return nil
}

// others reports what lies in v1/ beside the known folders. Canaries hold
// nothing.
func (v *verifier) others(ctx context.Context) error {
	known := []string{journalPrefix, manifestPrefix, streamPrefix, trustPrefix, canaryPrefix}
	for versions, err := range objects(ctx, v.bucket, "v1/", v.cutoff) {
		if err != nil {
			return err
		}
		if !slices.Contains(known, versions[0].Key) {
			v.stray(versions[0].Key)
		}
	}
	return nil
}

// single returns the version of an object that counts, the oldest, and reports
// markers and versions there must not be.
func (v *verifier) single(versions []Version) (Version, bool) {
	first, ok := oldest(versions)
	for _, version := range versions {
		switch {
		case version.Marker:
			v.report.note(Finding{Reason: DeleteMarker, Key: version.Key, Detail: "hidden by a delete marker; its content is checked all the same"})
		case version != first:
			v.report.find(Finding{Reason: ExtraVersion, Key: version.Key, Detail: "written again, as version " + version.ID})
		}
	}
	return first, ok
}

// pick returns the version that was signed and reports others, and that it is not
// there. If the broker did not learn its version (""), the first one must be it.
// about says where all that belongs.
func (v *verifier) pick(versions []Version, signed string, about Finding) (Version, bool) {
	say := func(reason Reason, detail string) Finding {
		about.Reason, about.Detail = reason, detail
		return about
	}
	chosen, ok := oldest(versions)
	for _, version := range versions {
		if signed != "" && version.ID == signed && !version.Marker {
			chosen, ok = version, true
		}
	}
	for _, version := range versions {
		if version.Marker {
			v.report.note(say(DeleteMarker, "hidden by a delete marker; its content is checked all the same"))
		} else if version != chosen {
			v.report.find(say(ExtraVersion, "written again, as version "+version.ID))
		}
	}
	if !ok || signed != "" && chosen.ID != "" && chosen.ID != signed {
		v.report.find(say(MissingObject, "the version that was signed is not there"))
		return chosen, false
	}
	return chosen, true
}

// checkLock reports a version that is not locked as it must be; about names
// where it belongs.
func (v *verifier) checkLock(ctx context.Context, version Version, about Finding) error {
	lock, err := v.bucket.Lock(ctx, version.Key, version.ID)
	if errors.Is(err, ErrNotKept) {
		v.report.notChecked("locks")
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading the lock of %s: %w", version.Key, err)
	}
	about.Reason, about.Key = LockMissing, version.Key
	switch {
	case lock.Mode != compliance:
		about.Detail = fmt.Sprintf("its lock is %q", lock.Mode)
	case lock.Until.Sub(version.Modified) < v.MinRetention:
		about.Detail = "it is locked only until " + lock.Until.UTC().Format(time.RFC3339)
	default:
		return nil
	}
	v.report.find(about)
	return nil
}

// parallel makes a group for requests that may run at once.
func (v *verifier) parallel(ctx context.Context) (*errgroup.Group, context.Context) {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(v.Parallel)
	return group, ctx
}
