package e2e_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/taskgate/taskgate/api/v1alpha1"
	"github.com/taskgate/taskgate/authz"
	"github.com/taskgate/taskgate/broker/control"
	"github.com/taskgate/taskgate/e2e/testbed"
)

var (
	decideApprovals = v1alpha1.GroupVersion.WithResource("approvals")
	decideDecisions = v1alpha1.GroupVersion.WithResource("decisions")
)

// decideRig is a testbed of its own with two brokers that clean up after
// decideKeep, and people. Some of its tests take admission policies away.
type decideRig struct {
	*grantsRig
	controller *control.Controller // not running: its live functions
}

const decideKeep = 20 * time.Second

// decideAgents are the agents the policies of these tests are about.
const decideAgents = "spiffe://" + testbed.TrustDomain + "/ns/agents/sa/*"

func newDecideRig(t *testing.T) *decideRig {
	return newDecideRigWith(t, testbed.Options{
		SPIFFE: testbed.Dev, Node: testbed.NoNode, WithoutControllers: true, Brokers: 2,
		BrokerConfiguration: func(_ int, configuration map[string]any) { configuration["keepEnded"] = decideKeep.String() },
	})
}

func newDecideRigWith(t *testing.T, options testbed.Options) *decideRig {
	rig := &decideRig{grantsRig: &grantsRig{startStack(t, options)}}
	// Everybody in decide-all may do anything to the kinds of taskgate.dev as far as
	// RBAC goes, so that it is the admission policies that refuse.
	rig.apply(t, `apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: decide-all}
rules: [{apiGroups: [taskgate.dev], resources: ["*"], verbs: ["*"]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: decide-all}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: decide-all}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: Group, name: decide-all}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: decide-sre}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: taskgate-approver}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: Group, name: sre}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: decide-operators}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: taskgate-operator}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: Group, name: operators}]
`)
	rig.controller = rig.newController(t)
	return rig
}

// newController makes the live functions of a broker replica, with the broker's
// own credential.
func (r *decideRig) newController(t *testing.T) *control.Controller {
	t.Helper()
	index, err := authz.NewIndex(authz.Boundary{})
	if err != nil {
		t.Fatal(err)
	}
	config := r.brokerConfig(t)
	controller, err := control.New(control.Config{Broker: "test", Index: index, Control: config, Guarded: config, Now: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	return controller
}

func (r *decideRig) brokerConfig(t testing.TB) *rest.Config {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", r.Directory()+"/broker/kubeconfig")
	if err != nil {
		t.Fatal(err)
	}
	config.QPS = -1
	return config
}

// somebody is who uses the API: an impersonated user, or the broker.
type somebody struct {
	dynamic.Interface
	name string
}

func (r *decideRig) as(t testing.TB, user string, groups ...string) somebody {
	t.Helper()
	config := rest.CopyConfig(r.Admin())
	config.Impersonate = rest.ImpersonationConfig{UserName: user, Groups: groups}
	return r.someone(t, config, user)
}

func (r *decideRig) broker(t testing.TB) somebody {
	t.Helper()
	return r.someone(t, r.brokerConfig(t), "the broker")
}

func (r *decideRig) someone(t testing.TB, config *rest.Config, name string) somebody {
	t.Helper()
	own := rest.CopyConfig(config)
	own.QPS = -1 // people of a test do not wait for themselves
	client, err := dynamic.NewForConfig(own)
	if err != nil {
		t.Fatal(err)
	}
	return somebody{client, name}
}

// decision is the manifest of one, about an Approval or a TaskGrant.
func decision(name string, target v1alpha1.DecisionTarget, verdict, by string, groups ...string) string {
	return fmt.Sprintf("{apiVersion: taskgate.dev/v1alpha1, kind: Decision, metadata: {name: %q}, spec: {target: {kind: %s, name: %q, uid: %q, digest: %q}, verdict: %s, by: %q, groups: [%s], reason: a test}}",
		name, target.Kind, target.Name, target.UID, target.Digest, verdict, by, strings.Join(groups, ", "))
}

// decides has a person decide; it has to succeed.
func (r *decideRig) decides(t testing.TB, target v1alpha1.DecisionTarget, verdict, by string, groups ...string) {
	t.Helper()
	name := fmt.Sprintf("%s-%s-%d", target.Name, by, time.Now().UnixNano())
	_, err := r.as(t, by, append(groups, "sre")...).Resource(decideDecisions).Create(t.Context(), grantsObject(t, decision(name, target, verdict, by, append(groups, "sre")...)), metav1.CreateOptions{})
	if err != nil {
		t.Fatalf("%s decides: %v", by, err)
	}
	t.Cleanup(func() { r.brokerDeletes(t, name) })
}

func (r *decideRig) brokerDeletes(t testing.TB, name string) {
	err := r.broker(t).Resource(decideDecisions).Delete(context.WithoutCancel(t.Context()), name, metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		t.Errorf("deleting the decision %s: %v", name, err)
	}
}

// targetOf is what a Decision about a grant has to name.
func targetOf(grant *v1alpha1.TaskGrant) v1alpha1.DecisionTarget {
	return v1alpha1.DecisionTarget{Kind: v1alpha1.TargetTaskGrant, Name: grant.Name, UID: string(grant.UID), Digest: grant.Status.Digest}
}

func approvalTarget(a *v1alpha1.Approval) v1alpha1.DecisionTarget {
	return v1alpha1.DecisionTarget{Kind: v1alpha1.TargetApproval, Name: a.Name, UID: string(a.UID), Digest: a.Spec.Digest}
}

// newApproval makes an Approval under a grant, as a broker would.
func (r *decideRig) newApproval(t testing.TB, name, digest string, grant *v1alpha1.TaskGrant, changes ...func(*v1alpha1.ApprovalSpec)) *v1alpha1.Approval {
	t.Helper()
	approval := &v1alpha1.Approval{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.ApprovalSpec{
		Agent: grant.Spec.Agent, Task: grant.Spec.Task, Grant: grant.Name, GrantUID: string(grant.UID), Policy: grant.Spec.Policy, Gate: "exec", Approvers: 1, Groups: []string{"sre"},
		Call: v1alpha1.ApprovalCall{Verb: "create"}, Summary: "a test", Digest: strings.Repeat(digest, 64),
		UseWithin: metav1.Duration{Duration: 5 * time.Minute}, ExpiresAt: metav1.NewMicroTime(time.Now().Add(15 * time.Minute)),
	}}
	for _, change := range changes {
		change(&approval.Spec)
	}
	created, err := r.controller.CreateApproval(t.Context(), approval)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		err := r.broker(t).Resource(decideApprovals).Delete(context.WithoutCancel(t.Context()), name, metav1.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			t.Errorf("deleting the approval %s: %v", name, err)
		}
	})
	return created
}

func (r *decideRig) readApproval(t testing.TB, name string) *v1alpha1.Approval {
	t.Helper()
	approval, err := r.controller.ReadApproval(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return approval
}

// untilApproval waits for the reason of the condition Decided.
func (r *decideRig) untilApproval(t testing.TB, name, reason string) *v1alpha1.Approval {
	t.Helper()
	var approval *v1alpha1.Approval
	eventually(t, 20*time.Second, name+" is "+reason, func() error {
		approval = r.readApproval(t, name)
		for _, c := range approval.Status.Conditions {
			if c.Type == v1alpha1.ApprovalDecided && c.Reason == reason {
				return nil
			}
		}
		return fmt.Errorf("it is %v", approval.Status.Conditions)
	})
	return approval
}

// verdictOn asks what Decisions are worth now.
func (r *decideRig) verdictOn(t testing.TB, approval *v1alpha1.Approval) (control.Verdict, error) {
	t.Helper()
	need, err := r.controller.RequirementOf(t.Context(), approval)
	if err != nil {
		t.Fatal(err)
	}
	return r.controller.VerdictOn(t.Context(), need)
}

// createGrant has somebody create a grant, which goes with the test.
func (r *decideRig) createGrant(t testing.TB, who somebody, manifest string) *v1alpha1.TaskGrant {
	t.Helper()
	object, err := who.Resource(grantsResource).Create(t.Context(), grantsObject(t, manifest), metav1.CreateOptions{})
	if err != nil {
		t.Fatalf("%s creates %s: %v", who.name, manifest, err)
	}
	r.removeAfter(t, grantsResource, object.GetName())
	grant := new(v1alpha1.TaskGrant)
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, grant); err != nil {
		t.Fatal(err)
	}
	return grant
}

// serviceAccount makes a service account that RBAC lets do everything here, and
// returns a way to use it as itself.
func (r *decideRig) serviceAccount(t testing.TB, name string) somebody {
	t.Helper()
	r.apply(t, fmt.Sprintf(`{apiVersion: v1, kind: ServiceAccount, metadata: {name: %[1]s, namespace: default}}
---
{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRoleBinding, metadata: {name: decide-%[1]s}, roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: decide-all}, subjects: [{kind: ServiceAccount, name: %[1]s, namespace: default}]}
`, name))
	token, err := r.kube.CoreV1().ServiceAccounts("default").CreateToken(t.Context(), name, &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	config := r.anonymous()
	config.BearerToken = token.Status.Token
	return r.someone(t, config, "system:serviceaccount:default:"+name)
}
