package stream_test

import (
	"fmt"
	"io"
	"strconv"
	"testing"
	"time"

	client "k8s.io/client-go/tools/remotecommand"
)

// BenchmarkOutput is a large output through both sides, with a journal that takes
// some time for each batch. Client and pod run in the same process.
func BenchmarkOutput(b *testing.B) {
	for _, way := range []string{"websocket-v5", "spdy"} {
		for _, delay := range []time.Duration{0, 2 * time.Millisecond} {
			b.Run(fmt.Sprintf("%s/sync=%v", way, delay), func(b *testing.B) {
				r := newRig(b, nil)
				r.journal.discard, r.journal.delay = true, delay
				b.SetBytes(16 << 20)
				for b.Loop() {
					if err := r.exec(way, client.StreamOptions{Stdout: io.Discard}, "zeros", strconv.Itoa(16<<20)); err != nil {
						b.Fatal(err)
					}
					r.outcome()
				}
			})
		}
	}
}
