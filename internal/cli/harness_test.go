package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/taskgate/taskgate/api/v1alpha1"
	"github.com/taskgate/taskgate/internal/inert"
)

// fakeCluster is as much of an API server as the commands use: it stores objects of
// taskgate.dev, knows who is speaking, and refuses what it is told to refuse.
type fakeCluster struct {
	*httptest.Server
	user authenticationv1.UserInfo
	deny map[string]*metav1.Status // by "verb resource"

	mu       sync.Mutex
	version  int
	objects  map[string]map[string]any // by resource/name
	watchers map[chan watchEvent]string
}

type watchEvent struct {
	Type   string         `json:"type"`
	Object map[string]any `json:"object"`
}

func newFakeCluster(t *testing.T, stored ...metav1.Object) *fakeCluster {
	t.Helper()
	f := &fakeCluster{
		user: authenticationv1.UserInfo{Username: "alice@example.org", Groups: []string{"sre", "dev", "system:authenticated"}},
		deny: map[string]*metav1.Status{}, objects: map[string]map[string]any{}, watchers: map[chan watchEvent]string{},
	}
	mux := http.NewServeMux()
	const root = "/apis/taskgate.dev/v1alpha1/"
	mux.HandleFunc("POST /apis/authentication.k8s.io/v1/selfsubjectreviews", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, 201, authenticationv1.SelfSubjectReview{
			TypeMeta: metav1.TypeMeta{APIVersion: "authentication.k8s.io/v1", Kind: "SelfSubjectReview"},
			Status:   authenticationv1.SelfSubjectReviewStatus{UserInfo: f.user},
		})
	})
	mux.HandleFunc("GET "+root+"{resource}", f.list)
	mux.HandleFunc("POST "+root+"{resource}", f.create)
	mux.HandleFunc("GET "+root+"{resource}/{name}", f.get)
	mux.HandleFunc("PATCH "+root+"{resource}/{name}", f.patch)
	mux.HandleFunc("DELETE "+root+"{resource}/{name}", f.remove)
	f.Server = httptest.NewServer(f.guarded(mux))
	t.Cleanup(f.Close)
	for _, object := range stored {
		f.put(t, object)
	}
	return f
}

func (f *fakeCluster) guarded(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		verb := map[string]string{"GET": "get", "POST": "create", "PATCH": "patch", "DELETE": "delete"}[r.Method]
		resource := strings.Split(r.URL.Path, "/")[4]
		if status := f.deny[verb+" "+resource]; status != nil {
			answer(w, int(status.Code), status)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func failure(code int, reason metav1.StatusReason, message string) *metav1.Status {
	return &metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: "Failure", Code: int32(code), Reason: reason, Message: message}
}

func answer(w http.ResponseWriter, code int, object any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(object) // a client that is gone notices by itself
}

func (f *fakeCluster) notFound(w http.ResponseWriter, r *http.Request) {
	answer(w, 404, failure(404, metav1.StatusReasonNotFound, fmt.Sprintf("%s %q not found", r.PathValue("resource"), r.PathValue("name"))))
}

// put stores an object as if somebody had written it.
func (f *fakeCluster) put(t *testing.T, object metav1.Object) {
	t.Helper()
	document, err := json.Marshal(object)
	if err != nil {
		t.Fatal(err)
	}
	var stored map[string]any
	if err := json.Unmarshal(document, &stored); err != nil {
		t.Fatal(err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.storeLocked(resourceOf(object)+"/"+object.GetName(), stored)
}

func resourceOf(object metav1.Object) string {
	switch object.(type) {
	case *v1alpha1.Approval:
		return approvals
	case *v1alpha1.TaskGrant:
		return grants
	case *v1alpha1.Decision:
		return decisions
	}
	return policies
}

func (f *fakeCluster) storeLocked(key string, object map[string]any) {
	resource, _, _ := strings.Cut(key, "/")
	f.version++
	object["apiVersion"] = v1alpha1.GroupVersion.String()
	object["kind"] = map[string]string{approvals: "Approval", grants: "TaskGrant", decisions: "Decision", policies: "AgentPolicy"}[resource]
	object["metadata"].(map[string]any)["resourceVersion"] = fmt.Sprint(f.version)
	event := "MODIFIED"
	if f.objects[key] == nil {
		event = "ADDED"
	}
	f.objects[key] = object
	f.tellLocked(event, key, object)
}

func (f *fakeCluster) tellLocked(event, key string, object map[string]any) {
	for watcher, prefix := range f.watchers {
		if strings.HasPrefix(key, prefix) {
			watcher <- watchEvent{event, object}
		}
	}
}

func (f *fakeCluster) get(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	object := f.objects[r.PathValue("resource")+"/"+r.PathValue("name")]
	if object == nil {
		f.notFound(w, r)
		return
	}
	answer(w, 200, object)
}

// list lists or watches. Of field selectors it knows the ones the commands use.
func (f *fakeCluster) list(w http.ResponseWriter, r *http.Request) {
	resource := r.PathValue("resource")
	field, value, selected := strings.Cut(r.URL.Query().Get("fieldSelector"), "=")
	prefix := resource + "/"
	f.mu.Lock()
	if r.URL.Query().Get("watch") == "true" {
		if field == "metadata.name" {
			prefix += value
		}
		events := make(chan watchEvent, 16)
		f.watchers[events] = prefix
		f.mu.Unlock()
		f.watch(w, r, events)
		return
	}
	defer f.mu.Unlock()
	items := []any{}
	for _, key := range slices.Sorted(maps.Keys(f.objects)) {
		if strings.HasPrefix(key, prefix) && (!selected || fieldOf(f.objects[key], field) == value) {
			items = append(items, f.objects[key])
		}
	}
	kind := map[string]string{approvals: "ApprovalList", grants: "TaskGrantList", decisions: "DecisionList", policies: "AgentPolicyList"}[resource]
	answer(w, 200, map[string]any{"apiVersion": v1alpha1.GroupVersion.String(), "kind": kind, "metadata": map[string]any{"resourceVersion": fmt.Sprint(f.version)}, "items": items})
}

func fieldOf(object map[string]any, path string) any {
	var at any = object
	for _, part := range strings.Split(path, ".") {
		at = at.(map[string]any)[part]
	}
	return at
}

func (f *fakeCluster) watch(w http.ResponseWriter, r *http.Request, events chan watchEvent) {
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.watchers, events)
	}()
	w.Header().Set("Content-Type", "application/json")
	controller := http.NewResponseController(w)
	_ = controller.Flush() // as above
	for {
		select {
		case <-r.Context().Done():
			return
		case event := <-events:
			_ = json.NewEncoder(w).Encode(event)
			_ = controller.Flush()
		}
	}
}

func (f *fakeCluster) create(w http.ResponseWriter, r *http.Request) {
	var object map[string]any
	if err := json.NewDecoder(r.Body).Decode(&object); err != nil {
		answer(w, 400, failure(400, metav1.StatusReasonBadRequest, err.Error()))
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	metadata := object["metadata"].(map[string]any)
	if prefix, generated := metadata["generateName"]; generated {
		metadata["name"] = fmt.Sprintf("%s%d", prefix, f.version)
	}
	key := r.PathValue("resource") + "/" + metadata["name"].(string)
	if f.objects[key] != nil {
		answer(w, 409, failure(409, metav1.StatusReasonAlreadyExists, "already exists"))
		return
	}
	if r.URL.Query().Get("dryRun") == "" {
		f.storeLocked(key, object)
	}
	answer(w, 201, object)
}

func (f *fakeCluster) patch(w http.ResponseWriter, r *http.Request) {
	var change map[string]any
	if err := json.NewDecoder(r.Body).Decode(&change); err != nil || r.Header.Get("Content-Type") != string(types.MergePatchType) {
		answer(w, 400, failure(400, metav1.StatusReasonBadRequest, "not a merge patch"))
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	key := r.PathValue("resource") + "/" + r.PathValue("name")
	object := f.objects[key]
	if object == nil {
		f.notFound(w, r)
		return
	}
	if r.URL.Query().Get("dryRun") == "" {
		object = merged(object, change)
		f.storeLocked(key, object)
	}
	answer(w, 200, object)
}

func merged(object, change map[string]any) map[string]any {
	result := maps.Clone(object)
	if result == nil {
		result = map[string]any{}
	}
	for key, value := range change {
		inner, nested := value.(map[string]any)
		switch {
		case nested:
			old, _ := result[key].(map[string]any)
			result[key] = merged(old, inner)
		case value == nil:
			delete(result, key)
		default:
			result[key] = value
		}
	}
	return result
}

func (f *fakeCluster) remove(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body) // may be empty
	f.mu.Lock()
	defer f.mu.Unlock()
	key := r.PathValue("resource") + "/" + r.PathValue("name")
	object := f.objects[key]
	if object == nil {
		f.notFound(w, r)
		return
	}
	if !bytes.Contains(body, []byte("dryRun")) {
		delete(f.objects, key)
		f.tellLocked("DELETED", key, object)
	}
	answer(w, 200, map[string]any{"apiVersion": "v1", "kind": "Status", "status": "Success"})
}

// written reads back what a command has written.
func written[T any](t *testing.T, f *fakeCluster, resource string) []T {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	var items []T
	for _, key := range slices.Sorted(maps.Keys(f.objects)) {
		if !strings.HasPrefix(key, resource+"/") {
			continue
		}
		document, err := json.Marshal(f.objects[key])
		if err != nil {
			t.Fatal(err)
		}
		var item T
		if err := json.Unmarshal(document, &item); err != nil {
			t.Fatal(err)
		}
		items = append(items, item)
	}
	return items
}

func (f *fakeCluster) kubeconfig(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kubeconfig")
	content := fmt.Sprintf(`{apiVersion: v1, kind: Config, clusters: [{name: c, cluster: {server: %q}}], users: [{name: u, user: {token: t}}],
contexts: [{name: c, context: {cluster: c, user: u}}], current-context: c}`, f.URL)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// ran is what a command printed and how it ended.
type ran struct {
	out, problem string
	code         int
}

func (r ran) String() string { return fmt.Sprintf("exit %d\n%s\n%s", r.code, r.out, r.problem) }

// run runs a command as a script would.
func (f *fakeCluster) run(t *testing.T, arguments ...string) ran {
	t.Helper()
	return f.play(t, t.Context(), nil, arguments...)
}

// typed runs a command as a person at a terminal would who types what is asked.
func (f *fakeCluster) typed(t *testing.T, typed string, arguments ...string) ran {
	t.Helper()
	return f.play(t, t.Context(), &typed, arguments...)
}

func (f *fakeCluster) play(t *testing.T, ctx context.Context, typed *string, arguments ...string) ran {
	t.Helper()
	var out bytes.Buffer
	stdin := strings.NewReader("")
	if typed != nil {
		stdin = strings.NewReader(*typed)
	}
	root := command(func(stream any) bool { return typed != nil })
	root.SetArgs(append(arguments, "--kubeconfig", f.kubeconfig(t)))
	root.SetIn(stdin)
	root.SetOut(&out)
	root.SetErr(&out)
	err := root.ExecuteContext(ctx)
	return ran{out.String(), Message(err), ExitCode(err)}
}

// check compares what a command did with what it should have done.
func (r ran) check(t *testing.T, code int, out, problem string) {
	t.Helper()
	if r.code != code || r.out != out || r.problem != problem {
		t.Errorf("got %s\nwant %s", r, ran{out, problem, code})
	}
}

const (
	agentOne  = "spiffe://example.org/ns/agents/sa/one"
	digestOne = "1111111111111111111111111111111111111111111111111111111111111111"
)

func approval(changes ...func(*v1alpha1.Approval)) *v1alpha1.Approval {
	a := &v1alpha1.Approval{
		ObjectMeta: metav1.ObjectMeta{Name: "ap-1", UID: "uid-ap-1", CreationTimestamp: metav1.NewTime(time.Now().Add(-15*time.Minute - 30*time.Second))},
		Spec: v1alpha1.ApprovalSpec{
			Agent: agentOne, Task: "INC-4711", Grant: "inc", GrantUID: "uid-inc", Policy: "shop", Gate: "namespace-delete", Approvers: 1, Groups: []string{"sre", "platform"},
			Call:    v1alpha1.ApprovalCall{Verb: "delete", Version: "v1", Resource: "namespaces", Namespace: "shop", Name: "shop", UID: "uid-ns"},
			Summary: "delete the namespace shop with 12 pods", Diff: "--- live\n+++ after\n-kind: Namespace\n", Digest: digestOne,
			UseWithin: metav1.Duration{Duration: 5 * time.Minute}, ExpiresAt: metav1.NewMicroTime(time.Now().Add(10*time.Minute + 30*time.Second)),
		},
	}
	for _, change := range changes {
		change(a)
	}
	return a
}

func settledAs(kind, reason string) func(*v1alpha1.Approval) {
	return func(a *v1alpha1.Approval) {
		meta.SetStatusCondition(&a.Status.Conditions, metav1.Condition{Type: kind, Status: metav1.ConditionTrue, Reason: reason, Message: "it was " + strings.ToLower(reason)})
	}
}

func grant(changes ...func(*v1alpha1.TaskGrant)) *v1alpha1.TaskGrant {
	g := &v1alpha1.TaskGrant{
		ObjectMeta: metav1.ObjectMeta{Name: "inc", UID: "uid-inc", CreationTimestamp: metav1.NewTime(time.Now().Add(-20*time.Minute - 30*time.Second))},
		Spec: v1alpha1.TaskGrantSpec{
			Agent: agentOne, Task: "INC-4711", Reason: "restart loop in web", Policy: "shop", TTL: metav1.Duration{Duration: 30 * time.Minute}, RequestedBy: agentOne,
			Rules: []v1alpha1.Rule{{Namespaces: []string{"shop"}, APIGroups: []string{""}, Resources: []string{"pods"}, Verbs: []string{"get", "list"}}},
		},
	}
	g.Status.Digest = strings.Repeat("2", 64)
	for _, change := range changes {
		change(g)
	}
	return g
}

// conditions sets Approved, Active and Ended of a grant.
func conditions(approved, active, ended metav1.ConditionStatus, reason, message string) func(*v1alpha1.TaskGrant) {
	return func(g *v1alpha1.TaskGrant) {
		for kind, is := range map[string]metav1.ConditionStatus{v1alpha1.GrantApproved: approved, v1alpha1.GrantActive: active, v1alpha1.GrantEnded: ended} {
			meta.SetStatusCondition(&g.Status.Conditions, metav1.Condition{Type: kind, Status: is, Reason: reason, Message: message})
		}
		if active == metav1.ConditionTrue {
			until := metav1.NewMicroTime(time.Now().Add(20*time.Minute + 30*time.Second))
			g.Status.ExpiresAt = &until
		}
	}
}

func waits() func(*v1alpha1.TaskGrant) {
	return conditions(metav1.ConditionUnknown, metav1.ConditionFalse, metav1.ConditionFalse, "ApprovalPending", "waits for 2 people of sre")
}

func isActive() func(*v1alpha1.TaskGrant) {
	return conditions(metav1.ConditionTrue, metav1.ConditionTrue, metav1.ConditionFalse, "Active", "until later")
}

func policyNamed(name string, change func(*v1alpha1.AgentPolicySpec)) *v1alpha1.AgentPolicy {
	p := &v1alpha1.AgentPolicy{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID("uid-" + name)}}
	p.Spec = v1alpha1.AgentPolicySpec{Agents: []string{agentOne}, Grant: v1alpha1.GrantLimits{MaxTTL: metav1.Duration{Duration: time.Hour}, Approval: v1alpha1.GrantApproval{Approvers: 2, Groups: []string{"sre"}}}}
	if change != nil {
		change(&p.Spec)
	}
	return p
}

func said(name, verdict, by string, groups ...string) *v1alpha1.Decision {
	return &v1alpha1.Decision{
		ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID("uid-" + name), CreationTimestamp: metav1.NewTime(time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC))},
		Spec: v1alpha1.DecisionSpec{
			Target:  v1alpha1.DecisionTarget{Kind: kindApproval, Name: "ap-1", UID: "uid-ap-1", Digest: digestOne},
			Verdict: verdict, By: by, Groups: groups, Reason: "looks fine",
		},
	}
}

// checkInert scans what would go to a terminal.
func checkInert(t *testing.T, shown string) {
	t.Helper()
	if inert.Text(shown) != shown && !strings.Contains(shown, `\`) {
		t.Errorf("not inert: %q", shown)
	}
	for _, r := range shown {
		if r < 0x20 && r != '\n' || r >= 0x7f && r < 0xa0 || r >= 0x200b && r <= 0x200f || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069 || r == 0x61c || r == 0xfeff {
			t.Errorf("%U in %q", r, shown)
		}
	}
}
