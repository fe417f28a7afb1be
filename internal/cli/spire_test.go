package cli

import (
	"bytes"
	"strings"
	"testing"
)

const sidecarDigest = "registry.example.org/sidecar@sha256:1111111111111111111111111111111111111111111111111111111111111111"

// spire runs a command of taskgate spire that asks no cluster.
func spire(t *testing.T, stdin string, arguments ...string) ran {
	t.Helper()
	var out bytes.Buffer
	root := command(func(any) bool { return false })
	root.SetArgs(append([]string{"spire"}, arguments...))
	root.SetIn(strings.NewReader(stdin))
	root.SetOut(&out)
	root.SetErr(&out)
	err := root.ExecuteContext(t.Context())
	return ran{out.String(), Message(err), ExitCode(err)}
}

func TestSPIRERender(t *testing.T) {
	t.Parallel()
	flags := []string{"render", "--name", "prod", "--trust-domain", "example.org", "--cluster", "prod", "--image", sidecarDigest, "--agent", "agents/fixer", "--format", "json"}
	file := `{apiVersion: config.taskgate.dev/v1alpha1, kind: SPIRERegistration, name: prod, trustDomain: example.org, cluster: prod,
sidecar: {images: ["` + sidecarDigest + `"]}, agents: [{namespace: agents, serviceAccount: fixer}]}`
	byFlags, byFile := spire(t, "", flags...), spire(t, file, "render", "-f", "-", "--format", "json")
	if byFlags.code != 0 || byFlags.out != byFile.out || !strings.Contains(byFlags.out, `"value": "sa:fixer"`) {
		t.Errorf("by flags %s\nby file %s", byFlags, byFile)
	}
	for _, format := range []string{"ClusterSPIFFEID", "ClusterStaticEntry"} {
		if got := spire(t, file, "render", "-f", "-", "--format", format); got.code != 0 || !strings.Contains(got.out, "kind: "+format) {
			t.Error(got)
		}
	}
}

func TestSPIRERefuses(t *testing.T) {
	t.Parallel()
	complete := []string{"--name", "prod", "--trust-domain", "example.org", "--cluster", "prod", "--image", sidecarDigest, "--agent", "agents/fixer"}
	for _, test := range []struct {
		name string
		args []string
		want string
	}{
		{"nothing to register", []string{"render"}, "which agents?"},
		{"no image", []string{"render", "--name", "prod", "--trust-domain", "example.org", "--agent", "a/b"}, "sidecar.images: missing"},
		{"a tag", append([]string{"render", "--image", "sidecar:v1"}, complete...), "has no digest"},
		{"half an agent", append([]string{"render", "--agent", "fixer"}, complete...), "write namespace/service-account"},
		{"an unknown format", append([]string{"render", "--format", "xml"}, complete...), "--format is"},
		{"no server", append([]string{"plan"}, complete...), "where is the SPIRE server?"},
		{"a socket that is not there", append([]string{"apply", "--server-socket", "/nowhere"}, complete...), "the socket of the SPIRE server"},
		{"an unknown output", append([]string{"plan", "-o", "xml"}, complete...), "--output is text or json"},
		{"no Workload API", []string{"verify", "--workload-api", ""}, "where is the Workload API?"},
		{"an ID that is none", []string{"verify", "--expect", "fixer"}, "--expect"},
		{"a Workload API that is not there", []string{"verify", "--workload-api", "unix:///nowhere", "--none"}, "asking the Workload API"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			if got := spire(t, "", test.args...); got.code != 2 || !strings.Contains(got.problem, test.want) {
				t.Errorf("want exit 2 and %q, got %s", test.want, got)
			}
		})
	}
}
