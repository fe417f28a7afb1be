package recorder_test

import (
	"context"
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

// TestOneSyncPerCall: an outcome, which nobody waits for, goes with the intent of
// the next call.
func TestOneSyncPerCall(t *testing.T) {
	f, r, syncs := counted(t)
	const calls = 200
	for range calls {
		call := recordertest.Call("a")
		receipt, err := r.Append(call)
		if err == nil {
			err = receipt.Wait(context.Background())
		}
		if err == nil {
			_, err = r.Append(recordertest.Outcome(call, 200))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if got := syncs.Load(); got > calls*5/4 {
		t.Errorf("%d syncs for %d calls", got, calls)
	}
	f.close(r)
	f.proven(f.store, 2*calls, "closed")
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
