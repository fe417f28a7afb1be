package testbed

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/taskgate/taskgate/e2e/internal/toolset"
)

// devProgram is the stand-in for SPIRE; see e2e/cmd/dev-workload-api.
const devProgram = "dev-workload-api"

// productPrograms are the three programs of taskgate.
func productPrograms() []string { return []string{"broker", "sidecar", "taskgate"} }

// BuildTaskgate builds broker, sidecar and taskgate of a repository into a
// folder, for Options.Programs of several testbeds.
func BuildTaskgate(ctx context.Context, repository, folder string, race bool) error {
	var packages []string
	for _, name := range productPrograms() {
		packages = append(packages, "./cmd/"+name)
	}
	return goBuild(ctx, repository, folder, race, packages...)
}

// goBuild builds static programs; the race detector needs cgo.
func goBuild(ctx context.Context, module, folder string, race bool, packages ...string) error {
	arguments, cgo := []string{"build", "-buildvcs=false"}, "CGO_ENABLED=0"
	if race {
		arguments, cgo = append(arguments, "-race"), "CGO_ENABLED=1"
	}
	arguments = append(arguments, "-o", folder+string(filepath.Separator))
	command := exec.CommandContext(ctx, "go", append(arguments, packages...)...)
	command.Dir = module
	command.Env = append(os.Environ(), cgo, "GOWORK=off")
	// Interrupted, the go command takes its temporary files away.
	command.Cancel, command.WaitDelay = func() error { return command.Process.Signal(os.Interrupt) }, 30*time.Second
	if output, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("building %v in %s: %w\n%s", packages, module, err, output)
	}
	return nil
}

// BuildTools finds or builds every program that a testbed of any kind needs and
// that is not ours. Start builds what it needs itself; doing it before keeps the
// first test of a suite from running into its timeout.
func BuildTools(ctx context.Context, progress io.Writer) error {
	repository, err := FindRepository()
	if err != nil {
		return err
	}
	for _, options := range []Options{
		{S3: VersityGW, Node: Kwok, SPIFFE: Dev},
		{S3: MinIO, Node: RealNode, SPIFFE: SPIRE},
	} {
		options.Repository, options.Progress = repository, progress
		if _, err := ensureTools(ctx, options); err != nil {
			return err
		}
	}
	return nil
}

func ensureTools(ctx context.Context, options Options) (map[string]string, error) {
	builder := toolset.Builder{Modules: toolModules(options.Repository), Progress: options.Progress}
	return builder.Ensure(ctx, options.tools()...)
}

// tools is what the options need; what everything else needs comes first.
func (o Options) tools() []string {
	var names []string
	if o.Kubeconfig == "" {
		names = append(names, toolset.KubeAPIServer, toolset.Etcd)
	}
	names = append(names, toolset.Kubectl)
	switch o.S3 {
	case VersityGW:
		names = append(names, toolset.VersityGW)
	case MinIO:
		names = append(names, toolset.MinIO)
	}
	if o.Kubeconfig == "" && !o.WithoutControllers {
		names = append(names, toolset.KubeControllerManager, toolset.KubeScheduler)
	}
	switch o.Node {
	case Kwok:
		names = append(names, toolset.Kwok)
	case RealNode:
		names = append(names, toolset.Kubelet, toolset.Containerd, toolset.ContainerdShim, toolset.Ctr)
	}
	if o.SPIFFE == SPIRE {
		names = append(names, toolset.SPIREServer, toolset.SPIREAgent)
	}
	return names
}

// findPrograms fills the folder bin, and finds everything else.
func (t *Testbed) findPrograms(ctx context.Context) error {
	var err error
	if t.tools, err = ensureTools(ctx, t.options); err != nil {
		return err
	}
	folder := t.path("bin")
	t.setEnvironment(func(e *Environment) { e.Programs = folder })
	if err := place(t.tools[toolset.Kubectl], filepath.Join(folder, toolset.Kubectl)); err != nil {
		return err
	}
	if err := t.buildOwn(ctx, folder); err != nil {
		return err
	}
	return t.findProduct(ctx, folder)
}

// buildOwn builds what is the testbed's own.
func (t *Testbed) buildOwn(ctx context.Context, folder string) error {
	var packages []string
	if t.options.SPIFFE == Dev {
		packages = append(packages, "./cmd/"+devProgram)
	}
	if t.options.Node == RealNode {
		packages = append(packages, "./cmd/"+nodeProgram)
	}
	if len(packages) == 0 {
		return nil
	}
	return goBuild(ctx, filepath.Join(t.options.Repository, "e2e"), folder, false, packages...)
}

func (t *Testbed) findProduct(ctx context.Context, folder string) error {
	if t.options.WithoutTaskgate {
		return nil
	}
	if t.options.Programs == "" {
		begin := time.Now()
		t.say("building broker, sidecar and taskgate (seconds, about a minute the first time)")
		if err := BuildTaskgate(ctx, t.options.Repository, folder, t.options.Race); err != nil {
			return err
		}
		t.say("built broker, sidecar and taskgate (%s)", time.Since(begin).Round(100*time.Millisecond))
		return nil
	}
	for _, name := range productPrograms() {
		if err := place(filepath.Join(t.options.Programs, name), filepath.Join(folder, name)); err != nil {
			return err
		}
	}
	return nil
}

// place makes a program available inside the testbed, where every uid can reach
// it: the cache may be in a home folder that is closed to others. It is a hard
// link, or a copy where the cache is on another disk.
func place(source, target string) error {
	if err := os.Link(source, target); err == nil {
		return nil
	}
	from, err := os.Open(source)
	if err != nil {
		return fmt.Errorf("copying a program into the testbed: %w", err)
	}
	defer func() { _ = from.Close() }() // only read
	to, err := os.OpenFile(target, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o755)
	if err != nil {
		return fmt.Errorf("copying a program into the testbed: %w", err)
	}
	_, err = io.Copy(to, from)
	if err := errors.Join(err, to.Close()); err != nil {
		return fmt.Errorf("copying %s into the testbed: %w", source, err)
	}
	return nil
}
