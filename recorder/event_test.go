package recorder_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/taskgate/taskgate/internal/recordertest"
	"github.com/taskgate/taskgate/recorder"
)

func hostile() string {
	return "\n{\"seq\":9}\r\x00\u2028<script>\"taskgate.dev/seq\":\"00000000000000000000\""
}

func TestEncodeIsOneLineWhateverTheAgentSends(t *testing.T) {
	event := recordertest.Call("a")
	event.UserAgent, event.RequestURI, event.ObjectRef.Name = hostile(), hostile(), hostile()
	event.ResponseStatus = &recorder.ResponseStatus{Message: hostile()}
	event.RequestObject = json.RawMessage(`{"z": {"taskgate.dev/seq":"00000000000000000000"}}`)
	event.Annotations["taskgate.dev/zzz"] = hostile()
	event.Annotations[recorder.AnnotationSeq] = "mine"

	line, err := recorder.EncodeNumbered(event, 42)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.ContainsAny(line, "\n\r\x00") {
		t.Errorf("the record is not one line: %q", line)
	}
	got, err := recorder.DecodeEvent(line)
	if err != nil {
		t.Fatal(err)
	}
	if got.Seq() != 42 || got.UserAgent != hostile() || got.ObjectRef.Name != hostile() || got.ResponseStatus.Message != hostile() || got.Annotations["taskgate.dev/zzz"] != hostile() {
		t.Errorf("got %+v", got)
	}
	if want := `{"z":{"taskgate.dev/seq":"00000000000000000000"}}`; string(got.RequestObject) != want {
		t.Errorf("requestObject is %s", got.RequestObject)
	}
	if event.Annotations[recorder.AnnotationSeq] != "mine" || event.Kind != "" {
		t.Error("the caller's event was changed")
	}
}

func TestEncodeKeepsBytesThatAreNotUTF8(t *testing.T) {
	event := recordertest.Call("a")
	event.UserAgent, event.RequestURI = "\xff\xfe", "base64:plain"
	line, err := recorder.EncodeNumbered(event, 1)
	if err != nil {
		t.Fatal(err)
	}
	got, err := recorder.DecodeEvent(line)
	if err != nil {
		t.Fatal(err)
	}
	if got.UserAgent != "base64://4=" || got.RequestURI != "base64:YmFzZTY0OnBsYWlu" {
		t.Errorf("got %q and %q", got.UserAgent, got.RequestURI)
	}
}

func TestEncodeRefuses(t *testing.T) {
	for name, change := range map[string]func(*recorder.Event){
		"no audit ID":              func(e *recorder.Event) { e.AuditID = "" },
		"an audit ID not UTF-8":    func(e *recorder.Event) { e.AuditID = "\xff" },
		"a long audit ID":          func(e *recorder.Event) { e.AuditID = strings.Repeat("a", 256) },
		"an unknown stage":         func(e *recorder.Event) { e.Stage = "Panic" },
		"requestObject no JSON":    func(e *recorder.Event) { e.RequestObject = []byte("{") },
		"requestObject not UTF-8":  func(e *recorder.Event) { e.RequestObject = []byte("\"\xff\"") },
		"requestObject two values": func(e *recorder.Event) { e.RequestObject = []byte("1 2") },
	} {
		t.Run(name, func(t *testing.T) {
			event := recordertest.Call("a")
			change(event)
			if _, err := recorder.EncodeNumbered(event, 1); !errors.Is(err, recorder.ErrInvalid) {
				t.Errorf("got %v, want ErrInvalid", err)
			}
		})
	}
}

func TestDecodeAcceptsOnlyTheCanonicalForm(t *testing.T) {
	encoded, err := recorder.EncodeNumbered(recordertest.Call("a"), 7)
	if err != nil {
		t.Fatal(err)
	}
	line := string(encoded)
	for name, changed := range map[string]string{
		"unknown field":   strings.Replace(line, `"level":`, `"extra":1,"level":`, 1),
		"field twice":     strings.Replace(line, `"verb":"get"`, `"verb":"list","verb":"get"`, 1),
		"reordered":       strings.Replace(line, `"kind":"Event","apiVersion":"audit.k8s.io/v1"`, `"apiVersion":"audit.k8s.io/v1","kind":"Event"`, 1),
		"other case":      strings.Replace(line, `"verb"`, `"Verb"`, 1),
		"space":           strings.Replace(line, `:`, `: `, 1),
		"other escape":    strings.Replace(line, `"get"`, `"g\u0065t"`, 1),
		"more behind":     line + "{}",
		"carriage return": line + "\r",
		"short number":    strings.Replace(line, `"00000000000000000007"`, `"7"`, 1),
		"no number":       strings.Replace(line, `"taskgate.dev/seq":"00000000000000000007",`, ``, 1),
		"number zero":     strings.Replace(line, `"00000000000000000007"`, `"00000000000000000000"`, 1),
		"other time":      strings.Replace(line, `"requestReceivedTimestamp":"2`, `"requestReceivedTimestamp":"+2`, 1),
	} {
		t.Run(name, func(t *testing.T) {
			if changed == line {
				t.Fatal("the case changes nothing")
			}
			if _, err := recorder.DecodeEvent([]byte(changed)); !errors.Is(err, recorder.ErrNotCanonical) {
				t.Errorf("got %v, want ErrNotCanonical", err)
			}
		})
	}
	if _, err := recorder.DecodeEvent(encoded); err != nil {
		t.Errorf("the encoder's own form is refused: %v", err)
	}
}

// FuzzStamp shows that what encode writes is what encoding/json would (DecodeEvent
// checks that), and that stamping the number changes the number and nothing else,
// whatever is in the event.
func FuzzStamp(f *testing.F) {
	f.Add("agent", "name", `{"a":1}`, "key", "value", uint64(1))
	f.Add(hostile(), hostile(), `{"taskgate.dev/seq":"00000000000000000000"}`, "taskgate.dev/zzz", hostile(), uint64(1<<63))
	f.Add("", "", `"\"taskgate.dev/seq\":\"00000000000000000000\""`, `x","taskgate.dev/seq":"00000000000000000000`, "", uint64(10))
	f.Fuzz(func(t *testing.T, agent, name, object, key, value string, seq uint64) {
		event := recordertest.Call("a")
		event.StageTimestamp.Time = time.Unix(1, 0)
		event.UserAgent, event.ObjectRef.Name, event.RequestObject = agent, name, json.RawMessage(object)
		event.Annotations[key] = value
		event.User = recorder.UserInfo{Username: agent, UID: name, Groups: []string{value, key}, Extra: map[string][]string{key: {value, agent}, name: nil, value: {}}}
		event.SourceIPs, event.ResponseStatus = []string{agent}, &recorder.ResponseStatus{Message: value, Reason: key, Code: int32(seq)}
		first, err := recorder.EncodeNumbered(event, 1)
		if err != nil {
			return
		}
		seq = max(seq, 1)
		second, err := recorder.EncodeNumbered(event, seq)
		if err != nil {
			t.Fatal(err)
		}
		one, err := recorder.DecodeEvent(first)
		if err != nil {
			t.Fatalf("%v: %s", err, first)
		}
		two, err := recorder.DecodeEvent(second)
		if err != nil {
			t.Fatalf("%v: %s", err, second)
		}
		if one.Seq() != 1 || two.Seq() != seq {
			t.Fatalf("numbers %d and %d, want 1 and %d", one.Seq(), two.Seq(), seq)
		}
		delete(one.Annotations, recorder.AnnotationSeq)
		delete(two.Annotations, recorder.AnnotationSeq)
		if diff := cmp.Diff(one, two); diff != "" {
			t.Fatalf("more than the number changed:\n%s", diff)
		}
	})
}

// FuzzDecodeEvent shows that what is accepted encodes to the same bytes.
func FuzzDecodeEvent(f *testing.F) {
	line, err := recorder.EncodeNumbered(recordertest.Call("a"), 1)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(line)
	f.Fuzz(func(t *testing.T, line []byte) {
		event, err := recorder.DecodeEvent(line)
		if err != nil {
			return
		}
		again, err := json.Marshal(event)
		if err != nil || !bytes.Equal(again, line) {
			t.Fatalf("accepted %q and wrote %q, %v", line, again, err)
		}
	})
}

// TestMicroTimeIsWrittenAs the layout says, whatever the moment.
func TestMicroTimeIsWrittenAs(t *testing.T) {
	for _, moment := range []time.Time{
		time.Unix(0, 1), time.Unix(1795443909, 123456789), time.Date(2026, 1, 2, 3, 4, 5, 6000, time.FixedZone("x", -3600)),
		time.Date(1, 1, 1, 0, 0, 0, 1000, time.UTC), time.Date(9999, 12, 31, 23, 59, 59, 999999999, time.UTC),
		time.Date(-1, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC),
	} {
		got, _ := recorder.MicroTime{Time: moment}.MarshalJSON()
		if want := moment.UTC().Format(`"2006-01-02T15:04:05.000000Z07:00"`); string(got) != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}
