package recorder_test

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/taskgate/taskgate/internal/recordertest"
	"github.com/taskgate/taskgate/recorder"
)

// counted opens a recorder of which the syncs are counted. Nothing but the test
// makes records.
func counted(t *testing.T) (*fixture, *recorder.Recorder, *atomic.Int64) {
	f, syncs := newFixture(t), new(atomic.Int64)
	f.config.SegmentEvery, f.config.Heartbeat = time.Hour, time.Hour
	recorder.HookDisk(&f.config, recorder.DiskHooks{Sync: func() error { syncs.Add(1); return nil }})
	return f, f.open(), syncs
}

// TestOneSyncPerCall: an outcome, which nobody waits for, is held back for the
// intent of the next call, and one sync is for both.
func TestOneSyncPerCall(t *testing.T) {
	f, r, syncs := counted(t)
	// The pause is far below what a record may be held back for; a machine that
	// makes it longer than that gets another try.
	const pause, held = 2 * time.Millisecond, 8 * time.Millisecond
	for range 100 {
		recordertest.Record(t, r, recordertest.Call("a"))
		time.Sleep(5 * held) // nothing runs that was begun before
		before, began := syncs.Load(), time.Now()
		if _, err := r.Append(recordertest.Outcome(recordertest.Call("a"), 200)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(pause)
		early := syncs.Load() - before
		recordertest.Record(t, r, recordertest.Call("a"))
		both := syncs.Load() - before
		if time.Since(began) > held {
			continue
		}
		if early != 0 || both != 1 {
			t.Errorf("%d syncs for an outcome, %d with the intent behind it", early, both)
		}
		f.close(r)
		return
	}
	t.Skip("this machine is too slow to tell")
}

// TestNobodyWaits: what nobody waits for becomes durable all the same, and soon.
func TestNobodyWaits(t *testing.T) {
	f, r, syncs := counted(t)
	if _, err := r.Append(recordertest.Outcome(recordertest.Call("a"), 200)); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); syncs.Load() == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the record is still in memory")
		}
	}
	f.close(r)
	f.proven(f.store, 1, "closed")
}
