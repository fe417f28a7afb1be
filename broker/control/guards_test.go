package control

import (
	"testing"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/client-go/rest"

	"github.com/taskgate/taskgate/manifests"
)

// TestGuardsAreReadable: the broker can read the policies it carries, each refuses
// and is in force for everything it is about.
func TestGuardsAreReadable(t *testing.T) {
	for name, source := range map[string]string{
		"taskgate-pods": manifests.AdmissionPods, "taskgate-decisions": manifests.AdmissionDecisions,
		"taskgate-approvals": manifests.AdmissionApprovals, "taskgate-taskgrants": manifests.AdmissionTaskGrants,
	} {
		g, err := newGuards(&rest.Config{Host: "https://127.0.0.1:1"}, "control", source)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		policy, binding := g.policies[0], g.bindings[0]
		if policy.Name != name || policy.Spec.FailurePolicy == nil || *policy.Spec.FailurePolicy != admissionv1.Fail || len(policy.Spec.Validations) == 0 {
			t.Errorf("%s: got %+v", name, policy)
		}
		if binding.Spec.PolicyName != name || len(binding.Spec.ValidationActions) != 1 || binding.Spec.ValidationActions[0] != admissionv1.Deny {
			t.Errorf("%s: got %+v", name, binding)
		}
		if g.ready(noon) == nil {
			t.Errorf("%s: ready before anything was looked at", name)
		}
	}
	if _, err := newGuards(&rest.Config{Host: "https://127.0.0.1:1"}, "control", "kind: ConfigMap"); err == nil {
		t.Error("no policy at all is accepted")
	}
}
