package e2e_test

import (
	"strings"
	"testing"
	"time"
)

// TestTasksParity: an agent sees of its own grant, with kubectl, what an
// administrator sees of it at the API server itself.
func TestTasksParity(t *testing.T) {
	t.Parallel()
	rig := newTasksRig(t)
	a := rig.newAgent(t, "tasks-par") // of its own: all its grants are compared
	rig.policy(t, "tasks-par", a, "", tasksRule)
	pair := [2]*side{rig.side(t, "direct", rig.Environment().AdminKubeconfig, "tasks-par-d"), rig.side(t, "agent", a.Kubeconfig, "tasks-par-a")}
	rig.ask(t, a, "tasks-par-one")
	rig.ask(t, a, "tasks-par-two")
	rig.admin(t, "label", "taskgrant/tasks-par-one", "tier=one")
	mine := ` --field-selector spec.agent=` + a.id
	play(t, pair, []step{
		{run: `kubectl get taskgrants` + mine, says: "tasks-par-two"},
		{run: `kubectl get tg -o wide --show-labels` + mine, says: "tier=one"},
		{run: `kubectl get tg -l tier=one -L tier` + mine, says: "tasks-par-one"},
		{run: `kubectl get tg -o name --chunk-size=1` + mine, says: "tasks-par-two"},
		{run: `kubectl get tg --chunk-size=1` + mine, says: "tasks-par-two"},
		{run: `kubectl get tg -o yaml` + mine, says: "kind: List"},
		{run: `kubectl get tg tasks-par-one -o json --show-managed-fields`, says: `"managedFields"`},
		{run: `kubectl get tg tasks-par-one tasks-par-two`, says: "tasks-par-two"},
		{run: `kubectl get tg/tasks-par-one -o jsonpath='{.status.conditions[?(@.type=="Active")].status}'`, says: "True"},
		{run: `kubectl get tg absent`, says: `taskgrants.taskgate.dev "absent" not found`, code: 1},
		{run: `kubectl get tg --field-selector spec.task=x`, says: "field label not supported: spec.task", code: 1},
		{run: `kubectl get --raw '/apis/taskgate.dev/v1alpha1/taskgrants/tasks-par-one'`, says: `"kind":"TaskGrant"`},
		{run: `kubectl describe tg tasks-par-one | sed '/^Events:/,$d'`, says: "Task:"},
		{run: `kubectl explain taskgrant.spec.ttl`, says: "30m"},
		{run: `kubectl explain approval.spec --recursive`, says: "digest"},
		{run: `kubectl wait --for=condition=Active tg/tasks-par-one --timeout=5s`, says: "condition met"},
		{run: `kubectl wait --for=jsonpath='{.status.digest}' tg tasks-par-one tasks-par-two --timeout=5s`, says: "condition met"},
		{run: `kubectl wait --for=condition=Ended tg/tasks-par-one --timeout=2s`, says: "timed out waiting", code: 1},
		{run: `kubectl wait --for=condition=Active tg/absent --timeout=5s`, says: "not found", code: 1},
		{run: `kubectl get tg absent --ignore-not-found`, says: ""},
		{run: `kubectl delete tg absent`, says: `"absent" not found`, code: 1},
		{run: `kubectl delete tg absent --ignore-not-found`, says: ""},
		{run: `kubectl delete tg tasks-par-two --dry-run=server`, says: "deleted"},
	})
	watches := both(pair, func(s *side) func() result {
		return s.background(t, `timeout 12 "$TASKGATE_BIN/kubectl" --kubeconfig "$kubeconfig" get tg tasks-par-one -w`)
	})
	waits := both(pair, func(s *side) func() result {
		return s.background(t, `kubectl wait --for=condition=Ended tg/tasks-par-one --timeout=20s`)
	})
	time.Sleep(3 * time.Second) // all four have begun
	rig.patch(t, grantsResource, "tasks-par-one", `{"spec":{"revoked":true}}`)
	var seen [2]string
	for i := range pair {
		seen[i] = normal(watches[i]().stdout)
		if !strings.Contains(seen[i], "Revoked") || !strings.Contains(seen[i], "NAME") {
			t.Errorf("%s saw %s", pair[i].name, seen[i])
		}
		if got := waits[i](); got.code != 0 || !strings.Contains(got.stdout, "condition met") {
			t.Errorf("%s waits: %s", pair[i].name, got)
		}
	}
	same(t, "kubectl get -w", seen)
	// A deletion looks the same, although only the administrator's is one.
	deleted := [2]result{pair[1].runStep(t, `kubectl delete tg tasks-par-one --timeout=20s`), pair[1].runStep(t, `kubectl delete tg tasks-par-two --wait=false`)}
	if deleted[0].code != 0 || deleted[1].code != 0 {
		t.Errorf("%v", deleted)
	}
	direct := pair[0].runStep(t, `kubectl delete tg tasks-par-one --timeout=20s`)
	same(t, "kubectl delete", [2]string{normal(direct.String()), normal(deleted[0].String())})
}

// background starts a line of shell; the function it returns waits for its end.
func (s *side) background(t testing.TB, line string) func() result {
	done := make(chan result, 1)
	go func() { done <- s.runStep(t, line) }()
	return func() result { return <-done }
}
