package sidecar_test

import (
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestBrokerUnavailable is T246, for the ways a broker can be unreachable.
func TestBrokerUnavailable(t *testing.T) {
	t.Parallel()
	s := newStack(t)
	deaf := must(net.Listen("tcp", "127.0.0.1:0"))(t) // accepts in the kernel, never answers
	t.Cleanup(func() { deaf.Close() })
	for name, broker := range map[string]string{
		"refused":       freeAddress(t),
		"no handshake":  deaf.Addr().String(),
		"unknown name":  "no-such-host.invalid:8443",
		"no such route": "192.0.2.1:8443", // TEST-NET-1: dropped or refused
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
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
