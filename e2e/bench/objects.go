package bench

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/taskgate/taskgate/e2e/testbed"
)

// Namespaces of the benchmark.
const (
	podsNamespace   = "bench-pods"   // 500 pods of 2 KB
	createNamespace = "bench-create" // takes what is created
	quietNamespace  = "bench-quiet"  // nothing ever happens in it
	bigNamespace    = "bench-big"    // large config maps
)

const (
	podCount = 500
	// podPadding makes a pod 2 KB of JSON, and the list of them 1 MB.
	podPadding = 560
	bigObject  = 800 << 10 // of data in one large config map
)

func getPod() call {
	return call{method: http.MethodGet, path: "/api/v1/namespaces/" + podsNamespace + "/pods/pod-0", want: http.StatusOK}
}

func listPods() call {
	return call{method: http.MethodGet, path: "/api/v1/namespaces/" + podsNamespace + "/pods", want: http.StatusOK}
}

func listBig() call {
	return call{method: http.MethodGet, path: "/api/v1/namespaces/" + bigNamespace + "/configmaps", want: http.StatusOK}
}

func watchQuiet() call {
	return call{method: http.MethodGet, path: "/api/v1/namespaces/" + quietNamespace + "/configmaps?watch=true", want: http.StatusOK}
}

func createConfigMap() call {
	return call{
		method: http.MethodPost, path: "/api/v1/namespaces/" + createNamespace + "/configmaps", want: http.StatusCreated,
		body: `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"generateName":"bench-"},"data":{"key":"` + strings.Repeat("v", 100) + `"}}`,
	}
}

// createObjects makes namespaces and pods. Nothing runs them: there is neither a
// scheduler nor a node.
func (w *world) createObjects(ctx context.Context) error {
	for _, name := range []string{podsNamespace, createNamespace, quietNamespace, bigNamespace} {
		namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
		if _, err := w.kube.CoreV1().Namespaces().Create(ctx, namespace, metav1.CreateOptions{}); err != nil {
			return fmt.Errorf("creating namespace %s: %w", name, err)
		}
	}
	// Pods need it, and mostly no controller makes it.
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}
	if _, err := w.kube.CoreV1().ServiceAccounts(podsNamespace).Create(ctx, account, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("creating a service account: %w", err)
	}
	return createMany(ctx, podCount, func(ctx context.Context, i int) error {
		_, err := w.kube.CoreV1().Pods(podsNamespace).Create(ctx, benchPod(i), metav1.CreateOptions{})
		return err
	})
}

func benchPod(number int) *corev1.Pod {
	mount := false
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: fmt.Sprintf("pod-%d", number), Labels: map[string]string{"app": "bench"},
			Annotations: map[string]string{"bench.taskgate.dev/padding": strings.Repeat("p", podPadding)},
		},
		Spec: corev1.PodSpec{
			AutomountServiceAccountToken: &mount,
			Containers:                   []corev1.Container{{Name: "main", Image: "registry.example.org/bench:1"}},
		},
	}
}

// createBig fills a namespace so that its list has at least so many bytes.
func (w *world) createBig(ctx context.Context, size int) error {
	return createMany(ctx, size/bigObject+1, func(ctx context.Context, i int) error {
		object := &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("big-%d", i)},
			Data:       map[string]string{"data": strings.Repeat(string(rune('a'+i%26)), bigObject)},
		}
		_, err := w.kube.CoreV1().ConfigMaps(bigNamespace).Create(ctx, object, metav1.CreateOptions{})
		return err
	})
}

func createMany(ctx context.Context, count int, create func(context.Context, int) error) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(8)
	for i := range count {
		group.Go(func() error { return create(ctx, i) })
	}
	if err := group.Wait(); err != nil {
		return fmt.Errorf("creating objects to read: %w", err)
	}
	return nil
}

const policyName, taskName = "bench", "bench"

// rules are what the calls of the benchmark need.
const rules = `[{namespaces: [` + podsNamespace + `, ` + createNamespace + `, ` + quietNamespace + `, ` + bigNamespace +
	`], apiGroups: [""], resources: [pods, configmaps], verbs: [get, list, watch, create]}, ` +
	`{namespaces: [` + podsNamespace + `], apiGroups: [""], resources: [pods/exec], verbs: [create]}]`

const policyManifest = `apiVersion: taskgate.dev/v1alpha1
kind: AgentPolicy
metadata: {name: ` + policyName + `}
spec:
  agents: ["spiffe://` + testbed.TrustDomain + `/ns/` + testbed.AgentNamespace + `/sa/*"]
  allow: ` + rules + `
  waive: [exec]
  grant: {maxTTL: 24h, approval: None}
`

const grantManifest = `apiVersion: taskgate.dev/v1alpha1
kind: TaskGrant
metadata: {name: ` + taskName + `}
spec:
  agent: ` + alphaID + `
  task: ` + taskName + `
  reason: measuring
  policy: ` + policyName + `
  ttl: 12h
  rules: ` + rules + `
`

const alphaID = "spiffe://" + testbed.TrustDomain + "/ns/" + testbed.AgentNamespace + "/sa/" + testbed.Alpha

// grant gives agent alpha its task, and returns the headers with which the
// broker impersonates it.
func (w *world) grant(ctx context.Context) (http.Header, error) {
	if _, err := w.run(ctx, policyManifest, "kubectl", "apply", "-f", "-"); err != nil {
		return nil, err
	}
	rights, err := w.run(ctx, policyManifest, "taskgate", "policy", "rbac", "-f", "-")
	if err != nil {
		return nil, err
	}
	_, rightsErr := w.run(ctx, rights, "kubectl", "apply", "-f", "-")
	_, grantErr := w.run(ctx, grantManifest, "kubectl", "apply", "-f", "-")
	if err := errors.Join(rightsErr, grantErr); err != nil {
		return nil, err
	}
	if _, err := w.run(ctx, "", "kubectl", "wait", "--for=condition=Active", "--timeout=60s", "taskgrant/"+taskName); err != nil {
		return nil, err
	}
	uid, err := w.run(ctx, "", "kubectl", "get", "taskgrant", taskName, "-o", "jsonpath={.metadata.uid}")
	if err != nil {
		return nil, err
	}
	return http.Header{
		"Impersonate-User":                     {"taskgate:agent"},
		"Impersonate-Group":                    {"taskgate:agents", "taskgate:policy:" + policyName},
		"Impersonate-Extra-Agent.taskgate.dev": {alphaID},
		"Impersonate-Extra-Task.taskgate.dev":  {taskName},
		"Impersonate-Extra-Grant.taskgate.dev": {uid},
	}, nil
}
