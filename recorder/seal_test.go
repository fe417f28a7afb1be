package recorder_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/taskgate/taskgate/internal/recordertest"
	"github.com/taskgate/taskgate/internal/spiffetest"
	"github.com/taskgate/taskgate/recorder"
)

// TestEveryStoreStepFails lets each single request of a recorder's life fail in
// each form. Whatever happens, the journal is complete and verifies.
func TestEveryStoreStepFails(t *testing.T) {
	life := func(f *fixture) {
		r := f.open()
		for range 3 {
			f.calls(r, 2)
			f.sealed(r)
		}
		f.close(r)
	}
	rehearsal := newFixture(t)
	life(rehearsal)
	steps := rehearsal.store.Puts()

	refused := fmt.Errorf("%w: BadDigest", recorder.ErrRefused)
	for name, fault := range map[string]recordertest.Fault{
		"not applied":        {},
		"applied":            {Applied: true},
		"applied twice over": {Applied: true, Times: 2},
		"not applied thrice": {Times: 3},
		"refused":            {Err: refused},
		"refused twice":      {Err: refused, Times: 2},
		"slow":               {Delay: 10 * time.Millisecond},
		"too slow":           {Delay: time.Hour},
		"too slow, applied":  {Delay: time.Hour, Applied: true, Err: recordertest.ErrInjected},
	} {
		t.Run(name, func(t *testing.T) {
			for step := range steps {
				f := newFixture(t)
				f.config.PutTimeout = 100 * time.Millisecond
				fault.Operation, fault.Skip, fault.Times = recordertest.Put, step, max(fault.Times, 1)
				f.store.Fail(fault)
				life(f)
				f.proven(f.store, 12, "closed")
			}
		})
	}
	for _, operation := range []recordertest.Operation{recordertest.Settings, recordertest.Delete} {
		t.Run(string(operation), func(t *testing.T) {
			for step := range 6 {
				f := newFixture(t)
				f.store.Fail(recordertest.Fault{Operation: operation, Skip: step, Times: 1, Applied: step%2 == 0})
				life(f)
				f.proven(f.store, 12, "closed")
			}
		})
	}
}

// TestBucketDown: the recorder goes on while the bucket is away, and there are no
// gaps when it is back, also with SlowDown storms in between (T195, T205).
func TestBucketDown(t *testing.T) {
	f := newFixture(t)
	r := f.open()
	f.calls(r, 10)
	for range 3 {
		f.store.Fail(recordertest.Fault{Operation: recordertest.Put})
		f.calls(r, 200)
		if err := r.Ready(); err != nil {
			t.Errorf("not ready while the spool takes over: %v", err)
		}
		f.store.Heal()
		f.store.Fail(recordertest.Fault{Operation: recordertest.Put, Applied: true, Times: 3})
		f.calls(r, 10)
		f.sealed(r)
	}
	if status := r.Status(); status.Uploads.Unknown == 0 || status.Failing != nil || status.LastManifest == "" {
		t.Errorf("got %+v", status)
	}
	f.close(r)
	f.proven(f.store, 2*(10+3*210), "closed")
}

// TestLongOutageBetweenSegmentAndManifest: a manifest that waited too long is
// signed anew, whether or not its first sending was stored.
func TestLongOutageBetweenSegmentAndManifest(t *testing.T) {
	for _, applied := range []bool{false, true} {
		t.Run(fmt.Sprintf("applied=%v", applied), func(t *testing.T) {
			f := newFixture(t)
			now := &clock{}
			f.config.Now, f.store.Now = now.Now, now.Now
			r := f.open()
			manifests := recordertest.Fault{Operation: recordertest.Put, Prefix: "v1/manifests/"}
			first := manifests
			first.Applied, first.Times = applied, 1
			f.store.Fail(first)
			f.store.Fail(manifests)
			f.calls(r, 1)
			recordertest.Eventually(t, "the manifest was tried twice", func() error {
				if r.Status().Uploads.Unknown < 2 {
					return errors.New("not yet")
				}
				return nil
			})
			now.advance(40 * time.Minute)
			f.store.Heal()
			recordertest.Eventually(t, "the outage is over", r.Ready)
			f.calls(r, 1)
			f.close(r)
			f.proven(f.store, 4, "closed")
		})
	}
}

func TestForkIsDeathAndStaysIt(t *testing.T) {
	for _, prefix := range []string{"v1/journal/", "v1/manifests/"} {
		t.Run(prefix, func(t *testing.T) {
			f := newFixture(t)
			r := f.open()
			stream := r.Status().Stream
			day := time.Now().UTC().Format(time.DateOnly)
			if prefix == "v1/journal/" {
				f.store.Add(recorder.SegmentKey("test", day, stream, 1), []byte("theirs"), time.Time{})
			} else {
				f.store.Add(recorder.ManifestKey("test", day, stream, 2), []byte("theirs"), time.Time{})
			}
			f.calls(r, 1)
			<-r.Dead()
			var problem *recorder.Problem
			if err := r.Err(); !errors.Is(err, recorder.ErrFork) || !errors.As(err, &problem) || problem.Reason != recorder.ForkSuspected {
				t.Errorf("got %v, want ErrFork and ForkSuspected", err)
			}
			if err := r.Close(context.Background()); !errors.Is(err, recorder.ErrFork) {
				t.Errorf("closing says %v", err)
			}
			if _, err := recorder.Open(context.Background(), f.config); !errors.As(err, &problem) || !strings.Contains(err.Error(), stream) {
				t.Errorf("the next start says %v", err)
			}
		})
	}
}

// TestRotation: SVID and trust bundle rotate in the middle of a stream; the
// journal verifies from the first bundle on, and not if the archived one is
// withheld (T179).
func TestRotation(t *testing.T) {
	f := newFixture(t)
	r := f.open()
	f.calls(r, 2)
	f.sealed(r)
	next, second := recordertest.NewIdentity(t)
	_ = next
	both := f.ca.Bundle()
	both.AddX509Authority(second.Bundle().X509Authorities()[0])
	before := r.Status().LastManifest
	f.identity.Trust(both)
	recordertest.Eventually(t, "the new bundle is vouched for at once", func() error {
		if r.Status().LastManifest == before {
			return errors.New("no heartbeat")
		}
		return nil
	})
	f.rotate(second)
	f.calls(r, 2)
	f.sealed(r)
	f.identity.Trust(second.Bundle())
	f.calls(r, 2)
	f.close(r)
	f.proven(f.store, 12, "closed")

	withheld := f.store.Clone(t)
	for _, key := range withheld.Keys("v1/trust/") {
		withheld.Remove(key)
	}
	report := f.verify(withheld)
	if report.Proven() || report.Findings[0].Reason != recorder.MissingObject || !has(report.Findings, recorder.UntrustedSigner) {
		t.Errorf("with the bundles withheld: %v", report.Findings)
	}
}

// TestRotationAtOnce: the workload may see the new bundle and an SVID of the new
// authority in one update.
func TestRotationAtOnce(t *testing.T) {
	f := newFixture(t)
	r := f.open()
	f.calls(r, 2)
	f.sealed(r)
	_, second := recordertest.NewIdentity(t)
	both := f.ca.Bundle()
	both.AddX509Authority(second.Bundle().X509Authorities()[0])
	f.identity.Rotate(f, second, spiffetest.Leaf{ID: recordertest.BrokerID()}, both)
	f.calls(r, 2)
	f.sealed(r)
	f.identity.Trust(second.Bundle())
	f.calls(r, 2)
	f.close(r)
	f.proven(f.store, 12, "closed")
}

func has(findings []recorder.Finding, reason recorder.Reason) bool {
	for _, finding := range findings {
		if finding.Reason == reason {
			return true
		}
	}
	return false
}

func TestHeartbeat(t *testing.T) {
	f := newFixture(t)
	now := &clock{}
	f.config.Now, f.store.Now = now.Now, now.Now
	r := f.open()
	for range 3 {
		before := r.Status().LastManifest
		now.advance(time.Minute)
		recordertest.Eventually(t, "a heartbeat", func() error {
			if r.Status().LastManifest == before {
				return errors.New("none yet")
			}
			return nil
		})
	}
	f.close(r)
	report := f.proven(f.store, 0, "closed")
	if report.Manifests != 5 || len(report.Notes) != 0 {
		t.Errorf("%d manifests, notes %v", report.Manifests, report.Notes)
	}
}

// TestStreamsAreLinked: an opening manifest names the end of the stream before,
// so a stream that is taken away shows (T170).
func TestStreamsAreLinked(t *testing.T) {
	f := newFixture(t)
	var streams []string
	for range 3 {
		r := f.open()
		f.calls(r, 2)
		streams = append(streams, r.Status().Stream)
		f.close(r)
	}
	f.proven(f.store, 12, "closed", "closed", "closed")

	tail, last := f.store.Clone(t), ""
	for _, key := range tail.Keys("v1/manifests/") {
		if strings.Contains(key, streams[1]) {
			last = max(last, key)
		}
	}
	tail.Remove(last)
	whole := f.store.Clone(t)
	for _, key := range whole.Keys("v1/") {
		if strings.Contains(key, streams[1]) {
			whole.Remove(key)
		}
	}
	for name, bucket := range map[string]*recordertest.MemoryStore{"tail": tail, "whole stream": whole} {
		report := f.verify(bucket)
		if !has(report.Findings, recorder.Truncated) {
			t.Errorf("%s taken away: %v", name, report.Findings)
		}
	}
}

// TestCloseWithoutBucket keeps the spool and says where; Drain seals it.
func TestCloseWithoutBucket(t *testing.T) {
	f := newFixture(t)
	r := f.open()
	f.calls(r, 3)
	f.sealed(r)
	f.store.Fail(recordertest.Fault{Operation: recordertest.Put})
	f.calls(r, 3)
	recordertest.Record(t, r, recordertest.Call("open"))
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	err := r.Close(ctx)
	if err == nil || !strings.Contains(err.Error(), f.config.Spool) || !strings.Contains(err.Error(), "broker drain") {
		t.Fatalf("closing says %v", err)
	}
	if _, err := r.Append(recordertest.Call("late")); !errors.Is(err, recorder.ErrClosed) {
		t.Errorf("got %v, want ErrClosed", err)
	}
	if err := r.Close(context.Background()); !errors.Is(err, recorder.ErrClosed) {
		t.Errorf("closing twice says %v", err)
	}

	ctx, cancel = context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if err := recorder.Drain(ctx, f.config); err == nil {
		t.Error("draining without a bucket says nothing")
	}
	f.store.Heal()
	if err := recorder.Drain(context.Background(), f.config); err != nil {
		t.Fatal(err)
	}
	report := f.proven(f.store, 14, "recovered")
	if report.Unknown != 1 {
		t.Errorf("%d outcomes are unknown, want 1", report.Unknown)
	}
	if left, _ := filepath.Glob(filepath.Join(f.config.Spool, "*", "*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	if err := recorder.Drain(context.Background(), f.config); err != nil {
		t.Errorf("draining an empty spool: %v", err)
	}
}

// TestOpenIntentsOutliveTrimming: an intent whose file is long gone still gets
// its outcome.
func TestOpenIntentsOutliveTrimming(t *testing.T) {
	f := newFixture(t)
	f.config.FileSize = 64 << 10
	r := f.open()
	early := recordertest.Call("early")
	early.RequestObject, early.UserAgent = []byte(`{"replicas":3}`), "\xff"
	recordertest.Record(t, r, early)
	ended := recordertest.Call("ended")
	recordertest.Record(t, r, ended)
	for range 4 {
		f.calls(r, 40)
		f.sealed(r)
	}
	recordertest.Record(t, r, recordertest.Outcome(ended, 200))
	if files := spoolFiles(t, f.config.Spool); strings.HasSuffix(files[0], "00000001.spool") {
		t.Fatal("nothing was trimmed")
	}
	crashed := copyTree(t, f.config.Spool)
	bucket := f.store.Clone(t)
	f.close(r)
	f.proven(f.store, 324, "closed")
	outcome := scan(t, f.store)["ResponseComplete early"]
	if intent := scan(t, f.store)["RequestReceived early"]; outcome != nil && intent.UserAgent != outcome.UserAgent {
		t.Errorf("the outcome names agent %q, the intent %q", outcome.UserAgent, intent.UserAgent)
	}
	if outcome == nil || outcome.Annotations[recorder.AnnotationOutcome] != recorder.OutcomeUnknown || outcome.RequestObject != nil || outcome.Verb != "get" {
		t.Errorf("on closing, the outcome is %+v", outcome)
	}

	f.config.Spool, f.config.Store = crashed, bucket
	r = f.open()
	f.close(r)
	f.proven(bucket, 324, "recovered", "closed")
	if outcome := scan(t, bucket)["ResponseComplete early"]; outcome == nil || outcome.Annotations[recorder.AnnotationOutcome] != recorder.OutcomeUnknown {
		t.Errorf("after a crash, the outcome is %+v", outcome)
	}
}

// TestExpiredSVID: nothing is signed that would never verify; with a new SVID it
// goes on.
func TestExpiredSVID(t *testing.T) {
	f := newFixture(t)
	r := f.open()
	f.identity.Issue(t, f.ca, spiffetest.Leaf{ID: recordertest.BrokerID(), NotBefore: time.Now().Add(-2 * time.Hour), TTL: -time.Hour})
	f.calls(r, 1)
	recordertest.Eventually(t, "the SVID is missed", func() error {
		if failing := r.Status().Failing; failing == nil || !strings.Contains(failing.Error(), "SVID") {
			return fmt.Errorf("failing is %v", failing)
		}
		return nil
	})
	f.rotate(f.ca)
	f.close(r)
	f.proven(f.store, 2, "closed")
}

// TestOpenWithDeadBucket returns at once and says what is waited for.
func TestOpenWithDeadBucket(t *testing.T) {
	f := newFixture(t)
	r := f.open()
	f.calls(r, 1)
	f.abandon(r)
	f.store.Fail(recordertest.Fault{Operation: recordertest.Settings})
	r, err := recorder.Open(context.Background(), f.config)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Ready(); err == nil || !strings.Contains(err.Error(), "safe") {
		t.Errorf("ready says %v", err)
	}
	if _, err := r.Append(recordertest.Call("a")); !errors.Is(err, recorder.ErrUnavailable) {
		t.Errorf("got %v, want ErrUnavailable", err)
	}
	f.store.Heal()
	recordertest.Eventually(t, "the bucket is back", r.Ready)
	f.close(r)
	f.verify(f.store)
}

func TestForeignThingsInTheSpool(t *testing.T) {
	f := newFixture(t)
	if err := os.WriteFile(filepath.Join(f.config.Spool, "note.txt"), []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(f.config.Spool, "broker-0-X.done"), 0o700); err != nil {
		t.Fatal(err)
	}
	r := f.open()
	f.close(r)
	f.proven(f.store, 0, "closed")
}
