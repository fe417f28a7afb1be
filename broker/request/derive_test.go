package request

import (
	"net/http"
	"strings"
	"testing"
)

func parsed(t *testing.T, method, target, media, body string) *Request {
	t.Helper()
	q, err := http.NewRequest(method, "https://broker"+target, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	q.RequestURI = target
	if body == "" {
		q.Body = http.NoBody
	} else {
		q.Header.Set("Content-Type", media)
	}
	r, refusal := NewParser().Parse(q)
	if refusal != nil {
		t.Fatalf("%s %s: %s", method, target, refusal.Text)
	}
	return r
}

func TestAsDryRun(t *testing.T) {
	for _, row := range []struct{ name, method, target, media, body, wantQuery, wantBody string }{
		{"a create", "POST", "/api/v1/namespaces/shop/configmaps?fieldManager=kubectl", typeJSON, `{"metadata":{"name":"a"}}`, "dryRun=All&fieldManager=kubectl", `{"metadata":{"name":"a"}}`},
		{"a delete without a body", "DELETE", "/api/v1/namespaces/shop?gracePeriodSeconds=5", "", "", "dryRun=All&gracePeriodSeconds=5", ""},
		{"a delete with a body", "DELETE", "/api/v1/namespaces/shop", typeJSON, `{"propagationPolicy":"Foreground"}`, "", `{"dryRun":["All"],"propagationPolicy":"Foreground"}`},
		{"a dry run", "DELETE", "/api/v1/namespaces/shop?dryRun=All", "", "", "dryRun=All", ""},
	} {
		r := parsed(t, row.method, row.target, row.media, row.body)
		before, query := string(r.Body), r.Query()
		dry, err := r.AsDryRun()
		if err != nil || dry.Query() != row.wantQuery || string(dry.Body) != row.wantBody || !dry.DryRun {
			t.Errorf("%s: got %q %q %v", row.name, dry.Query(), dry.Body, err)
		}
		if string(r.Body) != before || r.Query() != query {
			t.Errorf("%s: the request itself was changed", row.name)
		}
	}
}

// TestBindTarget shows H-67: what is deleted is what was looked at, and options of
// the query, which the API server does not read beside a body, are kept.
func TestBindTarget(t *testing.T) {
	for _, row := range []struct{ name, method, target, media, body, version, wantQuery, wantBody string }{
		{"no body", "DELETE", "/api/v1/namespaces/shop", "", "", "", "", `{"preconditions":{"uid":"u-1"}}`},
		{"options in the query", "DELETE", "/api/v1/namespaces/shop?gracePeriodSeconds=5&orphanDependents=True&dryRun=All&pretty=true", "", "", "", "pretty=true", `{"dryRun":["All"],"gracePeriodSeconds":5,"orphanDependents":true,"preconditions":{"uid":"u-1"}}`},
		{"options in the body", "DELETE", "/api/v1/namespaces/shop", typeYAML, "propagationPolicy: Foreground\n", "7", "", `{"preconditions":{"resourceVersion":"7","uid":"u-1"},"propagationPolicy":"Foreground"}`},
		{"what the agent demands stays", "DELETE", "/api/v1/namespaces/shop", typeJSON, `{"preconditions":{"uid":"other"}}`, "", "", `{"preconditions":{"uid":"other"}}`},
		{"not a delete", "PUT", "/api/v1/namespaces/shop/finalize", typeJSON, `{"metadata":{"name":"shop"}}`, "", "", `{"metadata":{"name":"shop"}}`},
	} {
		r := parsed(t, row.method, row.target, row.media, row.body)
		if err := r.BindTarget("u-1", row.version); err != nil || r.Query() != row.wantQuery || string(r.Body) != row.wantBody {
			t.Errorf("%s: got %q %s %v", row.name, r.Query(), r.Body, err)
		}
	}
}

func TestObjectPath(t *testing.T) {
	for _, row := range []struct{ method, target, body, wantPath, wantName string }{
		{"DELETE", "/api/v1/namespaces/shop", "", "/api/v1/namespaces/shop", "shop"},
		{"PUT", "/api/v1/namespaces/shop/finalize", `{"metadata":{"name":"shop"}}`, "/api/v1/namespaces/shop", "shop"},
		{"PUT", "/apis/apps/v1/namespaces/shop/deployments/scale/scale", `{"metadata":{"name":"scale"}}`, "/apis/apps/v1/namespaces/shop/deployments/scale", "scale"},
		{"POST", "/api/v1/namespaces/shop/configmaps", `{"metadata":{"name":"a"}}`, "", "a"},
		{"POST", "/api/v1/namespaces/shop/configmaps", `{"metadata":{"generateName":"a-"}}`, "", ""},
		{"GET", "/api/v1/namespaces/shop/secrets?fieldSelector=metadata.name=a&watch=true", "", "", "a"},
		{"DELETE", "/api/v1/namespaces/shop/pods?labelSelector=a=b", "", "", ""},
	} {
		r := parsed(t, row.method, row.target, typeJSON, row.body)
		if r.ObjectPath() != row.wantPath || r.ObjectName() != row.wantName {
			t.Errorf("%s %s: got %q %q", row.method, row.target, r.ObjectPath(), r.ObjectName())
		}
	}
}
