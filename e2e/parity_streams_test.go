package e2e_test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestParityOfWatching: kubectl get -w shows each thing when it happens, and the
// same on both sides.
func TestParityOfWatching(t *testing.T) {
	t.Parallel()
	watches := []struct{ run, first, last string }{
		{`kubectl get cm -l app=w -w --no-headers`, "present", "end"},
		{`kubectl get cm -l app=w -w -o json --output-watch-events`, `"ADDED"`, `"end"`},
		{`kubectl get cm -l app=w -w -o name`, "present", "end"},
		{`kubectl get cm -l app=w -w -o jsonpath='{.metadata.name} {.metadata.labels}{"\n"}'`, "present", "end"},
		{`kubectl get cm -l app=w --watch-only -o name`, "", "end"},
		{`kubectl get cm present -w --output-watch-events -o jsonpath='{.type} {.object.metadata.labels.round}{"\n"}'`, "ADDED", "DELETED two"},
		{`kubectl get --raw "/api/v1/namespaces/$ns/configmaps?watch=1&labelSelector=app%3Dw"`, "present", `"end"`},
	}
	pair := sides(t, "watch")
	var seen [2][]string
	for i, side := range pair {
		seen[i] = make([]string, len(watches))
		side.must(t, `kubectl create cm present && kubectl label cm present app=w`)
		var followers []*follower
		for _, w := range watches {
			f := side.follow(t, w.run)
			f.until(t, w.first)
			followers = append(followers, f)
		}
		// Nothing tells that --watch-only has begun but an event it shows.
		eventually(t, 20*time.Second, "an event of --watch-only", func() error {
			side.must(t, `kubectl create cm probe && kubectl label cm probe app=w && kubectl delete cm probe`)
			return followers[4].shows("probe")
		})
		side.must(t, `kubectl label cm present round=one && kubectl label cm present round=two --overwrite && kubectl delete cm present
			kubectl create cm end && kubectl label cm end app=w`)
		for n, w := range watches {
			seen[i][n] = withoutProbe(followers[n].until(t, w.last))
		}
	}
	for n, w := range watches {
		same(t, w.run, [2]string{normal(seen[0][n]), normal(seen[1][n])})
	}
}

// TestParityOfLogs: followed logs show each line when it is written.
func TestParityOfLogs(t *testing.T) {
	pair := sides(t, "logs") // alone: every pod has the same log
	for _, side := range pair {
		side.must(t, `kubectl create deployment web --image=nginx && kubectl rollout status deployment/web --timeout=30s && kubectl run one --image=nginx --labels=app=one && kubectl wait --for=condition=Ready pod/one --timeout=20s`)
	}
	play(t, pair, []step{
		{run: `kubectl logs one`, says: "hello from"},
		{run: `kubectl logs one -c one --tail=1 --timestamps`, says: "Z "},
		{run: `kubectl logs one --limit-bytes=5`, says: "hello"},
		{run: `kubectl logs one --previous`, says: "hello from"},
		{run: `kubectl logs deployment/web`, says: "hello from"},
		{run: `kubectl logs -l app=one --prefix --all-containers`, says: "[pod/one/one] hello"},
		{run: `kubectl logs one -c absent`, says: "container absent is not valid for pod one", code: 1},
		{run: `kubectl get --raw "/api/v1/namespaces/$ns/pods/one/log?tailLines=0" && echo end`, says: "end"},
	})
	commands := []string{`kubectl logs -f one`, `kubectl logs -f deployment/web --tail=1`, `kubectl logs -f -l app=one --prefix`}
	var followers [2][]*follower
	for i, side := range pair {
		for _, command := range commands {
			followers[i] = append(followers[i], side.follow(t, command))
			followers[i][len(followers[i])-1].until(t, "fake node") // before what follows is written
		}
	}
	for n := range 3 {
		line := fmt.Sprintf("parity of logs, line %d", n)
		if err := pair[0].AppendPodLog(line); err != nil {
			t.Fatal(err)
		}
		for i := range pair {
			for _, f := range followers[i] {
				f.wait(t, line) // each line comes without the next
			}
		}
	}
	for n, command := range commands {
		same(t, command, [2]string{normal(followers[0][n].until(t, "line 2")), normal(followers[1][n].until(t, "line 2"))})
	}
}

// withoutProbe leaves out the lines about the object that is made and deleted
// until a watch shows it, however often that takes. Objects in the JSON of
// kubectl take many lines.
func withoutProbe(text string) string {
	separator := "\n"
	if strings.HasPrefix(text, "{\n") {
		separator = "\n}\n"
	}
	var kept []string
	for piece := range strings.SplitSeq(text, separator) {
		if !strings.Contains(piece, "probe") {
			kept = append(kept, piece)
		}
	}
	return strings.Join(kept, separator)
}

// must runs a line of shell that only prepares something.
func (s *side) must(t *testing.T, line string) {
	t.Helper()
	if got := s.runStep(t, "set -e; "+line); got.code != 0 {
		t.Fatalf("%s: %s: %s", s.name, line, got)
	}
}

// follower is a command that goes on until it is told to stop.
type follower struct {
	side *side
	run  string
	stop func()

	mu   sync.Mutex
	text bytes.Buffer
}

func (f *follower) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.text.Write(p)
}

func (f *follower) String() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.side.anyNamespace(f.text.String())
}

// follow starts a command. It ends, at the latest, with the test.
func (s *side) follow(t *testing.T, line string) *follower {
	t.Helper()
	f := &follower{side: s, run: line}
	command := s.shell(t, line)
	command.Stdout, command.Stderr = f, f
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // the shell has kubectl for a child
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	f.stop = sync.OnceFunc(func() {
		_ = syscall.Kill(-command.Process.Pid, syscall.SIGKILL)
		_ = command.Wait() // it was killed
	})
	t.Cleanup(f.stop)
	return f
}

func (f *follower) shows(text string) error {
	if shown := f.String(); !strings.Contains(shown, text) {
		return errors.New("it shows " + shown)
	}
	return nil
}

func (f *follower) wait(t *testing.T, text string) {
	t.Helper()
	eventually(t, 20*time.Second, fmt.Sprintf("%s: %s showing %q", f.side.name, f.run, text), func() error { return f.shows(text) })
}

// until waits for a text and answers everything up to the end of its line. With
// it a command that prints more is not caught in the middle of it.
func (f *follower) until(t *testing.T, text string) string {
	t.Helper()
	f.wait(t, text)
	shown := f.String()
	at := strings.LastIndex(shown, text)
	head, tail := shown[:at], shown[at:]
	line, _, _ := strings.Cut(tail, "\n")
	return head + line
}
