package e2e_test

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/taskgate/taskgate/api/v1alpha1"
	"github.com/taskgate/taskgate/e2e/testbed"
)

// TestStreams: exec, attach, cp, port-forward and debug with plain kubectl on a real
// node, compared with the same without taskgate and with what was recorded.
func TestStreams(t *testing.T) {
	t.Parallel()
	r := newStreamsRig(t)
	for _, part := range []struct {
		name string
		test func(*testing.T)
	}{
		{"as direct", r.likeDirect},
		{"input", r.carriesInput},
		{"a terminal", r.hasTerminal},
		{"attach", r.attaches},
		{"cp", r.copies},
		{"port-forward", r.forwards},
		{"debug", r.debugs},
		{"rules", r.holdsRules},
		{"other upgrades", r.refusesUpgrades},
		{"the cluster's own log", r.joinsCluster},
		{"a gate", r.asksOnce},
		{"revoked", r.isCut},
		{"logs", r.followsLogs},
		{"a long line", r.overLongLine},
		{"opened and closed", r.leavesNothing},
		{"a dead line", r.loseLine},
		{"kill -9", r.survivesKills},
		{"shutdown", r.saysGoodbye},
	} {
		t.Run(part.name, part.test)
	}
	r.judgeJournal(t)
}

// likeDirect: output, exit codes and errors are those of kubectl without taskgate,
// and the record holds every byte (T130, T131, T138).
func (r *streamsRig) likeDirect(t *testing.T) {
	for _, way := range streamsWays {
		type try struct {
			script string
			began  time.Time
			got    result
		}
		var tries []try
		for _, script := range []string{
			"echo hello", "exit 42", "seq 1 200000", "echo out; echo err >&2; exit 3", "printf 'no newline'", "head -c 300000 /dev/urandom | tee /tmp/x >/dev/null; cat /tmp/x",
			"kill -9 $$", "true",
		} {
			arguments := []string{"exec", streamsPod, "--", "sh", "-c", script}
			began := time.Now()
			got := r.streams(t, r.agent.Kubeconfig, way.environment, nil, arguments...)
			tries = append(tries, try{script, began, got})
			if want := r.streams(t, r.Environment().AdminKubeconfig, way.environment, nil, arguments...); !strings.Contains(script, "urandom") &&
				(got.stdout != want.stdout || got.stderr != want.stderr || got.code != want.code) {
				t.Errorf("%s, %q: through taskgate %.300s\ndirectly %.300s", way.name, script, got, want)
			}
		}
		for _, try := range tries { // all at the end: the bucket has them a while later
			seen, got := r.first(t, "exec", try.began), try.got
			if seen.channel[1].String() != got.stdout || !strings.HasPrefix(got.stderr, seen.channel[2].String()) || seen.err != nil {
				t.Errorf("%s, %q: recorded %d and %d bytes, printed %d and %d: %v", way.name, try.script, seen.channel[1].Len(), seen.channel[2].Len(), len(got.stdout), len(got.stderr), seen.err)
			}
			if code := fmt.Sprint(got.code); seen.annotation("exit-code") != code {
				t.Errorf("%s, %q: recorded exit code %q, got %s", way.name, try.script, seen.annotation("exit-code"), code)
			}
		}
	}
	for _, missing := range [][]string{
		{"exec", streamsPod, "--", "no-such-program"}, {"exec", streamsPod, "-c", "absent", "--", "true"}, {"exec", "absent", "--", "true"},
		{"attach", "absent"}, {"port-forward", "pod/absent", ":80"},
	} {
		got, want := r.streams(t, r.agent.Kubeconfig, "", nil, missing...), r.streams(t, r.Environment().AdminKubeconfig, "", nil, missing...)
		if got.code != want.code || got.code == 0 || got.stdout != want.stdout {
			t.Errorf("%v: through taskgate %s\ndirectly %s", missing, got, want)
		}
	}
}

// carriesInput: standard input arrives, its end too, and both are recorded (T139).
func (r *streamsRig) carriesInput(t *testing.T) {
	large := make([]byte, 3<<20)
	_, _ = rand.Read(large) // does not fail
	for _, way := range streamsWays {
		inputs := [][]byte{[]byte("x\n"), nil, large}
		began := make([]time.Time, len(inputs))
		for i, input := range inputs {
			began[i] = time.Now()
			got := r.streams(t, r.agent.Kubeconfig, way.environment, input, "exec", "-i", streamsPod, "--", "cat")
			if got.code != 0 || got.stdout != string(input) {
				t.Errorf("%s: of %d bytes %d came back, exit %d: %.300s", way.name, len(input), len(got.stdout), got.code, got.stderr)
			}
		}
		for i, input := range inputs {
			seen := r.first(t, "exec", began[i])
			if seen.err != nil || !bytes.Equal(seen.channel[0].Bytes(), input) || !bytes.Equal(seen.channel[1].Bytes(), input) || !seen.ended[0] {
				t.Errorf("%s: of %d bytes %d in and %d out are recorded, end %v: %v", way.name, len(input), seen.channel[0].Len(), seen.channel[1].Len(), seen.ended[0], seen.err)
			}
		}
	}
}

// hasTerminal: in a terminal, somebody types, and all of it
// is recorded, the size too.
func (r *streamsRig) hasTerminal(t *testing.T) {
	for _, way := range streamsWays {
		began := time.Now()
		got := r.terminal(t, r.agent.Kubeconfig, way.environment, [][2]string{{"stty size", "33 77"}, {"echo a$((40+2))b; exit 7", "a42b"}}, "exec", "-it", streamsPod, "--", "sh")
		if got != 7 {
			t.Errorf("%s: exit code %d", way.name, got)
		}
		seen := r.last(t, "exec", began)
		for _, want := range []string{"33 77", "a42b"} {
			if !strings.Contains(seen.channel[1].String(), want) {
				t.Errorf("%s: %q is not in the record: %q", way.name, want, seen.channel[1].String())
			}
		}
		if !strings.Contains(seen.channel[0].String(), "exit 7") || !strings.Contains(seen.channel[4].String(), `"Width":77`) || seen.annotation("exit-code") != "7" {
			t.Errorf("%s: typed %q, size %q, exit code %q", way.name, seen.channel[0].String(), seen.channel[4].String(), seen.annotation("exit-code"))
		}
	}
}

// attaches is T146.
func (r *streamsRig) attaches(t *testing.T) {
	for _, way := range streamsWays {
		began := time.Now()
		running := r.begins(t, r.agent.Kubeconfig, way.environment, "attach", "-i", streamsPod)
		running.types(t, "hello "+way.name+"\n")
		running.until(t, "heard hello "+way.name)
		running.leave(t)
		seen := r.last(t, "attach", began)
		if !strings.Contains(seen.channel[0].String(), "hello "+way.name) || !strings.Contains(seen.channel[1].String(), "heard hello "+way.name) {
			t.Errorf("%s: recorded %q and %q", way.name, seen.channel[0].String(), seen.channel[1].String())
		}
	}
}

// copies is T147. TASKGATE_E2E_COPY says how many MiB; 200 are asked for.
func (r *streamsRig) copies(t *testing.T) {
	folder := t.TempDir()
	content := make([]byte, numberFrom(t, "TASKGATE_E2E_COPY", 12)<<20)
	_, _ = rand.Read(content) // does not fail
	before := faultUsageOf(t, r.Broker(0).PID())
	up, down := filepath.Join(folder, "up"), filepath.Join(folder, "down")
	if err := os.WriteFile(up, content, 0o600); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if got := r.streams(t, r.agent.Kubeconfig, "", nil, "cp", up, streamsPod+":/tmp/copied"); got.code != 0 {
		t.Fatalf("cp to the pod: %s", got)
	}
	var seen *recorded
	eventually(t, 20*time.Second, "the copy is on record", func() error { // kubectl looks for the directory first
		if seen = r.last(t, "exec", began); seen.err != nil || !bytes.Contains(seen.channel[0].Bytes(), content) {
			return fmt.Errorf("%d bytes: %w", seen.channel[0].Len(), seen.err)
		}
		return nil
	})
	if got := r.streams(t, r.agent.Kubeconfig, "", nil, "cp", streamsPod+":/tmp/copied", down); got.code != 0 {
		t.Fatalf("cp from the pod: %s", got)
	}
	if back, err := os.ReadFile(down); err != nil || !bytes.Equal(back, content) {
		t.Errorf("%d bytes came back: %v", len(back), err)
	}
	if after := faultUsageOf(t, r.Broker(0).PID()); after.rss > before.rss+(160<<20) {
		t.Errorf("the broker grew from %s to %s", before, after)
	} else {
		t.Logf("%d MiB each way: the broker grew from %s to %s", len(content)>>20, before, after)
	}
	shown := r.taskgate(t, "replay", seen.id)
	if !strings.Contains(shown.stdout, "copied") || !strings.Contains(shown.stdout, fmt.Sprint(len(content))) {
		t.Errorf("replay shows of a copy: %s", shown)
	}
}

// forwards is T145.
func (r *streamsRig) forwards(t *testing.T) {
	want := r.streams(t, r.Environment().AdminKubeconfig, "", nil, "exec", streamsPod, "--", "cat", "/etc/passwd").stdout
	for _, way := range streamsWays {
		began := time.Now()
		running := r.begins(t, r.agent.Kubeconfig, way.environment, "port-forward", "pod/"+streamsPod, ":8080")
		line := running.until(t, "-> 8080")
		_, rest, _ := strings.Cut(line, "127.0.0.1:")
		port, _, _ := strings.Cut(rest, " ")
		for range 3 {
			answer, err := http.Get("http://" + net.JoinHostPort("127.0.0.1", port) + "/passwd")
			if err != nil {
				t.Fatalf("%s: %v; kubectl says %s", way.name, err, running.stderr)
			}
			body, err := io.ReadAll(answer.Body)
			answer.Body.Close()
			if err != nil || string(body) != want || want == "" {
				t.Errorf("%s: got %q, want %q: %v", way.name, body, want, err)
			}
		}
		http.DefaultClient.CloseIdleConnections()
		running.leave(t)
		seen := r.last(t, "portforward", began)
		if !strings.Contains(seen.channel[0].String(), "GET /passwd HTTP/1.1") || strings.Count(seen.channel[1].String(), want) != 3 {
			t.Errorf("%s: recorded %q and %q", way.name, seen.channel[0].String(), seen.channel[1].String())
		}
	}
}

// debugs: an ephemeral container is made, attached to and talked with. Standard
// input stays open: kubectl leaves an attach whose input has ended.
func (r *streamsRig) debugs(t *testing.T) {
	began := time.Now()
	k := r.begins(t, r.agent.Kubeconfig, "", "debug", streamsPod, "--image="+testbed.ToolsImage, "--image-pull-policy=Never", "-i", "--quiet", "--profile=general", "--", "sh", "-c", "read line && echo heard $line in the pod; read line")
	k.types(t, "something\n")
	k.until(t, "heard something in the pod")
	k.types(t, "more\n")
	if code := k.wait(t, 20*time.Second); code != 0 {
		t.Errorf("ended with %d: %s", code, k.stderr)
	}
	if seen := r.last(t, "attach", began); seen.err != nil || seen.channel[0].String() != "something\nmore\n" || seen.channel[1].String() != "heard something in the pod\n" {
		t.Errorf("recorded %q and %q: %v", seen.channel[0].String(), seen.channel[1].String(), seen.err)
	}
}

// asksOnce: exec is a gate; the try over WebSocket, the one over SPDY and the repeat
// are one request; it passes once.
func (r *streamsRig) asksOnce(t *testing.T) {
	gated := r.newAgent(t, "streams-gated")
	r.allow(t, "gated", gated.id, openPolicy, everythingInPods)
	r.give(t, "streams-gated", "gated", gated.id, "1h", everythingInPods)
	r.served(t, gated, "/api/v1/namespaces/streams/pods")
	command := []string{"exec", streamsPod, "--", "echo", "agreed"}
	first := r.streams(t, gated.Kubeconfig, "", nil, command...)
	if first.code == 0 || !strings.Contains(first.stderr, "[taskgate:ApprovalRequired]") || !strings.Contains(first.stderr, "kubectl wait --for=condition=Decided approval/ap-") {
		t.Fatalf("got %s", first)
	}
	_, rest, _ := strings.Cut(first.stderr, "approval/")
	name, _, _ := strings.Cut(rest, " ")
	for _, way := range streamsWays {
		if got := r.streams(t, gated.Kubeconfig, way.environment, nil, command...); !strings.Contains(got.stderr, "request "+name+" ") {
			t.Errorf("%s asks anew: %s", way.name, got)
		}
	}
	people := &decideRig{grantsRig: r.grantsRig}
	people.controller = people.newController(t)
	approval := people.readApproval(t, name)
	if approval.Spec.Gate != "exec" || !strings.Contains(strings.Join(approval.Spec.Call.Command, " "), "echo agreed") || approval.Spec.Call.UID == "" {
		t.Errorf("people are asked %+v", approval.Spec)
	}
	r.apply(t, decidesAsSRE)
	people.decides(t, approvalTarget(approval), v1alpha1.VerdictApprove, "alice")
	if got := r.streams(t, gated.Kubeconfig, "", nil, "exec", streamsPod, "--", "echo", "something", "else"); !strings.Contains(got.stderr, "[taskgate:Approval") {
		t.Errorf("another command: %s", got)
	}
	if got := r.streams(t, gated.Kubeconfig, streamsWays[1].environment, nil, command...); got.code != 0 || got.stdout != "agreed\n" {
		t.Errorf("the approved command: %s", got)
	}
	if got := r.streams(t, gated.Kubeconfig, "", nil, command...); !strings.Contains(got.stderr, "[taskgate:ApprovalConsumed]") {
		t.Errorf("a second time: %s", got)
	}
}

const decidesAsSRE = `apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: streams-sre}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: taskgate-approver}
subjects: [{kind: Group, apiGroup: rbac.authorization.k8s.io, name: sre}]
`
