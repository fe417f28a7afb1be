package broker

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/taskgate/taskgate/authz"
)

func (r *gatedRig) gateEverything() {
	r.policy(func(p *authz.Policy) {
		p.Gates = []authz.Gate{{Name: "all", Policy: "shop", Approvers: 1, TTL: time.Minute, UseWithin: time.Minute}}
	})
}

// TestDiff shows what people see of a change: what differs, without noise.
func TestDiff(t *testing.T) {
	const target = "/api/v1/namespaces/shop/configmaps/settings"
	for _, row := range []struct {
		name, method, target, body string
		diff, note                 string
	}{
		{"a patch", "PATCH", target, `{"data":{"colour":"red"}}`, "--- now\n+++ after the call\n@@ -1,5 +1,5 @@\n data:\n-  colour: blue\n+  colour: red\n kind: ConfigMap\n metadata:\n   finalizers:\n", ""},
		{"a create", "POST", "/api/v1/namespaces/shop/configmaps", `{"metadata":{"name":"configmaps"}}`, "--- now\n+++ after the call\n@@ -0,0 +1,7 @@\n+data:\n+  colour: red\n+kind: ConfigMap\n+metadata:\n+  finalizers:\n+  - example.org/keep\n+  name: configmaps\n", ""},
		{"a read", "GET", target, "", "", "The call only reads."},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := newGatedRig(t, newPeople(t))
			r.gateEverything()
			got := r.call(row.method, row.target, row.body, "ApprovalRequired")
			a := r.people.one()
			if !strings.HasPrefix(a.Spec.Diff, row.diff) || (row.diff == "") != (a.Spec.Diff == "") || a.Spec.DiffNote != row.note {
				t.Errorf("got %q, note %q", a.Spec.Diff, a.Spec.DiffNote)
			}
			if strings.Contains(a.Spec.Diff, "noise") || strings.Contains(got.body, "colour") {
				t.Errorf("noise in %q, or the agent sees it: %q", a.Spec.Diff, got.body)
			}
			for _, q := range r.stub.requests() {
				if q.Method != "GET" && q.URL.Query().Get("dryRun") != "All" {
					t.Errorf("%s %s was sent", q.Method, q.URL)
				}
				if q.Header.Get("Impersonate-User") != upstreamUser || q.Header.Get(impersonateGrant) != "uid-1" {
					t.Errorf("a preview as %v", q.Header)
				}
			}
		})
	}
}

// TestDryRunRefused: what the cluster would refuse is refused with its own words,
// and nobody is asked.
func TestDryRunRefused(t *testing.T) {
	status := func(code int, reason, message string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, _ *http.Request) bool {
			w.WriteHeader(code)
			fmt.Fprintf(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","code":%d,"reason":%q,"message":%q,"details":{"causes":[{"reason":"FieldValueInvalid","field":"data"}]}}`, code, reason, message)
			return true
		}
	}
	for _, row := range []struct {
		name    string
		target  string
		dryRun  func(http.ResponseWriter, *http.Request) bool
		code    int
		reason  string
		message string // to the agent
		note    string // to people
	}{
		{"invalid", "configmaps/settings", status(422, "Invalid", "data is wrong"), 422, "UpstreamDenied/FieldValueInvalid", "data is wrong", ""},
		{"conflict", "configmaps/settings", status(409, "Conflict", "modified"), 409, "UpstreamDenied/FieldValueInvalid", "modified", ""},
		{"forbidden", "configmaps/settings", status(403, "Forbidden", `User "taskgate:agent" cannot patch`), 403, "UpstreamDenied/FieldValueInvalid", "taskgate policy rbac shop", ""},
		{"a webhook", "configmaps/settings", status(400, "BadRequest", "admission webhook x does not support dry run"), 403, "ApprovalRequired", "", "could not do a dry run (HTTP 400): admission webhook x"},
		{"broken", "configmaps/settings", status(503, "ServiceUnavailable", "later"), 403, "ApprovalRequired", "", "could not do a dry run (HTTP 503): later"},
		// Or a JSON patch could test values, one guess at a time.
		{"a Secret", "secrets/db", status(422, "Invalid", "test failed"), 403, "ApprovalRequired", "", "refused a dry run of this call (HTTP 422)"},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := newGatedRig(t, newPeople(t))
			r.gateEverything()
			r.world.dryRun = row.dryRun
			got := r.call("PATCH", theNamespace+"/"+row.target, `{"data":{"colour":"red"}}`, row.reason)
			if got.code != row.code || !strings.Contains(got.status.Message, row.message) {
				t.Errorf("got %d %q", got.code, got.status.Message)
			}
			if row.note == "" {
				if r.people.count() != 0 {
					t.Error("people were asked")
				}
				return
			}
			if a := r.people.one(); !strings.Contains(a.Spec.DiffNote, row.note) || strings.Contains(a.Spec.DiffNote, "test failed") || a.Spec.Diff != "" {
				t.Errorf("note %q, diff %q", a.Spec.DiffNote, a.Spec.Diff)
			}
		})
	}
}

// TestDiffOfSecrets: keys stay, values do not, and which of them change is seen.
func TestDiffOfSecrets(t *testing.T) {
	before := decoded(t, `{"kind":"Secret","metadata":{"name":"db","annotations":{"last":"hunter1","same":"hunter0"}},"data":{"same":"aHVudGVyMA==","password":"aHVudGVyMQ==","gone":"aHVudGVyMw=="},"type":"Opaque"}`)
	after := decoded(t, `{"kind":"Secret","metadata":{"name":"db","annotations":{"last":"hunter2","same":"hunter0"}},"data":{"same":"aHVudGVyMA==","password":"aHVudGVyMg==","new":"aHVudGVyNA=="},"type":"Opaque"}`)
	shown := compare(&authz.Call{Resource: "secrets"}, before, after).diff
	for _, want := range []string{"-  gone: '[redacted]'\n", "+  new: '[redacted]'\n", "-  password: '[redacted]'\n", "+  password: '[redacted, changed]'\n", "   same: '[redacted]'\n", "+    last: '[redacted, changed]'\n"} {
		if !strings.Contains(shown, want) {
			t.Errorf("%q is missing in\n%s", want, shown)
		}
	}
	if strings.Contains(shown, "hunter") || strings.Contains(shown, "aHVudGVy") {
		t.Errorf("values in\n%s", shown)
	}
	// Under the name of something else, too.
	hidden := compare(&authz.Call{Resource: "configmaps"}, nil, decoded(t, `{"kind":"ConfigMap","spec":{"template":{"kind":"Secret","data":{"a":"aHVudGVyMQ=="}}}}`)).diff
	if strings.Contains(hidden, "aHVudGVy") || !strings.Contains(hidden, "redacted") {
		t.Errorf("got\n%s", hidden)
	}
}

func TestDiffIsCut(t *testing.T) {
	long := map[string]any{}
	for i := range 9000 {
		long[fmt.Sprintf("key-%05d", i)] = strings.Repeat("é", 10)
	}
	shown := compare(&authz.Call{Resource: "configmaps"}, nil, map[string]any{"data": long})
	if len(shown.diff) > maxDiff || !strings.HasSuffix(shown.diff, "\n") || !strings.Contains(shown.note, fmt.Sprintf("the first %d of its ", len(shown.diff))) {
		t.Errorf("%d bytes, note %q", len(shown.diff), shown.note)
	}
	if same := compare(&authz.Call{}, map[string]any{"a": "b", "status": 1}, map[string]any{"a": "b", "status": 2}); same.diff != "" || same.note == "" {
		t.Errorf("nothing changes: %+v", same)
	}
}

// TestTargetUnseen: what cannot be seen cannot be bound.
func TestTargetUnseen(t *testing.T) {
	for _, row := range []struct {
		name   string
		code   int
		body   string
		reason string
	}{
		{"forbidden", 403, `{}`, "UpstreamDenied/Preview"},
		{"without a UID", 200, `{"metadata":{"name":"shop"}}`, "NotReady/Preview"},
		{"not JSON", 200, `<html>`, "NotReady/Preview"},
		{"broken", 500, ``, "NotReady/Preview"},
		{"too large", 200, `{"metadata":{"uid":"u","annotations":{"a":"` + strings.Repeat("a", maxPreview) + `"}}}`, "PolicyDenied/TooLarge"},
		{"gone", 404, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","message":"namespaces \"shop\" not found"}`, "UpstreamDenied"},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := newGatedRig(t, newPeople(t))
			r.stub.set(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "application/json")
				w.WriteHeader(row.code)
				_, _ = w.Write([]byte(row.body))
			})
			got := r.deletes(row.reason)
			if row.name == "gone" && (got.code != 404 || got.status.Reason != "NotFound") {
				t.Errorf("got %d %s", got.code, got.body)
			}
			if r.people.count() != 0 {
				t.Error("people were asked")
			}
		})
	}
}

// TestKeepsDryRuns: nothing is tried out at a server that may do it for real.
func TestKeepsDryRuns(t *testing.T) {
	for group, want := range map[string]bool{"": true, "apps": true, "apiextensions.k8s.io": true, "metrics.k8s.io": false, "example.org": false, "*": false} {
		if got := keepsDryRuns(group); got != want {
			t.Errorf("%q: %t", group, got)
		}
	}
}
