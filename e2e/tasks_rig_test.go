package e2e_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// The tests of tasks are about what an agent does with its own TaskGrants and
// Approvals through its sidecar, with kubectl and with client-go.

// tasksRig are two agents under one policy, which gives at once what is inside
// of its ceiling, and a third of whom no policy knows.
type tasksRig struct {
	*grantsRig
	one, two, nobody *agent
}

var tasksShared struct {
	once sync.Once
	rig  *tasksRig
}

func newTasksRig(t testing.TB) *tasksRig {
	t.Helper()
	s := sharedStack(t)
	tasksShared.once.Do(func() {
		rig := &tasksRig{grantsRig: &grantsRig{s}, one: s.newAgent(t, "tasks-one"), two: s.newAgent(t, "tasks-two"), nobody: s.newAgent(t, "tasks-nobody")}
		keep := &keeper{TB: t}
		rig.apply(t, "apiVersion: v1\nkind: Namespace\nmetadata: {name: tasks}\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings, namespace: tasks}\ndata: {colour: blue}\n")
		for _, a := range []*agent{rig.one, rig.two} {
			rig.policy(keep, a.name, a, "", tasksRule)
		}
		tasksShared.rig = rig
	})
	if tasksShared.rig == nil {
		t.Fatal("the rig of the tasks could not be made")
	}
	return tasksShared.rig
}

const (
	tasksRule   = `{namespaces: [tasks], apiGroups: [""], resources: [configmaps], verbs: [get, list, watch]}`
	tasksGrants = "/apis/taskgate.dev/v1alpha1/taskgrants"
	tasksMap    = "/api/v1/namespaces/tasks/configmaps/settings"
)

// asking is a TaskGrant as an agent writes it. more is more of its spec.
func asking(name, more string) string {
	return fmt.Sprintf("apiVersion: taskgate.dev/v1alpha1\nkind: TaskGrant\nmetadata: {name: %s}\nspec:\n  task: INC-4711\n  ttl: 30m\n  rules: [%s]\n%s\n", name, tasksRule, indent(more))
}

// pipe runs kubectl as the agent with something to read.
func (a *agent) pipe(t testing.TB, stdin string, arguments ...string) result {
	t.Helper()
	return a.stack.command(t, stdin, a.stack.Environment().Programs+"/kubectl", append([]string{"--kubeconfig", a.Kubeconfig}, arguments...)...)
}

// ask has the agent create a grant that is gone after the test, and waits until it
// is active.
func (rig *tasksRig) ask(t testing.TB, a *agent, name string) {
	t.Helper()
	if got := a.pipe(t, asking(name, ""), "create", "-f", "-"); got.code != 0 {
		t.Fatalf("asking for %s: %s", name, got)
	}
	rig.removeAfter(t, grantsResource, name)
	if got := a.kubectl(t, "wait", "--for=condition=Active", "taskgrant/"+name, "--timeout=15s"); got.code != 0 {
		t.Fatalf("waiting for %s: %s", name, got)
	}
}

// config is how client-go reaches the cluster as the agent.
func (a *agent) config(t testing.TB) *rest.Config {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", a.Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	config.QPS = -1
	return config
}

func (a *agent) dynamic(t testing.TB) dynamic.Interface {
	t.Helper()
	client, err := dynamic.NewForConfig(a.config(t))
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// mentions fails the test where a text holds what it must not.
func mentions(t testing.TB, what, text string, secrets ...string) {
	t.Helper()
	for _, secret := range secrets {
		if strings.Contains(text, secret) {
			t.Errorf("%s shows %q: %.2000s", what, secret, text)
		}
	}
}
