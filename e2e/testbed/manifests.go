package testbed

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/dynamic"

	"github.com/taskgate/taskgate/e2e/internal/toolset"
)

const manifestsPatience = 30 * time.Second

// installManifests does what a person does in a real installation: the custom
// resource definitions first, and when the cluster serves them all the rest.
// A repository that has no manifests is fine.
func (t *Testbed) installManifests(ctx context.Context) error {
	begin := time.Now()
	base := filepath.Join(t.options.Repository, "manifests", "base")
	if _, err := os.Stat(base); errors.Is(err, fs.ErrNotExist) {
		t.say("no manifests to install: %s does not exist", base)
		return nil
	}
	definitions := filepath.Join(t.options.Repository, "manifests", "crds")
	if err := t.kubectl(ctx, "apply", "--server-side", "-k", definitions); err != nil {
		return fmt.Errorf("installing the custom resource definitions: %w", err)
	}
	timeout := "--timeout=" + manifestsPatience.String()
	if err := t.kubectl(ctx, "wait", "--for=condition=Established", timeout, "customresourcedefinitions", "--all"); err != nil {
		return fmt.Errorf("waiting for the custom resource definitions: %w", err)
	}
	if err := t.applyServed(ctx, base); err != nil {
		return fmt.Errorf("installing the manifests: %w", err)
	}
	if err := t.waitForAsking(ctx); err != nil {
		return fmt.Errorf("waiting until the cluster fills TaskGrants in: %w", err)
	}
	t.say("installed the manifests (%s)", time.Since(begin).Round(10*time.Millisecond))
	return nil
}

// applyServed tries again while the cluster does not list a new kind yet:
// discovery is a moment behind the definitions it has established.
func (t *Testbed) applyServed(ctx context.Context, folder string) error {
	var last error
	err := wait.PollUntilContextTimeout(ctx, 250*time.Millisecond, manifestsPatience, true, func(ctx context.Context) (bool, error) {
		last = t.kubectl(ctx, "apply", "--server-side", "-k", folder)
		if last != nil && !strings.Contains(last.Error(), "no matches for kind") && !strings.Contains(last.Error(), "There can be a delay") {
			return false, last
		}
		return last == nil, nil
	})
	if err != nil && last != nil {
		return last
	}
	return err
}

// waitForAsking waits until the admission policies fill in who asks for a
// TaskGrant: the API server reads the schemas of new kinds every five seconds, and
// until then it can change no object of theirs.
func (t *Testbed) waitForAsking(ctx context.Context) error {
	client, err := dynamic.NewForConfig(t.admin)
	if err != nil {
		return err
	}
	grants := client.Resource(schema.GroupVersionResource{Group: "taskgate.dev", Version: "v1alpha1", Resource: "taskgrants"})
	grant := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "taskgate.dev/v1alpha1", "kind": "TaskGrant", "metadata": map[string]any{"name": "testbed-asks"},
		"spec": map[string]any{
			"agent": "spiffe://" + TrustDomain + "/nobody", "task": "ask", "policy": "nothing", "ttl": "1s",
			"rules": []any{map[string]any{"namespaces": []any{"x"}, "apiGroups": []any{"x"}, "resources": []any{"x"}, "verbs": []any{"get"}}},
		},
	}}
	var last error
	err = wait.PollUntilContextTimeout(ctx, 250*time.Millisecond, manifestsPatience, true, func(ctx context.Context) (bool, error) {
		_, last = grants.Create(ctx, grant, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		return last == nil, nil
	})
	return errors.Join(err, last)
}

// kubectl runs as the cluster's administrator.
func (t *Testbed) kubectl(ctx context.Context, arguments ...string) error {
	command := exec.CommandContext(ctx, t.path("bin", toolset.Kubectl), arguments...)
	command.Env = []string{"KUBECONFIG=" + t.Environment().AdminKubeconfig, "HOME=" + t.options.Directory, "PATH=" + os.Getenv("PATH")}
	if output, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("kubectl %s: %w\n%s", strings.Join(arguments, " "), err, output)
	}
	return nil
}
