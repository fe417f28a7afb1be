package toolset_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/taskgate/taskgate/e2e/internal/toolset"
)

// newBuilder has a source of kwok that builds in a moment, and a cache of its own.
func newBuilder(t *testing.T, source string) (*toolset.Builder, *safeBuffer) {
	t.Helper()
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	t.Setenv("TASKGATE_TESTBED_BIN", "")
	t.Setenv("KUBEBUILDER_ASSETS", "")
	modules := t.TempDir()
	write(t, filepath.Join(modules, "kwok/go.mod"), "module example\n\ngo 1.26\n\ntool sigs.k8s.io/kwok/cmd/kwok\n\nrequire sigs.k8s.io/kwok v0.8.0\n\nreplace sigs.k8s.io/kwok => ./source\n")
	write(t, filepath.Join(modules, "kwok/go.sum"), "")
	write(t, filepath.Join(modules, "kwok/source/go.mod"), "module sigs.k8s.io/kwok\n\ngo 1.26\n")
	write(t, filepath.Join(modules, "kwok/source/cmd/kwok/main.go"), source)
	progress := &safeBuffer{}
	return &toolset.Builder{Modules: modules, Progress: progress}, progress
}

const hello = "package main\n\nfunc main() { println(\"hello\") }\n"

func TestEnsureBuildsOnce(t *testing.T) {
	builder, progress := newBuilder(t, hello)
	var group sync.WaitGroup
	for range 3 {
		group.Go(func() {
			paths, err := builder.Ensure(t.Context(), toolset.Kwok)
			if err != nil {
				t.Error(err)
				return
			}
			if output, err := exec.Command(paths[toolset.Kwok]).CombinedOutput(); err != nil || string(output) != "hello\n" {
				t.Errorf("the program answered %q, %v", output, err)
			}
		})
	}
	group.Wait()
	if count := strings.Count(progress.String(), "building kwok (about 1m0s the first time) ... "); count != 1 {
		t.Errorf("it was built %d times: %s", count, progress)
	}
	before, err := builder.Ensure(t.Context(), toolset.Kwok)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(builder.Modules, "kwok/go.sum"), "\n")
	after, err := builder.Ensure(t.Context(), toolset.Kwok)
	if err != nil {
		t.Fatal(err)
	}
	if before[toolset.Kwok] == after[toolset.Kwok] {
		t.Error("other sources gave the same program")
	}
}

func TestEnsureFailure(t *testing.T) {
	builder, progress := newBuilder(t, "package main\n\nfunc main() { this does not compile }\n")
	_, err := builder.Ensure(t.Context(), toolset.Kwok)
	if err == nil || !strings.Contains(err.Error(), "building kwok") || !strings.Contains(err.Error(), "main.go:3") {
		t.Errorf("the error is %v", err)
	}
	if !strings.HasSuffix(progress.String(), "failed\n") {
		t.Errorf("the progress is %q", progress)
	}
	if _, err := builder.Ensure(t.Context(), "netscape"); err == nil {
		t.Error("an unknown program was found")
	}
}

func TestProvidedPrograms(t *testing.T) {
	builder, progress := newBuilder(t, hello)
	folder := t.TempDir()
	for _, name := range []string{toolset.Etcd, toolset.Kwok} {
		write(t, filepath.Join(folder, name), "#!/bin/sh\n")
		if err := os.Chmod(filepath.Join(folder, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("KUBEBUILDER_ASSETS", folder)
	paths, err := builder.Ensure(t.Context(), toolset.Etcd)
	if err != nil || paths[toolset.Etcd] != filepath.Join(folder, toolset.Etcd) {
		t.Errorf("etcd is %v, %v", paths, err)
	}
	t.Setenv("TASKGATE_TESTBED_BIN", folder)
	paths, err = builder.Ensure(t.Context(), toolset.Kwok)
	if err != nil || paths[toolset.Kwok] != filepath.Join(folder, toolset.Kwok) {
		t.Errorf("kwok is %v, %v", paths, err)
	}
	if progress.String() != "" {
		t.Errorf("something was built: %s", progress)
	}
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// safeBuffer takes progress from several builders.
type safeBuffer struct {
	mu     sync.Mutex
	buffer bytes.Buffer
}

func (b *safeBuffer) Write(content []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.Write(content)
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.String()
}
