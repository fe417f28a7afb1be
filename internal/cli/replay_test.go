package cli

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/taskgate/taskgate/internal/recordertest"
	"github.com/taskgate/taskgate/recorder"
)

// tape is a bucket with recorded streams, and a copy of it in a directory.
type tape struct {
	*testing.T
	store    *recordertest.MemoryStore
	recorder *recorder.Recorder
}

func newTape(t *testing.T) *tape {
	t.Helper()
	store := recordertest.NewMemoryStore(t)
	identity, _ := recordertest.NewIdentity(t)
	return &tape{T: t, store: store, recorder: recordertest.Open(t, recordertest.Config(t, store, identity))}
}

// stream records one stream with its frames.
func (p *tape) stream(id, subresource, query string, frames ...recorder.Frame) {
	p.Helper()
	intent := recordertest.Call(id)
	intent.Verb, intent.RequestURI = "create", "/api/v1/namespaces/shop/pods/web-0/"+subresource+"?"+query
	intent.ObjectRef = &recorder.ObjectReference{Resource: "pods", Namespace: "shop", Name: "web-0", Subresource: subresource}
	recordertest.Record(p, p.recorder, intent)
	stream, err := p.recorder.Stream(id)
	if err != nil {
		p.Fatal(err)
	}
	for i := range frames {
		if _, err := stream.Append(context.Background(), &frames[i]); err != nil {
			p.Fatal(err)
		}
	}
	outcome := recordertest.Outcome(intent, 101)
	stream.Describe(outcome)
	outcome.Annotations[recorder.AnnotationExitCode] = "0"
	recordertest.Record(p, p.recorder, outcome)
}

// copy closes the recorder and returns a directory with a copy of the bucket.
func (p *tape) copy() string {
	p.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := p.recorder.Close(ctx); err != nil {
		p.Fatal(err)
	}
	directory := p.TempDir()
	for _, key := range p.store.Keys("v1/") {
		path := filepath.Join(directory, key)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			p.Fatal(err)
		}
		if err := os.WriteFile(path, p.store.Body(key), 0o600); err != nil {
			p.Fatal(err)
		}
	}
	return directory
}

// replay runs a command without a terminal.
func replay(t *testing.T, arguments ...string) (out string, code int, message string) {
	t.Helper()
	root := command(func(any) bool { return false })
	var stdout bytes.Buffer
	root.SetOut(&stdout)
	root.SetArgs(arguments)
	err := root.ExecuteContext(t.Context())
	return stdout.String(), ExitCode(err), Message(err)
}

func at(milliseconds int, channel recorder.Channel, data string) recorder.Frame {
	return recorder.Frame{Time: time.UnixMilli(1_795_000_000_000 + int64(milliseconds)), Channel: channel, Data: []byte(data)}
}

func TestStreamsAreListed(t *testing.T) {
	p := newTape(t)
	p.stream("a1", "exec", "command=sh&command=-c&command=ls+/&container=app&stdin=true&tty=true", at(0, recorder.Stdout, "12345"))
	p.stream("a2", "portforward", "ports=8080", recorder.Frame{Connection: 1, Port: 8080, Data: []byte("GET")})
	p.stream("a3", "exec", "command=%1b]0;x%07", at(0, recorder.Stdout, "x"))
	recordertest.Record(t, p.recorder, recordertest.Call("no-stream"))
	recordertest.Record(t, p.recorder, recordertest.Outcome(recordertest.Call("no-stream"), 200))
	directory := p.copy()
	out, code, message := replay(t, "streams", directory)
	if code != 0 {
		t.Fatal(message)
	}
	checkInert(t, out)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if len(lines) != 4 || !strings.Contains(lines[1], "exec shop/web-0 -c app -it -- sh -c 'ls /'") || !strings.Contains(lines[1], " 5 ") || !strings.HasSuffix(lines[1], "exit 0") {
		t.Errorf("got\n%s", out)
	}
	if !strings.Contains(lines[2], "port-forward shop/web-0 8080") || !strings.Contains(lines[2], "spiffe://example.org/ns/agents/sa/alpha") || !strings.Contains(lines[2], "INC-4711") {
		t.Errorf("got\n%s", out)
	}
	out, _, _ = replay(t, "streams", directory, "-o", "jsonl", "--agent", "spiffe://example.org/ns/agents/sa/alpha")
	var first session
	if err := json.Unmarshal([]byte(strings.SplitN(out, "\n", 2)[0]), &first); err != nil || first.AuditID != "a1" || len(first.Command) != 3 || !first.TTY || first.Bytes != 5 {
		t.Errorf("got %+v, %v", first, err)
	}
	for _, none := range [][]string{{"--agent", "spiffe://example.org/other"}, {"--task", "x"}, {"--to", "1h"}} {
		if out, _, _ := replay(t, append([]string{"streams", directory}, none...)...); strings.Count(out, "\n") != 1 {
			t.Errorf("%v: got\n%s", none, out)
		}
	}
	if out, _, _ := replay(t, "records", directory); strings.Count(out, "\n") != 1+4 {
		t.Errorf("records shows chunks, too:\n%s", out)
	}
}

// TestReplayWithoutTerminal prints the text, and nothing a terminal would act on.
func TestReplayWithoutTerminal(t *testing.T) {
	p := newTape(t)
	p.stream("a1", "exec", "command=sh&tty=true&stdin=true",
		at(0, recorder.Resize, `{"Width":120,"Height":40}`), at(10, recorder.Stdin, "ls\r"), at(20, recorder.Stdout, "\x1b]52;c;ZXZpbA==\x07h\xc3"), at(30, recorder.Stderr, "oh\r\n"),
		at(40, recorder.Stdout, "\xa4llo\r\n\x1b[?1049h\x1b[31mred"), at(50, recorder.ErrorChannel, `{"status":"Success"}`))
	directory := p.copy()
	out, code, message := replay(t, "replay", "a1", directory)
	if want := "hoh\nällo\nred"; code != 0 || out != want {
		t.Errorf("got %q, %d %s; want %q", out, code, message, want)
	}
	if out, _, _ := replay(t, "replay", "a1", directory, "--stdin"); !strings.HasPrefix(out, "ls\n") {
		t.Errorf("with what was typed: %q", out)
	}
	for channel, want := range map[string]string{
		"stdout": "\x1b]52;c;ZXZpbA==\x07h\xc3\xa4llo\r\n\x1b[?1049h\x1b[31mred", "1": "\x1b]52;c;ZXZpbA==\x07h\xc3\xa4llo\r\n\x1b[?1049h\x1b[31mred",
		"stdin": "ls\r", "stderr": "oh\r\n", "error": `{"status":"Success"}`, "resize": `{"Width":120,"Height":40}`,
	} {
		if out, code, message := replay(t, "replay", "a1", directory, "--raw", channel); out != want || code != 0 {
			t.Errorf("--raw %s: %q, %d %s", channel, out, code, message)
		}
	}
	for _, wrong := range [][]string{{"replay", "a1", directory, "--raw", "6"}, {"replay", "a1", directory, "--raw", "stdout", "--connection", "1"}, {"replay", "a1", directory, "--speed", "0"}} {
		if _, code, _ := replay(t, wrong...); code != 2 {
			t.Errorf("%v: exit code %d", wrong, code)
		}
	}
	if _, code, message := replay(t, "replay", "unheard-of", directory); code != 1 || !strings.Contains(message, "nothing is recorded") {
		t.Errorf("an unknown one: %d %s", code, message)
	}
}

// TestReplayOfWhatIsMissing shows what is there and says that it is not all.
func TestReplayOfWhatIsMissing(t *testing.T) {
	p := newTape(t)
	p.stream("a1", "exec", "command=sh", at(0, recorder.Stdout, "hello"))
	directory := p.copy()
	chunks, _ := filepath.Glob(filepath.Join(directory, "v1/streams/*/*/a1/*"))
	if len(chunks) != 1 {
		t.Fatal(chunks)
	}
	data, err := os.ReadFile(chunks[0])
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	if err := os.WriteFile(chunks[0], data, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, arguments := range [][]string{nil, {"--raw", "stdout"}, {"--cast", "-"}, {"-o", "json"}} {
		out, code, message := replay(t, append([]string{"replay", "a1", directory}, arguments...)...)
		if code != 1 || !strings.Contains(message, "is not what the journal names") || strings.Contains(out, "hello") {
			t.Errorf("%v: %d %s\n%s", arguments, code, message, out)
		}
	}
	if err := os.Remove(chunks[0]); err != nil {
		t.Fatal(err)
	}
	if _, code, message := replay(t, "replay", "a1", directory); code != 1 || !strings.Contains(message, "is not there") {
		t.Errorf("%d %s", code, message)
	}
}

// cast reads an asciicast: its header and events.
func cast(t *testing.T, text string) (header map[string]any, events [][3]any) {
	t.Helper()
	lines := bufio.NewScanner(strings.NewReader(text))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if header == nil {
			if err := json.Unmarshal(lines.Bytes(), &header); err != nil {
				t.Fatal(err)
			}
			continue
		}
		var event [3]any
		if err := json.Unmarshal(lines.Bytes(), &event); err != nil {
			t.Fatalf("%q: %v", lines.Text(), err)
		}
		events = append(events, event)
	}
	return header, events
}

// castOf makes an asciicast of frames.
func castOf(t *testing.T, tty bool, list ...recorder.Frame) (header map[string]any, events [][3]any) {
	t.Helper()
	var out bytes.Buffer
	all := func(yield func(*recorder.Frame, error) bool) {
		for i := range list {
			if !yield(&list[i], nil) {
				return
			}
		}
	}
	if err := writeCast(&out, &session{Kind: "exec", Pod: "web-0", TTY: tty}, all); err != nil {
		t.Fatal(err)
	}
	return cast(t, out.String())
}

func TestCast(t *testing.T) {
	header, events := castOf(t, true, at(0, recorder.Stdin, "l"), at(500, recorder.Resize, `{"Width":100,"Height":30}`), at(1500, recorder.Stdout, "x"),
		at(1600, recorder.Resize, "{\"Width\":1,\"Height\":2}\n{\"Width\":90,\"Height\":20}\n"), at(1400, recorder.Stdout, "back in time"),
		at(2000, recorder.ErrorChannel, `{"status":"Failure","message":"exit code 3"}`))
	if header["version"] != 2.0 || header["width"] != 100.0 || header["height"] != 30.0 || header["timestamp"] != 1_795_000_000.0 {
		t.Errorf("got %v", header)
	}
	want := [][3]any{{0.0, "i", "l"}, {0.5, "r", "100x30"}, {1.5, "o", "x"}, {1.6, "r", "90x20"}, {1.6, "o", "back in time"}, {2.0, "m", "exit code 3"}}
	if fmt.Sprint(events) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", events, want)
	}
	header, events = castOf(t, false, at(0, recorder.Stdout, "a\nb"))
	if header["width"] != 80.0 || events[0][2] != "a\r\nb" {
		t.Errorf("got %v, %v", header, events)
	}
	if header, _ = castOf(t, true); header["version"] != 2.0 {
		t.Errorf("of nothing: %v", header)
	}
}

// TestCastKeepsCharactersWhole cuts text at every byte, with another channel between.
func TestCastKeepsCharactersWhole(t *testing.T) {
	const text = "aä世🙂\U0001F468\u200d\U0001F469z"
	for first := range len(text) {
		for second := first; second <= len(text); second++ {
			_, events := castOf(t, true, at(0, recorder.Stdout, text[:first]), at(1, recorder.Stderr, "é"), at(2, recorder.Stdout, text[first:second]),
				at(3, recorder.Stderr, "\xc3"), at(4, recorder.Stdout, text[second:]), at(5, recorder.Stderr, "\xa9"))
			var got strings.Builder
			for _, event := range events {
				if data := event[2].(string); data != "é" {
					got.WriteString(data)
				}
			}
			if got.String() != text {
				t.Fatalf("cut at %d and %d it is %q", first, second, got.String())
			}
		}
	}
	_, events := castOf(t, true, at(0, recorder.Stdout, "a\xffb\xe4\xb8"))
	if got := fmt.Sprintf("%s%s", events[0][2], events[1][2]); got != "a\ufffdb\ufffd\ufffd" {
		t.Errorf("what is no UTF-8 is %q", got)
	}
}

// TestReplayOfCopies shows a kubectl cp as its files, and gives the tar back.
func TestReplayOfCopies(t *testing.T) {
	content := bytes.Repeat([]byte("content "), 10_000)
	var packed bytes.Buffer
	writer := tar.NewWriter(&packed)
	for _, header := range []tar.Header{{Name: "dir/", Typeflag: tar.TypeDir}, {Name: "dir/a.txt", Size: int64(len(content)), Typeflag: tar.TypeReg}, {Name: "\x1b]0;x\x07", Linkname: "/etc/passwd", Typeflag: tar.TypeSymlink}} {
		if err := writer.WriteHeader(&header); err != nil {
			t.Fatal(err)
		}
		if header.Typeflag == tar.TypeReg {
			if _, err := writer.Write(content); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := writer.Close(); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(content)
	p := newTape(t)
	pieces := func(channel recorder.Channel, data []byte) (frames []recorder.Frame) {
		for len(data) > 0 {
			n := min(len(data), 5000)
			frames = append(frames, recorder.Frame{Channel: channel, Data: data[:n]})
			data = data[n:]
		}
		return frames
	}
	p.stream("up", "exec", "command=tar&command=-xmf&command=-&command=-C&command=/tmp&stdin=true", pieces(recorder.Stdin, packed.Bytes())...)
	p.stream("down", "exec", "command=tar&command=cf&command=-&command=/dir", pieces(recorder.Stdout, packed.Bytes())...)
	p.stream("cut", "exec", "command=tar&command=cf&command=-&command=/dir", pieces(recorder.Stdout, packed.Bytes()[:3000])...)
	directory := p.copy()
	for id, way := range map[string]string{"up": "to the pod", "down": "from the pod"} {
		out, code, message := replay(t, "replay", id, directory)
		checkInert(t, out)
		if code != 0 || !strings.Contains(out, way) || !strings.Contains(out, fmt.Sprintf("dir/a.txt  80000 bytes  sha256 %s\n", hex.EncodeToString(sum[:]))) || !strings.Contains(out, "link to /etc/passwd") {
			t.Errorf("%s: %d %s\n%s", id, code, message, out)
		}
	}
	if out, _, _ := replay(t, "replay", "up", directory, "--raw", "stdin"); out != packed.String() {
		t.Error("--raw does not give the tar back")
	}
	var summary struct{ Files []archived }
	out, _, _ := replay(t, "replay", "down", directory, "-o", "json")
	if err := json.Unmarshal([]byte(out), &summary); err != nil || len(summary.Files) != 3 || summary.Files[1].SHA256 != hex.EncodeToString(sum[:]) {
		t.Errorf("%v: %s", err, out)
	}
	if out, code, message := replay(t, "replay", "cut", directory); code == 0 || !strings.Contains(out, "dir/  0 bytes") || !strings.Contains(message, "no archive from here on") {
		t.Errorf("%d %s\n%s", code, message, out)
	}
}

func TestReplayOfPortForward(t *testing.T) {
	p := newTape(t)
	frame := func(connection uint32, channel recorder.Channel, data string) recorder.Frame {
		return recorder.Frame{Connection: connection, Port: 8080, Channel: channel, Data: []byte(data)}
	}
	p.stream("pf", "portforward", "ports=8080", frame(1, recorder.Stdin, "GET /"), frame(2, recorder.Stdin, "x"), frame(1, recorder.Stdout, "200 OK"), frame(2, recorder.ErrorChannel, "refused\x07"), frame(1, recorder.Stdout, "!"))
	directory := p.copy()
	out, code, _ := replay(t, "replay", "pf", directory)
	checkInert(t, out)
	if code != 0 || !strings.Contains(out, "connection 1 to port 8080") || !strings.Contains(out, "5 bytes to the pod, 7 from it") || !strings.Contains(out, `error: refused\x07`) {
		t.Errorf("%d\n%s", code, out)
	}
	if out, _, _ := replay(t, "replay", "pf", directory, "--raw", "stdout", "--connection", "1"); out != "200 OK!" {
		t.Errorf("got %q", out)
	}
	if _, code, message := replay(t, "replay", "pf", directory, "--raw", "stdout"); code != 2 || !strings.Contains(message, "--connection") {
		t.Errorf("%d %s", code, message)
	}
}

// clocked is a player whose output is noted with its time.
type clocked struct {
	begun time.Time
	text  strings.Builder
}

func (c *clocked) Write(p []byte) (int, error) {
	fmt.Fprintf(&c.text, "%s@%d ", p, time.Since(c.begun).Milliseconds())
	return len(p), nil
}

// TestPlayer plays against a clock that is not real.
func TestPlayer(t *testing.T) {
	list := []recorder.Frame{at(0, recorder.Stdout, "a"), at(1000, recorder.Stdout, "b"), at(4000, recorder.Stdin, "typed"), at(61_000, recorder.Stderr, "c"), at(62_000, recorder.Stdout, "d\x1b[6n")}
	all := func(yield func(*recorder.Frame, error) bool) {
		for i := range list {
			if !yield(&list[i], nil) {
				return
			}
		}
	}
	const bye = "\x1b[0m\x1b7\x1b[r\x1b8\r\n"
	for name, test := range map[string]struct {
		speed float64
		idle  time.Duration
		keys  map[time.Duration]key
		want  string
	}{
		"as it was":      {1, 0, nil, "a@0 b@1000 c@61000 d@62000 " + bye + "@62000 "},
		"faster":         {10, 0, nil, "a@0 b@100 c@6100 d@6200 " + bye + "@6200 "},
		"without pauses": {1, 2 * time.Second, nil, "a@0 b@1000 c@5000 d@6000 " + bye + "@6000 "},
		"paused":         {1, 2 * time.Second, map[time.Duration]key{500 * time.Millisecond: keyPause, 10500 * time.Millisecond: keyPause}, "a@0 b@11000 c@15000 d@16000 " + bye + "@16000 "},
		"on":             {1, 0, map[time.Duration]key{2 * time.Second: keyForward}, "a@0 b@1000 c@56000 d@57000 " + bye + "@57000 "},
		"ended":          {1, 0, map[time.Duration]key{2 * time.Second: keyQuit}, "a@0 b@1000 " + bye + "@2000 "},
		"back":           {1, 2 * time.Second, map[time.Duration]key{5500 * time.Millisecond: keyBack}, "a@0 b@1000 c@5000 \x1b[0m\x1b[r\x1b[H\x1b[2J@5500 a@5500 b@6000 c@10000 d@11000 " + bye + "@11000 "},
		"on, while paused": {1, 2 * time.Second, map[time.Duration]key{500 * time.Millisecond: keyPause, 600 * time.Millisecond: keyForward, 700 * time.Millisecond: keyQuit},
			"a@0 " + bye + "@700 "},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				out := &clocked{begun: time.Now()}
				p := &player{out: out, frames: all, visible: (&replayOptions{}).visible, speed: test.speed, idle: test.idle}
				keys := make(chan key)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				for when, pressed := range test.keys {
					go func() {
						time.Sleep(when)
						select {
						case keys <- pressed:
						case <-ctx.Done():
						}
					}()
				}
				if err := p.play(ctx, keys); err != nil {
					t.Fatal(err)
				}
				if got := out.text.String(); got != test.want {
					t.Errorf("got  %q\nwant %q", got, test.want)
				}
			})
		})
	}
}

func TestKeys(t *testing.T) {
	got := keysIn([]byte(" \x1b[C\x1b[Dx\x1b[Aq\x03"))
	if want := []key{keyPause, keyForward, keyBack, keyQuit, keyQuit}; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
