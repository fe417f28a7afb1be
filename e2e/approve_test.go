package e2e_test

import (
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/taskgate/taskgate/api/v1alpha1"
	"github.com/taskgate/taskgate/e2e/testbed"
	"github.com/taskgate/taskgate/recorder"
)

// approveRig is a testbed with two brokers, an agent with a sidecar to each of
// them, and people.
type approveRig struct {
	*decideRig
	agents [2]*agent
}

// TestApproving: gated calls of an agent, from the first refusal to the one use of
// an approval, with two brokers and a real API server.
func TestApproving(t *testing.T) {
	t.Parallel()
	r := &approveRig{decideRig: newDecideRig(t)}
	second, err := r.AddSidecar(t.Context(), testbed.SidecarOptions{Name: "alpha-1", Agent: testbed.Alpha, Replica: 1})
	if err != nil {
		t.Fatal(err)
	}
	r.agents = [2]*agent{r.alpha(t), r.agentAt(t, testbed.Alpha, second)}
	r.allowUpstream(t, "approve")
	r.allow(t, "approve", r.agents[0].id, openPolicy+`
gates:
- {name: maps, resources: [configmaps], verbs: [create, update, patch, delete], groups: [sre], ttl: 10m, useWithin: 5m}
- {name: short, resources: [services], verbs: [delete], groups: [sre], ttl: 1s}
- {name: pinned, resources: [serviceaccounts], verbs: [delete], groups: [sre], pinVersion: true}
- {name: held, resources: [limitranges], verbs: [create], groups: [sre], mode: Hold}`, everything)
	// An operator asks in the agent's name: then that operator's yes does not count.
	r.createGrant(t, r.as(t, "olga", "operators"), grantManifest("approve", "grants-approve", r.agents[0].id, "1h", everything))
	r.until(t, "approve", decideActive)
	for _, agent := range r.agents {
		r.served(t, agent, "/api/v1/namespaces/default/pods")
	}
	for _, part := range []struct {
		name string
		test func(*testing.T)
	}{
		{"a namespace is deleted once", r.deletesNamespaceOnce},
		{"a diff", r.showsDiff},
		{"a Secret", r.hidesSecrets},
		{"the cluster would refuse", r.wouldBeRefused},
		{"a no", r.isDenied},
		{"too late", r.expires},
		{"another version", r.isPinned},
		{"a collection", r.deletesCollection},
		{"held open", r.isHeld},
		{"one winner per approval", r.races},
	} {
		t.Run(part.name, part.test)
	}
}

// refusedWith sends a call and wants that reason; the answer names the approval.
func (r *approveRig) refusedWith(t testing.TB, broker int, method, target, body, reason string) (reply, *v1alpha1.Approval) {
	t.Helper()
	got := r.agents[broker].do(t, method, target, bodyType(method), body)
	if got.reason() != reason {
		t.Fatalf("%s %s: got %d %s, want %s", method, target, got.code, got.body, reason)
	}
	if _, rest, found := strings.Cut(got.status().Message, "request ap-"); found {
		name, _, _ := strings.Cut(rest, " ")
		return got, r.readApproval(t, "ap-"+strings.TrimRight(name, "),"))
	}
	return got, nil
}

func bodyType(method string) map[string]string {
	if method == http.MethodPatch {
		return map[string]string{"Content-Type": "application/merge-patch+json"}
	}
	return asJSON
}

func (r *approveRig) passes(t testing.TB, broker int, method, target, body string) reply {
	t.Helper()
	got := r.agents[broker].do(t, method, target, bodyType(method), body)
	if got.code < 200 || got.code > 299 {
		t.Fatalf("%s %s: got %d %s", method, target, got.code, got.body)
	}
	return got
}

// deletesNamespaceOnce is the story of design section 6, T101 to T103 and T107.
func (r *approveRig) deletesNamespaceOnce(t *testing.T) {
	r.apply(t, "{apiVersion: v1, kind: Namespace, metadata: {name: approve-gone, finalizers: [example.org/keep]}}")
	command := []string{"delete", "namespace", "approve-gone", "--wait=false"}
	first := r.agents[0].kubectl(t, command...)
	if first.code == 0 || !strings.Contains(first.stderr, "[taskgate:ApprovalRequired]") || !strings.Contains(first.stderr, "kubectl wait --for=condition=Decided approval/ap-") {
		t.Fatalf("got %s", first)
	}
	_, rest, _ := strings.Cut(first.stderr, "approval/")
	name, _, _ := strings.Cut(rest, " ")
	approval := r.readApproval(t, name)
	if approval.Spec.Gate != "namespace-delete" || approval.Spec.Grant != "approve" || approval.Spec.Summary != `delete namespaces "approve-gone"` || !strings.Contains(approval.Spec.Diff, "- example.org/keep") {
		t.Errorf("people are asked %+v", approval.Spec)
	}
	if again := r.agents[1].kubectl(t, command...); !strings.Contains(again.stderr, "request "+name+" ") {
		t.Errorf("the other broker asks otherwise: %s", again)
	}
	r.decides(t, approvalTarget(approval), v1alpha1.VerdictApprove, "olga", "operators") // she created the grant
	if again := r.agents[0].kubectl(t, command...); !strings.Contains(again.stderr, "[taskgate:ApprovalRequired]") {
		t.Errorf("the yes of who created the grant counts: %s", again)
	}
	r.decides(t, approvalTarget(approval), v1alpha1.VerdictApprove, "alice")
	r.untilApproval(t, name, v1alpha1.DecidedApproved)
	if changed := r.agents[0].kubectl(t, append(command, "--grace-period=7")...); !strings.Contains(changed.stderr, "[taskgate:ApprovalMismatch]") {
		t.Errorf("a changed command: %s", changed)
	}
	if passed := r.agents[1].kubectl(t, command...); passed.code != 0 {
		t.Fatalf("the approved command: %s", passed)
	}
	if again := r.agents[0].kubectl(t, command...); !strings.Contains(again.stderr, "[taskgate:ApprovalConsumed]") {
		t.Errorf("a second time: %s", again)
	}
	used := r.readApproval(t, name).Status.ConsumedBy
	r.joins(t, used, approval)
}

// joins looks at the records of the call that used an approval, and at what the
// API server saw of it.
func (r *approveRig) joins(t *testing.T, auditID string, approval *v1alpha1.Approval) {
	t.Helper()
	for _, e := range r.journal.of(t, auditID)[auditID] {
		a := e.Annotations
		if a[recorder.AnnotationApproval] != approval.Name || a[recorder.AnnotationDigest] != approval.Spec.Digest || a["taskgate.dev/deciders"] != "alice" || a[recorder.AnnotationGrant] != "approve" {
			t.Errorf("the record of the call: %v", a)
		}
	}
	log, err := os.ReadFile(r.Environment().AuditLog)
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for line := range strings.Lines(string(log)) {
		if strings.Contains(line, auditID) && strings.Contains(line, `"stage":"ResponseComplete","requestURI":"/api/v1/namespaces/approve-gone","verb":"delete"`) {
			seen++
			if !strings.Contains(line, fmt.Sprintf(`"preconditions":{"uid":%q}`, approval.Spec.Call.UID)) {
				t.Errorf("the API server was asked %s", line)
			}
		}
	}
	if seen != 1 {
		t.Errorf("the API server saw the call %d times", seen)
	}
}

func (r *approveRig) showsDiff(t *testing.T) {
	r.apply(t, "{apiVersion: v1, kind: ConfigMap, metadata: {name: colours, namespace: grants}, data: {wall: blue, door: green}}")
	target := mapTarget("colours")
	_, approval := r.refusedWith(t, 0, "PATCH", target, `{"data":{"wall":"red"}}`, "ApprovalRequired")
	for _, want := range []string{"-  wall: blue\n", "+  wall: red\n", "   door: green\n"} {
		if !strings.Contains(approval.Spec.Diff, want) {
			t.Errorf("%q is missing in\n%s", want, approval.Spec.Diff)
		}
	}
	if strings.Contains(approval.Spec.Diff, "managedFields") || strings.Contains(approval.Spec.Diff, "resourceVersion") {
		t.Errorf("noise in\n%s", approval.Spec.Diff)
	}
	body := `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"new"},"data":{"a":"b"}}`
	_, created := r.refusedWith(t, 1, "POST", "/api/v1/namespaces/grants/configmaps", body, "ApprovalRequired")
	if !strings.Contains(created.Spec.Diff, "+  a: b\n") || !strings.Contains(created.Spec.Summary, `"new"`) {
		t.Errorf("people are asked %+v", created.Spec)
	}
	r.decides(t, approvalTarget(approval), v1alpha1.VerdictApprove, "alice")
	r.decides(t, approvalTarget(created), v1alpha1.VerdictApprove, "alice")
	r.refusedWith(t, 1, "PATCH", target, `{"data":{"wall":"black"}}`, "ApprovalMismatch")
	r.passes(t, 1, "PATCH", target, `{"data":{"wall":"red"}}`)
	r.passes(t, 0, "POST", "/api/v1/namespaces/grants/configmaps", body)
	r.refusedWith(t, 0, "POST", "/api/v1/namespaces/grants/configmaps", body, "ApprovalConsumed")
}

func (r *approveRig) hidesSecrets(t *testing.T) {
	r.apply(t, "{apiVersion: v1, kind: Secret, metadata: {name: db, namespace: grants}, stringData: {user: app, password: correct-horse}}")
	const target = "/api/v1/namespaces/grants/secrets/db"
	_, approval := r.refusedWith(t, 0, "PATCH", target, `{"stringData":{"password":"battery-staple"}}`, "ApprovalRequired")
	for _, value := range []string{"correct-horse", "battery-staple", "Y29ycmVjdC1ob3JzZQ", "YmF0dGVyeS1zdGFwbGU"} {
		if strings.Contains(fmt.Sprint(approval.Spec), value) {
			t.Errorf("people see %s in %+v", value, approval.Spec)
		}
	}
	if !strings.Contains(approval.Spec.Diff, "+  password: '[redacted, changed]'\n") || approval.Spec.Call.BodySHA256 != "" {
		t.Errorf("people see %+v", approval.Spec)
	}
	// Reading is a gate of its own, and nothing of what is read is shown before.
	got, read := r.refusedWith(t, 1, "GET", target, "", "ApprovalRequired")
	if read.Spec.DiffNote == "" || strings.Contains(got.body, "Y29ycm") {
		t.Errorf("got %s, people see %+v", got.body, read.Spec)
	}
	r.decides(t, approvalTarget(read), v1alpha1.VerdictApprove, "alice")
	r.passes(t, 0, "GET", target, "")
	r.refusedWith(t, 1, "GET", target, "", "ApprovalConsumed")
}

// wouldBeRefused: nobody is asked about what the cluster would refuse anyway.
func (r *approveRig) wouldBeRefused(t *testing.T) {
	const maps = "/api/v1/namespaces/grants/configmaps"
	before := r.approvals(t)
	for _, row := range []struct {
		method, target, body string
		code                 int
	}{
		{"POST", maps, `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"Not_A_Name"}}`, 422},
		{"PATCH", maps + "/nobody", `{"data":{"a":"b"}}`, 404},
		{"DELETE", maps + "/nobody", "", 404},
		{"PUT", maps + "/colours", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"colours","resourceVersion":"1"}}`, 409},
	} {
		got := r.agents[0].do(t, row.method, row.target, bodyType(row.method), row.body)
		if got.code != row.code || !strings.HasPrefix(got.reason(), "UpstreamDenied") {
			t.Errorf("%s %s: got %d %s", row.method, row.target, got.code, got.body)
		}
	}
	if after := r.approvals(t); after != before {
		t.Errorf("people were asked %d times", after-before)
	}
}

func (r *approveRig) approvals(t testing.TB) int {
	t.Helper()
	list, err := r.client(decideApprovals).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return len(list.Items)
}

func (r *approveRig) isDenied(t *testing.T) {
	r.seed(t, "denied")
	_, approval := r.refusedWith(t, 0, "DELETE", mapTarget("denied"), "", "ApprovalRequired")
	r.decides(t, approvalTarget(approval), v1alpha1.VerdictApprove, "alice")
	r.decides(t, approvalTarget(approval), v1alpha1.VerdictDeny, "bob")
	for broker := range r.agents {
		if got, _ := r.refusedWith(t, broker, "DELETE", mapTarget("denied"), "", "ApprovalDenied"); !strings.Contains(got.body, "a test") {
			t.Errorf("got %s", got.body)
		}
	}
}

// expires is T106.
func (r *approveRig) expires(t *testing.T) {
	r.apply(t, "{apiVersion: v1, kind: Service, metadata: {name: late, namespace: grants}, spec: {ports: [{port: 80}]}}")
	const target = "/api/v1/namespaces/grants/services/late"
	_, approval := r.refusedWith(t, 0, "DELETE", target, "", "ApprovalRequired")
	r.untilApproval(t, approval.Name, v1alpha1.DecidedExpired)
	r.decides(t, approvalTarget(approval), v1alpha1.VerdictApprove, "alice")
	r.refusedWith(t, 1, "DELETE", target, "", "ApprovalExpired")
}

// isPinned is T113, and the target of another UID.
func (r *approveRig) isPinned(t *testing.T) {
	r.apply(t, "{apiVersion: v1, kind: ServiceAccount, metadata: {name: pinned, namespace: grants}}")
	const target = "/api/v1/namespaces/grants/serviceaccounts/pinned"
	_, approval := r.refusedWith(t, 0, "DELETE", target, "", "ApprovalRequired")
	r.decides(t, approvalTarget(approval), v1alpha1.VerdictApprove, "alice")
	r.admin(t, "--namespace=grants", "label", "serviceaccount/pinned", "changed=yes")
	r.refusedWith(t, 1, "DELETE", target, "", "ApprovalMismatch/ApprovalStale")
	r.admin(t, "--namespace=grants", "delete", "serviceaccount/pinned")
	r.apply(t, "{apiVersion: v1, kind: ServiceAccount, metadata: {name: pinned, namespace: grants}}")
	r.refusedWith(t, 1, "DELETE", target, "", "ApprovalMismatch/TargetChanged")
}

// deletesCollection is T123.
func (r *approveRig) deletesCollection(t *testing.T) {
	for _, name := range []string{"one", "two"} {
		r.apply(t, "{apiVersion: v1, kind: Endpoints, metadata: {name: "+name+", namespace: grants, labels: {app: many}}}")
	}
	const target = "/api/v1/namespaces/grants/endpoints?labelSelector=app%3Dmany"
	_, approval := r.refusedWith(t, 0, "DELETE", target, "", "ApprovalRequired")
	if approval.Spec.Gate != "deletecollection" || *approval.Spec.Call.Objects != 2 || !strings.Contains(approval.Spec.Diff, "-grants/one\n-grants/two\n") {
		t.Errorf("people are asked %+v", approval.Spec)
	}
	r.decides(t, approvalTarget(approval), v1alpha1.VerdictApprove, "alice")
	r.apply(t, "{apiVersion: v1, kind: Endpoints, metadata: {name: three, namespace: grants, labels: {app: many}}}")
	r.refusedWith(t, 1, "DELETE", target, "", "ApprovalMismatch/ApprovalStale")
	r.admin(t, "--namespace=grants", "delete", "endpoints/three")
	r.passes(t, 1, "DELETE", target, "")
	r.refusedWith(t, 0, "DELETE", target, "", "ApprovalConsumed")
}

func (r *approveRig) isHeld(t *testing.T) {
	const target = "/api/v1/namespaces/grants/limitranges"
	body := `{"apiVersion":"v1","kind":"LimitRange","metadata":{"name":"held"}}`
	var wait sync.WaitGroup
	before := r.approvals(t)
	var got reply
	wait.Go(func() { got = r.agents[0].do(t, "POST", target, asJSON, body) })
	eventually(t, 10*time.Second, "people are asked", func() error {
		list, err := r.client(decideApprovals).List(t.Context(), metav1.ListOptions{})
		if err != nil || len(list.Items) == before {
			return fmt.Errorf("nobody: %w", err)
		}
		for i := range list.Items {
			if approval := r.readApproval(t, list.Items[i].GetName()); approval.Spec.Gate == "held" {
				r.decides(t, approvalTarget(approval), v1alpha1.VerdictApprove, "alice")
			}
		}
		return nil
	})
	wait.Wait()
	if got.code != http.StatusCreated {
		t.Errorf("got %d %s", got.code, got.body)
	}
}

// races is T127 with real brokers: of many callers at both, one wins.
func (r *approveRig) races(t *testing.T) {
	const trials = 20
	for trial := range trials {
		name := fmt.Sprintf("race-%d", trial)
		r.seed(t, name)
		_, approval := r.refusedWith(t, trial%2, "DELETE", mapTarget(name), "", "ApprovalRequired")
		var wait sync.WaitGroup
		var mu sync.Mutex
		outcomes := map[string]int{}
		wait.Go(func() { r.decides(t, approvalTarget(approval), v1alpha1.VerdictApprove, "alice") })
		for i := range 6 {
			wait.Go(func() {
				for {
					got := r.agents[i%2].do(t, "DELETE", mapTarget(name), nil, "")
					if reason := got.reason(); reason != "ApprovalRequired" {
						mu.Lock()
						defer mu.Unlock()
						outcomes[fmt.Sprint(got.code, reason)]++
						return
					}
				}
			})
		}
		wait.Wait()
		if outcomes["200"] != 1 || outcomes["403ApprovalConsumed"] != 5 {
			t.Errorf("%s: %v", name, outcomes)
		}
		if used := r.readApproval(t, approval.Name).Status.ConsumedBy; used == "" {
			t.Errorf("%s is not used", approval.Name)
		}
	}
}
