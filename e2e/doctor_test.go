package e2e_test

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/taskgate/taskgate/e2e/testbed"
	"github.com/taskgate/taskgate/manifests"
)

// doctorBed is an installation that is as it should be, but that nothing injects
// sidecars and that its brokers run outside the cluster.
type doctorBed struct {
	*stack
	repository string
}

const doctorPolicy = `apiVersion: taskgate.dev/v1alpha1
kind: AgentPolicy
metadata: {name: ward}
spec:
  agents: ["spiffe://example.org/ns/agents/sa/*"]
  allow: [{namespaces: [default], apiGroups: [""], resources: [pods], verbs: [get]}]
  grant: {maxTTL: 4h, approval: None}
`

func startDoctor(t *testing.T) *doctorBed {
	t.Helper()
	repository, err := testbed.FindRepository()
	if err != nil {
		t.Fatal(err)
	}
	b := &doctorBed{startStack(t, testbed.Options{Node: testbed.NoNode, WithoutControllers: true}), repository}
	// The doctor runs as root, and is to have an identity.
	if _, err := b.SPIRE().CreateEntry(t.Context(), testbed.Entry{ID: spiffeid.RequireFromString("spiffe://example.org/doctor"), UID: 0}); err != nil {
		t.Fatal(err)
	}
	roles := b.command(t, doctorPolicy, b.Environment().Programs+"/taskgate", "policy", "rbac", "-f", "-")
	if roles.code != 0 {
		t.Fatal(roles)
	}
	b.apply(t, roles.stdout+"---\n"+doctorPolicy)
	return b
}

// doctor runs all checks but those left out, and answers each finding and each
// check that could not be made as one line.
func (b *doctorBed) doctor(t testing.TB, skip string, arguments ...string) (lines []string, code int) {
	t.Helper()
	environment := b.Environment()
	got := b.command(t, "", environment.Programs+"/taskgate", append([]string{
		"doctor", "-o", "json", "--kubeconfig", environment.AdminKubeconfig, "--broker-url", strings.TrimSuffix(environment.BrokerMetrics, "/metrics"),
		"--workload-api", "unix://" + filepath.Join(b.Directory(), "identity/agent.sock"), "--skip", skip,
	}, arguments...)...)
	var report struct {
		Checks []struct {
			Check, Problem string
			Findings       []struct{ Severity, Object, What, Why, Fix string }
		}
	}
	if err := json.Unmarshal([]byte(got.stdout), &report); err != nil {
		t.Fatalf("%v: %s", err, got)
	}
	for _, check := range report.Checks {
		for _, f := range check.Findings {
			if f.Severity != "note" {
				lines = append(lines, fmt.Sprintf("%s: %s %s %s", check.Check, f.Severity, f.Object, f.What))
			}
		}
		if check.Problem != "" {
			lines = append(lines, check.Check+": unknown: "+check.Problem)
		}
	}
	return lines, got.code
}

// finds waits until the doctor says exactly what begins with want, and exits so.
func (b *doctorBed) finds(t testing.TB, skip string, code int, want ...string) {
	t.Helper()
	eventually(t, time.Minute, "the doctor's finding", func() error {
		lines, exit := b.doctor(t, skip)
		same := slices.EqualFunc(lines, want, strings.HasPrefix)
		if !same || exit != code {
			return fmt.Errorf("exit %d, want %d\n%s\nwant\n%s", exit, code, strings.Join(lines, "\n"), strings.Join(want, "\n"))
		}
		return nil
	})
}

// TestDoctor sees a healthy installation, then one with one thing broken at a
// time.
func TestDoctor(t *testing.T) {
	t.Parallel()
	b := startDoctor(t)
	b.finds(t, "injection", 0)
	for _, test := range []struct {
		name, skip       string
		breaking, mended []string // kubectl
		want             []string
	}{
		{
			"a binding deleted", "injection", []string{"delete", "validatingadmissionpolicybinding", "taskgate-decisions"}, []string{"apply", "-k", filepath.Join(b.repository, "manifests/admission")},
			[]string{"decisions: error ValidatingAdmissionPolicyBinding/taskgate-decisions is absent", "broker: error "},
		},
		{
			"a policy that looks the other way", "injection,broker",
			[]string{"patch", "validatingadmissionpolicy", "taskgate-approvals", "--type=json", `-p=[{"op":"add","path":"/spec/matchConditions","value":[{"name":"never","expression":"false"}]}]`},
			[]string{"patch", "validatingadmissionpolicy", "taskgate-approvals", "--type=json", `-p=[{"op":"remove","path":"/spec/matchConditions"}]`},
			[]string{"decisions: error ValidatingAdmissionPolicy/taskgate-approvals differs from the one of this version"},
		},
		{
			"a binding that only warns", "injection,broker",
			[]string{"patch", "validatingadmissionpolicybinding", "taskgate-pods", "--type=merge", `-p={"spec":{"validationActions":["Warn"]}}`},
			[]string{"patch", "validatingadmissionpolicybinding", "taskgate-pods", "--type=merge", `-p={"spec":{"validationActions":["Deny"]}}`},
			[]string{"admission: error ValidatingAdmissionPolicyBinding/taskgate-pods differs from the one of this version"},
		},
		{
			"a policy suspended", "injection", []string{"patch", "agentpolicy", "ward", "--type=merge", `-p={"spec":{"suspended":true}}`}, []string{"patch", "agentpolicy", "ward", "--type=merge", `-p={"spec":{"suspended":false}}`},
			[]string{"policies: warning agentpolicy/ward is suspended"},
		},
		{
			"a gate waived", "injection", []string{"patch", "agentpolicy", "ward", "--type=merge", `-p={"spec":{"waive":["exec"]}}`}, []string{"patch", "agentpolicy", "ward", "--type=merge", `-p={"spec":{"waive":null}}`},
			[]string{"policies: warning agentpolicy/ward WAIVES the gates exec"},
		},
		{
			"RBAC gone", "injection", []string{"delete", "clusterrolebinding", "taskgate-policy-ward-impersonate"}, nil,
			[]string{"policies: error agentpolicy/ward UpstreamReady is False"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			b.admin(t, test.breaking...)
			b.finds(t, test.skip, 1, test.want...)
			if test.mended != nil {
				b.admin(t, test.mended...)
				b.finds(t, test.skip, 0)
			}
		})
	}
	t.Run("pods", func(t *testing.T) { testDoctorPods(t, b) })
	t.Run("somebody without rights", func(t *testing.T) { testDoctorUnknown(t, b) })
	t.Run("injection", func(t *testing.T) { testDoctorInjection(t, b) })
	t.Run("broker dead", func(t *testing.T) { testDoctorBroker(t, b) })
}

// doctorPods are a namespace of agents with a pod nobody injected and one that
// only calls itself an agent's, elsewhere.
const doctorPods = `
apiVersion: v1
kind: Pod
metadata: {name: bare, namespace: doctor}
spec: {containers: [{name: c, image: i}]}
---
apiVersion: v1
kind: Pod
metadata: {name: posing, namespace: elsewhere, labels: {taskgate.dev/agent: "true"}}
spec: {automountServiceAccountToken: false, containers: [{name: c, image: i}]}
---
apiVersion: v1
kind: Secret
metadata: {name: old-token, namespace: doctor, annotations: {kubernetes.io/service-account.name: default}}
type: kubernetes.io/service-account-token
`

func testDoctorPods(t *testing.T, b *doctorBed) {
	for _, namespace := range []string{"doctor", "elsewhere"} {
		b.admin(t, "create", "namespace", namespace)
		b.admin(t, "create", "serviceaccount", "default", "-n", namespace)
	}
	b.apply(t, doctorPods)
	b.admin(t, "label", "namespace", "doctor", "taskgate.dev/agents=true")
	const rest = "injection,policies"
	b.finds(t, rest, 1,
		"pods: error pod/elsewhere/posing is labelled as an agent's, in a namespace that is not",
		"pods: error pod/doctor/bare stands in a namespace of agents without the label",
		"pods: error pod/doctor/bare has a token of its service account",
		"pods: unknown: reading which images sidecars may have",
		"network: warning pod/doctor/bare no NetworkPolicy",
		"tokens: error secret/doctor/old-token is a token")
	b.admin(t, "delete", "namespace", "doctor", "elsewhere", "--wait=false")
	b.admin(t, "delete", "pod", "-n", "doctor", "bare", "--force")
	b.admin(t, "delete", "pod", "-n", "elsewhere", "posing", "--force")
	b.admin(t, "delete", "secret", "-n", "doctor", "old-token")
	b.finds(t, rest, 0)
}

// testDoctorUnknown looks with a credential that may read nothing, and without a
// bucket.
func testDoctorUnknown(t *testing.T, b *doctorBed) {
	got := b.command(t, "", "/usr/bin/env", "-u", "TASKGATE_S3_BUCKET", b.Environment().Programs+"/taskgate", "doctor", "--kubeconfig", (&cliRig{grantsRig: &grantsRig{b.stack}}).person(t, "nobody").kubeconfig, "--skip", "injection,network,broker,identity")
	for _, check := range []string{"decisions", "admission", "policies", "pods", "tokens", "bucket", "journals"} {
		if !strings.Contains(got.stdout, fmt.Sprintf("UNKNOWN  %-10s", check)) {
			t.Errorf("%s is not told to be unknown", check)
		}
	}
	if got.code != 2 || strings.Count(got.stdout, "\n  could not check: ") != 7 {
		t.Error(got)
	}
}

// testDoctorInjection installs what manifests/injection holds, and takes a part of
// it away.
func testDoctorInjection(t *testing.T, b *doctorBed) {
	const rest = "policies"
	files, err := manifests.Folder("injection")
	if err != nil {
		t.Fatal(err)
	}
	if len(files) == 0 {
		b.finds(t, rest, 2, "injection: unknown: this program carries no policies of manifests/injection")
		return
	}
	b.admin(t, "apply", "-k", filepath.Join(b.repository, "manifests/injection"))
	b.finds(t, rest, 0)
	b.admin(t, "delete", "mutatingadmissionpolicybinding", "taskgate-sidecar")
	b.admin(t, "patch", "validatingadmissionpolicy", "taskgate-agent-pods", "--type=merge", `-p={"spec":{"failurePolicy":"Ignore"}}`)
	b.finds(t, rest, 1, "injection: error MutatingAdmissionPolicyBinding/taskgate-sidecar is absent", "injection: error ValidatingAdmissionPolicy/taskgate-agent-pods differs")
}

func testDoctorBroker(t *testing.T, b *doctorBed) {
	const rest = "injection,policies"
	if err := b.Broker(0).Kill(); err != nil {
		t.Fatal(err)
	}
	b.finds(t, rest, 1, "broker: error "+strings.TrimSuffix(b.Environment().BrokerMetrics, "/metrics")+" does not answer")
	eventually(t, 30*time.Second, "the journal found silent", func() error {
		lines, code := b.doctor(t, rest, "--silence", "2s")
		if code != 1 || !slices.ContainsFunc(lines, func(line string) bool {
			return strings.HasPrefix(line, "journals: error testbed/broker-0-") && strings.Contains(line, "is not closed, and silent for")
		}) {
			return fmt.Errorf("exit %d\n%s", code, strings.Join(lines, "\n"))
		}
		return nil
	})
}
