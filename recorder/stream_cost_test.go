//go:build !race

package recorder_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/taskgate/taskgate/internal/recordertest"
	"github.com/taskgate/taskgate/recorder"
)

// The race detector takes so much time and memory that there would be nothing to
// see; make unit runs these tests without it.

// TestStreamMemoryIsFlat passes much more than the recorder may hold.
func TestStreamMemoryIsFlat(t *testing.T) {
	if testing.Short() {
		t.Skip("takes some seconds")
	}
	f := newFixture(t)
	var most int64
	f.config.Store = &sink{MemoryStore: f.store}
	f.config.FileSize, f.config.SegmentEvery = 0, 0
	r := f.open()
	stream := begin(t, r, "bulk")
	piece := make([]byte, 32<<10)
	for i := range (256 << 20) / len(piece) {
		for at := 0; at < len(piece); at += 8 {
			piece[at] = byte(rand.Uint32())
		}
		if _, err := stream.Append(context.Background(), &recorder.Frame{Channel: recorder.Stdout, Data: piece}); err != nil {
			t.Fatal(err)
		}
		if i%512 == 0 {
			most = max(most, recorder.HeapInUse())
		}
	}
	end(t, r, stream, "bulk")
	f.close(r)
	t.Logf("at most %d MiB of heap", most>>20)
	if most > 128<<20 {
		t.Errorf("%d MiB of heap for a stream of 256 MiB", most>>20)
	}
}

// sink keeps nothing of streams.
type sink struct{ *recordertest.MemoryStore }

func (s *sink) Put(ctx context.Context, key string, body []byte, until time.Time) (recorder.Stored, error) {
	if strings.HasPrefix(key, "v1/streams/") {
		return recorder.Stored{Version: "v1", ServerTime: time.Now()}, nil
	}
	return s.MemoryStore.Put(ctx, key, body, until)
}

// TestBulkStreamsKeepNobodyOut: while streams send as much as they can, a quiet one
// and the calls are served.
func TestBulkStreamsKeepNobodyOut(t *testing.T) {
	f := newFixture(t)
	f.config.Store = &sink{MemoryStore: f.store}
	f.config.FileSize, f.config.SegmentEvery = 0, 0
	r := f.open()
	ctx, cancel := context.WithCancel(context.Background())
	var group, busy sync.WaitGroup
	for n := range 12 { // more than fit
		id := fmt.Sprintf("bulk-%d", n)
		stream := begin(t, r, id)
		busy.Add(1)
		group.Go(func() {
			piece := make([]byte, 32<<10)
			for i := 0; ctx.Err() == nil; i++ {
				if _, err := stream.Append(ctx, &recorder.Frame{Channel: recorder.Stdout, Data: piece}); err != nil && ctx.Err() == nil {
					t.Error(err)
				}
				if i == 64 {
					busy.Done()
				}
			}
			end(t, r, stream, id)
		})
	}
	quiet := begin(t, r, "quiet")
	busy.Wait()
	var worst, call time.Duration
	for range 10 {
		start := time.Now()
		pass(t, quiet, recorder.Stdin, "k")
		worst = max(worst, time.Since(start))
		start = time.Now()
		f.calls(r, 1)
		call = max(call, time.Since(start)/2)
	}
	cancel()
	group.Wait()
	end(t, r, quiet, "quiet")
	f.close(r)
	t.Logf("the longest wait for a frame was %s, for a record of a call %s", worst, call)
	if max(worst, call) > 10*time.Second {
		t.Error("somebody is kept out")
	}
}
