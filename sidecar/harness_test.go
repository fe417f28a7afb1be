package sidecar_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"go.uber.org/goleak"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/taskgate/taskgate/internal/spiffetest"
	"github.com/taskgate/taskgate/sidecar"
)

// asSidecar makes the test binary run as a sidecar, in a process of its own;
// asTwin beside it as what the sidecar is measured against.
const (
	asSidecar = "TASKGATE_TEST_SIDECAR"
	asTwin    = "TASKGATE_TEST_TWIN"
)

func TestMain(m *testing.M) {
	if text, ok := os.LookupEnv(asSidecar); ok {
		os.Exit(runAsSidecar(text))
	}
	goleak.VerifyTestMain(m)
}

func runAsSidecar(text string) int {
	var config sidecar.Config
	if err := json.Unmarshal([]byte(text), &config); err != nil {
		panic(err)
	}
	config.Log = zerolog.New(os.Stderr).Level(zerolog.WarnLevel)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	run := sidecar.Run
	if os.Getenv(asTwin) != "" {
		run = runTwin
	}
	if err := run(ctx, config); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

var (
	domain   = spiffeid.RequireTrustDomainFromString("td-a")
	agentID  = spiffeid.RequireFromString("spiffe://td-a/ns/ns-a/sa/a1")
	brokerID = spiffeid.RequireFromString("spiffe://td-a/ns/taskgate/sa/broker")
)

// patience bounds what must happen soon; nothing waits that long unless it fails.
const patience = 10 * time.Second

// must is used as must(f())(t).
func must[T any](value T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

// eventually waits for something another goroutine brings about.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		if holds() {
			return
		}
	}
	t.Fatalf("this did not come about: %s", what)
}

// shortDir is a folder whose path leaves room for the name of a socket.
func shortDir(t testing.TB) string {
	t.Helper()
	dir := must(os.MkdirTemp("", "tg"))(t)
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// freeAddress is one nothing listens on.
func freeAddress(t testing.TB) string {
	t.Helper()
	listener := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	defer listener.Close()
	return listener.Addr().String()
}

// workloadAPI is a Workload API with one SVID.
type workloadAPI struct {
	*spiffetest.Server
	address string
	socket  string
}

func newWorkloadAPI(t testing.TB, update spiffetest.Update) *workloadAPI {
	t.Helper()
	socket := filepath.Join(shortDir(t), "api.sock")
	w := &workloadAPI{socket: socket, address: "unix://" + socket}
	w.Server = must(spiffetest.Listen(socket, update))(t)
	t.Cleanup(func() { w.Server.Close() })
	return w
}

func issue(t testing.TB, ca *spiffetest.CA, id spiffeid.ID, ttl time.Duration) spiffetest.Update {
	t.Helper()
	svid := must(ca.Issue(spiffetest.Leaf{ID: id, TTL: ttl}))(t)
	return spiffetest.Update{SVIDs: []*x509svid.SVID{svid}, Bundle: ca.Bundle()}
}

// logBuffer is a log other goroutines write to.
type logBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// running is a sidecar started by a test.
type running struct {
	t      testing.TB
	config sidecar.Config
	log    *logBuffer
	stop   func() error // ends it and returns what Run returned
	client *http.Client // trusts the sidecar; sends no token by itself
	tls    *tls.Config
	url    string
	token  string
}

// stack is the usual case: one CA, one broker, one agent with an SVID.
type stack struct {
	ca     *spiffetest.CA
	broker *fakeBroker
	api    *workloadAPI
	*running
}

func newStack(t testing.TB, change ...func(*sidecar.Config)) *stack {
	t.Helper()
	ca := must(spiffetest.NewCA(domain.Name()))(t)
	broker := startBroker(t, ca, brokerID)
	api := newWorkloadAPI(t, issue(t, ca, agentID, time.Hour))
	config := newConfig(t, broker.address, api.address)
	for _, edit := range change {
		edit(&config)
	}
	s := &stack{ca: ca, broker: broker, api: api, running: start(t, config)}
	s.waitReady()
	return s
}

func newConfig(t testing.TB, broker, workloadAPI string) sidecar.Config {
	t.Helper()
	dir := t.TempDir()
	return sidecar.Config{
		Broker: broker, BrokerID: brokerID, WorkloadAPI: workloadAPI,
		Listen: []string{"127.0.0.1:0"}, Health: freeAddress(t),
		StateDir: filepath.Join(dir, "state"), AgentDir: filepath.Join(dir, "agent"), Namespace: "shop",
		Grace: patience,
	}
}

func start(t testing.TB, config sidecar.Config) *running {
	t.Helper()
	r := &running{t: t, config: config, log: &logBuffer{}}
	r.config.Log = zerolog.New(r.log).Level(zerolog.DebugLevel)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- sidecar.Run(ctx, r.config) }()
	r.stop = sync.OnceValue(func() error {
		cancel()
		r.client.CloseIdleConnections()
		return <-ended
	})
	r.client = &http.Client{}
	eventually(t, "the health endpoint answers", func() bool {
		select {
		case err := <-ended:
			t.Fatalf("the sidecar ended: %v", err)
		default:
		}
		_, err := sidecar.Probe(t.Context(), config.Health, "live")
		return err == nil
	})
	t.Cleanup(func() {
		if err := r.stop(); err != nil {
			t.Errorf("the sidecar ended with: %v", err)
		}
		if strings.Contains(r.log.String(), r.token) {
			t.Error("the local token is in the log")
		}
	})
	files := r.restConfig()
	r.url, r.token = files.Host, strings.TrimSpace(string(must(os.ReadFile(files.BearerTokenFile))(t)))
	r.tls = must(rest.TLSConfigFor(files))(t)
	r.client.Transport = must(clientTransport(files, "h2", "http/1.1"))(t)
	return r
}

func clientTransport(config *rest.Config, protocols ...string) (*http.Transport, error) {
	tlsConfig, err := rest.TLSConfigFor(config)
	if err != nil {
		return nil, err
	}
	tlsConfig.NextProtos = protocols
	return &http.Transport{TLSClientConfig: tlsConfig, ForceAttemptHTTP2: protocols[0] == "h2", DisableCompression: true, MaxIdleConnsPerHost: 100}, nil
}

// restConfig is what client-go makes of the files in the agent's folder.
func (r *running) restConfig() *rest.Config {
	r.t.Helper()
	return must(clientcmd.BuildConfigFromFlags("", filepath.Join(r.config.AgentDir, "kubeconfig")))(r.t)
}

func (r *running) waitReady() {
	r.t.Helper()
	eventually(r.t, "the sidecar is ready", func() bool {
		_, err := sidecar.Probe(r.t.Context(), r.config.Health, "ready")
		return err == nil
	})
}

func (r *running) request(method, target, body string) *http.Request {
	r.t.Helper()
	var reader io.Reader
	if body != "" {
		reader = strings.NewReader(body)
	}
	request := must(http.NewRequestWithContext(r.t.Context(), method, r.url+target, reader))(r.t)
	request.Header.Set("Authorization", "Bearer "+r.token)
	return request
}

// do sends a call and returns the answer with its whole body.
func (r *running) do(request *http.Request) (*http.Response, string) {
	r.t.Helper()
	answer := must(r.client.Do(request))(r.t)
	defer answer.Body.Close()
	return answer, string(must(io.ReadAll(answer.Body))(r.t))
}

func (r *running) get(target string) (*http.Response, string) {
	r.t.Helper()
	return r.do(r.request(http.MethodGet, target, ""))
}

// dialTLS opens a connection to the sidecar for requests net/http would not send.
func (r *running) dialTLS(t testing.TB, protocols ...string) *tls.Conn {
	t.Helper()
	config := r.tls.Clone()
	config.NextProtos = protocols
	conn := must(tls.Dial("tcp", strings.TrimPrefix(r.url, "https://"), config))(t)
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(2 * patience))
	return conn
}

// refused checks an answer of the sidecar itself.
func refused(t testing.TB, answer *http.Response, body string, code int, reason string) metav1.Status {
	t.Helper()
	var status metav1.Status
	if err := json.Unmarshal([]byte(body), &status); err != nil {
		t.Fatalf("%d %q is not a Status: %v", answer.StatusCode, body, err)
	}
	if answer.StatusCode != code || int(status.Code) != code {
		t.Errorf("code %d (in the Status %d), not %d", answer.StatusCode, status.Code, code)
	}
	if status.Kind != "Status" || status.Status != metav1.StatusFailure || answer.Header.Get("Content-Type") != "application/json" {
		t.Errorf("not a failure Status as JSON: %q %q", answer.Header.Get("Content-Type"), body)
	}
	if status.Details == nil || len(status.Details.Causes) == 0 || string(status.Details.Causes[0].Type) != reason {
		t.Errorf("the first cause is not %s: %s", reason, body)
	}
	if !strings.HasPrefix(status.Message, "[taskgate:"+reason+"] ") || !strings.Contains(status.Message, " Next: ") {
		t.Errorf("the message does not say what and what next: %q", status.Message)
	}
	if len(status.Message) > 400 {
		t.Errorf("the message has %d characters: %q", len(status.Message), status.Message)
	}
	if answer.Header.Get("Retry-After") != "" {
		t.Error("Retry-After makes client-go repeat writes")
	}
	return status
}

func agentIDIn(domain string) spiffeid.ID {
	return spiffeid.RequireFromString("spiffe://" + domain + "/ns/ns-a/sa/a1")
}

func bundles(all ...*x509bundle.Bundle) []*x509bundle.Bundle { return all }

func dialTCP(address string) (net.Conn, error) {
	conn, err := net.Dial("tcp", address)
	if err == nil {
		conn.SetDeadline(time.Now().Add(2 * patience))
	}
	return conn, err
}

func contextWithCancel(request *http.Request) (context.Context, context.CancelFunc) {
	return context.WithCancel(request.Context())
}
