package recorder_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/taskgate/taskgate/internal/recordertest"
	"github.com/taskgate/taskgate/recorder"
)

// streamEvidence is a bucket with two recorded streams of three chunks each, and a
// closed journal.
type streamEvidence struct {
	*fixture
	one, two []string                  // keys of chunks
	opened   *recordertest.MemoryStore // as it was while the streams ran
}

func newStreamEvidence(t *testing.T) *streamEvidence {
	e := &streamEvidence{fixture: newFixture(t)}
	r := e.open()
	streams := []*recorder.Stream{begin(t, r, "one"), begin(t, r, "two")}
	for round := range 3 {
		for n, stream := range streams {
			pass(t, stream, recorder.Stdout, fmt.Sprintf("stream %d, chunk %d\n", n, round))
		}
		for n := range streams {
			recordertest.Eventually(t, "the chunk is named", func() error {
				got, err := recorded(t, e.store, []string{"one", "two"}[n])
				if len(got) == round+1 {
					return nil
				}
				return fmt.Errorf("%d frames, %w", len(got), err)
			})
		}
	}
	e.opened = e.store.Clone(t)
	end(t, r, streams[0], "one")
	end(t, r, streams[1], "two")
	e.fixture.close(r)
	e.one, e.two = e.chunks("one"), e.chunks("two")
	if report := e.verify(e.store); !report.Proven() || len(e.one) != 3 || len(e.two) != 3 {
		t.Fatalf("%d and %d chunks, %v", len(e.one), len(e.two), report.Findings)
	}
	return e
}

func (e *streamEvidence) chunks(id string) []string {
	return slices.DeleteFunc(e.store.Keys("v1/streams/"), func(key string) bool { return !strings.Contains(key, "/"+id+"/") })
}

// TestTamperingWithStreams changes chunks in every way there is.
func TestTamperingWithStreams(t *testing.T) {
	e := newStreamEvidence(t)
	body := func(m *recordertest.MemoryStore, key string) []byte { return m.Versions(key)[0].Body }
	for _, test := range []struct {
		name   string
		change func(*recordertest.MemoryStore)
		reason recorder.Reason
		key    string // named in the finding, "" for any
	}{
		{"flipped", func(m *recordertest.MemoryStore) {
			m.Replace(e.one[1], func(b []byte) []byte { b[len(b)/2] ^= 1; return b })
		}, recorder.HashMismatch, e.one[1]},
		{"emptied", func(m *recordertest.MemoryStore) {
			m.Replace(e.one[1], func([]byte) []byte { return nil })
		}, recorder.HashMismatch, e.one[1]},
		{"deleted", func(m *recordertest.MemoryStore) { m.Remove(e.one[1]) }, recorder.MissingObject, e.one[1]},
		{"last one withheld", func(m *recordertest.MemoryStore) { m.Remove(e.one[2]) }, recorder.MissingObject, e.one[2]},
		{"all withheld", func(m *recordertest.MemoryStore) {
			for _, key := range e.one {
				m.Remove(key)
			}
		}, recorder.MissingObject, e.one[0]},
		{"swapped", func(m *recordertest.MemoryStore) {
			first, second := body(m, e.one[0]), body(m, e.one[1])
			m.Replace(e.one[0], func([]byte) []byte { return second })
			m.Replace(e.one[1], func([]byte) []byte { return first })
		}, recorder.HashMismatch, e.one[0]},
		{"spliced from another stream", func(m *recordertest.MemoryStore) {
			m.Replace(e.one[1], func([]byte) []byte { return body(m, e.two[1]) })
		}, recorder.HashMismatch, e.one[1]},
		{"duplicated behind the end", func(m *recordertest.MemoryStore) {
			m.Add(strings.Replace(e.one[2], "000003", "000004", 1), body(m, e.one[2]), time.Now().Add(time.Hour))
		}, recorder.UnknownObject, strings.Replace(e.one[2], "000003", "000004", 1)},
		{"put under another day", func(m *recordertest.MemoryStore) {
			m.Add("v1/streams/cluster=test/dt=2026-01-01/one/000001.jsonl.zst", body(m, e.one[0]), time.Now().Add(time.Hour))
		}, recorder.UnknownObject, "v1/streams/cluster=test/dt=2026-01-01/one/000001.jsonl.zst"},
		{"a stream nobody named", func(m *recordertest.MemoryStore) {
			m.Add(strings.Replace(e.one[0], "/one/", "/three/", 1), body(m, e.one[0]), time.Now().Add(time.Hour))
		}, recorder.UnknownObject, strings.Replace(e.one[0], "/one/", "/three/", 1)},
		{"an object beside", func(m *recordertest.MemoryStore) {
			m.Add("v1/streams/x", nil, time.Time{})
		}, recorder.UnknownObject, "v1/streams/x"},
		{"another name in the folder", func(m *recordertest.MemoryStore) {
			m.Add(strings.Replace(e.one[0], "000001", "0000001", 1), body(m, e.one[0]), time.Time{})
		}, recorder.UnknownObject, strings.Replace(e.one[0], "000001", "0000001", 1)},
		{"second version", func(m *recordertest.MemoryStore) {
			m.Add(e.one[1], []byte("theirs"), time.Time{})
		}, recorder.ExtraVersion, e.one[1]},
		{"without a lock", func(m *recordertest.MemoryStore) { m.SetLock(e.one[1], recorder.Lock{}) }, recorder.LockMissing, e.one[1]},
	} {
		t.Run(test.name, func(t *testing.T) {
			bucket := e.store.Clone(t)
			test.change(bucket)
			report := e.verify(bucket)
			if report.Proven() {
				t.Fatal("nothing was found")
			}
			if first := report.Findings[0]; first.Reason != test.reason || first.Key != test.key {
				t.Errorf("found %s first, want %s of %s; all: %v", first, test.reason, test.key, report.Findings)
			}
			first := report.Findings[0]
			if inside := test.reason != recorder.UnknownObject; inside != (first.Seq > 0) {
				t.Errorf("the first bad record is %d", first.Seq)
			}
			if got, err := recorded(t, bucket, "one"); err == nil && len(got) != 3 {
				t.Errorf("replay shows %d frames and is content", len(got))
			}
			for _, frame := range must(recorded(t, bucket, "one")) {
				if !strings.HasPrefix(string(frame.Data), "stream 0, chunk ") {
					t.Errorf("replay shows %q", frame.Data)
				}
			}
		})
	}
	hidden := e.store.Clone(t)
	hidden.Hide(e.one[1])
	report := e.verify(hidden)
	if !report.Proven() || !slices.ContainsFunc(report.Notes, func(f recorder.Finding) bool { return f.Reason == recorder.DeleteMarker && f.Key == e.one[1] }) {
		t.Errorf("hidden by a delete marker: %v, %v", report.Findings, report.Notes)
	}
	if got, err := recorded(t, hidden, "one"); len(got) != 3 || err != nil {
		t.Errorf("replay of what is hidden: %d frames, %v", len(got), err)
	}
}

// must is for what may fail as long as it is right as far as it goes.
func must(frames []recorder.Frame, _ error) []recorder.Frame { return frames }

// TestUnnamedChunkOfARunningBroker: its record may be on its way, but not forever.
func TestUnnamedChunkOfARunningBroker(t *testing.T) {
	e := newStreamEvidence(t)
	bucket := e.opened
	key := strings.Replace(e.one[2], "000003", "000004", 1)
	bucket.Add(key, []byte("x"), time.Now().Add(time.Hour))
	report := e.verify(bucket)
	if !report.Proven() || !slices.ContainsFunc(report.Notes, func(f recorder.Finding) bool { return f.Reason == recorder.Unproven && f.Key == key }) {
		t.Errorf("a fresh one: %v, %v", report.Findings, report.Notes)
	}
	bucket.SetModified(key, time.Now().Add(-time.Hour))
	if report := e.verify(bucket); report.Proven() {
		t.Error("an old one is not found")
	}
}

// TestBitFlipsInStreams flips single bits all over the chunks (T166).
func TestBitFlipsInStreams(t *testing.T) {
	e := newStreamEvidence(t)
	for range 100 {
		bucket := e.store.Clone(t)
		key := append(e.one, e.two...)[rand.IntN(6)]
		bucket.Replace(key, func(b []byte) []byte { b[rand.IntN(len(b))] ^= 1 << rand.IntN(8); return b })
		report := e.verify(bucket)
		if report.Proven() || report.Findings[0].Key != key || report.Findings[0].Seq == 0 {
			t.Fatalf("found %v, want %s", report.Findings, key)
		}
	}
}

// TestLyingClosingRecord: totals that the chunks do not reach are found, signed as
// they are.
func TestLyingClosingRecord(t *testing.T) {
	for name, change := range map[string]func(map[string]string){
		"more frames": func(a map[string]string) { a[recorder.AnnotationStreamFrames] = "3" },
		"more bytes": func(a map[string]string) {
			a[recorder.AnnotationStreamBytes], a[recorder.AnnotationStreamBytes+"-stdout"] = "5", "5"
		},
		"another channel": func(a map[string]string) {
			a[recorder.AnnotationStreamBytes+"-stdin"] = a[recorder.AnnotationStreamBytes+"-stdout"]
			delete(a, recorder.AnnotationStreamBytes+"-stdout")
		},
		"no frames": func(a map[string]string) { a[recorder.AnnotationStreamFrames] = "0" },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			r := f.open()
			stream := begin(t, r, "one")
			pass(t, stream, recorder.Stdout, "ab")
			pass(t, stream, recorder.Stdout, "cd")
			outcome := recordertest.Outcome(recordertest.Call("one"), 101)
			stream.Describe(outcome)
			change(outcome.Annotations)
			recordertest.Record(t, r, outcome)
			f.close(r)
			report := f.verify(f.store)
			if report.Proven() || report.Findings[0].Reason != recorder.TotalsDiffer {
				t.Errorf("found %v", report.Findings)
			}
		})
	}
}

// TestHostileChunks: whatever a chunk holds, reading it ends soon, takes little, and
// says what is wrong.
func TestHostileChunks(t *testing.T) {
	encoder, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer encoder.Close()
	line := func(frame recorder.Frame) []byte { return recorder.AppendLine(nil, &frame) }
	good := line(recorder.Frame{Time: time.UnixMicro(1), Channel: recorder.Stdout, Data: []byte("abc")})
	for _, test := range []struct {
		name   string
		lines  []byte
		frames uint64
		bytes  uint64
		reason recorder.Reason
	}{
		{"good", good, 1, 3, ""},
		{"a frame missing", good, 2, 6, recorder.TotalsDiffer},
		{"a frame too many", slices.Concat(good, good), 1, 3, recorder.TotalsDiffer},
		{"a bomb", bytes.Repeat([]byte{'\n'}, 64<<20), 1, 3, recorder.NotCanonical},
		{"a line without an end", bytes.Repeat([]byte{'a'}, 64<<20), 1, 3, recorder.TooLarge},
		{"no newline", good[:len(good)-1], 1, 3, recorder.Malformed},
		{"spaces", bytes.Replace(good, []byte(":"), []byte(": "), 1), 1, 3, recorder.NotCanonical},
		{"base64 with a newline in it", bytes.Replace(good, []byte("YWJj"), []byte(`YW\nJj`), 1), 1, 3, recorder.NotCanonical},
		{"base64 with loose bits", bytes.Replace(good, []byte("YWJj"), []byte(`YWF=`), 1), 1, 2, recorder.NotCanonical},
		{"a zero said", bytes.Replace(good, []byte(`,"b64"`), []byte(`,"conn":0,"b64"`), 1), 1, 3, recorder.NotCanonical},
		{"a channel there is not", bytes.Replace(good, []byte(`"ch":1`), []byte(`"ch":5`), 1), 1, 3, recorder.NotCanonical},
		{"a negative channel", bytes.Replace(good, []byte(`"ch":1`), []byte(`"ch":-1`), 1), 1, 3, recorder.NotCanonical},
	} {
		t.Run(test.name, func(t *testing.T) {
			content := encoder.EncodeAll(test.lines, nil)
			reason, err := recorder.CheckChunk(content, test.frames, test.bytes)
			if err != nil || reason != test.reason {
				t.Errorf("got %q, %v; want %q", reason, err, test.reason)
			}
		})
	}
}

// FuzzChunk: a chunk of arbitrary bytes is read without harm, and what is accepted
// is what is written.
func FuzzChunk(f *testing.F) {
	frame := recorder.Frame{Time: time.UnixMicro(1795451234567890), Connection: 2, Port: 8080, Channel: recorder.Stderr, End: true, Data: []byte("hello")}
	f.Add(recorder.AppendLine(nil, &frame))
	f.Add([]byte(`{"t":-1,"ch":0,"b64":""}` + "\n"))
	f.Add([]byte(`{"t":9223372036854775808,"ch":0,"b64":""}` + "\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, err := recorder.CheckChunk(data, 1, 1<<10); err != nil {
			t.Fatalf("it could not be read: %v", err)
		}
		line, found := bytes.CutSuffix(data, []byte("\n"))
		frame, err := recorder.ReadLine(line)
		if !found || err != nil {
			return
		}
		if again := recorder.AppendLine(nil, &frame); !bytes.Equal(again, data) {
			t.Errorf("%q reads as %q", data, again)
		}
		var general struct {
			T    int64
			Ch   uint8
			Conn uint32
			Port uint16
			End  bool
			B64  []byte
		}
		if err := json.Unmarshal(line, &general); err != nil {
			t.Fatalf("%q is no JSON: %v", line, err)
		}
		if general.T != frame.Time.UnixMicro() || general.Ch != uint8(frame.Channel) || general.Conn != frame.Connection ||
			general.Port != frame.Port || general.End != frame.End || !bytes.Equal(general.B64, frame.Data) {
			t.Errorf("%q reads as %+v", line, frame)
		}
	})
}

// FuzzPiece: the form in the spool is read without harm, and keeps what it is given.
func FuzzPiece(f *testing.F) {
	f.Add([]byte("0123456789abcdef"))
	f.Fuzz(func(t *testing.T, data []byte) {
		frame, err := recorder.ParsePiece(data)
		if err != nil {
			return
		}
		if again := recorder.AppendPiece(nil, &frame, frame.Time.UnixMicro()); !bytes.Equal(again, data) {
			t.Errorf("%q reads as %q", data, again)
		}
	})
}
