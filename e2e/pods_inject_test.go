package e2e_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// injectionSettings are those of the golden files.
func injectionSettings() map[string]string {
	return map[string]string{"image": newSidecar, "images": newSidecar + "\n" + oldSidecar + "\n"}
}

// TestInjection has the API server change pods and judge what comes out.
func TestInjection(t *testing.T) {
	s := sharedStack(t)
	s.install(t, injectionSettings())
	s.agentsNamespace(t, "case-agents")
	tenant := s.tenant(t, "case-agents")
	t.Run("golden files", func(t *testing.T) { s.goldenPods(t, "case-agents") })
	t.Run("refused", func(t *testing.T) { s.refusedPods(t, tenant, "case-agents") })
	t.Run("kept", func(t *testing.T) { s.keptPods(t, tenant, "case-agents") })
	t.Run("controllers", func(t *testing.T) { s.controlledPods(t, "case-agents") })
	t.Run("hostile", func(t *testing.T) { s.hostilePods(t, tenant, "case-agents") })
	t.Run("rollout", func(t *testing.T) { s.rollout(t, "case-agents") })
	t.Run("undone", func(t *testing.T) { s.undonePods(t) })
	t.Run("without", func(t *testing.T) { s.withoutInjection(t, "case-agents") })
}

// goldenPods compares what becomes of pods with files; UPDATE=1 writes them. A dry
// run makes nothing (T265).
func (s *stack) goldenPods(t *testing.T, namespace string) {
	inputs, err := filepath.Glob("testdata/injection/*.yaml")
	if err != nil || len(inputs) == 0 {
		t.Fatal(inputs, err)
	}
	for _, input := range inputs {
		got := s.admin(t, "create", "--dry-run=server", "--namespace="+namespace, "--output=yaml", "--filename="+input)
		var pod map[string]any
		if err := yaml.Unmarshal([]byte(got), &pod); err != nil {
			t.Fatal(err)
		}
		metadata := pod["metadata"].(map[string]any)
		delete(metadata, "uid")
		delete(metadata, "creationTimestamp")
		text, err := yaml.Marshal(pod)
		if err != nil {
			t.Fatal(err)
		}
		golden(t, strings.TrimSuffix(input, ".yaml")+".golden", text)
	}
	pods, err := s.kube.CoreV1().Pods(namespace).List(t.Context(), metav1.ListOptions{})
	if err != nil || len(pods.Items) != 0 {
		t.Errorf("dry runs made %d pods: %v", len(pods.Items), err)
	}
}

// golden compares with a file, or writes it if the environment says UPDATE=1.
func golden(t testing.TB, path string, got []byte) {
	t.Helper()
	if os.Getenv("UPDATE") == "1" {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v; run the test with UPDATE=1 to write it", err)
	}
	if string(got) != string(want) {
		t.Errorf("%s differs from what is now:\n%s\nrun the test with UPDATE=1 and look at the difference", path, got)
	}
}

// controlledPods: whatever makes a pod of the label gets the sidecar, and no token
// (T250).
func (s *stack) controlledPods(t *testing.T, namespace string) {
	const template = `{metadata: {labels: {app: %[1]s, taskgate.dev/agent: "true"}}, spec: {restartPolicy: %[2]s, containers: [{name: agent, image: "example.org/agent:1"}]}}`
	for _, row := range []struct{ name, manifest string }{
		{"deployment", `{apiVersion: apps/v1, kind: Deployment, metadata: {name: deployment}, spec: {selector: {matchLabels: {app: deployment}}, template: ` + fmt.Sprintf(template, "deployment", "Always") + `}}`},
		{"statefulset", `{apiVersion: apps/v1, kind: StatefulSet, metadata: {name: statefulset}, spec: {serviceName: x, selector: {matchLabels: {app: statefulset}}, template: ` + fmt.Sprintf(template, "statefulset", "Always") + `}}`},
		{"job", `{apiVersion: batch/v1, kind: Job, metadata: {name: job}, spec: {template: ` + fmt.Sprintf(template, "job", "Never") + `}}`},
		{"cronjob", `{apiVersion: batch/v1, kind: CronJob, metadata: {name: cronjob}, spec: {schedule: "* * * * *", suspend: true, jobTemplate: {spec: {template: ` + fmt.Sprintf(template, "cronjob", "Never") + `}}}}`},
	} {
		s.apply(t, strings.Replace(row.manifest, "metadata: {name: "+row.name+"}", "metadata: {name: "+row.name+", namespace: "+namespace+"}", 1))
	}
	s.admin(t, "create", "job", "--namespace="+namespace, "--from=cronjob/cronjob", "from-cronjob")
	for _, app := range []string{"deployment", "statefulset", "job", "cronjob"} {
		var pod corev1.Pod
		eventually(t, 30*time.Second, "a pod of "+app, func() error {
			pods, err := s.kube.CoreV1().Pods(namespace).List(t.Context(), metav1.ListOptions{LabelSelector: "app=" + app})
			if err != nil || len(pods.Items) == 0 {
				return fmt.Errorf("none: %w", err)
			}
			pod = pods.Items[0]
			return nil
		})
		judgeInjected(t, app, &pod)
	}
	s.admin(t, "delete", "deployments,statefulsets,cronjobs,jobs", "--all", "--wait=false", "--namespace="+namespace)
}

// judgeInjected looks at a pod without knowing how it was made so.
func judgeInjected(t testing.TB, name string, pod *corev1.Pod) {
	t.Helper()
	if len(pod.Spec.InitContainers) == 0 || pod.Spec.InitContainers[0].Name != "taskgate" || pod.Spec.InitContainers[0].Image != newSidecar {
		t.Errorf("%s: the sidecar is not the first init container", name)
	}
	if mount := pod.Spec.AutomountServiceAccountToken; mount == nil || *mount {
		t.Errorf("%s: automountServiceAccountToken is not false", name)
	}
	for _, volume := range pod.Spec.Volumes {
		if volume.Projected != nil || volume.Secret != nil {
			t.Errorf("%s: the volume %s may hold a token", name, volume.Name)
		}
	}
	for _, container := range pod.Spec.Containers {
		for _, mount := range container.VolumeMounts {
			if mount.Name != "taskgate-agent" || !mount.ReadOnly {
				t.Errorf("%s: the container %s mounts %+v", name, container.Name, mount)
			}
		}
		if len(container.VolumeMounts) != 2 || len(container.Env) != 4 {
			t.Errorf("%s: the container %s has %+v %+v", name, container.Name, container.VolumeMounts, container.Env)
		}
	}
}
