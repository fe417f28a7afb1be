package toolset

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/mod/modfile"
)

const kubernetesModule = "k8s.io/kubernetes"

// plan is where a program comes from and where it goes.
type plan struct {
	module      string // folder of the Go module that builds it
	linkerFlags string
	target      string // path of the finished program
}

func (b *Builder) plan(name string, tool tool) (plan, error) {
	module := filepath.Join(b.Modules, tool.module)
	requirements, err := os.ReadFile(filepath.Join(module, "go.mod"))
	if err != nil {
		return plan{}, fmt.Errorf("reading what %s is built from: %w", name, err)
	}
	sums, err := os.ReadFile(filepath.Join(module, "go.sum"))
	if err != nil {
		return plan{}, fmt.Errorf("reading what %s is built from: %w", name, err)
	}
	flags, err := linkerFlags(tool, requirements)
	if err != nil {
		return plan{}, err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return plan{}, fmt.Errorf("finding the folder for the testbed's programs (set XDG_CACHE_HOME): %w", err)
	}
	hash := sha256.New()
	for _, part := range []string{string(requirements), string(sums), flags, cgoSetting(tool), runtime.GOOS, runtime.GOARCH} {
		fmt.Fprintf(hash, "%d:%s", len(part), part)
	}
	folder := tool.module + "-" + hex.EncodeToString(hash.Sum(nil))[:16]
	return plan{
		module:      module,
		linkerFlags: flags,
		target:      filepath.Join(cache, "taskgate", "testbed", folder, name),
	}, nil
}

// linkerFlags drops debug information, and tells Kubernetes programs the
// version they are: without it they take themselves for v0.0.0 and the
// controller manager and kubectl misbehave.
func linkerFlags(tool tool, requirements []byte) (string, error) {
	const small = "-s -w"
	if !tool.kubernetes {
		return small, nil
	}
	version, err := requiredVersion(requirements, kubernetesModule)
	if err != nil {
		return "", err
	}
	parts := strings.SplitN(strings.TrimPrefix(version, "v"), ".", 3)
	if len(parts) < 3 {
		return "", fmt.Errorf("the version %q of %s is not of the form v1.2.3", version, kubernetesModule)
	}
	const variables = "k8s.io/component-base/version."
	return strings.Join([]string{
		"-X " + variables + "gitVersion=" + version,
		"-X " + variables + "gitMajor=" + parts[0],
		"-X " + variables + "gitMinor=" + parts[1],
		"-X k8s.io/client-go/pkg/version.gitVersion=" + version,
		small,
	}, " "), nil
}

func requiredVersion(requirements []byte, module string) (string, error) {
	file, err := modfile.Parse("go.mod", requirements, nil)
	if err != nil {
		return "", fmt.Errorf("reading what the testbed is built from: %w", err)
	}
	for _, requirement := range file.Require {
		if requirement.Mod.Path == module {
			return requirement.Mod.Version, nil
		}
	}
	return "", fmt.Errorf("the testbed's go.mod does not require %s", module)
}
