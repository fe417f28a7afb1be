package e2e_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/taskgate/taskgate/recorder"
)

const conditionsRule = `{namespaces: [conditions], apiGroups: [apps], resources: [deployments, deployments/scale], verbs: [get, list, create, patch, update]}`

const conditionsGates = `grant: {maxTTL: 4h, approval: None}
gates:
- {name: big-scale, apiGroups: [apps], resources: [deployments, deployments/scale], verbs: [create, patch, update], when: "object.spec.replicas > 10", approvers: 2, groups: [sre]}
- {name: not-friday, verbs: [patch], when: "request.name == 'friday'"}`

// TestConditionsOfGates: a gate with a condition lets pass what does not meet it,
// however the call is spelled, and holds for the rest; its previews are on record.
func TestConditionsOfGates(t *testing.T) {
	t.Parallel()
	s := sharedStack(t)
	a := s.newAgent(t, "conditions")
	s.admin(t, "create", "namespace", "conditions")
	t.Cleanup(func() { s.kubectlAfter(t, "delete", "namespace", "conditions", "--wait=false") })
	for _, name := range []string{"web", "friday"} {
		s.admin(t, "--namespace=conditions", "create", "deployment", name, "--image=nginx", "--replicas=1")
	}
	s.policy(t, "conditions", a, conditionsGates, conditionsRule)
	s.grant(t, "conditions", "conditions", a, "4h", conditionsRule)
	for _, row := range []struct{ command, refused string }{
		{"scale deployment web --replicas=5", ""},
		{"scale deployment web --replicas=11", "big-scale"},
		{`patch deployment web -p {"spec":{"replicas":6}}`, ""},
		{`patch deployment web -p {"spec":{"replicas":11}}`, "big-scale"},
		{`patch deployment web --type=json -p [{"op":"replace","path":"/spec/replicas","value":12}]`, "big-scale"},
		{`patch deployment web --subresource=scale --type=merge -p {"spec":{"replicas":13}}`, "big-scale"},
		{`patch deployment web --dry-run=server -p {"spec":{"replicas":13}}`, "big-scale"},
		{"set image deployment/web nginx=nginx:2", ""},
		{"create deployment small --image=nginx --replicas=2", ""},
		{"create deployment large --image=nginx --replicas=20", "big-scale"},
		{`patch deployment friday -p {"spec":{"replicas":2}}`, "not-friday"},
		{`patch deployment friday -p {"spec":{"replicas":20}}`, "big-scale"},
	} {
		got := a.kubectl(t, append([]string{"--namespace=conditions"}, strings.Fields(row.command)...)...)
		said := got.stdout + got.stderr
		if row.refused == "" && got.code != 0 || row.refused != "" && (!strings.Contains(said, "[taskgate:ApprovalRequired]") || !strings.Contains(said, row.refused)) {
			t.Errorf("kubectl %s: %s", row.command, got)
		}
	}
	if got := s.admin(t, "--namespace=conditions", "get", "deployments", "-o", "jsonpath={range .items[*]}{.metadata.name}={.spec.replicas} {end}"); got != "friday=1 small=2 web=6 " {
		t.Errorf("the deployments are %s", got)
	}
	target := "/apis/apps/v1/namespaces/conditions/deployments/web"
	merge := map[string]string{"Content-Type": "application/merge-patch+json"}
	if missing := a.do(t, "PATCH", "/apis/apps/v1/namespaces/conditions/deployments/none", merge, `{"spec":{"replicas":2}}`); missing.reason() != "UpstreamDenied" {
		t.Errorf("nobody is asked about what is not there: got %d %s", missing.code, missing.body)
	}
	sent := a.do(t, "PATCH", target, merge, `{"spec":{"replicas":7}}`)
	if sent.code != 200 {
		t.Fatalf("got %d %s", sent.code, sent.body)
	}
	s.journal.of(t, sent.auditID())
	looks := map[string]bool{}
	for _, e := range s.journal.all(t) {
		if e.Annotations[recorder.AnnotationParent] == sent.auditID() && e.Annotations[recorder.AnnotationPurpose] == "preview" {
			looks[e.Verb] = true
		}
	}
	if !looks["get"] || !looks["patch"] {
		t.Errorf("the previews on record are %v", looks)
	}
}

// TestConditionsThatCannotBeCompiled: the policy says what is wrong, and grants
// nothing until it is mended.
func TestConditionsThatCannotBeCompiled(t *testing.T) {
	t.Parallel()
	s := sharedStack(t)
	policy := func(when string) string {
		return `{apiVersion: taskgate.dev/v1alpha1, kind: AgentPolicy, metadata: {name: conditions-wrong}, spec: {agents: ["spiffe://example.org/ns/agents/sa/nobody"], ` +
			`grant: {maxTTL: 4h, approval: None}, allow: [` + conditionsRule + `], gates: [{name: g, when: "` + when + `"}]}}`
	}
	s.apply(t, policy("subject.spec > 1"))
	t.Cleanup(func() {
		s.kubectlAfter(t, "delete", "agentpolicy/conditions-wrong", "taskgrant/conditions-wrong", "--ignore-not-found")
	})
	s.apply(t, grantManifest("conditions-wrong", "conditions-wrong", "spiffe://example.org/ns/agents/sa/nobody", "1h", conditionsRule))
	s.admin(t, "wait", "--for=condition=Valid=False", "agentpolicy/conditions-wrong", "--timeout=20s")
	said := s.admin(t, "get", "agentpolicy/conditions-wrong", "-o", "yaml")
	if !strings.Contains(said, "spec.gates[0].when (gate g)") || !strings.Contains(said, "undeclared reference to 'subject'") {
		t.Errorf("it says %s", said)
	}
	eventually(t, 20*time.Second, "the grant is denied", func() error {
		if said = s.admin(t, "get", "taskgrant/conditions-wrong", "-o", "yaml"); !strings.Contains(said, "grants nothing") {
			return errors.New(said)
		}
		return nil
	})
	s.apply(t, policy("request.verb == 'get'"))
	s.admin(t, "wait", "--for=condition=Valid=True", "agentpolicy/conditions-wrong", "--timeout=20s")
}
