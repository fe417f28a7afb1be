package recorder_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/taskgate/taskgate/internal/recordertest"
	"github.com/taskgate/taskgate/recorder"
)

// begin records the intent of a stream and begins it.
func begin(t testing.TB, r *recorder.Recorder, id string) *recorder.Stream {
	t.Helper()
	recordertest.Record(t, r, recordertest.Call(id))
	stream, err := r.Stream(id)
	if err != nil {
		t.Fatal(err)
	}
	return stream
}

// pass appends a frame and waits until it may be passed on.
func pass(t testing.TB, stream *recorder.Stream, channel recorder.Channel, data string) {
	t.Helper()
	if err := passed(stream, &recorder.Frame{Channel: channel, Data: []byte(data)}); err != nil {
		t.Fatal(err)
	}
}

func passed(stream *recorder.Stream, frame *recorder.Frame) error {
	receipt, err := stream.Append(context.Background(), frame)
	if err == nil {
		err = receipt.Wait(context.Background())
	}
	return err
}

// end records the closing record of a stream.
func end(t testing.TB, r *recorder.Recorder, stream *recorder.Stream, id string) {
	t.Helper()
	outcome := recordertest.Outcome(recordertest.Call(id), 101)
	stream.Describe(outcome)
	recordertest.Record(t, r, outcome)
}

// recorded returns the frames of a stream in the bucket, and the error that tells
// whether they are all.
func recorded(t testing.TB, bucket recorder.Bucket, id string) ([]recorder.Frame, error) {
	t.Helper()
	recording, err := recorder.FindRecording(context.Background(), bucket, id)
	if err != nil {
		return nil, err
	}
	var frames []recorder.Frame
	for frame, err := range recording.Frames(context.Background(), bucket) {
		if err != nil {
			return frames, err
		}
		kept := *frame
		kept.Data = bytes.Clone(frame.Data)
		frames = append(frames, kept)
	}
	return frames, nil
}

// same compares what was recorded with what passed.
func same(t testing.TB, what string, got, want []recorder.Frame) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d frames are recorded, want %d", what, len(got), len(want))
	}
	for i := range got {
		g, w := got[i], want[i]
		if g.Connection != w.Connection || g.Port != w.Port || g.Channel != w.Channel || g.End != w.End || !bytes.Equal(g.Data, w.Data) ||
			!w.Time.IsZero() && !g.Time.Equal(w.Time.Truncate(time.Microsecond)) {
			t.Fatalf("%s: frame %d is %+v, want %+v", what, i, g, w)
		}
	}
}

// TestStreams: what passes in many streams at once is in the bucket, byte for byte,
// in its order, and the closing records are right about it.
func TestStreams(t *testing.T) {
	f := newFixture(t)
	f.config.FileSize = 1 << 20
	r := f.open()
	want := map[string][]recorder.Frame{}
	var mu sync.Mutex
	var group sync.WaitGroup
	for n := range 12 {
		id := fmt.Sprintf("stream-%d", n)
		stream := begin(t, r, id)
		group.Go(func() {
			random := rand.New(rand.NewPCG(uint64(n), 0))
			var frames []recorder.Frame
			for i := range 60 {
				data := make([]byte, random.IntN(1<<uint(random.IntN(18)))) // all sizes, few large ones
				for at := range data {
					data[at] = byte(random.Uint32())
				}
				frame := recorder.Frame{Channel: recorder.Channel(random.IntN(5)), End: random.IntN(20) == 0, Data: data}
				if n%3 == 0 {
					frame.Connection, frame.Port = uint32(1+random.IntN(3)), 8080
				}
				if i%2 == 0 {
					frame.Time = time.UnixMicro(1_700_000_000_000_000 + int64(i))
				}
				frames = append(frames, frame)
				if err := passed(stream, &frame); err != nil {
					t.Error(err)
					return
				}
			}
			end(t, r, stream, id)
			mu.Lock()
			defer mu.Unlock()
			want[id] = frames
		})
	}
	group.Wait()
	f.close(r)
	report := f.verify(f.store)
	for _, finding := range append(report.Findings, report.Notes...) {
		t.Errorf("found %s", finding)
	}
	if report.Recordings != 12 || report.Frames != 12*60 {
		t.Errorf("%d recordings of %d frames are proven", report.Recordings, report.Frames)
	}
	for id, frames := range want {
		got, err := recorded(t, f.store, id)
		if err != nil {
			t.Fatal(err)
		}
		same(t, id, got, frames)
	}
}

// TestStreamIsInTheBucketWhileItRuns: chunks do not wait for the end.
func TestStreamIsInTheBucketWhileItRuns(t *testing.T) {
	f := newFixture(t)
	r := f.open()
	stream := begin(t, r, "live")
	for i := range 3 {
		pass(t, stream, recorder.Stdout, "more ")
		recordertest.Eventually(t, "the chunk is there and named", func() error {
			got, err := recorded(t, f.store, "live")
			if len(got) != i+1 || !errors.Is(err, recorder.ErrIncomplete) {
				return fmt.Errorf("%d frames, %w", len(got), err)
			}
			return nil
		})
		report := f.verify(f.store)
		if !report.Proven() {
			t.Fatalf("a running stream is found broken: %v", report.Findings)
		}
	}
	end(t, r, stream, "live")
	f.close(r)
	f.proven(f.store, 1+1+3, "closed")
}

// TestStreamRefuses: what can never be recorded is refused at once, and does no harm.
func TestStreamRefuses(t *testing.T) {
	f := newFixture(t)
	r := f.open()
	if _, err := r.Stream("../x"); !errors.Is(err, recorder.ErrInvalid) {
		t.Errorf("a bad name: %v", err)
	}
	early, err := r.Stream("early")
	if err != nil {
		t.Fatal(err)
	}
	if err := passed(early, &recorder.Frame{}); !errors.Is(err, recorder.ErrInvalid) {
		t.Errorf("without an intent: %v", err)
	}
	stream := begin(t, r, "one")
	if _, err := r.Stream("one"); !errors.Is(err, recorder.ErrInvalid) {
		t.Errorf("begun twice: %v", err)
	}
	if err := passed(stream, &recorder.Frame{Channel: 5}); !errors.Is(err, recorder.ErrInvalid) {
		t.Errorf("channel 5: %v", err)
	}
	if err := passed(stream, &recorder.Frame{Data: make([]byte, recorder.MaxFrame+1)}); !errors.Is(err, recorder.ErrInvalid) {
		t.Errorf("too large: %v", err)
	}
	pass(t, stream, recorder.Stdout, "x")
	end(t, r, stream, "one")
	if err := passed(stream, &recorder.Frame{}); !errors.Is(err, recorder.ErrInvalid) {
		t.Errorf("behind the end: %v", err)
	}
	forgotten := begin(t, r, "forgotten")
	recordertest.Record(t, r, recordertest.Outcome(recordertest.Call("forgotten"), 101)) // closes it, too
	if err := passed(forgotten, &recorder.Frame{}); !errors.Is(err, recorder.ErrInvalid) {
		t.Errorf("behind its closing record: %v", err)
	}
	f.close(r)
	if err := passed(early, &recorder.Frame{}); !errors.Is(err, recorder.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	f.proven(f.store, 5, "closed")
}

// TestStreamsLeaveRoomForCalls: streams stall at half the spool while calls go on,
// give up in time, and go on by themselves when the bucket is back (T142).
func TestStreamsLeaveRoomForCalls(t *testing.T) {
	f := newFixture(t)
	f.config.FileSize, f.config.SpoolLimit, f.config.StreamStall = 128<<10, 2<<20, 100*time.Millisecond
	r := f.open()
	stream := begin(t, r, "bulk")
	f.store.Fail(recordertest.Fault{Operation: recordertest.Put})
	var want []recorder.Frame
	piece := make([]byte, 16<<10)
	var err error
	for len(want) < 1000 && err == nil {
		piece[0]++
		if err = passed(stream, &recorder.Frame{Channel: recorder.Stdout, Data: piece}); err == nil {
			want = append(want, recorder.Frame{Channel: recorder.Stdout, Data: bytes.Clone(piece)})
		}
	}
	if !errors.Is(err, recorder.ErrUnavailable) || len(want) < 32 || len(want) > 64 {
		t.Fatalf("%d frames passed, then %v", len(want), err)
	}
	f.calls(r, 100) // half of the spool is theirs
	cancelled, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	if _, err := stream.Append(cancelled, &recorder.Frame{Data: piece}); !errors.Is(err, recorder.ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("with an impatient caller: %v", err)
	}
	healed := make(chan struct{})
	time.AfterFunc(20*time.Millisecond, func() { f.store.Heal(); close(healed) })
	last := recorder.Frame{Channel: recorder.Stdout, Data: []byte("on we go")}
	recordertest.Eventually(t, "the stream goes on", func() error { return passed(stream, &last) })
	<-healed
	end(t, r, stream, "bulk")
	f.close(r)
	if report := f.verify(f.store); !report.Proven() {
		t.Errorf("found %v", report.Findings)
	}
	got, err := recorded(t, f.store, "bulk")
	if err != nil {
		t.Fatal(err)
	}
	same(t, "bulk", got, append(want, last))
}

// TestStreamOnAFullDisk: frames that found no room are not counted, and the closing
// record says what is there.
func TestStreamOnAFullDisk(t *testing.T) {
	f := newFixture(t)
	var full sync.Mutex
	room := 4
	recorder.HookDisk(&f.config, recorder.DiskHooks{Prepare: func(string) error {
		full.Lock()
		defer full.Unlock()
		if room--; room < 0 {
			return errors.New("no space left on device")
		}
		return nil
	}})
	f.config.FileSize, f.config.StreamStall = 128<<10, 50*time.Millisecond
	r := f.open()
	f.store.Fail(recordertest.Fault{Operation: recordertest.Put}) // so that nothing is trimmed
	stream := begin(t, r, "bulk")
	var want []recorder.Frame
	refused := 0
	for i := range 400 {
		frame := recorder.Frame{Channel: recorder.Stdout, Data: bytes.Repeat([]byte{byte(i)}, 8<<10)}
		if err := passed(stream, &frame); err == nil {
			want = append(want, frame)
		} else if refused++; !errors.Is(err, recorder.ErrUnavailable) {
			t.Fatal(err)
		} else if refused == 3 {
			full.Lock()
			room = 1000
			full.Unlock()
			f.store.Heal()
		}
	}
	if refused < 3 {
		t.Fatalf("%d frames were refused: the test shows nothing", refused)
	}
	end(t, r, stream, "bulk")
	f.close(r)
	if report := f.verify(f.store); !report.Proven() {
		t.Errorf("found %v", report.Findings)
	}
	got, err := recorded(t, f.store, "bulk")
	if err != nil {
		t.Fatal(err)
	}
	same(t, "bulk", got, want)
}
