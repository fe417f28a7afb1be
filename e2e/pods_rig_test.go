package e2e_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// Sidecars that the injection of the tests accepts; the first is put in.
const (
	newSidecar = "example.org/taskgate-sidecar@sha256:1111111111111111111111111111111111111111111111111111111111111111"
	oldSidecar = "example.org/taskgate-sidecar@sha256:2222222222222222222222222222222222222222222222222222222222222222"
)

// install applies manifests/injection with settings of its own.
func (s *stack) install(t testing.TB, settings map[string]string) {
	t.Helper()
	s.admin(t, "apply", "--server-side", "--force-conflicts", "-k", "../manifests/injection")
	var lines strings.Builder
	for key, value := range settings {
		fmt.Fprintf(&lines, "  %s: %q\n", key, value)
	}
	s.admin(t, "patch", "configmap/taskgate-injection", "--namespace=taskgate-system", "--type=merge", "--patch", "data:\n"+lines.String())
}

// agentsNamespace makes a namespace of agents and waits until pods can be made in it and
// are judged.
func (s *stack) agentsNamespace(t testing.TB, name string) {
	t.Helper()
	s.apply(t, fmt.Sprintf(`{apiVersion: v1, kind: Namespace, metadata: {name: %s, labels: {taskgate.dev/agents: "true"}}}`, name))
	eventually(t, 20*time.Second, "pods in "+name+" are judged", func() error {
		if _, err := s.try(t, s.kube, name, agentPod("probe")); err != nil {
			return err
		}
		unlabelled := agentPod("probe")
		unlabelled.Labels = nil
		if _, err := s.try(t, s.kube, name, unlabelled); !apierrors.IsForbidden(err) {
			return fmt.Errorf("a pod without the label: %w", err)
		}
		return nil
	})
}

// try creates a pod without making it, and answers what it would be.
func (s *stack) try(t testing.TB, client kubernetes.Interface, namespace string, pod *corev1.Pod) (*corev1.Pod, error) {
	t.Helper()
	return client.CoreV1().Pods(namespace).Create(t.Context(), pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
}

// agentPod is the least an author writes.
func agentPod(name string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"taskgate.dev/agent": "true"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "agent", Image: "example.org/agent:1"}}},
	}
}

// tenant is a person who may do everything in one namespace, and change the
// namespace itself.
func (s *stack) tenant(t testing.TB, namespace string) kubernetes.Interface {
	t.Helper()
	s.apply(t, fmt.Sprintf(`apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: tenant-%[1]s}
rules:
- {apiGroups: ["*"], resources: ["*"], verbs: ["*"]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: tenant, namespace: %[1]s}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: tenant-%[1]s}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: tenant}]
`, namespace))
	config := s.Admin()
	config.Impersonate = rest.ImpersonationConfig{UserName: "tenant"}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return client
}
