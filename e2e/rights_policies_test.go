package e2e_test

import (
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// everything is a rule that covers all there is.
const everything = `{namespaces: ["*"], apiGroups: ["*"], resources: ["*"], verbs: ["*"]}`

// policy creates an AgentPolicy about the agent, with the RBAC it needs, and
// waits until it is valid. more is more of its spec, as lines of YAML.
func (s *stack) policy(t testing.TB, name string, a *agent, more string, rules ...string) {
	t.Helper()
	manifest := fmt.Sprintf("apiVersion: taskgate.dev/v1alpha1\nkind: AgentPolicy\nmetadata: {name: %s}\nspec:\n  agents: [%q]\n  allow: [%s]\n%s\n",
		name, a.id, strings.Join(rules, ", "), indent(orDefault(more, "grant: {maxTTL: 4h, approval: None}")))
	roles := s.command(t, manifest, s.Environment().Programs+"/taskgate", "policy", "rbac", "-f", "-")
	if roles.code != 0 {
		t.Fatalf("taskgate policy rbac: %s", roles)
	}
	s.apply(t, roles.stdout)
	s.apply(t, manifest)
	s.admin(t, "wait", "--for=condition=Valid", "--for=condition=UpstreamReady", "agentpolicy/"+name, "--timeout=20s")
	t.Cleanup(func() { s.kubectlAfter(t, "delete", "agentpolicy/"+name, "--ignore-not-found") })
}

func orDefault(text, otherwise string) string {
	if text == "" {
		return otherwise
	}
	return text
}

func indent(text string) string {
	return "  " + strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n  ")
}

// kubectlAfter runs in a cleanup, when the test's own context has ended.
func (s *stack) kubectlAfter(t testing.TB, arguments ...string) {
	command := exec.Command(s.Environment().Programs+"/kubectl", append([]string{"--kubeconfig", s.Environment().AdminKubeconfig}, arguments...)...)
	if output, err := command.CombinedOutput(); err != nil {
		t.Errorf("kubectl %v: %v\n%s", arguments, err, output)
	}
}

// grant creates a TaskGrant and waits until the agent's broker serves it, which is
// a moment after its status says Active.
func (s *stack) grant(t testing.TB, name, policy string, a *agent, ttl string, rules ...string) {
	t.Helper()
	s.apply(t, grantManifest(name, policy, a.id, ttl, rules...))
	s.admin(t, "wait", "--for=condition=Active", "taskgrant/"+name, "--timeout=20s")
	eventually(t, 5*time.Second, "the broker serves the grant "+name, func() error {
		review := a.do(t, "POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", asJSON, `{"apiVersion":"authentication.k8s.io/v1","kind":"SelfSubjectReview"}`)
		if !strings.Contains(review.body, `"`+name+`"`) {
			return errors.New(review.body)
		}
		return nil
	})
	t.Cleanup(func() { s.kubectlAfter(t, "delete", "taskgrant/"+name, "--ignore-not-found") })
}

// revokeAndResume ends a grant and lets its agent be given others at once.
const revokeAndResume = `{"metadata":{"annotations":{"taskgate.dev/resumed":"true"}},"spec":{"revoked":true}}`

func grantManifest(name, policy, agent, ttl string, rules ...string) string {
	return fmt.Sprintf("apiVersion: taskgate.dev/v1alpha1\nkind: TaskGrant\nmetadata: {name: %s}\nspec: {agent: %q, task: %q, reason: a test, ttl: %s, policy: %s, rules: [%s]}\n",
		name, agent, "task "+name, ttl, policy, strings.Join(rules, ", "))
}
