package broker

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/taskgate/taskgate/authz"
	"github.com/taskgate/taskgate/broker/control"
	"github.com/taskgate/taskgate/recorder"
)

const (
	value     = "hunter2-canary"
	secrets   = "/api/v1/namespaces/shop/secrets"
	oneSecret = `{"kind":"Secret","apiVersion":"v1","metadata":{"name":"db","managedFields":[{"manager":"x"}]},"data":{"password":"` + value + `"}}`
	oneMasked = `{"kind":"Secret","apiVersion":"v1","metadata":{"name":"db"},"data":{"password":"W3JlZGFjdGVkXQ=="}}` + "\n"
)

// redacting is a rule that shows keys only.
func redacting(verbs string) authz.Rule {
	rule := allow(verbs, "secrets")
	rule.Redacted = true
	return rule
}

// answerWith answers with a body of some type, and with headers that would tell
// something about it.
func answerWith(status int, media, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", media)
		w.Header().Set("Etag", `"`+value+`"`)
		w.Header().Set("Warning", `299 - "`+value+`"`)
		w.Header().Set("Cache-Control", "no-cache, private")
		if status == http.StatusTooManyRequests {
			w.Header().Set("Retry-After", "3")
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

// TestMaskedAnswers: whatever the verb, what is asked of the cluster can be
// masked, and what comes out is, with no trace of a value in records and logs.
func TestMaskedAnswers(t *testing.T) {
	r := newRig(t)
	r.grant(time.Hour, redacting("*"))
	r.policy(func(p *authz.Policy) { p.Waive = []string{"secret-values", "deletecollection"} })
	r.stub.set(answerWith(200, "application/json", oneSecret))
	asJSON, merge := "application/json", "application/merge-patch+json"
	calls := []struct{ method, target, media, body string }{
		{"GET", secrets + "/db", "", ""},
		{"POST", secrets + "?dryRun=All", asJSON, `{"kind":"Secret","metadata":{"name":"db"}}`},
		{"PUT", secrets + "/db", asJSON, `{"kind":"Secret","metadata":{"name":"db","uid":"u"}}`},
		{"PATCH", secrets + "/db?dryRun=All", merge, `{"data":{"a":"YQ=="}}`},
		{"PATCH", secrets + "/db", "application/apply-patch+yaml", "kind: Secret\nmetadata: {name: db}\n"},
		{"PATCH", secrets + "/db", "application/json-patch+json", `[{"op":"test","path":"/metadata/resourceVersion","value":"7"},{"op":"add","path":"/data/x","value":"eA=="},{"op":"remove","path":"/data/y"}]`},
		{"DELETE", secrets + "/db", "", ""},
		{"DELETE", secrets, "", ""},
		{"GET", "/api/v1/secrets", "", ""},
	}
	for _, call := range calls {
		header := http.Header{"Accept": {"application/vnd.kubernetes.protobuf;as=Table;g=meta.k8s.io;v=v1,application/yaml"}, "Accept-Encoding": {"gzip"}, "If-None-Match": {`"x"`}}
		if call.media != "" {
			header.Set("Content-Type", call.media)
		}
		answer := r.do(call.method, call.target, header, call.body)
		if answer.code != 200 || answer.body != oneMasked {
			t.Errorf("%s %s: got %d %s", call.method, call.target, answer.code, answer.body)
		}
		if got := fmt.Sprint(answer.header); strings.Contains(got, value) || answer.header.Get("Etag") != "" || answer.header.Get("Content-Type") != asJSON ||
			answer.header.Get("Content-Length") != fmt.Sprint(len(oneMasked)) || answer.header.Get("Cache-Control") != "no-cache, private" || !strings.Contains(answer.header.Get("Warning"), "values of Secrets are masked") {
			t.Errorf("%s %s: headers %s", call.method, call.target, got)
		}
	}
	for _, seen := range r.stub.requests() {
		accept := "application/json; as=Table; g=meta.k8s.io; v=v1, application/json"
		if diff := cmp.Diff([]string{accept}, seen.Header["Accept"]); diff != "" || seen.Header["Accept-Encoding"] != nil || seen.Header["If-None-Match"] != nil {
			t.Errorf("the cluster was asked %v", seen.Header)
		}
	}
	r.noTrace(len(calls) * 2)
}

// noTrace looks for the value, and for hashes of it, in all records and logs.
func (r *rig) noTrace(records int) {
	r.Helper()
	events := r.recorded()
	for _, e := range events {
		if strings.Contains(fmt.Sprintf("%+v %s", e, e.RequestObject), value) || e.Annotations[recorder.AnnotationRequestSHA256] != "" || e.Annotations[recorder.AnnotationResponseSHA256] != "" {
			r.Errorf("a record tells of the value: %+v", e)
		}
		if e.Annotations[recorder.AnnotationDecision] == "allow" && e.Annotations[annotationValues] != "Redacted" {
			r.Errorf("a record does not say that the answer was masked: %v", e.Annotations)
		}
	}
	if len(events) != records {
		r.Errorf("%d records, want %d", len(events), records)
	}
	if strings.Contains(r.logs.String(), value) {
		r.Error("a log holds the value")
	}
}

// TestUnmaskedWhereGranted: masking is for the rules that say so.
func TestUnmaskedWhereGranted(t *testing.T) {
	r := newRig(t)
	named := allow("get", "secrets")
	named.ResourceNames = []string{"db"}
	r.grant(time.Hour, redacting("get"), named, allow("get", "configmaps"))
	r.stub.set(answerWith(200, "application/json", oneSecret))
	if got := r.do("GET", secrets+"/db", nil, ""); got.reason() != "ApprovalRequired" {
		t.Errorf("behind the gate: got %d %s", got.code, got.body)
	}
	r.policy(func(p *authz.Policy) { p.Waive = []string{"secret-values"} })
	if got := r.do("GET", secrets+"/db", nil, ""); got.body != oneSecret || got.header.Get("Etag") == "" {
		t.Errorf("waived: got %d %s", got.code, got.body)
	}
	if got := r.do("GET", secrets+"/other", nil, ""); got.body != oneMasked {
		t.Errorf("another: got %d %s", got.code, got.body)
	}
	if got := r.do("GET", "/api/v1/namespaces/shop/configmaps/c", nil, ""); got.body != oneSecret {
		t.Errorf("another kind: got %d %s", got.code, got.body)
	}
	review := r.do("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", http.Header{"Content-Type": {"application/json"}},
		`{"spec":{"resourceAttributes":{"verb":"get","resource":"secrets","namespace":"shop","name":"x"}}}`)
	if !strings.Contains(review.body, "values are masked") {
		t.Errorf("a review does not say so: %s", review.body)
	}
}

// TestApprovedValues: a yes to the gate secret-values shows the values, once; one
// to another gate shows no more than the rule does.
func TestApprovedValues(t *testing.T) {
	mine := func(p *authz.Policy) {
		p.Gates = []authz.Gate{{Name: "mine", Policy: "shop", Resources: []string{"secrets"}, Approvers: 1, TTL: time.Minute, UseWithin: time.Minute}}
	}
	for _, row := range []struct {
		name   string
		rule   authz.Rule
		change func(*authz.Policy)
		gate   string
		shows  bool
	}{
		{"the gate before values", allow("get", "secrets"), func(*authz.Policy) {}, "secret-values", true},
		{"another gate, keys only", redacting("get"), mine, "mine", false},
	} {
		r := newGatedRig(t, newPeople(t))
		r.grant(time.Hour, row.rule)
		r.policy(row.change)
		r.stub.set(func(w http.ResponseWriter, q *http.Request) {
			if strings.Contains(q.Header.Get("Accept"), "PartialObjectMetadata") {
				r.world.serve(w, q)
				return
			}
			answerWith(200, "application/json", oneSecret)(w, q)
		})
		first := r.call("GET", secrets+"/db", "", "ApprovalRequired")
		if a := r.people.one(); a.Spec.Gate != row.gate || strings.Contains(fmt.Sprintf("%+v %s", a, first.body), value) {
			t.Errorf("%s: people are asked %+v", row.name, a.Spec)
		}
		r.approve()
		got := r.call("GET", secrets+"/db", "", "")
		if want := map[bool]string{true: oneSecret, false: oneMasked}[row.shows]; got.body != want {
			t.Errorf("%s: got %s", row.name, got.body)
		}
		r.call("GET", secrets+"/db", "", "ApprovalConsumed")
		for _, e := range of(r.recorded(), got.header.Get("Audit-Id")) {
			if (e.Annotations[annotationValues] == "Redacted") == row.shows || e.Annotations[annotationDeciders] != "alice" {
				t.Errorf("%s: the record says %v", row.name, e.Annotations)
			}
		}
	}
}

// TestAnswersThatCannotBeMasked are not passed on.
func TestAnswersThatCannotBeMasked(t *testing.T) {
	r := newRig(t)
	r.grant(time.Hour, redacting("get,list,watch,patch"))
	merge := http.Header{"Content-Type": {"application/merge-patch+json"}}
	rows := []struct {
		name, method string
		status       int
		media, body  string
		code         int
		says         string
	}{
		{"another codec", "GET", 200, "application/yaml", "data: " + value, 502, "cannot be masked"},
		{"no type", "GET", 200, "", value, 502, "cannot be masked"},
		{"no JSON", "GET", 200, "application/json", value, 502, "cannot be masked"},
		{"another kind", "GET", 200, "application/json", `{"kind":"Pod","data":{"a":"` + value + `"}}`, 502, "cannot be masked"},
		{"cut", "GET", 200, "application/json", oneSecret[:60], 502, "cannot be masked"},
		{"a write", "PATCH", 200, "text/plain", value, 502, "took the call"},
		{"busy", "GET", 429, "text/plain", value, 429, "at the moment"},
		{"broken", "GET", 500, "text/plain", value, 500, "at the moment"},
	}
	for _, row := range rows {
		r.stub.set(answerWith(row.status, row.media, row.body))
		header, body := http.Header{}, ""
		if row.method == "PATCH" {
			header, body = merge, "{}"
		}
		got := r.do(row.method, secrets+"/db", header, body)
		if got.code != row.code || got.reason() != "UpstreamDenied/Unreadable" || !strings.Contains(got.status.Message, row.says) || strings.Contains(fmt.Sprint(got), value) {
			t.Errorf("%s: got %d %s %s", row.name, got.code, got.reason(), got.body)
		}
		if row.code == 429 && got.header.Get("Retry-After") != "3" {
			t.Errorf("%s: how long to wait is lost", row.name)
		}
	}
	r.stub.set(answerWith(422, "application/json", `{"kind":"Status","reason":"Invalid","message":"patch: Invalid value: `+value+`","code":422}`))
	if got := r.do("PATCH", secrets+"/db", merge, `{"immutable":"x"}`); got.code != 422 || strings.Contains(got.body, value) || got.status.Reason != "Invalid" {
		t.Errorf("an error that quotes the object: %d %s", got.code, got.body)
	}
	for _, e := range r.recorded() {
		if e.Stage == recorder.StageResponseComplete && e.ResponseStatus.Code != 422 && (e.Annotations[recorder.AnnotationOutcome] != outcomeKept || e.Annotations[recorder.AnnotationReason] != "UpstreamDenied") {
			t.Errorf("record: %v", e.Annotations)
		}
	}
	if strings.Contains(r.logs.String(), value) {
		t.Error("a log holds the value")
	}
}

// TestPatchesThatWouldUnmask, and bodies in which the mask came back.
func TestPatchesThatWouldUnmask(t *testing.T) {
	r := newRig(t)
	r.grant(time.Hour, redacting("*"))
	patch, asJSON := http.Header{"Content-Type": {"application/json-patch+json"}}, http.Header{"Content-Type": {"application/json"}}
	for _, operation := range []string{
		`{"op":"copy","from":"/data/password","path":"/metadata/labels/x"}`, `{"op":"move","from":"/data/password","path":"/metadata/labels/x"}`,
		`{"op":"test","path":"/data/password","value":"Z3Vlc3M="}`, `{"op":"test","path":"/metadata/annotations/x","value":"a"}`, `{"op":"Copy"}`, `{}`, `5`,
	} {
		got := r.do("PATCH", secrets+"/db", patch, "["+operation+"]")
		if got.code != 403 || got.reason() != "OutsideGrant/Values" {
			t.Errorf("%s: got %d %s", operation, got.code, got.body)
		}
	}
	for _, row := range []struct{ method, target, body string }{
		{"PUT", secrets + "/db", `{"kind":"Secret","metadata":{"uid":"u"},"data":{"password":"W3JlZGFjdGVkXQ=="}}`},
		{"POST", secrets, `{"kind":"Secret","metadata":{"annotations":{"a":"[redacted]"}}}`},
	} {
		got := r.do(row.method, row.target, asJSON, row.body)
		if got.code != 400 || got.reason() != "BadBody/Masked" {
			t.Errorf("%s: got %d %s", row.method, got.code, got.body)
		}
	}
	if seen := r.stub.requests(); len(seen) != 0 {
		t.Errorf("the cluster saw %d requests", len(seen))
	}
}

// TestMaskedWatch: events are masked as they come, and the watch ends with a
// reason that can be read.
func TestMaskedWatch(t *testing.T) {
	r := newRig(t)
	g := r.grant(time.Hour, redacting("watch"))
	r.stub.set(func(w http.ResponseWriter, q *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"type":"ADDED","object":`+oneSecret+`}`)
		_ = http.NewResponseController(w).Flush()
		<-q.Context().Done()
	})
	response, lines := r.watch(secrets + "?watch=true")
	if line, err := lines.ReadString('\n'); err != nil || line != `{"type":"ADDED","object":`+strings.TrimSpace(oneMasked)+"}\n" {
		t.Fatalf("got %s %v", line, err)
	}
	gone := *g
	gone.Revoked = true
	if err := r.boundary.index.PutGrant(&gone); err != nil {
		t.Fatal(err)
	}
	rest, _ := io.ReadAll(lines)
	if !strings.Contains(string(rest), `"ERROR"`) || !strings.Contains(string(rest), "GrantRevoked") {
		t.Errorf("it ends with %s", rest)
	}
	_ = response.Body.Close()
	r.grant(time.Hour, redacting("watch"))
	r.stub.set(answerWith(200, "application/json", `{"type":"ADDED","object":`+oneSecret+"}\n"+`{"type":"ADDED","object":{"kind":"Pod","data":{"a":"`+value+`"}}}`))
	response, lines = r.watch(secrets + "?watch=true")
	all := readAll(lines)
	if !strings.HasPrefix(all, `{"type":"ADDED","object":{"kind":"Secret"`) || !strings.Contains(all, "UpstreamDenied") || strings.Contains(all, value) {
		t.Errorf("a watch that cannot be masked any more: %s", all)
	}
	_ = response.Body.Close()
}

// watch opens a watch.
func (r *rig) watch(target string) (*http.Response, *bufio.Reader) {
	r.Helper()
	response, err := r.client("h2").Get("https://" + r.address + target)
	if err != nil {
		r.Fatal(err)
	}
	return response, bufio.NewReader(response.Body)
}

func readAll(from *bufio.Reader) string {
	all, _ := io.ReadAll(from) // an answer that is broken off is what some tests want
	return string(all)
}

// TestMaskedBudget: what counts is what the agent gets, and it is not told more.
func TestMaskedBudget(t *testing.T) {
	r := newRig(t, func(b *boundary) {
		b.charge = func(context.Context, *authz.Grant, *authz.Policy, control.Use) (*control.Meter, error) {
			return new(control.Meter), nil
		}
	})
	r.grant(time.Hour, redacting("list"))
	little := int64(10)
	r.policy(func(p *authz.Policy) { p.Budget.BytesOut = &little })
	r.stub.set(answerWith(200, "application/json", `{"kind":"SecretList","items":[`+oneSecret+`]}`))
	if got := r.do("GET", secrets, nil, ""); got.code != 403 || got.reason() != "BudgetSpent/bytesOut" {
		t.Errorf("got %d %s", got.code, got.body)
	}
}
