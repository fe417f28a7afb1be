package cgroups_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/taskgate/taskgate/e2e/internal/cgroups"
)

// TestRemove removes a group with others in it while its last process ends.
func TestRemove(t *testing.T) {
	if err := cgroups.Check(); err != nil {
		t.Skip("no control groups here:", err)
	}
	name := "taskgate-test-" + strconv.Itoa(os.Getpid())
	t.Cleanup(func() {
		if err := cgroups.Remove(t.Context(), name); err != nil { // twice is no error
			t.Error(err)
		}
	})
	for range 2 { // one that is there is kept
		if err := cgroups.Make(name); err != nil {
			t.Fatal(err)
		}
	}
	groups := found(t, name)
	if len(groups) == 0 {
		t.Fatal("no group was made")
	}
	sleeper := exec.CommandContext(t.Context(), "sleep", "0.5")
	if err := sleeper.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() { ended <- sleeper.Wait() }()
	for _, group := range groups {
		inner := filepath.Join(group, "a", "b")
		if err := os.MkdirAll(inner, 0o755); err != nil {
			t.Fatal(err)
		}
		if filepath.Base(filepath.Dir(group)) == "cpuset" {
			continue // takes processes only when it was given processors
		}
		if err := os.WriteFile(filepath.Join(inner, "cgroup.procs"), []byte(strconv.Itoa(sleeper.Process.Pid)), 0); err != nil {
			t.Fatal(err)
		}
	}
	begin := time.Now()
	if err := cgroups.Remove(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Errorf("the process did not end by itself: %v", err)
	}
	if took := time.Since(begin); took < 200*time.Millisecond {
		t.Errorf("it was removed in %s although a process was in it", took)
	}
	if left := found(t, name); len(left) > 0 {
		t.Errorf("these are left: %v", left)
	}
}

func found(t *testing.T, name string) []string {
	t.Helper()
	var all []string
	for _, pattern := range []string{"/sys/fs/cgroup/" + name, "/sys/fs/cgroup/*/" + name} {
		groups, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, groups...)
	}
	return all
}
