package e2e_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"

	"github.com/taskgate/taskgate/recorder"
)

// endless prints a line every 20 ms, each once.
const endless = `i=0; while true; do i=$((i+1)); echo line $i; usleep 20000; done`

// isCut: what ends the grant ends its streams, at once and with a reason that the
// user reads.
func (r *streamsRig) isCut(t *testing.T) {
	who := r.newAgent(t, "streams-cut")
	r.allow(t, "cut", who.id, openPolicy+"\nwaive: [exec, port-forward]", everythingInPods)
	for n, way := range streamsWays {
		for what, command := range map[string][]string{
			"exec": {"exec", streamsPod, "--", "sh", "-c", endless}, "portforward": {"port-forward", "pod/" + streamsPod, ":8080"},
		} {
			name := fmt.Sprintf("streams-cut-%s-%d", what, n)
			r.give(t, name, "cut", who.id, "1h", everythingInPods)
			r.served(t, who, "/api/v1/namespaces/streams/pods")
			began := time.Now()
			k := r.begins(t, who.Kubeconfig, way.environment, command...)
			k.until(t, map[string]string{"exec": "line 3\n", "portforward": "-> 8080"}[what])
			r.patch(t, grantsResource, name, revokeAndResume)
			revoked := time.Now()
			if what == "exec" {
				code := k.wait(t, 10*time.Second)
				if took := time.Since(revoked); code == 0 || took > 3*time.Second || !strings.Contains(k.stderr.String(), "[taskgate:GrantRevoked]") {
					t.Errorf("%s: ended %s after the revoke with %d: %s", way.name, took, code, k.stderr)
				}
			}
			seen := r.last(t, what, began)
			r.judgeCut(t, seen.id, "GrantRevoked", name)
			if what == "exec" && !strings.HasPrefix(seen.channel[1].String(), k.stdout.String()) {
				t.Errorf("%s: what the user saw is not in the record", way.name)
			}
		}
	}
}

// holdsRules is T153, and what else a rule says about streams.
func (r *streamsRig) holdsRules(t *testing.T) {
	who := r.newAgent(t, "streams-rules")
	rules := []string{
		`{namespaces: [streams], apiGroups: [""], resources: [pods], verbs: [get]}`,
		`{namespaces: [streams], apiGroups: [""], resources: [pods/exec], verbs: [create], commands: [[echo, "*"], [id, -u]], stdin: false, tty: false}`,
	}
	r.allow(t, "rules", who.id, openPolicy+"\nwaive: [exec, port-forward]", rules...)
	r.give(t, "streams-rules", "rules", who.id, "1h", rules...)
	r.served(t, who, "/api/v1/namespaces/streams/pods/"+streamsPod)
	for _, row := range []struct {
		arguments []string
		passes    bool
	}{
		{[]string{"exec", streamsPod, "--", "id", "-u"}, true},
		{[]string{"exec", streamsPod, "--", "echo"}, true},
		{[]string{"exec", streamsPod, "--", "echo", "a", "b"}, true},
		{[]string{"exec", streamsPod, "--", "id"}, false},
		{[]string{"exec", streamsPod, "--", "id", "-u", "root"}, false},
		{[]string{"exec", streamsPod, "--", "sh", "-c", "echo"}, false},
		{[]string{"exec", "-i", streamsPod, "--", "id", "-u"}, false},
		{[]string{"attach", streamsPod}, false},
		{[]string{"port-forward", "pod/" + streamsPod, ":8080"}, false},
	} {
		for _, way := range streamsWays {
			got := r.streams(t, who.Kubeconfig, way.environment, nil, row.arguments...)
			if refused := strings.Contains(got.stderr, "[taskgate:OutsideGrant]"); refused == row.passes || (got.code == 0) != row.passes {
				t.Errorf("%s, %v: %s", way.name, row.arguments, got)
			}
		}
	}
}

// refusesUpgrades: what is no stream that can be recorded is refused, and the API
// server sees nothing of it (T133).
func (r *streamsRig) refusesUpgrades(t *testing.T) {
	webSocket := func(protocol string, more ...string) map[string]string {
		header := map[string]string{"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Protocol": protocol}
		for i := 0; i+1 < len(more); i += 2 {
			header[more[i]] = more[i+1]
		}
		return header
	}
	plain := *r.agent // HTTP/2 has no upgrades
	plain.http = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: poolOf(t, r.agent.CA)}, DisableKeepAlives: true}}
	const exec = "/api/v1/namespaces/streams/pods/tools/exec?command=id&stdout=true"
	for _, row := range []struct {
		method, target string
		header         map[string]string
		reason         string
	}{
		{"GET", "/api/v1/namespaces/streams/pods?watch=true", webSocket("v4.channel.k8s.io"), "BadUpgrade"},
		{"GET", "/api/v1/namespaces/streams/pods/tools/log", webSocket("v4.channel.k8s.io"), "BadUpgrade"},
		{"GET", exec, webSocket("channel.k8s.io"), "BadUpgrade"},
		{"GET", exec, webSocket("v4.base64.channel.k8s.io"), "BadUpgrade"},
		{"GET", exec, webSocket("v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.dG9rZW4"), "BadUpgrade"},
		{"GET", exec, webSocket("v5.channel.k8s.io", "Upgrade", "h2c"), "BadUpgrade"},
		{"GET", exec, webSocket("v5.channel.k8s.io", "Upgrade", "websocket, SPDY/3.1"), "BadUpgrade"},
		{"POST", exec, map[string]string{"Connection": "Upgrade", "Upgrade": "SPDY/3.1", "X-Stream-Protocol-Version": "channel.k8s.io"}, "BadUpgrade"},
		{"POST", exec, nil, "BadUpgrade"},
		{"GET", strings.Replace(exec, "/exec", "//exec", 1), webSocket("v5.channel.k8s.io"), "BadPath"},
		{"GET", strings.Replace(exec, "/exec", "/%65xec", 1), webSocket("v5.channel.k8s.io"), "BadPath"},
		{"GET", strings.Replace(exec, "/exec", "/EXEC", 1), webSocket("v5.channel.k8s.io"), "BadUpgrade"},
		{"GET", strings.Replace(exec, "/exec", "/exec/x", 1), webSocket("v5.channel.k8s.io"), "BadPath"},
		{"GET", exec + "&command=%00", webSocket("v5.channel.k8s.io"), "BadQuery"},
	} {
		got := plain.do(t, row.method, row.target, row.header, "")
		reason, _, _ := strings.Cut(got.reason(), "/")
		if got.code < 400 || reason != row.reason {
			t.Errorf("%s %s %v: got %d %s %.200s", row.method, row.target, row.header, got.code, got.reason(), got.body)
		}
		if seen := r.upstream(t)[got.auditID()]; len(seen) > 0 && got.auditID() != "" {
			t.Errorf("%s %s %v reached the API server", row.method, row.target, row.header)
		}
	}
}

// joinsCluster: the API server's log has each stream under our audit ID, after our
// intent; a WebSocket is a get there and a create here.
func (r *streamsRig) joinsCluster(t *testing.T) {
	upstream := r.upstream(t)
	verbs, joined := map[string]int{}, 0
	for _, e := range r.journal.all(t) {
		if e.ObjectRef == nil || e.Stage != recorder.StageRequestReceived || !slices.Contains([]string{"exec", "attach", "portforward"}, e.ObjectRef.Subresource) {
			continue
		}
		if e.Verb != "create" {
			t.Errorf("the record of %s says %s", e.AuditID, e.Verb)
		}
		for _, seen := range upstream[e.AuditID] {
			joined++
			verbs[seen.Verb]++
			if !e.StageTimestamp.Before(seen.RequestReceivedTimestamp.Time) {
				t.Errorf("the intent of %s is of %s, the API server got it at %s", e.AuditID, e.StageTimestamp, seen.RequestReceivedTimestamp)
			}
			if ref := seen.ObjectRef; ref == nil || ref.Name != e.ObjectRef.Name || ref.Subresource != e.ObjectRef.Subresource {
				t.Errorf("%s is about %+v there and %+v here", e.AuditID, seen.ObjectRef, e.ObjectRef)
			}
			if seen.Stage != auditv1.StageRequestReceived && (seen.ImpersonatedUser == nil || seen.ImpersonatedUser.Username != "taskgate:agent") {
				t.Errorf("%s was made as %+v", e.AuditID, seen.ImpersonatedUser)
			}
		}
	}
	if joined < 20 || verbs["get"] == 0 || verbs["create"] == 0 {
		t.Errorf("only %d joined: %v", joined, verbs)
	}
}

// survivesKills is T143: whatever moment the broker dies at, what the user saw is
// the beginning of what is on record.
func (r *streamsRig) survivesKills(t *testing.T) {
	kills := numberFrom(t, "TASKGATE_KILLS", 15)
	total := 0
	for n := range kills {
		began := time.Now()
		script := []string{"exec", streamsPod, "--", "sh", "-c", "seq 1 100000000"}
		if n%2 == 1 {
			script[5] = endless
		}
		k := r.begins(t, r.agent.Kubeconfig, streamsWays[n/2%2].environment, script...)
		eventually(t, 20*time.Second, "it prints", func() error {
			if k.stdout.String() == "" {
				return fmt.Errorf("nothing: %s", k.stderr)
			}
			return nil
		})
		time.Sleep(rand.N(150 * time.Millisecond))
		if err := r.Broker(0).Kill(); err != nil {
			t.Fatal(err)
		}
		k.wait(t, 20*time.Second)
		if err := r.Broker(0).Start(context.WithoutCancel(t.Context())); err != nil {
			t.Fatal(err)
		}
		r.served(t, r.agent, "/api/v1/namespaces/streams/pods")
		seen := r.last(t, "exec", began)
		if shown := k.stdout.String(); !strings.HasPrefix(seen.channel[1].String(), shown) {
			t.Errorf("kill %d: %d bytes were shown, %d are recorded (%v), and the one is not the beginning of the other", n, len(shown), seen.channel[1].Len(), seen.err)
		}
		if outcome := seen.annotation("outcome"); outcome != "unknown" {
			t.Errorf("kill %d: the outcome is %q", n, outcome)
		}
		total += seen.channel[1].Len()
	}
	t.Logf("T143: %d kills, %d bytes on record", kills, total)
}

// saysGoodbye: a broker that is stopped tells its streams, seals all of them and
// ends in order.
func (r *streamsRig) saysGoodbye(t *testing.T) {
	began := time.Now()
	k := r.begins(t, r.agent.Kubeconfig, "", "exec", streamsPod, "--", "sh", "-c", endless)
	k.until(t, "line 3\n")
	if err := r.Broker(0).Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if code, known := r.Broker(0).ExitCode(); !known || code != 0 {
		t.Errorf("the broker ended with %d", code)
	}
	if code := k.wait(t, 10*time.Second); code == 0 || !strings.Contains(k.stderr.String(), "[taskgate:") {
		t.Errorf("kubectl ended with %d: %s", code, k.stderr)
	}
	seen := r.last(t, "exec", began)
	if seen.err != nil || !strings.HasPrefix(seen.channel[1].String(), k.stdout.String()) || seen.annotation("outcome") != "cut" {
		t.Errorf("the record: %v, %v", seen.err, seen.annotation("reason"))
	}
}
