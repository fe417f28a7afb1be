package e2e_test

import (
	"encoding/base64"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"

	"github.com/taskgate/taskgate/recorder"
)

// TestHeaders: headers that name somebody else are refused or go nowhere.
func TestHeaders(t *testing.T) {
	rig := newCasesRig(t)
	with := func(id, name, value string, code int, reason string) row {
		return row{id: id, name: name + ": " + value, who: rig.reader, method: "GET", target: casePod, header: map[string]string{name: value}, code: code, reason: reason}
	}
	var rows []row
	for _, name := range []string{"Impersonate-User", "Impersonate-Group", "Impersonate-Uid", "Impersonate-Extra-Scopes", "Impersonate-Extra-agent.taskgate.dev", "impersonate_user", "Impersonate-Anything", "iMpErSoNaTe-user"} {
		for _, value := range []string{"admin", "system:masters", "", "taskgate:agent"} {
			rows = append(rows, with("T014", name, value, 400, "BadHeader/Impersonate"))
		}
	}
	rows = append(rows,
		with("T051", "X-HTTP-Method-Override", "DELETE", 200, ""),
		with("T067", "Content-Encoding", "gzip", 415, "BadBody/ContentEncoding"),
		with("T067", "Content-Encoding", "identity", 200, ""),
	)
	for _, name := range []string{"X-Remote-User", "X-Remote-Group", "X-Remote-Uid", "X-Remote-Extra-Scopes", "X-Forwarded-User", "X-Forwarded-For", "Forwarded", "X-Real-Ip", "X-Spiffe-Id", "Cookie", "Proxy-Authorization", "Ssl-Client-Cert", "X-Forwarded-Client-Cert", "Front-Proxy-User"} {
		rows = append(rows, with("T073", name, "admin", 200, ""))
	}
	rig.play(t, rows)

	connection := func(value string) row {
		return row{id: "T074", name: value, who: rig.reader, method: "GET", target: casePod, header: map[string]string{"Connection": value}, code: 400, reason: "BadHeader/Connection"}
	}
	rig.playHTTP1(t, []row{
		connection("Impersonate-User, Authorization"), connection("impersonate-user"), connection("close, impersonate-group"), connection("keep-alive, Audit-Id"), connection("x"),
	})
}

// TestPrincipal: whatever an agent says, the cluster hears the bound principal
// and our audit ID.
func TestPrincipal(t *testing.T) {
	rig := newCasesRig(t)
	hostile := map[string]string{
		"Audit-Id": "11111111-2222-4333-8444-555555555555", "X-Remote-User": "admin", "X-Remote-Group": "system:masters", "X-Forwarded-User": "admin",
		"X-Spiffe-Id": "spiffe://example.org/ns/agents/sa/beta", "Cookie": "a=b", "User-Agent": "evil\tagent", "X-Http-Method-Override": "DELETE", "Accept": "application/json",
	}
	uid := rig.admin(t, "get", "taskgrant", "case-reader", "-o=jsonpath={.metadata.uid}")
	for _, way := range rig.reader.ways(t) {
		header := maps.Clone(hostile)
		if way.token == "" { // the sidecar drops it
			header["Authorization"] = "Bearer " + rig.adminToken(t)
		}
		got := way.do(t, "GET", casePod, header, "")
		if got.code != 200 || got.auditID() == hostile["Audit-Id"] || got.auditID() == "" {
			t.Errorf("T077 (%s): %d, audit ID %q", way.name, got.code, got.auditID())
			continue
		}
		events := rig.upstream(t)[got.auditID()]
		if len(events) != 2 || events[1].Stage != auditv1.StageResponseComplete {
			t.Errorf("T075 (%s): the API server has %d entries", way.name, len(events))
			continue
		}
		event := events[1]
		if event.User.Username != brokerAccount || event.ImpersonatedUser == nil || event.ImpersonatedUser.Username != "taskgate:agent" || event.Verb != "get" {
			t.Errorf("T075 (%s): %s as %+v did %s", way.name, event.User.Username, event.ImpersonatedUser, event.Verb)
			continue
		}
		want := map[string]string{"agent.taskgate.dev": rig.reader.id, "task.taskgate.dev": "task case-reader", "grant.taskgate.dev": uid}
		have := map[string]string{}
		for key, values := range event.ImpersonatedUser.Extra {
			have[key] = strings.Join(values, ",")
		}
		if !maps.Equal(want, have) || !slices.Equal(event.ImpersonatedUser.Groups, []string{"taskgate:agents", "taskgate:policy:case-reader", "system:authenticated"}) {
			t.Errorf("T026, T075 (%s): groups %v, extras %v", way.name, event.ImpersonatedUser.Groups, have)
		}
		record := rig.journal.of(t, got.auditID())[got.auditID()][0]
		if !slices.Equal(record.SourceIPs, []string{"127.0.0.1"}) || record.User.Username != rig.reader.id || record.Annotations[recorder.AnnotationSVID] == "" {
			t.Errorf("T073 (%s): the record names %v, %s", way.name, record.SourceIPs, record.User.Username)
		}
		if event.UserAgent != "evilagent" && event.UserAgent != "evil agent" {
			t.Errorf("(%s): the cluster sees the user agent %q", way.name, event.UserAgent)
		}
	}
}

// adminToken is a bearer token of a cluster administrator.
func (s *stack) adminToken(t testing.TB) string {
	t.Helper()
	s.apply(t, `
apiVersion: v1
kind: ServiceAccount
metadata: {name: root, namespace: default}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: root}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cluster-admin}
subjects: [{kind: ServiceAccount, name: root, namespace: default}]
`)
	return strings.TrimSpace(s.admin(t, "-n", "default", "create", "token", "root"))
}

// TestOddText: any bytes an agent can send come back as one record.
func TestOddText(t *testing.T) {
	rig := newCasesRig(t)
	texts := map[string]string{
		"line break":    "a\\n{\"taskgate.dev/seq\":\"00000000000000000009\"}",
		"json":          `{"kind":"Event","auditID":"x"}`,
		"not UTF-8":     "a\xff\xfe\x80b",
		"tab":           "a\tb",
		"base64 prefix": "base64:AAAA",
		"long":          strings.Repeat("x", 20_000),
		"quotes":        `"'\"`,
		"ansi":          "\u009b31m",
	}
	ids := map[string]string{}
	for name, text := range texts {
		ids[name] = rig.reader.do(t, "GET", casePod, map[string]string{"User-Agent": text}, "").auditID()
	}
	all := rig.journal.of(t, slices.Collect(maps.Values(ids))...)
	for name, text := range texts {
		records := all[ids[name]]
		if len(records) != 2 {
			t.Errorf("T178 %s: %d records", name, len(records))
			continue
		}
		encoded := "base64:" + base64.StdEncoding.EncodeToString([]byte(text))
		if seen := records[0].UserAgent; seen != text && seen != encoded || (seen == encoded) == utf8.ValidString(text) && name != "base64 prefix" {
			t.Errorf("T178 %s: recorded as %q", name, seen)
		}
	}
	odd := rig.reader.do(t, "GET", casePods+"/%22%7B%0Ax", nil, "")
	if records := rig.journal.of(t, odd.auditID())[odd.auditID()]; len(records) != 1 || records[0].RequestURI != casePods+"/%22%7B%0Ax" {
		t.Errorf("T178: recorded as %+v", records)
	}
}

// TestMethods that Kubernetes does not have.
func TestMethods(t *testing.T) {
	rig := newCasesRig(t)
	var rows []row
	for _, method := range []string{"OPTIONS", "TRACE", "PROPFIND", "HEAD", "get", "GeT", "PATCh", "LOCK"} {
		r := row{id: "T049", name: method, who: rig.all, method: method, target: casePod, code: 405, reason: "BadHeader/Method"}
		if method == "HEAD" {
			continue // its answer has no body to look at
		}
		rows = append(rows, r)
	}
	rig.play(t, rows)
	for _, way := range rig.all.ways(t) {
		if got := way.do(t, "HEAD", casePod, nil, ""); got.code != 405 || len(rig.upstream(t)[got.auditID()]) != 0 {
			t.Errorf("T049 HEAD (%s): %d", way.name, got.code)
		}
	}
}

// TestHeaderMatrix sends every hostile header with every verb and looks for one
// that reaches the cluster under another name.
func TestHeaderMatrix(t *testing.T) {
	rig := newCasesRig(t)
	names := []string{"Impersonate-User", "Impersonate-Group", "Impersonate-Extra-agent.taskgate.dev", "Impersonate-Uid", "X-Remote-User", "X-Remote-Group", "Authorization", "Audit-Id", "Taskgate-Grant", "X-Forwarded-Uri", "X-Original-Url", "X-Rewrite-Url", "X-Http-Method", "Transfer-Encoding2", "Content-Length2", "Te", "Range", "If-Match", "If-None-Match", "Accept-Encoding", "Origin2", "Max-Forwards"}
	ways := rig.all.ways(t)
	var ids []string
	sentCount := 0
	for _, way := range ways {
		for _, name := range names {
			for _, method := range []string{"GET", "POST", "PATCH", "DELETE"} {
				if way.token != "" && name == "Authorization" {
					continue
				}
				target, body, header := casePods, "", map[string]string{name: "admin"}
				switch method {
				case "POST":
					target, body, header["Content-Type"] = caseMaps+"?dryRun=All", `{"metadata":{"name":"matrix"}}`, "application/json"
				case "PATCH":
					target, body, header["Content-Type"] = caseMaps+"/settings?dryRun=All", `{}`, "application/merge-patch+json"
				case "DELETE":
					target = caseMaps + "/settings?dryRun=All"
				}
				got := way.do(t, method, target, header, body)
				sentCount++
				if strings.HasPrefix(name, "Impersonate-") {
					if got.reason() != "BadHeader/Impersonate" {
						t.Errorf("%s %s with %s: %d %s", way.name, method, name, got.code, got.reason())
					}
					continue
				}
				if got.code/100 == 2 {
					ids = append(ids, got.auditID())
				}
			}
		}
	}
	upstream := rig.upstream(t)
	for _, id := range ids {
		events := upstream[id]
		if len(events) != 2 {
			t.Errorf("the call %s was answered and the API server has %d entries", id, len(events))
			continue
		}
		// Who is impersonated is known from the second stage on.
		if user := events[1].ImpersonatedUser; user == nil || user.Username != "taskgate:agent" || fmt.Sprint(user.Extra["agent.taskgate.dev"]) != "["+rig.all.id+"]" {
			t.Errorf("T074, T075: the API server saw %s as %+v", events[1].User.Username, user)
		}
	}
	t.Logf("%d requests, %d reached the API server, each as taskgate:agent", sentCount, len(ids))
}
