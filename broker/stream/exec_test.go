package stream_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"runtime"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/util/remotecommand"
	"k8s.io/client-go/rest"
	client "k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/util/exec"

	"github.com/taskgate/taskgate/broker/stream"
)

// ways are kubectl's, and the one of older WebSocket clients.
var ways = []string{"websocket-v5", "websocket-v4", "spdy"}

func (r *rig) executor(way string, options client.StreamOptions, command ...string) client.Executor {
	r.Helper()
	query := url.Values{"command": command}
	for name, on := range map[string]bool{"stdin": options.Stdin != nil, "stdout": options.Stdout != nil, "stderr": options.Stderr != nil, "tty": options.Tty} {
		if on {
			query.Set(name, "true")
		}
	}
	config, target := &rest.Config{Host: r.broker.URL}, r.broker.URL+"/api/v1/namespaces/shop/pods/web-0/exec?"+query.Encode()
	var executor client.Executor
	var err error
	switch way {
	case "websocket-v5":
		executor, err = client.NewWebSocketExecutor(config, http.MethodGet, target)
	case "websocket-v4":
		executor, err = client.NewWebSocketExecutorForProtocols(config, http.MethodGet, target, remotecommand.StreamProtocolV4Name)
	default:
		var parsed *url.URL
		if parsed, err = url.Parse(target); err == nil {
			executor, err = client.NewSPDYExecutor(config, http.MethodPost, parsed)
		}
	}
	if err != nil {
		r.Fatal(err)
	}
	return executor
}

func (r *rig) exec(way string, options client.StreamOptions, command ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return r.executor(way, options, command...).StreamWithContext(ctx, options)
}

// TestExec: what the client sees and sends is on record byte for byte, before it
// is passed on; stdin ends; exit codes come through.
func TestExec(t *testing.T) {
	for _, way := range ways {
		for _, tty := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s tty=%v", way, tty), func(t *testing.T) {
				r := newRig(t, nil)
				out, errs := &watched{t: t, journal: r.journal, channel: stream.Stdout}, &watched{t: t, journal: r.journal, channel: stream.Stderr}
				options := client.StreamOptions{Stdout: out, Stderr: errs, Tty: tty}
				if tty {
					options.Stderr = nil
				}
				if err := r.exec(way, options, "out", "200000"); err != nil {
					t.Fatal(err)
				}
				if out.String() != pattern(200000) || out.String() != r.journal.data(stream.Stdout, 0) || errs.String() != r.journal.data(stream.Stderr, 0) {
					t.Errorf("the client saw %d and %d bytes, on record are %d and %d", len(out.String()), len(errs.String()), len(r.journal.data(stream.Stdout, 0)), len(r.journal.data(stream.Stderr, 0)))
				}
				outcome := r.outcome()
				if outcome.Cause != nil || outcome.AgentLeft || outcome.ExitCode == nil || *outcome.ExitCode != 0 || outcome.FromPod < 200000 {
					t.Errorf("%+v", outcome)
				}
			})
		}
	}
}

func TestExitCode(t *testing.T) {
	for _, way := range ways {
		r := newRig(t, nil)
		var errs bytes.Buffer
		err := r.exec(way, client.StreamOptions{Stdout: io.Discard, Stderr: &errs}, "exit", "42")
		var code exec.CodeExitError
		if !errors.As(err, &code) || code.Code != 42 || errs.String() != "failing\n" {
			t.Errorf("%s: %v, %q", way, err, errs.String())
		}
		if outcome := r.outcome(); outcome.ExitCode == nil || *outcome.ExitCode != 42 || outcome.Cause != nil {
			t.Errorf("%s: %+v", way, outcome)
		}
	}
}

// TestStdin: input arrives, its end too where the protocol has one, and both are
// on record first.
func TestStdin(t *testing.T) {
	for _, way := range []string{"websocket-v5", "spdy"} {
		r := newRig(t, nil)
		text := pattern(150_000)
		var out bytes.Buffer
		if err := r.exec(way, client.StreamOptions{Stdin: strings.NewReader(text), Stdout: &out}, "cat"); err != nil {
			t.Fatalf("%s: %v", way, err)
		}
		if out.String() != text || r.stdin.String() != text || r.journal.data(stream.Stdin, 0) != text || !r.journal.ended(stream.Stdin) {
			t.Errorf("%s: %d bytes sent, %d arrived, %d came back, %d on record, end %v", way, len(text), len(r.stdin.String()), out.Len(), len(r.journal.data(stream.Stdin, 0)), r.journal.ended(stream.Stdin))
		}
		if outcome := r.outcome(); outcome.FromAgent != int64(len(text)) || outcome.ExitCode == nil {
			t.Errorf("%s: %+v", way, outcome)
		}
	}
}

// TestCut: the reason is what the client's error says, and both sides are closed
// within a second.
func TestCut(t *testing.T) {
	for _, way := range ways {
		for _, tty := range []bool{false, true} {
			r := newRig(t, nil)
			in, feed := io.Pipe()
			out, saw := io.Pipe()
			done := make(chan error, 1)
			options := client.StreamOptions{Stdin: in, Stdout: saw, Tty: tty}
			executor := r.executor(way, options, "sleep")
			go func() { done <- executor.StreamWithContext(context.Background(), options) }()
			if _, err := io.ReadFull(out, make([]byte, len("sleeping\n"))); err != nil {
				t.Fatal(err)
			}
			go func() { _, _ = io.Copy(io.Discard, out) }()
			cause := errors.New("the grant was revoked")
			begin := time.Now()
			r.stop(cause)
			outcome := r.outcome()
			if took := time.Since(begin); took > time.Second {
				t.Errorf("%s: closing took %v", way, took)
			}
			_ = feed.Close()
			err := <-done
			if err == nil || !strings.Contains(err.Error(), "cut: the grant was revoked") {
				t.Errorf("%s: the client reads %v", way, err)
			}
			if !errors.Is(outcome.Cause, cause) || !strings.Contains(r.journal.data(stream.Error, 0), "cut: the grant was revoked") {
				t.Errorf("%s: %+v, on record %q", way, outcome, r.journal.data(stream.Error, 0))
			}
			saw.Close()
		}
	}
}

// TestPodBreaks: an end without a word of how the command did is no success.
func TestPodBreaks(t *testing.T) {
	for _, way := range ways {
		r := newRig(t, nil)
		err := r.exec(way, client.StreamOptions{Stdout: io.Discard}, "quit")
		if err == nil || !strings.Contains(err.Error(), stream.ErrBroken.Error()) {
			t.Errorf("%s: the client reads %v", way, err)
		}
		if outcome := r.outcome(); !errors.Is(outcome.Cause, stream.ErrBroken) || outcome.ExitCode != nil {
			t.Errorf("%s: %+v", way, outcome)
		}
	}
}

// TestStalledRecorder (T142): nothing is released while the recorder does not
// answer; it goes on if that heals, and ends if it does not.
func TestStalledRecorder(t *testing.T) {
	for _, way := range ways {
		r := newRig(t, nil)
		r.limits.Recorder = 300 * time.Millisecond
		stalled := make(chan struct{})
		r.journal.stalled = stalled
		out := &watched{t: t, journal: r.journal, channel: stream.Stdout}
		begin := time.Now()
		time.AfterFunc(100*time.Millisecond, func() {
			r.journal.mu.Lock()
			r.journal.stalled = nil
			r.journal.mu.Unlock()
			close(stalled)
		})
		if err := r.exec(way, client.StreamOptions{Stdout: out}, "out", "1000"); err != nil || time.Since(begin) < 100*time.Millisecond || len(out.String()) != 1000 {
			t.Errorf("%s: %v, %d bytes", way, err, len(out.String()))
		}
		r.outcome()

		r.journal.mu.Lock()
		r.journal.stalled = make(chan struct{})
		r.journal.mu.Unlock()
		var never bytes.Buffer
		err := r.exec(way, client.StreamOptions{Stdout: &never}, "out", "1000")
		if err == nil || !strings.Contains(err.Error(), stream.ErrRecorder.Error()) || never.Len() > 0 {
			t.Errorf("%s: %v, and %d bytes got through", way, err, never.Len())
		}
		if outcome := r.outcome(); !errors.Is(outcome.Cause, stream.ErrRecorder) {
			t.Errorf("%s: %+v", way, outcome)
		}
	}
}

// sizes sends as many sizes as it is asked for, the last of them 4242 wide.
type sizes struct{ left int }

func (s *sizes) Next() *client.TerminalSize {
	s.left--
	switch {
	case s.left > 0:
		return &client.TerminalSize{Width: uint16(1 + s.left%1000), Height: 24}
	case s.left == 0:
		return &client.TerminalSize{Width: 4242, Height: 24}
	}
	return nil
}

// TestResizes (T150): of many changes few are passed on, and the last one is.
func TestResizes(t *testing.T) {
	for _, way := range ways {
		r := newRig(t, nil)
		var out bytes.Buffer
		begin := time.Now()
		if err := r.exec(way, client.StreamOptions{Stdin: bytes.NewReader(nil), Stdout: &out, Tty: true, TerminalSizeQueue: &sizes{left: 20_000}}, "sizes", "4242"); err != nil {
			t.Fatalf("%s: %v", way, err)
		}
		lines := strings.Count(out.String(), "\n")
		if most := int(time.Since(begin)/(50*time.Millisecond)) + 2; lines > most || !strings.HasSuffix(out.String(), "4242x24\n") || strings.Count(r.journal.data(stream.Resize, 0), "\n") != lines {
			t.Errorf("%s: %d sizes in %v, the last %.20q", way, lines, time.Since(begin), out.String()[max(0, out.Len()-20):])
		}
		r.outcome()
	}
}

// TestQuota: a stream carries no more than it may, and is open no longer.
func TestQuota(t *testing.T) {
	for _, way := range ways {
		r := newRig(t, nil)
		r.limits.Bytes = 10_000
		var out bytes.Buffer
		if err := r.exec(way, client.StreamOptions{Stdout: &out}, "out", "100000"); err == nil || !strings.Contains(err.Error(), stream.ErrBytes.Error()) || out.Len() > 10_000 {
			t.Errorf("%s: %v after %d bytes", way, err, out.Len())
		}
		r.outcome()
		r.limits.Bytes, r.limits.Time = 1<<30, 100*time.Millisecond
		in, feed := io.Pipe()
		if err := r.exec(way, client.StreamOptions{Stdin: in, Stdout: &out}, "sleep"); err == nil || !strings.Contains(err.Error(), stream.ErrTime.Error()) {
			t.Errorf("%s: %v", way, err)
		}
		r.outcome()
		feed.Close()
		spent := errors.New("the budget is spent")
		r.limits.Time, r.account = time.Hour, func(int) error { return spent }
		if err := r.exec(way, client.StreamOptions{Stdout: io.Discard}, "out", "10"); err == nil || !strings.Contains(err.Error(), spent.Error()) {
			t.Errorf("%s: %v", way, err)
		}
		r.outcome()
	}
}

// TestManyStreams: opens and closes leave nothing behind; goleak looks for
// goroutines at the end of the package.
func TestManyStreams(t *testing.T) {
	r := newRig(t, nil)
	count := 60
	before := 0
	for i := range count {
		if err := r.exec(ways[i%len(ways)], client.StreamOptions{Stdout: io.Discard}, "out", "100"); err != nil {
			t.Fatal(err)
		}
		r.outcome()
		if i == count/2 {
			before = runtime.NumGoroutine()
		}
	}
	deadline := time.Now().Add(5 * time.Second)
	for runtime.NumGoroutine() > before+5 && time.Now().Before(deadline) {
		time.Sleep(10 * time.Millisecond)
	}
	if now := runtime.NumGoroutine(); now > before+5 {
		t.Errorf("%d goroutines, %d half way", now, before)
	}
}
