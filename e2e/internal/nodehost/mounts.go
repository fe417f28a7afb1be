package nodehost

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// hidden folders hold paths that containerd, the kubelet and CNI plugins insist on.
// What takes the place of each is a folder below state, or in memory.
func hidden(state string) map[string]string {
	return map[string]string{"/run": "", "/var/lib": filepath.Join(state, "lib"), "/var/log": filepath.Join(state, "log")}
}

// shielded settings are those a kubelet changes when it starts: it wants a machine
// that reboots after a panic and overcommits memory.
func shielded() []string {
	return []string{
		"/proc/sys/vm/overcommit_memory", "/proc/sys/vm/panic_on_oom",
		"/proc/sys/kernel/panic", "/proc/sys/kernel/panic_on_oops",
		"/proc/sys/kernel/keys/root_maxkeys", "/proc/sys/kernel/keys/root_maxbytes",
	}
}

// prepareMounts makes the mount namespace that of a node. Mounts of the machine
// go on arriving, ours never leave; inside they are shared, as a kubelet expects.
func prepareMounts(directory, state string) error {
	for _, propagation := range []uintptr{unix.MS_SLAVE, unix.MS_SHARED} {
		if err := unix.Mount("", "/", "", unix.MS_REC|propagation, ""); err != nil {
			return fmt.Errorf("separating the mounts from the machine's: %w", err)
		}
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mounting /proc: %w", err)
	}
	for folder, instead := range hidden(state) {
		if err := hide(folder, instead, directory); err != nil {
			return fmt.Errorf("hiding %s: %w", folder, err)
		}
	}
	for _, setting := range shielded() {
		if err := shield(setting); err != nil {
			return fmt.Errorf("shielding %s: %w", setting, err)
		}
	}
	return nil
}

// hide puts another folder over one of the machine's. If the directory to keep is
// below, it is put back.
func hide(folder, instead, keep string) error {
	kept, err := os.Open(keep)
	if err != nil {
		return err
	}
	defer func() { _ = kept.Close() }() // only a handle
	if err := cover(folder, instead); err != nil {
		return err
	}
	if !strings.HasPrefix(keep, folder+string(filepath.Separator)) {
		return nil
	}
	if err := os.MkdirAll(keep, 0o755); err != nil {
		return err
	}
	return unix.Mount(fmt.Sprintf("/proc/self/fd/%d", kept.Fd()), keep, "", unix.MS_BIND|unix.MS_REC, "")
}

func cover(folder, instead string) error {
	if instead == "" {
		return unix.Mount("tmpfs", folder, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755")
	}
	if err := os.MkdirAll(instead, 0o755); err != nil {
		return err
	}
	return unix.Mount(instead, folder, "", unix.MS_BIND, "")
}

// shield puts a file with the same content in the place of a setting, so that it
// can be written and changes nothing. A kernel that has no such setting is fine.
func shield(setting string) error {
	content, err := os.ReadFile(setting)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	const folder = "/run/settings"
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	copied := filepath.Join(folder, filepath.Base(setting))
	if err := os.WriteFile(copied, content, 0o644); err != nil {
		return err
	}
	return unix.Mount(copied, setting, "", unix.MS_BIND, "")
}
