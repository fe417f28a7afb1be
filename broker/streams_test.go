package broker

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	client "k8s.io/client-go/tools/remotecommand"
	clientspdy "k8s.io/client-go/transport/spdy"
	"k8s.io/streaming/pkg/httpstream/spdy"

	"github.com/taskgate/taskgate/authz"
	"github.com/taskgate/taskgate/recorder"
)

const execTarget = pod + "/exec?command=cat&stdin=true&stdout=true&container=web"

// execRig is a rig whose agent may open pods without asking, and whose cluster
// runs cat.
func execRig(t *testing.T, p *people) *gatedRig {
	t.Helper()
	r := newGatedRig(t, p, func(b *boundary) {
		b.streams = newStreams(&Streams{MaxBytes: 1 << 30, MaxTime: metav1.Duration{Duration: time.Hour}, ReadAhead: 1 << 20})
		b.kindOf = func(group, resource, subresource string) (kindInfo, bool) {
			if subresource == "exec" {
				return kindInfo{true}, true
			}
			return kinds(group, resource, subresource)
		}
	})
	r.stub.set(r.world.catOr(r.world.serve))
	return r
}

func (r *gatedRig) waived() *authz.Grant {
	r.policy(func(p *authz.Policy) { p.Waive = []string{"exec"} })
	return r.rig.grantOnly()
}

// grantOnly gives everything, and leaves the policy as it is.
func (r *rig) grantOnly() *authz.Grant {
	g := &authz.Grant{
		Name: "inc-1", UID: "uid-1", Agent: alphaID, Task: "INC-1", Policy: "shop", TTL: time.Hour, Active: true, ActiveFrom: time.Now(), ExpiresAt: time.Now().Add(time.Hour),
		Rules: []authz.Rule{{Namespaces: []string{"*"}, APIGroups: []string{"*"}, Resources: []string{"*"}, Verbs: []string{"*"}}},
	}
	if err := r.boundary.index.PutGrant(g); err != nil {
		r.Fatal(err)
	}
	return g
}

// catOr serves exec over WebSocket as cat, and all else as before.
func (w *world) catOr(other http.HandlerFunc) http.HandlerFunc {
	upgrader := websocket.Upgrader{Subprotocols: []string{"v5.channel.k8s.io", "v4.channel.k8s.io"}}
	return func(out http.ResponseWriter, r *http.Request) {
		if !strings.HasSuffix(r.URL.Path, "/exec") || r.Header.Get("Upgrade") != "websocket" {
			other(out, r)
			return
		}
		w.change(func(w *world) { w.done = append(w.done, "exec") })
		conn, err := upgrader.Upgrade(out, r, nil)
		if err != nil {
			return
		}
		defer conn.Close()
		for {
			_, message, err := conn.ReadMessage()
			if err != nil {
				return
			}
			if bytes.Equal(message, []byte{255, 0}) {
				_ = conn.WriteMessage(websocket.BinaryMessage, []byte("\x03{\"status\":\"Success\"}"))
				_ = conn.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(1000, ""), time.Now().Add(time.Second))
				_, _, _ = conn.ReadMessage()
				return
			}
			message[0] = 1
			_ = conn.WriteMessage(websocket.BinaryMessage, message)
		}
	}
}

func (r *rig) agentTLS() *tls.Config {
	return r.agent.ClientTLS(spiffeid.RequireFromString("spiffe://example.org/ns/taskgate-system/sa/taskgate-broker"), "http/1.1")
}

// dialExec opens an exec over WebSocket, or returns the refusal.
func (r *rig) dialExec(target string) (*websocket.Conn, reply) {
	r.Helper()
	dialer := websocket.Dialer{TLSClientConfig: r.agentTLS(), Subprotocols: []string{"v5.channel.k8s.io"}}
	conn, answer, err := dialer.Dial("wss://"+r.address+target, http.Header{"User-Agent": {"kubectl"}})
	if err != nil && !errors.Is(err, websocket.ErrBadHandshake) {
		r.Fatal(err)
	}
	got := reply{code: answer.StatusCode, header: answer.Header}
	if err != nil {
		read, _ := io.ReadAll(answer.Body)
		got.body = string(read)
		return nil, got
	}
	r.Cleanup(func() { conn.Close() })
	return conn, got
}

// spdyExec is kubectl's other way; it returns the client's error.
func (r *rig) spdyExec(target string) error {
	r.Helper()
	transport, err := spdy.NewRoundTripper(r.agentTLS())
	if err != nil {
		r.Fatal(err)
	}
	address, err := url.Parse("https://" + r.address + target)
	if err != nil {
		r.Fatal(err)
	}
	executor, err := client.NewSPDYExecutorForTransports(transport, clientspdy.NewUpgraderForStreaming(transport), http.MethodPost, address)
	if err != nil {
		r.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return executor.StreamWithContext(ctx, client.StreamOptions{Stdin: strings.NewReader(""), Stdout: io.Discard})
}

// TestStream: an exec is decided, recorded and made like every call, under the
// bound principal, and what it carried is on record.
func TestStream(t *testing.T) {
	r := execRig(t, newPeople(t))
	r.waived()
	conn, answer := r.dialExec(execTarget)
	if conn == nil {
		t.Fatalf("%d %s", answer.code, answer.body)
	}
	id := answer.header.Get("Audit-Id")
	if err := conn.WriteMessage(websocket.BinaryMessage, []byte("\x00hello")); err != nil {
		t.Fatal(err)
	}
	if _, message, err := conn.ReadMessage(); string(message) != "\x01hello" {
		t.Fatalf("%q %v", message, err)
	}
	_ = conn.WriteMessage(websocket.BinaryMessage, []byte{255, 0})
	if _, message, err := conn.ReadMessage(); string(message) != "\x03{\"status\":\"Success\"}" {
		t.Fatalf("%q %v", message, err)
	}
	if _, _, err := conn.ReadMessage(); !websocket.IsCloseError(err, websocket.CloseNormalClosure) {
		t.Error(err)
	}
	conn.Close()
	if err := r.boundary.live.wait(context.Background()); err != nil {
		t.Error(err)
	}
	seen := r.stub.requests()
	upgrade := seen[len(seen)-1]
	if upgrade.Header.Get("Impersonate-User") != upstreamUser || upgrade.Header.Get("Audit-Id") != id || upgrade.Header.Get("Authorization") != "Bearer brokers-own-token" ||
		upgrade.Header.Get("Sec-Websocket-Protocol") != "v5.channel.k8s.io" || upgrade.URL.RawQuery != "command=cat&container=web&stdin=true&stdout=true" {
		t.Errorf("the cluster saw %s %v", upgrade.URL, upgrade.Header)
	}
	events := r.recorded()
	own := of(events, id)
	if len(own) < 3 {
		t.Fatalf("%d records", len(own))
	}
	intent, closing := own[0], own[len(own)-1]
	for _, e := range own {
		if e.Stage == recorder.StageResponseComplete {
			closing = e
		}
	}
	if intent.Stage != recorder.StageRequestReceived || intent.ObjectRef.UID != "ns-uid-1" || intent.Verb != "create" {
		t.Errorf("intent %+v %+v", intent, intent.ObjectRef)
	}
	if closing.ResponseStatus.Code != 101 || closing.Annotations[annotationExitCode] != "0" || closing.ObjectRef.UID != "ns-uid-1" || closing.Annotations[recorder.AnnotationOutcome] != "" {
		t.Errorf("closing %+v", closing)
	}
	recording, err := recorder.FindRecording(context.Background(), r.store, id)
	if err != nil {
		t.Fatal(err)
	}
	var carried []string
	for f, err := range recording.Frames(context.Background(), r.store) {
		if err != nil {
			t.Fatal(err)
		}
		carried = append(carried, fmt.Sprintf("%d%v %s", f.Channel, f.End, f.Data))
	}
	slices.Sort(carried)
	if got := strings.Join(carried, "|"); got != `0false hello|0true |1false hello|3false {"status":"Success"}` {
		t.Errorf("on record: %s", got)
	}
}

// TestStreamEnds: what ends a grant ends its streams, and the user reads why.
func TestStreamEnds(t *testing.T) {
	for name, end := range map[string]func(*gatedRig, *authz.Grant){
		"GrantRevoked": func(r *gatedRig, g *authz.Grant) {
			over := *g
			over.Revoked = true
			if err := r.boundary.index.PutGrant(&over); err != nil {
				t.Fatal(err)
			}
		},
		"GrantExpired": func(r *gatedRig, g *authz.Grant) {
			over := *g
			over.TTL, over.ExpiresAt = time.Minute, over.ActiveFrom.Add(time.Minute)
			if err := r.boundary.index.PutGrant(&over); err != nil {
				t.Fatal(err)
			}
			r.later(2 * time.Minute)
		},
		"IdentityExpired": func(r *gatedRig, _ *authz.Grant) { r.later(2 * time.Hour) },
		"NotReady": func(r *gatedRig, _ *authz.Grant) {
			go func() { _ = r.boundary.shutdown(context.Background(), r.server) }()
		},
	} {
		r := execRig(t, newPeople(t))
		g := r.waived()
		conn, answer := r.dialExec(execTarget)
		if conn == nil {
			t.Fatalf("%s: %d %s", name, answer.code, answer.body)
		}
		begin := time.Now()
		end(r, g)
		_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
		_, message, err := conn.ReadMessage()
		var status metav1.Status
		if err != nil || message[0] != 3 || json.Unmarshal(message[1:], &status) != nil || !strings.Contains(status.Message, "[taskgate:"+name+"]") || status.Status != metav1.StatusFailure {
			t.Errorf("%s: %q %v", name, message, err)
		}
		if _, _, err := conn.ReadMessage(); !websocket.IsCloseError(err, websocket.CloseNormalClosure) {
			t.Errorf("%s: %v", name, err)
		}
		if took := time.Since(begin); took > 3*time.Second { // rechecked every second
			t.Errorf("%s: it took %v", name, took)
		}
		conn.Close()
		_ = r.boundary.live.wait(context.Background())
		own := of(r.recorded(), answer.header.Get("Audit-Id"))
		closed := slices.ContainsFunc(own, func(e *recorder.Event) bool {
			return e.Stage == recorder.StageResponseComplete && e.Annotations[recorder.AnnotationOutcome] == outcomeCut && e.Annotations[recorder.AnnotationReason] != ""
		})
		if !closed {
			t.Errorf("%s: no closing record says why", name)
		}
	}
}

// TestGatedStream: people are asked once for a command, whichever way it is
// opened; their yes is for this pod.
func TestGatedStream(t *testing.T) {
	p := newPeople(t)
	r := execRig(t, p)
	if err := r.spdyExec(execTarget); err == nil || !strings.Contains(err.Error(), "ApprovalRequired") {
		t.Fatalf("over SPDY: %v", err)
	}
	if _, answer := r.dialExec(execTarget); !strings.Contains(answer.body, "ApprovalRequired") || p.count() != 1 {
		t.Fatalf("over WebSocket: %s, %d approvals", answer.body, p.count())
	}
	a := r.approve()
	if got := strings.Join(a.Spec.Call.Command, " "); got != "container=web stdin=true tty=false -- cat" {
		t.Errorf("people see %q", got)
	}
	if _, answer := r.dialExec(strings.Replace(execTarget, "cat", "rm", 1)); !strings.Contains(answer.body, "ApprovalMismatch") || !strings.Contains(answer.body, "the command") {
		t.Errorf("another command: %s", answer.body)
	}
	// The pod is replaced between the last question and the call.
	p.onUsed = func() { r.world.change(func(w *world) { w.uid = "ns-uid-2" }) }
	if _, answer := r.dialExec(execTarget); answer.code != http.StatusForbidden || !strings.Contains(answer.body, "ApprovalMismatch") || !strings.Contains(answer.body, "TargetChanged") || r.world.executed() != 0 {
		t.Errorf("another pod: %d %s", answer.code, answer.body)
	}
	if p.consumed != 1 {
		t.Errorf("%d approvals used", p.consumed)
	}
	denied := slices.ContainsFunc(r.recorded(), func(e *recorder.Event) bool {
		return e.Annotations[recorder.AnnotationCause] == "TargetChanged" && e.Annotations[recorder.AnnotationDecision] == "deny" && e.ObjectRef.UID == "ns-uid-1"
	})
	if !denied {
		t.Error("no record of the denial")
	}
}

func TestApprovedStream(t *testing.T) {
	p := newPeople(t)
	r := execRig(t, p)
	r.dialExec(execTarget)
	r.approve()
	conn, answer := r.dialExec(execTarget)
	if conn == nil {
		t.Fatalf("%d %s", answer.code, answer.body)
	}
	if _, again := r.dialExec(execTarget); !strings.Contains(again.body, "ApprovalConsumed") {
		t.Errorf("a second time: %s", again.body)
	}
	conn.Close()
	_ = r.boundary.live.wait(context.Background())
}

// TestRefusedStream: what the cluster answers instead is relayed, a no as its own.
func TestRefusedStream(t *testing.T) {
	for code, want := range map[int]string{403: "UpstreamDenied", 400: "upgrade me not", 302: "UpstreamRedirect", 500: "upgrade me not"} {
		r := execRig(t, newPeople(t))
		r.waived()
		r.stub.set(func(w http.ResponseWriter, q *http.Request) {
			if !strings.HasSuffix(q.URL.Path, "/exec") {
				r.world.serve(w, q)
				return
			}
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("Location", "/elsewhere")
			w.WriteHeader(code)
			fmt.Fprintf(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","message":"upgrade me not %s","code":%d}`, strings.Repeat(".", 100_000), code)
		})
		dial := func() *tls.Conn {
			conn, err := tls.Dial("tcp", r.address, r.agentTLS())
			if err != nil {
				t.Fatal(err)
			}
			return conn
		}
		for _, upgrade := range []string{
			"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n",
			"Upgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n",
		} {
			conn := dial()
			_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
			// A request behind the refused one must not be read (CVE-2018-1002105).
			fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: b\r\nConnection: Upgrade\r\n%s\r\nGET /version HTTP/1.1\r\nHost: b\r\n\r\n", execTarget, upgrade)
			answer, _ := io.ReadAll(conn)
			conn.Close()
			if !strings.Contains(string(answer), want) || strings.Count(string(answer), "HTTP/1.1 ") != 1 || strings.Contains(string(answer), "elsewhere") || len(answer) > maxRefusal+4096 {
				t.Errorf("%d: %d bytes: %.300s", code, len(answer), answer)
			}
		}
		for _, q := range r.stub.requests() {
			if q.URL.Path == "/version" {
				t.Errorf("%d: what came behind a refused upgrade was forwarded", code)
			}
		}
	}
}

// TestHopOfStreams: an upgrade without exactly the bound principal does not leave.
func TestHopOfStreams(t *testing.T) {
	r := execRig(t, newPeople(t))
	request, err := http.NewRequest(http.MethodGet, r.stub.server.URL+execTarget, nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Sec-Websocket-Protocol", "v5.channel.k8s.io")
	if _, err := r.boundary.upstream.streams.RoundTrip(request); !errors.Is(err, errInvariant) || len(r.stub.requests()) != 0 {
		t.Errorf("%v, the cluster saw %d requests", err, len(r.stub.requests()))
	}
	if _, err := r.boundary.upstream.open(context.Background(), &admission{}, nil); !errors.Is(err, errInvariant) {
		t.Errorf("without an admission: %v", err)
	}
}
