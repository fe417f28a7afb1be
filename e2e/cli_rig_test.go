package e2e_test

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/taskgate/taskgate/api/v1alpha1"
)

var (
	cliApprovals = v1alpha1.GroupVersion.WithResource("approvals")
	cliDecisions = v1alpha1.GroupVersion.WithResource("decisions")
)

// cliApprovers and cliOperators are the groups of the people of these tests.
const (
	cliApprovers = "cli-approvers"
	cliOperators = "cli-operators"
)

// cliRig is a testbed with people, and with Approvals that a broker's account
// makes, whether or not any agent made the call.
type cliRig struct {
	*grantsRig
	broker dynamic.Interface
}

var cliShared struct {
	once sync.Once
	rig  *cliRig
}

func newCLIRig(t testing.TB) *cliRig {
	t.Helper()
	s := sharedStack(t)
	cliShared.once.Do(func() {
		s.apply(t, cliRights)
		config := rest.CopyConfig(s.Admin())
		config.Impersonate = rest.ImpersonationConfig{UserName: brokerAccount, Groups: []string{"system:serviceaccounts", "system:serviceaccounts:taskgate-system"}}
		broker, err := dynamic.NewForConfig(config)
		if err != nil {
			t.Fatal(err)
		}
		cliShared.rig = &cliRig{&grantsRig{s}, broker}
	})
	if cliShared.rig == nil {
		t.Fatal("the rig of the commands could not be made")
	}
	return cliShared.rig
}

// cliRights are what approvers and operators need.
const cliRights = `apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: cli-approver}
rules:
- {apiGroups: [taskgate.dev], resources: [approvals, taskgrants, agentpolicies, decisions], verbs: [get, list, watch]}
- {apiGroups: [taskgate.dev], resources: [decisions], verbs: [create]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: cli-approver}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cli-approver}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: Group, name: cli-approvers}, {apiGroup: rbac.authorization.k8s.io, kind: User, name: cli-nobodys-friend}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: cli-operator}
rules:
- {apiGroups: [taskgate.dev], resources: [approvals, taskgrants, agentpolicies, decisions], verbs: [get, list, watch]}
- {apiGroups: [taskgate.dev], resources: [taskgrants], verbs: [patch]}
- {apiGroups: [taskgate.dev], resources: [agentpolicies], verbs: [create, patch, delete]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: cli-operator}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cli-operator}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: Group, name: cli-operators}]
`

// person is somebody with a kubeconfig of their own.
type person struct {
	rig        *cliRig
	kubeconfig string
}

func (r *cliRig) person(t testing.TB, name string, groups ...string) person {
	t.Helper()
	config, err := clientcmd.LoadFromFile(r.Environment().AdminKubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	for _, user := range config.AuthInfos {
		user.Impersonate, user.ImpersonateGroups = name, groups
	}
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*config, path); err != nil {
		t.Fatal(err)
	}
	return person{r, path}
}

// taskgate runs taskgate as the person, with nobody at a terminal.
func (p person) taskgate(t testing.TB, arguments ...string) result {
	t.Helper()
	return p.rig.command(t, "", p.rig.Environment().Programs+"/taskgate", append(arguments, "--kubeconfig", p.kubeconfig)...)
}

// approval makes an open Approval about a call of the agent; change changes what
// is asked.
func (r *cliRig) approval(t testing.TB, name, digit string, change func(spec map[string]any)) *unstructured.Unstructured {
	t.Helper()
	object := grantsObject(t, fmt.Sprintf(`apiVersion: taskgate.dev/v1alpha1
kind: Approval
metadata: {name: %s}
spec:
  {agent: "spiffe://example.org/ns/agents/sa/cli", task: INC-1, grant: cli-none, grantUID: none, policy: cli-none, gate: namespace-delete, approvers: 1, groups: [%s],
   call: {verb: delete, version: v1, resource: namespaces, name: shop}, summary: delete the namespace shop, diff: "-kind: Namespace\n", digest: "%s",
   useWithin: 5m, expiresAt: %q}
`, name, cliApprovers, strings.Repeat(digit, 64), metav1.NewMicroTime(time.Now().Add(10*time.Minute)).UTC().Format(metav1.RFC3339Micro)))
	if change != nil {
		change(object.Object["spec"].(map[string]any))
	}
	created, err := r.broker.Resource(cliApprovals).Create(t.Context(), object, metav1.CreateOptions{})
	if err != nil {
		t.Fatalf("creating the Approval %s: %v", name, err)
	}
	t.Cleanup(func() {
		err := r.broker.Resource(cliApprovals).Delete(context.WithoutCancel(t.Context()), name, metav1.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			t.Errorf("deleting the Approval %s: %v", name, err)
		}
	})
	return created
}

// status writes the status of an Approval as a broker does, unless one was faster.
func (r *cliRig) status(t testing.TB, approval *unstructured.Unstructured, reason string) {
	t.Helper()
	now := metav1.NowMicro()
	approval.Object["status"] = map[string]any{
		"decidedAt": now.UTC().Format(metav1.RFC3339Micro),
		"conditions": []any{map[string]any{"type": "Decided", "status": "True", "reason": reason, "message": "people have decided: " + reason,
			"lastTransitionTime": now.UTC().Format(time.RFC3339)}},
	}
	_, err := r.broker.Resource(cliApprovals).UpdateStatus(t.Context(), approval, metav1.UpdateOptions{})
	if err != nil && !apierrors.IsConflict(err) {
		t.Error(err)
	}
}
