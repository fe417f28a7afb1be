package e2e_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/taskgate/taskgate/e2e/internal/images"
	"github.com/taskgate/taskgate/e2e/testbed"
)

// podsRig is a testbed with a real node and SPIRE that tells containers apart.
type podsRig struct {
	*stack
	sidecar string // image, by digest
	tools   string // image with sh, kubectl and fetch-svid, by digest
	other   string // the same with one file more
}

const (
	podsSpace = "pods-agents"
	podsID    = "spiffe://" + testbed.TrustDomain + "/ns/" + podsSpace + "/sa/web"
)

func newPodsRig(t *testing.T) *podsRig {
	var port string
	s := startStack(t, testbed.Options{Node: testbed.RealNode, BrokerConfiguration: func(_ int, configuration map[string]any) {
		listen := configuration["listen"].(map[string]any)
		_, port, _ = net.SplitHostPort(listen["agents"].(string)) // the testbed's own
		listen["agents"] = ":" + port                             // so that pods reach it
	}})
	r := &podsRig{stack: s}
	r.makeImages(t)
	s.install(t, map[string]string{
		"image": r.sidecar, "images": r.sidecar, "broker": net.JoinHostPort(s.NodeAddress().String(), port), "brokerID": brokerID,
		"workloadAPI": s.WorkloadAPIFolder(), "socket": testbed.WorkloadAPISocket,
	})
	s.agentsNamespace(t, podsSpace)
	s.apply(t, "{apiVersion: v1, kind: ServiceAccount, metadata: {name: web, namespace: "+podsSpace+"}}")
	return r
}

// makeImages gives the node what make images builds, and one for the agents.
func (r *podsRig) makeImages(t *testing.T) {
	t.Helper()
	folder, programs := t.TempDir(), r.Environment().Programs
	fetch := filepath.Join(folder, "fetch-svid")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", fetch, "./cmd/fetch-svid")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building fetch-svid: %v\n%s", err, output)
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	tools := []images.File{
		{Path: "bin/busybox", Source: busybox}, {Path: "bin/sh", Link: "busybox"}, {Path: "bin/sleep", Link: "busybox"}, {Path: "bin/cat", Link: "busybox"},
		{Path: "bin/ls", Link: "busybox"}, {Path: "bin/kubectl", Source: filepath.Join(programs, "kubectl")}, {Path: "bin/fetch-svid", Source: fetch},
	}
	r.sidecar = r.load(t, "localhost/taskgate-sidecar", images.File{Path: "sidecar", Source: filepath.Join(programs, "sidecar")})
	r.tools = r.load(t, "localhost/agent", tools...)
	r.other = r.load(t, "localhost/other", append(tools, images.File{Path: "bin/true", Link: "busybox"})...)
}

// load answers the image by its digest.
func (r *podsRig) load(t *testing.T, name string, files ...images.File) string {
	t.Helper()
	image, err := images.Build(files...)
	if err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(t.TempDir(), "image.tar")
	digest, digestErr := image.Digest()
	if err := errors.Join(digestErr, images.Write(archive, name+":dev", image)); err != nil {
		t.Fatal(err)
	}
	byDigest := name + "@" + digest.String()
	if err := r.ImportImage(t.Context(), archive, name+":dev", byDigest); err != nil {
		t.Fatal(err)
	}
	return byDigest
}

// register gives a SPIFFE ID to containers of a name and an image.
func (r *podsRig) register(t *testing.T, id, namespace, account, container, image string) {
	t.Helper()
	_, err := r.SPIRE().CreateEntry(t.Context(), testbed.Entry{ID: spiffeid.RequireFromString(id), Container: []string{
		"ns:" + namespace, "sa:" + account, "container-name:" + container, "container-image:" + image,
	}})
	if err != nil {
		t.Fatal(err)
	}
}

// inside runs a command in a container of a pod, as the cluster's administrator.
func (r *podsRig) inside(t testing.TB, namespace, pod, container string, command ...string) result {
	t.Helper()
	return r.kubectl(t, r.Environment().AdminKubeconfig, append([]string{"exec", "--namespace=" + namespace, pod, "--container=" + container, "--"}, command...)...)
}

const podsRule = `{namespaces: [pods-shop], apiGroups: [""], resources: [configmaps], verbs: [get, list]}`

// TestPods: an author adds one label, and kubectl in the pod works under the
// identity of its service account, without a credential in the agent's container.
func TestPods(t *testing.T) {
	t.Parallel()
	r := newPodsRig(t)
	r.register(t, podsID, podsSpace, "web", "taskgate", r.sidecar)
	r.apply(t, "{apiVersion: v1, kind: Namespace, metadata: {name: pods-shop}}\n---\n{apiVersion: v1, kind: ConfigMap, metadata: {name: goods, namespace: pods-shop}}")
	web := &agent{stack: r.stack, name: "web", id: podsID}
	r.policy(t, "pods", web, "", podsRule)
	r.apply(t, grantManifest("pods", "pods", podsID, "1h", podsRule))
	pod := r.deploy(t)
	t.Run("first instruction", func(t *testing.T) { r.firstInstruction(t, pod) })
	t.Run("kubectl", func(t *testing.T) { r.podKubectl(t, pod) })
	t.Run("no credential", func(t *testing.T) { r.noCredential(t, pod) })
	t.Run("sidecar killed", func(t *testing.T) { r.killedSidecar(t, pod) })
	t.Run("identity", r.onlyTheSidecar)
	t.Run("broker in a pod", r.brokerInPod)
}

// deploy creates a Deployment like an author's and answers its pod when that is
// ready, in the time that issue 5 gives it.
func (r *podsRig) deploy(t *testing.T) *corev1.Pod {
	t.Helper()
	r.apply(t, fmt.Sprintf(`apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: %s}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web, taskgate.dev/agent: "true"}}
    spec:
      serviceAccountName: web
      terminationGracePeriodSeconds: 1
      containers:
      - name: agent
        image: %s
        command: [sh, -c, "kubectl get --raw /version; echo exit $?; exec sleep infinity"]
`, podsSpace, r.tools))
	var pod corev1.Pod
	eventually(t, 60*time.Second, "the pod is ready", func() error {
		pods, err := r.kube.CoreV1().Pods(podsSpace).List(t.Context(), metav1.ListOptions{LabelSelector: "app=web"})
		if err != nil || len(pods.Items) != 1 {
			return fmt.Errorf("%d pods: %w", len(pods.Items), err)
		}
		pod = pods.Items[0]
		if _, ready := readySince(&pod); !ready {
			return fmt.Errorf("%+v %+v", pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses)
		}
		return nil
	})
	since, _ := readySince(&pod)
	took := since.Sub(pod.CreationTimestamp.Time)
	t.Logf("the pod was ready %s after its creation", took)
	if took > 30*time.Second {
		t.Errorf("ready after %s, want 30s", took)
	}
	return &pod
}

// readySince also asks that every container is ready, the sidecar too.
func readySince(pod *corev1.Pod) (time.Time, bool) {
	for _, status := range append(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses...) {
		if !status.Ready {
			return time.Time{}, false
		}
	}
	for _, condition := range pod.Status.Conditions {
		if condition.Type == corev1.PodReady && condition.Status == corev1.ConditionTrue {
			return condition.LastTransitionTime.Time, true
		}
	}
	return time.Time{}, false
}

// firstInstruction: when the agent begins, the endpoint is there (T245).
func (r *podsRig) firstInstruction(t *testing.T, pod *corev1.Pod) {
	eventually(t, 20*time.Second, "the agent has made its first call", func() error {
		log := r.kubectl(t, r.Environment().AdminKubeconfig, "logs", "--namespace="+podsSpace, pod.Name) // of the agent, without --container
		if !strings.Contains(log.stdout, "exit 0") || !strings.Contains(log.stdout, "gitVersion") {
			return errors.New(log.String())
		}
		return nil
	})
}

// podKubectl: the agent is who its service account is, and may do what its grant says.
func (r *podsRig) podKubectl(t *testing.T, pod *corev1.Pod) {
	eventually(t, 20*time.Second, "the grant is served", func() error {
		got := r.inside(t, podsSpace, pod.Name, "agent", "kubectl", "get", "configmaps", "--namespace=pods-shop")
		if got.code != 0 || !strings.Contains(got.stdout, "goods") {
			return errors.New(got.String())
		}
		return nil
	})
	if got := r.inside(t, podsSpace, pod.Name, "agent", "kubectl", "auth", "whoami"); !strings.Contains(got.stdout, podsID) {
		t.Errorf("who it is: %s", got)
	}
	if got := r.inside(t, podsSpace, pod.Name, "agent", "kubectl", "get", "secrets", "--namespace=pods-shop"); got.code == 0 || !strings.Contains(got.stderr, "OutsideGrant") {
		t.Errorf("outside of its grant: %s", got)
	}
	// Without a kubeconfig kubectl reads the in-cluster files.
	if got := r.inside(t, podsSpace, pod.Name, "agent", "sh", "-c", "KUBECONFIG= kubectl get configmaps --namespace=pods-shop"); got.code != 0 || !strings.Contains(got.stdout, "goods") {
		t.Errorf("in-cluster: %s", got)
	}
}

// noCredential: nothing in the agent's container is worth anything elsewhere.
func (r *podsRig) noCredential(t *testing.T, pod *corev1.Pod) {
	token := r.inside(t, podsSpace, pod.Name, "agent", "cat", "/var/run/secrets/kubernetes.io/serviceaccount/token")
	if token.code != 0 || token.stdout == "" || strings.Contains(token.stdout, ".") {
		t.Error("the token is none, or one of the cluster")
	}
	for _, path := range []string{"/spiffe-workload-api", "/run/taskgate-sidecar"} {
		if got := r.inside(t, podsSpace, pod.Name, "agent", "ls", path); got.code == 0 {
			t.Errorf("the agent sees %s: %s", path, got)
		}
	}
	if got := r.inside(t, podsSpace, pod.Name, "agent", "sh", "-c", "echo x > /var/run/taskgate/kubeconfig"); got.code == 0 || !strings.Contains(got.stderr, "Read-only") {
		t.Errorf("the agent writes its kubeconfig: %s", got)
	}
	if got := r.inside(t, podsSpace, pod.Name, "taskgate", "/sidecar", "--version"); got.code == 0 || !strings.Contains(got.stderr, "nobody opens the sidecar") {
		t.Errorf("an administrator in the sidecar: %s", got)
	}
}

// killedSidecar: without it the agent has nothing, and afterwards all it had (T239).
func (r *podsRig) killedSidecar(t *testing.T, pod *corev1.Pod) {
	watching := make(chan result, 1)
	go func() {
		// Calls until one was refused, then until one works again.
		watching <- r.inside(t, podsSpace, pod.Name, "agent", "sh", "-c", `echo begins; refused=
			for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 36 37 38 39 40; do
			if answer=$(kubectl get configmaps --namespace=pods-shop --request-timeout=5s 2>&1); then [ "$refused" ] && echo works && exit 0
			else case "$answer" in *"connection refused"*) refused=1 ;; *NoIdentity*|*EOF*|*"connection reset"*) ;; *) echo "$answer" ;; esac; fi; done`)
	}()
	if err := r.KillContainer(t.Context(), pod.Status.InitContainerStatuses[0].ContainerID); err != nil {
		t.Error(err)
	}
	if got := <-watching; got.stdout != "begins\nworks\n" {
		t.Errorf("around a killed sidecar: %s", got)
	}
}

// onlyTheSidecar: with the socket in hand, the container's name, its image and the
// service account decide who gets an SVID (T021, T022, T023).
func (r *podsRig) onlyTheSidecar(t *testing.T) {
	const space, id = "pods-open", "spiffe://" + testbed.TrustDomain + "/ns/pods-open/sa/web"
	r.apply(t, "{apiVersion: v1, kind: Namespace, metadata: {name: "+space+"}}\n---\n{apiVersion: v1, kind: ServiceAccount, metadata: {name: web, namespace: "+space+"}}"+
		"\n---\n{apiVersion: v1, kind: ServiceAccount, metadata: {name: other, namespace: "+space+"}}")
	r.register(t, id, space, "web", "taskgate", r.tools)
	for _, row := range []struct{ pod, account, image string }{{"right", "web", r.tools}, {"account", "other", r.tools}, {"digest", "web", r.other}} {
		container := `{name: %s, image: "` + row.image + `", command: [sleep, infinity], volumeMounts: [{name: socket, mountPath: /socket, readOnly: true}]}`
		r.apply(t, fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %s, namespace: %s}\nspec:\n  serviceAccountName: %s\n  terminationGracePeriodSeconds: 1\n"+
			"  containers: ["+container+", "+container+"]\n  volumes: [{name: socket, hostPath: {path: %s, type: Directory}}]\n",
			row.pod, space, row.account, "taskgate", "agent", r.WorkloadAPIFolder()))
		r.admin(t, "wait", "--namespace="+space, "--for=condition=Ready", "pod/"+row.pod, "--timeout=60s")
	}
	fetch := func(pod, container string) result {
		return r.inside(t, space, pod, container, "fetch-svid", "unix:///socket/"+testbed.WorkloadAPISocket)
	}
	eventually(t, 60*time.Second, "SPIRE gives the sidecar its SVID", func() error {
		if got := fetch("right", "taskgate"); got.code != 0 || strings.TrimSpace(got.stdout) != id {
			return errors.New(got.String())
		}
		return nil
	})
	for _, row := range [][2]string{{"right", "agent"}, {"account", "taskgate"}, {"account", "agent"}, {"digest", "taskgate"}, {"digest", "agent"}} {
		if got := fetch(row[0], row[1]); got.code == 0 || !strings.Contains(got.stderr, "no identity issued") {
			t.Errorf("the container %s of the pod %s: %s", row[1], row[0], got)
		}
	}
}
