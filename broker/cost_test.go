//go:build !race

package broker

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/rest"
)

// bare is the boundary without sockets: what a call costs there is the broker's
// own doing, and not net/http's.
type bare struct {
	boundary *boundary
	request  *http.Request
}

// roundTripper is the cluster, and answers at once.
type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func newBare(t testing.TB, target string) *bare {
	t.Helper()
	r := newRig(t)
	r.grant(time.Hour, allow("get,list,watch", "pods"))
	response, err := r.client("http/1.1").Get("https://" + r.address + target)
	if err != nil || response.StatusCode != http.StatusOK {
		t.Fatal(response, err)
	}
	response.Body.Close()
	var known *agentConn
	r.boundary.conns.Range(func(_, conn any) bool { known = conn.(*agentConn); return false })
	pod := strings.Repeat("x", 2048)
	answer := http.Response{
		StatusCode: http.StatusOK, ContentLength: int64(len(pod)),
		Header: http.Header{"Content-Type": {"application/json"}, "Audit-Id": {"x"}, "Cache-Control": {"no-cache, private"}, "Date": {"x"}, "Content-Length": {"2048"}},
	}
	cluster := &hop{next: roundTripper(func(*http.Request) (*http.Response, error) {
		given := answer
		given.Body = io.NopCloser(strings.NewReader(pod))
		return &given, nil
	})}
	if r.boundary.upstream.short, err = rest.HTTPWrappersForConfig(&rest.Config{BearerToken: "t"}, cluster); err != nil {
		t.Fatal(err)
	}
	request := httptest.NewRequest("GET", target, nil).WithContext(context.WithValue(t.Context(), connKey{}, known))
	request.Body = http.NoBody
	request.Header = http.Header{"Accept": {"application/json"}, "User-Agent": {"kubectl/v1.36.2 (linux/amd64) kubernetes/abc"}, "Accept-Encoding": {"gzip"}}
	return &bare{r.boundary, request}
}

// sink is a ResponseWriter that keeps nothing.
type sink struct {
	header http.Header
	code   int
}

func (s *sink) Header() http.Header         { return s.header }
func (s *sink) WriteHeader(code int)        { s.code = code }
func (s *sink) Write(b []byte) (int, error) { return len(b), nil }

func (b *bare) get(t testing.TB) {
	to := sink{header: make(http.Header, 8)}
	if b.boundary.ServeHTTP(&to, b.request); to.code != http.StatusOK {
		t.Fatal(to.code)
	}
}

const aPod = "/api/v1/namespaces/shop/pods/web-0"

// BenchmarkGet is a recorded GET without the network: admission, record, headers,
// relaying. Its time is mostly the sync of the intent; look at the allocations.
func BenchmarkGet(b *testing.B) {
	call := newBare(b, aPod)
	b.ReportAllocs()
	for b.Loop() {
		call.get(b)
	}
}

// TestGetAllocates no more than it did: each allocation of ours is on every call.
func TestGetAllocates(t *testing.T) {
	const most = 116
	call := newBare(t, aPod)
	got := 1e9
	for range 10 { // what else runs, such as sealing, is counted with it
		got = min(got, testing.AllocsPerRun(50, func() { call.get(t) }))
	}
	if got > most {
		t.Errorf("a recorded GET makes %v allocations of the broker's own, more than %d", got, most)
	}
	t.Logf("%v allocations", got)
}
