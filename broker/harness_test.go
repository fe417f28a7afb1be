package broker

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/goleak"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"github.com/taskgate/taskgate/authz"
	"github.com/taskgate/taskgate/broker/control"
	"github.com/taskgate/taskgate/broker/request"
	"github.com/taskgate/taskgate/broker/tasks"
	"github.com/taskgate/taskgate/identity"
	"github.com/taskgate/taskgate/internal/recordertest"
	"github.com/taskgate/taskgate/internal/spiffetest"
	"github.com/taskgate/taskgate/recorder"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const alphaID = "spiffe://example.org/ns/agents/sa/alpha"

// rig is a broker without a cluster: real TLS, a real Workload API, a real
// recorder over a store in memory, and a stub upstream that keeps what it saw.
type rig struct {
	testing.TB
	ca       *spiffetest.CA
	boundary *boundary
	server   *http.Server
	address  string
	stub     *stub
	store    *recordertest.MemoryStore
	records  *recorder.Recorder
	spool    string // its directory
	logs     *bytes.Buffer
	agent    *identity.Source
	workload *spiffetest.Server
	closed   bool
	shift    atomic.Int64 // how far the broker's clock is ahead
}

// stub is the cluster. What it answers is set per test.
type stub struct {
	mu     sync.Mutex
	seen   []*http.Request
	bodies []string
	answer http.HandlerFunc
	server *httptest.Server
}

func (s *stub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	s.mu.Lock()
	s.seen, s.bodies = append(s.seen, r), append(s.bodies, string(body))
	answer := s.answer
	s.mu.Unlock()
	r.Body = io.NopCloser(bytes.NewReader(body))
	answer(w, r)
}

func (s *stub) requests() []*http.Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen
}

func (s *stub) set(answer http.HandlerFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = answer
}

func answerPod(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprint(w, `{"kind":"Pod","apiVersion":"v1","metadata":{"name":"web-0"}}`)
}

func newRig(t testing.TB, changes ...func(*boundary)) *rig {
	t.Helper()
	r := &rig{TB: t, stub: &stub{answer: answerPod}, logs: new(bytes.Buffer), store: recordertest.NewMemoryStore(t)}
	var err error
	if r.ca, err = spiffetest.NewCA("example.org"); err != nil {
		t.Fatal(err)
	}
	own := r.source("broker", "spiffe://example.org/ns/taskgate-system/sa/taskgate-broker", time.Hour)
	r.agent = r.source("alpha", alphaID, time.Hour)
	r.stub.server = httptest.NewUnstartedServer(r.stub)
	r.stub.server.EnableHTTP2 = true
	r.stub.server.StartTLS()
	t.Cleanup(r.stub.server.Close)

	config := recordertest.Config(t, r.store, own)
	r.spool = config.Spool
	r.records = recordertest.Open(t, config)
	index, err := authz.NewIndex(authz.Boundary{Namespaces: []string{"taskgate-system"}})
	if err != nil {
		t.Fatal(err)
	}
	upstream, err := newUpstream(&rest.Config{Host: r.stub.server.URL, BearerToken: "brokers-own-token", TLSClientConfig: rest.TLSClientConfig{Insecure: true, NextProtos: nil}})
	if err != nil {
		t.Fatal(err)
	}
	ownObjects, err := tasks.New(tasks.Config{
		Control: &rest.Config{Host: r.stub.server.URL, BearerToken: "brokers-own-token", TLSClientConfig: rest.TLSClientConfig{Insecure: true}}, Index: index, Now: time.Now,
		Release: func(context.Context, string, string, string) error { return nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	log := zerolog.New(r.logs).Level(zerolog.DebugLevel)
	r.boundary = &boundary{
		identity: own, index: index, never: authz.Boundary{Namespaces: []string{"taskgate-system"}}, recorder: r.records, upstream: upstream, tasks: ownObjects,
		parser: request.NewParser(), live: newLiveCalls(), metrics: newMetrics(), log: log,
		now: func() time.Time { return time.Now().Add(time.Duration(r.shift.Load())) },
		charge: func(context.Context, *authz.Grant, *authz.Policy, control.Use) (*control.Meter, error) {
			return new(control.Meter), nil
		},
		kindOf: kinds, ready: func() error { return nil },
	}
	index.Fresh(time.Now().Add(time.Hour * 24))
	for _, change := range changes {
		change(r.boundary)
	}
	raw, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.address = raw.Addr().String()
	listener := identity.NewListener(raw, own.ServerTLS([]spiffeid.TrustDomain{spiffeid.RequireTrustDomainFromString("example.org")}), identity.Limits{}, r.boundary.metrics.rejected)
	r.server = r.boundary.agentServer()
	ctx, cancel := context.WithCancel(context.Background())
	var wait sync.WaitGroup
	wait.Go(func() { _ = r.server.Serve(listener) })
	wait.Go(func() { r.boundary.live.run(ctx, index.Changed(), r.boundary.now) })
	t.Cleanup(func() {
		cancel()
		r.close()
		_ = r.server.Close()
		_ = listener.Close()
		wait.Wait()
		upstream.close()
	})
	return r
}

// close closes the recorder, so that every record is in the store.
func (r *rig) close() {
	if r.closed {
		return
	}
	r.closed = true
	if err := r.records.Close(context.Background()); err != nil {
		r.Errorf("closing the recorder: %v", err)
	}
}

func kinds(group, resource, subresource string) (kindInfo, bool) {
	known := map[string]bool{
		"pods": true, "pods/log": true, "configmaps": true, "secrets": true, "nodes": false, "namespaces": false,
		"deployments": true, "nodes/proxy": false, "selfsubjectaccessreviews": false,
	}
	if subresource != "" {
		resource += "/" + subresource
	}
	namespaced, found := known[resource]
	return kindInfo{namespaced}, found
}

func (r *rig) source(name, id string, ttl time.Duration) *identity.Source {
	r.Helper()
	socket := filepath.Join(r.TempDir(), name+".sock")
	server, err := r.ca.ServeTTL(context.Background(), socket, ttl, spiffeid.RequireFromString(id))
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(server.Close)
	source, err := identity.Open(context.Background(), identity.Config{Address: "unix://" + socket})
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { source.Close() })
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := source.Wait(ctx); err != nil {
		r.Fatal(err)
	}
	if name == "alpha" {
		r.workload = server
	}
	return source
}

// grant lets alpha do what the rules say for a while.
func (r *rig) grant(ttl time.Duration, rules ...authz.Rule) *authz.Grant {
	r.Helper()
	g := &authz.Grant{
		Name: "inc-1", UID: "uid-1", Agent: alphaID, Task: "INC-1", Policy: "shop", Rules: rules, TTL: ttl,
		Active: true, ActiveFrom: time.Now(), ExpiresAt: time.Now().Add(ttl),
	}
	r.policy(func(*authz.Policy) {})
	if err := r.boundary.index.PutGrant(g); err != nil {
		r.Fatal(err)
	}
	return g
}

func (r *rig) policy(change func(*authz.Policy)) {
	r.Helper()
	everything := authz.Rule{Namespaces: []string{"*"}, APIGroups: []string{"*"}, Resources: []string{"*"}, Verbs: []string{"*"}}
	p := &authz.Policy{Name: "shop", Agents: []string{alphaID}, Allow: []authz.Rule{everything}}
	change(p)
	if err := r.boundary.index.PutPolicy(p); err != nil {
		r.Fatal(err)
	}
}

func allow(verbs string, resources ...string) authz.Rule {
	return authz.Rule{Namespaces: []string{"*"}, APIGroups: []string{"", "apps"}, Resources: resources, Verbs: strings.Split(verbs, ",")}
}

// client is alpha's sidecar, as far as the broker can tell.
func (r *rig) client(protocol string) *http.Client {
	transport := &http.Transport{TLSClientConfig: r.agent.ClientTLS(spiffeid.RequireFromString("spiffe://example.org/ns/taskgate-system/sa/taskgate-broker")), Protocols: new(http.Protocols)}
	transport.Protocols.SetHTTP1(protocol == "http/1.1")
	transport.Protocols.SetHTTP2(protocol == "h2")
	r.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

type reply struct {
	code   int
	header http.Header
	body   string
	status metav1.Status
}

func (r *rig) do(method, target string, header http.Header, body string) reply {
	r.Helper()
	q, err := http.NewRequest(method, "https://"+r.address+target, strings.NewReader(body))
	if err != nil {
		r.Fatal(err)
	}
	if body == "" {
		q.Body = http.NoBody
	}
	for name, values := range header {
		q.Header[name] = values
	}
	response, err := r.client("http/1.1").Do(q)
	if err != nil {
		r.Fatalf("%s %s: %v", method, target, err)
	}
	defer response.Body.Close()
	read, _ := io.ReadAll(response.Body)
	answer := reply{code: response.StatusCode, header: response.Header, body: string(read)}
	_ = json.Unmarshal(read, &answer.status)
	return answer
}

func (a reply) reason() string {
	if a.status.Details == nil || len(a.status.Details.Causes) == 0 {
		return ""
	}
	words := []string{}
	for _, cause := range a.status.Details.Causes {
		words = append(words, string(cause.Type))
	}
	return strings.Join(words, "/")
}

// raw sends bytes over mutual TLS and returns the whole answer.
func (r *rig) raw(text string) string {
	r.Helper()
	conn, err := tls.Dial("tcp", r.address, r.agent.ClientTLS(spiffeid.RequireFromString("spiffe://example.org/ns/taskgate-system/sa/taskgate-broker"), "http/1.1"))
	if err != nil {
		r.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.WriteString(conn, text); err != nil {
		r.Fatal(err)
	}
	answer, _ := io.ReadAll(conn)
	return string(answer)
}

// recorded closes the broker and returns all records, in order.
func (r *rig) recorded() []*recorder.Event {
	r.Helper()
	r.close()
	var events []*recorder.Event
	for e, err := range recorder.Scan(context.Background(), r.store, recorder.Filter{}) {
		if err != nil {
			r.Fatal(err)
		}
		events = append(events, e)
	}
	return events
}

// of returns the records of one call.
func of(events []*recorder.Event, auditID string) []*recorder.Event {
	var own []*recorder.Event
	for _, e := range events {
		if e.AuditID == auditID {
			own = append(own, e)
		}
	}
	return own
}
