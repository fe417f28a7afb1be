package request_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/taskgate/taskgate/broker/request"
)

// parse reads a request as the server would: from its bytes.
func parse(t testing.TB, method, target string, headers map[string]string, body string) (*request.Request, *request.Refusal) {
	t.Helper()
	var raw strings.Builder
	fmt.Fprintf(&raw, "%s %s HTTP/1.1\r\nHost: broker\r\n", method, target)
	for name, value := range headers {
		for line := range strings.SplitSeq(value, "\n") {
			fmt.Fprintf(&raw, "%s: %s\r\n", name, line)
		}
	}
	if body != "" {
		fmt.Fprintf(&raw, "Content-Length: %d\r\n", len(body))
	}
	raw.WriteString("\r\n" + body)
	r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(raw.String())))
	if err != nil {
		return nil, &request.Refusal{Reason: "net/http", Text: err.Error()}
	}
	return request.NewParser().Parse(r)
}

// meaning writes what was understood in a line.
func meaning(p *request.Request, refusal *request.Refusal) string {
	if refusal != nil {
		return strings.TrimSuffix(fmt.Sprintf("%s/%s", refusal.Reason, refusal.Cause), "/")
	}
	c := &p.Call
	text := c.Verb.String() + " "
	if c.Resource == "" {
		text += c.Path
	} else {
		text += fmt.Sprintf("%s:%s.%s %s", c.Namespace, c.QualifiedResource(), c.Group, c.Name)
	}
	for _, word := range []string{" dry", " live", " creates", " token"} {
		if map[string]bool{" dry": p.DryRun, " live": p.Live, " creates": c.Creates, " token": c.ServiceAccountToken}[word] {
			text += word
		}
	}
	if c.HostAccess != "" {
		text += " host:" + c.HostAccess
	}
	if c.ServiceAccount != "" {
		text += " as:" + c.ServiceAccount
	}
	return text
}

func TestPathsAndQueries(t *testing.T) {
	const pods = "/api/v1/namespaces/shop/pods"
	for _, row := range []struct{ method, target, want string }{
		// what clients send
		{"GET", pods, "list shop:pods. "},
		{"GET", pods + "/web-0", "get shop:pods. web-0"},
		{"GET", pods + "?watch=true&resourceVersion=1", "watch shop:pods.  live"},
		{"GET", pods + "?watch=True", "watch shop:pods.  live"},
		{"GET", pods + "?watch=false", "list shop:pods. "},
		{"GET", pods + "?watch=0", "list shop:pods. "},
		{"GET", pods + "?fieldSelector=metadata.name%3Dfoo", "list shop:pods. foo"},
		{"GET", pods + "/web-0/log?follow=true&container=c", "get shop:pods/log. web-0 live"},
		{"GET", pods + "/web-0/log?follow=false", "get shop:pods/log. web-0"},
		{"GET", "/apis/apps/v1/deployments?limit=500", "list :deployments.apps "},
		{"GET", "/api/v1/namespaces/shop", "get shop:namespaces. shop"},
		{"GET", "/api/v1/namespaces", "list :namespaces. "},
		{"GET", "/apis/rbac.authorization.k8s.io/v1/clusterroles/system:node", "get :clusterroles.rbac.authorization.k8s.io system:node"},
		{"PUT", "/api/v1/namespaces/shop/finalize", "update shop:namespaces/finalize. shop"},
		{"GET", "/apis/apps/v1/namespaces/ns-a", "get ns-a:namespaces.apps ns-a"},
		{"DELETE", pods, "deletecollection shop:pods. "},
		{"DELETE", pods + "/web-0?gracePeriodSeconds=0", "delete shop:pods. web-0"},
		{"GET", "/version", "get /version"},
		{"GET", "/openapi/v3/apis/apps/v1?hash=ABC", "get /openapi/v3/apis/apps/v1"},
		{"GET", "/apis?timeout=32s", "get /apis"},
		{"GET", "/metrics", "get /metrics"},
		{"GET", "/", "get /"},
		{"POST", "/version", "create /version"},
		{"GET", pods + "/web-0/exec", "BadUpgrade"},
		{"GET", "/api/v1/nodes/n1/proxy", "create :nodes/proxy. n1"},
		// spellings
		{"GET", pods + "/", "BadPath/Segment"},
		{"GET", "/api/v1//namespaces/shop/pods", "BadPath/Segment"},
		{"GET", "//api/v1/pods", "BadPath/Segment"},
		{"GET", "/api/v1/namespaces/shop/../bank/secrets/s", "BadPath/Segment"},
		{"GET", "/api/v1/namespaces/shop/%2e%2e/bank/secrets/s", "BadPath/Encoding"},
		{"GET", "/api/v1/namespaces/shop/..%2fbank/secrets/s", "BadPath/Encoding"},
		{"GET", "/api/v1/namespaces/shop/%2e./bank", "BadPath/Encoding"},
		{"GET", "/api/v1/./pods", "BadPath/Segment"},
		{"GET", pods + "/a%2Fb", "BadPath/Encoding"},
		{"GET", pods + "/a%252Fb", "BadPath/Character"},
		{"GET", pods + "/a%5cb", "BadPath/Encoding"},
		{"GET", pods + "/a%5Cb", "BadPath/Character"},
		{"GET", pods + "/a%00", "BadPath/Character"},
		{"GET", pods + "/a%0a", "BadPath/Encoding"},
		{"GET", pods + "/a%0A", "BadPath/Character"},
		{"GET", pods + "/a%c0%ae", "BadPath/Encoding"},
		{"GET", pods + "/a%C0%AE", "BadPath/Character"},
		{"GET", pods + "/a;v=1", "BadPath/Character"},
		{"GET", pods + "/a%E2%88%95b", "BadPath/Character"},
		{"GET", pods + "/a%zz", "net/http"},
		{"GET", pods + "/%65xec", "BadPath/Encoding"},
		{"GET", pods + "/web-0/%65xec", "BadPath/Encoding"},
		{"GET", pods + "/web-0/exec/x", "BadPath/Unresolved"},
		{"GET", pods + "/web-0/exec/", "BadPath/Segment"},
		{"GET", pods + "/web-0/log/x", "BadPath/Unresolved"},
		{"GET", "/api/v1/nodes/n1/proxy/metrics", "PolicyDenied/Proxy"},
		{"GET", "/api/v1/namespaces/a/services/b/proxy/a/b/c/d/e/f", "PolicyDenied/Proxy"},
		{"GET", "/a/b/c/d/e/f/g/h/i", "BadPath/Length"},
		{"GET", "http://other/api/v1/pods", "BadPath/Form"},
		{"GET", "/api/v1/watch/pods", "PolicyDenied/LegacyPath"},
		{"GET", "/api/v1/proxy/nodes/n1", "PolicyDenied/LegacyPath"},
		{"GET", "/apis/apps/v1/watch/deployments", "PolicyDenied/LegacyPath"},
		{"GET", "/api/v1/watch", "PolicyDenied/LegacyPath"},
		// queries
		{"GET", pods + "?watch=0&watch=1", "BadQuery/Duplicate"},
		{"GET", pods + "?watch=", "BadQuery/Value"},
		{"GET", pods + "?watch=yes", "BadQuery/Value"},
		{"GET", pods + "?watch", "BadQuery/Value"},
		{"GET", pods + "?watch=1&fieldSelector=%%%", "BadQuery/Encoding"},
		{"GET", pods + "?watch=1&fieldSelector=a", "BadQuery/Value"},
		{"GET", pods + "?labelSelector=a%20in%20%28", "BadQuery/Value"},
		{"GET", pods + "?a=1;watch=1", "BadQuery/Separator"},
		{"GET", pods + "?%zz=1", "BadQuery/Encoding"},
		{"GET", pods + "?unknown=1", "BadQuery/Unknown"},
		{"GET", pods + "?WATCH=1", "BadQuery/Unknown"},
		{"GET", pods + "?" + strings.Repeat("a=1&", 10_000) + "watch=1", "BadQuery/Count"},
		{"GET", pods + "/web-0?watch=1", "BadQuery/Unknown"},
		{"GET", pods + "/web-0/log?insecureSkipTLSVerifyBackend=true", "BadQuery/Unknown"},
		{"GET", pods + "?limit=x", "BadQuery/Value"},
		{"GET", pods + "?continue=a%0Ab", "BadQuery/Character"},
		{"GET", pods + "?continue=%ff", "BadQuery/Character"},
		{"DELETE", pods + "/web-0?dryRun=some", "BadQuery/Value"},
		{"DELETE", pods + "/web-0?dryRun=All", "delete shop:pods. web-0 dry"},
		{"DELETE", pods + "/web-0?ignoreStoreReadErrorWithClusterBreakingPotential=true", "BadQuery/Unknown"},
		// methods
		{"OPTIONS", pods, "BadHeader/Method"},
		{"TRACE", pods, "BadHeader/Method"},
		{"HEAD", pods, "BadHeader/Method"},
		{"PROPFIND", pods, "BadHeader/Method"},
		{"get", pods, "BadHeader/Method"},
		{"GeT", pods, "BadHeader/Method"},
		{"CONNECT", "host:443", "BadHeader/Method"},
	} {
		if got := meaning(parse(t, row.method, row.target, nil, "")); got != row.want {
			t.Errorf("%s %s:\n got %s\nwant %s", row.method, truncated(row.target), got, row.want)
		}
	}
}

func truncated(s string) string { return s[:min(len(s), 120)] }

func TestHeaders(t *testing.T) {
	for _, row := range []struct{ name, value, want string }{
		{"Impersonate-User", "admin", "BadHeader/Impersonate"},
		{"impersonate_group", "system:masters", "BadHeader/Impersonate"},
		{"Impersonate-Extra-scopes", "x", "BadHeader/Impersonate"},
		{"Impersonate-Uid", "x", "BadHeader/Impersonate"},
		{"Connection", "Impersonate-User, Authorization", "BadHeader/Connection"},
		{"Connection", "keep-alive\nimpersonate-user", "BadHeader/Connection"},
		{"Connection", "close, impersonate-group", "BadHeader/Connection"},
		{"Connection", "close, Keep-Alive", "list shop:pods. "},
		{"Connection", "upgrade", "BadUpgrade"},
		{"Upgrade", "websocket", "BadUpgrade"},
		{"Upgrade", "h2c", "BadUpgrade"},
		{"Upgrade", "SPDY/3.1", "BadUpgrade"},
		{"HTTP2-Settings", "AAMAAABk", "BadUpgrade"},
		{"Content-Encoding", "gzip", "BadBody/ContentEncoding"},
		{"X-HTTP-Method-Override", "DELETE", "list shop:pods. "},
		{"X-Remote-User", "admin", "list shop:pods. "},
		{"Authorization", "Bearer x", "list shop:pods. "},
		{"Audit-Id", "mine", "list shop:pods. "},
	} {
		got := meaning(parse(t, "GET", "/api/v1/namespaces/shop/pods", map[string]string{row.name: row.value}, ""))
		if got != row.want {
			t.Errorf("%s: %q: got %s, want %s", row.name, row.value, got, row.want)
		}
	}
}

func TestBodies(t *testing.T) {
	const (
		json  = "application/json"
		merge = "application/merge-patch+json"
		apply = "application/apply-patch+yaml"
		maps  = "/api/v1/namespaces/shop/configmaps"
		pods  = "/api/v1/namespaces/shop/pods"
	)
	deep := strings.Repeat(`{"a":`, 100_000) + "1" + strings.Repeat("}", 100_000)
	bomb := "a: &a [x,x,x,x,x,x,x,x,x]\n"
	for c := 'b'; c < 'j'; c++ {
		bomb += fmt.Sprintf("%c: &%c [%s]\n", c, c, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*%c,", c-1), 9), ","))
	}
	for name, row := range map[string]struct{ method, target, media, body, want string }{
		"create":                 {"POST", maps, json, `{"metadata":{"name":"c"}}`, "create shop:configmaps. "},
		"no type":                {"POST", maps, "", `{"metadata":{"name":"c"}}`, "create shop:configmaps. "},
		"charset":                {"POST", maps, "application/json; charset=UTF-8", `{}`, "create shop:configmaps. "},
		"yaml":                   {"POST", maps, "application/yaml", "metadata:\n  name: c\n", "create shop:configmaps. "},
		"text":                   {"POST", maps, "text/plain", `{}`, "BadBody/MediaType"},
		"form":                   {"POST", maps, "application/x-www-form-urlencoded", `{}`, "BadBody/MediaType"},
		"cbor":                   {"POST", maps, "application/cbor", `{}`, "BadBody/MediaType"},
		"two types":              {"POST", maps, "application/json\ntext/plain", `{}`, "BadBody/MediaType"},
		"parameter":              {"POST", maps, "application/json; as=Table", `{}`, "BadBody/MediaType"},
		"patch without type":     {"PATCH", maps + "/c", "", `{}`, "BadBody/MediaType"},
		"patch as json":          {"PATCH", maps + "/c", json, `{}`, "BadBody/MediaType"},
		"put as patch":           {"PUT", maps + "/c", merge, `{}`, "BadBody/MediaType"},
		"cbor apply":             {"PATCH", maps + "/c", "application/apply-patch+cbor", `{}`, "BadBody/MediaType"},
		"json patch":             {"PATCH", maps + "/c", "application/json-patch+json", `[{"op":"remove","path":"/data"}]`, "patch shop:configmaps. c"},
		"json patch, not a list": {"PATCH", maps + "/c", "application/json-patch+json", `{}`, "patch shop:configmaps. c"},
		"merge patch":            {"PATCH", maps + "/c", merge, `{"metadata":{"name":"other"}}`, "patch shop:configmaps. c"},
		"list as object":         {"POST", maps, json, `[]`, "BadBody/Shape"},
		"apply":                  {"PATCH", maps + "/c", apply, `{"metadata":{"name":"c"}}`, "patch shop:configmaps. c creates"},
		"apply status":           {"PATCH", maps + "/c/status", apply, `{"metadata":{"name":"c"}}`, "patch shop:configmaps/status. c"},
		"put without uid":        {"PUT", maps + "/c", json, `{"metadata":{"name":"c","resourceVersion":"1"}}`, "update shop:configmaps. c creates"},
		"put with uid":           {"PUT", maps + "/c", json, `{"metadata":{"name":"c","uid":"u"}}`, "update shop:configmaps. c"},
		"put with empty uid":     {"PUT", maps + "/c", json, `{"metadata":{"name":"c","uid":""}}`, "update shop:configmaps. c creates"},
		"other namespace":        {"POST", maps, json, `{"metadata":{"namespace":"bank"}}`, "BadBody/PathBodyMismatch"},
		"other name":             {"PUT", maps + "/c", json, `{"metadata":{"name":"d"}}`, "BadBody/PathBodyMismatch"},
		"apply other name":       {"PATCH", maps + "/c", apply, `{"metadata":{"name":"d"}}`, "BadBody/PathBodyMismatch"},
		"namespace of a node":    {"POST", "/api/v1/nodes", json, `{"metadata":{"namespace":"bank"}}`, "BadBody/PathBodyMismatch"},
		"create a namespace":     {"POST", "/api/v1/namespaces", json, `{"metadata":{"name":"new"}}`, "create :namespaces. "},
		"duplicate":              {"POST", maps, json, `{"a":1,"a":2}`, "BadBody/Duplicate"},
		"duplicate, deep":        {"POST", maps, json, `{"a":{"b":{"c":{"d":[{"e":1,"e":2}]}}}}`, "BadBody/Duplicate"},
		"duplicate in yaml":      {"POST", maps, "application/yaml", "a: 1\na: 2\n", "BadBody/Syntax"},
		"two documents":          {"POST", maps, json, `{}{}`, "BadBody/Syntax"},
		"not json":               {"POST", maps, json, `{"a":`, "BadBody/Syntax"},
		"deep":                   {"POST", maps, json, deep, "BadBody/Syntax"},
		"alias bomb":             {"POST", maps, "application/yaml", bomb, "BadBody/Syntax"},
		"body of a get":          {"GET", maps, json, `{}`, "BadBody/Unexpected"},
		"token secret":           {"POST", "/api/v1/namespaces/shop/secrets", json, `{"type":"kubernetes.io/service-account-token"}`, "create shop:secrets.  token"},
		"token secret, yaml":     {"PATCH", "/api/v1/namespaces/shop/secrets/s", apply, "type: kubernetes.io/service-account-token", "patch shop:secrets. s creates token"},
		"plain secret":           {"POST", "/api/v1/namespaces/shop/secrets", json, `{"type":"Opaque"}`, "create shop:secrets. "},

		"pod":                {"POST", pods, json, `{"spec":{"containers":[{"name":"c"}]}}`, "create shop:pods. "},
		"service account":    {"POST", pods, json, `{"spec":{"serviceAccountName":"broker"}}`, "create shop:pods.  as:broker"},
		"its old name":       {"POST", pods, json, `{"spec":{"serviceAccount":"broker"}}`, "create shop:pods.  as:broker"},
		"hostNetwork":        {"POST", pods, json, `{"spec":{"hostNetwork":true}}`, "create shop:pods.  host:hostNetwork"},
		"hostPID":            {"POST", pods, json, `{"spec":{"hostPID":true}}`, "create shop:pods.  host:hostPID"},
		"hostIPC":            {"POST", pods, json, `{"spec":{"hostIPC":true}}`, "create shop:pods.  host:hostIPC"},
		"hostPath":           {"POST", pods, json, `{"spec":{"volumes":[{"emptyDir":{}},{"hostPath":{"path":"/"}}]}}`, "create shop:pods.  host:hostPath"},
		"privileged":         {"POST", pods, json, `{"spec":{"containers":[{"securityContext":{"privileged":true}}]}}`, "create shop:pods.  host:privileged"},
		"privileged init":    {"POST", pods, json, `{"spec":{"initContainers":[{"securityContext":{"privileged":true}}]}}`, "create shop:pods.  host:privileged"},
		"host process":       {"POST", pods, json, `{"spec":{"securityContext":{"windowsOptions":{"hostProcess":true}}}}`, "create shop:pods.  host:hostProcess"},
		"debug container":    {"PATCH", pods + "/p/ephemeralcontainers", "application/strategic-merge-patch+json", `{"spec":{"ephemeralContainers":[{"securityContext":{"privileged":true}}]}}`, "patch shop:pods/ephemeralcontainers. p host:privileged"},
		"template":           {"POST", "/apis/apps/v1/namespaces/shop/deployments", json, `{"spec":{"template":{"spec":{"hostPID":true}}}}`, "create shop:deployments.apps  host:hostPID"},
		"cron job":           {"POST", "/apis/batch/v1/namespaces/shop/cronjobs", json, `{"spec":{"jobTemplate":{"spec":{"template":{"spec":{"hostPID":true}}}}}}`, "create shop:cronjobs.batch  host:hostPID"},
		"patch of a pod":     {"PATCH", "/apis/apps/v1/namespaces/shop/deployments/d", merge, `{"spec":{"template":{"spec":{"hostPID":true}}}}`, "patch shop:deployments.apps d host:hostPID"},
		"scale is no pod":    {"PUT", "/apis/apps/v1/namespaces/shop/deployments/d/scale", json, `{"spec":{"replicas":2}}`, "update shop:deployments/scale.apps d"},
		"wrong shapes":       {"POST", pods, json, `{"spec":[],"metadata":7}`, "create shop:pods. "},
		"wrong shapes below": {"POST", pods, json, `{"spec":{"volumes":{},"containers":[1],"securityContext":[]}}`, "create shop:pods. "},
	} {
		headers := map[string]string{}
		if row.media != "" {
			headers["Content-Type"] = row.media
		}
		start := time.Now()
		if got := meaning(parse(t, row.method, row.target, headers, row.body)); got != row.want {
			t.Errorf("%s:\n got %s\nwant %s", name, got, row.want)
		}
		if took := time.Since(start); took > time.Second {
			t.Errorf("%s: took %v", name, took)
		}
	}
}

// TestDeleteOptions: the API server reads the query only if there is no body.
func TestDeleteOptions(t *testing.T) {
	const pod = "/api/v1/namespaces/shop/pods/web-0"
	for _, row := range []struct{ query, body, want, uri string }{
		{"", `{"kind":"DeleteOptions","apiVersion":"v1"}`, "delete shop:pods. web-0", ""},
		{"", `{"dryRun":["All"]}`, "delete shop:pods. web-0 dry", ""},
		{"dryRun=All", "", "delete shop:pods. web-0 dry", "?dryRun=All"},
		{"dryRun=All", `{"kind":"DeleteOptions","apiVersion":"v1"}`, "BadQuery/DeleteOptions", ""},
		{"dryRun=All", `{"dryRun":["All"]}`, "delete shop:pods. web-0 dry", ""},
		{"dryRun=All", `{"dryRun":[]}`, "BadQuery/DeleteOptions", ""},
		{"propagationPolicy=Orphan", `{"propagationPolicy":"Foreground"}`, "BadQuery/DeleteOptions", ""},
		{"propagationPolicy=Orphan", `{"propagationPolicy":"Orphan"}`, "delete shop:pods. web-0", ""},
		{"gracePeriodSeconds=0", `{"gracePeriodSeconds":30}`, "BadQuery/DeleteOptions", ""},
		{"gracePeriodSeconds=0&pretty=true", `{"gracePeriodSeconds":0,"preconditions":{"uid":"u"}}`, "delete shop:pods. web-0", "?pretty=true"},
		{"", `{"dryRun":["Some"]}`, "BadBody/DeleteOptions", ""},
		{"", `{"dryRun":"All"}`, "BadBody/DeleteOptions", ""},
		{"", `{"gracePeriodSeconds":"0"}`, "BadBody/DeleteOptions", ""},
		{"", `{"ignoreStoreReadErrorWithClusterBreakingPotential":true}`, "BadBody/DeleteOptions", ""},
		{"", `{"later":1}`, "BadBody/DeleteOptions", ""},
		{"", `[]`, "BadBody/DeleteOptions", ""},
	} {
		target := pod
		if row.query != "" {
			target += "?" + row.query
		}
		p, refusal := parse(t, "DELETE", target, map[string]string{"Content-Type": "application/json"}, row.body)
		if got := meaning(p, refusal); got != row.want {
			t.Errorf("%s with %s: got %s, want %s", row.query, row.body, got, row.want)
		}
		if refusal == nil && p.URI() != pod+row.uri {
			t.Errorf("%s with %s: forwards %s", row.query, row.body, p.URI())
		}
	}
}

func TestProtobuf(t *testing.T) {
	encode := func(object apiruntime.Object) string {
		var buffer bytes.Buffer
		if err := protobuf.NewSerializer(scheme.Scheme, scheme.Scheme).Encode(object, &buffer); err != nil {
			t.Fatal(err)
		}
		return buffer.String()
	}
	secret := &corev1.Secret{TypeMeta: metav1.TypeMeta{Kind: "Secret", APIVersion: "v1"}, Type: corev1.SecretTypeServiceAccountToken}
	pod := &corev1.Pod{TypeMeta: metav1.TypeMeta{Kind: "Pod", APIVersion: "v1"}, Spec: corev1.PodSpec{HostNetwork: true}}
	options := &metav1.DeleteOptions{TypeMeta: metav1.TypeMeta{Kind: "DeleteOptions", APIVersion: "v1"}, DryRun: []string{"All"}}
	for _, row := range []struct{ method, target, body, want string }{
		{"POST", "/api/v1/namespaces/shop/secrets", encode(secret), "create shop:secrets.  token"},
		{"POST", "/api/v1/namespaces/shop/pods", encode(pod), "create shop:pods.  host:hostNetwork"},
		{"DELETE", "/api/v1/namespaces/shop/pods/p", encode(options), "delete shop:pods. p dry"},
		{"POST", "/api/v1/namespaces/shop/pods", "k8s\x00garbage", "BadBody/Syntax"},
		{"POST", "/api/v1/namespaces/shop/pods", "{}", "BadBody/Syntax"},
	} {
		p, refusal := parse(t, row.method, row.target, map[string]string{"Content-Type": "application/vnd.kubernetes.protobuf"}, row.body)
		if got := meaning(p, refusal); got != row.want {
			t.Errorf("%s: got %s, want %s", row.target, got, row.want)
		}
		if refusal == nil && string(p.Body) != row.body {
			t.Error("the bytes that are forwarded are not the bytes that were judged")
		}
	}
}

func TestBodySize(t *testing.T) {
	fits := `{"a":"` + strings.Repeat("x", request.MaxBody-8) + `"}`
	headers := map[string]string{"Content-Type": "application/json"}
	if p, refusal := parse(t, "POST", "/api/v1/namespaces/shop/configmaps", headers, fits); refusal != nil || len(p.Body) != request.MaxBody {
		t.Errorf("a body of exactly the limit: %v", refusal)
	}
	if _, refusal := parse(t, "POST", "/api/v1/namespaces/shop/configmaps", headers, fits+" "); refusal == nil || refusal.Status != 413 {
		t.Errorf("one byte more: %v", refusal)
	}
	chunked := "POST /api/v1/namespaces/shop/configmaps HTTP/1.1\r\nHost: b\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n" +
		fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(fits)+1, fits+" ")
	r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(chunked)))
	if err != nil {
		t.Fatal(err)
	}
	if _, refusal := request.NewParser().Parse(r); refusal == nil || refusal.Status != 413 {
		t.Errorf("chunked, one byte more: %v", refusal)
	}
}

// TestBombsStaySmall: hostile bodies cost little memory.
func TestBombsStaySmall(t *testing.T) {
	deep := strings.Repeat("[", 3<<20)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for _, media := range []string{"application/json", "application/yaml"} {
		if _, refusal := parse(t, "POST", "/api/v1/pods", map[string]string{"Content-Type": media}, deep[:request.MaxBody]); refusal == nil {
			t.Errorf("%s: taken", media)
		}
	}
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapInuse) - int64(before.HeapInuse); grown > 64<<20 {
		t.Errorf("the heap grew by %d MiB", grown>>20)
	}
}

func TestNarrow(t *testing.T) {
	p, _ := parse(t, "GET", "/api/v1/pods?fieldSelector=spec.nodeName%3Dn1&limit=5", nil, "")
	p.Narrow("metadata.namespace!=spire")
	if got, want := p.URI(), "/api/v1/pods?fieldSelector=spec.nodeName%3Dn1%2Cmetadata.namespace%21%3Dspire&limit=5"; got != want {
		t.Errorf("got %s", got)
	}
}

func TestHostAndServerName(t *testing.T) {
	for host, want := range map[string]int{"broker.svc": 0, "broker.svc:8443": 0, "evil.com": 421, "broker.svc.evil.com": 421, "": 421} {
		r := &http.Request{Method: "GET", RequestURI: "/version", Host: host, TLS: &tls.ConnectionState{ServerName: "broker.svc"}}
		status := 0
		if _, refusal := request.NewParser().Parse(r); refusal != nil {
			status = refusal.Status
		}
		if status != want {
			t.Errorf("host %q: got %d, want %d", host, status, want)
		}
	}
}
