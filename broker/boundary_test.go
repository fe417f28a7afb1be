package broker

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/taskgate/taskgate/authz"
	"github.com/taskgate/taskgate/broker/control"
	"github.com/taskgate/taskgate/internal/recordertest"
	"github.com/taskgate/taskgate/recorder"
)

const pod = "/api/v1/namespaces/shop/pods/web-0"

// TestForward: what reaches the cluster is exactly what is meant to, whatever
// headers the agent sends.
func TestForward(t *testing.T) {
	r := newRig(t)
	r.grant(time.Hour, allow("get", "pods"))
	hostile := http.Header{
		"Authorization": {"Bearer agents-token"}, "X-Remote-User": {"admin"}, "X-Remote-Group": {"system:masters"}, "X-Forwarded-User": {"admin"},
		"X-Forwarded-For": {"1.2.3.4"}, "Forwarded": {"for=1.2.3.4"}, "X-Real-Ip": {"1.2.3.4"}, "Cookie": {"a=b"}, "Audit-Id": {"attacker-chosen"},
		"X-Http-Method-Override": {"DELETE"}, "X-Spiffe-Id": {"spiffe://example.org/ns/agents/sa/beta"}, "Te": {"trailers"},
		"Accept": {"application/json"}, "User-Agent": {"kubectl/v1.37"}, "Taskgate-Grant": {"inc-1"}, "Origin": {"https://evil"},
	}
	answer := r.do("GET", pod, hostile, "")
	if answer.code != 200 || !strings.Contains(answer.body, `"web-0"`) {
		t.Fatalf("got %d %s", answer.code, answer.body)
	}
	seen := r.stub.requests()
	if len(seen) != 1 {
		t.Fatalf("the cluster saw %d requests", len(seen))
	}
	auditID := answer.header.Get("Audit-Id")
	want := http.Header{
		"Accept": {"application/json"}, "Accept-Encoding": {"gzip"}, "User-Agent": {"kubectl/v1.37"}, "Audit-Id": {auditID}, "Authorization": {"Bearer brokers-own-token"},
		"Impersonate-User": {"taskgate:agent"}, "Impersonate-Group": {"taskgate:agents", "taskgate:policy:shop"},
		"Impersonate-Extra-Agent.taskgate.dev": {alphaID}, "Impersonate-Extra-Task.taskgate.dev": {"INC-1"}, "Impersonate-Extra-Grant.taskgate.dev": {"uid-1"},
	}
	if diff := cmp.Diff(want, seen[0].Header); diff != "" {
		t.Errorf("headers at the cluster (-want +got):\n%s", diff)
	}
	if auditID == "" || auditID == "attacker-chosen" {
		t.Errorf("audit ID %q", auditID)
	}
	records := of(r.recorded(), auditID)
	if len(records) != 2 || records[0].Stage != recorder.StageRequestReceived || records[1].Stage != recorder.StageResponseComplete {
		t.Fatalf("records: %+v", records)
	}
	intent, outcome := records[0], records[1]
	if intent.User.Username != alphaID || intent.ImpersonatedUser.Username != "taskgate:agent" || intent.Verb != "get" || intent.ObjectRef.Name != "web-0" ||
		intent.Annotations[recorder.AnnotationTask] != "INC-1" || intent.Annotations[recorder.AnnotationSession] != "uid-1" || intent.Annotations[recorder.AnnotationDecision] != "allow" ||
		len(intent.SourceIPs) != 1 || intent.SourceIPs[0] != "127.0.0.1" || intent.Annotations[recorder.AnnotationSVID] == "" {
		t.Errorf("intent: %+v", intent)
	}
	if outcome.ResponseStatus.Code != 200 || outcome.Annotations[recorder.AnnotationResponseBytes] != fmt.Sprint(len(answer.body)) || len(outcome.Annotations[recorder.AnnotationResponseSHA256]) != 64 {
		t.Errorf("outcome: %+v", outcome)
	}
}

// TestRefusals: each no has its reason, reaches the record, and nothing reaches
// the cluster.
func TestRefusals(t *testing.T) {
	json := http.Header{"Content-Type": {"application/json"}}
	rows := []struct {
		name, method, target string
		header               http.Header
		body                 string
		code                 int
		reason               string
	}{
		{"outside the grant", "DELETE", pod, nil, "", 403, "OutsideGrant"},
		{"gated", "DELETE", "/api/v1/namespaces/shop", nil, "", 403, "ApprovalRequired"},
		{"never", "GET", "/api/v1/nodes/n1/proxy", nil, "", 403, "PolicyDenied/Proxy"},
		{"never, also to read", "GET", "/api/v1/namespaces/taskgate-system/configmaps/x", nil, "", 403, "PolicyDenied/ProtectedNamespace"},
		{"unknown resource", "GET", "/api/v1/namespaces/shop/surprises", nil, "", 403, "OutsideGrant/UnknownResource"},
		{"wrong scope", "GET", "/api/v1/namespaces/shop/nodes/n1", nil, "", 403, "OutsideGrant/Scope"},
		{"metrics", "GET", "/metrics", nil, "", 403, "OutsideGrant"},
		{"path", "GET", pod + "/", nil, "", 400, "BadPath/Segment"},
		{"query", "GET", pod + "?watch=1&watch=0", nil, "", 400, "BadQuery/Duplicate"},
		{"impersonation", "GET", pod, http.Header{"Impersonate-User": {"admin"}}, "", 400, "BadHeader/Impersonate"},
		{"connection", "GET", pod, http.Header{"Connection": {"Impersonate-User, Authorization"}}, "", 400, "BadHeader/Connection"},
		{"upgrade", "GET", pod, http.Header{"Connection": {"Upgrade"}, "Upgrade": {"h2c"}}, "", 403, "BadUpgrade"},
		{"exec", "POST", pod + "/exec?command=ls", http.Header{"Connection": {"Upgrade"}, "Upgrade": {"SPDY/3.1"}}, "", 403, "BadUpgrade"},
		{"method", "PROPFIND", pod, nil, "", 405, "BadHeader/Method"},
		{"duplicate key", "POST", "/api/v1/namespaces/shop/configmaps", json, `{"a":1,"a":2}`, 400, "BadBody/Duplicate"},
		{"other namespace in the body", "POST", "/api/v1/namespaces/shop/configmaps", json, `{"metadata":{"namespace":"bank"}}`, 400, "BadBody/PathBodyMismatch"},
		{"media type", "POST", "/api/v1/namespaces/shop/configmaps", http.Header{"Content-Type": {"text/plain"}}, `{}`, 415, "BadBody/MediaType"},
		{"too large", "POST", "/api/v1/namespaces/shop/configmaps", json, `"` + strings.Repeat("x", 3<<20) + `"`, 413, "BadBody/Size"},
		{"pod on the host", "POST", "/api/v1/namespaces/shop/pods", json, `{"spec":{"hostNetwork":true}}`, 403, "PolicyDenied/PodPolicy"},
		{"pod of another account", "POST", "/api/v1/namespaces/shop/pods", json, `{"spec":{"serviceAccountName":"broker"}}`, 403, "PolicyDenied/PodPolicy"},
		{"token secret", "POST", "/api/v1/namespaces/shop/secrets", json, `{"type":"kubernetes.io/service-account-token"}`, 403, "PolicyDenied/TokenSecret"},
		{"put may create", "PUT", "/api/v1/namespaces/shop/deployments/d", json, `{}`, 403, "OutsideGrant"},
		{"pinned to nothing", "GET", pod, http.Header{"Taskgate-Grant": {"other"}}, "", 403, "NoGrant"},
	}
	r := newRig(t)
	r.grant(time.Hour, allow("get,list,watch,create,patch", "pods", "configmaps", "secrets"), allow("delete", "namespaces"), allow("*", "nodes/proxy", "nodes", "surprises"),
		authz.Rule{Namespaces: []string{"*"}, APIGroups: []string{"*"}, Resources: []string{"surprises"}, Verbs: []string{"*"}}, allow("update", "deployments"))
	ids := map[string]string{}
	for _, row := range rows {
		answer := r.do(row.method, row.target, row.header, row.body)
		if answer.code != row.code || answer.reason() != row.reason {
			t.Errorf("%s: got %d %q (%s), want %d %q", row.name, answer.code, answer.reason(), answer.body, row.code, row.reason)
		}
		if !strings.Contains(answer.status.Message, "[taskgate:"+strings.Split(row.reason, "/")[0]+"]") || answer.status.Kind != "Status" {
			t.Errorf("%s: the message does not say why: %s", row.name, answer.body)
		}
		ids[answer.header.Get("Audit-Id")] = row.name
	}
	if seen := r.stub.requests(); len(seen) != 0 {
		t.Errorf("the cluster saw %d requests: %s %s", len(seen), seen[0].Method, seen[0].URL)
	}
	events := r.recorded()
	for i, row := range rows {
		found := slices.ContainsFunc(events, func(e *recorder.Event) bool {
			reason, cause, _ := strings.Cut(row.reason, "/")
			return ids[e.AuditID] == row.name && e.Stage == recorder.StageResponseComplete && e.Annotations[recorder.AnnotationDecision] == "deny" &&
				e.Annotations[recorder.AnnotationReason] == reason && e.Annotations[recorder.AnnotationCause] == cause && e.ResponseStatus.Code == int32(row.code)
		})
		if !found {
			t.Errorf("%d, %s: no such record", i, row.name)
		}
	}
	if len(events) != len(rows) {
		t.Errorf("%d records for %d refusals", len(events), len(rows))
	}
}

// TestMalformed: what the HTTP server itself refuses to read is on record too,
// and nothing behind it is served.
func TestMalformed(t *testing.T) {
	next := "GET /version HTTP/1.1\r\nHost: b\r\n\r\n"
	for name, text := range map[string]string{
		"both lengths":        "POST /version HTTP/1.1\r\nHost: b\r\nContent-Length: 5\r\nTransfer-Encoding: xchunked\r\n\r\nabcde" + next,
		"two lengths":         "POST /version HTTP/1.1\r\nHost: b\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcde" + next,
		"unknown coding":      "POST /version HTTP/1.1\r\nHost: b\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + next,
		"space before colon":  "GET /version HTTP/1.1\r\nHost : b\r\n\r\n" + next,
		"folded line":         "GET /version HTTP/1.1\r\nHost: b\r\nAccept: a\r\n b\r\nX : y\r\n\r\n" + next,
		"no host":             "GET /version HTTP/1.1\r\n\r\n" + next,
		"bytes behind a body": "POST /version HTTP/1.1\r\nHost: b\r\nContent-Type: application/json\r\nContent-Length: 0\r\nConnection: close\r\n\r\n{\"kind\":1}" + next,
		"garbage":             "\x16\x03\x01 nonsense\r\n\r\n" + next,
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			answer := r.raw(text)
			if strings.Count(answer, "HTTP/1.1") != 1 || strings.Contains(answer, "200 OK") {
				t.Errorf("answered %q", answer)
			}
			recordertest.Eventually(t, "the connection is closed", func() error {
				if r.records.Status().Durable == 0 {
					return fmt.Errorf("nothing is recorded")
				}
				return nil
			})
			events := r.recorded()
			if len(events) != 1 || events[0].Annotations[recorder.AnnotationDecision] != "deny" || events[0].User.Username != alphaID {
				t.Errorf("records: %+v", events)
			}
			if len(r.stub.requests()) != 0 {
				t.Error("the cluster saw a request")
			}
		})
	}
}

// TestAnswersOfTheCluster that must not reach the agent as they are.
func TestAnswersOfTheCluster(t *testing.T) {
	answer := func(code int, body string, header ...string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			for i := 0; i < len(header); i += 2 {
				w.Header().Set(header[i], header[i+1])
			}
			w.WriteHeader(code)
			io.WriteString(w, body)
		}
	}
	for _, row := range []struct {
		name    string
		answer  http.HandlerFunc
		code    int
		reason  string
		outcome string
	}{
		{"its own no", answer(403, `{"kind":"Status","apiVersion":"v1","status":"Failure","message":"pods is forbidden: User \"taskgate:agent\" cannot get","code":403}`), 403, "UpstreamDenied", "upstream_403"},
		{"a redirect", answer(302, "", "Location", "https://evil/"), 502, "UpstreamRedirect", "upstream_302"},
		{"it does not know the broker", answer(401, ""), 503, "NotReady/UpstreamCredential", "upstream_401"},
		{"not found", answer(404, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","code":404}`, "Content-Type", "application/json"), 404, "", ""},
		{"throttled", answer(429, "slow", "Retry-After", "7", "Warning", `299 - "soon"`), 429, "", ""},
		{"not modified", answer(304, ""), 304, "", ""},
		{"cookies", answer(200, "x", "Set-Cookie", "a=b", "Location", "/x", "Alt-Svc", "h3"), 200, "", ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := newRig(t)
			r.grant(time.Hour, allow("get", "pods"))
			r.stub.set(row.answer)
			got := r.do("GET", pod, nil, "")
			if got.code != row.code || got.reason() != row.reason {
				t.Errorf("got %d %q: %s", got.code, got.reason(), got.body)
			}
			for _, name := range []string{"Location", "Set-Cookie", "Alt-Svc"} {
				if got.header.Get(name) != "" {
					t.Errorf("the header %s got through", name)
				}
			}
			if row.code == 429 && (got.header.Get("Retry-After") != "7" || len(got.header["Warning"]) != 1) {
				t.Errorf("headers: %v", got.header)
			}
			records := of(r.recorded(), got.header.Get("Audit-Id"))
			if len(records) != 2 || records[1].Annotations[recorder.AnnotationOutcome] != row.outcome {
				t.Errorf("records: %+v", records)
			}
		})
	}
	t.Run("it switches protocols", func(t *testing.T) {
		r := newRig(t)
		r.grant(time.Hour, allow("get", "pods"))
		r.stub.set(func(w http.ResponseWriter, _ *http.Request) {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n")
			conn.Close()
		})
		if got := r.do("GET", pod, nil, ""); got.code != 502 && got.code != 503 {
			t.Errorf("got %d %s", got.code, got.body)
		}
	})
}

// TestDeadCluster: no answer is no success, and a mutation's fate is unknown.
func TestDeadCluster(t *testing.T) {
	r := newRig(t)
	r.grant(time.Hour, allow("get,delete", "pods"))
	r.stub.set(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	read, deleted := r.do("GET", pod, nil, ""), r.do("DELETE", pod, nil, "")
	for _, got := range []reply{read, deleted} {
		if got.code != 503 || got.reason() != "NotReady/UpstreamUnavailable" {
			t.Errorf("got %d %s", got.code, got.body)
		}
	}
	if !strings.Contains(deleted.body, "not known") {
		t.Errorf("the agent is not told: %s", deleted.body)
	}
	records := of(r.recorded(), deleted.header.Get("Audit-Id"))
	if len(records) != 2 || records[1].Annotations[recorder.AnnotationOutcome] != recorder.OutcomeUnknown {
		t.Errorf("records: %+v", records)
	}
}

// TestMutationIsOnRecordFirst: when the cluster sees a mutation, its intent is
// durable.
func TestMutationIsOnRecordFirst(t *testing.T) {
	r := newRig(t)
	r.grant(time.Hour, allow("create", "configmaps"))
	durable := uint64(0)
	r.stub.set(func(w http.ResponseWriter, q *http.Request) {
		durable = r.records.Status().Durable
		answerPod(w, q)
	})
	body := `{"metadata":{"name":"c"},"data":{"k":"v"}}`
	got := r.do("POST", "/api/v1/namespaces/shop/configmaps", http.Header{"Content-Type": {"application/json"}}, body)
	if got.code != 200 || durable == 0 {
		t.Errorf("got %d, %d records were durable", got.code, durable)
	}
	if r.stub.bodies[0] != body {
		t.Errorf("the cluster saw %q", r.stub.bodies[0])
	}
	records := of(r.recorded(), got.header.Get("Audit-Id"))
	if string(records[0].RequestObject) != `{"data":{"k":"v"},"metadata":{"name":"c"}}` || len(records[0].Annotations[recorder.AnnotationRequestSHA256]) != 64 {
		t.Errorf("intent: %+v", records[0])
	}
}

// TestRecorderDown: nothing is done and nothing is shown that cannot be recorded.
func TestRecorderDown(t *testing.T) {
	r := newRig(t)
	r.grant(time.Hour, allow("get,create", "pods"))
	r.close()
	for _, got := range []reply{
		r.do("GET", pod, nil, ""), r.do("GET", "/version", nil, ""), r.do("GET", "/nothing", nil, ""),
		r.do("POST", "/api/v1/namespaces/shop/pods", http.Header{"Content-Type": {"application/json"}}, `{}`),
	} {
		if got.code != 503 || got.reason() != "RecorderUnavailable" {
			t.Errorf("got %d %s", got.code, got.body)
		}
	}
	if n := len(r.stub.requests()); n != 0 {
		t.Errorf("the cluster saw %d requests", n)
	}
}

// TestNotAllowedToDecide: a broker that is not ready, and one whose policies are
// stale, refuse everything.
func TestNotAllowedToDecide(t *testing.T) {
	r := newRig(t, func(b *boundary) {
		b.ready = func() error { return fmt.Errorf("the ValidatingAdmissionPolicy is absent") }
	})
	r.grant(time.Hour, allow("get", "pods"))
	if got := r.do("GET", pod, nil, ""); got.code != 503 || got.reason() != "NotReady" || !strings.Contains(got.body, "is absent") {
		t.Errorf("not ready: got %d %s", got.code, got.body)
	}
	stale := newRig(t, func(b *boundary) {
		b.index, _ = authz.NewIndex(authz.Boundary{})
	})
	stale.grant(time.Hour, allow("get", "pods"))
	for _, target := range []string{pod, "/version"} {
		if got := stale.do("GET", target, nil, ""); got.code != 503 || got.reason() != "PolicyStale" {
			t.Errorf("stale: got %d %s", got.code, got.body)
		}
	}
	if n := len(r.stub.requests()) + len(stale.stub.requests()); n != 0 {
		t.Errorf("the cluster saw %d requests", n)
	}
}

// TestIdentityOnAnOpenConnection: the handshake does not last longer than what it
// proved.
func TestIdentityOnAnOpenConnection(t *testing.T) {
	r := newRig(t)
	r.grant(time.Hour, allow("get", "pods"))
	client := r.client("h2")
	get := func() (int, string) {
		response, err := client.Get("https://" + r.address + pod)
		if err != nil {
			return 0, err.Error()
		}
		defer response.Body.Close()
		body, _ := io.ReadAll(response.Body)
		return response.StatusCode, string(body)
	}
	if code, body := get(); code != 200 {
		t.Fatalf("got %d %s", code, body)
	}
	r.shift.Store(int64(2 * time.Hour))
	if code, body := get(); code != 401 || !strings.Contains(body, "IdentityExpired") {
		t.Errorf("after its end: got %d %s", code, body)
	}
}

// TestPrincipalsThatMustNotExist: even a grant that was forced past every check
// lets nothing out.
func TestPrincipalsThatMustNotExist(t *testing.T) {
	for name, change := range map[string]func(*authz.Grant){
		"empty task":      func(g *authz.Grant) { g.Task = "" },
		"blank task":      func(g *authz.Grant) { g.Task = " " },
		"task with space": func(g *authz.Grant) { g.Task = "INC-1 " },
		"task with line":  func(g *authz.Grant) { g.Task = "INC\nImpersonate-Group: system:masters" },
		"task in utf-8":   func(g *authz.Grant) { g.Task = "INC-ä" },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			g := *r.grant(time.Hour, allow("get", "pods"))
			change(&g)
			if err := r.boundary.index.PutGrant(&g); err != nil {
				t.Fatal(err)
			}
			if got := r.do("GET", pod, nil, ""); got.code != 500 || got.reason() != "NotReady/InvariantViolation" {
				t.Errorf("got %d %s", got.code, got.body)
			}
			if len(r.stub.requests()) != 0 || !strings.Contains(r.logs.String(), "InvariantViolation") {
				t.Error("it left, or nobody was told")
			}
		})
	}
}

// TestHop: the last thing before the wire refuses every identity but the bound
// one, whoever built the request.
func TestHop(t *testing.T) {
	who := bound{principal{alphaID, "INC-1", "uid-1", "shop"}, "audit"}
	build := func() *http.Request {
		q, _ := http.NewRequest("GET", "https://cluster/version", nil)
		q.Header = buildHeader(http.Header{"Accept": {"a"}}, "", who)
		q.Header["Authorization"] = []string{"Bearer b"}
		return q.WithContext(context.WithValue(context.Background(), boundKey{}, who))
	}
	if err := assertBound(build()); err != nil {
		t.Fatalf("the right request: %v", err)
	}
	for name, change := range map[string]func(*http.Request) *http.Request{
		"no principal": func(q *http.Request) *http.Request { return q.WithContext(context.Background()) },
		"zero principal": func(q *http.Request) *http.Request {
			return q.WithContext(context.WithValue(q.Context(), boundKey{}, bound{}))
		},
		"no user":         func(q *http.Request) *http.Request { q.Header.Del("Impersonate-User"); return q },
		"another user":    func(q *http.Request) *http.Request { q.Header.Set("Impersonate-User", "admin"); return q },
		"two users":       func(q *http.Request) *http.Request { q.Header.Add("Impersonate-User", "admin"); return q },
		"no groups":       func(q *http.Request) *http.Request { q.Header.Del("Impersonate-Group"); return q },
		"another group":   func(q *http.Request) *http.Request { q.Header.Add("Impersonate-Group", "system:masters"); return q },
		"no policy group": func(q *http.Request) *http.Request { q.Header.Set("Impersonate-Group", "taskgate:agents"); return q },
		"uid":             func(q *http.Request) *http.Request { q.Header.Set("Impersonate-Uid", "0"); return q },
		"another extra":   func(q *http.Request) *http.Request { q.Header.Set("Impersonate-Extra-Scopes", "x"); return q },
		"another agent": func(q *http.Request) *http.Request {
			q.Header.Set("Impersonate-Extra-Agent.taskgate.dev", "x")
			return q
		},
		"no grant":           func(q *http.Request) *http.Request { q.Header.Del("Impersonate-Extra-Grant.taskgate.dev"); return q },
		"another audit ID":   func(q *http.Request) *http.Request { q.Header.Set("Audit-Id", "x"); return q },
		"another spelling":   func(q *http.Request) *http.Request { q.Header["impersonate-user"] = []string{"admin"}; return q },
		"front proxy header": func(q *http.Request) *http.Request { q.Header.Set("X-Remote-User", "admin"); return q },
		"two credentials":    func(q *http.Request) *http.Request { q.Header.Add("Authorization", "Bearer agent"); return q },
		"upgrade":            func(q *http.Request) *http.Request { q.Header.Set("Upgrade", "h2c"); return q },
	} {
		if err := assertBound(change(build())); err == nil {
			t.Errorf("%s: passes", name)
		}
	}
	if _, err := (&upstream{}).send(context.Background(), &admission{}, nil); err == nil {
		t.Error("the zero admission forwards")
	}
}

// TestSecretsStayOut: no value of a Secret is in records or logs, and no hash by
// which it could be guessed.
func TestSecretsStayOut(t *testing.T) {
	const canary = "hunter2-canary"
	r := newRig(t)
	r.grant(time.Hour, allow("create,update,patch,get,list", "secrets", "configmaps"))
	r.policy(func(p *authz.Policy) { p.Waive = []string{"secret-values"} })
	r.stub.set(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, `{"data":{"password":"`+canary+`"}}`) })
	secrets := "/api/v1/namespaces/shop/secrets"
	body := `{"kind":"Secret","metadata":{"name":"db","uid":"u","annotations":{"kubectl.kubernetes.io/last-applied-configuration":"` + canary + `"}},"stringData":{"password":"` + canary + `"},"data":{"` + canary[:3] + `":"` + canary + `"}}`
	for _, call := range []struct{ method, target, media, body string }{
		{"POST", secrets, "application/json", body},
		{"PUT", secrets + "/db", "application/json", body},
		{"PATCH", secrets + "/db", "application/merge-patch+json", `{"stringData":{"password":"` + canary + `"}}`},
		{"PATCH", secrets + "/db", "application/json-patch+json", `[{"op":"add","path":"/data/x","value":"` + canary + `"}]`},
		{"PATCH", secrets + "/db", "application/apply-patch+yaml", "kind: Secret\nmetadata:\n  name: db\nstringData:\n  password: " + canary},
		{"POST", "/api/v1/namespaces/shop/configmaps", "application/json", `{"kind":"Secret","data":{"password":"` + canary + `"}}`},
		{"DELETE", secrets + "/db", "", ""},
		{"GET", secrets + "/db", "", ""},
	} {
		r.do(call.method, call.target, http.Header{"Content-Type": {call.media}}, call.body)
	}
	events := r.recorded()
	for _, e := range events {
		if strings.Contains(fmt.Sprintf("%+v %s", e, e.RequestObject), canary) {
			t.Errorf("a record holds the value: %s", e.RequestObject)
		}
		if e.Annotations[recorder.AnnotationRequestSHA256] != "" || e.Annotations[recorder.AnnotationResponseSHA256] != "" {
			t.Errorf("a record holds a hash of the value: %v", e.Annotations)
		}
	}
	if strings.Contains(r.logs.String(), canary) {
		t.Error("a log holds the value")
	}
	if len(events) < 12 {
		t.Errorf("only %d records", len(events))
	}
}

// TestBudget: what is spent is refused, and an answer ends where the bytes do.
func TestBudget(t *testing.T) {
	spent := newRig(t, func(b *boundary) {
		b.charge = func(context.Context, *authz.Grant, *authz.Policy, control.Use) (*control.Meter, error) {
			return nil, &control.SpentError{Budget: "requests"}
		}
	})
	spent.grant(time.Hour, allow("get", "pods"))
	if got := spent.do("GET", pod, nil, ""); got.code != 403 || got.reason() != "BudgetSpent/requests" || got.header.Get("Retry-After") != "" {
		t.Errorf("got %d %s", got.code, got.body)
	}
	r := newRig(t)
	r.grant(time.Hour, allow("get", "pods"))
	limit := int64(10)
	r.policy(func(p *authz.Policy) { p.Budget.BytesOut = &limit })
	response, err := r.client("http/1.1").Get("https://" + r.address + pod)
	if err == nil {
		var body []byte
		if body, err = io.ReadAll(response.Body); err == nil {
			t.Errorf("an answer over the budget looks complete: %s", body)
		}
		response.Body.Close()
	}
}

// TestHandshakeRejections are counted by reason.
func TestHandshakeRejections(t *testing.T) {
	r := newRig(t)
	conn := &http.Client{Transport: &http.Transport{TLSClientConfig: insecure()}}
	defer conn.CloseIdleConnections()
	if _, err := conn.Get("https://" + r.address + "/version"); err == nil {
		t.Error("a client without a certificate is served")
	}
	recordertest.Eventually(t, "it is counted", func() error { // the client may know first
		families, err := r.boundary.metrics.registry.Gather()
		if err == nil && !strings.Contains(fmt.Sprint(families), "no_cert") {
			err = fmt.Errorf("not counted: %s", families)
		}
		return err
	})
}

// TestHeaderNames: what is written here is what net/http would make of it.
func TestHeaderNames(t *testing.T) {
	for _, name := range impersonation {
		if canonical := http.CanonicalHeaderKey(name); canonical != name {
			t.Errorf("%s is spelled %s", name, canonical)
		}
	}
	for name, extra := range map[string]string{impersonateAgent: extraAgent, impersonateTask: extraTask, impersonateGrant: extraGrant} {
		if !strings.EqualFold(name, "Impersonate-Extra-"+extra) {
			t.Errorf("%s is not the header of %s", name, extra)
		}
	}
}
