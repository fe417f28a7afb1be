package testbed

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
)

// The names of the nodes.
const (
	KwokNodeName = "kwok-0"
	RealNodeName = "node-0"
)

const nodePatience = 30 * time.Second

// startNode starts the node that the options name.
func (t *Testbed) startNode(ctx context.Context) error {
	switch t.options.Node {
	case Kwok:
		return t.startKwok(ctx)
	case RealNode:
		return t.startRealNode(ctx)
	default:
		return nil
	}
}

// waitForNode waits until the cluster takes the node for ready.
func (t *Testbed) waitForNode(ctx context.Context, client kubernetes.Interface, name, component string) error {
	var last error
	err := wait.PollUntilContextTimeout(ctx, 50*time.Millisecond, nodePatience, true, func(ctx context.Context) (bool, error) {
		found, err := client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
		last = err // a node that registers itself is absent at first
		return err == nil && isReady(found), nil
	})
	if err != nil {
		return fmt.Errorf("waiting until node %s is ready (see %s): %w", name, t.Component(component).Log(), errors.Join(err, last))
	}
	return nil
}

// isReady also asks that nothing keeps pods off the node: the controller manager
// takes its not-ready taint away a moment after it is ready.
func isReady(node *corev1.Node) bool {
	for _, condition := range node.Status.Conditions {
		if condition.Type == corev1.NodeReady {
			return condition.Status == corev1.ConditionTrue && len(node.Spec.Taints) == 0
		}
	}
	return false
}
