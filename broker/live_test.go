package broker

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/taskgate/taskgate/authz"
	"github.com/taskgate/taskgate/recorder"
)

func insecure() *tls.Config { return &tls.Config{InsecureSkipVerify: true} }

// endless answers with a line now and then one when asked, until the caller goes.
func endless(first string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, first)
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}
}

const event = `{"type":"ADDED","object":{"kind":"Pod"}}` + "\n"

// open starts a call that goes on and returns once the first line arrived.
func (r *rig) open(target string) (*http.Response, *bufio.Reader) {
	r.Helper()
	response, err := r.client("h2").Get("https://" + r.address + target)
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { response.Body.Close() })
	reader := bufio.NewReader(response.Body)
	if line, err := reader.ReadString('\n'); err != nil {
		r.Fatalf("the first line: %q %v", line, err)
	}
	return response, reader
}

// TestWatchEndsWithWhatAllowedIt, at once and with a reason.
func TestWatchEndsWithWhatAllowedIt(t *testing.T) {
	again := func(r *rig, g *authz.Grant, change func(*authz.Grant)) {
		changed := *g
		change(&changed)
		if err := r.boundary.index.PutGrant(&changed); err != nil {
			r.Fatal(err)
		}
	}
	for _, row := range []struct {
		name   string
		end    func(*rig, *authz.Grant)
		reason string
	}{
		{"revoked", func(r *rig, g *authz.Grant) { again(r, g, func(g *authz.Grant) { g.Revoked = true }) }, "GrantRevoked"},
		{"deleted", func(r *rig, g *authz.Grant) { again(r, g, func(g *authz.Grant) { g.Deleted = true }) }, "GrantRevoked"},
		{"replaced by one of the same name", func(r *rig, g *authz.Grant) {
			again(r, g, func(g *authz.Grant) { g.Deleted = true })
			again(r, g, func(g *authz.Grant) { g.UID = "uid-2" })
		}, "GrantRevoked"},
		{"policy suspended", func(r *rig, _ *authz.Grant) { r.policy(func(p *authz.Policy) { p.Suspended = true }) }, "PolicyDenied"},
		{"policy narrowed", func(r *rig, _ *authz.Grant) { r.policy(func(p *authz.Policy) { p.Allow = nil }) }, "GrantRevoked"},
		{"gate added", func(r *rig, _ *authz.Grant) {
			r.policy(func(p *authz.Policy) { p.Gates = []authz.Gate{{Name: "x", Approvers: 1}} })
		}, "ApprovalRequired"},
		{"expired", func(*rig, *authz.Grant) {}, "GrantExpired"},
		{"shut down", func(r *rig, _ *authz.Grant) {
			go func() { _ = r.boundary.shutdown(context.Background(), r.server) }()
		}, "NotReady"},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := newRig(t)
			r.stub.set(endless(event))
			ttl := time.Hour
			if row.reason == "GrantExpired" {
				ttl = 700 * time.Millisecond
			}
			g := r.grant(ttl, allow("watch", "pods"))
			response, reader := r.open("/api/v1/namespaces/shop/pods?watch=true")
			began := time.Now()
			row.end(r, g)
			rest, err := io.ReadAll(reader)
			if took := time.Since(began); err != nil || took > 2*time.Second {
				t.Fatalf("ended after %v with %v", took, err)
			}
			var last metav1.WatchEvent
			if err := json.Unmarshal(rest, &last); err != nil || last.Type != "ERROR" || !strings.Contains(string(rest), "[taskgate:"+row.reason+"]") {
				t.Errorf("the last event is %s", rest)
			}
			records := of(r.recorded(), response.Header.Get("Audit-Id"))
			if len(records) != 3 || records[1].Stage != recorder.StageResponseStarted || records[2].Annotations[recorder.AnnotationOutcome] != outcomeCut ||
				records[2].Annotations[recorder.AnnotationReason] != row.reason {
				t.Errorf("records: %+v", records[len(records)-1])
			}
		})
	}
}

// TestWatchOutlivesWhatDoesNotConcernIt.
func TestWatchOutlivesWhatDoesNotConcernIt(t *testing.T) {
	r := newRig(t)
	lines := make(chan string)
	r.stub.set(func(w http.ResponseWriter, q *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		for {
			select {
			case line := <-lines:
				io.WriteString(w, line)
				_ = http.NewResponseController(w).Flush()
			case <-q.Context().Done():
				return
			}
		}
	})
	r.grant(time.Hour, allow("watch", "pods"))
	go func() { lines <- event }()
	_, reader := r.open("/api/v1/namespaces/shop/pods?watch=true")
	other := authz.Grant{Name: "other", UID: "o", Agent: "spiffe://example.org/ns/agents/sa/beta", Revoked: true}
	if err := r.boundary.index.PutGrant(&other); err != nil {
		t.Fatal(err)
	}
	r.policy(func(p *authz.Policy) { p.Waive = []string{"exec"} })
	for i := range 3 {
		line := fmt.Sprintf("{\"n\":%d}\n", i)
		lines <- line
		if got, err := reader.ReadString('\n'); got != line || err != nil {
			t.Fatalf("got %q %v", got, err)
		}
	}
}

// TestLogSaysWhyItEnds, on a line of its own.
func TestLogSaysWhyItEnds(t *testing.T) {
	r := newRig(t)
	r.stub.set(func(w http.ResponseWriter, q *http.Request) {
		if strings.HasSuffix(q.URL.Path, "/log") {
			endless("first line\nsecond without an end")(w, q)
			return
		}
		answerPod(w, q)
	})
	g := *r.grant(time.Hour, allow("get", "pods", "pods/log"))
	_, reader := r.open(pod + "/log?follow=true")
	g.Revoked = true
	if err := r.boundary.index.PutGrant(&g); err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(reader)
	if err != nil || !strings.HasPrefix(string(rest), "second without an end\ntaskgate: this log was cut: [taskgate:GrantRevoked]") {
		t.Errorf("got %q %v", rest, err)
	}
}

// TestSidecarIsNotShown: the logs of a pod that carries the sidecar stay closed,
// and looking is on record as a call of its own.
func TestSidecarIsNotShown(t *testing.T) {
	for name, row := range map[string]struct {
		spec, reason string
		code         int
	}{
		"plain pod":       {`{"containers":[{"name":"web"}]}`, "", 200},
		"native sidecar":  {`{"containers":[{"name":"agent"}],"initContainers":[{"name":"taskgate"}]}`, "PolicyDenied/Sidecar", 403},
		"plain container": {`{"containers":[{"name":"taskgate"}]}`, "PolicyDenied/Sidecar", 403},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.grant(time.Hour, allow("get", "pods", "pods/log"))
			r.stub.set(func(w http.ResponseWriter, q *http.Request) {
				if strings.HasSuffix(q.URL.Path, "/log") {
					io.WriteString(w, "a line\n")
					return
				}
				fmt.Fprintf(w, `{"kind":"Pod","spec":%s}`, row.spec)
			})
			got := r.do("GET", pod+"/log", nil, "")
			if got.code != row.code || got.reason() != row.reason {
				t.Errorf("got %d %s", got.code, got.body)
			}
			seen := r.stub.requests()
			if seen[0].Header.Get("Impersonate-User") != "taskgate:agent" || seen[0].Header.Get("Audit-Id") == got.header.Get("Audit-Id") {
				t.Errorf("the preview: %v", seen[0].Header)
			}
			previews := of(r.recorded(), seen[0].Header.Get("Audit-Id"))
			if len(previews) != 2 || previews[0].Annotations[recorder.AnnotationPurpose] != "preview" || previews[0].Annotations[recorder.AnnotationParent] != got.header.Get("Audit-Id") {
				t.Errorf("records of the preview: %+v", previews)
			}
		})
	}
}

// TestNarrow: a read over all namespaces leaves out those out of reach.
func TestNarrow(t *testing.T) {
	r := newRig(t)
	r.grant(time.Hour, allow("list", "pods", "nodes"))
	for target, want := range map[string]string{
		"/api/v1/pods": "/api/v1/pods?fieldSelector=metadata.namespace%21%3Dtaskgate-system",
		"/api/v1/pods?fieldSelector=spec.nodeName%3Dn&limit=1": "/api/v1/pods?fieldSelector=spec.nodeName%3Dn%2Cmetadata.namespace%21%3Dtaskgate-system&limit=1",
		"/api/v1/nodes":                "/api/v1/nodes",
		"/api/v1/namespaces/shop/pods": "/api/v1/namespaces/shop/pods",
	} {
		r.do("GET", target, nil, "")
		seen := r.stub.requests()
		if got := seen[len(seen)-1].RequestURI; got != want {
			t.Errorf("%s: the cluster saw %s", target, got)
		}
	}
}

// TestGrantEndsSoon: the agent is warned.
func TestGrantEndsSoon(t *testing.T) {
	r := newRig(t)
	r.grant(time.Minute, allow("get", "pods"))
	if got := r.do("GET", pod, nil, "").header.Get("Warning"); !strings.Contains(got, "inc-1 ends in") {
		t.Errorf("warning: %q", got)
	}
	r.grant(time.Hour, allow("get", "pods"))
	if got := r.do("GET", pod, nil, "").header.Get("Warning"); got != "" {
		t.Errorf("warning: %q", got)
	}
}

// TestSlowBody: a body that does not arrive is not waited for for ever.
func TestExpectContinueIsAnsweredHere(t *testing.T) {
	r := newRig(t)
	r.grant(time.Hour, allow("create", "configmaps"))
	answer := r.raw("POST /api/v1/namespaces/shop/configmaps HTTP/1.1\r\nHost: b\r\nContent-Type: application/json\r\nExpect: 100-continue\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
	if !strings.Contains(answer, "100 Continue") || !strings.Contains(answer, "200 OK") {
		t.Errorf("got %q", answer)
	}
	if got := r.stub.requests()[0].Header.Get("Expect"); got != "" {
		t.Errorf("the cluster was asked to expect %q", got)
	}
}

// TestReviews: what an agent asks about itself is answered from its grants and
// agrees with what the call would meet.
func TestReviews(t *testing.T) {
	r := newRig(t)
	r.grant(time.Hour, allow("get,list,delete", "pods", "namespaces"))
	ask := func(attributes string) (bool, string) {
		got := r.do("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", http.Header{"Content-Type": {"application/json"}},
			`{"kind":"SelfSubjectAccessReview","apiVersion":"authorization.k8s.io/v1","spec":`+attributes+`}`)
		var review struct {
			Status struct {
				Allowed bool
				Reason  string
			}
		}
		if err := json.Unmarshal([]byte(got.body), &review); err != nil || got.code != 201 {
			t.Fatalf("got %d %s", got.code, got.body)
		}
		return review.Status.Allowed, review.Status.Reason
	}
	for attributes, want := range map[string]string{
		`{"resourceAttributes":{"verb":"get","resource":"pods","namespace":"shop","name":"web-0"}}`:      "true INC-1",
		`{"resourceAttributes":{"verb":"delete","resource":"pods","namespace":"shop"}}`:                  "true INC-1",
		`{"resourceAttributes":{"verb":"create","resource":"pods","namespace":"shop"}}`:                  "false OutsideGrant",
		`{"resourceAttributes":{"verb":"delete","resource":"namespaces","name":"shop"}}`:                 "true every such call needs 1 approval (gate namespace-delete)",
		`{"resourceAttributes":{"verb":"get","resource":"pods","subresource":"log","namespace":"shop"}}`: "false OutsideGrant",
		`{"resourceAttributes":{"verb":"*","resource":"*"}}`:                                             "false BadPath",
		`{"resourceAttributes":{"verb":"get","resource":"pods","namespace":"taskgate-system"}}`:          "false PolicyDenied",
		`{"nonResourceAttributes":{"verb":"get","path":"/version"}}`:                                     "true every agent",
		`{"nonResourceAttributes":{"verb":"get","path":"/metrics"}}`:                                     "false OutsideGrant",
		`{}`: "false BadPath",
	} {
		allowed, reason := ask(attributes)
		wantAllowed, wantReason, _ := strings.Cut(want, " ")
		if fmt.Sprint(allowed) != wantAllowed || !strings.Contains(reason, wantReason) {
			t.Errorf("%s: got %v %q, want %s", attributes, allowed, reason, want)
		}
	}
	rules := r.do("POST", "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", http.Header{"Content-Type": {"application/json"}}, `{"spec":{"namespace":"shop"}}`)
	if rules.code != 201 || !strings.Contains(rules.body, `"namespaces"`) {
		t.Errorf("rules: %d %s", rules.code, rules.body)
	}
	who := r.do("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", http.Header{"Content-Type": {"application/json"}}, `{}`)
	if who.code != 201 || !strings.Contains(who.body, alphaID) || !strings.Contains(who.body, "INC-1") {
		t.Errorf("whoami: %d %s", who.code, who.body)
	}
	if len(r.stub.requests()) != 0 {
		t.Error("the cluster was asked")
	}
	if records := of(r.recorded(), who.header.Get("Audit-Id")); len(records) != 2 || records[1].Annotations[recorder.AnnotationDecision] != "allow" {
		t.Errorf("records: %+v", records)
	}
}
