package testbed

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
)

const podPatience = 60 * time.Second

// RunPod runs a pod with one container of ToolsImage, named like the pod, and
// returns when it is ready. Without a command it sleeps. The namespace is made
// when it is absent. It needs a node and the controllers.
func (t *Testbed) RunPod(ctx context.Context, namespace, name string, command ...string) (*corev1.Pod, error) {
	if len(command) == 0 {
		command = []string{"sleep", "infinity"}
	}
	second, no := int64(1), false // the first process of a container ignores SIGTERM
	return t.StartPod(ctx, &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec: corev1.PodSpec{
			Containers:                    []corev1.Container{{Name: name, Image: ToolsImage, ImagePullPolicy: corev1.PullNever, Command: command}},
			TerminationGracePeriodSeconds: &second,
			AutomountServiceAccountToken:  &no,
		},
	})
}

// StartPod is RunPod for a pod of any kind.
func (t *Testbed) StartPod(ctx context.Context, pod *corev1.Pod) (*corev1.Pod, error) {
	client, err := kubernetes.NewForConfig(t.admin)
	if err != nil {
		return nil, fmt.Errorf("making a client of the cluster: %w", err)
	}
	if err := ensureNamespace(ctx, client, pod.Namespace); err != nil {
		return nil, err
	}
	created, err := client.CoreV1().Pods(pod.Namespace).Create(ctx, pod, metav1.CreateOptions{})
	if err != nil {
		return nil, fmt.Errorf("creating the pod %s: %w", pod.Name, err)
	}
	return t.waitForPod(ctx, client, created)
}

// ensureNamespace makes a namespace and waits until pods can be created in it,
// which need a service account.
func ensureNamespace(ctx context.Context, client kubernetes.Interface, name string) error {
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if _, err := client.CoreV1().Namespaces().Create(ctx, namespace, metav1.CreateOptions{}); unlessExists(err) != nil {
		return fmt.Errorf("making the namespace %s: %w", name, err)
	}
	err := wait.PollUntilContextTimeout(ctx, 50*time.Millisecond, podPatience, true, func(ctx context.Context) (bool, error) {
		_, err := client.CoreV1().ServiceAccounts(name).Get(ctx, "default", metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return false, nil
		}
		return err == nil, err
	})
	if err != nil {
		return fmt.Errorf("waiting for the service account of the namespace %s: %w", name, err)
	}
	return nil
}

// waitForPod waits until this very pod is ready.
func (t *Testbed) waitForPod(ctx context.Context, client kubernetes.Interface, pod *corev1.Pod) (*corev1.Pod, error) {
	err := wait.PollUntilContextTimeout(ctx, 50*time.Millisecond, podPatience, true, func(ctx context.Context) (bool, error) {
		found, err := client.CoreV1().Pods(pod.Namespace).Get(ctx, pod.Name, metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		if found.UID != pod.UID || found.Status.Phase == corev1.PodFailed || found.Status.Phase == corev1.PodSucceeded {
			return false, errors.New("it has ended")
		}
		pod = found
		return podReady(found), nil
	})
	if err != nil {
		return nil, fmt.Errorf("waiting until the pod %s/%s is ready%s (see %s): %w",
			pod.Namespace, pod.Name, hindrance(pod), t.Component(ComponentKubelet).Log(), err)
	}
	return pod, nil
}

func podReady(pod *corev1.Pod) bool {
	for _, condition := range pod.Status.Conditions {
		if condition.Type == corev1.PodReady {
			return condition.Status == corev1.ConditionTrue
		}
	}
	return false
}

// hindrance says why a pod is not ready, as far as its status tells.
func hindrance(pod *corev1.Pod) string {
	for _, condition := range pod.Status.Conditions {
		if condition.Type == corev1.PodScheduled && condition.Status == corev1.ConditionFalse {
			return ": " + condition.Message
		}
	}
	for _, status := range append(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses...) {
		if waiting := status.State.Waiting; waiting != nil {
			return fmt.Sprintf(": %s waits: %s %s", status.Name, waiting.Reason, waiting.Message)
		}
	}
	return ""
}
