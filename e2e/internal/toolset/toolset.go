package toolset

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/taskgate/taskgate/e2e/internal/filelock"
)

// Builder finds programs and builds those that are missing.
type Builder struct {
	Modules  string    // the folder e2e/tools
	Progress io.Writer // one line per build that takes long
}

// Ensure answers the path of every named program, building what is missing in
// the order given.
func (b *Builder) Ensure(ctx context.Context, names ...string) (map[string]string, error) {
	paths := map[string]string{}
	for _, name := range names {
		path, err := b.ensure(ctx, name)
		if err != nil {
			return nil, err
		}
		paths[name] = path
	}
	return paths, nil
}

func (b *Builder) ensure(ctx context.Context, name string) (string, error) {
	tool, known := tools()[name]
	if !known {
		return "", fmt.Errorf("there is no testbed program named %q", name)
	}
	if path := provided(name, tool); path != "" {
		return path, nil
	}
	plan, err := b.plan(name, tool)
	if err != nil {
		return "", err
	}
	if executable(plan.target) {
		return plan.target, nil
	}
	if err := os.MkdirAll(filepath.Dir(plan.target), 0o755); err != nil {
		return "", fmt.Errorf("making the cache folder of the testbed's programs (set XDG_CACHE_HOME to move it): %w", err)
	}
	lock, err := filelock.Take(ctx, plan.target+".lock", func() {
		b.say("waiting for another testbed that builds %s\n", name)
	})
	if err != nil {
		return "", err
	}
	err = b.build(ctx, name, tool, plan)
	return plan.target, errors.Join(err, lock.Release())
}

// provided looks where a person may have put the programs.
func provided(name string, tool tool) string {
	folders := []string{os.Getenv("TASKGATE_TESTBED_BIN")}
	if tool.assets {
		folders = append(folders, os.Getenv("KUBEBUILDER_ASSETS"))
	}
	for _, folder := range folders {
		if folder == "" {
			continue
		}
		if path := filepath.Join(folder, name); executable(path) {
			return path
		}
	}
	return ""
}

// build compiles into a temporary file and renames it; the caller holds the
// lock. Somebody may have built it while we waited for that.
func (b *Builder) build(ctx context.Context, name string, tool tool, plan plan) error {
	if executable(plan.target) {
		return nil
	}
	if err := checkCompilers(name, tool); err != nil {
		return err
	}
	b.say("building %s (about %s the first time) ... ", name, tool.usual)
	begin := time.Now()
	temporary := plan.target + ".partial"
	command := exec.CommandContext(ctx, "go", "build", "-o", temporary, "-ldflags", plan.linkerFlags, tool.source)
	command.Dir = plan.module
	command.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=-mod=readonly -buildvcs=false", cgoSetting(tool))
	// Interrupted, the go command takes its temporary files away.
	command.Cancel, command.WaitDelay = func() error { return command.Process.Signal(os.Interrupt) }, 30*time.Second
	if output, err := command.CombinedOutput(); err != nil {
		b.say("failed\n")
		return fmt.Errorf("building %s in %s: %w\n%s", name, plan.module, err, lastLines(string(output)))
	}
	if err := os.Rename(temporary, plan.target); err != nil {
		return fmt.Errorf("putting %s into the cache: %w", name, err)
	}
	b.say("done in %s\n", time.Since(begin).Round(time.Second))
	return nil
}

func checkCompilers(name string, tool tool) error {
	if _, err := exec.LookPath("go"); err != nil {
		return fmt.Errorf("building %s needs Go in the PATH: %w", name, err)
	}
	if !tool.cgo || os.Getenv("CC") != "" {
		return nil
	}
	if _, err := exec.LookPath("gcc"); err != nil {
		return fmt.Errorf("building %s needs a C compiler for its SQLite (apt-get install gcc libc6-dev): %w", name, err)
	}
	return nil
}

func cgoSetting(tool tool) string {
	if tool.cgo {
		return "CGO_ENABLED=1"
	}
	return "CGO_ENABLED=0"
}

func (b *Builder) say(format string, arguments ...any) {
	_, _ = fmt.Fprintf(b.Progress, format, arguments...) // progress that nobody sees is no failure
}

func executable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
}

// lastLines keeps the end of a long compiler output, where the reason is.
func lastLines(output string) string {
	const most = 30
	lines := strings.Split(strings.TrimSpace(output), "\n")
	return strings.Join(lines[max(0, len(lines)-most):], "\n")
}
