package sidecar_test

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/taskgate/taskgate/sidecar"
)

func TestPlainCall(t *testing.T) {
	s := newStack(t)
	request := s.request("POST", "/api/v1/namespaces/shop/pods?dryRun=All", `{"kind":"Pod"}`)
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Accept", "application/vnd.kubernetes.protobuf, */*")
	request.Header.Set("User-Agent", "kubectl/v1.37.2")
	request.Header.Set("Kubectl-Command", "kubectl create")
	answer, body := s.do(request)
	if answer.StatusCode != 200 || answer.Proto != "HTTP/2.0" || !strings.Contains(body, `"PodList"`) {
		t.Errorf("%s %d %q", answer.Proto, answer.StatusCode, body)
	}
	got := s.broker.only(t)
	want := http.Header{
		"Content-Type": {"application/json"}, "Accept": {"application/vnd.kubernetes.protobuf, */*"}, "User-Agent": {"kubectl/v1.37.2"},
		"Kubectl-Command": {"kubectl create"}, "Content-Length": {"14"}, "Accept-Encoding": {"gzip"},
	}
	delete(want, "Accept-Encoding") // the test's client asks for no compression
	if !reflect.DeepEqual(got.Header, want) {
		t.Errorf("headers %v, want %v", got.Header, want)
	}
	if got.Proto != "HTTP/1.1" || got.Method != "POST" || got.Target != "/api/v1/namespaces/shop/pods?dryRun=All" || string(got.Body) != `{"kind":"Pod"}` || got.Host != s.broker.address {
		t.Errorf("%+v", got)
	}
}

// TestDroppedHeaders is T026, T073 and the sidecar's half of T051, T077 and T082:
// what would claim an identity ends here, in any spelling net/http lets through.
func TestDroppedHeaders(t *testing.T) {
	s := newStack(t)
	conn := s.dialTLS(t, "http/1.1")
	fmt.Fprintf(conn, "POST /api/v1/namespaces/shop/pods HTTP/1.1\r\nHost: localhost\r\nauthorization: Bearer %s\r\n", s.token)
	for _, header := range []string{
		"Proxy-Authorization: Basic eDp5", "Cookie: session=1", "Forwarded: for=1.2.3.4", "forwarded: for=5", "X-Real-IP: 1.2.3.4", "X_Real_IP: 1.2.3.4",
		"X-Remote-User: admin", "X-Remote-Uid: 0", "X-Remote-Group: system:masters", "X-Remote-Extra-Scopes: x", "x_remote_user: admin", "X-Remote_User: admin",
		"X-Forwarded-For: 1.2.3.4", "X-Forwarded-User: admin", "X-Forwarded-Client-Cert: By=spiffe://td-a/x", "X-FORWARDED_HOST: x",
		"X-Spiffe-Id: spiffe://td-a/ns/ns-b/sa/a2", "Audit-ID: attacker-chosen", "audit_id: attacker-chosen",
		"Taskgate-Grant: of-another-task", "taskgate_grant: x", "Taskgate-Anything: x", "Idempotency-Key: 1", "X-Idempotency-Key: 1",
		"TE: trailers", "Keep-Alive: timeout=5", "Proxy-Connection: keep-alive", "Expect: 100-continue", "Connection: keep-alive",
		"Trailer: Impersonate-User",
		// These pass: the broker judges or ignores them.
		"X-HTTP-Method-Override: DELETE", "Accept: */*", "Impersonate-User: system:admin", "X-Custom: 1", "X-Custom: 2",
	} {
		fmt.Fprintf(conn, "%s\r\n", header)
	}
	fmt.Fprint(conn, "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nImpersonate-User: system:admin\r\n\r\n")
	reader := bufio.NewReader(conn)
	answer := must(http.ReadResponse(reader, nil))(t)
	if answer.StatusCode == http.StatusContinue { // said by the sidecar itself
		answer = must(http.ReadResponse(reader, nil))(t)
	}
	if answer.StatusCode != 200 {
		t.Fatalf("%d", answer.StatusCode)
	}
	got := s.broker.only(t)
	want := http.Header{"X-Http-Method-Override": {"DELETE"}, "Accept": {"*/*"}, "Impersonate-User": {"system:admin"}, "X-Custom": {"1", "2"}}
	if !reflect.DeepEqual(got.Header, want) || len(got.Trailer) != 0 || string(got.Body) != "{}" {
		t.Errorf("headers %v trailers %v body %q, want %v", got.Header, got.Trailer, got.Body, want)
	}
}

// TestJudgedHeaders is the sidecar's half of T074 and T079: what the broker must
// refuse reaches the broker.
func TestJudgedHeaders(t *testing.T) {
	s := newStack(t)
	for name, test := range map[string]struct {
		headers []string
		want    http.Header
	}{
		"connection tokens": {[]string{"Connection: Impersonate-User, Authorization"}, http.Header{"Connection": {"Impersonate-User, Authorization"}}},
		"lower case":        {[]string{"connection: impersonate-user"}, http.Header{"Connection": {"impersonate-user"}}},
		"three lines":       {[]string{"Connection: a", "Connection: b, close", "Connection: c"}, http.Header{"Connection": {"a", "b", "c"}}},
		"behind close":      {[]string{"Connection: close, impersonate-group"}, http.Header{"Connection": {"impersonate-group"}}},
		"h2c":               {[]string{"Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA"}, http.Header{"Connection": {"Upgrade, HTTP2-Settings"}, "Upgrade": {"h2c"}, "Http2-Settings": {"AAMAAABkAARAAAAAAAIAAAAA"}}},
		"upgrade alone":     {[]string{"Upgrade: websocket"}, http.Header{"Upgrade": {"websocket"}}},
		"impersonation":     {[]string{"Impersonate-User: a", "Impersonate-Group: system:masters", "impersonate-extra-x: y", "Impersonate-Uid: 0"}, http.Header{"Impersonate-User": {"a"}, "Impersonate-Group": {"system:masters"}, "Impersonate-Extra-X": {"y"}, "Impersonate-Uid": {"0"}}},
	} {
		for _, target := range []string{"/api/v1/pods", "/api/v1/pods?watch=1"} {
			t.Run(name+target, func(t *testing.T) {
				before := len(s.broker.seen())
				s.raw(t, "GET "+target+" HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer "+s.token+"\r\n"+strings.Join(test.headers, "\r\n")+"\r\n\r\n")
				calls := s.broker.seen()[before:]
				if len(calls) != 1 || !reflect.DeepEqual(calls[0].Header, test.want) {
					t.Errorf("%+v, want %v", calls, test.want)
				}
			})
		}
	}
}

// targets are spellings an agent may try; each must reach the broker as it is.
var targets = []string{
	"/", "/api", "/api/v1/namespaces/ns-a/pods/", "/api/v1/namespaces/ns-a/../ns-b/secrets/s",
	"/api/v1/namespaces/ns-a/%2e%2e/ns-b", "/a/..%2fb", "/a/%2e.", "/a/%2F/b", "/a/%252F", "/a/%5c", "/a/%00", "/a/%0a", "/a/%c0%ae", "/a;v=1/b",
	"/a/\u2215/b", "/a/\xff\xfe", "/api/v1/%65xec", "/a\\b", "/a|b^c`d{e}\"<f>", "/a[b]!$&'()*+,;=:@", "/api//v1///pods",
	"//api/v1/pods", "//other.example/api/v1", "///", "//", "/./", "/a#fragment", "/a?#fragment", "/a?", "/a??", "/a?b?c", "/?",
	"/a?watch=0&watch=1", "/a?fieldSelector=metadata.name%3Dfoo", "/a?a=1;watch=1", "/a?%zz=1", "/a?b=%", "/a?a=+%20+", "/a?&&=&", "/a?x=\xc3\xa9",
	"/a?q=\"<>^`{|}\\", "/https://other/api", "/a?u=https://other/", "/api/v1/pods?watch=true&resourceVersion=1", "/a:b@c", "/*",
	"/%e2%88%95", "/%E2%88%95", "//a?watch=1", "/" + strings.Repeat("a", 8000), "/a?" + strings.Repeat("x=1&", 10001) + "watch=1",
}

// TestTargetFidelity is the sidecar's half of T031 to T035, T053, T054, T070, T071.
func TestTargetFidelity(t *testing.T) {
	s := newStack(t)
	for _, target := range targets {
		if got := s.targetSeen(t, target); got != target {
			t.Errorf("the agent wrote %.200q, the broker received %.200q", target, got)
		}
	}
	// The one class of targets that is not opaque to net/url; both spellings begin
	// with //, which the broker refuses.
	if got := s.targetSeen(t, "//a|b\xff?c|d"); got != "//a%7Cb%FF?c|d" {
		t.Errorf("%q", got)
	}
}

// targetSeen is what the broker receives for a target, or "" if the sidecar
// answers 400 without passing it on.
func (s *stack) targetSeen(t testing.TB, target string) string {
	t.Helper()
	before := len(s.broker.seen())
	answer, body := s.raw(t, "GET "+target+" HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer "+s.token+"\r\n\r\n")
	calls := s.broker.seen()[before:]
	switch {
	case len(calls) == 1 && answer.StatusCode == http.StatusOK:
		return calls[0].Target
	case len(calls) == 0 && answer.StatusCode == http.StatusBadRequest:
		return ""
	default:
		t.Fatalf("target %q: %d %q, %d calls", target, answer.StatusCode, body, len(calls))
		return ""
	}
}

// FuzzTarget looks for a spelling the sidecar changes on its way.
func FuzzTarget(f *testing.F) {
	for _, target := range targets {
		f.Add(target)
	}
	s := newStack(f)
	f.Fuzz(func(t *testing.T, target string) {
		if strings.ContainsAny(target, " \r\n") || len(target) > 32<<10 || target == "" {
			return // not one request target on the wire
		}
		got := s.targetSeen(t, target)
		if got == "" || got == target {
			return
		}
		if !strings.HasPrefix(target, "//") || !strings.HasPrefix(got, "//") {
			t.Errorf("the agent wrote %q, the broker received %q", target, got)
		}
	})
}

func TestPinnedGrant(t *testing.T) {
	s := newStack(t, func(c *sidecar.Config) { c.Grant = "fix-web" })
	request := s.request("GET", "/api", "")
	request.Header.Set("Taskgate-Grant", "another")
	s.do(request)
	if got := s.broker.only(t).Header["Taskgate-Grant"]; !reflect.DeepEqual(got, []string{"fix-web"}) {
		t.Errorf("%q", got)
	}
}

// TestAnswersPass is T233 and T243: the broker's answers arrive as they are.
func TestAnswersPass(t *testing.T) {
	s := newStack(t)
	for name, test := range map[string]struct {
		code    int
		headers http.Header
		body    string
	}{
		"warning":     {200, http.Header{"Warning": {`299 - "grant ends in 5m"`, `299 - "two"`}, "Audit-Id": {"0d1c"}}, `{"kind":"Pod"}`},
		"gone":        {410, http.Header{"Content-Type": {"application/json"}}, `{"kind":"Status","reason":"Expired","code":410}`},
		"rate":        {429, http.Header{"Retry-After": {"1"}}, `{"kind":"Status","code":429}`},
		"media type":  {415, http.Header{"Content-Type": {"application/json"}}, `{"kind":"Status","reason":"UnsupportedMediaType"}`},
		"gzip":        {200, http.Header{"Content-Encoding": {"gzip"}, "Vary": {"Accept-Encoding"}}, "\x1f\x8b\x08\x00not really"},
		"no content":  {204, http.Header{}, ""},
		"not changed": {304, http.Header{"Etag": {`"x"`}, "Cache-Control": {"public"}}, ""},
		"redirect":    {307, http.Header{}, "see there"},
		"protobuf":    {200, http.Header{"Content-Type": {"application/vnd.kubernetes.protobuf"}}, "k8s\x00\x01"},
	} {
		t.Run(name, func(t *testing.T) {
			s.broker.handle(func(w http.ResponseWriter, _ *http.Request) {
				for header, values := range test.headers {
					w.Header()[header] = values
				}
				// These end at the sidecar.
				w.Header().Set("Set-Cookie", "a=b")
				w.Header().Set("Location", "https://elsewhere/")
				w.Header().Set("Alt-Svc", `h3=":443"`)
				w.Header().Set("Access-Control-Allow-Origin", "*")
				w.WriteHeader(test.code)
				io.WriteString(w, test.body)
			})
			s.client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
			answer, body := s.do(s.request("POST", "/api/v1/namespaces/shop/pods", "{}"))
			if answer.StatusCode != test.code || body != test.body {
				t.Errorf("%d %q", answer.StatusCode, body)
			}
			for header, values := range test.headers {
				if got := answer.Header[header]; !reflect.DeepEqual(got, values) {
					t.Errorf("%s: %q, not %q", header, got, values)
				}
			}
			for _, header := range []string{"Set-Cookie", "Location", "Alt-Svc", "Access-Control-Allow-Origin"} {
				if answer.Header.Get(header) != "" {
					t.Errorf("%s passed", header)
				}
			}
		})
	}
}

// TestUpgrade is the sidecar's half of the exec cases: the upgrade reaches the
// broker as it was written, the broker's refusal comes back, and a broker that
// switches protocols without being asked meets a closed door (T085).
func TestUpgrade(t *testing.T) {
	s := newStack(t)
	upgrade := "GET /api/v1/namespaces/shop/pods/web-0/exec?command=ls&stdout=true HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + s.token +
		"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: x3JJHMbDL1EzLkh9GBhXDw==\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\n"
	s.broker.handle(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusForbidden)
		io.WriteString(w, "refused by the broker")
	})
	if answer, body := s.raw(t, upgrade); answer.StatusCode != http.StatusForbidden || body != "refused by the broker" {
		t.Errorf("%d %q", answer.StatusCode, body)
	}
	want := http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Sec-Websocket-Version": {"13"}, "Sec-Websocket-Key": {"x3JJHMbDL1EzLkh9GBhXDw=="}, "Sec-Websocket-Protocol": {"v5.channel.k8s.io"}}
	if got := s.broker.only(t); got.Proto != "HTTP/1.1" || !reflect.DeepEqual(got.Header, want) {
		t.Errorf("%s %v", got.Proto, got.Header)
	}

	// A switch that nobody asked for ends both connections.
	closed := make(chan error, 1)
	s.broker.handle(func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		conn.SetReadDeadline(time.Now().Add(patience))
		_, err = conn.Read(make([]byte, 1))
		closed <- err
	})
	answer, body := s.raw(t, "GET /api HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer "+s.token+"\r\n\r\n")
	if answer.StatusCode != http.StatusBadGateway || !answer.Close {
		t.Errorf("%d %s, closed %v", answer.StatusCode, body, answer.Close)
	}
	if err := <-closed; err != io.EOF {
		t.Errorf("the broker's connection was not closed: %v", err)
	}
}

// TestBodiesStream shows that neither direction is held back.
func TestBodiesStream(t *testing.T) {
	s := newStack(t)
	s.broker.handle(nil)
	big := make([]byte, 8<<20)
	rand.Read(big)
	s.broker.handle(func(w http.ResponseWriter, _ *http.Request) { w.Write(big) })
	request := s.request("PUT", "/api/v1/namespaces/shop/configmaps/big", "x")
	request.Body, request.ContentLength = io.NopCloser(io.MultiReader(bytes.NewReader(big), strings.NewReader(""))), -1
	_, body := s.do(request)
	if !bytes.Equal([]byte(body), big) || !bytes.Equal(s.broker.only(t).Body, big) {
		t.Error("a body changed on the way")
	}
}

// TestBrokenBody shows that the agent's own fault is not called the broker's.
func TestBrokenBody(t *testing.T) {
	s := newStack(t)
	head := "POST /api/v1/namespaces/shop/pods HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + s.token + "\r\n"
	answer, body := s.raw(t, head+"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n")
	refused(t, answer, body, http.StatusBadRequest, "BadBody")
	if strings.Contains(s.log.String(), "broker unavailable") {
		t.Error("the log blames the broker")
	}
	for name, headers := range map[string]string{
		"both lengths":      "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"two lengths":       "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
		"unknown coding":    "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
		"space before colo": "X-A : b\r\n\r\n",
	} {
		before := len(s.broker.seen())
		answer, _ := s.raw(t, head+headers)
		if name == "both lengths" && answer.StatusCode == 200 {
			continue // net/http drops the length, as RFC 9112 section 6.3 allows
		}
		if answer.StatusCode/100 == 2 || len(s.broker.seen()) != before {
			t.Errorf("%s: %d, %d calls", name, answer.StatusCode, len(s.broker.seen())-before)
		}
	}
}

// TestHTTP2Agent covers what only an HTTP/2 client can send.
func TestHTTP2Agent(t *testing.T) {
	s := newStack(t)
	request := s.request("GET", "/api/v1/pods?limit=500", "")
	request.Header.Set("x_forwarded_for", "1.2.3.4")
	answer, _ := s.do(request)
	if answer.ProtoMajor != 2 || s.broker.only(t).Target != "/api/v1/pods?limit=500" {
		t.Errorf("%s %+v", answer.Proto, s.broker.only(t))
	}
}
