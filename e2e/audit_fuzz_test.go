package e2e_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"

	"github.com/taskgate/taskgate/authz"
	"github.com/taskgate/taskgate/broker/request"
)

// fuzzBed is where fuzzed requests go. The processes that go test -fuzz starts
// share the testbed of the first.
type fuzzBed struct {
	URL, Token, CA, AuditLog string

	client *http.Client
	tail   auditTail
	parser *request.Parser
}

// sharedFuzz carries a fuzzBed to those processes.
const sharedFuzz = "TASKGATE_E2E_FUZZ"

func newFuzzBed(f *testing.F) *fuzzBed {
	f.Helper()
	bed := &fuzzBed{tail: auditTail{byID: map[string][]auditv1.Event{}}, parser: request.NewParser()}
	if given := os.Getenv(sharedFuzz); given != "" {
		if err := json.Unmarshal([]byte(given), bed); err != nil {
			f.Fatal(err)
		}
	} else {
		bed.start(f)
	}
	bed.client = clientOf(f, &tls.Config{RootCAs: poolOf(f, bed.CA)}, true)
	return bed
}

// start makes an agent that may look at everything and change what is in one
// namespace.
func (b *fuzzBed) start(f *testing.F) {
	rig := newCasesRig(f)
	a := rig.newAgent(f, "audit-fuzz")
	rig.apply(f, "apiVersion: v1\nkind: Namespace\nmetadata: {name: audit-fuzz}\n")
	rules := []string{`{namespaces: ["*"], apiGroups: ["*"], resources: ["*"], verbs: [get, list, watch]}`, `{namespaces: [audit-fuzz], apiGroups: ["*"], resources: ["*"], verbs: ["*"]}`}
	rig.policy(f, "audit-fuzz", a, waivesAll, rules...)
	rig.grant(f, "audit-fuzz", "audit-fuzz", a, "4h", rules...)
	b.URL, b.Token, b.CA, b.AuditLog = a.URL, a.Token, a.CA, rig.Environment().AuditLog
	encoded, err := json.Marshal(b)
	if err != nil {
		f.Fatal(err)
	}
	f.Setenv(sharedFuzz, string(encoded))
}

var fuzzMethods, fuzzTypes = []string{"GET", "POST", "PUT", "PATCH", "DELETE"},
	[]string{"application/json", "application/yaml", "application/vnd.kubernetes.protobuf", "application/json-patch+json", "application/merge-patch+json", "application/strategic-merge-patch+json", "application/apply-patch+yaml", ""}

// FuzzForwarded sends any request target and body. What is refused must be what
// this version of the parser refuses, and what is forwarded must be seen by the
// API server with the verb and object that the parser read.
//
//	go test -run '^$' -fuzz FuzzForwarded -fuzztime 5m ./
func FuzzForwarded(f *testing.F) {
	bed := newFuzzBed(f)
	for _, target := range []string{
		"/api/v1/namespaces/audit-fuzz/configmaps", "/api/v1/namespaces/audit-fuzz/configmaps/x", "/api/v1/namespaces/audit-fuzz/pods/x/log?follow=1",
		"/apis/apps/v1/namespaces/audit-fuzz/deployments/x/scale", "/api/v1/namespaces/audit-fuzz/status", "/api/v1/namespaces/audit-fuzz", "/apis/apps/v1",
		"/api/v1/pods?watch=true&fieldSelector=metadata.name%3Dx&timeoutSeconds=1", "/api/v1/nodes?limit=1&watch=0", "/api/v1/namespaces/audit-fuzz/services/x:80/proxy", "/version?hash=1",
		"/api/v1/namespaces/audit-fuzz/configmaps?fieldSelector=metadata.name%3Dx", "/apis/case.example.org/v1/namespaces/audit-fuzz/gadgets/x", "/api/v1/componentstatuses/x",
		"/api/v1/namespaces/audit-fuzz/%61", "/api/v1/namespaces/../x", "/api/v1/namespaces/namespaces/namespaces", "/apis/a/b/c/d/e/f/g", "/api/v1/namespaces/audit-fuzz/finalize?dryRun=All",
	} {
		for method := range fuzzMethods {
			f.Add(byte(method), target, byte(method), []byte(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"x"}}`))
		}
	}
	f.Fuzz(func(t *testing.T, method byte, target string, mediaType byte, body []byte) {
		bed.try(t, fuzzMethods[int(method)%len(fuzzMethods)], target, fuzzTypes[int(mediaType)%len(fuzzTypes)], string(body))
	})
}

func (b *fuzzBed) try(t *testing.T, method, target, mediaType, body string) {
	t.Helper()
	if !strings.HasPrefix(target, "/") || method == "GET" {
		body = ""
	}
	header := http.Header{}
	if mediaType != "" && body != "" {
		header.Set("Content-Type", mediaType)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	sent, err := newRequest(ctx, method, b.URL+"/"+strings.TrimPrefix(target, "/"), body)
	if err != nil {
		return
	}
	sent.Header = header.Clone()
	sent.Header.Set("Authorization", "Bearer "+b.Token)
	response, err := b.client.Do(sent)
	if err != nil {
		return // no request, or one that goes on
	}
	content, readErr := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err := response.Body.Close(); err != nil || readErr != nil {
		return // a watch that had to end
	}
	got := reply{response.StatusCode, response.Header, string(content), response.Proto}
	if got.auditID() == "" {
		return // the sidecar's own server did not take it
	}
	parsed, refusal := b.parser.Parse(&http.Request{Method: method, RequestURI: "/" + strings.TrimPrefix(target, "/"), Header: header, Body: io.NopCloser(strings.NewReader(body)), ContentLength: int64(len(body))})
	if err := b.tail.refresh(b.AuditLog); err != nil {
		t.Fatal(err)
	}
	seen := b.tail.byID[got.auditID()]
	reason, _, _ := strings.Cut(got.reason(), "/")
	switch {
	case refusal != nil && reason != string(refusal.Reason):
		t.Errorf("%s %q: %d %s, the parser refuses it for %s", method, target, got.code, got.reason(), refusal.Reason)
	case refusal != nil || reason != "" && reason != string(authz.UpstreamDenied):
		if len(seen) != 0 {
			t.Errorf("%s %q was refused (%s) and the API server saw it", method, target, got.reason())
		}
	case parsed.Call.AsksAboutItself():
	default:
		compareCall(t, &parsed.Call, seen)
	}
}

func compareCall(t *testing.T, call *authz.Call, seen []auditv1.Event) {
	t.Helper()
	if len(seen) == 0 {
		t.Fatalf("%+v: the API server has not seen it", call)
	}
	event := seen[len(seen)-1]
	verb, ref := event.Verb, event.ObjectRef
	if ref == nil {
		ref = &auditv1.ObjectReference{}
	}
	if slices.Contains([]string{"exec", "attach", "portforward"}, ref.Subresource) {
		verb = "create" // whatever the method says
	}
	name := call.Name
	if call.Verb == authz.Create && name == "" {
		name = ref.Name // of the body
	}
	if call.Verb.String() != verb && call.Resource != "" || call.Group != ref.APIGroup || call.Resource != ref.Resource || call.Subresource != ref.Subresource || call.Namespace != ref.Namespace || name != ref.Name {
		t.Errorf("the parser reads %+v, the API server saw %s of %+v", call, event.Verb, ref)
	}
}
