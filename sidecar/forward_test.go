package sidecar_test

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
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
// switches protocols all the same meets a closed door (T085).
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
	for _, request := range []string{upgrade, "GET /api HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + s.token + "\r\n\r\n"} {
		answer, body := s.raw(t, request)
		if answer.StatusCode != http.StatusBadGateway {
			t.Errorf("%d %s", answer.StatusCode, body)
		}
		if !answer.Close {
			t.Error("the agent's connection stays open")
		}
		if err := <-closed; err != io.EOF {
			t.Errorf("the broker's connection was not closed: %v", err)
		}
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

// TestBrokerUnavailable is T246, for the ways a broker can be unreachable.
func TestBrokerUnavailable(t *testing.T) {
	s := newStack(t)
	deaf := must(net.Listen("tcp", "127.0.0.1:0"))(t) // accepts in the kernel, never answers
	defer deaf.Close()
	for name, broker := range map[string]string{
		"refused":       freeAddress(t),
		"no handshake":  deaf.Addr().String(),
		"unknown name":  "no-such-host.invalid:8443",
		"no such route": "192.0.2.1:8443", // TEST-NET-1: dropped or refused
	} {
		t.Run(name, func(t *testing.T) {
			config := newConfig(t, broker, s.api.address)
			r := start(t, config)
			r.waitReady() // the broker is no part of readiness
			for _, method := range []string{"GET", "POST", "DELETE"} {
				began := time.Now()
				answer, body := r.do(r.request(method, "/api/v1/namespaces/shop/pods/web-0", ""))
				if took := time.Since(began); took > 2*time.Second {
					t.Errorf("%s: the answer took %s", method, took)
				}
				status := refused(t, answer, body, http.StatusServiceUnavailable, "BrokerUnavailable")
				if !strings.Contains(status.Message, "the call was not made") || len(status.Details.Causes) != 1 {
					t.Errorf("%s: %q", method, status.Message)
				}
			}
			if n := strings.Count(r.log.String(), "broker unavailable"); n != 1 {
				t.Errorf("said %d times in the log, not once", n)
			}
			// Many at once are told as quickly, and share one attempt to connect.
			began := time.Now()
			var wait sync.WaitGroup
			for range 50 {
				wait.Go(func() { r.get("/api/v1/pods?watch=true") })
			}
			wait.Wait()
			if took := time.Since(began); took > 2500*time.Millisecond {
				t.Errorf("50 watches were told after %s", took)
			}
		})
	}
}

// TestReconnects shows that a broker that comes back is found, at one of several
// addresses too.
func TestReconnects(t *testing.T) {
	s := newStack(t)
	address := s.broker.address
	s.get("/api")
	s.broker.stop()
	answer, body := s.get("/api")
	refused(t, answer, body, http.StatusServiceUnavailable, "BrokerUnavailable")
	s.broker.listen(address)
	if answer, body := s.get("/api"); answer.StatusCode != http.StatusOK {
		t.Fatalf("%d %s", answer.StatusCode, body)
	}
	if log := s.log.String(); !strings.Contains(log, "broker answers again") {
		t.Errorf("the log does not say so: %s", log)
	}

	// localhost is ::1 and 127.0.0.1 here; the broker listens on one of them.
	_, port, _ := net.SplitHostPort(address)
	r := start(t, newConfig(t, net.JoinHostPort("localhost", port), s.api.address))
	r.waitReady()
	for range 20 {
		r.client.CloseIdleConnections()
		if answer, body := r.get("/api"); answer.StatusCode != http.StatusOK {
			t.Fatalf("%d %s", answer.StatusCode, body)
		}
	}
}

// TestNoRepeat is the rest of T246: a write the broker may have received is not
// sent again, and the agent is told so. A read on a connection that was good
// before is.
func TestNoRepeat(t *testing.T) {
	s := newStack(t)
	s.get("/api") // from here on connections are reused
	var calls atomic.Int32
	s.broker.handle(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/break" && calls.Add(1) == 1 {
			conn, _, _ := http.NewResponseController(w).Hijack()
			conn.Close()
		}
	})
	for _, test := range []struct {
		method, body string
		sent         int32
	}{{"POST", "{}", 1}, {"POST", "", 1}, {"DELETE", "", 1}, {"PATCH", "{}", 1}, {"PUT", "{}", 1}, {"GET", "", 2}} {
		calls.Store(0)
		request := s.request(test.method, "/break", test.body)
		request.Header.Set("Idempotency-Key", "net/http takes this for leave to repeat")
		answer, body := s.do(request)
		if got := calls.Load(); got != test.sent {
			t.Errorf("%s: sent %d times, not %d", test.method, got, test.sent)
		}
		if test.method == "GET" {
			if answer.StatusCode != http.StatusOK {
				t.Errorf("%d %s", answer.StatusCode, body)
			}
		} else {
			status := refused(t, answer, body, http.StatusServiceUnavailable, "BrokerUnavailable")
			if len(status.Details.Causes) != 2 || status.Details.Causes[1].Type != "OutcomeUnknown" {
				t.Errorf("%s: %s", test.method, body)
			}
		}
		s.get("/api")
	}
}

// TestTruncatedAnswer shows that an answer that breaks off does not look whole.
func TestTruncatedAnswer(t *testing.T) {
	s := newStack(t)
	for _, target := range []string{"/api/v1/pods", "/api/v1/pods?watch=1"} {
		for _, protocol := range []string{"h2", "http/1.1"} {
			s.broker.handle(func(w http.ResponseWriter, _ *http.Request) {
				io.WriteString(w, `{"kind":"PodList","items":[`)
				http.NewResponseController(w).Flush()
				panic(http.ErrAbortHandler)
			})
			client := &http.Client{Transport: must(clientTransport(s.restConfig(), protocol))(t)}
			answer, err := client.Do(s.request("GET", target, ""))
			if err == nil {
				var body []byte
				if body, err = io.ReadAll(answer.Body); err == nil {
					t.Errorf("%s over %s ended as if it were whole: %q", target, protocol, body)
				}
				answer.Body.Close()
			}
			client.CloseIdleConnections()
		}
	}
}

// TestCancel shows that a caller who leaves ends the broker's work.
func TestCancel(t *testing.T) {
	s := newStack(t)
	for _, target := range []string{"/api/v1/pods", "/api/v1/pods?watch=true"} {
		began, ended := make(chan struct{}), make(chan struct{})
		s.broker.handle(func(_ http.ResponseWriter, r *http.Request) {
			close(began)
			<-r.Context().Done()
			close(ended)
		})
		request := s.request("GET", target, "")
		ctx, cancel := contextWithCancel(request)
		done := make(chan struct{})
		go func() {
			defer close(done)
			if answer, err := s.client.Do(request.WithContext(ctx)); err == nil {
				answer.Body.Close()
			}
		}()
		<-began
		cancel()
		<-done
		select {
		case <-ended:
		case <-time.After(patience):
			t.Fatalf("%s: the broker still works on it", target)
		}
	}
}

// TestOnlyTheBroker shows that nothing but the named SPIFFE ID is talked to.
func TestOnlyTheBroker(t *testing.T) {
	s := newStack(t)
	impostor := startBroker(t, s.ca, agentID)
	r := start(t, newConfig(t, impostor.address, s.api.address))
	r.waitReady()
	answer, body := r.do(r.request("POST", "/api/v1/namespaces/shop/secrets", `{"data":{}}`))
	status := refused(t, answer, body, http.StatusServiceUnavailable, "BrokerUnavailable")
	if !strings.Contains(status.Message, "could not prove that it is "+brokerID.String()) {
		t.Errorf("%q", status.Message)
	}
	if calls := impostor.seen(); len(calls) != 0 {
		t.Errorf("the impostor received %d calls", len(calls))
	}
	state := must(tls.Dial("tcp", strings.TrimPrefix(r.url, "https://"), &tls.Config{InsecureSkipVerify: true}))(t)
	state.Close()
}

// TestProxyVariables shows that the environment cannot lead calls elsewhere.
func TestProxyVariables(t *testing.T) {
	for _, name := range []string{"HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "ALL_PROXY"} {
		t.Setenv(name, "http://"+freeAddress(t))
	}
	t.Setenv("NO_PROXY", "")
	s := newStack(t)
	s.get("/api")
	s.get("/api?watch=1")
	if calls := s.broker.seen(); len(calls) != 2 {
		t.Errorf("the broker saw %d calls", len(calls))
	}
}
