package sidecar_test

import (
	"bufio"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// TestHost is T230 and T231: the Host decides, with or without a port.
func TestHost(t *testing.T) {
	s := newStack(t)
	allowed := []string{
		"localhost", "localhost:6443", "LocalHost:1", "127.0.0.1", "127.0.0.1:16443", "[::1]", "[::1]:6443",
		"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc:443", "kubernetes.default.svc.cluster.local",
	}
	for _, host := range allowed {
		request := s.request("GET", "/api/v1/pods", "")
		request.Host = host
		if answer, body := s.do(request); answer.StatusCode != http.StatusOK {
			t.Errorf("Host %q: %d %s", host, answer.StatusCode, body)
		}
	}
	before := len(s.broker.seen())
	for _, host := range []string{
		"evil.com", "rebind.attacker:8001", "127.0.0.1.evil.com", "localhost.evil.com:6443", "127.0.0.2", "10.0.0.1:6443",
		"kubernetes.default.svc.evil", "0.0.0.0", "localhost.", "xlocalhost",
	} {
		request := s.request("GET", "/api/v1/pods", "")
		request.Host = host
		answer, body := s.do(request)
		refused(t, answer, body, http.StatusMisdirectedRequest, "BadHeader")
	}
	for name, raw := range map[string]string{
		"empty":    "GET /api HTTP/1.1\r\nHost:\r\nAuthorization: Bearer " + s.token + "\r\n\r\n",
		"http/1.0": "GET /api HTTP/1.0\r\nAuthorization: Bearer " + s.token + "\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			answer, body := s.raw(t, raw)
			refused(t, answer, body, http.StatusMisdirectedRequest, "BadHeader")
		})
	}
	if after := len(s.broker.seen()); after != before {
		t.Errorf("%d refused calls reached the broker", after-before)
	}
}

// raw sends bytes as they are over HTTP/1.1 and reads one answer.
func (r *running) raw(t testing.TB, request string) (*http.Response, string) {
	t.Helper()
	conn := r.dialTLS(t, "http/1.1")
	defer conn.Close()
	must(io.WriteString(conn, request))(t)
	method, _, _ := strings.Cut(request, " ")
	answer := must(http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method}))(t)
	defer answer.Body.Close()
	return answer, string(must(io.ReadAll(answer.Body))(t))
}

func TestWebPagesAreRefused(t *testing.T) {
	s := newStack(t)
	for _, header := range [][2]string{
		{"Origin", "https://evil.com"}, {"Origin", "https://127.0.0.1:6443"}, {"Origin", "null"}, {"Origin", ""}, {"origin", "x"},
		{"Sec-Fetch-Site", "same-origin"}, {"Sec-Fetch-Mode", "cors"}, {"sec_fetch_dest", "empty"},
	} {
		request := s.request("GET", "/api/v1/pods", "")
		request.Header[header[0]] = []string{header[1]}
		answer, body := s.do(request)
		refused(t, answer, body, http.StatusForbidden, "BadHeader")
		for name := range answer.Header {
			if strings.HasPrefix(name, "Access-Control-") {
				t.Errorf("CORS header %s", name)
			}
		}
	}
	if calls := s.broker.seen(); len(calls) != 0 {
		t.Errorf("%d calls reached the broker", len(calls))
	}
}

// TestToken is T234 and T235: without the token nothing is forwarded.
func TestToken(t *testing.T) {
	s := newStack(t)
	for name, values := range map[string][]string{
		"none":           nil,
		"empty":          {""},
		"bare":           {s.token},
		"bearer only":    {"Bearer "},
		"wrong":          {"Bearer " + strings.Repeat("A", len(s.token))},
		"prefix":         {"Bearer " + s.token[:len(s.token)-1]},
		"longer":         {"Bearer " + s.token + "A"},
		"twice":          {"Bearer " + s.token, "Bearer " + s.token},
		"basic":          {"Basic " + s.token},
		"inner space":    {"Bearer  " + s.token},
		"service token":  {"Bearer eyJhbGciOiJSUzI1NiJ9.e30.c2ln"},
		"right and more": {"Bearer " + s.token + ", Bearer x"},
	} {
		request := s.request("GET", "/api/v1/secrets", "")
		request.Header["Authorization"] = values
		answer, body := s.do(request)
		refused(t, answer, body, http.StatusUnauthorized, "IdentityUnknown")
		if strings.Contains(body, s.token) {
			t.Errorf("%s: the answer gives the token away", name)
		}
	}
	if calls := s.broker.seen(); len(calls) != 0 {
		t.Errorf("%d calls reached the broker", len(calls))
	}
	request := s.request("GET", "/api", "")
	request.Header.Set("Authorization", "bearer "+s.token) // RFC 9110: the scheme has no case
	if answer, body := s.do(request); answer.StatusCode != http.StatusOK {
		t.Errorf("the right token: %d %s", answer.StatusCode, body)
	}
}

// TestNoProxy is T241 and the sidecar's half of T035.
func TestNoProxy(t *testing.T) {
	s := newStack(t)
	authorization := "Authorization: Bearer " + s.token + "\r\n\r\n"
	for name, test := range map[string]struct {
		request, reason string
		code            int
	}{
		"connect address":  {"CONNECT 10.0.0.1:443 HTTP/1.1\r\nHost: 10.0.0.1:443\r\n", "BadUpgrade", 405},
		"connect self":     {"CONNECT 127.0.0.1:6443 HTTP/1.1\r\nHost: 127.0.0.1:6443\r\n", "BadUpgrade", 405},
		"connect path":     {"CONNECT /api HTTP/1.1\r\nHost: localhost\r\n", "BadUpgrade", 405},
		"absolute foreign": {"GET http://other/api/v1/pods HTTP/1.1\r\nHost: localhost\r\n", "BadPath", 400},
		"absolute self":    {"GET https://localhost/api/v1/pods HTTP/1.1\r\nHost: localhost\r\n", "BadPath", 400},
		"asterisk":         {"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n", "BadPath", 400},
	} {
		t.Run(name, func(t *testing.T) {
			answer, body := s.raw(t, test.request+authorization)
			refused(t, answer, body, test.code, test.reason)
		})
	}
	if calls := s.broker.seen(); len(calls) != 0 {
		t.Errorf("%d calls reached the broker", len(calls))
	}
}

// TestSlowCaller is the rest of T241: a caller that takes its time with TLS or
// with its headers is cut, and nobody else waits.
func TestSlowCaller(t *testing.T) {
	if testing.Short() {
		t.Skip("takes as long as the header timeout")
	}
	t.Parallel()
	s := newStack(t)
	address := strings.TrimPrefix(s.url, "https://")
	for name, opening := range map[string]func(t *testing.T) io.ReadWriteCloser{
		"plain h2c preface": func(t *testing.T) io.ReadWriteCloser {
			return must(dialTCP(address))(t)
		},
		"half a header": func(t *testing.T) io.ReadWriteCloser { return s.dialTLS(t, "http/1.1") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conn := opening(t)
			defer conn.Close()
			began := time.Now()
			closed := make(chan struct{})
			go func() {
				defer close(closed)
				io.Copy(io.Discard, conn)
			}()
			// One byte a second, as long as the sidecar takes it.
			ticker := time.NewTicker(time.Second)
			defer ticker.Stop()
			for _, c := range "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" {
				conn.Write([]byte{byte(c)})
				select {
				case <-closed:
					if took := time.Since(began); took > 12*time.Second {
						t.Errorf("cut after %s", took)
					}
					return
				case <-ticker.C:
				}
				if answer, _ := s.get("/api"); answer.StatusCode != http.StatusOK {
					t.Fatalf("another caller got %d", answer.StatusCode)
				}
			}
			t.Error("never cut")
		})
	}
}
