package recorder_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/taskgate/taskgate/internal/recordertest"
	"github.com/taskgate/taskgate/recorder"
)

// holdsPrefix checks that a stream's record is its frames in their order from the
// first one on, each once, and all of those that were acknowledged. The data of
// frame i is "i ", and what follows.
func holdsPrefix(t testing.TB, bucket recorder.Bucket, id string, acknowledged int) (frames int) {
	t.Helper()
	got, err := recorded(t, bucket, id)
	if errors.Is(err, recorder.ErrNotFound) && acknowledged == 0 {
		return 0
	}
	if err != nil && !(errors.Is(err, recorder.ErrIncomplete) && strings.Contains(err.Error(), "its end was lost")) {
		t.Errorf("%s: %v", id, err)
	}
	for i, frame := range got {
		if number, _, _ := strings.Cut(string(frame.Data), " "); number != strconv.Itoa(i) {
			t.Errorf("%s: frame %q is in the place of frame %d", id, number, i)
			return len(got)
		}
	}
	if len(got) < acknowledged {
		t.Errorf("%s: %d frames were acknowledged and %d are recorded", id, acknowledged, len(got))
	}
	return len(got)
}

// TestStreamsCrashAtEveryStep crashes before and after each file the sealer writes
// and each object it stores while streams run, end and begin.
func TestStreamsCrashAtEveryStep(t *testing.T) {
	f := newFixture(t)
	h := &historian{MemoryStore: f.store, test: t, spool: f.config.Spool}
	after := f.config
	f.config.Store, f.config.FileSize, f.config.SegmentEvery = h, 64<<10, 50*time.Millisecond
	recorder.HookDisk(&f.config, recorder.DiskHooks{Replace: func(path string, done bool) error {
		h.picture(fmt.Sprintf("writing %s, done %v", filepath.Base(path), done))
		return nil
	}})
	r := f.open()
	streams := map[string]*recorder.Stream{}
	count := map[string]int{}
	for round := range 4 {
		for n := range 3 {
			id := fmt.Sprintf("s%d-%d", n, round/2)
			if streams[id] == nil {
				h.record(r, recordertest.Call(id))
				stream, err := r.Stream(id)
				if err != nil {
					t.Fatal(err)
				}
				streams[id] = stream
			}
			for range 3 {
				h.frame(streams[id], id, count[id], 5<<10)
				count[id]++
			}
			if round%2 == 1 && n < 2 {
				outcome := recordertest.Outcome(recordertest.Call(id), 101)
				streams[id].Describe(outcome)
				h.record(r, outcome)
			}
		}
		f.sealed(r)
	}
	f.close(r)
	t.Logf("%d moments", len(h.moments))
	for i, m := range h.moments {
		if testing.Short() && i%5 != 0 {
			continue
		}
		t.Run(m.name, func(t *testing.T) {
			t.Parallel() // each waits for its own disk
			f := &fixture{T: t, store: m.bucket, identity: f.identity, ca: f.ca, config: after}
			f.config.Spool, f.config.Store = m.spool, m.bucket
			f.close(f.open())
			recoveredStreams(f, m.acknowledged)
		})
	}
}

// frame passes one frame, so that no picture is taken half-way.
func (h *historian) frame(stream *recorder.Stream, id string, number, size int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	pass(h.test, stream, recorder.Stdout, fmt.Sprintf("%d %s", number, strings.Repeat("x", size)))
	h.acked = append(h.acked, fmt.Sprintf("frame %s %d", id, number))
}

// recoveredStreams is recovered for records and frames.
func recoveredStreams(f *fixture, acknowledged []string) {
	f.Helper()
	var records []string
	frames := map[string]int{}
	for _, name := range acknowledged {
		if rest, found := strings.CutPrefix(name, "frame "); found {
			id, _, _ := strings.Cut(rest, " ")
			frames[id]++
		} else {
			records = append(records, name)
		}
	}
	recovered(f, records)
	for id, count := range frames {
		holdsPrefix(f, f.store, id, count)
	}
}

// TestEveryStoreStepFailsForStreams lets each request of a life with streams fail in
// each form.
func TestEveryStoreStepFailsForStreams(t *testing.T) {
	life := func(f *fixture) {
		r := f.open()
		for n := range 2 {
			id := fmt.Sprintf("s%d", n)
			stream := begin(f, r, id)
			pass(f, stream, recorder.Stdout, "0 ")
			f.sealed(r)
			pass(f, stream, recorder.Stdout, "1 ")
			end(f, r, stream, id)
		}
		f.close(r)
	}
	rehearsal := newFixture(t)
	life(rehearsal)
	steps := rehearsal.store.Puts() + 4
	for name, fault := range map[string]recordertest.Fault{
		"not applied":        {},
		"applied":            {Applied: true},
		"applied twice over": {Applied: true, Times: 2},
		"refused":            {Err: fmt.Errorf("%w: BadDigest", recorder.ErrRefused)},
		"too slow, applied":  {Delay: time.Hour, Applied: true, Err: recordertest.ErrInjected},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // each waits for its own disk
			for step := range steps {
				if testing.Short() && step%4 != 0 {
					continue
				}
				f := newFixture(t)
				f.config.PutTimeout = 100 * time.Millisecond
				fault.Operation, fault.Skip, fault.Times = recordertest.Put, step, max(fault.Times, 1)
				f.store.Fail(fault)
				life(f)
				report := f.verify(f.store)
				if !report.Proven() || report.Recordings != 2 || report.Frames != 4 {
					t.Errorf("step %d: %d recordings of %d frames, %v", step, report.Recordings, report.Frames, report.Findings)
				}
			}
		})
	}
}

// TestForkedChunkIsDeath: a chunk that exists before it is sent was written by
// somebody else.
func TestForkedChunkIsDeath(t *testing.T) {
	f := newFixture(t)
	r := f.open()
	day := time.Now().UTC().Format(time.DateOnly)
	f.store.Add("v1/streams/cluster=test/dt="+day+"/forked/000001.jsonl.zst", []byte("theirs"), time.Now().Add(time.Hour))
	stream := begin(t, r, "forked")
	pass(t, stream, recorder.Stdout, "ours")
	<-r.Dead()
	if err := r.Err(); !errors.Is(err, recorder.ErrFork) {
		t.Errorf("got %v", err)
	}
	f.abandon(r)
	var problem *recorder.Problem
	if _, err := recorder.Open(context.Background(), f.config); !errors.As(err, &problem) || problem.Reason != recorder.ForkSuspected {
		t.Errorf("the next start: %v", err)
	}
}

// TestKillStreams kills a process that records streams at random moments, over and
// over on one spool. Of each stream the record is a prefix of what passed, and
// holds all that was acknowledged (T143).
func TestKillStreams(t *testing.T) {
	rounds := 20
	if testing.Short() {
		rounds = 3
	}
	if more, err := strconv.Atoi(os.Getenv(roundsVariable)); err == nil {
		rounds = more
	}
	directory := t.TempDir()
	ca, identity := writeIdentity(t, directory)
	acknowledged := map[string]int{}
	for round := range rounds {
		for _, line := range runAndKill(t, directory, round, "STREAMS=1") {
			var id string
			var number int
			if _, err := fmt.Sscanf(line, "frame %s %d", &id, &number); err == nil {
				acknowledged[id] = max(acknowledged[id], number+1)
			}
		}
	}
	config := childConfig(directory, identity)
	r := recordertest.Open(t, config)
	f := &fixture{T: t, ca: ca, config: config}
	f.close(r)
	folder, err := recorder.OpenFolder(filepath.Join(directory, "bucket"))
	if err != nil {
		t.Fatal(err)
	}
	defer folder.Close()
	report := f.verify(folder)
	for _, finding := range report.Findings {
		t.Errorf("found %s", finding)
	}
	frames, all := 0, 0
	for id, count := range acknowledged {
		frames += holdsPrefix(t, folder, id, count)
		all += count
	}
	t.Logf("%d kills, %d streams, %d frames acknowledged, %d of them recorded, %d recorded in all, %d chunks", rounds, len(acknowledged), all, frames, report.Frames, report.Chunks)
	if all == 0 {
		t.Error("nothing was acknowledged: the test shows nothing")
	}
}

// childStreams records streams, one after the other in each of four writers, until
// it is killed, and prints what was acknowledged. Frames are read ahead as the
// broker does it.
func childStreams(r *recorder.Recorder) {
	var group sync.WaitGroup
	for writer := range 4 {
		group.Go(func() {
			for i := 0; ; i++ {
				id := fmt.Sprintf("s-%s-%d-%d", os.Getenv("ROUND"), writer, i)
				if childStream(r, id) != nil {
					return
				}
			}
		})
	}
	group.Wait()
}

func childStream(r *recorder.Recorder, id string) error {
	if err := say(r, recordertest.Call(id)); err != nil {
		return err
	}
	stream, err := r.Stream(id)
	if err != nil {
		return err
	}
	length := rand.IntN(60)
	receipts := make(chan recorder.Receipt, 4)
	waited := make(chan error, 1)
	go func() {
		number := 0
		for receipt := range receipts {
			if err := receipt.Wait(context.Background()); err != nil {
				waited <- err
				return
			}
			fmt.Printf("frame %s %d\n", id, number)
			number++
		}
		waited <- nil
	}()
	for number := range length {
		data := fmt.Sprintf("%d %s", number, strings.Repeat("x", rand.IntN(10<<10)))
		receipt, err := stream.Append(context.Background(), &recorder.Frame{Channel: recorder.Stdout, Data: []byte(data)})
		if err != nil {
			return err
		}
		receipts <- receipt
	}
	close(receipts)
	if err := <-waited; err != nil {
		return err
	}
	outcome := recordertest.Outcome(recordertest.Call(id), 101)
	stream.Describe(outcome)
	return say(r, outcome)
}
