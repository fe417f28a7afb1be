package doctor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// maxReadyz is as much of an answer as is read.
const maxReadyz = 64 << 10

// broker asks each broker whether it is ready: at the URLs given, else each pod
// through the API server.
func (c *Config) broker(ctx context.Context) ([]Finding, error) {
	var findings []Finding
	var problems []error
	for _, url := range c.BrokerURLs {
		code, answer, err := c.fetch(ctx, strings.TrimSuffix(url, "/")+"/readyz?verbose")
		if err != nil {
			findings = append(findings, unreachable(url, err))
			continue
		}
		found, err := readyz(url, code, answer)
		findings, problems = append(findings, found...), append(problems, err)
	}
	if len(c.BrokerURLs) > 0 {
		return findings, errors.Join(problems...)
	}
	if c.Kubernetes == nil {
		return nil, errNoCluster
	}
	pods, err := c.Kubernetes.CoreV1().Pods(c.SystemNamespace).List(ctx, metav1.ListOptions{LabelSelector: c.BrokerSelector})
	if err != nil {
		return nil, fmt.Errorf("listing the brokers: %w", err)
	}
	if len(pods.Items) == 0 {
		return []Finding{{Error, "namespace/" + c.SystemNamespace, "no pod has the labels of a broker (" + c.BrokerSelector + ")", "without a broker agents can do nothing",
			"kubectl apply -k manifests/overlays/prod; or say where brokers are with --broker-url"}}, nil
	}
	for i := range pods.Items {
		found, err := c.brokerPod(ctx, &pods.Items[i])
		findings, problems = append(findings, found...), append(problems, err)
	}
	return findings, errors.Join(problems...)
}

// brokerPod takes the kubelet's word for a pod that is ready, and else asks the
// broker why not.
func (c *Config) brokerPod(ctx context.Context, pod *corev1.Pod) ([]Finding, error) {
	name := "pod/" + pod.Namespace + "/" + pod.Name
	if pod.Status.Phase != corev1.PodRunning {
		return []Finding{{Error, name, "is " + string(pod.Status.Phase), "this broker serves nobody", "kubectl describe pod -n " + pod.Namespace + " " + pod.Name}}, nil
	}
	answer, err := c.Kubernetes.CoreV1().Pods(pod.Namespace).ProxyGet("http", pod.Name, "9090", "readyz", map[string]string{"verbose": ""}).DoRaw(ctx)
	if err == nil {
		return readyz(name, http.StatusOK, string(answer))
	}
	for _, condition := range pod.Status.Conditions {
		if condition.Type == corev1.PodReady && condition.Status != corev1.ConditionTrue {
			return []Finding{notReady(name, first(string(answer), condition.Message), pod)}, nil
		}
	}
	return nil, fmt.Errorf("asking %s through the API server (needs get on pods/proxy; or give --broker-url): %w", name, err)
}

func notReady(name, text string, pod *corev1.Pod) Finding {
	fix := "see the broker's log"
	if pod != nil {
		fix = "kubectl logs -n " + pod.Namespace + " " + pod.Name
	}
	return Finding{Error, name, "is not ready: " + text, "it refuses every call until that is mended", fix}
}

func unreachable(url string, err error) Finding {
	return Finding{Error, url, "does not answer: " + err.Error(), "without a broker agents can do nothing", "see whether the broker runs and whether the URL is that of its health port (9090)"}
}

// readyz reads the broker's answer: [-] is what keeps it from being ready, [!] a
// warning. An answer that is none is an error.
func readyz(name string, code int, answer string) ([]Finding, error) {
	var findings []Finding
	for line := range strings.Lines(answer) {
		line = strings.TrimSpace(line)
		if text, found := strings.CutPrefix(line, "[-]"); found {
			findings = append(findings, notReady(name, text, nil))
		}
		if text, found := strings.CutPrefix(line, "[!]"); found {
			findings = append(findings, Finding{Warning, name, text, "the broker works, and warns", "see the broker's log"})
		}
	}
	switch {
	case code == http.StatusOK && strings.HasSuffix(strings.TrimSpace(answer), "ok"):
		return findings, nil
	case code == http.StatusServiceUnavailable && len(findings) > 0:
		return findings, nil
	case code == http.StatusServiceUnavailable:
		return []Finding{notReady(name, strings.TrimSpace(answer), nil)}, nil
	}
	return findings, fmt.Errorf("%s answers %d to /readyz and does not sound like a broker", name, code)
}

func (c *Config) fetch(ctx context.Context, url string) (int, string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, "", err
	}
	response, err := c.Fetch.Do(request)
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxReadyz))
	return response.StatusCode, string(body), err
}

func first(texts ...string) string {
	for _, text := range texts {
		if text = strings.TrimSpace(text); text != "" {
			return text
		}
	}
	return "no reason given"
}
