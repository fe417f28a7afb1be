package sidecar_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/taskgate/taskgate/identity"
	"github.com/taskgate/taskgate/internal/spiffetest"
)

// seen is one call as the broker received it.
type seen struct {
	Proto, Method, Target, Host string
	Header                      http.Header
	Body                        []byte
	Trailer                     http.Header
	Remote                      string
}

// fakeBroker is a broker with real mutual TLS that keeps what it received, and
// fails the test if a call carries anything that must end in the sidecar.
type fakeBroker struct {
	t       testing.TB
	address string
	api     *workloadAPI
	source  *identity.Source
	server  *http.Server
	served  sync.WaitGroup

	mu      sync.Mutex
	calls   []seen
	conns   int
	quiet   bool // keep nothing, for benchmarks
	handler http.HandlerFunc
}

func startBroker(t testing.TB, ca *spiffetest.CA, id spiffeid.ID) *fakeBroker {
	t.Helper()
	api := newWorkloadAPI(t, issue(t, ca, id, time.Hour))
	b := &fakeBroker{t: t, api: api}
	b.source = must(identity.Open(t.Context(), identity.Config{Address: api.address}))(t)
	t.Cleanup(func() { b.source.Close() })
	if err := b.source.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.listen("127.0.0.1:0")
	t.Cleanup(b.stop)
	return b
}

func (b *fakeBroker) listen(address string) {
	b.t.Helper()
	tcp := must(net.Listen("tcp", address))(b.t)
	b.address = tcp.Addr().String()
	tlsConfig := b.source.ServerTLS([]spiffeid.TrustDomain{domain})
	listener := identity.NewListener(tcp, tlsConfig, identity.Limits{}, func(string) {})
	b.server = &http.Server{
		Handler: b, TLSConfig: tlsConfig, MaxHeaderBytes: 128 << 10, DisableGeneralOptionsHandler: true,
		ConnContext: func(ctx context.Context, _ net.Conn) context.Context {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.conns++
			return ctx
		},
	}
	// Serve sets up HTTP/2 only for a listener of its own making.
	b.server.Protocols = &http.Protocols{}
	b.server.Protocols.SetHTTP1(true)
	b.server.Protocols.SetHTTP2(true)
	b.served.Go(func() { _ = b.server.Serve(listener) })
}

func (b *fakeBroker) stop() {
	b.server.Close()
	b.served.Wait()
}

func (b *fakeBroker) handle(handler http.HandlerFunc) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.handler = handler
}

var neverArrive = []string{
	"Authorization", "Proxy-Authorization", "Cookie", "Forwarded", "X-Real-Ip", "X-Real_Ip", "Audit-Id", "Expect", "Te",
	"X-Remote-User", "X_Remote_user", "X-Forwarded-For", "X-Forwarded-Client-Cert", "X-Spiffe-Id", "Idempotency-Key",
}

func (b *fakeBroker) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	for _, name := range neverArrive {
		if values, ok := r.Header[name]; ok {
			b.t.Errorf("the broker received header %s: %q", name, values)
		}
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	b.mu.Lock()
	if !b.quiet {
		b.calls = append(b.calls, seen{
			Proto: r.Proto, Method: r.Method, Target: r.RequestURI, Host: r.Host,
			Header: r.Header.Clone(), Body: body, Trailer: r.Trailer, Remote: r.RemoteAddr,
		})
	}
	handler := b.handler
	b.mu.Unlock()
	if handler != nil {
		handler(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprintln(w, `{"kind":"PodList","apiVersion":"v1","metadata":{"resourceVersion":"7"},"items":[]}`)
}

func (b *fakeBroker) seen() []seen {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]seen(nil), b.calls...)
}

func (b *fakeBroker) only(t testing.TB) seen {
	t.Helper()
	all := b.seen()
	if len(all) != 1 {
		t.Fatalf("the broker saw %d calls, not 1", len(all))
	}
	return all[0]
}

func (b *fakeBroker) connections() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.conns
}
