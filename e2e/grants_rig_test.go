package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"sigs.k8s.io/yaml"

	"github.com/taskgate/taskgate/api/v1alpha1"
	"github.com/taskgate/taskgate/recorder"
)

// The tests of the life of grants create and change objects with a client: a
// kubectl per step would take most of their time.

// grantsSpace is the namespace the grants of these tests are about.
const grantsSpace = "grants"

// openPolicy gives what is inside the ceiling at once.
const openPolicy = "grant: {maxTTL: 4h, approval: None}"

var (
	grantsResource = v1alpha1.GroupVersion.WithResource("taskgrants")
	grantsPolicies = v1alpha1.GroupVersion.WithResource("agentpolicies")
	grantsMaps     = schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}
)

// grantsRig is a testbed in which every policy named grants-NAME, for the names
// it was made with, may act upstream.
type grantsRig struct{ *stack }

// grantsShared are the policies of the tests on the shared testbed.
var grantsShared struct {
	once sync.Once
	rig  *grantsRig
}

func newGrantsRig(t testing.TB) *grantsRig {
	t.Helper()
	s := sharedStack(t)
	grantsShared.once.Do(func() {
		rig := &grantsRig{s}
		var names []string
		for _, ending := range grantEndings() {
			names = append(names, ending.name)
		}
		rig.allowUpstream(t, append(names, "expired", "again", "latency", "rules", "one", "other", "several", "pending")...)
		rig.apply(t, grantsPod)
		rig.admin(t, "--namespace="+grantsSpace, "wait", "--for=condition=Ready", "pod/web", "--timeout=30s")
		grantsShared.rig = rig
	})
	if grantsShared.rig == nil {
		t.Fatal("the rig of the grants could not be made")
	}
	return grantsShared.rig
}

const grantsPod = `apiVersion: v1
kind: Pod
metadata: {name: web, namespace: grants}
spec: {containers: [{name: web, image: nginx}]}
`

// allowUpstream makes the namespace and lets the broker act for the policies, as
// which the cluster itself allows everything: here taskgate alone says no.
func (g *grantsRig) allowUpstream(t testing.TB, policies ...string) {
	t.Helper()
	var groups, subjects []string
	for _, name := range policies {
		group := "taskgate:policy:grants-" + name
		groups = append(groups, fmt.Sprintf("%q", group))
		subjects = append(subjects, fmt.Sprintf("{apiGroup: rbac.authorization.k8s.io, kind: Group, name: %q}", group))
	}
	g.apply(t, fmt.Sprintf(`apiVersion: v1
kind: Namespace
metadata: {name: %[1]s}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: grants-impersonate}
rules: [{apiGroups: [""], resources: [groups], resourceNames: [%[2]s], verbs: [impersonate]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: grants-impersonate}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: grants-impersonate}
subjects: [{kind: ServiceAccount, name: taskgate-broker, namespace: taskgate-system}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: grants-admin}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cluster-admin}
subjects: [%[3]s]
`, grantsSpace, strings.Join(groups, ", "), strings.Join(subjects, ", ")))
}

func (g *grantsRig) client(resource schema.GroupVersionResource) dynamic.NamespaceableResourceInterface {
	return g.dynamic.Resource(resource)
}

// object reads a manifest.
func grantsObject(t testing.TB, manifest string) *unstructured.Unstructured {
	t.Helper()
	object := &unstructured.Unstructured{}
	if err := yaml.Unmarshal([]byte(manifest), &object.Object); err != nil {
		t.Fatalf("%v in %s", err, manifest)
	}
	return object
}

// create creates an object without a namespace, which goes with the test.
func (g *grantsRig) create(t testing.TB, resource schema.GroupVersionResource, manifest string) {
	t.Helper()
	object, err := g.client(resource).Create(t.Context(), grantsObject(t, manifest), metav1.CreateOptions{})
	if err != nil {
		t.Fatalf("creating %s: %v", manifest, err)
	}
	g.removeAfter(t, resource, object.GetName())
}

// removeAfter deletes an object, if it is still there, when the test has ended.
func (g *grantsRig) removeAfter(t testing.TB, resource schema.GroupVersionResource, name string) {
	t.Cleanup(func() {
		err := g.client(resource).Delete(context.WithoutCancel(t.Context()), name, metav1.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			t.Errorf("deleting %s: %v", name, err)
		}
	})
}

// seed makes a config map for a test to read.
func (g *grantsRig) seed(t testing.TB, name string) {
	t.Helper()
	object := grantsObject(t, fmt.Sprintf("{apiVersion: v1, kind: ConfigMap, metadata: {name: %s}, data: {k: v}}", name))
	if _, err := g.client(grantsMaps).Namespace(grantsSpace).Create(t.Context(), object, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// patch changes an object with a merge patch, as the administrator.
func (g *grantsRig) patch(t testing.TB, resource schema.GroupVersionResource, name, change string) {
	t.Helper()
	if _, err := g.client(resource).Patch(t.Context(), name, types.MergePatchType, []byte(change), metav1.PatchOptions{}); err != nil {
		t.Fatalf("patching %s with %s: %v", name, change, err)
	}
}

func (g *grantsRig) remove(t testing.TB, resource schema.GroupVersionResource, name string) {
	t.Helper()
	if err := g.client(resource).Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
		t.Fatalf("deleting %s: %v", name, err)
	}
}

// allow creates the policy grants-NAME about some agents.
func (g *grantsRig) allow(t testing.TB, name, agents, more string, rules ...string) {
	t.Helper()
	g.create(t, grantsPolicies, fmt.Sprintf("apiVersion: taskgate.dev/v1alpha1\nkind: AgentPolicy\nmetadata: {name: grants-%s}\nspec:\n  agents: [%q]\n  allow: [%s]\n%s\n",
		name, agents, strings.Join(rules, ", "), indent(more)))
}

// give creates a grant under the policy grants-POLICY and waits until it is active.
func (g *grantsRig) give(t testing.TB, name, policy, agent, ttl string, rules ...string) v1alpha1.TaskGrant {
	t.Helper()
	g.create(t, grantsResource, grantManifest(name, "grants-"+policy, agent, ttl, rules...))
	return g.until(t, name, "Approved=True Active=True Ended=False Active")
}

// served waits until the agent's broker serves a call: the status of a grant is
// there for everybody to read a moment before brokers have read it themselves.
func (g *grantsRig) served(t testing.TB, who *agent, target string) {
	t.Helper()
	eventually(t, 5*time.Second, who.name+" is served "+target, func() error {
		if answer := asFault(who).call(t.Context(), "GET", target, ""); !answer.ok() {
			return errors.New(answer.String())
		}
		return nil
	})
}

// read reads a grant.
func (g *grantsRig) read(t testing.TB, name string) v1alpha1.TaskGrant {
	t.Helper()
	object, err := g.client(grantsResource).Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var grant v1alpha1.TaskGrant
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, &grant); err != nil {
		t.Fatal(err)
	}
	return grant
}

// conditionsOf are the conditions of a grant in one line, and the reason of the
// one a person looks at.
func conditionsOf(grant *v1alpha1.TaskGrant) string {
	var words []string
	for _, kind := range []string{v1alpha1.GrantApproved, v1alpha1.GrantActive, v1alpha1.GrantEnded} {
		if c := meta.FindStatusCondition(grant.Status.Conditions, kind); c != nil {
			words = append(words, kind+"="+string(c.Status))
		}
	}
	if c := meta.FindStatusCondition(grant.Status.Conditions, v1alpha1.GrantActive); c != nil {
		words = append(words, c.Reason)
	}
	return strings.Join(words, " ")
}

// until waits for the conditions of a grant.
func (g *grantsRig) until(t testing.TB, name, conditions string) v1alpha1.TaskGrant {
	t.Helper()
	var grant v1alpha1.TaskGrant
	eventually(t, 20*time.Second, name+" is "+conditions, func() error {
		if grant = g.read(t, name); conditionsOf(&grant) != conditions {
			return fmt.Errorf("it is %s: %v", conditionsOf(&grant), grant.Status.Conditions)
		}
		return nil
	})
	return grant
}

// mapRule is a rule about one config map.
func mapRule(name string) string {
	return fmt.Sprintf(`{namespaces: [grants], apiGroups: [""], resources: [configmaps], resourceNames: [%s], verbs: [get, watch]}`, name)
}

func mapTarget(name string) string {
	return "/api/v1/namespaces/" + grantsSpace + "/configmaps/" + name
}

func mapWatch(name string) string {
	return "/api/v1/namespaces/" + grantsSpace + "/configmaps?watch=true&fieldSelector=metadata.name%3D" + name
}

func asFault(a *agent) *faultAgent { return &faultAgent{a} }

// grantsEnds is what became of an agent that calls all the time while its grant ends.
type grantsEnds struct {
	lastSent time.Time // when the last call that was accepted was sent
	lastDone time.Time // … and answered
	refused  faultAnswer
	at       time.Time // when the refusal was there
}

// callUntilRefused calls one after the other until a call is refused; refusals
// after which a call is accepted again are a failure.
func callUntilRefused(t testing.TB, a *agent, target string, patience time.Duration) grantsEnds {
	t.Helper()
	var got grantsEnds
	eventually(t, patience, a.name+" is refused "+target, func() error {
		sent := time.Now()
		answer := asFault(a).call(t.Context(), "GET", target, "")
		if answer.err != nil {
			t.Fatal(answer)
		}
		if answer.ok() {
			got.lastSent, got.lastDone = sent, time.Now()
			return errors.New("accepted")
		}
		got.refused, got.at = answer, time.Now()
		return nil
	})
	for range 5 {
		if again := asFault(a).call(t.Context(), "GET", target, ""); again.ok() {
			t.Errorf("%s was accepted after it had been refused %s", target, got.refused.reason)
		}
	}
	return got
}

// judgeRefusals joins refusals with the records in the bucket and with the API
// server's own audit log, where they must not be.
func (g *grantsRig) judgeRefusals(t testing.TB, who *agent, refused ...faultAnswer) {
	t.Helper()
	var ids []string
	for _, answer := range refused {
		ids = append(ids, answer.auditID)
	}
	records, upstream := g.journal.of(t, ids...), g.upstream(t)
	for _, answer := range refused {
		r := row{who: who, code: answer.code, reason: answer.reason}
		if err := (&sent{row: r}).judge(records[answer.auditID], len(upstream[answer.auditID])); err != nil {
			t.Errorf("%s: %v", answer, err)
		}
	}
}

// judgeCut looks at the record of a watch or log that was cut.
func (g *grantsRig) judgeCut(t testing.TB, auditID, reason, grant string) {
	t.Helper()
	records := g.journal.of(t, auditID)[auditID]
	last := records[slices.IndexFunc(records, isOutcome)].Annotations
	if last[recorder.AnnotationOutcome] != "cut" || last[recorder.AnnotationReason] != reason || last[recorder.AnnotationGrant] != grant {
		t.Errorf("the record of %s ends with %v; want it cut for %s of %s", auditID, last, reason, grant)
	}
	opened := slices.ContainsFunc(records, func(e *recorder.Event) bool { return e.Stage == recorder.StageResponseStarted })
	if !opened {
		t.Errorf("that %s began is not on record", auditID)
	}
}
