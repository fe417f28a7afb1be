package e2e_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/url"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"
)

// served is one resource or subresource of the cluster.
type served struct {
	metav1.APIResource
	groupVersion          schema.GroupVersion
	resource, subresource string // the parts of its name
}

// discover lists everything the cluster serves, subresources included.
func (s *stack) discover(t testing.TB) []served {
	t.Helper()
	_, lists, err := s.kube.Discovery().ServerGroupsAndResources()
	if err != nil {
		t.Fatal(err)
	}
	var all []served
	for _, list := range lists {
		groupVersion, err := schema.ParseGroupVersion(list.GroupVersion)
		if err != nil {
			t.Fatal(err)
		}
		for _, resource := range list.APIResources {
			name, subresource, _ := strings.Cut(resource.Name, "/")
			all = append(all, served{resource, groupVersion, name, subresource})
		}
	}
	slices.SortFunc(all, func(a, b served) int { return strings.Compare(a.String(), b.String()) })
	return all
}

func (s served) String() string { return s.groupVersion.String() + " " + s.Name }

// path is where an object, or without a name the collection, lies.
func (s served) path(namespace, name string) string {
	path := "/apis/" + s.groupVersion.String()
	if s.groupVersion.Group == "" {
		path = "/api/" + s.groupVersion.Version
	}
	if s.Namespaced && namespace != "" {
		path += "/namespaces/" + namespace
	}
	path += "/" + s.resource
	if name != "" {
		path += "/" + name
	}
	if s.subresource != "" {
		path += "/" + s.subresource
	}
	return path
}

// call is one that an agent sends, and what it means.
type call struct {
	method, target, mediaType, body string
	what                            string // of the served resource, for messages
}

// requests makes well-formed requests of every kind. None of them changes
// anything: what could is a dry run.
type requests struct {
	*rand.Rand
	served []served
}

var (
	requestNamespaces = []string{"audit-a", "audit-b", "default"}
	requestNames      = []string{"x", "web-0", "settings", "kwok-0", "audit-a", "system:node", "a.b.c", "0"}
)

func pick[T any](r *rand.Rand, from []T) T { return from[r.IntN(len(from))] }

func (r *requests) next() call {
	if r.IntN(40) == 0 {
		return call{method: "GET", target: pick(r.Rand, []string{"/version", "/api", "/apis", "/api/v1", "/apis/apps/v1", "/openapi/v3", "/openapi/v3/api/v1"}), what: "discovery"}
	}
	s := pick(r.Rand, r.served)
	namespace := ""
	if s.Namespaced && (s.subresource != "" || r.IntN(8) > 0) {
		namespace = pick(r.Rand, requestNamespaces)
	}
	name := pick(r.Rand, requestNames)
	method := pick(r.Rand, []string{"GET", "GET", "GET", "POST", "PUT", "PATCH", "DELETE"})
	if s.subresource == "" && (method == "POST" || method != "PUT" && method != "PATCH" && r.IntN(2) == 0) {
		name = ""
	}
	if s.Name == "pods/log" {
		method = "GET" // no other takes any parameter
	}
	q := call{method: method, what: s.String()}
	query := r.query(method, name == "", s)
	switch method {
	case "POST", "PUT":
		q.mediaType, q.body = r.object(s, namespace, name)
		if s.String() == "v1 configmaps" && r.IntN(8) == 0 {
			q.mediaType, q.body = "application/vnd.kubernetes.protobuf", protobufOf(name, namespace)
		}
	case "PATCH":
		q.mediaType, q.body = r.patch(s, namespace, name)
		if q.mediaType == "application/apply-patch+yaml" {
			query.Set("fieldManager", "fuzz")
		}
	case "DELETE":
		if r.IntN(2) == 0 {
			q.mediaType, q.body = "application/json", `{"kind":"DeleteOptions","apiVersion":"v1","dryRun":["All"]}`
			query.Del("dryRun")
		}
	}
	q.target = s.path(namespace, name)
	if encoded := query.Encode(); encoded != "" {
		q.target += "?" + encoded
	}
	return q
}

// query adds parameters the call can carry.
func (r *requests) query(method string, collection bool, s served) url.Values {
	query := url.Values{}
	maybe := func(name string, values ...string) {
		if r.IntN(5) == 0 {
			query.Set(name, pick(r.Rand, values))
		}
	}
	maybe("pretty", "true", "false")
	if slices.Contains([]string{"exec", "attach", "portforward", "proxy"}, s.subresource) {
		return query // they take parameters of their own
	}
	lists := func() {
		maybe("labelSelector", "app=web", "a in (b,c)", "!x", "")
		maybe("fieldSelector", "metadata.name=settings", "metadata.namespace=audit-a", "metadata.name!=x", "metadata.name=x,metadata.namespace=audit-b")
		maybe("limit", "1", "500")
		maybe("resourceVersion", "0", "1")
	}
	switch {
	case method == "GET" && collection:
		lists()
		if r.IntN(30) == 0 { // each takes its second
			query.Set("watch", pick(r.Rand, []string{"true", "1", "True"}))
			query.Set("timeoutSeconds", "1")
		} else {
			maybe("watch", "false", "0")
		}
	case method == "GET" && s.Name == "pods/log":
		maybe("tailLines", "1")
		maybe("container", "web")
		maybe("timestamps", "true")
	case method == "GET":
		maybe("resourceVersion", "0")
	case method == "DELETE":
		if collection {
			lists()
		}
		query.Set("dryRun", "All")
	default:
		maybe("fieldManager", "fuzz")
		maybe("fieldValidation", "Strict", "Warn", "Ignore")
		query.Set("dryRun", "All")
	}
	return query
}

// object is a body that names what the path names.
func (r *requests) object(s served, namespace, name string) (mediaType, body string) {
	kind, groupVersion := s.Kind, s.groupVersion
	if s.Group != "" {
		groupVersion.Group = s.Group
	}
	if s.Version != "" {
		groupVersion.Version = s.Version
	}
	metadata := map[string]any{}
	if name == "" {
		name = "made-" + fmt.Sprint(r.IntN(1000))
	}
	metadata["name"] = name
	if namespace != "" && r.IntN(2) == 0 {
		metadata["namespace"] = namespace
	}
	if r.IntN(2) == 0 {
		metadata["labels"] = map[string]any{"a": "b"}
	}
	object := map[string]any{"apiVersion": groupVersion.String(), "kind": kind, "metadata": metadata}
	if r.IntN(3) == 0 {
		object["spec"] = map[string]any{"replicas": r.IntN(3)}
	}
	encoded, err := json.Marshal(object)
	if err != nil {
		panic(err) // plain values always encode
	}
	if r.IntN(3) == 0 {
		if converted, err := yaml.JSONToYAML(encoded); err == nil {
			return "application/yaml", string(converted)
		}
	}
	return "application/json", string(encoded)
}

func protobufOf(name, namespace string) string {
	var buffer bytes.Buffer
	object := &corev1.ConfigMap{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"}, ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace}}
	if err := protobuf.NewSerializer(scheme.Scheme, scheme.Scheme).Encode(object, &buffer); err != nil {
		panic(err) // a known kind always encodes
	}
	return buffer.String()
}

func (r *requests) patch(s served, namespace, name string) (mediaType, body string) {
	switch r.IntN(4) {
	case 0:
		return "application/json-patch+json", `[{"op":"add","path":"/metadata/labels","value":{"a":"b"}}]`
	case 1:
		return "application/merge-patch+json", `{"metadata":{"labels":{"a":"b"}}}`
	case 2:
		return "application/strategic-merge-patch+json", `{"metadata":{"annotations":{"a":"b"}}}`
	}
	_, body = r.object(s, namespace, name)
	return "application/apply-patch+yaml", body
}
