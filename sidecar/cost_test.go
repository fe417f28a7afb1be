package sidecar_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/taskgate/taskgate/identity"
	"github.com/taskgate/taskgate/sidecar"
)

// process is a sidecar in a process of its own, so that what it costs can be told
// from what the test costs.
type process struct {
	*running
	pid int
}

func startProcess(t testing.TB, config sidecar.Config, environment ...string) *process {
	t.Helper()
	command := exec.Command(must(os.Executable())(t))
	command.Env = append(os.Environ(), asSidecar+"="+string(must(json.Marshal(config))(t)))
	command.Env = append(command.Env, environment...)
	command.Stderr = os.Stderr
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		command.Process.Signal(syscall.SIGTERM)
		if err := command.Wait(); err != nil {
			t.Errorf("the sidecar ended with: %v", err)
		}
	})
	r := &running{t: t, config: config, client: &http.Client{}}
	if len(environment) == 0 {
		r.waitReady()
		files := r.restConfig()
		r.url, r.token = files.Host, strings.TrimSpace(string(must(os.ReadFile(files.BearerTokenFile))(t)))
		r.client.Transport = must(clientTransport(files, "http/1.1"))(t)
		t.Cleanup(r.client.CloseIdleConnections)
	}
	return &process{running: r, pid: command.Process.Pid}
}

// runTwin is the plainest program that does the sidecar's networking: a
// httputil.ReverseProxy with the same TLS on both sides, and no checks.
func runTwin(ctx context.Context, config sidecar.Config) error {
	authority, err := identity.OpenLocalAuthority(config.StateDir, nil)
	if err != nil {
		return err
	}
	source, err := identity.Open(ctx, identity.Config{Address: config.WorkloadAPI})
	if err != nil {
		return err
	}
	defer source.Close()
	if err := source.Wait(ctx); err != nil {
		return err
	}
	listener, err := tls.Listen("tcp", config.Listen[0], authority.ServerTLS())
	if err != nil {
		return err
	}
	server := &http.Server{Handler: &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "https", Host: config.Broker})
			r.Out.Header.Del("Authorization")
		},
		Transport: &http.Transport{TLSClientConfig: source.ClientTLS(config.BrokerID, "http/1.1"), MaxIdleConnsPerHost: 256, DisableCompression: true},
	}}
	context.AfterFunc(ctx, func() { server.Close() })
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// status reads one number of /proc/pid/status, in bytes.
func (p *process) status(t testing.TB, field string) int {
	t.Helper()
	for line := range strings.Lines(string(must(os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid)))(t))) {
		if value, ok := strings.CutPrefix(line, field+":"); ok {
			return must(strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(value), " kB")))(t) << 10
		}
	}
	t.Fatalf("no %s", field)
	return 0
}

// cpu is the processor time used so far.
func (p *process) cpu(t testing.TB) time.Duration {
	t.Helper()
	first, _, _ := strings.Cut(string(must(os.ReadFile(fmt.Sprintf("/proc/%d/schedstat", p.pid)))(t)), " ")
	total := must(strconv.ParseInt(first, 10, 64))(t)
	for _, task := range must(os.ReadDir(fmt.Sprintf("/proc/%d/task", p.pid)))(t) {
		if task.Name() == strconv.Itoa(p.pid) {
			continue
		}
		content, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/schedstat", p.pid, task.Name()))
		if err != nil {
			continue // it ended
		}
		first, _, _ := strings.Cut(string(content), " ")
		total += must(strconv.ParseInt(first, 10, 64))(t)
	}
	return time.Duration(total)
}

// TestIdleWatchMemory holds the memory of an idle watch in the sidecar to what
// performance.md allows.
func TestIdleWatchMemory(t *testing.T) {
	if testing.Short() || raceEnabled {
		t.Skip("measures memory")
	}
	s := newStack(t)
	p := startProcess(t, newConfig(t, s.broker.address, s.api.address))
	p.get("/api") // warm
	s.broker.events(nil)
	before := p.status(t, "VmRSS")
	const watches, perClient = 1000, 200
	for range watches / perClient {
		client := &http.Client{Transport: must(clientTransport(p.restConfig(), "h2"))(t)}
		t.Cleanup(client.CloseIdleConnections)
		var opened sync.WaitGroup
		for n := range perClient {
			open := func() {
				answer, err := client.Do(p.request("GET", "/api/v1/pods?watch=true", ""))
				if err != nil || answer.StatusCode != http.StatusOK {
					t.Error(err)
					return
				}
				t.Cleanup(func() { answer.Body.Close() })
				io.ReadFull(answer.Body, make([]byte, 10))
			}
			if n == 0 {
				open() // the connection the others share
			} else {
				opened.Go(open)
			}
		}
		opened.Wait()
	}
	after := p.status(t, "VmRSS")
	each := (after - before) / watches
	t.Logf("RSS %d KiB idle, %d KiB with %d idle watches: %d bytes each", before>>10, after>>10, watches, each)
	if each > 48<<10 {
		t.Errorf("an idle watch costs %d bytes", each)
	}
}

// BenchmarkGet measures what the sidecar adds to a call of 2 KB: the same client
// straight to the broker, through a plain reverse proxy, and through the sidecar.
// Compare within one run.
func BenchmarkGet(b *testing.B) {
	s := newStack(b)
	pod := strings.Repeat("x", 2048)
	s.broker.mu.Lock()
	s.broker.quiet = true
	s.broker.mu.Unlock()
	s.broker.handle(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, pod) })
	p := startProcess(b, newConfig(b, s.broker.address, s.api.address))
	twinConfig := newConfig(b, s.broker.address, s.api.address)
	twinConfig.Listen = []string{freeAddress(b)}
	twin := startProcess(b, twinConfig, asTwin+"=1")
	eventually(b, "the twin listens", func() bool {
		conn, err := net.Dial("tcp", twinConfig.Listen[0])
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	toTwin := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}}, MaxIdleConnsPerHost: 100, DisableCompression: true}}
	defer toTwin.CloseIdleConnections()

	source := must(identity.Open(b.Context(), identity.Config{Address: s.api.address}))(b)
	defer source.Close()
	if err := source.Wait(b.Context()); err != nil {
		b.Fatal(err)
	}
	direct := &http.Client{Transport: &http.Transport{TLSClientConfig: source.ClientTLS(brokerID, "http/1.1"), MaxIdleConnsPerHost: 100, DisableCompression: true}}
	defer direct.CloseIdleConnections()
	for _, clients := range []int{1, 16} {
		b.Run(fmt.Sprintf("direct/%d", clients), func(b *testing.B) {
			measure(b, clients, func() { fetch(b, direct, must(http.NewRequest("GET", "https://"+s.broker.address+"/api", nil))(b)) })
		})
		b.Run(fmt.Sprintf("twin/%d", clients), func(b *testing.B) {
			defer twin.report(b, twin.cpu(b))
			measure(b, clients, func() { fetch(b, toTwin, must(http.NewRequest("GET", "https://"+twinConfig.Listen[0]+"/api", nil))(b)) })
		})
		b.Run(fmt.Sprintf("sidecar/%d", clients), func(b *testing.B) {
			defer p.report(b, p.cpu(b))
			measure(b, clients, func() { fetch(b, p.client, p.request("GET", "/api", "")) })
		})
	}
}

func (p *process) report(b *testing.B, before time.Duration) {
	b.ReportMetric(float64((p.cpu(b)-before).Nanoseconds())/1e3/float64(b.N), "hop-cpu-µs/op")
	b.ReportMetric(float64(p.status(b, "VmRSS")>>20), "hop-rss-MiB")
}

func fetch(b *testing.B, client *http.Client, request *http.Request) {
	answer, err := client.Do(request)
	if err != nil || answer.StatusCode != http.StatusOK {
		b.Error(err)
		return
	}
	io.Copy(io.Discard, answer.Body)
	answer.Body.Close()
}

func measure(b *testing.B, clients int, call func()) {
	var mu sync.Mutex
	var took []time.Duration
	var wait sync.WaitGroup
	left := make(chan struct{}, b.N)
	for range b.N {
		left <- struct{}{}
	}
	close(left)
	b.ResetTimer()
	for range clients {
		wait.Go(func() {
			var mine []time.Duration
			for range left {
				began := time.Now()
				call()
				mine = append(mine, time.Since(began))
			}
			mu.Lock()
			defer mu.Unlock()
			took = append(took, mine...)
		})
	}
	wait.Wait()
	b.StopTimer()
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Nanoseconds())/1e3, "p50-µs")
	b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds())/1e3, "p99-µs")
}
