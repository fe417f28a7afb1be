package e2e_test

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"

	"github.com/taskgate/taskgate/recorder"
)

// door is a place raw bytes can be sent to.
type door struct {
	name    string
	address string
	config  *tls.Config
	head    string // Host and credential, as header lines
}

// doors are the agent's sidecar and, with its SVID, the broker.
func (a *agent) doors(t testing.TB) []door {
	t.Helper()
	address := strings.TrimPrefix(a.URL, "https://")
	broker := a.stack.Environment().BrokerAddress
	return []door{
		{"sidecar", address, &tls.Config{RootCAs: poolOf(t, a.CA), ServerName: "127.0.0.1"}, "Host: " + address + "\r\nAuthorization: Bearer " + a.Token + "\r\n"},
		{"broker", broker, a.mutual(t), "Host: " + broker + "\r\n"},
	}
}

// reached are the API server's entries of an agent's calls, in any order.
func (a *agent) reached(t testing.TB) []auditv1.Event {
	t.Helper()
	var calls []auditv1.Event
	for _, events := range a.stack.upstream(t) {
		if last := events[len(events)-1]; last.ImpersonatedUser != nil && slices.Contains(last.ImpersonatedUser.Extra["agent.taskgate.dev"], a.id) {
			calls = append(calls, last)
		}
	}
	return calls
}

// denials counts the records of an agent's refused calls, by cause.
func (a *agent) denials(t testing.TB, cause string) int {
	t.Helper()
	count := 0
	for _, event := range a.stack.journal.all(t) {
		if event.User.Username == a.id && event.Annotations[recorder.AnnotationCause] == cause {
			count++
		}
	}
	return count
}

// TestSmuggling: bytes that two readers could understand differently end the
// connection, and what follows them is not served.
func TestSmuggling(t *testing.T) {
	rig := newCasesRig(t)
	a := rig.newAgent(t, "case-raw")
	rig.policy(t, "case-raw", a, "", everything)
	rig.grant(t, "case-raw", "case-raw", a, "1h", everything)
	const next = "GET /api/v1/namespaces/case-a/pods HTTP/1.1\r\nHEAD\r\n"
	post := "POST " + caseMaps + " HTTP/1.1\r\nHEADContent-Type: application/json\r\n"
	rows := []struct {
		id, name, text string
		codes          []int // of all answers
	}{
		{"T066", "two lengths", post + "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}x", []int{400}},
		{"T066", "two lengths in one", post + "Content-Length: 2, 3\r\n\r\n{}x", []int{400}},
		{"T066", "negative length", post + "Content-Length: -1\r\n\r\n", []int{400}},
		{"T066", "signed length", post + "Content-Length: +2\r\n\r\n{}", []int{400}},
		{"T066", "bytes behind an empty body", post + "Content-Length: 0\r\n\r\n{\"kind\":\"ConfigMap\"}\r\n\r\n", []int{400, 400}},
		{"T078", "unknown coding", post + "Transfer-Encoding: xchunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", []int{501}},
		{"T078", "two codings", post + "Transfer-Encoding: chunked, identity\r\n\r\n2\r\n{}\r\n0\r\n\r\n", []int{501}},
		{"T078", "two coding lines", post + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", []int{400}},
		{"T078", "bare LF in a chunk", post + "Transfer-Encoding: chunked\r\n\r\n2\n{}\r\n0\r\n\r\n", []int{400}},
		{"T078", "chunk extension with LF", post + "Transfer-Encoding: chunked\r\n\r\n2;a\n{}\r\n0\r\n\r\n", []int{400}},
		{"T078", "chunk size too large", post + "Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n{}\r\n0\r\n\r\n", []int{400}},
		{"T078", "signed chunk size", post + "Transfer-Encoding: chunked\r\n\r\n+2\r\n{}\r\n0\r\n\r\n", []int{400}},
		{"T078", "space before colon", post + "X-A : b\r\nContent-Length: 2\r\n\r\n{}", []int{400}},
		{"T078", "space in a name", post + "X A: b\r\nContent-Length: 2\r\n\r\n{}", []int{400}},
		{"T078", "NUL in a value", post + "X-A: a\x00b\r\nContent-Length: 2\r\n\r\n{}", []int{400}},
		{"T078", "CR in a value", post + "X-A: a\rb\r\nContent-Length: 2\r\n\r\n{}", []int{400}},
		{"T078", "no host", "GET /version HTTP/1.1\r\n\r\n", []int{400}},
		{"T078", "two hosts", "GET /version HTTP/1.1\r\nHEADHost: other\r\n\r\n", []int{400}},
		{"T078", "bad host", "GET /version HTTP/1.1\r\nHost: a b\r\n\r\n", []int{400}},
		{"T078", "HTTP/3", "GET /version HTTP/3.0\r\nHEAD\r\n", []int{505}},
		{"T078", "HTTP/1.10", "GET /version HTTP/1.10\r\nHEAD\r\n", []int{400}},
		{"T078", "two spaces", "GET  /version HTTP/1.1\r\nHEAD\r\n", []int{400}},
		{"T078", "line break in the target", "GET /version\n HTTP/1.1\r\nHEAD\r\n", []int{400}},
		{"T078", "tab in the target", "GET /ver\tsion HTTP/1.1\r\nHEAD\r\n", []int{400}},
		{"T079", "HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", []int{505}},
		{"T078", "not HTTP", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", []int{400}},
		{"T078", "a colon only", "GET /version HTTP/1.1\r\nHEAD: x\r\n\r\n", []int{400}},
	}
	for _, door := range a.doors(t) {
		before := a.denials(t, "Malformed")
		malformed := 0
		for _, row := range rows {
			text := strings.ReplaceAll(row.text+next, "HEAD", door.head)
			answer := raw(t, door.address, door.config, "http/1.1", text)
			got := statuses(answer)
			if !slices.Equal(got, row.codes) && !(len(got) == 1 && got[0] >= 400 && len(row.codes) == 1) {
				t.Errorf("%s %s (%s): answered %v, want %v: %.400q", row.id, row.name, door.name, got, row.codes, answer)
			}
			if strings.HasSuffix(answer, "[open]") {
				t.Errorf("%s %s (%s): the connection stays open: %.200q", row.id, row.name, door.name, answer)
			}
			malformed++
		}
		if door.name == "broker" {
			eventually(t, 5*time.Second, "that malformed requests are on record", func() error {
				recorded := a.denials(t, "Malformed") + a.denials(t, "Incomplete") - before
				if recorded < malformed {
					return fmt.Errorf("T162: %d of %d", recorded, malformed)
				}
				return nil
			})
		}
	}
	// What stands before the bytes that are too many is a whole request.
	if reached := a.reached(t); len(reached) != 2 || reached[0].Verb != "create" || reached[0].ResponseStatus.Code < 400 {
		for _, event := range reached {
			t.Errorf("the API server saw %s %s", event.Verb, event.RequestURI)
		}
	}
}

// TestBothLengths: net/http reads a body that has a Content-Length beside chunks
// by its chunks and folds lines as RFC 9112 wants (sections 6.3 and 5.2). What
// matters is that nobody on the way reads it otherwise: the body is what the
// chunks say, and what follows on the connection is never read as a request.
func TestBothLengths(t *testing.T) {
	rig := newCasesRig(t)
	for _, door := range rig.all.doors(t) {
		post := "POST " + caseMaps + "?dryRun=All HTTP/1.1\r\n" + door.head + "Content-Type: application/json\r\n"
		chunks := "2\r\n{}\r\n0\r\n\r\n"
		for name, header := range map[string]string{
			"short length": "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
			"long length":  "Transfer-Encoding: chunked\r\nContent-Length: 500\r\n\r\n",
			"folded":       "Content-Length: 5\r\nTransfer-Encoding:\r\n chunked\r\n\r\n",
		} {
			answer := raw(t, door.address, door.config, "http/1.1", post+header+chunks+"GET /version HTTP/1.1\r\n"+door.head+"\r\n")
			// 422: the API server read {} and misses the name.
			if got := statuses(answer); !slices.Equal(got, []int{422}) || strings.HasSuffix(answer, "[open]") {
				t.Errorf("T078 %s (%s): answered %v: %.300q", name, door.name, got, answer)
			}
		}
		twice := and(door.plain("POST", caseMaps+"?dryRun=All"), field{"content-type", "application/json"}, field{"content-length", "25"}, field{"content-length", "3"})
		if got := dialWire(t, door).ask(t, twice, `{"metadata":{"name":"x"}}`); !got.refused() {
			t.Errorf("T078 two lengths in HTTP/2 (%s): %s", door.name, got)
		}
	}
}

// TestForms: only the form of request that clients of an API server use.
func TestForms(t *testing.T) {
	rig := newCasesRig(t)
	doors := rig.all.doors(t)
	before := len(rig.all.reached(t))
	for _, row := range []struct {
		id, name, line string
		sidecar        int
		broker         int
	}{
		{"T035", "absolute form", "GET http://other/api/v1/namespaces HTTP/1.1", 400, 400},
		{"T035", "absolute form, own name", "GET https://127.0.0.1/api/v1/namespaces HTTP/1.1", 400, 400},
		{"T241", "connect", "CONNECT 10.0.0.1:443 HTTP/1.1", 405, 405},
		{"T049", "options *", "OPTIONS * HTTP/1.1", 400, 405},
		{"T049", "trace", "TRACE /version HTTP/1.1", 405, 405},
		{"T034", "empty target", "GET  HTTP/1.1", 400, 400},
		{"T034", "no slash", "GET version HTTP/1.1", 400, 400},
		{"T034", "fragment", "GET /version#x HTTP/1.1", 400, 400},
		{"T034", "empty query", "GET /version? HTTP/1.1", 200, 200},
	} {
		for _, door := range doors {
			want := row.sidecar
			if door.name == "broker" {
				want = row.broker
			}
			answer := raw(t, door.address, door.config, "http/1.1", row.line+"\r\n"+door.head+"Connection: close\r\n\r\n")
			if got := statuses(answer); len(got) != 1 || got[0] != want {
				t.Errorf("%s %s (%s): answered %v, want %d: %.300q", row.id, row.name, door.name, got, want, answer)
			}
		}
	}
	if now := len(rig.all.reached(t)); now > before+2 {
		t.Errorf("the API server saw %d calls", now-before)
	}
	named := doors[1].config.Clone()
	named.ServerName = "broker.example.org"
	answer := raw(t, doors[1].address, named, "http/1.1", "GET /version HTTP/1.1\r\nHost: other.example.org\r\n\r\n")
	if got := statuses(answer); len(got) != 1 || got[0] != 421 || !strings.Contains(answer, "BadHeader") {
		t.Errorf("T035: a Host that is not the TLS server name: %q", answer)
	}
}

// TestPipelining: many requests in one write are served in order, each on its
// own.
func TestPipelining(t *testing.T) {
	rig := newCasesRig(t)
	for _, door := range rig.reader.doors(t) {
		var text strings.Builder
		for i := range 20 {
			target := casePod
			if i%2 == 1 {
				target = "/api/v1/namespaces/case-b/pods/web-0"
			}
			fmt.Fprintf(&text, "GET %s HTTP/1.1\r\n%s\r\n", target, door.head)
		}
		answer := raw(t, door.address, door.config, "http/1.1", text.String())
		got := statuses(strings.TrimSuffix(answer, "[open]"))
		if len(got) != 20 {
			t.Fatalf("(%s): %d answers", door.name, len(got))
		}
		for i, code := range got {
			if want := []int{200, 403}[i%2]; code != want {
				t.Errorf("(%s) answer %d: %d, want %d", door.name, i, code, want)
			}
		}
		ids := map[string]bool{}
		for line := range strings.Lines(answer) {
			if id, found := strings.CutPrefix(line, "Audit-Id: "); found {
				ids[id] = true
			}
		}
		if len(ids) != 20 {
			t.Errorf("(%s): %d different audit IDs", door.name, len(ids))
		}
	}
}

// TestTrailers are dropped.
func TestTrailers(t *testing.T) {
	rig := newCasesRig(t)
	for _, door := range rig.all.doors(t) {
		body := `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"trailer"}}`
		answer := raw(t, door.address, door.config, "http/1.1", fmt.Sprintf("POST %s?dryRun=All HTTP/1.1\r\n%sContent-Type: application/json\r\nTransfer-Encoding: chunked\r\nTrailer: Impersonate-User\r\nConnection: close\r\n\r\n%x\r\n%s\r\n0\r\nImpersonate-User: admin\r\n\r\n", caseMaps, door.head, len(body), body))
		response, err := http.ReadResponse(newReader(answer), nil)
		if err != nil || response.StatusCode != 201 {
			t.Errorf("T082 (%s): %v: %.300q", door.name, err, answer)
			continue
		}
		events := rig.upstream(t)[response.Header.Get("Audit-Id")]
		if len(events) != 2 || events[1].ImpersonatedUser.Username != "taskgate:agent" {
			t.Errorf("T082 (%s): the API server saw %+v", door.name, events)
		}
	}
}

// TestContinue: clients that wait for leave to send their body lose nobody a
// connection.
func TestContinue(t *testing.T) {
	rig := newCasesRig(t)
	for _, way := range rig.reader.ways(t) {
		var work sync.WaitGroup
		failures := make(chan error, 2000)
		one := func(expect bool) error {
			request, err := newRequest(t.Context(), "POST", way.base+"/api/v1/namespaces/case-b/configmaps", `{"metadata":{"name":"x"}}`)
			if err != nil {
				return err
			}
			request.Header.Set("Content-Type", "application/json")
			if expect {
				request.Header.Set("Expect", "100-continue")
			}
			if way.token != "" {
				request.Header.Set("Authorization", "Bearer "+way.token)
			}
			response, err := way.client.Do(request)
			if err != nil {
				return err
			}
			defer func() { _ = response.Body.Close() }() // only read
			if _, err := io.Copy(io.Discard, response.Body); err != nil || response.StatusCode != 403 {
				return fmt.Errorf("%d %w", response.StatusCode, err)
			}
			return nil
		}
		for _, expect := range []bool{true, false} {
			for range 8 {
				work.Go(func() {
					for range 125 {
						if err := one(expect); err != nil {
							failures <- fmt.Errorf("expect %t: %w", expect, err)
						}
					}
				})
			}
			work.Wait()
		}
		close(failures)
		var errs []error
		for err := range failures {
			errs = append(errs, err)
		}
		if len(errs) > 0 {
			t.Errorf("T081 (%s): %d of 2000 failed: %v", way.name, len(errs), errors.Join(errs[:min(3, len(errs))]...))
		}
	}
}

// TestLargeHeader is cut off early.
func TestLargeHeader(t *testing.T) {
	rig := newCasesRig(t)
	before := rssOf(t, rig.Broker(0).PID())
	for _, door := range rig.all.doors(t) {
		for name, text := range map[string]string{
			"one of 1 MiB":  "X-A: " + strings.Repeat("a", 1<<20) + "\r\n",
			"10 000 of few": strings.Repeat("X-A: aaaaaaaaaaaa\r\n", 10_000),
		} {
			answer := raw(t, door.address, door.config, "http/1.1", "GET /version HTTP/1.1\r\n"+door.head+text+"\r\n")
			if got := statuses(answer); len(got) > 1 || len(got) == 1 && got[0] != 431 || strings.HasSuffix(answer, "[open]") {
				t.Errorf("T211 %s (%s): %.200q", name, door.name, answer)
			}
		}
	}
	if grown := rssOf(t, rig.Broker(0).PID()) - before; grown > 32<<20 {
		t.Errorf("T211: the broker grew by %d MiB", grown>>20)
	}
}

// TestLargeChunks: a body without a length is bounded too.
func TestLargeChunks(t *testing.T) {
	rig := newCasesRig(t)
	for _, way := range rig.all.ways(t) {
		request, err := newRequest(t.Context(), "POST", way.base+caseMaps, "")
		if err != nil {
			t.Fatal(err)
		}
		request.Body, request.ContentLength = io.NopCloser(strings.NewReader(`{"a":"`+strings.Repeat("x", 3<<20)+`"}`)), -1
		request.Header.Set("Content-Type", "application/json")
		request.Header.Set("Authorization", "Bearer "+way.token)
		response, err := way.client.Do(request)
		if err != nil {
			t.Errorf("T065 (%s): %v", way.name, err)
			continue
		}
		content, _ := io.ReadAll(response.Body) // what there is
		_ = response.Body.Close()               // only read
		got := reply{code: response.StatusCode, header: response.Header, body: string(content)}
		if got.code != 413 || got.reason() != "BadBody/Size" || len(rig.upstream(t)[got.auditID()]) != 0 {
			t.Errorf("T065 (%s): %d %s", way.name, got.code, got.body)
		}
	}
}
