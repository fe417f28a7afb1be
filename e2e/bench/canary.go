package bench

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"time"
)

// canary is how the machine was doing, whatever the contenders did.
type canary struct {
	SHA256  float64 `json:"sha256MBs"`      // 16 KiB at a time
	Ping    float64 `json:"loopbackPingUs"` // 64 bytes there and back, median
	Stolen  float64 `json:"stolen"`         // share of the CPU time the hypervisor gave to others
	Foreign float64 `json:"foreign"`        // share of the CPU time used by processes that are not ours
}

const (
	canaryPings  = 400
	canaryHashes = 600 // about 6 ms
)

// look measures the first two values.
func look() (canary, error) {
	block := make([]byte, 16<<10)
	began := time.Now()
	for range canaryHashes {
		sum := sha256.Sum256(block)
		block[0] = sum[0]
	}
	speed := float64(canaryHashes*len(block)) / 1e6 / time.Since(began).Seconds()
	ping, err := pingLoopback()
	return canary{SHA256: speed, Ping: ping}, err
}

// pingLoopback is the median time of a round trip over TCP on loopback.
func pingLoopback() (float64, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("listening for the canary: %w", err)
	}
	echoed := make(chan error, 1)
	go func() { echoed <- echoOnce(listener) }()
	ping, err := pings(listener.Addr().String())
	return ping, errors.Join(err, listener.Close(), <-echoed)
}

func echoOnce(listener net.Listener) error {
	conn, err := listener.Accept()
	if err != nil {
		return fmt.Errorf("accepting the canary: %w", err)
	}
	buffer := make([]byte, 64)
	for err == nil {
		if _, err = io.ReadFull(conn, buffer); err == nil {
			_, err = conn.Write(buffer)
		}
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return errors.Join(err, conn.Close())
}

func pings(address string) (float64, error) {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return 0, fmt.Errorf("connecting the canary: %w", err)
	}
	buffer := make([]byte, 64)
	var took []time.Duration
	for range canaryPings {
		began := time.Now()
		_, err := conn.Write(buffer)
		if err == nil {
			_, err = io.ReadFull(conn, buffer)
		}
		if err != nil {
			return 0, errors.Join(fmt.Errorf("pinging the canary: %w", err), conn.Close())
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	return quantile(took, 0.5), conn.Close()
}

// Bounds beyond which a round does not count.
const (
	maxSlower  = 0.15 // of the hashes, from their median over the rounds
	maxLonger  = 0.30 // of the pings, which spread more even on a quiet machine
	maxStolen  = 0.02
	maxForeign = 0.10
)

// undisturbed says which rounds count. If fewer than half would, all do, and the
// second result says so.
func undisturbed(canaries []canary) (counts []bool, disturbed bool) {
	var hashes, pings []float64
	for _, c := range canaries {
		hashes, pings = append(hashes, c.SHA256), append(pings, c.Ping)
	}
	hash, ping, left := median(hashes), median(pings), 0
	for _, c := range canaries {
		good := c.SHA256 > hash*(1-maxSlower) && c.Ping < ping*(1+maxLonger) && c.Stolen <= maxStolen && c.Foreign <= maxForeign
		counts = append(counts, good)
		if good {
			left++
		}
	}
	if left*2 >= len(canaries) && left >= 2 {
		return counts, false
	}
	for i := range counts {
		counts[i] = true
	}
	return counts, true
}
