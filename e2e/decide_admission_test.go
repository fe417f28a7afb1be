package e2e_test

import (
	"fmt"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/taskgate/taskgate/api/v1alpha1"
)

// attempt is what somebody tries; refused is a part of the message of the
// admission policy that refuses it, empty if it has to succeed.
type attempt struct {
	name    string
	who     somebody
	do      func(somebody) error
	refused string
}

func runAttempts(t *testing.T, attempts []attempt) {
	t.Helper()
	for _, a := range attempts {
		err := a.do(a.who)
		switch {
		case a.refused == "" && err != nil:
			t.Errorf("%s, as %s: %v", a.name, a.who.name, err)
		case a.refused != "" && err == nil:
			t.Errorf("%s, as %s: it was let through", a.name, a.who.name)
		case a.refused != "" && (!apierrors.IsForbidden(err) || !strings.Contains(err.Error(), a.refused)):
			t.Errorf("%s, as %s: refused with %v, want %q", a.name, a.who.name, err, a.refused)
		}
	}
}

// dryCreate tries to create an object, without leaving it there.
func dryCreate(t testing.TB, resource schema.GroupVersionResource, manifest string) func(somebody) error {
	return func(who somebody) error {
		_, err := who.Resource(resource).Create(t.Context(), grantsObject(t, manifest), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		return err
	}
}

func dryPatch(t testing.TB, resource schema.GroupVersionResource, name, change string, subresources ...string) func(somebody) error {
	return func(who somebody) error {
		_, err := who.Resource(resource).Patch(t.Context(), name, types.MergePatchType, []byte(change), metav1.PatchOptions{DryRun: []string{metav1.DryRunAll}}, subresources...)
		return err
	}
}

func dryDelete(t testing.TB, resource schema.GroupVersionResource, name string) func(somebody) error {
	return func(who somebody) error {
		return who.Resource(resource).Delete(t.Context(), name, metav1.DeleteOptions{DryRun: []string{metav1.DryRunAll}})
	}
}

func dryDeleteAll(t testing.TB, resource schema.GroupVersionResource) func(somebody) error {
	return func(who somebody) error {
		return who.Resource(resource).DeleteCollection(t.Context(), metav1.DeleteOptions{DryRun: []string{metav1.DryRunAll}}, metav1.ListOptions{})
	}
}

const (
	onlyPeople  = "only people decide, no service account, no node, no agent and nobody unknown"
	onlyBroker  = "only the broker writes Approvals"
	ownGroups   = "spec.groups may name only groups of the user who decides"
	neverAgents = "agents ask for TaskGrants through the broker"
)

// decisionsAreTrue is T107 and what surrounds it: who may make a Decision and what
// it may say. RBAC allows all of it.
func (r *decideRig) decisionsAreTrue(t *testing.T) {
	target := v1alpha1.DecisionTarget{Kind: v1alpha1.TargetApproval, Name: "decide-x", UID: "u", Digest: strings.Repeat("0", 64)}
	says := func(by string, groups ...string) func(somebody) error {
		return dryCreate(t, decideDecisions, decision("decide-dry", target, "Approve", by, groups...))
	}
	with := func(metadata string) func(somebody) error {
		manifest := decision("decide-dry", target, "Approve", "alice", "sre")
		return dryCreate(t, decideDecisions, strings.Replace(manifest, `metadata: {`, "metadata: {"+metadata+", ", 1))
	}
	alice := r.as(t, "alice", "decide-all", "sre")
	account := r.serviceAccount(t, "decider")
	agent := r.agent("alpha")
	runAttempts(t, []attempt{
		{"her own", alice, says("alice", "sre"), ""},
		{"without groups", alice, says("alice"), ""},
		{"with all her groups", alice, says("alice", "sre", "decide-all", "\"system:authenticated\""), ""},
		{"a no", alice, dryCreate(t, decideDecisions, decision("decide-dry", target, "Deny", "alice", "sre")), ""},
		{"as another", alice, says("bob", "sre"), "spec.by has to be the user who decides, alice"},
		{"as another in capitals", alice, says("Alice", "sre"), "spec.by has to be the user who decides, alice"},
		{"by a group that is not hers", alice, says("alice", "sre", "admins"), ownGroups},
		{"by a group of no name", alice, says("alice", `""`), ownGroups},
		{"held by a finalizer", alice, with(`finalizers: ["example.org/stay"]`), "no finalizers and no owner"},
		{"owned", alice, with(`ownerReferences: [{apiVersion: v1, kind: Namespace, name: default, uid: u}]`), "no finalizers and no owner"},
		{"a service account, as itself", account, says(account.name, "\"system:serviceaccounts\""), onlyPeople},
		{"a service account, as a person", account, says("alice", "sre"), onlyPeople},
		{"the broker's account", r.as(t, brokerAccount, "decide-all"), says(brokerAccount), onlyPeople},
		{"somebody with the group of service accounts", r.as(t, "eve", "decide-all", "system:serviceaccounts"), says("eve"), onlyPeople},
		{"a node", r.as(t, "system:node:n", "decide-all", "system:nodes"), says("system:node:n"), onlyPeople},
		{"somebody with the group of nodes", r.as(t, "eve", "decide-all", "system:nodes"), says("eve"), onlyPeople},
		{"nobody known", r.as(t, "system:anonymous", "decide-all", "system:unauthenticated"), says("system:anonymous"), onlyPeople},
		{"a part of the cluster", r.as(t, "system:kube-controller-manager", "decide-all"), says("system:kube-controller-manager"), onlyPeople},
		{"agents, as the cluster knows them", r.as(t, "taskgate:agent", "decide-all", "taskgate:agents"), says("taskgate:agent"), onlyPeople},
		{"somebody with a group of taskgate's", r.as(t, "eve", "decide-all", "taskgate:policy:shop"), says("eve"), onlyPeople},
		{"an agent's SVID", r.as(t, agent, "decide-all"), says(agent), onlyPeople},
	})
	r.decides(t, target, "Approve", "alice")
	list, err := r.broker(t).Resource(decideDecisions).List(t.Context(), metav1.ListOptions{FieldSelector: "spec.target.uid=u"})
	if err != nil || len(list.Items) != 1 {
		t.Fatalf("%v, %v", list, err)
	}
	name := list.Items[0].GetName()
	runAttempts(t, []attempt{
		{"changes her label", alice, dryPatch(t, decideDecisions, name, `{"metadata":{"labels":{"a":"b"}}}`), "a Decision is never changed"},
		{"adds a finalizer", alice, dryPatch(t, decideDecisions, name, `{"metadata":{"finalizers":["example.org/stay"]}}`), "a Decision is never changed"},
		{"the administrator changes it", r.as(t, "root", "system:masters"), dryPatch(t, decideDecisions, name, `{"metadata":{"labels":{"a":"b"}}}`), "a Decision is never changed"},
		{"takes it back", alice, dryDelete(t, decideDecisions, name), "only the broker deletes Decisions"},
		{"the administrator deletes it", r.as(t, "root", "system:masters"), dryDelete(t, decideDecisions, name), "only the broker deletes Decisions"},
		{"deletes all", alice, dryDeleteAll(t, decideDecisions), "only the broker deletes Decisions"},
		{"the broker cleans up", r.broker(t), dryDelete(t, decideDecisions, name), ""},
	})
	if err := dryPatch(t, decideDecisions, name, `{"spec":{"verdict":"Deny"}}`)(alice); err == nil || !strings.Contains(err.Error(), "a Decision cannot be changed") && !strings.Contains(err.Error(), "never changed") {
		t.Errorf("the verdict of a Decision was changed: %v", err)
	}
	if err := says(brokerAccount)(r.broker(t)); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "cannot create resource") {
		t.Errorf("RBAC lets the broker decide: %v", err)
	}
}

// approvalsAreTheBrokers is T109: nobody else writes them, status included.
func (r *decideRig) approvalsAreTheBrokers(t *testing.T) {
	alice, root := r.as(t, "alice", "decide-all", "sre"), r.as(t, "root", "system:masters")
	grant := r.createGrant(t, r.as(t, "olga", "operators"), grantManifest("decide-owner", "grants-nobody", r.agent("alpha"), "30m", mapRule("x")))
	approval := r.newApproval(t, "decide-approval", "0", grant)
	status := `{"status":{"conditions":[{"type":"Decided","status":"True","reason":"Approved","message":"","lastTransitionTime":"2026-01-01T00:00:00Z"}]}}`
	manifest := fmt.Sprintf("{apiVersion: taskgate.dev/v1alpha1, kind: Approval, metadata: {name: decide-dry}, spec: {agent: a, task: t, grant: g, grantUID: u, policy: p, gate: exec, approvers: 1, call: {verb: get}, summary: s, digest: %q, useWithin: 5m, expiresAt: \"2026-01-01T00:00:00.000000Z\"}}", strings.Repeat("0", 64))
	for _, who := range []somebody{alice, root, r.as(t, "system:serviceaccount:default:x", "decide-all")} {
		runAttempts(t, []attempt{
			{"creates", who, dryCreate(t, decideApprovals, manifest), onlyBroker},
			{"labels", who, dryPatch(t, decideApprovals, approval.Name, `{"metadata":{"labels":{"a":"b"}}}`), onlyBroker},
			{"writes the status", who, dryPatch(t, decideApprovals, approval.Name, status, "status"), onlyBroker},
			{"deletes", who, dryDelete(t, decideApprovals, approval.Name), onlyBroker},
			{"deletes all", who, dryDeleteAll(t, decideApprovals), onlyBroker},
		})
	}
	runAttempts(t, []attempt{{"creates", r.broker(t), dryCreate(t, decideApprovals, manifest), ""}, {"deletes", r.broker(t), dryDelete(t, decideApprovals, approval.Name), ""}})
	if err := dryPatch(t, decideApprovals, approval.Name, status, "status")(r.as(t, "bob", "sre")); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "cannot patch resource") {
		t.Errorf("RBAC lets an approver write a status: %v", err)
	}
	if verdict, err := r.verdictOn(t, approval); err != nil || verdict.State != 0 {
		t.Errorf("an approval nobody decided about is %+v, %v", verdict, err)
	}
}

// grantsAreWhose: requestedBy is who asks, the status is the broker's, and notes of
// people are theirs.
func (r *decideRig) grantsAreWhose(t *testing.T) {
	agent := r.agent("alpha")
	manifest := func(more string) string {
		return strings.Replace(grantManifest("decide-dry", "grants-nobody", agent, "30m", mapRule("x")), "reason: a test", "reason: a test"+more, 1)
	}
	olga, root := r.as(t, "olga", "operators"), r.as(t, "root", "system:masters")
	account := r.serviceAccount(t, "pipeline")
	for _, row := range []struct {
		who         somebody
		named, want string
	}{
		{olga, "", "olga"}, {olga, ", requestedBy: mallory", "olga"}, {olga, fmt.Sprintf(", requestedBy: %q", agent), "olga"},
		{root, ", requestedBy: olga", "root"}, {account, "", account.name}, {r.broker(t), fmt.Sprintf(", requestedBy: %q", agent), agent},
	} {
		object, err := row.who.Resource(grantsResource).Create(t.Context(), grantsObject(t, manifest(row.named)), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if err != nil {
			t.Errorf("%s%s: %v", row.who.name, row.named, err)
			continue
		}
		if got := object.Object["spec"].(map[string]any)["requestedBy"]; got != row.want {
			t.Errorf("%s%s: requestedBy is %v", row.who.name, row.named, got)
		}
	}
	notes := func(text string) string {
		return strings.Replace(manifest(fmt.Sprintf(", requestedBy: %q", agent)), "metadata: {", "metadata: {annotations: {"+text+"}, ", 1)
	}
	grant := r.createGrant(t, olga, grantManifest("decide-whose", "grants-nobody", agent, "30m", mapRule("x")))
	resume := `{"metadata":{"annotations":{"taskgate.dev/resumed":"true"}}}`
	other := `{"metadata":{"annotations":{"example.org/note":"x"}}}`
	status := `{"status":{"endReason":"","conditions":[{"type":"Active","status":"True","reason":"Active","message":"","lastTransitionTime":"2026-01-01T00:00:00Z"}]}}`
	runAttempts(t, []attempt{
		{"names nobody", r.broker(t), dryCreate(t, grantsResource, manifest("")), "spec.requestedBy has to be the agent"},
		{"names a person", r.broker(t), dryCreate(t, grantsResource, manifest(", requestedBy: alice")), "spec.requestedBy has to be the agent"},
		{"brings a note of taskgate.dev", r.broker(t), dryCreate(t, grantsResource, notes(`"taskgate.dev/resumed": "true"`)), "only people set the annotations"},
		{"brings a note of others", r.broker(t), dryCreate(t, grantsResource, notes(`"example.org/note": "x"`)), ""},
		{"an agent creates", r.as(t, "taskgate:agent", "decide-all"), dryCreate(t, grantsResource, manifest("")), neverAgents},
		{"an agent's SVID creates", r.as(t, agent, "decide-all"), dryCreate(t, grantsResource, manifest("")), neverAgents},
		{"an agent revokes", r.as(t, "taskgate:agent", "decide-all"), dryPatch(t, grantsResource, grant.Name, `{"spec":{"revoked":true}}`), neverAgents},
		{"an agent deletes", r.as(t, "taskgate:agent", "decide-all"), dryDelete(t, grantsResource, grant.Name), neverAgents},
		{"an operator lets go on", olga, dryPatch(t, grantsResource, grant.Name, resume), ""},
		{"a service account lets go on", account, dryPatch(t, grantsResource, grant.Name, resume), "only people set the annotations"},
		{"a service account notes something", account, dryPatch(t, grantsResource, grant.Name, other), ""},
		{"a service account revokes", account, dryPatch(t, grantsResource, grant.Name, `{"spec":{"revoked":true}}`), ""},
		{"an operator writes the status", r.as(t, "olga", "decide-all"), dryPatch(t, grantsResource, grant.Name, status, "status"), "only the broker writes the status"},
		{"the administrator writes the status", root, dryPatch(t, grantsResource, grant.Name, status, "status"), "only the broker writes the status"},
		{"an operator deletes", olga, dryDelete(t, grantsResource, grant.Name), ""},
		{"deletes one that waits", r.broker(t), dryDelete(t, grantsResource, grant.Name), "the broker deletes only TaskGrants that have ended"},
	})
	r.withoutMutation(t, func() {
		runAttempts(t, []attempt{
			{"names another", olga, dryCreate(t, grantsResource, manifest(", requestedBy: mallory")), "spec.requestedBy has to be who asks, olga"},
			{"names nobody", olga, dryCreate(t, grantsResource, manifest("")), "spec.requestedBy has to be who asks, olga"},
			{"names herself", olga, dryCreate(t, grantsResource, manifest(", requestedBy: olga")), ""},
		})
	})
}

// withoutMutation does something in a cluster that does not fill requestedBy in.
func (r *decideRig) withoutMutation(t *testing.T, do func()) {
	t.Helper()
	bindings := schema.GroupVersionResource{Group: "admissionregistration.k8s.io", Version: "v1", Resource: "mutatingadmissionpolicybindings"}
	binding, err := r.dynamic.Resource(bindings).Get(t.Context(), "taskgate-requested-by", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	manifest := grantManifest("decide-dry", "grants-nobody", r.agent("alpha"), "30m", mapRule("x"))
	inForce := func(want bool) {
		eventually(t, waitForAdmission, fmt.Sprintf("the mutation in force: %t", want), func() error {
			if err := dryCreate(t, grantsResource, manifest)(r.as(t, "olga", "operators")); (err == nil) != want {
				return fmt.Errorf("creating without requestedBy: %v", err)
			}
			return nil
		})
	}
	r.remove(t, bindings, binding.GetName())
	inForce(false)
	do()
	binding.SetResourceVersion("")
	binding.SetUID("")
	if _, err := r.dynamic.Resource(bindings).Create(t.Context(), binding, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	inForce(true)
}
