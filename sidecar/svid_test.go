package sidecar_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/taskgate/taskgate/internal/spiffetest"
	"github.com/taskgate/taskgate/sidecar"
)

// TestNoIdentity is T025 at the start: without a Workload API the endpoint is
// there, says what is missing, and opens no connection to the broker.
func TestNoIdentity(t *testing.T) {
	t.Parallel()
	ca := must(spiffetest.NewCA(domain.Name()))(t)
	broker := startBroker(t, ca, brokerID)
	socket := filepath.Join(shortDir(t), "api.sock")
	r := start(t, newConfig(t, broker.address, "unix://"+socket))
	for _, target := range []string{"/api", "/api?watch=1"} {
		began := time.Now()
		answer, body := r.get(target)
		refused(t, answer, body, http.StatusServiceUnavailable, "NoIdentity")
		if took := time.Since(began); took > 500*time.Millisecond {
			t.Errorf("%s was answered after %s", target, took)
		}
	}
	// kubectl would print a text of its own for the discovery calls it begins with.
	for target, warned := range map[string]bool{"/api": true, "/apis": true, "/version": true, "/openapi/v3": true, "/api/v1": false, "/api/v1/pods": false} {
		answer, _ := r.get(target)
		if warning := answer.Header.Get("Warning"); strings.HasPrefix(warning, `299 taskgate "[taskgate:NoIdentity] `) != warned {
			t.Errorf("%s: warning %q", target, warning)
		}
	}
	for _, state := range []string{"ready", "startup"} {
		if _, err := sidecar.Probe(t.Context(), r.config.Health, state); err == nil || !strings.Contains(err.Error(), "[-]svid failed: no usable X509-SVID") {
			t.Errorf("probe %s: %v", state, err)
		}
	}
	if line, err := sidecar.Probe(t.Context(), r.config.Health, "live"); err != nil || line != "livez check passed" {
		t.Errorf("probe live: %q %v", line, err)
	}
	if n := broker.connections(); n != 0 {
		t.Errorf("%d connections to the broker", n)
	}
	// A workload without an entry is told so.
	denied := must(spiffetest.Listen(socket, spiffetest.Update{}))(t)
	eventually(t, "the refusal names SPIRE's answer", func() bool {
		_, body := r.get("/api")
		return strings.Contains(body, "no identity issued")
	})
	// And it heals by itself when the entry comes.
	denied.Set(issue(t, ca, agentID, time.Hour))
	r.waitReady()
	if answer, body := r.get("/api"); answer.StatusCode != http.StatusOK {
		t.Errorf("%d %s", answer.StatusCode, body)
	}
	denied.Close()
	if line, err := sidecar.Probe(t.Context(), r.config.Health, "ready"); err != nil || line != "[+]shutdown ok, [+]files ok, [+]svid ok, readyz check passed" {
		t.Errorf("probe ready: %q %v", line, err)
	}
}

// TestExpiry is T025 later on: the Workload API dies, the SVID held serves to its
// end and not a moment longer, watches included; when the API is back so are we.
func TestExpiry(t *testing.T) {
	t.Parallel()
	ca := must(spiffetest.NewCA(domain.Name()))(t)
	broker := startBroker(t, ca, brokerID)
	const ttl = 3 * time.Second
	began := time.Now()
	api := newWorkloadAPI(t, issue(t, ca, agentID, ttl))
	r := start(t, newConfig(t, broker.address, api.address))
	r.waitReady()
	api.Server.Close()

	broker.events(nil)
	watch := must(r.client.Do(r.request("GET", "/api?watch=1", "")))(t)
	defer watch.Body.Close()
	ended := make(chan time.Time, 1)
	go func() {
		io.Copy(io.Discard, watch.Body)
		ended <- time.Now()
	}()
	broker.handle(nil)
	var last time.Time
	for {
		sent := time.Now()
		answer, body := r.get("/api/v1/pods")
		if answer.StatusCode != http.StatusOK {
			refused(t, answer, body, http.StatusServiceUnavailable, "NoIdentity")
			break
		}
		last = sent
		time.Sleep(5 * time.Millisecond)
	}
	// Certificates count whole seconds, so the end is up to one second early.
	if served := last.Sub(began); served > ttl || served < ttl-1500*time.Millisecond {
		t.Errorf("served for %s with an SVID of %s", served, ttl)
	}
	calls := len(broker.seen())
	select {
	case at := <-ended:
		if at.Sub(began) > ttl+2*time.Second {
			t.Errorf("the watch ended after %s", at.Sub(began))
		}
	case <-time.After(patience):
		t.Error("the watch outlives the SVID")
	}
	answer, body := r.do(r.request("DELETE", "/api/v1/namespaces/shop/pods/web-0", ""))
	refused(t, answer, body, http.StatusServiceUnavailable, "NoIdentity")
	if got := len(broker.seen()); got != calls {
		t.Errorf("%d calls left the pod after the end", got-calls)
	}
	eventually(t, "the log says so", func() bool { return strings.Contains(r.log.String(), "no identity; calls are refused") })

	back := must(spiffetest.Listen(api.socket, issue(t, ca, agentID, time.Hour)))(t)
	defer back.Close()
	r.waitReady()
	if answer, body := r.get("/api"); answer.StatusCode != http.StatusOK {
		t.Errorf("%d %s", answer.StatusCode, body)
	}
}

// TestWorkloadAPIRestart shows that an outage shorter than the SVID is not felt.
func TestWorkloadAPIRestart(t *testing.T) {
	s := newStack(t)
	s.api.Server.Close()
	if answer, body := s.get("/api"); answer.StatusCode != http.StatusOK {
		t.Fatalf("%d %s", answer.StatusCode, body)
	}
	next := issue(t, s.ca, agentID, 2*time.Hour)
	back := must(spiffetest.Listen(s.api.socket, next))(t)
	defer back.Close()
	eventually(t, "the new SVID is taken", func() bool {
		return strings.Contains(s.log.String(), next.SVIDs[0].Certificates[0].NotAfter.Local().Format(time.RFC3339))
	})
	if answer, body := s.get("/api"); answer.StatusCode != http.StatusOK {
		t.Fatalf("%d %s", answer.StatusCode, body)
	}
}

// TestRotation renews the SVID many times under load: no call fails, new
// connections show the new SVID, old ones do not stay.
func TestRotation(t *testing.T) {
	s := newStack(t)
	serials := map[string]bool{}
	var mu sync.Mutex
	s.broker.handle(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		serials[r.TLS.PeerCertificates[0].SerialNumber.String()] = true
		mu.Unlock()
		fmt.Fprintf(w, "{}\n")
		if r.URL.RawQuery == "watch=1" {
			http.NewResponseController(w).Flush()
			<-r.Context().Done()
		}
	})
	watch := must(s.client.Do(s.request("GET", "/api?watch=1", "")))(t)
	defer watch.Body.Close()
	lines := bufio.NewReader(watch.Body)
	must(lines.ReadString('\n'))(t)

	stop := make(chan struct{})
	var calls, failed atomic.Int64
	var load sync.WaitGroup
	for n := range 8 {
		load.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				method, body := "GET", ""
				if n%2 == 1 {
					method, body = "POST", "{}"
				}
				answer, err := s.client.Do(s.request(method, "/api/v1/pods", body))
				if calls.Add(1); err != nil || answer.StatusCode != http.StatusOK {
					failed.Add(1)
				}
				if err == nil {
					io.Copy(io.Discard, answer.Body)
					answer.Body.Close()
				}
			}
		})
	}
	const rotations = 20
	for range rotations {
		next := issue(t, s.ca, agentID, time.Hour)
		s.api.Set(next)
		eventually(t, "the new SVID is in use", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return serials[next.SVIDs[0].Certificates[0].SerialNumber.String()]
		})
	}
	close(stop)
	load.Wait()
	if failed.Load() != 0 || calls.Load() < rotations {
		t.Errorf("%d of %d calls failed", failed.Load(), calls.Load())
	}
	// The watch of the first SVID goes on, since that SVID has not ended.
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		lines.ReadString('\n')
	}()
	select {
	case <-closed:
		t.Error("the watch was cut by a rotation")
	case <-ctx.Done():
	}
	watch.Body.Close()
	<-closed
}

// TestBrokerRotation shows that calls do not meet the end of the broker's SVID,
// of which the sidecar is not told: connections are replaced half way to it.
func TestBrokerRotation(t *testing.T) {
	t.Parallel()
	ca := must(spiffetest.NewCA(domain.Name()))(t)
	broker := startBroker(t, ca, brokerID)
	api := newWorkloadAPI(t, issue(t, ca, agentID, time.Hour))
	const ttl = 3 * time.Second
	broker.api.Server.Close()
	renewing := must(ca.ServeTTL(t.Context(), broker.api.socket, ttl, brokerID))(t)
	defer renewing.Close()
	eventually(t, "the broker has a short SVID", func() bool {
		return time.Until(must(broker.source.GetX509SVID())(t).Certificates[0].NotAfter) < ttl+time.Second
	})
	r := start(t, newConfig(t, broker.address, api.address))
	r.waitReady()
	for began := time.Now(); time.Since(began) < 3*ttl; time.Sleep(time.Millisecond) {
		if answer, body := r.do(r.request("POST", "/api/v1/namespaces/shop/pods", "{}")); answer.StatusCode != http.StatusOK {
			t.Fatalf("after %s: %d %s", time.Since(began), answer.StatusCode, body)
		}
	}
	if n := broker.connections(); n < 3 || n > 30 {
		t.Errorf("%d connections", n)
	}
}

// TestIdentityExpiredAnswer is the sidecar's half of T010: after the broker said
// that it no longer takes the SVID of a connection, the next call comes on another.
func TestIdentityExpiredAnswer(t *testing.T) {
	s := newStack(t)
	for _, target := range []string{"/api", "/api?watch=1"} {
		s.broker.handle(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusUnauthorized)
			io.WriteString(w, `{"kind":"Status","details":{"causes":[{"reason":"IdentityExpired"}]}}`)
		})
		before := len(s.broker.seen())
		if answer, body := s.get(target); answer.StatusCode != http.StatusUnauthorized || !strings.Contains(body, "IdentityExpired") {
			t.Errorf("%d %s", answer.StatusCode, body)
		}
		s.broker.handle(nil)
		s.get(target)
		s.get(target)
		calls := s.broker.seen()[before:]
		if len(calls) != 3 || calls[0].Remote == calls[1].Remote || calls[1].Remote != calls[2].Remote {
			t.Errorf("connections %s, %s, %s", calls[0].Remote, calls[1].Remote, calls[2].Remote)
		}
	}
}

// TestBrokerLosesTrust shows that a connection does not outlive the authority
// behind the broker, even if a watch is open on it.
func TestBrokerLosesTrust(t *testing.T) {
	s := newStack(t)
	s.broker.events(nil)
	watch := must(s.client.Do(s.request("GET", "/api?watch=1", "")))(t)
	defer watch.Body.Close()
	other := must(spiffetest.NewCA(domain.Name()))(t)
	s.api.Set(issue(t, other, agentID, time.Hour))
	if _, err := io.ReadAll(watch.Body); err == nil {
		t.Error("the watch ended as if it were whole")
	}
	answer, body := s.get("/api")
	status := refused(t, answer, body, http.StatusServiceUnavailable, "BrokerUnavailable")
	if !strings.Contains(status.Message, "could not prove") {
		t.Errorf("%q", status.Message)
	}
}

// TestRefusedByBroker shows that a broker which does not take this identity is
// not reported as one that is down, whatever of its alert arrives.
func TestRefusedByBroker(t *testing.T) {
	s := newStack(t)
	other := must(spiffetest.NewCA("td-b"))(t)
	update := issue(t, other, agentIDIn("td-b"), time.Hour)
	update.Federated = bundles(s.ca.Bundle())
	api := newWorkloadAPI(t, update)
	r := start(t, newConfig(t, s.broker.address, api.address))
	r.waitReady()
	for _, target := range []string{"/api", "/api?watch=1"} {
		for range 5 {
			answer, body := r.get(target)
			refused(t, answer, body, http.StatusServiceUnavailable, "BrokerUnavailable")
			var status struct{ Message string }
			json.Unmarshal([]byte(body), &status)
			t.Log(target, status.Message)
		}
	}
	if calls := s.broker.seen(); len(calls) != 0 {
		t.Errorf("%d calls passed", len(calls))
	}
}
