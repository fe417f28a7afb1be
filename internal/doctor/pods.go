package doctor

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// What manifests/injection goes by.
const (
	agentLabel     = "taskgate.dev/agent"  // of pods, "true"
	agentsLabel    = "taskgate.dev/agents" // of namespaces, "true"
	sidecarName    = "taskgate"
	settingsObject = "taskgate-injection"
)

// namespaces are those of agents.
func (c *Config) namespaces(ctx context.Context) ([]string, error) {
	if c.Kubernetes == nil {
		return nil, errNoCluster
	}
	list, err := c.Kubernetes.CoreV1().Namespaces().List(ctx, metav1.ListOptions{LabelSelector: agentsLabel + "=true"})
	if err != nil {
		return nil, fmt.Errorf("listing the namespaces of agents: %w", err)
	}
	var names []string
	for i := range list.Items {
		names = append(names, list.Items[i].Name)
	}
	return names, nil
}

// agentPods are the pods that are an agent's, or stand where only agents' may.
func (c *Config) agentPods(ctx context.Context) (pods []corev1.Pod, namespaces []string, err error) {
	if namespaces, err = c.namespaces(ctx); err != nil {
		return nil, nil, err
	}
	labelled, err := c.Kubernetes.CoreV1().Pods(metav1.NamespaceAll).List(ctx, metav1.ListOptions{LabelSelector: agentLabel + "=true"})
	if err != nil {
		return nil, nil, fmt.Errorf("listing the pods of agents: %w", err)
	}
	pods = slices.DeleteFunc(labelled.Items, func(p corev1.Pod) bool { return slices.Contains(namespaces, p.Namespace) })
	for _, namespace := range namespaces {
		list, err := c.Kubernetes.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			return nil, nil, fmt.Errorf("listing the pods of the namespace %s: %w", namespace, err)
		}
		pods = append(pods, list.Items...)
	}
	over := func(p corev1.Pod) bool {
		return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
	}
	return slices.DeleteFunc(pods, over), namespaces, nil
}

func podObject(p *corev1.Pod) string { return "pod/" + p.Namespace + "/" + p.Name }

func deletePod(p *corev1.Pod) string { return "kubectl delete pod -n " + p.Namespace + " " + p.Name }

func (c *Config) pods(ctx context.Context) ([]Finding, error) {
	pods, namespaces, err := c.agentPods(ctx)
	if err != nil {
		return nil, err
	}
	images, err := c.sidecarImages(ctx)
	var findings []Finding
	for i := range pods {
		pod := &pods[i]
		if !slices.Contains(namespaces, pod.Namespace) {
			findings = append(findings, Finding{Error, podObject(pod), "is labelled as an agent's, in a namespace that is not labelled " + agentsLabel + "=true",
				"no policy has put a sidecar into it or judged it", "kubectl label namespace " + pod.Namespace + " " + agentsLabel + "=true && " + deletePod(pod)})
			continue
		}
		findings = append(findings, judgePod(pod)...)
		findings = append(findings, judgeSidecar(pod, images)...)
	}
	if err != nil && len(pods) == 0 {
		err = nil // there is nobody whose sidecar could be old
	}
	return findings, err
}

// accepted are the images a sidecar may have; the zero value accepts none.
type accepted struct {
	known   bool
	current string
	all     []string
}

// sidecarImages reads which images are accepted. An error leaves them unknown.
func (c *Config) sidecarImages(ctx context.Context) (accepted, error) {
	settings, err := c.Kubernetes.CoreV1().ConfigMaps(c.SystemNamespace).Get(ctx, settingsObject, metav1.GetOptions{})
	if err != nil {
		return accepted{}, fmt.Errorf("reading which images sidecars may have: %w", err)
	}
	return accepted{known: true, current: settings.Data["image"], all: strings.Fields(settings.Data["images"])}, nil
}

func judgePod(pod *corev1.Pod) []Finding {
	var findings []Finding
	wrong := func(is bool, what, why string) {
		if is {
			findings = append(findings, Finding{Error, podObject(pod), what, why, deletePod(pod)})
		}
	}
	wrong(pod.Labels[agentLabel] != "true", "stands in a namespace of agents without the label "+agentLabel+"=true", "it has no sidecar, and may have a credential that agents must not have")
	wrong(pod.Spec.HostNetwork || pod.Spec.HostPID || pod.Spec.HostIPC, "shares a namespace of its node", "what runs in it can reach the sidecars and sockets of others")
	wrong(pod.Spec.ShareProcessNamespace != nil && *pod.Spec.ShareProcessNamespace, "its containers see each other's processes", "the agent can read the sidecar's memory")
	wrong(len(pod.Spec.EphemeralContainers) > 0, "a debug container has joined it", "it shares the agent's endpoint")
	for _, volume := range pod.Spec.Volumes {
		if volume.Projected == nil {
			continue
		}
		for _, source := range volume.Projected.Sources {
			wrong(source.ServiceAccountToken != nil, fmt.Sprintf("has a token of its service account (volume %s)", volume.Name), "it can go to the API server past the broker")
		}
	}
	return findings
}

func judgeSidecar(pod *corev1.Pod, images accepted) []Finding {
	if pod.Labels[agentLabel] != "true" {
		return nil // told already
	}
	name := podObject(pod)
	position := slices.IndexFunc(pod.Spec.InitContainers, func(c corev1.Container) bool { return c.Name == sidecarName })
	if position < 0 || pod.Spec.InitContainers[position].RestartPolicy == nil {
		return []Finding{{Error, name, "has no sidecar", "it was made before the policies were there, or past them; it has no way to the broker", deletePod(pod)}}
	}
	image := pod.Spec.InitContainers[position].Image
	var findings []Finding
	switch {
	case !images.known:
	case !slices.Contains(images.all, image):
		findings = append(findings, Finding{Error, name, "its sidecar has the image " + image + ", which is not accepted", "nobody says that this is a sidecar of ours", deletePod(pod)})
	case image != images.current:
		findings = append(findings, Finding{Warning, name, "its sidecar has the old image " + image, "it goes on working until that image is taken out of the list and of SPIRE's entries", deletePod(pod)})
	}
	running := slices.ContainsFunc(pod.Status.InitContainerStatuses, func(s corev1.ContainerStatus) bool {
		return s.Name == sidecarName && s.Started != nil && *s.Started
	})
	if !running && pod.DeletionTimestamp == nil {
		findings = append(findings, Finding{Error, name, "its sidecar has not started: it waits for an SVID", "the agent cannot work", "kubectl logs -n " + pod.Namespace + " " + pod.Name + " -c " + sidecarName + "; taskgate spire plan -f agents.yaml"})
	}
	return findings
}

// network wants a NetworkPolicy about what leaves each agent's pod. Whether the
// cluster's network enforces it cannot be seen from here.
func (c *Config) network(ctx context.Context) ([]Finding, error) {
	pods, namespaces, err := c.agentPods(ctx)
	if err != nil {
		return nil, err
	}
	var findings []Finding
	for _, namespace := range namespaces {
		policies, err := c.Kubernetes.NetworkingV1().NetworkPolicies(namespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			return findings, fmt.Errorf("listing the NetworkPolicies of the namespace %s: %w", namespace, err)
		}
		for i := range pods {
			pod := &pods[i]
			if pod.Namespace == namespace && !slices.ContainsFunc(policies.Items, func(p networkingv1.NetworkPolicy) bool { return confines(&p, pod) }) {
				findings = append(findings, Finding{Warning, podObject(pod), "no NetworkPolicy says where it may connect to",
					"it can reach everything the network lets it, the API server too, though without a credential", "kubectl apply -n " + namespace + " -k manifests/networkpolicy"})
			}
		}
	}
	return findings, nil
}

// confines reports whether a policy is about what leaves the pod. A selector that
// cannot be read selects nothing.
func confines(policy *networkingv1.NetworkPolicy, pod *corev1.Pod) bool {
	if !slices.Contains(policy.Spec.PolicyTypes, networkingv1.PolicyTypeEgress) {
		return false
	}
	selector, err := metav1.LabelSelectorAsSelector(&policy.Spec.PodSelector)
	return err == nil && selector.Matches(labels.Set(pod.Labels))
}

// tokens lists Secrets that are tokens of service accounts, without reading them.
func (c *Config) tokens(ctx context.Context) ([]Finding, error) {
	namespaces, err := c.namespaces(ctx)
	if err != nil {
		return nil, err
	}
	var findings []Finding
	for _, namespace := range namespaces {
		list, err := c.Metadata.Resource(schema.GroupVersionResource{Version: "v1", Resource: "secrets"}).Namespace(namespace).
			List(ctx, metav1.ListOptions{FieldSelector: "type=" + string(corev1.SecretTypeServiceAccountToken)})
		if err != nil {
			return findings, fmt.Errorf("listing the names of Secrets in the namespace %s (needs list on secrets; or --skip tokens): %w", namespace, err)
		}
		for i := range list.Items {
			findings = append(findings, Finding{Error, "secret/" + namespace + "/" + list.Items[i].Name, "is a token of a service account",
				"a pod of an agent can mount it and go to the API server past the broker", "kubectl delete secret -n " + namespace + " " + list.Items[i].Name})
		}
	}
	return findings, nil
}
