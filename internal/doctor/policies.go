package doctor

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/taskgate/taskgate/api/v1alpha1"
)

// heartbeatObject is the brokers' own, not a policy about anybody.
const heartbeatObject = "taskgate-heartbeat"

func (c *Config) policies(ctx context.Context) ([]Finding, error) {
	if c.Policies == nil {
		return nil, errNoCluster
	}
	policies, err := c.Policies(ctx)
	if err != nil {
		return nil, fmt.Errorf("listing the AgentPolicies: %w", err)
	}
	var findings []Finding
	var problems []error
	count := 0
	for i := range policies {
		policy := &policies[i]
		if policy.Name == heartbeatObject {
			continue
		}
		count++
		findings = append(findings, switchedOff(policy)...)
		found, err := conditions(policy)
		findings, problems = append(findings, found...), append(problems, err)
	}
	if count == 0 {
		findings = append(findings, Finding{Warning, "agentpolicies", "there are none", "no agent can be granted anything", "write an AgentPolicy; kubectl explain agentpolicy.spec"})
	}
	return findings, errors.Join(problems...)
}

// switchedOff is what people have switched off on purpose, which must not be
// forgotten.
func switchedOff(policy *v1alpha1.AgentPolicy) []Finding {
	var findings []Finding
	object := "agentpolicy/" + policy.Name
	if policy.Spec.Suspended {
		fix := "taskgate resume --policy " + policy.Name
		if strings.HasPrefix(policy.Name, "suspend-") && len(policy.Spec.Agents) == 1 {
			fix = "taskgate resume --agent " + policy.Spec.Agents[0]
		}
		findings = append(findings, Finding{Warning, object, "is suspended: " + strings.Join(policy.Spec.Agents, ", "), "these agents are refused every call", fix})
	}
	if len(policy.Spec.Waive) > 0 {
		findings = append(findings, Finding{
			Warning, object, "WAIVES the gates " + strings.Join(policy.Spec.Waive, ", "), "these calls need no human's yes under this policy", "take them out of spec.waive unless it is meant so",
		})
	}
	return findings
}

// conditions are what brokers found out about a policy. One they have not looked
// at as it is now is not known to be good.
func conditions(policy *v1alpha1.AgentPolicy) ([]Finding, error) {
	object := "agentpolicy/" + policy.Name
	var findings []Finding
	for _, about := range []struct{ kind, why, fix string }{
		{v1alpha1.PolicyValid, "it grants nothing until it is mended", "kubectl edit agentpolicy " + policy.Name},
		{v1alpha1.PolicyUpstreamReady, "calls under it are refused by the cluster", "taskgate policy rbac " + policy.Name + " | kubectl apply -f -"},
	} {
		condition := meta.FindStatusCondition(policy.Status.Conditions, about.kind)
		switch {
		case condition == nil || condition.ObservedGeneration != 0 && condition.ObservedGeneration != policy.Generation:
			return findings, fmt.Errorf("%s: no broker has said yet whether it is %s; is a broker running?", object, about.kind)
		case condition.Status != metav1.ConditionTrue:
			findings = append(findings, Finding{Error, object, fmt.Sprintf("%s is %s: %s", about.kind, condition.Status, condition.Message), about.why, about.fix})
		}
	}
	return findings, nil
}
