package control

import (
	"strings"
	"testing"

	"github.com/taskgate/taskgate/api/v1alpha1"
)

// TestConditions: a policy with a condition that cannot be compiled grants nothing,
// says where, and its gate holds without a condition.
func TestConditions(t *testing.T) {
	object := policy(func(p *v1alpha1.AgentPolicy) {
		p.Spec.Gates = []v1alpha1.Gate{{Name: "fine", When: "object.spec.replicas > 10"}, {Name: "plain"}, {Name: "wrong", When: "subject.spec > 1"}}
	})
	understood := new(Controller).understand(object)
	if understood.Gates[0].Condition == nil || understood.Gates[1].Condition != nil || understood.Gates[2].Condition != nil {
		t.Errorf("gates: %+v", understood.Gates)
	}
	if !strings.Contains(understood.Invalid, "spec.gates[2].when (gate wrong)") || !strings.Contains(understood.Invalid, "undeclared reference to 'subject'") {
		t.Errorf("it says %q", understood.Invalid)
	}
	status := (&evaluation{grant: taskGrant(), policy: object, unclear: understood.Invalid, now: noon}).status()
	if got := status.Conditions; len(got) == 0 || !strings.Contains(got[0].Message, "grants nothing: spec.gates[2].when") {
		t.Errorf("its grant: %+v", got)
	}
}
