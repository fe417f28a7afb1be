// Package cgroups makes and removes one control group, in every hierarchy of the
// machine, as the place for all containers of a testbed.
//
// Nobody is killed here: a group is removed after its processes have ended.
package cgroups

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const (
	removePatience = 10 * time.Second
	pollInterval   = 20 * time.Millisecond
)

// Make makes the group in the hierarchies that containers use: all of version 1
// where there are any, else the one of version 2. A group that is there is kept.
func Make(name string) error {
	first, second, err := hierarchies()
	if err != nil {
		return err
	}
	if len(first)+len(second) == 0 {
		return errNone
	}
	if len(first) == 0 {
		for _, hierarchy := range second {
			if err := enable(hierarchy); err != nil {
				return err
			}
		}
		first = second
	}
	for _, hierarchy := range first {
		if err := os.Mkdir(filepath.Join(hierarchy, name), 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("making a control group: %w", err)
		}
	}
	return nil
}

var errNone = errors.New("this machine has no control groups mounted at /sys/fs/cgroup")

// enable gives the groups below all controllers that a hierarchy of version 2 has.
// Everybody who runs containers does that; it limits nobody.
func enable(hierarchy string) error {
	controllers, err := os.ReadFile(filepath.Join(hierarchy, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("asking for the controllers of control groups: %w", err)
	}
	for controller := range strings.FieldsSeq(string(controllers)) {
		if err := os.WriteFile(filepath.Join(hierarchy, "cgroup.subtree_control"), []byte("+"+controller), 0); err != nil {
			return fmt.Errorf("enabling the controller %s of control groups: %w", controller, err)
		}
	}
	return nil
}

// Check answers nil when this machine has control groups that we may change.
func Check() error {
	first, second, err := hierarchies()
	if err != nil {
		return err
	}
	all := slices.Concat(first, second)
	if len(all) == 0 {
		return errNone
	}
	probe, err := os.MkdirTemp(all[0], "taskgate-probe-")
	if err != nil {
		return fmt.Errorf("the control groups of this machine cannot be changed: %w", err)
	}
	return os.Remove(probe)
}

// Remove removes the group and all below it, and waits for processes that are
// ending. A group that is not there is no error.
func Remove(ctx context.Context, name string) error {
	first, second, err := hierarchies()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, removePatience)
	defer cancel()
	var errs []error
	for _, hierarchy := range slices.Concat(first, second) {
		errs = append(errs, removePatiently(ctx, filepath.Join(hierarchy, name)))
	}
	return errors.Join(errs...)
}

func removePatiently(ctx context.Context, group string) error {
	for {
		err := removeTree(group)
		if err == nil {
			return nil
		}
		select {
		case <-time.After(pollInterval):
		case <-ctx.Done():
			return fmt.Errorf("removing a control group (look at its cgroup.procs): %w", err)
		}
	}
}

// removeTree removes the deepest groups first; their files go with them.
func removeTree(group string) error {
	entries, err := os.ReadDir(group)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if entry.IsDir() {
			if err := removeTree(filepath.Join(group, entry.Name())); err != nil {
				return err
			}
		}
	}
	if err := os.Remove(group); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// hierarchies answers where those of version 1 and 2 are mounted, see
// proc_pid_mountinfo(5) and cgroups(7).
func hierarchies() (first, second []string, err error) {
	file, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, nil, fmt.Errorf("looking for control groups: %w", err)
	}
	defer func() { _ = file.Close() }() // only read
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		const mountPoint = 4
		before, after, _ := strings.Cut(lines.Text(), " - ")
		fields := strings.Fields(before)
		if len(fields) <= mountPoint || !strings.HasPrefix(fields[mountPoint], "/sys/fs/cgroup") {
			continue
		}
		switch kind, _, _ := strings.Cut(after, " "); kind {
		case "cgroup":
			first = append(first, fields[mountPoint])
		case "cgroup2":
			second = append(second, fields[mountPoint])
		}
	}
	if err := lines.Err(); err != nil {
		return nil, nil, fmt.Errorf("looking for control groups: %w", err)
	}
	return first, second, nil
}
