package e2e_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"github.com/taskgate/taskgate/manifests"
)

// podKind is a kind of object that makes pods.
type podKind struct {
	kind, collection string   // collection of namespace case-a
	spec             []string // where the spec of its pods is
	around           string   // fields its own spec needs
	frozen           bool     // whether the API server itself lets nobody change it
}

var podKinds = []podKind{
	{"v1/Pod", "/api/v1/namespaces/case-a/pods", []string{"spec"}, "", true},
	{"v1/PodTemplate", "/api/v1/namespaces/case-a/podtemplates", []string{"template", "spec"}, "", false},
	{"v1/ReplicationController", "/api/v1/namespaces/case-a/replicationcontrollers", []string{"spec", "template", "spec"}, `"replicas":0,"selector":{"app":"x"}`, false},
	{"apps/v1/Deployment", "/apis/apps/v1/namespaces/case-a/deployments", []string{"spec", "template", "spec"}, `"replicas":0,"selector":{"matchLabels":{"app":"x"}}`, false},
	{"apps/v1/ReplicaSet", "/apis/apps/v1/namespaces/case-a/replicasets", []string{"spec", "template", "spec"}, `"replicas":0,"selector":{"matchLabels":{"app":"x"}}`, false},
	{"apps/v1/StatefulSet", "/apis/apps/v1/namespaces/case-a/statefulsets", []string{"spec", "template", "spec"}, `"replicas":0,"serviceName":"x","selector":{"matchLabels":{"app":"x"}}`, false},
	{"apps/v1/DaemonSet", "/apis/apps/v1/namespaces/case-a/daemonsets", []string{"spec", "template", "spec"}, `"selector":{"matchLabels":{"app":"x"}}`, false},
	{"batch/v1/Job", "/apis/batch/v1/namespaces/case-a/jobs", []string{"spec", "template", "spec"}, `"suspend":true`, true},
	{"batch/v1/CronJob", "/apis/batch/v1/namespaces/case-a/cronjobs", []string{"spec", "jobTemplate", "spec", "template", "spec"}, `"schedule":"0 0 1 1 *","suspend":true`, false},
}

// object is an object of the kind whose pods have the spec.
func (k podKind) object(name, podSpec string) string {
	inner := podSpec
	for i, field := range slices.Backward(k.spec) {
		switch {
		case field == "template":
			inner = fmt.Sprintf(`{"template":{"metadata":{"labels":{"app":"x"}},%s}}`, strings.Trim(inner, "{}")+closing(inner))
		case i == 0 && k.around != "":
			inner = fmt.Sprintf(`{%q:%s}`, field, strings.Replace(inner, "{", "{"+k.around+",", 1))
		default:
			inner = fmt.Sprintf(`{%q:%s}`, field, inner)
		}
	}
	version, kind := k.kind[:strings.LastIndex(k.kind, "/")], k.kind[strings.LastIndex(k.kind, "/")+1:]
	return strings.Replace(inner, "{", fmt.Sprintf(`{"apiVersion":%q,"kind":%q,"metadata":{"name":%q,"namespace":"case-a"},`, version, kind, name), 1)
}

// closing gives back the braces that Trim took from the end beyond the one of
// the object itself.
func closing(text string) string {
	count := len(text) - len(strings.TrimRight(text, "}")) - 1
	return strings.Repeat("}", max(count, 0))
}

// violation is a pod spec an agent may not make.
type violation struct {
	name  string
	patch string // of the pod spec, as a merge patch
}

const plainContainer = `{"name":"c","image":"nginx","terminationMessagePolicy":"File"}`

var violations = []violation{
	{"hostNetwork", `{"hostNetwork":true}`},
	{"hostPID", `{"hostPID":true}`},
	{"hostIPC", `{"hostIPC":true}`},
	{"hostPath", `{"volumes":[{"name":"v","hostPath":{"path":"/"}}]}`},
	{"privileged", `{"containers":[{"name":"c","image":"nginx","securityContext":{"privileged":true}}]}`},
	{"privileged init", `{"initContainers":[{"name":"i","image":"nginx","securityContext":{"privileged":true}}]}`},
	{"privileged sidecar", `{"initContainers":[{"name":"i","image":"nginx","restartPolicy":"Always","securityContext":{"privileged":true}}]}`},
	{"hostProcess", `{"hostNetwork":true,"securityContext":{"windowsOptions":{"hostProcess":true}}}`},
	{"hostProcess container", `{"hostNetwork":true,"containers":[{"name":"c","image":"nginx","securityContext":{"windowsOptions":{"hostProcess":true}}}]}`},
	{"account", `{"serviceAccountName":"robot"}`},
	{"account, old name", `{"serviceAccount":"robot"}`},
}

// merged is the plain pod spec with the violation in it.
func merged(t testing.TB, patch string) string {
	t.Helper()
	spec := map[string]any{}
	for _, text := range []string{`{"restartPolicy":"Always","containers":[` + plainContainer + `]}`, patch} {
		if err := json.Unmarshal([]byte(text), &spec); err != nil {
			t.Fatal(err)
		}
	}
	encoded, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	return string(encoded)
}

func (k podKind) specOf(t testing.TB, patch string) string {
	text := merged(t, patch)
	if strings.Contains(k.kind, "Job") {
		text = strings.Replace(text, `"restartPolicy":"Always","`, `"restartPolicy":"Never","`, 1)
		text = strings.Replace(text, `"restartPolicy":"Always"}`, `"restartPolicy":"Never"}`, 1)
	}
	return text
}

// nested puts a patch of the pod spec where the pod spec is.
func (k podKind) nested(patch string) string {
	for _, field := range slices.Backward(k.spec) {
		patch = fmt.Sprintf(`{%q:%s}`, field, patch)
	}
	return patch
}

// admissionRig is an agent that may make pods, also as builder, and the same
// principal without taskgate in between.
type admissionRig struct {
	*casesRig
	agent  *agent
	direct way // to the API server, as taskgate:agent
}

var admission struct {
	once sync.Once
	rig  *admissionRig
}

func newAdmissionRig(t *testing.T) *admissionRig {
	t.Helper()
	rig := newCasesRig(t)
	admission.once.Do(func() {
		keep := &keeper{TB: t}
		a := rig.newAgent(keep, "admission")
		rule := `{namespaces: [case-a], apiGroups: ["", apps, batch], resources: [pods, pods/ephemeralcontainers, pods/status, podtemplates, replicationcontrollers, deployments, deployments/scale, deployments/status, replicasets, statefulsets, daemonsets, jobs, cronjobs], verbs: [get, create, update, patch, delete], serviceAccounts: [builder]}`
		rig.apply(t, "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: robot, namespace: case-a}\n")
		rig.policy(keep, "admission", a, waivesAll, rule)
		rig.grant(keep, "admission", "admission", a, "1h", rule)
		admission.rig = &admissionRig{rig, a, rig.as(t, "taskgate:agent", "taskgate:agents", "taskgate:policy:admission")}
	})
	if admission.rig == nil {
		t.Fatal("the rig of the admission tests could not be made")
	}
	return admission.rig
}

// as is a way to the API server as somebody the administrator impersonates.
func (s *stack) as(t testing.TB, user string, groups ...string) way {
	t.Helper()
	config := s.Admin()
	config.Impersonate = rest.ImpersonationConfig{UserName: user, Groups: groups}
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		t.Fatal(err)
	}
	return way{user, client, config.Host, ""}
}

// change is one way of putting a pod spec into an object.
type change struct {
	name, method, mediaType string
	body                    func(k podKind, v violation) string
}

func changes(t testing.TB, name string) []change {
	whole := func(k podKind, v violation) string { return k.object(name, k.specOf(t, v.patch)) }
	return []change{
		{"create", "POST", "application/json", func(k podKind, v violation) string { return k.object(name+"-new", k.specOf(t, v.patch)) }},
		{"create by apply", "PATCH", "application/apply-patch+yaml", func(k podKind, v violation) string { return k.object(name+"-new", k.specOf(t, v.patch)) }},
		{"update", "PUT", "application/json", whole},
		{"apply", "PATCH", "application/apply-patch+yaml", whole},
		{"merge patch", "PATCH", "application/merge-patch+json", func(k podKind, v violation) string { return k.nested(v.patch) }},
		{"strategic patch", "PATCH", "application/strategic-merge-patch+json", func(k podKind, v violation) string { return k.nested(v.patch) }},
		{"JSON patch", "PATCH", "application/json-patch+json", func(k podKind, v violation) string {
			return fmt.Sprintf(`[{"op":"replace","path":"/%s","value":%s}]`, strings.Join(k.spec, "/"), k.specOf(t, v.patch))
		}},
	}
}

func (c change) target(k podKind, name string) string {
	target := k.collection
	if c.name == "create by apply" {
		target += "/" + name + "-new"
	} else if c.method != "POST" {
		target += "/" + name
	}
	target += "?dryRun=All"
	if c.mediaType == "application/apply-patch+yaml" {
		target += "&fieldManager=test&force=true"
	}
	return target
}

// TestAdmission makes every kind with every violation by every kind of request,
// through the boundary and, as the same user, past it.
func TestAdmission(t *testing.T) {
	rig := newAdmissionRig(t)
	for _, k := range podKinds {
		rig.apply(t, k.object("base", k.specOf(t, `{}`)))
	}
	sidecar := rig.agent.ways(t)[0]
	var refusedBy counter
	var work sync.WaitGroup
	for _, k := range podKinds {
		work.Go(func() {
			for _, c := range changes(t, "base") {
				for _, way := range []way{sidecar, rig.direct} {
					for _, v := range violations {
						refusedBy.add(strings.Split(way.name, " ")[0] + ": " + c.try(t, way, k, v))
					}
					// The same without a violation is fine.
					harmless := violation{"nothing", `{"containers":[{"name":"c","image":"nginx:2"}]}`}
					got := way.do(t, c.method, c.target(k, "base"), map[string]string{"Content-Type": c.mediaType}, c.body(k, harmless))
					if got.code/100 != 2 && !(k.frozen && got.code == http.StatusUnprocessableEntity) {
						t.Errorf("%s of a plain %s as %s: %d: %.400s", c.name, k.kind, way.name, got.code, got.body)
					}
				}
			}
		})
	}
	work.Wait()
	t.Logf("%d kinds, %d violations, %d kinds of request, each two ways; refused by %v", len(podKinds), len(violations), len(changes(t, "")), refusedBy.counts)
}

// counter counts words in several goroutines.
type counter struct {
	mu     sync.Mutex
	counts map[string]int
}

func (c *counter) add(word string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.counts == nil {
		c.counts = map[string]int{}
	}
	c.counts[word]++
}

// try makes one violation in one way and answers who refused it.
func (c change) try(t *testing.T, way way, k podKind, v violation) string {
	t.Helper()
	got := way.do(t, c.method, c.target(k, "base"), map[string]string{"Content-Type": c.mediaType}, c.body(k, v))
	by := judged(got)
	switch {
	case by == "broker", by == "admission policy":
	case by == "invalid" && (k.frozen && !strings.HasPrefix(c.name, "create") || strings.HasPrefix(v.name, "hostProcess")):
	case v.name == "account, old name" && got.code == 200 && !strings.Contains(got.body, `"serviceAccountName":"robot"`):
		return "API server: ignored" // the new name of the field counts
	default:
		t.Errorf("%s of a %s with %s as %s: %d %s: %.400s", c.name, k.kind, v.name, way.name, got.code, by, got.body)
	}
	return by
}

// judged says who refused.
func judged(got reply) string {
	message := got.status().Message
	switch {
	case got.code == 403 && got.reason() == "PolicyDenied/PodPolicy":
		return "broker"
	case got.code == 403 && strings.Contains(message, "ValidatingAdmissionPolicy 'taskgate-pods'") && strings.Contains(message, "[taskgate:PolicyDenied]"):
		return "admission policy"
	case got.code == 422:
		return "invalid"
	}
	return "nobody"
}

// TestAdmissionOfAccounts: pods run as default or as an account the policy names,
// and an update changes nothing about it.
func TestAdmissionOfAccounts(t *testing.T) {
	rig := newAdmissionRig(t)
	sidecar := rig.agent.ways(t)[0]
	for _, k := range podKinds {
		for account, allowed := range map[string]bool{"builder": true, "default": true, "robot": false} {
			for _, way := range []way{sidecar, rig.direct} {
				got := way.do(t, "POST", k.collection+"?dryRun=All", asJSON, k.object("account", k.specOf(t, fmt.Sprintf(`{"serviceAccountName":%q}`, account))))
				if passed := got.code == 201; passed != allowed {
					t.Errorf("a %s as %s by %s: %d: %.300s", k.kind, account, way.name, got.code, got.body)
				}
			}
		}
		if k.frozen {
			continue
		}
		rig.apply(t, k.object("as-robot", k.specOf(t, `{"serviceAccountName":"robot"}`)))
		for patch, allowed := range map[string]bool{
			`{"containers":[{"name":"c","image":"nginx:2"}]}`: true, `{"serviceAccountName":"robot"}`: true, `{"serviceAccountName":"builder","serviceAccount":"builder"}`: false,
			`{"serviceAccountName":"default","serviceAccount":"default"}`: false, `{"serviceAccountName":null,"serviceAccount":null}`: false,
		} {
			for _, way := range []way{sidecar, rig.direct} {
				got := way.do(t, "PATCH", k.collection+"/as-robot?dryRun=All", asMerge, k.nested(patch))
				if passed := got.code == 200; passed != allowed {
					t.Errorf("changing a %s of robot with %s by %s: %d: %.300s", k.kind, patch, way.name, got.code, got.body)
				}
			}
		}
	}
}

// TestAdmissionOfDebugging: ephemeral containers are containers.
func TestAdmissionOfDebugging(t *testing.T) {
	rig := newAdmissionRig(t)
	sidecar := rig.agent.ways(t)[0]
	const target = casePod + "/ephemeralcontainers?dryRun=All"
	for _, row := range []struct {
		context string
		code    int
	}{{`{}`, 200}, {`{"privileged":true}`, 403}} {
		container := `{"name":"debug","image":"busybox","terminationMessagePolicy":"File","imagePullPolicy":"Always","securityContext":` + row.context + `}`
		for mediaType, body := range map[string]string{
			"application/strategic-merge-patch+json": `{"spec":{"ephemeralContainers":[` + container + `]}}`,
			"application/merge-patch+json":           `{"spec":{"ephemeralContainers":[` + container + `]}}`,
			"application/json-patch+json":            `[{"op":"add","path":"/spec/ephemeralContainers","value":[` + container + `]}]`,
		} {
			for _, way := range []way{sidecar, rig.direct} {
				if got := way.do(t, "PATCH", target, map[string]string{"Content-Type": mediaType}, body); got.code != row.code {
					t.Errorf("%s with %s by %s: %d: %.300s", mediaType, row.context, way.name, got.code, got.body)
				}
			}
		}
	}
}

// TestAdmissionOfOthers: nobody else is held back.
func TestAdmissionOfOthers(t *testing.T) {
	rig := newCasesRig(t)
	for _, way := range []way{rig.as(t, "alice", "system:masters"), rig.as(t, "taskgate:agents", "system:masters"), rig.as(t, "system:serviceaccount:case-a:robot", "system:masters")} {
		for _, k := range podKinds {
			for _, v := range violations {
				if strings.HasPrefix(v.name, "hostProcess") {
					continue // not valid beside the rest
				}
				got := way.do(t, "POST", k.collection+"?dryRun=All", asJSON, k.object("other", k.specOf(t, v.patch)))
				if got.code != 201 && !strings.Contains(got.body, `serviceaccount \"robot\" not found`) {
					t.Errorf("a %s with %s by %s: %d: %.300s", k.kind, v.name, way.name, got.code, got.body)
				}
			}
		}
	}
}

// TestAdmissionManifest: the objects in the cluster are those of the manifest,
// after the API server filled in its defaults.
func TestAdmissionManifest(t *testing.T) {
	s := sharedStack(t)
	for document := range strings.SplitSeq(manifests.AdmissionPods, "\n---\n") {
		var policy admissionv1.ValidatingAdmissionPolicy
		var binding admissionv1.ValidatingAdmissionPolicyBinding
		if strings.Contains(document, "\nkind: ValidatingAdmissionPolicyBinding") {
			if err := yaml.UnmarshalStrict([]byte(document), &binding); err != nil {
				t.Fatal(err)
			}
			live, err := s.kube.AdmissionregistrationV1().ValidatingAdmissionPolicyBindings().Get(t.Context(), binding.Name, metav1.GetOptions{})
			if err != nil || !equality.Semantic.DeepEqual(live.Spec, binding.Spec) {
				t.Errorf("the binding is %+v, the manifest says %+v (%v)", live.Spec, binding.Spec, err)
			}
			continue
		}
		if err := yaml.UnmarshalStrict([]byte(document), &policy); err != nil {
			t.Fatal(err)
		}
		live, err := s.kube.AdmissionregistrationV1().ValidatingAdmissionPolicies().Get(t.Context(), policy.Name, metav1.GetOptions{})
		if err != nil || !equality.Semantic.DeepEqual(live.Spec, policy.Spec) {
			t.Errorf("the policy is %+v, the manifest says %+v (%v)", live.Spec, policy.Spec, err)
		}
		if live != nil && live.Status.TypeChecking != nil && len(live.Status.TypeChecking.ExpressionWarnings) > 0 {
			t.Logf("the API server warns: %v", live.Status.TypeChecking.ExpressionWarnings)
		}
	}
}
