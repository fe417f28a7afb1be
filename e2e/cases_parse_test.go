package e2e_test

import (
	"fmt"
	"strings"
	"testing"
)

const (
	casePod  = "/api/v1/namespaces/case-a/pods/web-0"
	casePods = "/api/v1/namespaces/case-a/pods"
	caseMaps = "/api/v1/namespaces/case-a/configmaps"
)

var (
	asJSON = map[string]string{"Content-Type": "application/json"}
	asYAML = map[string]string{"Content-Type": "application/yaml"}
)

// TestPaths: only the one canonical spelling of a path is understood.
func TestPaths(t *testing.T) {
	rig := newCasesRig(t)
	bad := func(id, target, cause string) row {
		return row{id: id, name: target, who: rig.all, method: "GET", target: target, code: 400, reason: "BadPath/" + cause}
	}
	rows := []row{
		{id: "T030", name: "canonical", who: rig.reader, method: "GET", target: casePod, code: 200},
		bad("T031", casePods+"/", "Segment"),
		bad("T033", "/api/v1/namespaces/case-a/../case-b/secrets/db", "Segment"),
		bad("T033", "/api/v1/namespaces/case-a/%2e%2e/case-b/secrets/db", "Encoding"),
		bad("T033", "/api/v1/namespaces/case-a/..%2fcase-b/secrets/db", "Encoding"),
		bad("T033", "/api/v1/namespaces/case-a/%2e./case-b/secrets/db", "Encoding"),
		bad("T034", casePods+"/a%2Fb", "Encoding"),
		bad("T034", casePods+"/a%252Fb", "Character"),
		bad("T034", casePods+"/a%5Cb", "Character"),
		bad("T034", casePods+"/a%5cb", "Encoding"),
		bad("T034", casePods+"/a%00b", "Character"),
		bad("T034", casePods+"/a%0ab", "Encoding"),
		bad("T034", casePods+"/a%0Ab", "Character"),
		bad("T034", casePods+"/a%c0%aeb", "Encoding"),
		bad("T034", casePods+"/a%C0%AEb", "Character"),
		bad("T034", casePods+";v=1", "Character"),
		bad("T034", casePods+"/a%E2%88%95b", "Character"),
		bad("T034", casePods+"//web-0", "Segment"),
		bad("T034", "//api/v1/namespaces/case-a/pods", "Segment"),
		bad("T034", "/api//v1/namespaces/case-a/pods", "Segment"),
		bad("T034", "/./api/v1/namespaces/case-a/pods", "Segment"),
		bad("T034", "/api/v1/namespaces/case-a/%70ods", "Encoding"),
		bad("T034", casePod+"/log/extra", "Unresolved"),
		bad("T034", "/a/b/c/d/e/f/g/h/i", "Length"),
		{id: "T034", name: "upper case", who: rig.all, method: "GET", target: "/api/v1/namespaces/case-a/Pods", code: 403, reason: "OutsideGrant/UnknownResource"},
		{id: "T034", name: "upper case prefix", who: rig.all, method: "GET", target: "/API/v1/namespaces/case-a/pods", code: 403, reason: "OutsideGrant"},
		{id: "T037", name: "apps with a core grant", who: rig.reader, method: "GET", target: "/apis/apps/v1/namespaces/case-a", code: 403, reason: "OutsideGrant"},
		{id: "T037", name: "pods in another group", who: rig.reader, method: "GET", target: "/apis/metrics.k8s.io/v1beta1/namespaces/case-a/pods", code: 403, reason: "OutsideGrant"},
		{id: "T038", name: "autoscaling/v1", who: rig.reader, method: "GET", target: "/apis/autoscaling/v1/namespaces/case-a/horizontalpodautoscalers", code: 403, reason: "OutsideGrant"},
		{id: "T038", name: "autoscaling/v2", who: rig.reader, method: "GET", target: "/apis/autoscaling/v2/namespaces/case-a/horizontalpodautoscalers", code: 403, reason: "OutsideGrant"},
		{id: "T038", name: "autoscaling/v1, granted", who: rig.all, method: "GET", target: "/apis/autoscaling/v1/namespaces/case-a/horizontalpodautoscalers", code: 200},
		{id: "T038", name: "autoscaling/v2, granted", who: rig.all, method: "GET", target: "/apis/autoscaling/v2/namespaces/case-a/horizontalpodautoscalers", code: 200},
		{id: "T039", name: "cluster-scoped in a namespace", who: rig.all, method: "GET", target: "/apis/case.example.org/v1/namespaces/case-a/globes/x", code: 403, reason: "OutsideGrant/Scope"},
		{id: "T039", name: "node in a namespace", who: rig.all, method: "GET", target: "/api/v1/namespaces/case-a/nodes/kwok-0", code: 403, reason: "OutsideGrant/Scope"},
		{id: "T041", name: "finalize", who: rig.reader, method: "PUT", target: "/api/v1/namespaces/case-a/finalize", header: asJSON, body: `{"kind":"Namespace","apiVersion":"v1","metadata":{"name":"case-a"}}`, code: 403, reason: "OutsideGrant"},
		{id: "T041", name: "status", who: rig.reader, method: "PATCH", target: "/api/v1/namespaces/case-a/status", header: map[string]string{"Content-Type": "application/merge-patch+json"}, body: `{}`, code: 403, reason: "OutsideGrant"},
		{id: "legacy", name: "watch as a path", who: rig.all, method: "GET", target: "/api/v1/watch/namespaces/case-a/pods", code: 403, reason: "PolicyDenied/LegacyPath"},
		{id: "legacy", name: "proxy as a path", who: rig.all, method: "GET", target: "/api/v1/proxy/nodes/kwok-0", code: 403, reason: "PolicyDenied/LegacyPath"},
	}
	for _, target := range []string{"/metrics", "/debug/pprof/", "/debug/flags/v", "/logs", "/flagz", "/statusz", "/healthz?verbose=1", "/", "/.well-known/openid-configuration", "/openapi/v1", "/livez", "/readyz"} {
		want := row{id: "T091", name: target, who: rig.all, method: "GET", target: target, code: 403, reason: "OutsideGrant"}
		switch {
		case strings.HasSuffix(target, "/") && target != "/":
			want.code, want.reason = 400, "BadPath/Segment"
		case strings.Contains(target, "?"):
			want.code, want.reason = 400, "BadQuery/Unknown"
		}
		rows = append(rows, want)
	}
	for _, target := range []string{"/version", "/api", "/apis", "/openapi/v2", "/openapi/v3", "/api/v1", "/apis/apps", "/apis/apps/v1", "/openapi/v3/apis/apps/v1"} {
		rows = append(rows, row{id: "T091", name: target, who: rig.reader, method: "GET", target: target, code: 200})
	}
	rig.play(t, rows)
}

// TestQueries: parameters are known, unambiguous and understood.
func TestQueries(t *testing.T) {
	rig := newCasesRig(t)
	get := func(id, query string, code int, reason string) row {
		return row{id: id, name: query[:min(len(query), 60)], who: rig.reader, method: "GET", target: casePods + "?" + query, code: code, reason: reason}
	}
	rig.play(t, []row{
		get("T053", "watch=0&watch=1", 400, "BadQuery/Duplicate"),
		get("T053", "watch=false", 200, ""),
		get("T053", "watch=True&timeoutSeconds=1", 200, ""),
		get("T053", "watch=yes", 400, "BadQuery/Value"),
		get("T054", "watch=1&fieldSelector=%25%25%25", 400, "BadQuery/Value"),
		get("T054", "watch=1&fieldSelector=%%%", 400, "BadQuery/Encoding"),
		get("T070", strings.Repeat("a&", 10_000)+"watch=1", 400, "BadQuery/Count"),
		get("T070", strings.Repeat("a=1&", 9_000)+"watch=1", 400, "BadQuery/Count"),
		get("T071", "a=1;watch=1", 400, "BadQuery/Separator"),
		get("T071", "%zz=1", 400, "BadQuery/Encoding"),
		get("T071", "colour=blue", 400, "BadQuery/Unknown"),
		get("T071", "limit=1&Limit=2", 400, "BadQuery/Unknown"),
		get("T071", "limit=ten", 400, "BadQuery/Value"),
		get("T071", "labelSelector=a%00b", 400, "BadQuery/Character"),
		get("T071", "labelSelector=%FF", 400, "BadQuery/Character"),
		get("T071", "labelSelector=a+in+(", 400, "BadQuery/Value"),
		get("T071", "labelSelector=app%20in%20(web)&limit=5", 200, ""),
		{id: "T055", name: "list by name with a get-only grant", who: rig.reader, method: "GET", target: caseMaps + "?fieldSelector=metadata.name%3Dsettings", code: 403, reason: "OutsideGrant"},
		{id: "T055", name: "secrets of one name", who: rig.reader, method: "GET", target: "/api/v1/namespaces/case-a/secrets?fieldSelector=metadata.name%3Ddb", code: 403, reason: "OutsideGrant"},
		{id: "T071", name: "watch parameter of a get", who: rig.reader, method: "GET", target: casePod + "?watch=1", code: 400, reason: "BadQuery/Unknown"},
		{id: "T071", name: "backend verification off", who: rig.all, method: "GET", target: casePod + "/log?insecureSkipTLSVerifyBackend=true", code: 400, reason: "BadQuery/Unknown"},
	})
}

// TestBodies: what is judged is what is forwarded, and it names what the path
// names.
func TestBodies(t *testing.T) {
	rig := newCasesRig(t)
	post := func(id, name, body string, header map[string]string, code int, reason string) row {
		return row{id: id, name: name, who: rig.reader, method: "POST", target: caseMaps, header: header, body: body, code: code, reason: reason}
	}
	large := fmt.Sprintf(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"large"},"data":{"a":"%s"}}`, strings.Repeat("x", 3<<20))
	deep := strings.Repeat(`{"a":`, 100_000) + "1" + strings.Repeat("}", 100_000)
	bomb := "a: &a [x,x,x,x,x,x,x,x,x]\n"
	for c := 'b'; c < 'k'; c++ {
		bomb += fmt.Sprintf("%c: &%c [%s]\n", c, c, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*%c,", c-1), 9), ","))
	}
	before := rssOf(t, rig.Broker(0).PID())
	rig.play(t, []row{
		{id: "T057", name: "dry run in the query only", who: rig.reader, method: "DELETE", target: caseMaps + "/settings?dryRun=All", header: asJSON, body: `{"kind":"DeleteOptions","apiVersion":"v1"}`, code: 400, reason: "BadQuery/DeleteOptions"},
		{id: "T058", name: "dry run in the body only", who: rig.reader, method: "DELETE", target: caseMaps + "/settings", header: asJSON, body: `{"kind":"DeleteOptions","apiVersion":"v1","dryRun":["All"]}`, code: 200},
		{id: "T059", name: "two propagation policies", who: rig.reader, method: "DELETE", target: caseMaps + "/settings?propagationPolicy=Orphan", header: asJSON, body: `{"kind":"DeleteOptions","apiVersion":"v1","propagationPolicy":"Foreground"}`, code: 400, reason: "BadQuery/DeleteOptions"},
		{id: "T062", name: "another namespace in the body", who: rig.reader, method: "POST", target: caseMaps, header: asJSON, body: `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"stray","namespace":"case-b"}}`, code: 400, reason: "BadBody/PathBodyMismatch"},
		{id: "T062", name: "another name in the body", who: rig.reader, method: "PUT", target: caseMaps + "/settings", header: asJSON, body: `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"stray"}}`, code: 400, reason: "BadBody/PathBodyMismatch"},
		post("T063", "duplicate key", `{"apiVersion":"v1","kind":"ConfigMap","kind":"Secret","metadata":{"name":"d"}}`, asJSON, 400, "BadBody/Duplicate"),
		post("T063", "duplicate key, deep", `{"metadata":{"name":"d"},"data":{"a":{"b":{"c":[{"d":1,"d":2}]}}}}`, asJSON, 400, "BadBody/Duplicate"),
		post("T063", "duplicate key in YAML", "kind: ConfigMap\nkind: Secret\n", asYAML, 400, "BadBody/Syntax"),
		post("T063", "two documents", `{"metadata":{"name":"d"}}{"metadata":{"name":"e"}}`, asJSON, 400, "BadBody/Syntax"),
		post("T065", "too large", large, asJSON, 413, "BadBody/Size"),
		post("T067", "unknown type", `{}`, map[string]string{"Content-Type": "application/x-www-form-urlencoded"}, 415, "BadBody/MediaType"),
		post("T067", "CBOR", "\xd9\xd9\xf7\xa0", map[string]string{"Content-Type": "application/cbor"}, 415, "BadBody/MediaType"),
		post("T067", "CBOR sequence", "\xa0", map[string]string{"Content-Type": "application/cbor-seq"}, 415, "BadBody/MediaType"),
		post("T067", "not protobuf", `{}`, map[string]string{"Content-Type": "application/vnd.kubernetes.protobuf"}, 400, "BadBody/Syntax"),
		post("T067", "compressed", `{}`, map[string]string{"Content-Type": "application/json", "Content-Encoding": "gzip"}, 415, "BadBody/ContentEncoding"),
		post("T067", "no media type", `x`, map[string]string{"Content-Type": "json"}, 415, "BadBody/MediaType"),
		post("T069", "deep JSON", deep, asJSON, 400, "BadBody/Syntax"),
		post("T069", "alias bomb", bomb, asYAML, 400, "BadBody/Syntax"),
		post("T233", "text", `{"metadata":{"name":"d"}}`, map[string]string{"Content-Type": "text/plain"}, 415, "BadBody/MediaType"),
		{id: "T067", name: "CBOR apply", who: rig.reader, method: "PATCH", target: caseMaps + "/settings", header: map[string]string{"Content-Type": "application/apply-patch+cbor"}, body: "\xa0", code: 415, reason: "BadBody/MediaType"},
		{id: "T067", name: "JSON as a patch", who: rig.reader, method: "PATCH", target: caseMaps + "/settings", header: asJSON, body: `{}`, code: 415, reason: "BadBody/MediaType"},
		{id: "T067", name: "patch as PUT", who: rig.reader, method: "PUT", target: caseMaps + "/settings", header: map[string]string{"Content-Type": "application/merge-patch+json"}, body: `{}`, code: 415, reason: "BadBody/MediaType"},
		{id: "body", name: "body of a get", who: rig.reader, method: "GET", target: casePod, header: asJSON, body: `{}`, code: 400, reason: "BadBody/Unexpected"},
		{id: "T030", name: "the config map is still there", who: rig.reader, method: "GET", target: caseMaps + "/settings", code: 200},
	})
	if grown := rssOf(t, rig.Broker(0).PID()) - before; grown > 64<<20 {
		t.Errorf("T069: the broker grew by %d MiB", grown>>20)
	} else {
		t.Logf("T069: the broker's RSS changed by %d KiB over all bodies, bombs included", grown>>10)
	}
	if names := rig.admin(t, "get", "configmaps", "-A", "-o=jsonpath={.items[*].metadata.name}"); strings.Contains(names, "stray") || strings.Contains(names, "large") {
		t.Errorf("T062, T065: something was made: %s", names)
	}
	rig.dryRunIsRecorded(t)
}

// dryRunIsRecorded looks at the record of T058.
func (rig *casesRig) dryRunIsRecorded(t *testing.T) {
	t.Helper()
	got := rig.reader.do(t, "DELETE", caseMaps+"/settings", asJSON, `{"dryRun":["All"]}`)
	records := rig.journal.of(t, got.auditID())[got.auditID()]
	if got.code != 200 || records[0].Annotations["taskgate.dev/dry-run"] != "true" {
		t.Errorf("T058: %d, annotations %v", got.code, records[0].Annotations)
	}
	mismatch := rig.reader.do(t, "POST", caseMaps, asJSON, `{"metadata":{"name":"stray","namespace":"case-b"}}`)
	record := rig.journal.of(t, mismatch.auditID())[mismatch.auditID()][0]
	if record.ObjectRef == nil || record.ObjectRef.Namespace != "case-a" || !strings.Contains(string(record.RequestObject), `"case-b"`) {
		t.Errorf("T062: the record does not keep both namespaces: %+v %s", record.ObjectRef, record.RequestObject)
	}
}
