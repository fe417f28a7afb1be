package e2e_test

import (
	"bytes"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/api/resmap"
	"sigs.k8s.io/kustomize/api/resource"
	"sigs.k8s.io/kustomize/kyaml/filesys"

	"github.com/taskgate/taskgate/broker"
)

// render builds a folder of manifests, as kubectl apply -k does.
func render(t testing.TB, folder string) resmap.ResMap {
	t.Helper()
	rendered, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), filepath.Join("../manifests", folder))
	if err != nil {
		t.Fatalf("%s: %v", folder, err)
	}
	return rendered
}

// asYAML leaves out what is in the repository as it is.
func documents(t testing.TB, rendered resmap.ResMap, without ...string) []byte {
	t.Helper()
	var texts [][]byte
	for _, object := range rendered.Resources() {
		if !slices.Contains(without, object.GetKind()) {
			texts = append(texts, yamlOf(t, object))
		}
	}
	return bytes.Join(texts, []byte("---\n"))
}

func yamlOf(t testing.TB, object *resource.Resource) []byte {
	t.Helper()
	text, err := object.AsYAML()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// TestManifestsRendered compares what the overlays make of the base with files, and
// with themselves.
func TestManifestsRendered(t *testing.T) {
	t.Parallel()
	for _, folder := range []string{"overlays/dev", "overlays/prod"} {
		asItIs := []string{
			"CustomResourceDefinition", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding", "MutatingAdmissionPolicy", "MutatingAdmissionPolicyBinding",
			"ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding",
		}
		first := documents(t, render(t, folder), asItIs...)
		golden(t, "testdata/manifests/"+filepath.Base(folder)+".golden", first)
		if !bytes.Equal(first, documents(t, render(t, folder), asItIs...)) {
			t.Errorf("%s is rendered in two ways", folder)
		}
	}
	if _, err := broker.Load("../manifests/broker/config.yaml"); err != nil {
		t.Errorf("the broker does not take its configuration: %v", err)
	}
}

// TestManifestsAccepted has the API server judge every object of the overlays, and of
// the example, without making it. It knows nothing of SPIRE's kinds.
func TestManifestsAccepted(t *testing.T) {
	t.Parallel()
	s := sharedStack(t)
	for _, folder := range []string{"overlays/dev", "overlays/prod"} {
		text := documents(t, render(t, folder), "ClusterSPIFFEID")
		got := s.command(t, string(text), s.Environment().Programs+"/kubectl", "--kubeconfig", s.Environment().AdminKubeconfig,
			"apply", "--server-side", "--force-conflicts", "--dry-run=server", "-f", "-")
		if got.code != 0 {
			t.Errorf("%s: %s", folder, got.stderr)
		}
		if made := strings.Count(got.stdout, "serverside-applied (server dry run)"); made < 30 {
			t.Errorf("%s: only %d objects were judged", folder, made)
		}
	}
	text := documents(t, render(t, "examples"), "ServiceAccount", "Deployment") // their namespace is not there
	got := s.command(t, string(text), s.Environment().Programs+"/kubectl", "--kubeconfig", s.Environment().AdminKubeconfig, "create", "--dry-run=server", "-f", "-")
	if got.code != 0 {
		t.Errorf("examples: %s", got.stderr)
	}
}
