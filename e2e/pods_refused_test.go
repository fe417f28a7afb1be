package e2e_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

// forged is an injected pod after somebody has changed it.
type forged struct {
	name   string
	change func(*corev1.Pod)
	want   string // in the refusal
}

func sidecarOf(p *corev1.Pod) *corev1.Container { return &p.Spec.InitContainers[0] }

func addVolume(source corev1.VolumeSource) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: "extra", VolumeSource: source})
	}
}

func mountInAgent(mount corev1.VolumeMount) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.Containers[0].VolumeMounts = append(p.Spec.Containers[0].VolumeMounts, mount)
	}
}

func secure(context corev1.SecurityContext) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Spec.Containers[0].SecurityContext = &context }
}

const (
	notStarted   = "the sidecar has to be started as"
	notFirst     = "the first init container has to be the sidecar"
	notProbed    = "the sidecar has to start before all others"
	notMounted   = "the sidecar has to mount its three volumes"
	onlySidecar  = "only the sidecar mounts"
	ofNode       = "mounts nothing of its node"
	noToken      = "holds no token"
	sharing      = "shares neither a namespace of its node nor processes"
	privileged   = "are not privileged, and add no capability"
	wrongContext = "the security context of the sidecar"
	wrongImage   = "the image of the sidecar is not one of those"
)

// forgeries are T254, T255 and T257: a pod that says it is injected, or was and is
// not any more.
func forgeries() []forged {
	yes := true
	return []forged{
		{"no label", func(p *corev1.Pod) { p.Labels = nil }, "only pods with the label taskgate.dev/agent=true run here"},
		{"label is not true", func(p *corev1.Pod) { p.Labels["taskgate.dev/agent"] = "yes" }, "only pods with the label taskgate.dev/agent=true run here"},
		{"no sidecar but a container of its name", func(p *corev1.Pod) { p.Spec.InitContainers = nil; p.Spec.Containers[0].Name = "taskgate" }, notFirst},
		{"second in the list", func(p *corev1.Pod) {
			p.Spec.InitContainers = append([]corev1.Container{{Name: "early", Image: "x"}}, p.Spec.InitContainers...)
		}, notFirst},
		{"another image", func(p *corev1.Pod) { sidecarOf(p).Image = "evil" }, wrongImage},
		{"another digest", func(p *corev1.Pod) { sidecarOf(p).Image = strings.Replace(newSidecar, "1", "3", 1) }, wrongImage},
		{"empty line as image", func(p *corev1.Pod) { sidecarOf(p).Image = "" }, ""},
		{"command", func(p *corev1.Pod) { sidecarOf(p).Command = []string{"/bin/sh"} }, notStarted},
		{"broker", func(p *corev1.Pod) { sidecarOf(p).Args[0] = "--broker=evil:8443" }, notStarted},
		{"one more argument", func(p *corev1.Pod) { sidecarOf(p).Args = append(sidecarOf(p).Args, "--listen=[::1]:1") }, notStarted},
		{"the annotation changed afterwards", func(p *corev1.Pod) { p.Annotations["taskgate.dev/kubernetes-service"] = "true" }, notStarted},
		{"variable", func(p *corev1.Pod) {
			sidecarOf(p).Env = append(sidecarOf(p).Env, corev1.EnvVar{Name: "TASKGATE_GRANT", Value: "x"})
		}, notStarted},
		{"variables from a map", func(p *corev1.Pod) {
			sidecarOf(p).EnvFrom = []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "x"}}}}
		}, notStarted},
		{"hook", func(p *corev1.Pod) {
			sidecarOf(p).Lifecycle = &corev1.Lifecycle{PostStart: &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"/sidecar"}}}}
		}, notStarted},
		{"port", func(p *corev1.Pod) { sidecarOf(p).Ports = []corev1.ContainerPort{{ContainerPort: 6443}} }, notStarted},
		{"terminal", func(p *corev1.Pod) { sidecarOf(p).Stdin = true }, notStarted},
		{"no probe", func(p *corev1.Pod) { sidecarOf(p).StartupProbe = nil }, ""},
		{"another probe", func(p *corev1.Pod) { sidecarOf(p).StartupProbe.Exec.Command = []string{"/sidecar", "--version"} }, notProbed},
		{"not a sidecar", func(p *corev1.Pod) {
			c := sidecarOf(p)
			c.RestartPolicy, c.StartupProbe, c.ReadinessProbe, c.LivenessProbe = nil, nil, nil, nil
		}, ""},
		{"as root", func(p *corev1.Pod) { root := int64(0); sidecarOf(p).SecurityContext.RunAsUser = &root }, wrongContext},
		{"no seccomp", func(p *corev1.Pod) { sidecarOf(p).SecurityContext.SeccompProfile = nil }, wrongContext},
		{"key on disk", func(p *corev1.Pod) { p.Spec.Volumes[0].EmptyDir.Medium = "" }, notMounted},
		{"another Workload API", func(p *corev1.Pod) { p.Spec.Volumes[2].CSI.Driver = "csi.example.org" }, notMounted},
		{"one more mount", func(p *corev1.Pod) {
			p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: "extra", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}})
			sidecarOf(p).VolumeMounts = append(sidecarOf(p).VolumeMounts, corev1.VolumeMount{Name: "extra", MountPath: "/etc/ssl"})
		}, notMounted},
		{"agent mounts the key", mountInAgent(corev1.VolumeMount{Name: "taskgate-state", MountPath: "/k", ReadOnly: true}), onlySidecar},
		{"agent mounts the socket", mountInAgent(corev1.VolumeMount{Name: "taskgate-workload-api", MountPath: "/s", ReadOnly: true}), onlySidecar},
		{"agent writes", mountInAgent(corev1.VolumeMount{Name: "taskgate-agent", MountPath: "/w"}), onlySidecar},
		{"a later container mounts the socket", func(p *corev1.Pod) {
			p.Spec.InitContainers = append(p.Spec.InitContainers, corev1.Container{Name: "late", Image: "x", VolumeMounts: []corev1.VolumeMount{{Name: "taskgate-workload-api", MountPath: "/s"}}})
		}, onlySidecar},
		{"second Workload API", addVolume(corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{Driver: "csi.spiffe.io", ReadOnly: &yes}}), ofNode},
		{"host path", addVolume(corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/run/spire"}}), ofNode},
		{"token", addVolume(corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token"}}}}}), noToken},
		{"token for somebody else", addVolume(corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
			{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: corev1.LocalObjectReference{Name: "x"}}},
			{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token", Audience: "vault"}},
		}}}), noToken},
		{"automount", func(p *corev1.Pod) { p.Spec.AutomountServiceAccountToken = nil }, notMounted}, // the API server mounts a token everywhere
		{"hostNetwork", func(p *corev1.Pod) { p.Spec.HostNetwork = true }, sharing},
		{"hostPID", func(p *corev1.Pod) { p.Spec.HostPID = true }, sharing},
		{"hostIPC", func(p *corev1.Pod) { p.Spec.HostIPC = true }, sharing},
		{"shareProcessNamespace", func(p *corev1.Pod) { p.Spec.ShareProcessNamespace = &yes }, sharing},
		{"privileged", secure(corev1.SecurityContext{Privileged: &yes}), privileged},
		{"ptrace", secure(corev1.SecurityContext{Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"SYS_PTRACE"}}}), privileged},
		{"all capabilities", secure(corev1.SecurityContext{Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"ALL"}}}), privileged},
	}
}

// refusedPods sends each forgery, first by itself as a control.
func (s *stack) refusedPods(t *testing.T, tenant kubernetes.Interface, namespace string) {
	injected, err := s.try(t, tenant, namespace, agentPod("forged"))
	if err != nil {
		t.Fatal(err)
	}
	injected.ObjectMeta = metav1.ObjectMeta{Name: "forged", Labels: injected.Labels, Annotations: injected.Annotations}
	if _, err := s.try(t, tenant, namespace, injected); err != nil {
		t.Fatalf("an injected pod, created again: %v", err)
	}
	for _, row := range forgeries() {
		pod := injected.DeepCopy()
		row.change(pod)
		_, err := s.try(t, tenant, namespace, pod)
		if row.want == "" {
			if err == nil { // the API server itself may have refused it
				t.Errorf("%s: was accepted", row.name)
			}
			continue
		}
		if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: %v, want a refusal that says %q", row.name, err, row.want)
		}
	}
	// Without the label nothing is put in, so the sidecar is missing as well.
	pod := agentPod("unlabelled")
	pod.Labels = nil
	if _, err := s.try(t, tenant, namespace, pod); !apierrors.IsForbidden(err) { // T253
		t.Errorf("an unlabelled pod: %v", err)
	}
	if _, err := s.try(t, s.kube, "default", agentPod("elsewhere")); err == nil || !strings.Contains(err.Error(), "only in a namespace with the label") {
		t.Errorf("a labelled pod in another namespace: %v", err)
	}
}

// keptPods: nobody joins a running pod, or takes the labels away (T253, T258, T262).
func (s *stack) keptPods(t *testing.T, tenant kubernetes.Interface, namespace string) {
	pods := tenant.CoreV1().Pods(namespace)
	created, err := pods.Create(t.Context(), agentPod("kept"), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.admin(t, "delete", "pod/kept", "--namespace="+namespace, "--force", "--grace-period=0")
	patch := func(what string, sub ...string) error {
		_, err := pods.Patch(t.Context(), created.Name, types.StrategicMergePatchType, []byte(what), metav1.PatchOptions{}, sub...)
		return err
	}
	if err := patch(`{"metadata":{"labels":{"more":"x"},"finalizers":["example.org/x"]}}`); err != nil {
		t.Errorf("other labels are free: %v", err)
	}
	if err := patch(`{"metadata":{"finalizers":null}}`); err != nil {
		t.Error(err)
	}
	for name, change := range map[string][]string{
		"label removed":   {`{"metadata":{"labels":{"taskgate.dev/agent":null}}}`},
		"label changed":   {`{"metadata":{"labels":{"taskgate.dev/agent":"false"}}}`},
		"sidecar's image": {`{"spec":{"initContainers":[{"name":"taskgate","image":"evil"}]}}`},
		"debug container": {`{"spec":{"ephemeralContainers":[{"name":"d","image":"x"}]}}`, "ephemeralcontainers"},
	} {
		if err := patch(change[0], change[1:]...); !apierrors.IsForbidden(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	_, err = tenant.CoreV1().Secrets(namespace).Create(t.Context(), &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: "token", Annotations: map[string]string{"kubernetes.io/service-account.name": "default"}},
		Type:       corev1.SecretTypeServiceAccountToken,
	}, metav1.CreateOptions{})
	if !apierrors.IsForbidden(err) {
		t.Errorf("a Secret with a token: %v", err)
	}
	for _, label := range []string{"null", `"false"`} {
		change := []byte(`{"metadata":{"labels":{"taskgate.dev/agents":` + label + `}}}`)
		_, err = tenant.CoreV1().Namespaces().Patch(t.Context(), namespace, types.MergePatchType, change, metav1.PatchOptions{})
		if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "agentnamespaces.taskgate.dev") {
			t.Errorf("the namespace's label made %s: %v", label, err)
		}
	}
	if _, err = tenant.CoreV1().Namespaces().Patch(t.Context(), namespace, types.MergePatchType, []byte(`{"metadata":{"labels":{"team":"x"}}}`), metav1.PatchOptions{}); err != nil {
		t.Errorf("other labels of a namespace are free: %v", err)
	}
	for _, way := range []string{"exec", "attach"} {
		err := tenant.CoreV1().RESTClient().Post().Namespace(namespace).Resource("pods").Name("kept").SubResource(way).
			Param("container", "taskgate").Param("command", "/sidecar").Param("stdout", "true").Do(t.Context()).Error()
		if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "nobody opens the sidecar") {
			t.Errorf("%s in the sidecar: %v", way, err)
		}
	}
}

// hostilePods are large (T266): each is answered soon, in one way or the other.
func (s *stack) hostilePods(t *testing.T, tenant kubernetes.Interface, namespace string) {
	large := agentPod("large")
	large.Annotations = map[string]string{"x": strings.Repeat("x", 3<<20)}
	annotations := agentPod("annotations")
	annotations.Annotations = map[string]string{"taskgate.dev/kubernetes-service": "http://127.0.0.1:1/x"}
	for i := range 10_000 {
		annotations.Annotations[fmt.Sprintf("example.org/%d", i)] = "http://a"
	}
	many := agentPod("many")
	for i := range 1000 {
		many.Spec.Containers = append(many.Spec.Containers, corev1.Container{Name: fmt.Sprintf("c%d", i), Image: "x"})
	}
	for _, row := range []struct {
		pod      *corev1.Pod
		accepted bool
	}{{large, false}, {annotations, true}, {many, true}} {
		begin := time.Now()
		_, err := s.try(t, tenant, namespace, row.pod)
		if took := time.Since(begin); took > 10*time.Second {
			t.Errorf("%s took %s", row.pod.Name, took)
		} else {
			t.Logf("%s: %s %.200v", row.pod.Name, took.Round(time.Millisecond), err)
		}
		if (err == nil) != row.accepted {
			t.Errorf("%s: %.500v", row.pod.Name, err)
		}
	}
}

// rollout: a sidecar that is still in the list runs on and may be created; one that
// is not is refused, and pods that have it can still be labelled and deleted.
func (s *stack) rollout(t *testing.T, namespace string) {
	injected, err := s.try(t, s.kube, namespace, agentPod("old"))
	if err != nil {
		t.Fatal(err)
	}
	injected.ObjectMeta = metav1.ObjectMeta{Name: "old", Labels: injected.Labels, Annotations: injected.Annotations}
	sidecarOf(injected).Image = oldSidecar
	if _, err := s.kube.CoreV1().Pods(namespace).Create(t.Context(), injected, metav1.CreateOptions{}); err != nil {
		t.Fatalf("the old sidecar is in the list: %v", err)
	}
	settings := injectionSettings()
	settings["images"] = newSidecar
	s.install(t, settings)
	another := injected.DeepCopy()
	another.Name = "another"
	eventually(t, 20*time.Second, "the old sidecar is refused", func() error {
		if _, err := s.try(t, s.kube, namespace, another); !apierrors.IsForbidden(err) {
			return fmt.Errorf("it is not: %w", err)
		}
		return nil
	})
	s.admin(t, "label", "pod/old", "x=y", "--namespace="+namespace)
	s.admin(t, "delete", "pod/old", "--force", "--grace-period=0", "--namespace="+namespace)
}

// undonePods: what another admission policy does to an injected pod is seen (T255).
func (s *stack) undonePods(t *testing.T) {
	s.agentsNamespace(t, "case-undone")
	s.apply(t, undoing)
	t.Cleanup(func() {
		s.kubectlAfter(t, "delete", "mutatingadmissionpolicybinding/zz-undo", "mutatingadmissionpolicy/zz-undo")
	})
	eventually(t, 20*time.Second, "a pod that was undone is refused", func() error {
		if _, err := s.try(t, s.kube, "case-undone", agentPod("undone")); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), notFirst) {
			return fmt.Errorf("it is not: %w", err)
		}
		return nil
	})
}

const undoing = `
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicy
metadata: {name: zz-undo}
spec:
  failurePolicy: Fail
  reinvocationPolicy: IfNeeded # nothing says which of two policies is first
  matchConstraints:
    namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: case-undone}}
    resourceRules: [{apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [pods]}]
  mutations:
  - patchType: JSONPatch
    jsonPatch: {expression: "has(object.spec.initContainers) ? [JSONPatch{op: 'remove', path: '/spec/initContainers/0'}] : []"}
---
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicyBinding
metadata: {name: zz-undo}
spec: {policyName: zz-undo}
`

// withoutInjection: no sidecar means no pod, in namespaces of agents only (T251).
func (s *stack) withoutInjection(t *testing.T, namespace string) {
	for _, gone := range []struct{ name, want string }{
		{"mutatingadmissionpolicybinding/taskgate-sidecar", notFirst},
		{"--namespace=taskgate-system configmap/taskgate-injection", "taskgate-agent-pods"},
	} {
		s.admin(t, append([]string{"delete"}, strings.Fields(gone.name)...)...)
		eventually(t, 20*time.Second, "pods are refused without "+gone.name, func() error {
			if _, err := s.try(t, s.kube, namespace, agentPod("bare")); err == nil || !strings.Contains(err.Error(), gone.want) {
				return fmt.Errorf("they are not: %w", err)
			}
			return nil
		})
		other := agentPod("bare")
		other.Labels = nil
		if _, err := s.try(t, s.kube, "default", other); err != nil {
			t.Errorf("pods elsewhere: %v", err)
		}
	}
}
