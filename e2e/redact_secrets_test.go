package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/tools/cache"
)

const redactMask = "[redacted]"

// TestRedactedSecrets: an agent under a rule with `values: Redacted` works with
// Secrets as usual, by kubectl and by programs in every codec, and sees no value,
// in no answer and in no error; and neither do records, spool and logs.
func TestRedactedSecrets(t *testing.T) {
	t.Parallel()
	rig := newRedactRig(t)
	rig.many(t)
	for _, part := range []struct {
		name string
		run  func(*redactRig, *testing.T)
	}{
		{"kubectl reads", (*redactRig).kubectlReads}, {"kubectl writes", (*redactRig).kubectlWrites}, {"attacks", (*redactRig).attacks},
		{"json", func(r *redactRig, t *testing.T) { r.typed(t, runtime.ContentTypeJSON) }},
		{"protobuf", func(r *redactRig, t *testing.T) { r.typed(t, runtime.ContentTypeProtobuf) }},
		{"cbor", func(r *redactRig, t *testing.T) { r.typed(t, runtime.ContentTypeCBOR) }},
		{"codecs", (*redactRig).codecs}, {"informer", (*redactRig).informer}, {"large list", (*redactRig).largeList},
	} {
		t.Run(part.name, func(t *testing.T) { part.run(rig, t) })
	}
	for what, text := range rig.shown {
		rig.noCanary(t, what, text)
	}
	last := rig.agent.do(t, "GET", "/api/v1/namespaces/redact/secrets/none", nil, "")
	rig.journal.of(t, last.auditID()) // all before it is in the bucket
	looked := 0
	for place, content := range (&faultBed{stack: rig.stack}).traces(t) {
		rig.noCanary(t, place, string(content))
		looked += len(content)
	}
	t.Logf("%d values; looked for in %d answers and %d KiB of records and logs", len(rig.canaries), len(rig.shown), looked>>10)
	if looked < 100<<10 {
		t.Error("that is too little to be all of it")
	}
}

func (r *redactRig) kubectlReads(t *testing.T) {
	r.seed(t, "read")
	for _, row := range []struct{ command, says string }{
		{"get secret read", "Opaque   2 "},
		{"get secret read -o yaml", "password: W3JlZGFjdGVkXQ=="},
		{"get secret read -o json", `"app": "shop"`},
		{"get secret read -o jsonpath={.data.password}", "W3JlZGFjdGVkXQ=="},
		{"get secrets -l app=shop -o wide --show-labels", "app=shop"},
		{"get secrets -l app=shop --sort-by=.metadata.name", "read"},
		{"get secrets -l app=shop -o custom-columns=N:.metadata.name,A:.metadata.annotations.note", redactMask},
		{"get secret read --show-managed-fields -o yaml", "name: read"},
		{"describe secret read", "password:  10 bytes"},
		{"get secret read -w --request-timeout=2s", "read"},
		{"get secret read -w -o yaml --request-timeout=2s", "password: W3JlZGFjdGVkXQ=="},
		{"get secret none", `secrets "none" not found`},
		{"auth can-i get secrets", "yes"},
	} {
		got := r.kubectl(t, "", strings.Fields(row.command)...)
		if !strings.Contains(got.stdout+got.stderr, row.says) || strings.Contains(got.stdout, "managedFields") {
			t.Errorf("kubectl %s: want %q, got %s", row.command, row.says, got)
		}
	}
}

func (r *redactRig) kubectlWrites(t *testing.T) {
	r.seed(t, "write")
	before := r.really(t, "write")
	manifest := func(data string) string {
		return "apiVersion: v1\nkind: Secret\nmetadata: {name: write, namespace: redact, labels: {app: shop}}\nstringData: " + data + "\n"
	}
	for _, row := range []struct {
		stdin, command, says string
		code                 int
	}{
		{"", "label secret write more=yes", "labeled", 0},
		{"", "annotate secret write more=yes", "annotated", 0},
		{"", `patch secret write -p {"data":{"added":"YWRkZWQ="}} -o yaml`, "added: W3JlZGFjdGVkXQ==", 0},
		{"", `patch secret write -p {"data":{"added":"YWRkZWQ="}} --dry-run=server -o yaml`, "other: W3JlZGFjdGVkXQ==", 0},
		{manifest("{password: replaced-by-apply}"), "apply -f - -o yaml", "password: W3JlZGFjdGVkXQ==", 0},
		{manifest("{password: replaced-by-apply}"), "apply -f -", "configured", 0},
		{manifest("{third: " + r.canary("ssa") + "}"), "apply --server-side --force-conflicts -f - -o yaml", "third: W3JlZGFjdGVkXQ==", 0},
		{manifest(`{password: "[redacted]"}`), "replace -f -", "[taskgate:BadBody]", 1},
	} {
		got := r.kubectl(t, row.stdin, strings.Fields(row.command)...)
		if got.code != row.code || !strings.Contains(got.stdout+got.stderr, row.says) {
			t.Errorf("kubectl %s: want %d and %q, got %s", row.command, row.code, row.says, got)
		}
	}
	masked := r.kubectl(t, "", "get", "secret", "write", "-o", "yaml").stdout
	if got := r.kubectl(t, masked, "replace", "-f", "-"); got.code == 0 || !strings.Contains(got.stderr, "[taskgate:BadBody]") {
		t.Errorf("the mask may be written back: %s", got)
	}
	after := r.really(t, "write")
	if string(after.Data["password"]) != "replaced-by-apply" || string(after.Data["added"]) != "added" || after.Labels["more"] != "yes" || after.Annotations["note"] == redactMask {
		t.Errorf("it became %v %v %v", after.Data, after.Labels, after.Annotations)
	}
	if before.UID != after.UID {
		t.Error("it was made anew")
	}
	if got := r.kubectl(t, "", "delete", "secret", "write"); got.code != 0 {
		t.Errorf("delete: %s", got)
	}
}

// attacks try to have a value shown by something that is no plain read.
func (r *redactRig) attacks(t *testing.T) {
	r.seed(t, "attack")
	target := "/api/v1/namespaces/redact/secrets/attack"
	patch, merge := map[string]string{"Content-Type": "application/json-patch+json"}, map[string]string{"Content-Type": "application/merge-patch+json"}
	strategic, apply := map[string]string{"Content-Type": "application/strategic-merge-patch+json"}, map[string]string{"Content-Type": "application/apply-patch+yaml"}
	for _, row := range []struct {
		name         string
		header       map[string]string
		query, body  string
		code         int
		reason, says string
	}{
		{"copy into a label", patch, "", `[{"op":"copy","from":"/data/password","path":"/metadata/labels/x"}]`, 403, "OutsideGrant/Values", ""},
		{"copy into what is quoted", patch, "?dryRun=All", `[{"op":"copy","from":"/data/password","path":"/metadata/name"}]`, 403, "OutsideGrant/Values", ""},
		{"guess", patch, "", `[{"op":"test","path":"/data/password","value":"Z3Vlc3M="}]`, 403, "OutsideGrant/Values", ""},
		{"an object that is quoted: immutable", merge, "?dryRun=All", `{"immutable":"x"}`, 0, "", "masked"},
		{"an object that is quoted: data", merge, "?dryRun=All", `{"data":{"x":"%%%"}}`, 0, "", "masked"},
		{"an object that is quoted: labels", patch, "?dryRun=All", `[{"op":"add","path":"/metadata/labels","value":5}]`, 0, "", "masked"},
		{"an object that is quoted: kind", patch, "?dryRun=All", `[{"op":"replace","path":"/kind","value":"Pod"}]`, 0, "", ""},
		{"strategic", strategic, "?dryRun=All", `{"data":5}`, 0, "", ""},
		{"strategic, replaced", strategic, "?dryRun=All", `{"metadata":{"$patch":"replace","labels":{}}}`, 0, "", ""},
		{"apply", apply, "?fieldManager=x&dryRun=All", "apiVersion: v1\nkind: Secret\nmetadata: {name: attack}\ndata: {password: YQ==}\n", 409, "", "conflict"},
		{"strict", merge, "?dryRun=All&fieldValidation=Strict", `{"nonsense":{"a":1}}`, 0, "", ""},
	} {
		got := r.agent.do(t, "PATCH", target+row.query, row.header, row.body)
		r.tell("attack "+row.name, got, nil)
		if row.code != 0 && got.code != row.code || got.reason() != row.reason || !strings.Contains(got.body, row.says) {
			t.Errorf("%s: got %d %q %s", row.name, got.code, got.reason(), got.body)
		}
	}
	// What the cluster says without the broker shows that the mask was needed.
	_, err := r.kube.CoreV1().Secrets(redactSpace).Patch(t.Context(), "attack", types.MergePatchType, []byte(`{"immutable":"x"}`), metav1.PatchOptions{DryRun: []string{"All"}})
	if err == nil || !strings.Contains(err.Error(), "data") {
		t.Logf("the API server does not quote the object any more: %v", err)
	}
}

// typed is a life of a Secret with a typed client.
func (r *redactRig) typed(t *testing.T, codec string) {
	name := "typed-" + map[string]string{runtime.ContentTypeJSON: "json", runtime.ContentTypeProtobuf: "protobuf", runtime.ContentTypeCBOR: "cbor"}[codec]
	r.seed(t, name)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	secrets := r.client(t, codec).CoreV1().Secrets(redactSpace)
	check := func(what string, got *corev1.Secret, err error) {
		t.Helper()
		r.tell(codec+" "+what, got, err)
		if err != nil {
			t.Errorf("%s: %v", what, err)
			return
		}
		if got.Name == "" || got.Type != corev1.SecretTypeOpaque || len(got.Data) == 0 || len(got.ManagedFields) != 0 {
			t.Errorf("%s: got %+v", what, got)
		}
		for key, value := range got.Data {
			if string(value) != redactMask {
				t.Errorf("%s: %s is %q", what, key, value)
			}
		}
	}
	got, err := secrets.Get(ctx, name, metav1.GetOptions{})
	check("get", got, err)
	if got.Labels["app"] != "shop" || got.Annotations["note"] != redactMask || !strings.Contains(got.Annotations[corev1.LastAppliedConfigAnnotation], `"name":"`+name+`"`) {
		t.Errorf("get: labels %v, annotations %v", got.Labels, got.Annotations)
	}
	watcher, err := secrets.Watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + name, ResourceVersion: got.ResourceVersion})
	if err != nil {
		t.Fatal(err)
	}
	defer watcher.Stop()
	list, err := secrets.List(ctx, metav1.ListOptions{LabelSelector: "app=shop"})
	if err != nil || len(list.Items) == 0 {
		t.Fatalf("list: %v %v", list, err)
	}
	check("list", &list.Items[0], nil)
	_, err = secrets.Update(ctx, got, metav1.UpdateOptions{})
	r.tell(codec+" update with the mask", nil, err)
	if err == nil || !strings.Contains(err.Error(), "[taskgate:BadBody]") {
		t.Errorf("the mask may be written back: %v", err)
	}
	whole := got.DeepCopy()
	whole.Annotations, whole.Data = nil, map[string][]byte{"password": []byte(r.canary("update"))}
	updated, err := secrets.Update(ctx, whole, metav1.UpdateOptions{})
	check("update", updated, err)
	patched, err := secrets.Patch(ctx, name, types.StrategicMergePatchType, []byte(`{"stringData":{"a":"`+r.canary("patch")+`"}}`), metav1.PatchOptions{})
	check("patch", patched, err)
	made, err := secrets.Create(ctx, &corev1.Secret{ObjectMeta: metav1.ObjectMeta{GenerateName: name}, Data: map[string][]byte{"a": []byte(r.canary("create"))}}, metav1.CreateOptions{DryRun: []string{"All"}})
	check("create", made, err)
	for range 2 {
		select {
		case event := <-watcher.ResultChan():
			secret, _ := event.Object.(*corev1.Secret)
			if event.Type != watch.Modified || secret == nil {
				t.Fatalf("watch: got %v", event)
			}
			check("watch", secret, nil)
		case <-ctx.Done():
			t.Fatal("the watch shows nothing")
		}
	}
	if err := secrets.DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{FieldSelector: "metadata.name=" + name}); err != nil {
		t.Errorf("deletecollection: %v", err)
	}
}

// codecs asks for everything a client may ask for, and gets JSON.
func (r *redactRig) codecs(t *testing.T) {
	r.seed(t, "codecs")
	one, all := "/api/v1/namespaces/redact/secrets/codecs", "/api/v1/namespaces/redact/secrets?labelSelector=app%3Dshop"
	for _, codec := range []string{"application/json", "application/yaml", "application/vnd.kubernetes.protobuf", "application/cbor", "*/*"} {
		for _, form := range []struct{ as, kind string }{{"", "Secret"}, {";as=Table;v=v1;g=meta.k8s.io", "Table"}, {";as=PartialObjectMetadata;v=v1;g=meta.k8s.io", "PartialObjectMetadata"}} {
			for _, target := range []string{one, one + "?includeObject=Object", all, all + "&includeObject=Object", all + "&watch=true&timeoutSeconds=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"} {
				if strings.Contains(target, "includeObject") && form.kind != "Table" {
					continue
				}
				accept := codec + form.as
				if form.kind == "PartialObjectMetadata" && !strings.HasPrefix(target, one) && !strings.Contains(target, "watch") {
					accept = strings.Replace(accept, "Metadata", "MetadataList", 1)
				}
				got := r.agent.do(t, "GET", target, map[string]string{"Accept": accept, "Accept-Encoding": "gzip"}, "")
				r.tell(accept+" "+target, got, nil)
				if got.code != 200 || got.header.Get("Content-Type") != "application/json" || got.header.Get("Content-Encoding")+got.header.Get("Etag") != "" || !strings.Contains(got.body, `"kind":"`+form.kind) {
					t.Errorf("%s %s: got %d %v %.300s", accept, target, got.code, got.header, got.body)
				}
				if strings.Contains(target, "watch") && !strings.Contains(got.body, `"k8s.io/initial-events-end":"true"`) {
					t.Errorf("%s: the watch does not say where the initial events end: %.2000s", accept, got.body)
				}
				for document := json.NewDecoder(strings.NewReader(got.body)); ; {
					if err := document.Decode(new(map[string]any)); err == io.EOF {
						break
					} else if err != nil {
						t.Fatalf("%s %s: %v", accept, target, err)
					}
				}
			}
		}
	}
}

// informer fills a cache by list and watch as controllers do.
func (r *redactRig) informer(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	factory := informers.NewSharedInformerFactoryWithOptions(r.client(t, runtime.ContentTypeProtobuf), 0, informers.WithNamespace(redactSpace))
	informer := factory.Core().V1().Secrets().Informer()
	factory.Start(ctx.Done())
	if !cache.WaitForCacheSync(ctx.Done(), informer.HasSynced) {
		t.Fatal("the informer does not fill")
	}
	r.tell("informer", informer.GetStore().List(), nil)
	if got := len(informer.GetStore().ListKeys()); got < redactMany {
		t.Errorf("it holds %d Secrets", got)
	}
	cancel()
	factory.Shutdown()
	names, err := metadata.NewForConfig(r.config)
	if err != nil {
		t.Fatal(err)
	}
	list, err := names.Resource(corev1.SchemeGroupVersion.WithResource("secrets")).Namespace(redactSpace).List(t.Context(), metav1.ListOptions{})
	r.tell("metadata", list, err)
	if err != nil || len(list.Items) < redactMany {
		t.Errorf("metadata: %v", err)
	}
}

// largeList is longer than what is held back.
func (r *redactRig) largeList(t *testing.T) {
	for _, codec := range []string{runtime.ContentTypeJSON, runtime.ContentTypeProtobuf} {
		began := time.Now()
		list, err := r.client(t, codec).CoreV1().Secrets(redactSpace).List(t.Context(), metav1.ListOptions{LabelSelector: "many=true"})
		if err != nil || len(list.Items) != redactMany {
			t.Fatalf("%s: %d items, %v", codec, len(list.Items), err)
		}
		for i := range list.Items {
			if string(list.Items[i].Data["k"]) != redactMask || list.Items[i].Name != fmt.Sprintf("many-%04d", i) {
				t.Fatalf("%s: item %d is %+v", codec, i, list.Items[i])
			}
		}
		t.Logf("%s: %d Secrets in %s", codec, redactMany, time.Since(began))
	}
}
