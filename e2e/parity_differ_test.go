package e2e_test

import (
	"strings"
	"testing"
)

// TestParityEndsHere is the list of what the boundary answers in its own words
// although the grant covers it. What is not in it is the same on both sides.
func TestParityEndsHere(t *testing.T) {
	differences := []struct {
		run           string
		code          int
		direct, agent string
	}{
		{`kubectl get --raw /api/v1/gizmos`, 1,
			"(NotFound): the server could not find the requested resource", "(Forbidden): gizmos is forbidden: [taskgate:OutsideGrant] the cluster serves no gizmos"},
		{`kubectl get --raw /apis/example.org/v1/gizmos`, 1,
			"(NotFound): the server could not find the requested resource", "[taskgate:OutsideGrant] the cluster serves no gizmos.example.org"},
		{`kubectl get --raw "/api/v1/namespaces/$ns/configmaps?limit=x"`, 1,
			"(BadRequest): strconv.ParseInt", `(BadRequest): configmaps is forbidden: [taskgate:BadQuery] the value of the parameter "limit"`},
		{`kubectl get cm -l 'a=b=c'`, 1,
			"(BadRequest): Unable to find", `[taskgate:BadQuery] the value of the parameter "labelSelector"`},
		{`kubectl create quota none --hard=configmaps=0 && kubectl wait --for=jsonpath='{.status.hard.configmaps}'=0 quota/none --timeout=20s && kubectl create cm over`, 1,
			`configmaps "over" is forbidden: exceeded quota: none`, `[taskgate:UpstreamDenied] the cluster itself refused: configmaps "over" is forbidden: exceeded quota: none`},
		{`kubectl get --raw /healthz`, 0, "ok", "[taskgate:OutsideGrant]"},
		{`kubectl get --raw /metrics | head -1`, 0, "# HELP", "[taskgate:OutsideGrant]"},
		{`kubectl --as=somebody get cm`, 1, `User "somebody" cannot list`, "[taskgate:BadHeader] impersonation is not for agents"},
		{`kubectl create token default`, 0, "eyJ", "[taskgate:PolicyDenied]"},
		{`kubectl auth whoami`, 0, "Username testbed-admin", "Username spiffe://example.org/ns/agents/sa/parity"},
		{`kubectl auth whoami -o json`, 0, `"kind": "SelfSubjectReview"`, `"task parity"`},
		{`kubectl auth can-i create serviceaccounts --subresource=token`, 0, "yes", "no - "},
	}
	pair := sides(t, "differ")
	for _, d := range differences {
		for i, want := range []string{d.direct, d.agent} {
			got := pair[i].runStep(t, d.run)
			if all := normal(got.String()); !strings.Contains(all, want) || i == 0 && got.code != d.code {
				t.Errorf("%s: %s\nwant %q, got %s", pair[i].name, d.run, want, all)
			}
		}
	}
}

// TestParityOfRights: kubectl auth can-i --list shows an agent the rules that
// RBAC would show a user who has the same ones.
func TestParityOfRights(t *testing.T) {
	s := sharedStack(t)
	a := s.newAgent(t, "parity-few")
	rules := []string{
		`{namespaces: [par-rights], apiGroups: ["", apps], resources: [pods, pods/log, deployments], verbs: [get, list, watch]}`,
		`{namespaces: [par-rights], apiGroups: [""], resources: [configmaps], resourceNames: [settings], verbs: [get, patch]}`,
	}
	s.apply(t, parityUser)
	s.policy(t, "parity-few", a, "", rules...)
	s.grant(t, "parity-few", "parity-few", a, "1h", rules...)
	list := []string{"auth", "can-i", "--list", "--no-headers", "-n", "par-rights"}
	direct := s.kubectl(t, s.Environment().AdminKubeconfig, append(list, "--as=parity-user")...)
	agent := a.kubectl(t, list...)
	if direct.code != 0 || agent.code != 0 {
		t.Fatalf("direct: %s\nagent: %s", direct, agent)
	}
	// What everybody may do differs: the system:discovery roles on one side, what
	// every agent may on the other.
	common := func(line string) bool {
		return strings.Contains(line, "[/") || strings.Contains(line, "selfsubject") || strings.Contains(line, ".taskgate.dev ")
	}
	seen := map[string]int{}
	for line := range strings.Lines(normal(direct.stdout)) {
		if !common(line) {
			seen[line]++
		}
	}
	if len(seen) != 7 {
		t.Fatalf("the user has not the rights he should: %s", direct)
	}
	for line := range strings.Lines(normal(agent.stdout)) {
		if !common(line) {
			seen[line]--
		}
	}
	for line, count := range seen {
		if count != 0 {
			t.Errorf("only one side shows: %s\ndirect: %s\nagent: %s", line, direct, agent)
		}
	}
	for _, question := range []string{"get pods", "delete pods", "get pods/log", "patch cm/settings", "patch cm/other", "list secrets", "get pods -n default"} {
		arguments := append([]string{"auth", "can-i", "-n", "par-rights"}, strings.Fields(question)...)
		direct, agent := s.kubectl(t, s.Environment().AdminKubeconfig, append(arguments, "--as=parity-user")...), a.kubectl(t, arguments...)
		word, _, _ := strings.Cut(strings.TrimSpace(agent.stdout), " - ") // an agent is told why not
		if direct.code != agent.code || strings.TrimSpace(direct.stdout) != word || word == "" {
			t.Errorf("can-i %s: direct %s\nagent %s", question, direct, agent)
		}
	}
}

const parityUser = `
apiVersion: v1
kind: Namespace
metadata: {name: par-rights}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: parity-user, namespace: par-rights}
rules:
- {apiGroups: ["", apps], resources: [pods, pods/log, deployments], verbs: [get, list, watch]}
- {apiGroups: [""], resources: [configmaps], resourceNames: [settings], verbs: [get, patch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: parity-user, namespace: par-rights}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: parity-user}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: parity-user}]
`
