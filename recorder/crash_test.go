package recorder_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/taskgate/taskgate/internal/recordertest"
	"github.com/taskgate/taskgate/recorder"
)

// moment is what a crash at one point would leave: the spool, the bucket, and
// which records were acknowledged by then.
type moment struct {
	name         string
	spool        string
	bucket       *recordertest.MemoryStore
	acknowledged []string
}

// historian takes a picture at each step of the sealing goroutine.
type historian struct {
	*recordertest.MemoryStore
	test    *testing.T
	spool   string
	mu      sync.Mutex
	acked   []string
	moments []moment
}

func (h *historian) picture(name string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.moments = append(h.moments, moment{
		name: fmt.Sprintf("%03d %s", len(h.moments), name), acknowledged: append([]string(nil), h.acked...),
		spool: copyTree(h.test, h.spool), bucket: h.Clone(h.test),
	})
}

func (h *historian) Put(ctx context.Context, key string, body []byte, until time.Time) (recorder.Stored, error) {
	h.picture("before storing " + key)
	stored, err := h.MemoryStore.Put(ctx, key, body, until)
	h.picture("after storing " + key)
	return stored, err
}

func (h *historian) record(r *recorder.Recorder, event *recorder.Event) {
	h.mu.Lock()
	defer h.mu.Unlock() // so that no picture is taken half-way
	recordertest.Record(h.test, r, event)
	h.acked = append(h.acked, string(event.Stage)+" "+event.AuditID)
}

// TestCrashAtEveryStep crashes before and after each file the sealer writes and
// each object it stores, and lets the next start recover.
func TestCrashAtEveryStep(t *testing.T) {
	f := newFixture(t)
	h := &historian{MemoryStore: f.store, test: t, spool: f.config.Spool}
	after := f.config
	f.config.Store, f.config.FileSize = h, 64<<10
	recorder.HookDisk(&f.config, recorder.DiskHooks{Replace: func(path string, done bool) error {
		h.picture(fmt.Sprintf("writing %s, done %v", filepath.Base(path), done))
		return nil
	}})
	r := f.open()
	for round := range 3 {
		for i := range 30 {
			call := recordertest.Call(fmt.Sprintf("call-%d-%d", round, i))
			h.record(r, call)
			if i > round {
				h.record(r, recordertest.Outcome(call, 200))
			}
		}
		f.sealed(r)
	}
	f.close(r)
	t.Logf("%d moments", len(h.moments))

	for _, m := range h.moments {
		t.Run(m.name, func(t *testing.T) {
			f := &fixture{T: t, store: m.bucket, identity: f.identity, ca: f.ca, config: after}
			f.config.Spool, f.config.Store = m.spool, m.bucket
			f.close(f.open())
			recovered(f, m.acknowledged)
		})
	}
}

// recovered checks that everything acknowledged is in the bucket, that every
// intent has an outcome, and that it all verifies with each stream closed.
func recovered(f *fixture, acknowledged []string) {
	f.Helper()
	report := f.verify(f.store)
	for _, finding := range report.Findings {
		f.Errorf("found %s", finding)
	}
	for _, note := range report.Notes {
		if note.Reason != recorder.Unreferenced {
			f.Errorf("noted %s", note)
		}
	}
	events := scan(f, f.store)
	for _, name := range acknowledged {
		if events[name] == nil {
			f.Errorf("%s was acknowledged and is lost", name)
		}
	}
	for _, event := range events {
		if event.Stage == recorder.StageRequestReceived && events["ResponseComplete "+event.AuditID] == nil {
			f.Errorf("the intent of %s has no outcome", event.AuditID)
		}
	}
}

// TestRecoveryIsCrashSafe crashes during recovery, again at every step.
func TestRecoveryIsCrashSafe(t *testing.T) {
	f := newFixture(t)
	r := f.open()
	f.calls(r, 5)
	f.store.Fail(recordertest.Fault{Operation: recordertest.Put})
	acknowledged := []string{"RequestReceived open", "ResponseComplete whole"}
	recordertest.Record(t, r, recordertest.Call("open"))
	recordertest.Record(t, r, recordertest.Outcome(recordertest.Call("whole"), 200))
	f.abandon(r)
	f.store.Heal()
	torn := lastRecord(t, f.config.Spool)

	h := &historian{MemoryStore: f.store, test: t, spool: f.config.Spool, acked: acknowledged}
	after := f.config
	f.config.Store = h
	recorder.HookDisk(&f.config, recorder.DiskHooks{Replace: func(path string, done bool) error {
		h.picture(fmt.Sprintf("writing %s, done %v", filepath.Base(path), done))
		return nil
	}, Sync: func() error { h.picture("syncing"); return nil }})
	if err := recorder.Drain(context.Background(), f.config); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d moments, after a tail of %d bytes", len(h.moments), torn)
	for _, m := range h.moments {
		t.Run(m.name, func(t *testing.T) {
			f := &fixture{T: t, store: m.bucket, identity: f.identity, ca: f.ca, config: after}
			f.config.Spool, f.config.Store = m.spool, m.bucket
			if err := recorder.Drain(context.Background(), f.config); err != nil {
				t.Fatal(err)
			}
			recovered(f, acknowledged)
		})
	}
}

// lastRecord adds half a record behind the last one, as a write that was cut off
// would, and returns how many bytes that is.
func lastRecord(t *testing.T, spool string) int {
	t.Helper()
	for _, path := range spoolFiles(t, spool) {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		seqs, end, _, err := recorder.ScanFile(data, 1)
		if err != nil || len(seqs) == 0 {
			continue
		}
		copy(data[end:], "\x40\x00\x00\x00garbage")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return 11
	}
	t.Fatal("no file with records")
	return 0
}
