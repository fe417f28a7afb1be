package e2e_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	applycorev1 "k8s.io/client-go/applyconfigurations/core/v1"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/util/retry"
)

// story is what a program saw, for comparison.
type story struct{ strings.Builder }

// tell adds what a call answered: the object or what is wrong.
func (s *story) tell(what string, object any, err error) {
	var status apierrors.APIStatus
	if errors.As(err, &status) {
		object = status.Status()
	} else if err != nil {
		object = err.Error()
	}
	encoded, encodeErr := json.MarshalIndent(object, "", " ")
	fmt.Fprintf(s, "%s: %s %v\n", what, encoded, encodeErr)
}

// TestParityOfClients runs programs written with client-go on both sides.
func TestParityOfClients(t *testing.T) {
	programs := []program{
		{"typed", typedClient, `"reason": "Conflict"`},
		{"protobuf", protobufClient, `"reason": "AlreadyExists"`},
		{"dynamic", dynamicClient, "UnsupportedMediaType"},
		{"metadata", metadataClient, `"a": "b"`},
		{"discovery", discoveryClient, "deployments"},
		{"terminating", terminatingNamespace, "NamespaceTerminating"},
		{"large", largeList, "1200 objects in pages"},
		{"gzip", compressedList, "gzip"},
		{"etag", unchangedOpenAPI, "304"},
	}
	sharedStack(t).apply(t, parityDefinition)
	for _, program := range programs {
		t.Run(program.name, func(t *testing.T) {
			t.Parallel()
			program.compare(t)
		})
	}
}

// program is written with client-go, and tells a story that has to hold what it
// says.
type program struct {
	name string
	run  func(ctx context.Context, s *side, seen *story)
	says string
}

func (p *program) compare(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	told := both(sides(t, p.name), func(s *side) string {
		var seen story
		p.run(ctx, s, &seen)
		return normal(s.anyNamespace(seen.String()))
	})
	for i, name := range []string{"direct", "agent"} {
		if !strings.Contains(told[i], p.says) {
			t.Errorf("%s: it does not say %q: %.3000s", name, p.says, told[i])
		}
	}
	same(t, p.name, told)
}

func typedClient(ctx context.Context, s *side, seen *story) {
	useClient(ctx, kubernetes.NewForConfigOrDie(s.config), s.namespace, seen)
}

func protobufClient(ctx context.Context, s *side, seen *story) {
	config := rest.CopyConfig(s.config)
	config.ContentType, config.AcceptContentTypes = runtime.ContentTypeProtobuf, runtime.ContentTypeProtobuf
	useClient(ctx, kubernetes.NewForConfigOrDie(config), s.namespace, seen)
}

// useClient is a life of a config map, with all that can go wrong.
func useClient(ctx context.Context, client kubernetes.Interface, namespace string, seen *story) {
	maps := client.CoreV1().ConfigMaps(namespace)
	made, err := maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "a"}, Data: map[string]string{"n": "1"}, BinaryData: map[string][]byte{"b": {0, 255}}}, metav1.CreateOptions{})
	seen.tell("create", made, err)
	_, err = maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "a"}}, metav1.CreateOptions{})
	seen.tell("create again", nil, err)
	_, err = maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "no/name"}}, metav1.CreateOptions{})
	seen.tell("create invalid", nil, err)
	named, err := maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{GenerateName: "gen-"}}, metav1.CreateOptions{DryRun: []string{"All"}})
	seen.tell("create with a generated name", len(named.Name), err)
	stale := made.DeepCopy()
	made.Data["n"] = "2"
	updated, err := maps.Update(ctx, made, metav1.UpdateOptions{FieldManager: "parity"})
	seen.tell("update", updated, err)
	_, err = maps.Update(ctx, stale, metav1.UpdateOptions{})
	seen.tell("update of what is stale", nil, err)
	first := true
	err = retry.RetryOnConflict(retry.DefaultRetry, func() error {
		object := stale.DeepCopy()
		if !first {
			var err error
			if object, err = maps.Get(ctx, "a", metav1.GetOptions{}); err != nil {
				return err
			}
		}
		first, object.Data["n"] = false, "3"
		_, err := maps.Update(ctx, object, metav1.UpdateOptions{})
		return err
	})
	seen.tell("update with retries", first, err)
	patched, err := maps.Patch(ctx, "a", types.JSONPatchType, []byte(`[{"op":"add","path":"/data/j","value":"1"}]`), metav1.PatchOptions{})
	seen.tell("json patch", patched, err)
	patched, err = maps.Patch(ctx, "a", types.MergePatchType, []byte(`{"data":{"j":null}}`), metav1.PatchOptions{})
	seen.tell("merge patch", patched, err)
	patched, err = maps.Patch(ctx, "a", types.StrategicMergePatchType, []byte(`{"data":{"s":"1"}}`), metav1.PatchOptions{})
	seen.tell("strategic merge patch", patched, err)
	wanted := applycorev1.ConfigMap("a", namespace).WithData(map[string]string{"n": "4"})
	_, err = maps.Apply(ctx, wanted, metav1.ApplyOptions{FieldManager: "applier"})
	seen.tell("apply with a conflict", nil, err)
	applied, err := maps.Apply(ctx, wanted, metav1.ApplyOptions{FieldManager: "applier", Force: true})
	seen.tell("apply", applied, err)
	list, err := maps.List(ctx, metav1.ListOptions{FieldSelector: "metadata.name=a"})
	seen.tell("list", list, err)
	err = maps.Delete(ctx, "a", *metav1.NewPreconditionDeleteOptions("00000000-0000-0000-0000-000000000000"))
	seen.tell("delete of another", nil, err)
	seen.tell("delete", nil, maps.Delete(ctx, "a", *metav1.NewPreconditionDeleteOptions(string(applied.UID))))
	_, err = maps.Get(ctx, "a", metav1.GetOptions{})
	seen.tell("get of what is gone", nil, err)
	err = maps.DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "none=such"})
	seen.tell("delete a collection", nil, err)
}

var crates = schema.GroupVersionResource{Group: "parity.example.org", Version: "v1", Resource: "crates"}

func dynamicClient(ctx context.Context, s *side, seen *story) {
	client := dynamic.NewForConfigOrDie(s.config).Resource(crates).Namespace(s.namespace)
	object := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "parity.example.org/v1", "kind": "Crate", "metadata": map[string]any{"name": "a"}, "spec": map[string]any{"weight": int64(1)}}}
	made, err := client.Create(ctx, object, metav1.CreateOptions{})
	seen.tell("create", made, err)
	_ = unstructured.SetNestedField(made.Object, "yes", "status", "full")
	full, err := client.UpdateStatus(ctx, made, metav1.UpdateOptions{})
	seen.tell("update status", full, err)
	_, err = client.Patch(ctx, "a", types.StrategicMergePatchType, []byte(`{}`), metav1.PatchOptions{})
	seen.tell("patch", nil, err)
	applied, err := client.Apply(ctx, "a", object, metav1.ApplyOptions{FieldManager: "applier", Force: true})
	seen.tell("apply", applied, err)
	scale, err := client.Get(ctx, "a", metav1.GetOptions{}, "scale")
	seen.tell("scale", scale, err)
	list, err := client.List(ctx, metav1.ListOptions{FieldSelector: "spec.weight=1"})
	seen.tell("list", list, err)
	seen.tell("delete collection", nil, client.DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}))
	_, err = client.Get(ctx, "a", metav1.GetOptions{})
	seen.tell("get", nil, err)
}

func metadataClient(ctx context.Context, s *side, seen *story) {
	client := metadata.NewForConfigOrDie(s.config).Resource(corev1.SchemeGroupVersion.WithResource("configmaps")).Namespace(s.namespace)
	_, err := s.kube.CoreV1().ConfigMaps(s.namespace).Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "a"}, Data: map[string]string{"n": "1"}}, metav1.CreateOptions{})
	seen.tell("prepare", nil, err)
	got, err := client.Get(ctx, "a", metav1.GetOptions{})
	seen.tell("get", got, err)
	list, err := client.List(ctx, metav1.ListOptions{FieldSelector: "metadata.name=a"})
	seen.tell("list", list, err)
	patched, err := client.Patch(ctx, "a", types.MergePatchType, []byte(`{"metadata":{"labels":{"a":"b"}}}`), metav1.PatchOptions{})
	seen.tell("patch", patched, err)
	seen.tell("delete", nil, client.Delete(ctx, "a", metav1.DeleteOptions{}))
}

// byVersion sorts what client-go collects in a map.
func byVersion(lists []*metav1.APIResourceList) []*metav1.APIResourceList {
	for _, list := range lists {
		slices.SortFunc(list.APIResources, func(a, b metav1.APIResource) int { return strings.Compare(a.Name, b.Name) })
	}
	slices.SortFunc(lists, func(a, b *metav1.APIResourceList) int { return strings.Compare(a.GroupVersion, b.GroupVersion) })
	return lists
}

func discoveryClient(_ context.Context, s *side, seen *story) {
	client := kubernetes.NewForConfigOrDie(s.config).Discovery()
	groups, resources, err := client.ServerGroupsAndResources()
	seen.tell("groups", groups, err)
	seen.tell("aggregated", byVersion(resources), err)
	version, err := client.ServerVersion()
	seen.tell("version", version, err)
	preferred, err := client.WithLegacy().ServerPreferredResources()
	seen.tell("one by one", byVersion(preferred), err)
	cached := memory.NewMemCacheClient(client)
	mapper := restmapper.NewShortcutExpander(restmapper.NewDeferredDiscoveryRESTMapper(cached), cached, nil)
	for _, name := range []string{"deploy", "cr8", "po", "gizmos"} {
		kind, err := mapper.KindFor(schema.GroupVersionResource{Resource: name})
		seen.tell(name, kind, err)
	}
	paths, err := client.OpenAPIV3().Paths()
	seen.tell("openapi", len(paths), err)
	document, err := client.OpenAPISchema() // version 2, in protobuf
	seen.tell("openapi version 2", document.GetSwagger(), err)
}

// terminatingNamespace: controllers tell by the cause of the refusal that there
// is no use in trying again (apierrors.HasStatusCause).
func terminatingNamespace(ctx context.Context, s *side, seen *story) {
	name := s.namespace + "-end"
	_, err := s.kube.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	seen.tell("create", nil, err)
	held, err := s.kube.CoreV1().ConfigMaps(name).Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "held", Finalizers: []string{"example.org/hold"}}}, metav1.CreateOptions{})
	seen.tell("hold", held, err)
	seen.tell("delete", nil, s.kube.CoreV1().Namespaces().Delete(ctx, name, metav1.DeleteOptions{}))
	late := kubernetes.NewForConfigOrDie(s.config).CoreV1().ConfigMaps(name)
	err = nil
	for err == nil { // admission hears of the deletion a moment later
		_, err = late.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "late"}}, metav1.CreateOptions{DryRun: []string{"All"}})
	}
	seen.tell("forbidden", apierrors.IsForbidden(err), nil)
	seen.tell("has the cause NamespaceTerminating", apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause), nil)
	_, err = s.kube.CoreV1().ConfigMaps(name).Patch(ctx, "held", types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{})
	seen.tell("let go", nil, err)
}

// compressedList asks as a client does that unpacks itself. The API server
// compresses what is larger than 128 KiB.
func compressedList(ctx context.Context, s *side, seen *story) {
	_, err := s.kube.CoreV1().ConfigMaps(s.namespace).Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "big"}, Data: map[string]string{"x": strings.Repeat("taskgate ", 80_000)}}, metav1.CreateOptions{})
	seen.tell("prepare", nil, err)
	response, body := plainGet(ctx, s, seen, "/api/v1/namespaces/"+s.namespace+"/configmaps/big", http.Header{"Accept-Encoding": {"gzip"}})
	seen.tell("header", []string{response.Header.Get("Content-Encoding"), response.Header.Get("Content-Type"), response.Header.Get("Vary"), response.Header.Get("Cache-Control")}, nil)
	unpacked, err := gzip.NewReader(bytes.NewReader(body))
	if err != nil {
		seen.tell("unpack", nil, err)
		return
	}
	content, err := io.ReadAll(unpacked)
	seen.tell("body", json.RawMessage(content), err)
	response, body = plainGet(ctx, s, seen, "/api/v1/namespaces/"+s.namespace+"/configmaps/big", http.Header{"Accept-Encoding": {"identity"}})
	seen.tell("as it is", []any{response.Header.Get("Content-Encoding"), bytes.Contains(body, []byte("taskgate taskgate"))}, nil)
}

// unchangedOpenAPI: kubectl keeps the document as long as its ETag is the same.
func unchangedOpenAPI(ctx context.Context, s *side, seen *story) {
	first, body := plainGet(ctx, s, seen, "/openapi/v3/apis/apps/v1", nil)
	seen.tell("first", []any{first.StatusCode, first.Header.Get("Etag"), len(body)}, nil)
	again, body := plainGet(ctx, s, seen, "/openapi/v3/apis/apps/v1", http.Header{"If-None-Match": {first.Header.Get("Etag")}})
	seen.tell("again", []any{again.StatusCode, len(body)}, nil)
}

// plainGet is a GET with the transport of client-go, which sends the credential.
func plainGet(ctx context.Context, s *side, seen *story, path string, header http.Header) (*http.Response, []byte) {
	client, err := rest.HTTPClientFor(s.config)
	seen.tell("client", nil, err)
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, s.config.Host+path, http.NoBody)
	seen.tell("request", nil, err)
	for name, values := range header {
		request.Header[name] = values
	}
	response, err := client.Do(request)
	if err != nil {
		seen.tell("GET", nil, err)
		return &http.Response{}, nil
	}
	defer func() { _ = response.Body.Close() }() // only read
	body, err := io.ReadAll(response.Body)
	seen.tell("GET", response.Status, err)
	return response, body
}
