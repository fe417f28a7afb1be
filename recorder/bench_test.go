package recorder_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/taskgate/taskgate/internal/recordertest"
	"github.com/taskgate/taskgate/recorder"
)

// BenchmarkAppend measures durable records per second and how long one waits,
// sealing included.
func BenchmarkAppend(b *testing.B) {
	for _, writers := range []int{1, 16, 64, 256} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			identity, _ := recordertest.NewIdentity(b)
			config := recordertest.Config(b, recordertest.NewMemoryStore(b), identity)
			config.FileSize, config.SegmentEvery, config.RetryMax = 0, 0, 0
			config.SpoolLimit = 4 << 30
			r := recordertest.Open(b, config)
			var left atomic.Int64
			left.Store(int64(b.N))
			var group sync.WaitGroup
			b.ResetTimer()
			start := time.Now()
			for range writers {
				group.Go(func() {
					event := recordertest.Outcome(recordertest.Call("9d0c4a4e-1b7c-4f2e-9d93-5c7a4d1d7e11"), 200)
					for left.Add(-1) >= 0 {
						receipt, err := r.Append(event)
						if err == nil {
							err = receipt.Wait(context.Background())
						}
						if err != nil {
							b.Error(err)
							return
						}
					}
				})
			}
			group.Wait()
			b.ReportMetric(float64(b.N)/time.Since(start).Seconds(), "records/s")
			b.StopTimer()
			if err := r.Close(context.Background()); err != nil {
				b.Fatal(err)
			}
		})
	}
}

func BenchmarkEncode(b *testing.B) {
	event := recordertest.Call("9d0c4a4e-1b7c-4f2e-9d93-5c7a4d1d7e11")
	encode := recorder.Encoder()
	b.ReportAllocs()
	for b.Loop() {
		b.SetBytes(int64(encode(event)))
	}
}

// BenchmarkVerify verifies a journal of ordinary calls.
func BenchmarkVerify(b *testing.B) {
	identity, ca := recordertest.NewIdentity(b)
	store := recordertest.NewMemoryStore(b)
	config := recordertest.Config(b, store, identity)
	config.FileSize, config.SegmentEvery = 0, 0
	r := recordertest.Open(b, config)
	var last recorder.Receipt
	for i := range 60_000 {
		receipt, err := r.Append(recordertest.Outcome(recordertest.Call(fmt.Sprintf("9d0c4a4e-1b7c-4f2e-9d93-%012d", i)), 200))
		if err != nil {
			b.Fatal(err)
		}
		last = receipt
	}
	if err := last.Wait(context.Background()); err != nil {
		b.Fatal(err)
	}
	if err := r.Close(context.Background()); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		report, err := recorder.Verify(context.Background(), store, verifyConfig(ca.Bundle()))
		if err != nil || !report.Proven() {
			b.Fatal(report, err)
		}
		b.SetBytes(report.Bytes)
	}
	var stored int
	for _, key := range store.Keys("v1/journal/") {
		stored += len(store.Body(key))
	}
	b.ReportMetric(float64(stored)/60_000, "stored-B/record")
}
