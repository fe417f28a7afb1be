package recorder_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/taskgate/taskgate/internal/recordertest"
	"github.com/taskgate/taskgate/internal/spiffetest"
	"github.com/taskgate/taskgate/recorder"
)

// TestSigners: whose signature counts.
func TestSigners(t *testing.T) {
	agent := spiffeid.RequireFromString("spiffe://example.org/ns/agents/sa/alpha")
	for name, leaf := range map[string]spiffetest.Leaf{
		"an agent":     {ID: agent},
		"expired":      {ID: recordertest.BrokerID(), NotBefore: time.Now().Add(-2 * time.Hour), TTL: -time.Hour},
		"not yet":      {ID: recordertest.BrokerID(), NotBefore: time.Now().Add(time.Hour), TTL: 2 * time.Hour},
		"other domain": {ID: spiffeid.RequireFromString("spiffe://other.org/taskgate/broker")},
	} {
		t.Run(name, func(t *testing.T) {
			e := newEvidence(t)
			e.identity.Issue(t, e.ca, leaf)
			m := e.manifestAt(e.store, e.manifests[6])
			e.store.Replace(e.manifests[6], func([]byte) []byte { return e.sign(m) })
			report := e.verify(e.store)
			if report.Proven() || report.Findings[0].Seq != 11 ||
				report.Findings[0].Reason != recorder.UntrustedSigner && report.Findings[0].Reason != recorder.SignatureTime {
				t.Errorf("found %v", report.Findings)
			}
		})
	}
}

// TestNothingProven: without an anchor there is no verdict at all.
func TestNothingProven(t *testing.T) {
	e := newEvidence(t)
	_, stranger := recordertest.NewIdentity(t)
	for name, test := range map[string]struct {
		bucket recorder.Bucket
		config recorder.VerifyConfig
	}{
		"wrong bundle": {e.store, verifyConfig(stranger.Bundle())},
		"no bundle":    {e.store, recorder.VerifyConfig{BrokerIDs: []spiffeid.ID{recordertest.BrokerID()}}},
		"no broker":    {e.store, recorder.VerifyConfig{TrustBundles: []*x509bundle.Bundle{e.ca.Bundle()}}},
		"empty bucket": {recordertest.NewMemoryStore(t), verifyConfig(e.ca.Bundle())},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := recorder.Verify(context.Background(), test.bucket, test.config); !errors.Is(err, recorder.ErrNothingProven) {
				t.Errorf("got %v, want ErrNothingProven", err)
			}
		})
	}
}

func TestOpenStream(t *testing.T) {
	f := newFixture(t)
	now := &clock{}
	r := f.open()
	f.calls(r, 2)
	f.sealed(r)
	f.store.Now = now.Now
	report := f.proven(f.store, 4, "open")
	if len(report.Notes) != 1 || report.Notes[0].Reason != recorder.StreamOpen || !strings.Contains(report.Notes[0].Detail, "no proof after record 4 at ") {
		t.Errorf("notes are %v", report.Notes)
	}
	f.store.Fail(recordertest.Fault{Operation: recordertest.Put, Prefix: "v1/manifests/"})
	f.calls(r, 1)
	recordertest.Eventually(t, "a segment without a manifest", func() error {
		if report = f.verify(f.store); len(report.Notes) < 2 {
			return errors.New("not yet")
		}
		return nil
	})
	if !report.Proven() || !has(report.Notes, recorder.Unproven) {
		t.Errorf("found %v, notes are %v", report.Findings, report.Notes)
	}
	late := f.store.Clone(t)
	f.abandon(r)
	now.advance(3 * time.Minute)
	if report := f.verify(late); !report.Proven() || !has(report.Notes, recorder.HeartbeatMissing) {
		t.Errorf("found %v, notes are %v", report.Findings, report.Notes)
	}
}

// TestDeleteMarkers hide, and do no more (T175).
func TestDeleteMarkers(t *testing.T) {
	e := newEvidence(t)
	for _, key := range []string{e.segments[1], e.manifests[2], e.store.Keys("v1/trust/")[0]} {
		e.store.Hide(key)
	}
	report := e.proven(e.store, 10, "closed")
	if len(report.Notes) != 3 || report.Notes[0].Reason != recorder.DeleteMarker {
		t.Errorf("notes are %v", report.Notes)
	}
}

// TestCopy verifies a copied folder, and says what a copy cannot show (T182).
func TestCopy(t *testing.T) {
	e := newEvidence(t)
	directory := t.TempDir()
	for _, key := range e.store.Keys("v1/") {
		path := filepath.Join(directory, key)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, e.store.Body(key), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	folder, err := recorder.OpenFolder(directory)
	if err != nil {
		t.Fatal(err)
	}
	defer folder.Close()
	report := e.proven(folder, 10, "closed")
	if got := strings.Join(report.NotChecked, ", "); got != "locks, server times, versions" {
		t.Errorf("not checked: %s", got)
	}
	if err := edit(filepath.Join(directory, e.segments[2]), func(data []byte) []byte { data[20] ^= 1; return data }); err != nil {
		t.Fatal(err)
	}
	if report := e.verify(folder); report.Proven() || report.Findings[0].Seq != 5 {
		t.Errorf("one flipped bit: found %v", report.Findings)
	}
	if _, err := recorder.OpenFolder(t.TempDir()); err == nil {
		t.Error("an empty folder was accepted")
	}
}

func TestVerifyPeriod(t *testing.T) {
	f := newFixture(t)
	now := &clock{}
	f.config.Now, f.store.Now = now.Now, now.Now
	f.identity.Issue(t, f.ca, spiffetest.Leaf{ID: recordertest.BrokerID(), TTL: 96 * time.Hour})
	r := f.open()
	for range 3 {
		f.calls(r, 2)
		f.sealed(r)
		now.advance(24 * time.Hour)
	}
	f.close(r)
	f.proven(f.store, 12, "closed")
	config := verifyConfig(f.ca.Bundle())
	config.From, config.To = time.Now().Add(24*time.Hour), time.Now().Add(24*time.Hour)
	report, err := recorder.Verify(context.Background(), f.store, config)
	if err != nil || !report.Proven() || report.Records != 4 || report.Streams[0].Last != 8 {
		t.Errorf("one day: %v, %+v", err, report)
	}
}

func TestParseTrustBundle(t *testing.T) {
	_, ca := recordertest.NewIdentity(t)
	domain := recordertest.BrokerID().TrustDomain()
	asJSON, err := ca.BundleJSON()
	if err != nil {
		t.Fatal(err)
	}
	asPEM, err := ca.Bundle().Marshal()
	if err != nil {
		t.Fatal(err)
	}
	for _, data := range [][]byte{asJSON, asPEM} {
		if bundle, err := recorder.ParseTrustBundle(domain, data); err != nil || !bundle.Equal(ca.Bundle()) {
			t.Errorf("got %v, %v", bundle, err)
		}
	}
	for _, data := range []string{"", "{}", "{", "hello", `{"keys":[]}`} {
		if _, err := recorder.ParseTrustBundle(domain, []byte(data)); err == nil {
			t.Errorf("%q was accepted", data)
		}
	}
}

// FuzzManifest shows that no bytes make the parser panic.
func FuzzManifest(f *testing.F) {
	identity, _ := recordertest.NewIdentity(f)
	svid, _ := identity.GetX509SVID()
	signed, err := recorder.Sign(&recorder.Manifest{Format: recorder.ManifestFormat, Cluster: "test", Stream: "s", Number: 1, Kind: recorder.KindOpen}, svid)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(signed)
	f.Fuzz(func(t *testing.T, data []byte) {
		if m, err := recorder.ParseManifest(data); err == nil && m.Format != recorder.ManifestFormat {
			t.Fatalf("accepted %q", data)
		}
	})
}

// FuzzSegment shows that no bytes make the reader panic or run away.
func FuzzSegment(f *testing.F) {
	line, err := recorder.EncodeNumbered(recordertest.Call("a"), 1)
	if err != nil {
		f.Fatal(err)
	}
	encoder, err := zstd.NewWriter(nil)
	if err != nil {
		f.Fatal(err)
	}
	defer encoder.Close()
	f.Add(encoder.EncodeAll(append(line, '\n'), nil))
	f.Fuzz(func(t *testing.T, data []byte) {
		m := &recorder.Manifest{First: 1, Last: 1, Count: 1, Size: int64(len(data)), RawSize: 4096, SHA256: recorder.HashOf(data)}
		if _, err := recorder.CheckSegment(bytes.NewReader(data), m); err != nil {
			t.Fatalf("content that can be read was not: %v", err)
		}
	})
}

// TestVerifyWhileRecording: two brokers write and restart while the auditor
// verifies over and over; there is never a false alarm.
func TestVerifyWhileRecording(t *testing.T) {
	f := newFixture(t)
	var brokers sync.WaitGroup
	for _, name := range []string{"broker-0", "broker-1"} {
		config := f.config
		config.Broker, config.Spool = name, t.TempDir()
		brokers.Go(func() {
			for range 6 {
				r := recordertest.Open(t, config)
				f.calls(r, 20)
				f.close(r)
			}
		})
	}
	done := make(chan struct{})
	go func() { brokers.Wait(); close(done) }()
	recordertest.Eventually(t, "there is something to verify", func() error {
		_, err := recorder.Verify(context.Background(), f.store, verifyConfig(f.ca.Bundle()))
		return err
	})
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		for _, finding := range f.verify(f.store).Findings {
			t.Errorf("false alarm: %s", finding)
		}
	}
	report := f.verify(f.store)
	if !report.Proven() || len(report.Notes) > 0 {
		t.Errorf("found %v, notes %v", report.Findings, report.Notes)
	}
}
