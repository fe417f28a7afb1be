package e2e_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/taskgate/taskgate/e2e/testbed"
	"github.com/taskgate/taskgate/recorder"
)

// faultAge is how long records may wait for the bucket in these tests.
const faultAge = 6 * time.Second

// TestFaultStore takes the bucket away, or its safety, once with each store.
func TestFaultStore(t *testing.T) {
	t.Parallel()
	type part struct {
		name string
		test func(*testing.T, *faultBed, *faultS3)
	}
	both := []part{
		{"contract", func(t *testing.T, b *faultBed, _ *faultS3) { storeContract(t, b.Store()) }},
		{"every put is checked and locked", testStorePuts},
		{"locks hold", testStoreLocks},
		{"store away", testStoreAway},
		{"unsafe buckets", testStoreUnsafe},
		{"lifecycle", testStoreLifecycle},
	}
	for name, parts := range map[string][]part{
		testbed.MinIO: append(slices.Clip(both), part{"clocks apart", testStoreClock}),
		testbed.VersityGW: append(slices.Clip(both),
			part{"store away at the start", testStoreAbsent},
			part{"a body changed on the way", testStoreCorrupted},
			part{"slow down", testStoreSlowDown},
			part{"slow", testStoreSlow},
			part{"spool over its limit", testSpoolLimit},
			part{"spool on a full disk", testSpoolFull},
		),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s3 := newFaultS3(t)
			b := startFault(t, testbed.Options{
				S3: name, Node: testbed.NoNode, WithoutControllers: true,
				BrokerConfiguration: func(_ int, configuration map[string]any) {
					s3.infront(configuration)
					configuration["shutdownGrace"] = "5s"
					configuration["recorder"].(map[string]any)["ageLimit"] = faultAge.String()
				},
			})
			for _, part := range parts {
				t.Run(part.name, func(t *testing.T) { part.test(t, b, s3) })
				s3.on(nil)
				if t.Failed() { // the next part begins with everything in place
					ctx := context.WithoutCancel(t.Context())
					if err := errors.Join(b.Component(testbed.ComponentStore).Start(ctx), b.Broker(0).Start(ctx)); err != nil {
						t.Fatal(err)
					}
				}
			}
		})
	}
}

// faultS3 is an HTTP proxy in front of a store. It passes requests on as they
// are, signature included, unless a hook does something else.
type faultS3 struct {
	listener net.Listener
	target   *url.URL // set before the broker starts

	mu   sync.Mutex
	hook func(http.ResponseWriter, *http.Request, http.Handler)
	puts []http.Header
	keys []string
}

func newFaultS3(t testing.TB) *faultS3 {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &faultS3{listener: listener}
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(s.target)
		r.Out.Host = r.In.Host // it is signed
	}, ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) }}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		hook := s.hook
		if r.Method == http.MethodPut && !r.URL.Query().Has("legal-hold") && !r.URL.Query().Has("lifecycle") { // objects
			s.puts, s.keys = append(s.puts, r.Header.Clone()), append(s.keys, r.URL.Path)
		}
		s.mu.Unlock()
		if hook != nil {
			hook(w, r, proxy)
			return
		}
		proxy.ServeHTTP(w, r)
	})}
	go func() { _ = server.Serve(listener) }() // it ends with Close
	t.Cleanup(func() { _ = server.Close() })
	return s
}

// infront puts the proxy between a broker and its store.
func (s *faultS3) infront(configuration map[string]any) {
	store := configuration["recorder"].(map[string]any)["store"].(map[string]any)
	target, err := url.Parse(store["endpoint"].(string))
	if err != nil {
		panic(err)
	}
	s.target = target
	store["endpoint"] = "http://" + s.listener.Addr().String()
}

// on sets the hook; nil takes it away.
func (s *faultS3) on(hook func(w http.ResponseWriter, r *http.Request, next http.Handler)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hook = hook
}

// testStorePuts looks at every object the broker has sent so far (T198).
func testStorePuts(t *testing.T, b *faultBed, s *faultS3) {
	b.sealed(t, 10*time.Second, b.alpha.create(t.Context(), "a-record"))
	s.mu.Lock()
	defer s.mu.Unlock()
	kinds := map[string]int{}
	for i, header := range s.puts {
		kinds[strings.Split(strings.TrimPrefix(s.keys[i], "/"+b.Store().Bucket+"/"), "/")[1]]++
		sum := header.Get("Content-Md5") + header.Get("X-Amz-Checksum-Sha256")
		until, err := time.Parse(time.RFC3339, header.Get("X-Amz-Object-Lock-Retain-Until-Date"))
		if sum == "" || len(header.Get("X-Amz-Content-Sha256")) != 64 || header.Get("X-Amz-Object-Lock-Mode") != "COMPLIANCE" ||
			err != nil || time.Until(until) < 50*time.Minute || header.Get("If-None-Match") != "*" {
			t.Errorf("%s was put with %v", s.keys[i], header)
		}
	}
	for _, kind := range []string{"canary", "trust", "manifests", "journal"} {
		if kinds[kind] == 0 {
			t.Errorf("nothing was put under %s: %v", kind, kinds)
		}
	}
	t.Logf("objects put: %v", kinds)
}

// testStoreLocks has the broker's own key and the store's administrator try to
// delete and to shorten what is locked.
func testStoreLocks(t *testing.T, b *faultBed, _ *faultS3) {
	b.sealed(t, 10*time.Second, b.alpha.get(t.Context()))
	var versions []recorder.Version
	for _, prefix := range []string{"v1/journal/", "v1/manifests/", "v1/trust/"} {
		versions = append(versions, faultNewest(t, b.auditor(), prefix))
	}
	for who, user := range map[string]testbed.Credentials{"broker": b.Store().Broker, "administrator": b.Store().Admin} {
		client, err := b.Store().Client(user)
		if err != nil {
			t.Fatal(err)
		}
		for _, version := range versions {
			for _, bypass := range []bool{false, true} {
				options := minio.RemoveObjectOptions{VersionID: version.ID, GovernanceBypass: bypass}
				if err := client.RemoveObject(t.Context(), b.Store().Bucket, version.Key, options); err == nil {
					t.Errorf("the %s could delete %s", who, version.Key)
				}
			}
			mode, soon := minio.Compliance, time.Now().Add(time.Minute)
			shorter := minio.PutObjectRetentionOptions{GovernanceBypass: true, Mode: &mode, RetainUntilDate: &soon, VersionID: version.ID}
			if err := client.PutObjectRetention(t.Context(), b.Store().Bucket, version.Key, shorter); err == nil {
				t.Errorf("the %s could shorten the lock of %s", who, version.Key)
			}
		}
	}
	b.mustVerify(t)
}

// faultNewest is the last object below a prefix.
func faultNewest(t testing.TB, bucket recorder.Bucket, prefix string) recorder.Version {
	t.Helper()
	var last recorder.Version
	for version, err := range bucket.List(t.Context(), prefix) {
		if err != nil {
			t.Fatal(err)
		}
		last = version
	}
	if strings.HasSuffix(last.Key, "/") {
		return faultNewest(t, bucket, last.Key)
	}
	if last.ID == "" {
		t.Fatalf("there is nothing below %s", prefix)
	}
	return last
}

// testStoreAway stops the store: calls go on for the age limit, and then nothing
// does, reads included (T195). When it is back the backlog drains.
func testStoreAway(t *testing.T, b *faultBed, _ *faultS3) {
	if err := b.Component(testbed.ComponentStore).Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	var served []faultAnswer
	var refused faultAnswer
	for n := 0; ; n++ {
		answer := b.alpha.create(t.Context(), fmt.Sprintf("away-%d-%d", began.UnixNano(), n))
		if !answer.ok() {
			refused = answer
			break
		}
		served = append(served, answer, b.beta.get(t.Context()))
		time.Sleep(10 * time.Millisecond) // the load, not a wait
	}
	closed := faultSince(began)
	if !refused.is("RecorderUnavailable") || refused.code != http.StatusServiceUnavailable {
		t.Errorf("after %s: %s", closed, refused)
	}
	if closed < faultAge || closed > faultAge+3*time.Second {
		t.Errorf("calls went on for %s; the age limit is %s", closed, faultAge)
	}
	refusals := []faultAnswer{
		refused, b.alpha.get(t.Context()), b.beta.create(t.Context(), "refused"),
		b.alpha.call(t.Context(), http.MethodGet, faultMaps+"?watch=true", ""),
		b.alpha.call(t.Context(), http.MethodGet, "/version", ""), b.alpha.call(t.Context(), http.MethodDelete, faultSeed, ""),
	}
	upstream := b.upstream(t)
	for _, answer := range refusals {
		if !answer.is("RecorderUnavailable") || len(upstream[answer.auditID]) > 0 {
			t.Errorf("with nothing to record to: %s; the API server saw %d of it", answer, len(upstream[answer.auditID]))
		}
	}
	t.Run("reviews", func(t *testing.T) {
		const review = `{"kind":"SelfSubjectAccessReview","apiVersion":"authorization.k8s.io/v1","spec":{"resourceAttributes":{"verb":"get","resource":"pods"}}}`
		answer := b.alpha.call(t.Context(), http.MethodPost, "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review)
		if !answer.is("RecorderUnavailable") {
			t.Errorf("with nothing to record to: %s", answer)
		}
	})
	b.untilNotReady(t, 5*time.Second, "recorder", "see to the bucket, nothing is lost")
	if err := b.Component(testbed.ComponentStore).Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	healed := b.alpha.untilOK(t, 30*time.Second)
	ready := healed + b.untilReady(t, 10*time.Second)
	b.sealed(t, 20*time.Second, served...)
	if report := b.mustVerify(t); len(report.Streams) == 0 || report.Unknown != 0 {
		t.Errorf("%d streams, %d unknown outcomes", len(report.Streams), report.Unknown)
	}
	t.Logf("store away: %d calls for %s, then RecorderUnavailable; served again %s after the store was back, ready %s", len(served), closed, healed, ready)
}

// testStoreAbsent starts a broker while the store is away.
func testStoreAbsent(t *testing.T, b *faultBed, _ *faultS3) {
	if code, _ := b.terminate(t); code != 0 {
		t.Errorf("the broker ended with %d", code)
	}
	if err := b.Component(testbed.ComponentStore).Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := b.Broker(0).Launch(); err != nil {
		t.Fatal(err)
	}
	b.alpha.until(t, 10*time.Second, "RecorderUnavailable")
	b.untilNotReady(t, 5*time.Second, "recorder", "whether the bucket is safe is not known yet")
	if err := b.Component(testbed.ComponentStore).Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Logf("started without a store: RecorderUnavailable, and served %s after the store was there", b.alpha.untilOK(t, 30*time.Second))
	b.untilReady(t, 10*time.Second)
	b.mustVerify(t)
}

// testStoreCorrupted changes one byte of a segment on its way (T197).
func testStoreCorrupted(t *testing.T, b *faultBed, s *faultS3) {
	var once sync.Once
	var refused int
	s.on(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		answer := &faultStatus{ResponseWriter: w}
		if r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/v1/journal/") {
			once.Do(func() {
				body, err := io.ReadAll(r.Body)
				if err != nil {
					panic(http.ErrAbortHandler)
				}
				body[len(body)/2] ^= 1
				r.Body = io.NopCloser(bytes.NewReader(body))
				defer func() { refused = answer.code }()
				next.ServeHTTP(answer, r)
			})
		}
		if answer.code == 0 {
			next.ServeHTTP(w, r)
		}
	})
	answer := b.alpha.create(t.Context(), "corrupted")
	b.sealed(t, 20*time.Second, answer)
	if refused < http.StatusBadRequest {
		t.Errorf("the store answered the changed body with %d", refused)
	}
	b.mustVerify(t)
	t.Logf("the store refused the changed body with %d, and took it the next time", refused)
}

// faultStatus notes the status of an answer.
type faultStatus struct {
	http.ResponseWriter
	code int
}

func (s *faultStatus) WriteHeader(code int) {
	s.code = code
	s.ResponseWriter.WriteHeader(code)
}

const faultSlowDown = `<?xml version="1.0" encoding="UTF-8"?><Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>`

// testStoreSlowDown has the store answer 503 for a while (T205, in short).
func testStoreSlowDown(t *testing.T, b *faultBed, s *faultS3) {
	var mu sync.Mutex
	var at []time.Time
	s.on(func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		mu.Lock()
		defer mu.Unlock()
		at = append(at, time.Now())
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = io.WriteString(w, faultSlowDown) // who is gone needs no answer
	})
	var answers []faultAnswer
	for began := time.Now(); time.Since(began) < faultAge-2*time.Second; {
		answer := b.alpha.get(t.Context())
		if !answer.ok() {
			t.Fatalf("within the age limit: %s", answer)
		}
		answers = append(answers, answer)
		time.Sleep(20 * time.Millisecond) // the load, not a wait
	}
	s.on(nil)
	began := time.Now()
	b.sealed(t, 20*time.Second, answers...)
	mu.Lock()
	defer mu.Unlock()
	if len(at) < 3 || len(at) > 30 {
		t.Errorf("the store was asked %d times while it said SlowDown", len(at))
	}
	b.mustVerify(t)
	t.Logf("SlowDown for %s: %d attempts, all %d calls served, sealed %s after", faultAge-2*time.Second, len(at), len(answers), faultSince(began))
}

// testStoreSlow delays every request to the store (T199): with the spool calls
// do not wait for it.
func testStoreSlow(t *testing.T, b *faultBed, s *faultS3) {
	for _, delay := range []time.Duration{0, 200 * time.Millisecond, 2 * time.Second} {
		s.on(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			time.Sleep(delay) // the fault
			next.ServeHTTP(w, r)
		})
		var took []time.Duration
		var last faultAnswer
		for began := time.Now(); time.Since(began) < 1500*time.Millisecond; {
			last = b.alpha.call(t.Context(), http.MethodGet, faultSeed, "")
			if !last.ok() {
				t.Fatalf("with a store that takes %s: %s", delay, last)
			}
			took = append(took, last.took)
		}
		if p99 := faultPercentile(took, 99); p99 > 1500*time.Millisecond {
			t.Errorf("with a store that takes %s a call takes %s (p99)", delay, p99)
		}
		t.Logf("store delayed by %s: %d calls, p50 %s, p99 %s", delay, len(took), faultPercentile(took, 50), faultPercentile(took, 99))
		b.sealed(t, 20*time.Second, last)
	}
}

// testStoreClock has the store's clock, as the broker sees it, 16 minutes ahead
// (T203): what was signed now would not verify.
func testStoreClock(t *testing.T, b *faultBed, s *faultS3) {
	s.on(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		next.ServeHTTP(&faultDate{w}, r)
	})
	refused := b.alpha.until(t, 10*time.Second, "RecorderUnavailable")
	b.untilNotReady(t, 5*time.Second, "recorder", "ClockSkew{")
	s.on(func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
		_, _ = io.Copy(io.Discard, r.Body) // the answer comes after the body
		w.WriteHeader(http.StatusForbidden)
		_, _ = io.WriteString(w, strings.ReplaceAll(faultSlowDown, "SlowDown", "RequestTimeTooSkewed")) // who is gone needs no answer
	})
	b.untilNotReady(t, 15*time.Second, "recorder", "ClockSkew{")
	s.on(nil)
	healed := b.alpha.untilOK(t, 90*time.Second)
	t.Logf("clocks 16 minutes apart: RecorderUnavailable after %s; served again %s after the clock was right", refused, healed)
	b.untilReady(t, 10*time.Second)
	b.mustVerify(t)
}

// faultDate is an answer from 16 minutes ahead.
type faultDate struct{ http.ResponseWriter }

func (d *faultDate) WriteHeader(code int) {
	d.Header().Set("Date", time.Now().Add(16*time.Minute).UTC().Format(http.TimeFormat))
	d.ResponseWriter.WriteHeader(code)
}
