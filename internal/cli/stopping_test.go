package cli

import (
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/taskgate/taskgate/api/v1alpha1"
	"github.com/taskgate/taskgate/broker/control"
)

func TestRevoke(t *testing.T) {
	over := grant(conditions("True", "False", "True", "Expired", "it was active until then"), func(g *v1alpha1.TaskGrant) { g.Name = "over" })
	f := newFakeCluster(t, grant(isActive()), over)
	const follows = "  its calls are refused and its streams closed from now on; under the policy shop the agent is on hold until taskgate resume --hold " + agentOne + "\n"
	f.run(t, "revoke", "inc", "--dry-run").check(t, 0, "dry run: would revoke inc: "+agentOne+", task INC-4711\n"+follows, "")
	if written[v1alpha1.TaskGrant](t, f, grants)[0].Spec.Revoked {
		t.Error("a dry run has revoked")
	}
	f.run(t, "revoke", "over", "nothing", "inc").check(t, 2, "over has ended already (it was active until then); nothing to revoke\nrevoked inc: "+agentOne+", task INC-4711\n"+follows,
		`there is no TaskGrant "nothing"`)
	if !written[v1alpha1.TaskGrant](t, f, grants)[0].Spec.Revoked {
		t.Error("not revoked")
	}
	f.run(t, "revoke", "inc").check(t, 0, "inc has ended already (revoked); nothing to revoke\n", "")
	f.put(t, grant(isActive()))
	f.deny["patch taskgrants"] = failure(403, metav1.StatusReasonForbidden, "taskgrants is forbidden")
	f.run(t, "revoke", "inc").check(t, 1, "", "revoking the TaskGrant inc: you may not do that; the ClusterRole taskgate-operator allows it: taskgrants is forbidden")
}

func TestSuspendAgent(t *testing.T) {
	f := newFakeCluster(t)
	name := agentSuspension(agentOne).Name
	if !strings.HasPrefix(name, "suspend-") || len(name) != len("suspend-")+10 {
		t.Errorf("the policy is called %s", name)
	}
	const follows = "  every call is refused and every stream closed; its grants live on until they end: see taskgate grants --agent " + agentOne + "\n" +
		"  undo it with taskgate resume --agent " + agentOne + "\n"
	f.run(t, "suspend", "--agent", agentOne, "--dry-run").check(t, 0, "dry run: would suspend "+agentOne+", by the AgentPolicy "+name+"\n"+follows, "")
	if len(written[v1alpha1.AgentPolicy](t, f, policies)) != 0 {
		t.Error("a dry run has suspended")
	}
	for range 2 {
		f.run(t, "suspend", "--agent", agentOne).check(t, 0, "suspended "+agentOne+", by the AgentPolicy "+name+"\n"+follows, "")
	}
	policy := written[v1alpha1.AgentPolicy](t, f, policies)[0]
	if policy.Name != name || !policy.Spec.Suspended || len(policy.Spec.Agents) != 1 || policy.Spec.Agents[0] != agentOne || len(policy.Spec.Allow) != 0 ||
		policy.Spec.Grant.Approval.None || policy.Spec.Grant.Approval.Approvers != 10 {
		t.Errorf("%+v", policy)
	}
	f.run(t, "resume", "--agent", agentOne).check(t, 0, "resumed "+agentOne+"\n  its grants that have not ended are good again; other suspended policies that name it still stop it\n", "")
	if len(written[v1alpha1.AgentPolicy](t, f, policies)) != 0 {
		t.Error("not resumed")
	}
	f.run(t, "resume", "--agent", agentOne).check(t, 1, "", agentOne+" is not suspended by itself; see kubectl get agentpolicies for its policies")
	for _, bad := range []string{"one", "spiffe://example.org", "spiffe://example.org/ns/*/sa/x y"} {
		if got := f.run(t, "suspend", "--agent", bad); got.code != 2 || got.out != "" {
			t.Errorf("%s: %s", bad, got)
		}
	}
}

// TestResumeAgentLooks: a policy of that name that somebody made more of is not
// deleted.
func TestResumeAgentLooks(t *testing.T) {
	policy := agentSuspension(agentOne)
	policy.Spec.Allow = []v1alpha1.Rule{{Verbs: []string{"get"}}}
	f := newFakeCluster(t, policy)
	f.run(t, "resume", "--agent", agentOne).check(t, 1, "", "the AgentPolicy "+policy.Name+" was changed and is more than a suspension now: look at it yourself")
}

func suspendedNow(t *testing.T, f *fakeCluster) string {
	t.Helper()
	return strings.Join(sortedNames(written[v1alpha1.AgentPolicy](t, f, policies), func(p *v1alpha1.AgentPolicy) bool { return p.Spec.Suspended }), " ")
}

func TestSuspendPolicies(t *testing.T) {
	asleep := func(s *v1alpha1.AgentPolicySpec) { s.Suspended = true }
	f := newFakeCluster(t, policyNamed("a", nil), policyNamed("b", nil), policyNamed("c", nil), policyNamed(control.HeartbeatObject, asleep))
	f.run(t, "suspend", "--policy", "a").check(t, 0, "suspended the AgentPolicy a\n  the agents it names are stopped, and the grants under it have ended; new ones can be asked for after taskgate resume --policy a\n", "")
	f.run(t, "suspend", "--policy", "a").check(t, 0, "the AgentPolicy a is suspended already\n", "")
	f.run(t, "suspend", "--policy", "z").check(t, 2, "", `there is no AgentPolicy "z"`)
	f.run(t, "suspend", "--all").check(t, 0, "suspended the AgentPolicy b\nsuspended the AgentPolicy c\n"+
		"  all their agents are stopped and their grants have ended; policies made from now on are not suspended. Undo it with taskgate resume --all\n", "")
	if got := suspendedNow(t, f); got != "a b c taskgate-heartbeat" {
		t.Errorf("suspended: %s", got)
	}
	f.run(t, "resume", "--all", "--dry-run").check(t, 0, "dry run: would resume the AgentPolicy b\ndry run: would resume the AgentPolicy c\n  suspended by themselves, and still so: a\n", "")
	f.run(t, "resume", "--all").check(t, 0, "resumed the AgentPolicy b\nresumed the AgentPolicy c\n  suspended by themselves, and still so: a\n", "")
	f.run(t, "resume", "--policy", "a").check(t, 0, "resumed the AgentPolicy a\n  grants that have ended stay ended; agents ask for new ones, and what waits goes on\n", "")
	if got := suspendedNow(t, f); got != "taskgate-heartbeat" {
		t.Errorf("suspended: %s", got)
	}
	f.run(t, "resume", "--policy", control.HeartbeatObject).check(t, 1, "", "taskgate-heartbeat is the brokers' own and stays suspended")
	if got := f.run(t, "resume", "--policy", ""); got.code != 2 {
		t.Errorf("an empty name: %s", got)
	}
	if got := f.run(t, "suspend", "--policy", "a", "--all"); got.code != 2 {
		t.Errorf("two at once: %s", got)
	}
	if got := f.run(t, "suspend"); got.code != 2 {
		t.Errorf("nothing: %s", got)
	}
}

func TestResumeHold(t *testing.T) {
	ended := func(name, reason string) *v1alpha1.TaskGrant {
		return grant(conditions("True", "False", "True", metav1.StatusSuccess, reason), func(g *v1alpha1.TaskGrant) { g.Name, g.Status.EndReason = name, reason })
	}
	other := ended("other", "Revoked")
	other.Spec.Agent = "spiffe://example.org/ns/agents/sa/two"
	f := newFakeCluster(t, ended("held", "Revoked"), ended("late", "Expired"), other)
	f.run(t, "resume", "--hold", agentOne).check(t, 0, "lifted the hold of "+agentOne+" under the policy shop, from the revoked grant held\n  it is given again what its policies give without asking people\n", "")
	for _, g := range written[v1alpha1.TaskGrant](t, f, grants) {
		if resumed := g.Annotations[v1alpha1.ResumedAnnotation] == "true"; resumed != (g.Name == "held") {
			t.Errorf("%s is annotated: %v", g.Name, resumed)
		}
	}
	f.run(t, "resume", "--hold", agentOne).check(t, 0, agentOne+" is not on hold\n", "")
}
