package e2e_test

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/taskgate/taskgate/e2e/internal/images"
	"github.com/taskgate/taskgate/e2e/testbed"
)

// brokerInPod runs the StatefulSet of overlays/dev with the image that make images
// builds, and sends the agent's pod through it.
func (r *podsRig) brokerInPod(t *testing.T) {
	image := r.load(t, "localhost/taskgate-broker", images.File{Path: "broker", Source: r.Environment().Programs + "/broker"})
	r.register(t, brokerID, "taskgate-system", "taskgate-broker", "broker", image)
	set := r.brokerSet(t, image)
	if _, err := r.kube.AppsV1().StatefulSets(set.Namespace).Create(t.Context(), set, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	var pod *corev1.Pod
	eventually(t, 90*time.Second, "the broker's pod is ready", func() error {
		var err error
		if pod, err = r.kube.CoreV1().Pods(set.Namespace).Get(t.Context(), set.Name+"-0", metav1.GetOptions{}); err != nil {
			return err
		}
		if _, ready := readySince(pod); !ready {
			log := r.kubectl(t, r.Environment().AdminKubeconfig, "logs", "--namespace="+set.Namespace, "--tail=5", pod.Name)
			return fmt.Errorf("%+v: %s", pod.Status.ContainerStatuses, log)
		}
		return nil
	})
	address := net.JoinHostPort(pod.Status.PodIP, "8443")
	r.admin(t, "patch", "configmap/taskgate-injection", "--namespace=taskgate-system", "--type=merge", "--patch", fmt.Sprintf("data: {broker: %q}", address))
	r.admin(t, "delete", "pod", "--namespace="+podsSpace, "--selector=app=web")
	eventually(t, 60*time.Second, "the agent works through the broker's pod", func() error {
		pods, err := r.kube.CoreV1().Pods(podsSpace).List(t.Context(), metav1.ListOptions{LabelSelector: "app=web"})
		if err != nil || len(pods.Items) != 1 {
			return fmt.Errorf("%d pods: %w", len(pods.Items), err)
		}
		web := pods.Items[0]
		if !strings.Contains(web.Spec.InitContainers[0].Args[0], address) {
			r.admin(t, "delete", "pod", "--namespace="+podsSpace, web.Name) // made before the change was seen
			return errors.New("the pod has the old broker")
		}
		got := r.inside(t, podsSpace, web.Name, "agent", "kubectl", "get", "configmaps", "--namespace=pods-shop")
		if got.code != 0 || !strings.Contains(got.stdout, "goods") {
			return errors.New(got.String())
		}
		return nil
	})
}

// brokerSet is the StatefulSet as it is rendered, with what only a testbed needs: it
// has no DNS, and its API server and store are programs of the machine.
func (r *podsRig) brokerSet(t *testing.T, image string) *appsv1.StatefulSet {
	t.Helper()
	var set appsv1.StatefulSet
	for _, object := range render(t, "overlays/dev").Resources() {
		if object.GetKind() == "StatefulSet" {
			if err := yaml.UnmarshalStrict(yamlOf(t, object), &set); err != nil {
				t.Fatal(err)
			}
		}
	}
	server := r.reachable(t, strings.TrimPrefix(r.Admin().Host, "https://"))
	store := r.reachable(t, strings.TrimPrefix(r.Store().Endpoint, "http://"))
	r.apply(t, fmt.Sprintf(`apiVersion: v1
kind: ConfigMap
metadata: {name: broker-in-pod, namespace: taskgate-system}
data:
  config.yaml: |
    apiVersion: config.taskgate.dev/v1alpha1
    kind: BrokerConfiguration
    cluster: testbed
    listen: {agents: ":8443", health: ":9090"}
    identity: {workloadAPI: "unix:///spiffe-workload-api/%s"}
    guarded: {}
    recorder:
      spool: /var/lib/taskgate/spool
      spoolLimit: 1073741824
      retention: 1h
      store: {endpoint: "http://%s", bucket: %s, region: %s, unsafeHTTP: true}
`, testbed.WorkloadAPISocket, store, r.Store().Bucket, r.Store().Region))
	r.apply(t, fmt.Sprintf("apiVersion: v1\nkind: Secret\nmetadata: {name: taskgate-broker-store, namespace: taskgate-system}\nstringData: {AWS_ACCESS_KEY_ID: %q, AWS_SECRET_ACCESS_KEY: %q}\n",
		r.Store().Broker.Key, r.Store().Broker.Secret))
	pod := &set.Spec.Template.Spec
	pod.HostAliases = []corev1.HostAlias{{IP: r.NodeAddress().String(), Hostnames: []string{"kubernetes.default.svc"}}}
	pod.Containers[0].Image = image
	_, port, _ := net.SplitHostPort(server) // ours
	pod.Containers[0].Env = append(pod.Containers[0].Env, corev1.EnvVar{Name: "KUBERNETES_SERVICE_HOST", Value: "kubernetes.default.svc"},
		corev1.EnvVar{Name: "KUBERNETES_SERVICE_PORT", Value: port})
	for i := range pod.Volumes {
		switch volume := &pod.Volumes[i]; {
		case volume.HostPath != nil:
			volume.HostPath.Path = r.WorkloadAPIFolder()
		case volume.ConfigMap != nil:
			volume.ConfigMap.Name = "broker-in-pod"
		}
	}
	return &set
}

// reachable lets pods reach a program that listens on loopback, at the address it
// answers, until the test ends.
func (r *podsRig) reachable(t *testing.T, target string) string {
	t.Helper()
	wire := newFaultWireAt(t, r.NodeAddress().String())
	wire.target.Store(&target)
	return wire.address()
}
