package recorder_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/taskgate/taskgate/internal/recordertest"
	"github.com/taskgate/taskgate/recorder"
)

// evidence is a bucket with one closed stream of five segments of two records:
// 1, 3, 5, 7 and 9 are their first numbers, 2 to 6 their manifests.
type evidence struct {
	*fixture
	segments, manifests []string
}

func newEvidence(t *testing.T) *evidence {
	for {
		e := &evidence{fixture: newFixture(t)}
		e.config.SegmentEvery = 20 * time.Millisecond
		r := e.open()
		for range 5 {
			e.pair(r)
		}
		e.fixture.close(r)
		e.segments, e.manifests = e.store.Keys("v1/journal/"), e.store.Keys("v1/manifests/")
		e.proven(e.store, 10, "closed")
		if len(e.segments) == 5 { // otherwise a tick came between the two of a pair
			return e
		}
	}
}

// pair records two events that end up in one segment.
func (e *evidence) pair(r *recorder.Recorder) {
	e.Helper()
	before := r.Status().Sealed
	first, err := r.Append(recordertest.Call(fmt.Sprint("call-", before)))
	if err != nil {
		e.Fatal(err)
	}
	second, err := r.Append(recordertest.Outcome(recordertest.Call(fmt.Sprint("call-", before)), 200))
	if err := errors.Join(err, first.Wait(context.Background()), second.Wait(context.Background())); err != nil {
		e.Fatal(err)
	}
	e.sealed(r)
}

// TestTampering changes a proven bucket in every way there is. Each is found,
// with a reason of its own and the first record it puts in doubt.
func TestTampering(t *testing.T) {
	e := newEvidence(t)
	other := newEvidence(t)
	for _, test := range []struct {
		name   string
		change func(*recordertest.MemoryStore)
		reason recorder.Reason
		seq    uint64
	}{
		{"T167 segment deleted", func(m *recordertest.MemoryStore) { m.Remove(e.segments[2]) }, recorder.MissingObject, 5},
		{"T167 segments swapped", func(m *recordertest.MemoryStore) {
			third, fourth := m.Versions(e.segments[2])[0].Body, m.Versions(e.segments[3])[0].Body
			m.Replace(e.segments[2], func([]byte) []byte { return fourth })
			m.Replace(e.segments[3], func([]byte) []byte { return third })
		}, recorder.Misplaced, 5},
		{"T167 segment duplicated", func(m *recordertest.MemoryStore) {
			m.Add(strings.Replace(e.segments[2], "0005.", "0006.", 1), m.Versions(e.segments[2])[0].Body, time.Time{})
		}, recorder.UnknownObject, 6},
		{"T167 segment of another stream", func(m *recordertest.MemoryStore) {
			m.Replace(e.segments[2], func([]byte) []byte { return other.store.Versions(other.segments[2])[0].Body })
		}, recorder.HashMismatch, 5},
		{"manifest of another stream", func(m *recordertest.MemoryStore) {
			m.Replace(e.manifests[3], func([]byte) []byte { return other.store.Versions(other.manifests[3])[0].Body })
		}, recorder.UntrustedSigner, 5},
		{"manifest of another number", func(m *recordertest.MemoryStore) {
			m.Replace(e.manifests[3], func([]byte) []byte { return m.Body(e.manifests[2]) })
		}, recorder.Misplaced, 5},
		{"manifest deleted", func(m *recordertest.MemoryStore) { m.Remove(e.manifests[3]) }, recorder.MissingObject, 5},
		{"opening manifest deleted", func(m *recordertest.MemoryStore) { m.Remove(e.manifests[0]) }, recorder.MissingObject, 1},
		{"segment and manifest deleted", func(m *recordertest.MemoryStore) {
			m.Remove(e.manifests[3])
			m.Remove(e.segments[2])
		}, recorder.MissingObject, 5},
		{"T173 unlisted object in the journal", func(m *recordertest.MemoryStore) {
			m.Add(strings.Replace(e.segments[4], "0009.", "0011.", 1), []byte("theirs"), time.Time{})
		}, recorder.UnknownObject, 11},
		{"T207 unlisted object beside", func(m *recordertest.MemoryStore) { m.Add("v1/journal/x", nil, time.Time{}) }, recorder.UnknownObject, 0},
		{"unlisted folder", func(m *recordertest.MemoryStore) { m.Add("v1/more/x", nil, time.Time{}) }, recorder.UnknownObject, 0},
		{"unlisted stream", func(m *recordertest.MemoryStore) {
			m.Add("v1/journal/cluster=test/dt=2026-01-01/broker-9-X/00000000000000000001.jsonl.zst", []byte("x"), time.Time{})
		}, recorder.UnknownObject, 1},
		{"unlisted manifest", func(m *recordertest.MemoryStore) {
			m.Add(strings.Replace(e.manifests[0], "0001.", "0099.", 1), []byte("a.b.c"), time.Time{})
		}, recorder.Malformed, 11},
		{"unlisted bundle", func(m *recordertest.MemoryStore) { m.Add("v1/trust/x.json", []byte("{}"), time.Time{}) }, recorder.UnknownObject, 0},
		{"bundle changed", func(m *recordertest.MemoryStore) {
			m.Replace(m.Keys("v1/trust/")[0], func(b []byte) []byte { return append(b, ' ') })
		}, recorder.HashMismatch, 1},
		{"T174 second version of a segment", func(m *recordertest.MemoryStore) {
			m.Add(e.segments[2], []byte("theirs"), time.Time{})
		}, recorder.ExtraVersion, 5},
		{"second version of a manifest", func(m *recordertest.MemoryStore) {
			m.Add(e.manifests[3], []byte("theirs"), time.Time{})
		}, recorder.ExtraVersion, 5},
		{"segment without a lock", func(m *recordertest.MemoryStore) { m.SetLock(e.segments[2], recorder.Lock{}) }, recorder.LockMissing, 5},
		{"manifest under governance", func(m *recordertest.MemoryStore) {
			m.SetLock(e.manifests[3], recorder.Lock{Mode: "GOVERNANCE", Until: time.Now().Add(time.Hour)})
		}, recorder.LockMissing, 7},
		{"manifest stored too late", func(m *recordertest.MemoryStore) {
			m.SetModified(e.manifests[3], time.Now().Add(-16*time.Minute))
		}, recorder.SignatureTime, 5},
	} {
		t.Run(test.name, func(t *testing.T) {
			bucket := e.store.Clone(t)
			test.change(bucket)
			report := e.verify(bucket)
			if report.Proven() {
				t.Fatal("nothing was found")
			}
			if first := report.Findings[0]; first.Reason != test.reason || first.Seq != test.seq {
				t.Errorf("found %s %d first, want %s %d; all: %v", first.Reason, first.Seq, test.reason, test.seq, report.Findings)
			}
		})
	}
}

// TestBitFlips flips single bits all over the bucket (T166).
func TestBitFlips(t *testing.T) {
	e := newEvidence(t)
	flips := 300
	if testing.Short() {
		flips = 50
	}
	keys := append(append(e.store.Keys("v1/journal/"), e.store.Keys("v1/manifests/")...), e.store.Keys("v1/trust/")...)
	for range flips {
		bucket := e.store.Clone(t)
		key := keys[rand.IntN(len(keys))]
		at, bit := rand.IntN(len(bucket.Body(key))), byte(1)<<rand.IntN(8)
		bucket.Replace(key, func(data []byte) []byte { data[at] ^= bit; return data })
		report, err := recorder.Verify(context.Background(), bucket, verifyConfig(e.ca.Bundle()))
		if err != nil || report.Proven() {
			t.Fatalf("bit %#x at %d of %s: %v, nothing found", bit, at, key, err)
		}
		if first := report.Findings[0]; first.Seq == 0 {
			t.Errorf("bit %#x at %d of %s: %s names no record", bit, at, key, first)
		}
	}
}

// TestSignedNonsense has a broker's own key sign what a broker would not (T183).
func TestSignedNonsense(t *testing.T) {
	e := newEvidence(t)
	line := func(seq uint64) []byte {
		encoded, err := recorder.EncodeNumbered(recordertest.Call("a"), seq)
		if err != nil {
			t.Fatal(err)
		}
		return append(encoded, '\n')
	}
	good := append(line(5), line(6)...)
	for _, test := range []struct {
		name   string
		raw    []byte
		change func(*recorder.Manifest)
		reason recorder.Reason
		seq    uint64
	}{
		{"nothing wrong", good, nil, "", 0},
		{"unknown field", bytes.Replace(good, []byte(`"level"`), []byte(`"x":1,"level"`), 1), nil, recorder.NotCanonical, 5},
		{"reordered", append(line(5), bytes.Replace(line(6), []byte(`"kind":"Event","apiVersion":"audit.k8s.io/v1"`), []byte(`"apiVersion":"audit.k8s.io/v1","kind":"Event"`), 1)...), nil, recorder.NotCanonical, 6},
		{"carriage returns", bytes.ReplaceAll(good, []byte("\n"), []byte("\r\n")), nil, recorder.NotCanonical, 5},
		{"no last newline", good[:len(good)-1], nil, recorder.Malformed, 6},
		{"number twice", append(line(5), line(5)...), nil, recorder.SequenceGap, 6},
		{"number left out", append(line(5), line(7)...), nil, recorder.SequenceGap, 6},
		{"record left out", line(5), nil, recorder.SequenceGap, 6},
		{"empty lines", append([]byte("\n"), good...), nil, recorder.NotCanonical, 5},
		{"bomb", append(good, make([]byte, 200<<20)...), nil, recorder.TooLarge, 7},
		{"gap between segments", good, func(m *recorder.Manifest) { m.Last = 7; m.Count = 3 }, recorder.SequenceGap, 7},
		{"wrong cluster", good, func(m *recorder.Manifest) { m.Cluster = "other" }, recorder.Misplaced, 5},
		{"no trust bundle", good, func(m *recorder.Manifest) { m.Trust = "x" }, recorder.Malformed, 5},
		{"unknown kind", good, func(m *recorder.Manifest) { m.Kind = "mystery" }, recorder.Malformed, 5},
		{"key of elsewhere", good, func(m *recorder.Manifest) { m.Key = "../../etc/passwd" }, recorder.Malformed, 5},
		{"size of anything", good, func(m *recorder.Manifest) { m.RawSize = 1 << 40 }, recorder.Malformed, 5},
		{"chain elsewhere", good, func(m *recorder.Manifest) { m.Previous = strings.Repeat("0", 64) }, recorder.ChainBroken, 5},
		{"closed twice", good, func(m *recorder.Manifest) { m.End = "closed" }, recorder.Malformed, 5},
		{"long before", good, func(m *recorder.Manifest) { m.Time.Time = time.Now().Add(-time.Hour) }, recorder.SignatureTime, 5},
	} {
		t.Run(test.name, func(t *testing.T) {
			bucket := e.store.Clone(t)
			// Everything from the third segment on is replaced by one segment.
			for _, key := range append(e.segments[2:], e.manifests[3:]...) {
				bucket.Remove(key)
			}
			m := e.manifestAt(bucket, e.manifests[2])
			m.Previous, m.Number, m.First, m.Last, m.Count, m.Key = recorder.HashOf(bucket.Body(e.manifests[2])), 4, 5, 6, 2, e.segments[2]
			packed := compress(t, test.raw)
			m.SHA256, m.Size, m.RawSize, m.Version = recorder.HashOf(packed), int64(len(packed)), int64(len(good)), ""
			m.Time.Time = time.Now()
			if test.change != nil {
				test.change(m)
			}
			bucket.Add(e.segments[2], packed, time.Now().Add(time.Hour))
			bucket.Add(e.manifests[3], e.sign(m), time.Now().Add(time.Hour))
			report := e.verify(bucket)
			switch {
			case test.reason == "" && !report.Proven():
				t.Errorf("found %v", report.Findings)
			case test.reason != "" && report.Proven():
				t.Error("nothing was found")
			case test.reason != "" && (report.Findings[0].Reason != test.reason || report.Findings[0].Seq != test.seq):
				t.Errorf("found %v, want %s %d first", report.Findings, test.reason, test.seq)
			}
		})
	}
}

func compress(t *testing.T, raw []byte) []byte {
	t.Helper()
	encoder, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer encoder.Close()
	return encoder.EncodeAll(raw, nil)
}

func (e *evidence) manifestAt(bucket *recordertest.MemoryStore, key string) *recorder.Manifest {
	e.Helper()
	m, err := recorder.ParseManifest(bucket.Body(key))
	if err != nil {
		e.Fatal(err)
	}
	return m
}

func (e *evidence) sign(m *recorder.Manifest) []byte {
	e.Helper()
	svid, err := e.identity.GetX509SVID()
	if err != nil {
		e.Fatal(err)
	}
	signed, err := recorder.Sign(m, svid)
	if err != nil {
		e.Fatal(err)
	}
	return signed
}

// TestForkedManifest: two brokers with one stream ID (T177).
func TestForkedManifest(t *testing.T) {
	e := newEvidence(t)
	m := e.manifestAt(e.store, e.manifests[3])
	m.Last, m.Count = m.Last+1, m.Count+1
	e.store.Add(e.manifests[3], e.sign(m), time.Now().Add(time.Hour))
	if report := e.verify(e.store); report.Proven() || report.Findings[0].Reason != recorder.Fork {
		t.Errorf("found %v", report.Findings)
	}
}

// TestRewrittenHistory: whoever holds a broker's key and the bucket can sign
// another history; only a manifest known from elsewhere shows it (T171).
func TestRewrittenHistory(t *testing.T) {
	e := newEvidence(t)
	config := verifyConfig(e.ca.Bundle())
	head := e.verify(e.store).Streams[0]
	config.Witnessed = []recorder.Link{{Stream: head.Stream, Manifest: head.Manifest}}
	if report, err := recorder.Verify(context.Background(), e.store, config); err != nil || !report.Proven() {
		t.Fatalf("the true history: %v, %v", report, err)
	}
	rewritten := e.store.Clone(t)
	last := e.manifestAt(rewritten, e.manifests[6])
	last.End = "recovered"
	rewritten.Replace(e.manifests[6], func([]byte) []byte { return e.sign(last) })
	if report := e.verify(rewritten); !report.Proven() {
		t.Fatalf("the case shows nothing: %v", report.Findings)
	}
	report, err := recorder.Verify(context.Background(), rewritten, config)
	if err != nil || !has(report.Findings, recorder.Truncated) {
		t.Errorf("the rewritten history: %v, %v", report, err)
	}
}
