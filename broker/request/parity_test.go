package request

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	apirequest "k8s.io/apiserver/pkg/endpoints/request"

	"github.com/taskgate/taskgate/authz"
)

// TestParametersAreThoseOfTheAPI compares the tables with the option types of
// this version of Kubernetes, so that a new option is a decision and not an
// accident.
func TestParametersAreThoseOfTheAPI(t *testing.T) {
	refused := sets.New("insecureSkipTLSVerifyBackend", "ignoreStoreReadErrorWithClusterBreakingPotential", "shardSelector", "preconditions")
	tables := tables()
	for _, row := range []struct {
		kind    kind
		options any
	}{
		{kind{verb: authz.Get}, metav1.GetOptions{}},
		{kind{verb: authz.Get}, metav1.TableOptions{}},
		{kind{verb: authz.Get, log: true}, corev1.PodLogOptions{}},
		{kind{verb: authz.List}, metav1.ListOptions{}},
		{kind{verb: authz.Watch}, metav1.ListOptions{}},
		{kind{verb: authz.Create}, metav1.CreateOptions{}},
		{kind{verb: authz.Update}, metav1.UpdateOptions{}},
		{kind{verb: authz.Patch}, metav1.PatchOptions{}},
		{kind{verb: authz.Delete}, metav1.DeleteOptions{}},
		{kind{verb: authz.DeleteCollection}, metav1.DeleteOptions{}},
	} {
		options := reflect.TypeOf(row.options)
		for i := range options.NumField() {
			name, _, _ := strings.Cut(options.Field(i).Tag.Get("json"), ",")
			if name == "" || name == "-" {
				continue
			}
			_, known := tables[row.kind][name]
			if known == refused.Has(name) {
				t.Errorf("%s of %s: known is %v, refused on purpose is %v", name, options.Name(), known, refused.Has(name))
			}
		}
	}
}

// FuzzParse: whatever target and method arrive, a request that is not refused is
// read by the API server's own code, from what is forwarded, as the same call.
func FuzzParse(f *testing.F) {
	for _, target := range []string{
		"/api/v1/namespaces/shop/pods/web-0/log?follow=true", "/apis/apps/v1/deployments?watch=1", "/api/v1/namespaces/a/finalize",
		"/apis/g/v1/namespaces/ns-a/crs/x/status?timeout=1s", "/api/v1/pods?fieldSelector=metadata.name%3Dx", "/version", "/apis/apps",
		"/api/v1/watch/pods", "/%61pi/v1/pods", "//api", "/api/v1/pods/..", "/api/v1/nodes/n/proxy/x", "/?watch=1;a", "/api/v1/pods?dryRun=All&dryRun=",
	} {
		f.Add("GET", target)
		f.Add("DELETE", target)
	}
	parser := NewParser()
	server := &apirequest.RequestInfoFactory{APIPrefixes: sets.NewString("api", "apis"), GrouplessAPIPrefixes: sets.NewString("api")}
	f.Fuzz(func(t *testing.T, method, target string) {
		r := &http.Request{Method: method, RequestURI: target, Header: http.Header{}, Body: http.NoBody}
		parsed, refusal := parser.Parse(r)
		if refusal != nil {
			if refusal.Reason == "" || refusal.Status < 400 || refusal.Text == "" {
				t.Errorf("a refusal that says nothing: %+v", refusal)
			}
			return
		}
		forwarded, err := url.ParseRequestURI(parsed.URI())
		if err != nil {
			t.Fatalf("forwards %q: %v", parsed.URI(), err)
		}
		info, err := server.NewRequestInfo(httptest.NewRequest(method, forwarded.String(), nil))
		if err != nil {
			t.Fatalf("the API server cannot read %q: %v", parsed.URI(), err)
		}
		if again := callOf(info); again != parsed.Call {
			t.Errorf("decided about %+v, the API server would see %+v in %s", parsed.Call, again, parsed.URI())
		}
		if raw, _, _ := strings.Cut(target, "?"); forwarded.EscapedPath() != raw {
			t.Errorf("the path %q is forwarded as %q", raw, forwarded.EscapedPath())
		}
	})
}
