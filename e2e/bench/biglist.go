package bench

import (
	"context"
	"fmt"
	"time"
)

// BigList is what happened to one process while a large list passed.
type BigList struct {
	Contender string `json:"contender"`
	Process   string `json:"process"`
	// Rise is how much its resident memory grew at most, in megabytes.
	Rise Interval `json:"riseMB"`
	// Before is its resident memory before, in megabytes.
	Before Interval `json:"beforeMB"`
	// CPU is the milliseconds it used per megabyte of answer.
	CPU Interval `json:"cpuMsPerMB"`
	// Bytes is the size of the answer, Speed the megabytes per second.
	Bytes int64    `json:"bytes"`
	Speed Interval `json:"MBs"`
}

const bigListRepeats = 3

// measureBigList reads the large list through taskgate and the twin.
func (w *world) measureBigList(ctx context.Context, size int) ([]BigList, error) {
	if err := w.createBig(ctx, size); err != nil {
		return nil, err
	}
	if err := w.restart(ctx); err != nil {
		return nil, err
	}
	var results []BigList
	for _, c := range []*contender{w.taskgate, w.plain} {
		rows, err := w.bigListThrough(ctx, c)
		if err != nil {
			return nil, err
		}
		if rows[0].Bytes < int64(size) {
			return nil, fmt.Errorf("the large list has only %d bytes", rows[0].Bytes)
		}
		results = append(results, rows...)
	}
	return results, nil
}

func (w *world) bigListThrough(ctx context.Context, c *contender) ([]BigList, error) {
	before, err := w.settle(ctx, c, true)
	if err != nil {
		return nil, err
	}
	rise, cpu := make([][]float64, len(c.hops)), make([][]float64, len(c.hops))
	var speed []float64
	var size int64
	for range bigListRepeats {
		for _, hop := range c.hops {
			if err := resetPeak(hop.pid()); err != nil {
				return nil, err
			}
		}
		began, err := states(c)
		if err != nil {
			return nil, err
		}
		bytes, took, err := c.readOnce(listBig())
		if err != nil {
			return nil, err
		}
		megabytes := float64(bytes) / (1 << 20)
		size, speed = bytes, append(speed, megabytes/took.Seconds())
		ended, err := states(c)
		if err != nil {
			return nil, err
		}
		for i, hop := range c.hops {
			peak, err := peakMemory(hop.pid())
			if err != nil {
				return nil, err
			}
			rise[i] = append(rise[i], float64(peak-before[i].memory.resident)/(1<<20))
			cpu[i] = append(cpu[i], (ended[i].cpu-began[i].cpu).Seconds()*1e3/megabytes)
		}
	}
	var rows []BigList
	for i, hop := range c.hops {
		rows = append(rows, BigList{
			Contender: c.name, Process: hop.name, Rise: intervalOf(rise[i]), CPU: intervalOf(cpu[i]), Bytes: size, Speed: intervalOf(speed),
			Before: intervalOf([]float64{float64(before[i].memory.resident) / (1 << 20)}),
		})
	}
	return rows, nil
}

// readOnce reads one answer over a connection of its own.
func (c *contender) readOnce(what call) (int64, time.Duration, error) {
	transport := newTransport(c.tls, false)
	defer transport.CloseIdleConnections()
	began := time.Now()
	bytes, err := c.send(transport, what, make([]byte, 256<<10))
	return bytes, time.Since(began), err
}
