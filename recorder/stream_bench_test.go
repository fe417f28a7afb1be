package recorder_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/taskgate/taskgate/internal/recordertest"
	"github.com/taskgate/taskgate/recorder"
)

// forgetfulStore takes everything and keeps nothing but canaries, so that a benchmark shows the
// recorder and not the bucket.
type forgetfulStore struct {
	*recordertest.MemoryStore
	stored *atomic.Int64
}

func (f forgetfulStore) Put(ctx context.Context, key string, body []byte, until time.Time) (recorder.Stored, error) {
	if strings.HasPrefix(key, "v1/canary/") {
		return f.MemoryStore.Put(ctx, key, body, until)
	}
	f.stored.Add(int64(len(body)))
	return recorder.Stored{Version: "v1", ServerTime: time.Now()}, nil
}

// BenchmarkStream measures what a byte of a stream costs from Append to the stored
// chunk: time and CPU of the whole process, and how much is stored.
func BenchmarkStream(b *testing.B) {
	const (
		size  = 16 << 20 // more than any compressor looks back
		piece = 32 << 10
	)
	random := make([]byte, size)
	for i := range random {
		random[i] = byte(rand.Uint32())
	}
	var text bytes.Buffer
	for i := 0; text.Len() < size; i++ {
		fmt.Fprintf(&text, "2026-11-23T12:00:%02d.%06dZ INFO  web-%d request served path=/api/v1/items/%d status=200\n", i%60, rand.N(1_000_000), i%7, rand.N(10_000))
	}
	for name, data := range map[string][]byte{"text": text.Bytes()[:size], "random": random, "yes": bytes.Repeat([]byte("y\n"), size/2)} {
		b.Run(name, func(b *testing.B) {
			var stored atomic.Int64
			identity, _ := recordertest.NewIdentity(b)
			config := recordertest.Config(b, forgetfulStore{recordertest.NewMemoryStore(b), &stored}, identity)
			config.FileSize, config.SegmentEvery = 0, 0
			r := recordertest.Open(b, config)
			recordertest.Record(b, r, recordertest.Call("bulk"))
			stream, err := r.Stream("bulk")
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(piece)
			b.ReportAllocs()
			before := cpu(b)
			var receipt recorder.Receipt
			for i := 0; b.Loop(); i++ {
				data := data[i*piece%size:][:piece]
				if receipt, err = stream.Append(context.Background(), &recorder.Frame{Channel: recorder.Stdout, Data: data}); err != nil {
					b.Fatal(err)
				}
			}
			if err := receipt.Wait(context.Background()); err != nil {
				b.Fatal(err)
			}
			if err := r.Close(context.Background()); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64((cpu(b)-before).Nanoseconds())/float64(b.N)/piece, "cpu-ns/byte")
			b.ReportMetric(float64(stored.Load())/float64(b.N)/piece, "stored/byte")
		})
	}
}

// cpu is the time this process has worked.
func cpu(b *testing.B) time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
