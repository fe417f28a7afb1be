package doctor

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	metadatafake "k8s.io/client-go/metadata/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/taskgate/taskgate/api/v1alpha1"
	"github.com/taskgate/taskgate/recorder"
)

// brief is what a check says, in one line per finding and one for what it could
// not tell.
func brief(t *testing.T, config *Config, check string) []string {
	t.Helper()
	for _, c := range Checks() {
		if c.Name != check {
			continue
		}
		config.Timeout = 5 * time.Second
		result := c.run(t.Context(), config)
		var lines []string
		for _, f := range result.Findings {
			lines = append(lines, fmt.Sprintf("%s %s %s", f.Severity, f.Object, f.What))
			if f.Severity != Note && (f.Why == "" || f.Fix == "") {
				t.Errorf("%s: a finding without its reason or its cure: %+v", check, f)
			}
		}
		if result.Problem != "" {
			lines = append(lines, "unknown: "+result.Problem)
		}
		if result.Good() != (len(lines) == 0 || strings.HasPrefix(lines[0], "note")) {
			t.Errorf("%s: good is %v with %q", check, result.Good(), lines)
		}
		return lines
	}
	t.Fatalf("there is no check %q", check)
	return nil
}

// expect compares by prefix, so that the cause of an error need not be spelt out.
func expect(t *testing.T, got []string, want ...string) {
	t.Helper()
	ok := len(got) == len(want)
	for i := range want {
		ok = ok && strings.HasPrefix(got[i], want[i])
	}
	if !ok {
		t.Errorf("got\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

// Without anything to look at no check is good.
func TestNothingIsGood(t *testing.T) {
	t.Parallel()
	report, err := Run(t.Context(), &Config{Manifests: func(string) ([]string, error) { return nil, nil }, Timeout: time.Second, Now: time.Now, Skip: []string{"network"}})
	if err != nil {
		t.Fatal(err)
	}
	for i := range report {
		if report[i].Good() || report[i].Skipped != (report[i].Check == "network") || report[i].Skipped == (report[i].Problem != "") {
			t.Errorf("%+v", report[i])
		}
	}
	if report.Found() || !report.Unknown() {
		t.Errorf("found %v, unknown %v", report.Found(), report.Unknown())
	}
	if _, err := Run(t.Context(), &Config{Skip: []string{"nothing"}}); err == nil {
		t.Error("a check that is not there was left out")
	}
}

func TestTimeoutIsNotGood(t *testing.T) {
	t.Parallel()
	check := Check{"slow", "slow", func(_ *Config, ctx context.Context) ([]Finding, error) {
		<-ctx.Done()
		return nil, nil
	}}
	if result := check.run(t.Context(), &Config{Timeout: time.Millisecond}); result.Good() || result.Problem == "" {
		t.Errorf("%+v", result)
	}
}

const policyText = `apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: one}
spec: {failurePolicy: Fail, validations: [{expression: "true"}]}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: one}
spec: {policyName: one, validationActions: [Deny]}
`

func TestAdmission(t *testing.T) {
	t.Parallel()
	fail := admissionv1.Fail
	policy := &admissionv1.ValidatingAdmissionPolicy{ObjectMeta: metav1.ObjectMeta{Name: "one"}, Spec: admissionv1.ValidatingAdmissionPolicySpec{
		FailurePolicy: &fail, Validations: []admissionv1.Validation{{Expression: "true"}},
	}}
	binding := &admissionv1.ValidatingAdmissionPolicyBinding{ObjectMeta: metav1.ObjectMeta{Name: "one"}, Spec: admissionv1.ValidatingAdmissionPolicyBindingSpec{
		PolicyName: "one", ValidationActions: []admissionv1.ValidationAction{admissionv1.Deny},
	}}
	audit, extra := binding.DeepCopy(), policy.DeepCopy()
	audit.Spec.ValidationActions[0] = admissionv1.Audit
	extra.Spec.MatchConditions = []admissionv1.MatchCondition{{Name: "never", Expression: "false"}}
	const head = "error ValidatingAdmissionPolicy"
	for _, test := range []struct {
		name string
		live []runtime.Object
		want []string
	}{
		{"whole", []runtime.Object{policy, binding}, nil},
		{"all absent", nil, []string{head + "/one is absent", head + "Binding/one is absent"}},
		{"binding absent", []runtime.Object{policy}, []string{head + "Binding/one is absent"}},
		{"only audits", []runtime.Object{policy, audit}, []string{head + "Binding/one differs"}},
		{"a condition added", []runtime.Object{extra, binding}, []string{head + "/one differs"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			config := &Config{Kubernetes: fake.NewClientset(test.live...), Manifests: func(string) ([]string, error) { return []string{policyText}, nil }}
			expect(t, brief(t, config, "decisions"), test.want...)
		})
	}
	t.Run("forbidden", func(t *testing.T) {
		t.Parallel()
		client := fake.NewClientset(policy, binding)
		client.PrependReactor("get", "validatingadmissionpolicies", func(clienttesting.Action) (bool, runtime.Object, error) { return true, nil, errors.New("no") })
		config := &Config{Kubernetes: client, Manifests: func(string) ([]string, error) { return []string{policyText}, nil }}
		expect(t, brief(t, config, "decisions"), "unknown: reading the ValidatingAdmissionPolicy")
	})
}

func TestPolicies(t *testing.T) {
	t.Parallel()
	policy := func(change func(*v1alpha1.AgentPolicy)) v1alpha1.AgentPolicy {
		p := v1alpha1.AgentPolicy{ObjectMeta: metav1.ObjectMeta{Name: "shop"}, Spec: v1alpha1.AgentPolicySpec{Agents: []string{"spiffe://x/y"}}, Status: v1alpha1.AgentPolicyStatus{Conditions: []metav1.Condition{
			{Type: v1alpha1.PolicyValid, Status: metav1.ConditionTrue}, {Type: v1alpha1.PolicyUpstreamReady, Status: metav1.ConditionTrue},
		}}}
		change(&p)
		return p
	}
	for _, test := range []struct {
		name   string
		change func(*v1alpha1.AgentPolicy)
		want   []string
	}{
		{"good", func(*v1alpha1.AgentPolicy) {}, nil},
		{"suspended", func(p *v1alpha1.AgentPolicy) { p.Spec.Suspended = true }, []string{"warning agentpolicy/shop is suspended: spiffe://x/y"}},
		{"waived", func(p *v1alpha1.AgentPolicy) { p.Spec.Waive = []string{"exec"} }, []string{"warning agentpolicy/shop WAIVES the gates exec"}},
		{"not valid", func(p *v1alpha1.AgentPolicy) {
			p.Status.Conditions[0].Status, p.Status.Conditions[0].Message = metav1.ConditionFalse, "when: x"
		}, []string{"error agentpolicy/shop Valid is False: when: x"}},
		{"no RBAC", func(p *v1alpha1.AgentPolicy) { p.Status.Conditions[1].Status = metav1.ConditionUnknown }, []string{"error agentpolicy/shop UpstreamReady is Unknown"}},
		{"nobody looked", func(p *v1alpha1.AgentPolicy) { p.Status.Conditions = nil }, []string{"unknown: agentpolicy/shop: no broker has said"}},
		{"looked at before it changed", func(p *v1alpha1.AgentPolicy) { p.Generation, p.Status.Conditions[0].ObservedGeneration = 2, 1 }, []string{"unknown: agentpolicy/shop"}},
		{"only the heartbeat", func(p *v1alpha1.AgentPolicy) { p.Name = heartbeatObject }, []string{"warning agentpolicies there are none"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			config := &Config{Policies: func(context.Context) ([]v1alpha1.AgentPolicy, error) {
				return []v1alpha1.AgentPolicy{policy(test.change)}, nil
			}}
			expect(t, brief(t, config, "policies"), test.want...)
		})
	}
}

func TestBroker(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, answer string
		code         int
		want         []string
	}{
		{"ready", "[+]recorder ok\nok\n", 200, nil},
		{"a warning", "[!]the disk fills\nok\n", 200, []string{"warning URL the disk fills"}},
		{"not ready", "[-]recorder: bucket_unsafe\n[+]x ok\nnot ready\n", 503, []string{"error URL is not ready: recorder: bucket_unsafe"}},
		{"not ready, no reason", "", 503, []string{"error URL is not ready"}},
		{"somebody else", "<html>hello</html>", 200, []string{"unknown: URL answers 200"}},
		{"elsewhere", "ok\n", 302, []string{"unknown: URL answers 302"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(test.code)
				fmt.Fprint(w, test.answer)
			}))
			defer server.Close()
			got := brief(t, &Config{BrokerURLs: []string{server.URL}, Fetch: server.Client()}, "broker")
			for i := range got {
				got[i] = strings.ReplaceAll(got[i], server.URL, "URL")
			}
			expect(t, got, test.want...)
		})
	}
	expect(t, brief(t, &Config{Kubernetes: fake.NewClientset(), SystemNamespace: "s", BrokerSelector: "a=b"}, "broker"), "error namespace/s no pod has the labels of a broker")
	expect(t, brief(t, &Config{BrokerURLs: []string{"http://127.0.0.1:1"}, Fetch: &http.Client{}}, "broker"), "error http://127.0.0.1:1 does not answer")
}

// rightPod is a pod as injection leaves it.
func rightPod(change func(*corev1.Pod)) *corev1.Pod {
	always, yes := corev1.ContainerRestartPolicyAlways, true
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "agents", Name: "p", Labels: map[string]string{agentLabel: "true"}},
		Spec:       corev1.PodSpec{InitContainers: []corev1.Container{{Name: sidecarName, Image: "new", RestartPolicy: &always}}},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning, InitContainerStatuses: []corev1.ContainerStatus{{Name: sidecarName, Started: &yes}}},
	}
	change(pod)
	return pod
}

func TestPods(t *testing.T) {
	t.Parallel()
	yes := true
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "agents", Labels: map[string]string{agentsLabel: "true"}}}
	settings := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "taskgate-system", Name: settingsObject}, Data: map[string]string{"image": "new", "images": "old\nnew\n"}}
	confined := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "agents", Name: "n"}, Spec: networkingv1.NetworkPolicySpec{
		PodSelector: metav1.LabelSelector{MatchLabels: map[string]string{agentLabel: "true"}}, PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeEgress},
	}}
	for _, test := range []struct {
		name    string
		change  func(*corev1.Pod)
		want    []string
		network []string
	}{
		{"right", func(*corev1.Pod) {}, nil, nil},
		{"over", func(p *corev1.Pod) { p.Spec, p.Status.Phase = corev1.PodSpec{}, corev1.PodSucceeded }, nil, nil},
		{"not labelled", func(p *corev1.Pod) { p.Labels = nil }, []string{"error pod/agents/p stands in a namespace of agents without the label"}, []string{"warning pod/agents/p no NetworkPolicy"}},
		{"elsewhere", func(p *corev1.Pod) { p.Namespace = "other" }, []string{"error pod/other/p is labelled as an agent's, in a namespace that is not"}, nil},
		{"no sidecar", func(p *corev1.Pod) { p.Spec.InitContainers = nil }, []string{"error pod/agents/p has no sidecar"}, nil},
		{"a sidecar that ends", func(p *corev1.Pod) { p.Spec.InitContainers[0].RestartPolicy = nil }, []string{"error pod/agents/p has no sidecar"}, nil},
		{"old", func(p *corev1.Pod) { p.Spec.InitContainers[0].Image = "old" }, []string{"warning pod/agents/p its sidecar has the old image old"}, nil},
		{"strange", func(p *corev1.Pod) { p.Spec.InitContainers[0].Image = "evil" }, []string{"error pod/agents/p its sidecar has the image evil, which is not accepted"}, nil},
		{"not started", func(p *corev1.Pod) { p.Status.InitContainerStatuses = nil }, []string{"error pod/agents/p its sidecar has not started"}, nil},
		{"a token", func(p *corev1.Pod) {
			p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{}}}}}}}
		}, []string{"error pod/agents/p has a token of its service account (volume v)"}, nil},
		{"the host's network", func(p *corev1.Pod) { p.Spec.HostNetwork = true }, []string{"error pod/agents/p shares a namespace of its node"}, nil},
		{"processes shared", func(p *corev1.Pod) { p.Spec.ShareProcessNamespace = &yes }, []string{"error pod/agents/p its containers see"}, nil},
		{"debugged", func(p *corev1.Pod) { p.Spec.EphemeralContainers = []corev1.EphemeralContainer{{}} }, []string{"error pod/agents/p a debug container"}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			config := &Config{Kubernetes: fake.NewClientset(namespace, settings, confined, rightPod(test.change)), SystemNamespace: "taskgate-system"}
			expect(t, brief(t, config, "pods"), test.want...)
			expect(t, brief(t, config, "network"), test.network...)
		})
	}
	whole := func(*corev1.Pod) {}
	expect(t, brief(t, &Config{Kubernetes: fake.NewClientset(namespace, rightPod(whole)), SystemNamespace: "taskgate-system"}, "pods"), "unknown: reading which images")
	expect(t, brief(t, &Config{Kubernetes: fake.NewClientset(namespace, settings, rightPod(whole))}, "network"), "warning pod/agents/p no NetworkPolicy")
}

func TestTokens(t *testing.T) {
	t.Parallel()
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "agents", Labels: map[string]string{agentsLabel: "true"}}}
	scheme := metadatafake.NewTestScheme()
	if err := metav1.AddMetaToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	client := metadatafake.NewSimpleMetadataClient(scheme)
	config := &Config{Kubernetes: fake.NewClientset(namespace), Metadata: client}
	expect(t, brief(t, config, "tokens"))
	client.PrependReactor("list", "secrets", func(clienttesting.Action) (bool, runtime.Object, error) { return true, nil, errors.New("no") })
	expect(t, brief(t, config, "tokens"), "unknown: listing the names of Secrets in the namespace agents")
}

func TestLocked(t *testing.T) {
	t.Parallel()
	now := time.Now()
	object := func(change func(*recorder.SurveyObject)) *recorder.SurveyObject {
		o := &recorder.SurveyObject{Version: recorder.Version{Key: "k", ID: "1"}, Lock: recorder.Lock{Mode: "COMPLIANCE", Until: now.Add(time.Hour)}}
		change(o)
		return o
	}
	for name, test := range map[string]struct {
		object         *recorder.SurveyObject
		found, unknown bool
	}{
		"locked":     {object(func(*recorder.SurveyObject) {}), false, false},
		"absent":     {nil, true, false},
		"governance": {object(func(o *recorder.SurveyObject) { o.Lock.Mode = "GOVERNANCE" }), true, false},
		"no lock":    {object(func(o *recorder.SurveyObject) { o.Lock = recorder.Lock{} }), true, false},
		"no version": {object(func(o *recorder.SurveyObject) { o.ID = "" }), true, false},
		"ended":      {object(func(o *recorder.SurveyObject) { o.Lock.Until = now.Add(-time.Second) }), true, false},
		"not told":   {object(func(o *recorder.SurveyObject) { o.Locked = recorder.ErrDenied }), false, true},
	} {
		findings, err := locked("canary", test.object, now)
		if len(findings) > 0 != test.found || (err != nil) != test.unknown {
			t.Errorf("%s: %v, %v", name, findings, err)
		}
	}
}
