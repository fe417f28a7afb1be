package sidecar_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/taskgate/taskgate/sidecar"
)

// events makes the broker answer with one line at once and one for each tick.
func (b *fakeBroker) events(tick <-chan struct{}) {
	b.handle(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		control := http.NewResponseController(w)
		for n := 0; ; n++ {
			fmt.Fprintf(w, `{"type":"BOOKMARK","object":{"kind":"Pod","apiVersion":"v1","metadata":{"resourceVersion":"%d"}}}`+"\n", n)
			control.Flush()
			select {
			case <-r.Context().Done():
				return
			case <-tick:
			}
		}
	})
}

// TestWatchIsNotHeldBack is the streaming part of T243: each event arrives before
// the next one exists, for watches and followed logs, over both protocols.
func TestWatchIsNotHeldBack(t *testing.T) {
	s := newStack(t)
	for _, target := range []string{
		"/api/v1/pods?watch=true", "/api/v1/pods?watch=1&resourceVersion=5", "/api/v1/pods?resourceVersion=5&watch=", "/api/v1/pods?watch",
		"/api/v1/namespaces/shop/pods/web-0/log?follow=true",
	} {
		for _, protocol := range []string{"h2", "http/1.1"} {
			t.Run(target+" "+protocol, func(t *testing.T) {
				tick := make(chan struct{}) // of this watch alone
				s.broker.events(tick)
				client := &http.Client{Transport: must(clientTransport(s.restConfig(), protocol))(t)}
				defer client.CloseIdleConnections()
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				answer := must(client.Do(s.request("GET", target, "").WithContext(ctx)))(t)
				defer answer.Body.Close()
				lines := bufio.NewReader(answer.Body)
				for n := range 5 {
					if line := must(lines.ReadString('\n'))(t); !strings.Contains(line, fmt.Sprintf(`"resourceVersion":"%d"`, n)) {
						t.Fatalf("event %d: %s", n, line)
					}
					tick <- struct{}{}
				}
			})
		}
	}
	for _, call := range s.broker.seen() {
		if call.Proto != "HTTP/2.0" {
			t.Errorf("%s went to the broker over %s", call.Target, call.Proto)
		}
	}
}

// TestNotAWatch shows what only looks like one.
func TestNotAWatch(t *testing.T) {
	s := newStack(t)
	for _, target := range []string{"/api/v1/pods?watch=false", "/api/v1/pods?watch=0", "/api/v1/pods?labelSelector=watch=true", "/api/v1/pods?xwatch=1", "/watch/follow"} {
		s.get(target)
	}
	for _, call := range s.broker.seen() {
		if call.Proto != "HTTP/1.1" {
			t.Errorf("%s went to the broker over %s", call.Target, call.Proto)
		}
	}
}

// TestThousandWatches opens them all at once: they share few connections, each
// gets its events, and ordinary calls do not wait for them.
func TestThousandWatches(t *testing.T) {
	s := newStack(t)
	const watches, perClient = 1000, 200 // below the streams one connection allows
	tick := make(chan struct{})
	var clients []*http.Client
	for range watches / perClient {
		client := &http.Client{Transport: must(clientTransport(s.restConfig(), "h2"))(t)}
		defer client.CloseIdleConnections()
		// Or net/http would open a connection to the sidecar for each call.
		must(client.Do(s.request("GET", "/api", "")))(t).Body.Close()
		clients = append(clients, client)
	}
	s.broker.events(tick)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var opened, ended sync.WaitGroup
	opened.Add(watches)
	for n := range watches {
		ended.Go(func() {
			answer, err := clients[n/perClient].Do(s.request("GET", "/api/v1/pods?watch=true", "").WithContext(ctx))
			if err != nil {
				t.Error(err)
				opened.Done()
				return
			}
			defer answer.Body.Close()
			lines := bufio.NewReader(answer.Body)
			_, err = lines.ReadString('\n')
			opened.Done()
			if err == nil {
				_, err = lines.ReadString('\n')
			}
			if err != nil {
				t.Error(answer.StatusCode, err)
			}
		})
	}
	opened.Wait()
	if got := s.broker.connections(); got < 11 || got > 20 {
		t.Errorf("%d connections for %d watches", got, watches)
	}
	close(tick)
	ended.Wait()
}

// TestClientGo runs a real client over the generated kubeconfig and over the
// in-cluster files, as T242 does with a real API server.
func TestClientGo(t *testing.T) {
	s := newStack(t)
	s.broker.handle(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if r.URL.Query().Get("watch") != "" {
			io.WriteString(w, `{"type":"ADDED","object":{"kind":"Pod","apiVersion":"v1","metadata":{"name":"web-0","resourceVersion":"8"}}}`)
			return
		}
		io.WriteString(w, `{"kind":"PodList","apiVersion":"v1","metadata":{"resourceVersion":"7"},"items":[{"metadata":{"name":"web-0"}}]}`)
	})
	client := must(kubernetes.NewForConfig(s.restConfig()))(t)
	pods := must(client.CoreV1().Pods("shop").List(t.Context(), metav1.ListOptions{}))(t)
	if len(pods.Items) != 1 || pods.Items[0].Name != "web-0" {
		t.Errorf("%+v", pods)
	}
	watch := must(client.CoreV1().Pods("shop").Watch(t.Context(), metav1.ListOptions{ResourceVersion: "7"}))(t)
	if event := <-watch.ResultChan(); event.Type != "ADDED" {
		t.Errorf("%+v", event)
	}
	watch.Stop()
}

// TestShutdown ends calls in order: a call under way ends, a watch is cut at once,
// a call that does not end is cut after the grace.
func TestShutdown(t *testing.T) {
	t.Parallel()
	s := newStack(t, func(c *sidecar.Config) { c.Grace = 2 * time.Second })
	began := make(chan struct{}, 4)
	release := make(chan struct{})
	s.broker.handle(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			io.WriteString(w, "{}\n")
		}
		if r.URL.RawQuery == "watch=1" {
			http.NewResponseController(w).Flush()
		}
		began <- struct{}{}
		if r.URL.Path == "/write" {
			<-r.Context().Done()
			return
		}
		if r.URL.Path == "/short" {
			<-release
			return
		}
		<-r.Context().Done()
	})
	type end struct {
		took time.Duration
		err  error
		body string
	}
	ends := map[string]chan end{}
	var stopped time.Time
	for target, method := range map[string]string{"/short": "GET", "/watch?watch=1": "GET", "/endless": "GET", "/write": "DELETE"} {
		ends[target] = make(chan end, 1)
		go func() {
			answer, err := s.client.Do(s.request(method, target, ""))
			var body []byte
			if err == nil {
				body, err = io.ReadAll(answer.Body)
				answer.Body.Close()
			}
			ends[target] <- end{time.Since(stopped), err, string(body)}
		}()
		<-began
	}
	stopped = time.Now()
	done := make(chan error, 1)
	go func() { done <- s.stop() }()
	// It may not even have begun for the agent.
	if watch := <-ends["/watch?watch=1"]; watch.err == nil && !strings.Contains(watch.body, "[taskgate:NotReady]") || watch.took > time.Second {
		t.Errorf("the watch: %+v", watch)
	}
	if _, err := sidecar.Probe(t.Context(), s.config.Health, "ready"); err == nil || !strings.Contains(err.Error(), "shutting down") {
		t.Errorf("readiness during shutdown: %v", err)
	}
	close(release)
	if short := <-ends["/short"]; short.err != nil || short.body != "{}\n" {
		t.Errorf("the short call: %+v", short)
	}
	if endless := <-ends["/endless"]; endless.took < 2*time.Second || endless.took > 4*time.Second {
		t.Errorf("the endless call: %+v", endless)
	}
	if write := <-ends["/write"]; !strings.Contains(write.body, "[taskgate:NotReady]") || !strings.Contains(write.body, `{"reason":"OutcomeUnknown"}`) {
		t.Errorf("the write: %+v", write)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if took := time.Since(stopped); took > 5*time.Second {
		t.Errorf("shutting down took %s", took)
	}
	if _, err := dialTCP(strings.TrimPrefix(s.url, "https://")); err == nil {
		t.Error("it still listens")
	}
	if !strings.Contains(s.log.String(), "cut calls that did not end in time") {
		t.Error("the log does not say that a call was cut")
	}
}
