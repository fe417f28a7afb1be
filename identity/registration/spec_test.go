package registration

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files anew")

func TestRender(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		file, spec string
		render     func(*Spec) ([]byte, error)
	}{
		{"entries.json", description, (*Spec).JSON},
		{"clusterstaticentry.yaml", description, (*Spec).StaticEntries},
		{"clusterspiffeid.yaml", description, (*Spec).ClusterSPIFFEIDs},
		{"clusterspiffeid-pods.yaml", anyPod, (*Spec).ClusterSPIFFEIDs},
	} {
		t.Run(test.file, func(t *testing.T) {
			t.Parallel()
			got, err := test.render(parse(t, test.spec))
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join("testdata", test.file)
			if *update {
				if err := os.WriteFile(path, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if difference := cmp.Diff(string(want), string(got)); difference != "" {
				t.Errorf("not as in %s (-update writes it anew):\n%s", path, difference)
			}
		})
	}
}

// anyPod gives every pod of a namespace an identity of its own.
const anyPod = `
apiVersion: config.taskgate.dev/v1alpha1
kind: SPIRERegistration
name: prod
trustDomain: example.org
className: spire-mgmt-spire
ttl: 5m
spiffeID: spiffe://{trustDomain}/ns/{namespace}/sa/{serviceAccount}/pod/{podUID}
sidecar: {images: ["` + digestOne + `"]}
agents: [{namespace: agents, serviceAccount: "*"}]
`

func TestOrderDoesNotMatter(t *testing.T) {
	t.Parallel()
	turned := strings.NewReplacer(
		`"`+digestTwo+`", "`+digestOne+`"`, `"`+digestOne+`", "`+digestTwo+`"`,
		"- {namespace: agents, serviceAccount: fixer}\n", "").Replace(description) + "- {namespace: agents, serviceAccount: fixer}\n"
	if difference := cmp.Diff(entriesOf(t, description), entriesOf(t, turned), cmp.Comparer(func(a, b Entry) bool { return a.ID == b.ID && differences(&a, &b) == nil })); difference != "" {
		t.Error(difference)
	}
}

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ name, old, new, want string }{
		{"empty", description, "", "must begin with apiVersion"},
		{"another version", "v1alpha1", "v9", "must begin with apiVersion"},
		{"unknown field", "name: prod\n", "name: prod\nadmin: true\n", "admin"},
		{"no name", "name: prod\n", "", "name: \"\" cannot name a set"},
		{"a dot in the name", "name: prod\n", "name: prod.eu\n", "cannot name a set"},
		{"no trust domain", "trustDomain: example.org\n", "", "trustDomain"},
		{"no image", `["` + digestTwo + `", "` + digestOne + `"]`, "[]", "sidecar.images: missing"},
		{"a tag", digestTwo, "registry.example.org/taskgate/sidecar:v1", "has no digest"},
		{"a short digest", digestTwo, "registry.example.org/taskgate/sidecar@sha256:12", "has no digest"},
		{"an image twice", digestTwo, digestOne, "is there twice"},
		{"no agents", description[strings.Index(description, "agents:"):], "", "agents: missing"},
		{"an agent without a namespace", "{namespace: agents, serviceAccount: fixer}", "{serviceAccount: fixer}", "names no namespace"},
		{"an agent twice", "serviceAccount: builder, spiffeID: \"spiffe://{trustDomain}/agent/builder\"", "serviceAccount: fixer", "are the same"},
		{"an ID twice", "agent/builder", "ns/agents/sa/fixer", "are the same, or share spiffe://example.org/ns/agents/sa/fixer"},
		{"the ID of SPIRE", "/agent/builder", "/spire/server", "is SPIRE's own"},
		{"another trust domain", "spiffe://{trustDomain}/agent", "spiffe://other.org/agent", "not in the trust domain"},
		{"an unknown placeholder", "{trustDomain}/agent", "{td}/agent", "{td} in"},
		{"too long a life", "name: prod\n", "name: prod\nttl: 48h\n", "ttl"},
		{"too short a life", "name: prod\n", "name: prod\nttl: 1s\n", "ttl"},
		{"two parents", "cluster: prod-eu\n", "cluster: prod-eu\nparentID: spiffe://example.org/x\n", "give one of them"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			text := strings.Replace(description, test.old, test.new, 1)
			if text == description {
				t.Fatal("the test changes nothing")
			}
			if _, err := Parse([]byte(text)); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want an error with %q", err, test.want)
			}
		})
	}
}

func TestEntriesRefuse(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ name, old, new, want string }{
		{"no parent", "cluster: prod-eu\n", "", "which SPIRE agents"},
		{"a parent elsewhere", "cluster: prod-eu\n", "parentID: spiffe://other.org/x\n", "parentID"},
		{"any service account", "serviceAccount: fixer", `serviceAccount: "*"`, "use the format ClusterSPIFFEID"},
		{"the UID of a pod", "agent/builder", "agent/{podUID}", "use the format ClusterSPIFFEID"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			if _, err := parse(t, strings.Replace(description, test.old, test.new, 1)).Entries(); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want an error with %q", err, test.want)
			}
		})
	}
}

func TestCheckSelectors(t *testing.T) {
	t.Parallel()
	whole := entriesOf(t, description)[1].Selectors
	if err := CheckSelectors(whole); err != nil {
		t.Fatal(err)
	}
	for i, missing := range []string{"the image", "the container", "the namespace", "the service account"} {
		rest := append(append([]string{}, whole[:i]...), whole[i+1:]...)
		if err := CheckSelectors(rest); err == nil || !strings.Contains(err.Error(), missing) {
			t.Errorf("without %s: %v", whole[i], err)
		}
	}
	for _, selectors := range [][]string{nil, {}, {"unix:uid:0"}, {"k8s:ns:", "k8s:sa:", "k8s:container-name:", "k8s:container-image:"},
		{"k8s:ns:a", "k8s:sa:b", "k8s:container-name:taskgate", "k8s:container-image:sidecar:latest"},
		{"k8s:ns:a", "k8s:sa:b", "k8s:container-name:taskgate", "k8s:pod-image:" + digestOne}} {
		if CheckSelectors(selectors) == nil {
			t.Errorf("%q let more than the sidecar in and were taken", selectors)
		}
	}
}
