package bench

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/taskgate/taskgate/e2e/testbed"
)

const sampleSource = `package p

type a struct{}

func (x *a) f(n int) int { return n }

func (x a) g() {
}

func f() {}
`

func TestChangeApplies(t *testing.T) {
	for function, want := range map[string]string{
		"a.f": "func (x *a) f(n int) int {\nfirst\n return n }",
		"a.g": "func (x a) g() {\nfirst\n\n}",
		"f":   "func f() {\nfirst\n}",
	} {
		got, err := change{file: "p.go", function: function, first: "first", appended: "last"}.apply(sampleSource)
		if err != nil || !strings.Contains(got, want) || !strings.HasSuffix(got, "\nlast\n") {
			t.Errorf("%s: %v\n%s", function, err, got)
		}
	}
	for _, function := range []string{"g", "b.f", "a"} {
		if _, err := (change{file: "p.go", function: function}).apply(sampleSource); err == nil || !strings.Contains(err.Error(), "p.go has no function "+function) {
			t.Errorf("%s: %v", function, err)
		}
	}
}

// TestVariantsBuild finds a function that was renamed before a benchmark does.
func TestVariantsBuild(t *testing.T) {
	if testing.Short() {
		t.Skip("builds programs")
	}
	repository, err := testbed.FindRepository()
	if err != nil {
		t.Fatal(err)
	}
	for name, v := range map[string]variant{"unrecorded": unrecorded(), "broker": profiled("broker"), "sidecar": profiled("sidecar")} {
		t.Run(name, func(t *testing.T) {
			program := filepath.Join(t.TempDir(), name)
			if err := v.build(t.Context(), repository, program); err != nil {
				t.Fatal(err)
			}
			if output, err := exec.CommandContext(t.Context(), program, "--help").CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, output)
			}
		})
	}
}

// TestTreeIsUntouched: a variant leaves the source as it is.
func TestTreeIsUntouched(t *testing.T) {
	repository, folder := t.TempDir(), t.TempDir()
	path := filepath.Join(repository, "p.go")
	if err := os.WriteFile(path, []byte(sampleSource), 0o644); err != nil {
		t.Fatal(err)
	}
	v := variant{
		changes: []change{{file: "p.go", function: "f", first: "one"}, {file: "p.go", function: "a.f", first: "two"}},
		added:   map[string]string{"q.go": "package p"},
	}
	if _, err := v.write(repository, folder); err != nil {
		t.Fatal(err)
	}
	if content, err := os.ReadFile(path); err != nil || string(content) != sampleSource {
		t.Errorf("%v\n%s", err, content)
	}
	if content, err := os.ReadFile(filepath.Join(folder, "0.go")); err != nil || !strings.Contains(string(content), "one") || !strings.Contains(string(content), "two") {
		t.Errorf("%v\n%s", err, content)
	}
}
