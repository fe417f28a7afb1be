package e2e_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/taskgate/taskgate/recorder"
)

// TestTasksLife: an agent with nothing but its sidecar asks for a grant, waits for
// it, uses it, gives it back, and has nothing left.
func TestTasksLife(t *testing.T) {
	rig := newTasksRig(t)
	before := rig.one.do(t, "GET", tasksMap, nil, "")
	if before.reason() != "NoGrant" {
		t.Fatalf("before: %d %s", before.code, before.body)
	}
	rig.ask(t, rig.one, "tasks-life")
	if got := rig.one.pipe(t, asking("tasks-life", ""), "create", "-f", "-"); got.code == 0 || !strings.Contains(got.stderr, "AlreadyExists") || !strings.Contains(got.stderr, "generateName: task-") {
		t.Errorf("the same name again: %s", got)
	}
	rig.served(t, rig.one, tasksMap)
	for _, row := range []struct{ words, says string }{
		{"get taskgrants", "INC-4711"},
		{"get tg tasks-life -o=wide", rig.one.id},
		{"get taskgrant tasks-life -o=jsonpath={.spec.agent}/{.spec.requestedBy}/{.spec.policy}", rig.one.id + "/" + rig.one.id + "/tasks-one"},
		{"get taskgrants -o=yaml", "kind: List"},
		{"get taskgate -o=name", "taskgrant.taskgate.dev/tasks-life"},
		{"describe taskgrant tasks-life", "Task:"},
		{"explain taskgrant.spec.rules", "serviceAccounts"},
		{"auth can-i create taskgrants", "yes"},
		{"auth can-i --list", "taskgrants.taskgate.dev"},
		{"get approvals", ""},
	} {
		got := rig.one.kubectl(t, strings.Fields(row.words)...)
		if row.words == "get taskgate -o=name" { // the category has kinds an agent never sees
			if !strings.Contains(got.stdout, row.says) {
				t.Errorf("kubectl %s: %s", row.words, got)
			}
			continue
		}
		if got.code != 0 || !strings.Contains(got.stdout, row.says) {
			t.Errorf("kubectl %s: %s", row.words, got)
		}
	}
	began := time.Now()
	gone := rig.one.kubectl(t, "delete", "taskgrant", "tasks-life", "--timeout=20s") // waits
	if gone.code != 0 || !strings.Contains(gone.stdout, `"tasks-life" deleted`) || time.Since(began) > 15*time.Second {
		t.Errorf("delete took %s: %s", time.Since(began), gone)
	}
	for _, words := range []string{"get taskgrant tasks-life", "delete taskgrant tasks-life", "describe taskgrant tasks-life"} {
		if got := rig.one.kubectl(t, strings.Fields(words)...); got.code == 0 || !strings.Contains(got.stderr, `taskgrants.taskgate.dev "tasks-life" not found`) {
			t.Errorf("kubectl %s: %s", words, got)
		}
	}
	if got := callUntilRefused(t, rig.one, tasksMap, 5*time.Second); got.refused.reason != "NoGrant" {
		t.Errorf("after: %s", got.refused)
	}
	grant := rig.read(t, "tasks-life")
	if conditionsOf(&grant) != "Approved=True Active=False Ended=True Released" || grant.Status.EndReason != "Released" {
		t.Errorf("it is %s, %q", conditionsOf(&grant), grant.Status.EndReason)
	}
	if got := rig.one.kubectl(t, "get", "taskgrants"); strings.Contains(got.stdout, "tasks-life") {
		t.Errorf("it is still shown: %s", got)
	}
}

// TestTasksClaims: whatever an agent says about itself is overwritten or left out.
func TestTasksClaims(t *testing.T) {
	rig := newTasksRig(t)
	body := fmt.Sprintf(`{"apiVersion":"taskgate.dev/v1alpha1","kind":"TaskGrant","metadata":{"name":"tasks-claims","uid":"x","resourceVersion":"","finalizers":["a.example/b"],"labels":{"a":"b"},
		"annotations":{"taskgate.dev/resumed":"true"},"ownerReferences":[{"apiVersion":"v1","kind":"Pod","name":"x","uid":"y"}],"generation":7,"selfLink":"x"},
		"spec":{"agent":%q,"requestedBy":"alice@example.org","revoked":true,"task":"INC-1","reason":"why","ttl":"20m","policy":"tasks-one","rules":[{"namespaces":["tasks"],"apiGroups":[""],"resources":["configmaps"],"verbs":["get"]}]},
		"status":{"digest":"x","endReason":"Expired","activeFrom":"2020-01-01T00:00:00.000000Z","expiresAt":"2099-01-01T00:00:00.000000Z","conditions":[{"type":"Active","status":"True","reason":"x","message":"","lastTransitionTime":"2020-01-01T00:00:00Z"}]}}`, rig.two.id)
	rig.removeAfter(t, grantsResource, "tasks-claims")
	got := rig.one.do(t, "POST", tasksGrants, asJSON, body)
	if got.code != 201 {
		t.Fatalf("%d %s", got.code, got.body)
	}
	mentions(t, "the answer", got.body, rig.two.id, "alice", "finalizers", "ownerReferences", "resumed", `"a":"b"`, "2099", `"revoked":true`)
	grant := rig.until(t, "tasks-claims", "Approved=True Active=True Ended=False Active")
	spec := grant.Spec
	if spec.Agent != rig.one.id || spec.RequestedBy != rig.one.id || spec.Revoked || spec.Task != "INC-1" || spec.Reason != "why" || spec.TTL.Duration != 20*time.Minute || spec.Policy != "tasks-one" {
		t.Errorf("it is %+v", spec)
	}
	if len(grant.Finalizers)+len(grant.OwnerReferences)+len(grant.Labels)+len(grant.Annotations) != 0 {
		t.Errorf("its metadata are %+v", grant.ObjectMeta)
	}
	if grant.Status.ExpiresAt.Year() == 2099 {
		t.Error("its status is the agent's")
	}
	records := rig.journal.of(t, got.auditID())[got.auditID()]
	if len(records) != 2 || records[0].Stage != recorder.StageRequestReceived || records[0].RequestObject == nil || records[0].ImpersonatedUser != nil {
		t.Fatalf("%d records, the first is %+v", len(records), records[0])
	}
	if note := records[1].Annotations; note[recorder.AnnotationGrant] != "tasks-claims" || note[recorder.AnnotationSession] != string(grant.UID) || note[recorder.AnnotationDecision] != "allow" {
		t.Errorf("the outcome says %v", note)
	}
	if seen := rig.upstream(t)[got.auditID()]; len(seen) == 0 || seen[0].User.Username != brokerAccount || seen[0].ImpersonatedUser != nil {
		t.Errorf("the API server saw %+v", seen)
	}
}

// TestTasksInvalid: what is wrong is said with the field and the fix.
func TestTasksInvalid(t *testing.T) {
	rig := newTasksRig(t)
	plain := func(change string, into string) string {
		return strings.Replace(asking("tasks-invalid", ""), change, into, 1)
	}
	for _, row := range []struct {
		name, manifest string
		says           []string
	}{
		{"no task", plain("task: INC-4711", "reason: x"), []string{"spec.task", "Required value"}},
		{"a task with a line break", plain("INC-4711", `"a\nb"`), []string{"spec.task", "Invalid value"}},
		{"a bad ttl", plain("30m", "soon"), []string{"spec.ttl"}},
		{"a ttl that is a number", plain("ttl: 30m", "ttl: 30"), []string{"spec.ttl"}},
		{"an empty rule", plain(tasksRule, "{}"), []string{"spec.rules[0].namespaces", "Required value"}},
		{"an unknown field", asking("tasks-invalid", "tsk: x"), []string{`unknown field "spec.tsk"`}},
		{"an unknown field of a rule", plain("verbs: [get", "verb: [x], verbs: [get"), []string{`unknown field "spec.rules[0].verb"`}},
		{"an unknown field of the metadata", plain("metadata: {", "metadata: {nam: x, "), []string{"unknown field", "nam"}},
		{"a policy of somebody else", asking("tasks-invalid", "policy: tasks-two"), []string{"spec.policy", "no AgentPolicy of that name is about you; write one of tasks-one"}},
		{"no such policy", asking("tasks-invalid", "policy: nobodys"), []string{"spec.policy", "no AgentPolicy of that name is about you; write one of tasks-one"}},
		{"no name", plain("name: tasks-invalid", "labels: {a: b}"), []string{"name or generateName is required"}},
		{"a bad name", plain("name: tasks-invalid", "name: A_B"), []string{"metadata.name", "Invalid value"}},
		{"the brokers' name", plain("name: tasks-invalid", "name: taskgate-heartbeat"), []string{"metadata.name", "choose another name"}},
	} {
		got := rig.one.pipe(t, row.manifest, "create", "--validate=false", "-f", "-")
		for _, says := range row.says {
			if got.code == 0 || !strings.Contains(got.stderr, says) {
				t.Errorf("%s: want %q, got %s", row.name, says, got)
			}
		}
	}
	// kubectl's own validation reads the same OpenAPI.
	if got := rig.one.pipe(t, asking("tasks-invalid", "tsk: x"), "create", "-f", "-"); got.code == 0 || !strings.Contains(got.stderr, "tsk") {
		t.Errorf("kubectl create: %s", got)
	}
	for _, dry := range []string{"--dry-run=server", "--dry-run=client"} {
		if got := rig.one.pipe(t, asking("tasks-dry", ""), "create", dry, "-f", "-"); got.code != 0 || !strings.Contains(got.stdout, "created") {
			t.Errorf("%s: %s", dry, got)
		}
	}
	if all := rig.admin(t, "get", "taskgrants", "-o=name"); strings.Contains(all, "tasks-invalid") || strings.Contains(all, "tasks-dry") {
		t.Errorf("something was created: %s", all)
	}
}

// TestTasksOutside: a grant outside of the ceiling is refused by its status, which
// says what is missing.
func TestTasksOutside(t *testing.T) {
	rig := newTasksRig(t)
	manifest := strings.Replace(asking("tasks-outside", ""), "verbs: [get", "verbs: [delete, get", 1)
	rig.removeAfter(t, grantsResource, "tasks-outside")
	if got := rig.one.pipe(t, manifest, "create", "-f", "-"); got.code != 0 {
		t.Fatal(got)
	}
	if got := rig.one.kubectl(t, "wait", "--for=condition=Ended", "taskgrant/tasks-outside", "--timeout=15s"); got.code != 0 {
		t.Fatal(got)
	}
	if got := rig.one.kubectl(t, "get", "taskgrant", "tasks-outside", "-o=jsonpath={.status.conditions[?(@.type==\"Ended\")].message}"); !strings.Contains(got.stdout, "delete configmaps in namespace tasks") {
		t.Errorf("it does not say what is missing: %s", got)
	}
	// To delete it is to be shown it no more; why it is over stays on record.
	if got := rig.one.kubectl(t, "delete", "taskgrant", "tasks-outside", "--timeout=20s"); got.code != 0 {
		t.Error(got)
	}
	if grant := rig.read(t, "tasks-outside"); conditionsOf(&grant) != "Approved=False Active=False Ended=True OutsidePolicy" || grant.Status.EndReason != "" {
		t.Errorf("it is %s, %q", conditionsOf(&grant), grant.Status.EndReason)
	}
}

// TestTasksNoPolicy: somebody no policy is about can ask for nothing.
func TestTasksNoPolicy(t *testing.T) {
	rig := newTasksRig(t)
	got := rig.nobody.pipe(t, asking("tasks-nobody", ""), "create", "-f", "-")
	if got.code == 0 || !strings.Contains(got.stderr, "[taskgate:NoGrant]") || !strings.Contains(got.stderr, "No AgentPolicy is about you. Next: tell an operator who you are (kubectl auth whoami)") {
		t.Errorf("create: %s", got)
	}
	if got := rig.nobody.kubectl(t, "auth", "can-i", "create", "taskgrants"); got.code != 1 {
		t.Errorf("can-i: %s", got)
	}
	if got := rig.nobody.kubectl(t, "get", "taskgrants"); got.code != 0 || !strings.Contains(got.stderr, "No resources found") {
		t.Errorf("get: %s", got)
	}
}

// TestTasksNextStep: what a refusal says to paste works as it stands.
func TestTasksNextStep(t *testing.T) {
	rig := newTasksRig(t)
	a := rig.newAgent(t, "tasks-paste")
	rig.policy(t, "tasks-paste", a, "grant: {maxTTL: 10m, maxActive: 1, approval: None}", tasksRule)
	get := []string{"-n", "tasks", "get", "configmap", "settings"}
	refused := a.kubectl(t, get...)
	_, command, found := strings.Cut(refused.stderr, "Next: ")
	command, _, ended := strings.Cut(command, "; write your task")
	if !found || !ended || len(refused.stderr) > 700 {
		t.Fatalf("%d characters: %s", len(refused.stderr), refused)
	}
	paste := func(command string) result {
		return a.stack.command(t, "", "bash", "-c", "PATH="+rig.Environment().Programs+":$PATH KUBECONFIG="+a.Kubeconfig+"; export PATH KUBECONFIG; "+command)
	}
	created := paste(command)
	name, _, _ := strings.Cut(strings.TrimPrefix(created.stdout, "taskgrant.taskgate.dev/"), " ")
	if created.code != 0 || !strings.HasPrefix(name, "task-") {
		t.Fatalf("%s\n%s", command, created)
	}
	rig.removeAfter(t, grantsResource, name)
	eventually(t, 10*time.Second, "the same command passes", func() error {
		if got := a.kubectl(t, get...); got.code != 0 {
			return fmt.Errorf("%s", got)
		}
		return nil
	})
	var grant struct {
		Spec struct{ Rules json.RawMessage }
	}
	if got := a.kubectl(t, "get", "taskgrant", name, "-o=json"); json.Unmarshal([]byte(got.stdout), &grant) != nil {
		t.Fatal(got)
	}
	var rules []map[string][]string
	if err := json.Unmarshal(grant.Spec.Rules, &rules); err != nil || fmt.Sprint(rules) != "[map[apiGroups:[] namespaces:[tasks] resourceNames:[settings] resources:[configmaps] verbs:[get]]]" {
		t.Errorf("it gives %v", rules)
	}
	// Outside of it: the one that is held has to be given back first.
	listed := a.kubectl(t, "-n", "tasks", "get", "configmaps")
	if !strings.Contains(listed.stderr, "[taskgate:OutsideGrant]") || !strings.Contains(listed.stderr, "Next: first kubectl delete taskgrant "+name+" (1 at a time), then echo '") {
		t.Errorf("outside: %s", listed)
	}
	// … and what no policy gives is said so.
	secrets := a.kubectl(t, "-n", "tasks", "delete", "configmap", "settings")
	if !strings.Contains(secrets.stderr, "Your AgentPolicies (tasks-paste) allow no TaskGrant for it. Next: ") {
		t.Errorf("not in the ceiling: %s", secrets)
	}
}

// TestTasksWarning: an answer says when the budget is nearly spent.
func TestTasksWarning(t *testing.T) {
	rig := newTasksRig(t)
	a := rig.newAgent(t, "tasks-warned")
	rig.policy(t, "tasks-warned", a, "grant: {maxTTL: 4h, approval: None}\nbudget: {requests: 20}", tasksRule)
	rig.ask(t, a, "tasks-warned")
	warned := 0
	for range 100 {
		got := a.do(t, "GET", tasksMap, nil, "")
		if got.reason() == "BudgetSpent/requests" {
			if !strings.Contains(got.status().Message, "is spent (requests). Next: echo '") {
				t.Error(got.status().Message)
			}
			break
		}
		if strings.Contains(got.header.Get("Warning"), "the budget of the grant tasks-warned is nearly spent (requests)") {
			warned++
		}
	}
	if warned != 3 { // the 18th, 19th and 20th
		t.Errorf("%d answers carried the warning", warned)
	}
}

// TestTasksPending: a grant that waits for people says how to wait.
func TestTasksPending(t *testing.T) {
	rig := newTasksRig(t)
	a := rig.newAgent(t, "tasks-pending")
	rig.policy(t, "tasks-pending", a, "grant: {maxTTL: 1h, approval: {approvers: 1, groups: [sre]}}", tasksRule)
	for i := range 8 {
		name := fmt.Sprintf("tasks-pending-%d", i)
		if got := a.do(t, "POST", tasksGrants, asJSON, tasksJSON(name)); got.code != 201 {
			t.Fatalf("%s: %d %s", name, got.code, got.body)
		}
		rig.removeAfter(t, grantsResource, name)
	}
	got := a.do(t, "POST", tasksGrants, asJSON, tasksJSON("tasks-pending-8"))
	if got.code != 403 || got.reason() != "BudgetSpent/GrantQuota" || got.header.Get("Retry-After") != "" || !strings.Contains(got.body, "kubectl delete taskgrant NAME") {
		t.Errorf("the ninth: %d %s", got.code, got.body)
	}
	if last := rig.journal.of(t, got.auditID())[got.auditID()]; len(last) != 1 || last[0].Annotations[recorder.AnnotationCause] != "GrantQuota" {
		t.Errorf("on record: %+v", last)
	}
	var refused reply
	eventually(t, 10*time.Second, "GrantPending", func() error {
		if refused = a.do(t, "GET", tasksMap, nil, ""); refused.reason() != "GrantPending" {
			return fmt.Errorf("%s", refused.body)
		}
		return nil
	})
	if !strings.Contains(refused.status().Message, "Next: kubectl wait --for=condition=Active taskgrant/tasks-pending-") || !strings.Contains(refused.status().Message, " --timeout=15m, then repeat the same command") {
		t.Error(refused.status().Message)
	}
	// One that is given back makes room.
	if got := a.do(t, "DELETE", tasksGrants+"/tasks-pending-0", nil, ""); got.code != 200 || got.status().Status != "Success" {
		t.Fatalf("%d %s", got.code, got.body)
	}
	eventually(t, 10*time.Second, "room for another", func() error {
		if got := a.do(t, "POST", tasksGrants, asJSON, tasksJSON("tasks-pending-9")); got.code != 201 {
			return fmt.Errorf("%d %s", got.code, got.body)
		}
		return nil
	})
	rig.removeAfter(t, grantsResource, "tasks-pending-9")
	if grant := rig.read(t, "tasks-pending-0"); conditionsOf(&grant) != "Approved=False Active=False Ended=True Released" {
		t.Errorf("it is %s", conditionsOf(&grant))
	}
	// Faster than a rate, and the answer is another one.
	for range 40 {
		if got = a.do(t, "POST", tasksGrants+"?dryRun=All", asJSON, tasksJSON("tasks-pending-x")); got.code != 201 {
			break
		}
	}
	if got.code != 429 || got.reason() != "RateLimited/GrantRate" || !strings.Contains(got.body, "Next: repeat the same command in ") {
		t.Errorf("many: %d %s", got.code, got.body)
	}
}

func tasksJSON(name string) string {
	return fmt.Sprintf(`{"apiVersion":"taskgate.dev/v1alpha1","kind":"TaskGrant","metadata":{"name":%q},"spec":{"task":"INC-1","ttl":"20m","rules":[{"namespaces":["tasks"],"apiGroups":[""],"resources":["configmaps"],"verbs":["get"]}]}}`, name)
}
