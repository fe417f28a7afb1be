package testbed

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/taskgate/taskgate/e2e/internal/filelock"
	"github.com/taskgate/taskgate/e2e/internal/process"
)

// longestSocket is what fits into the address of a unix socket.
const longestSocket = 107

const lockPatience = 2 * time.Second

// lockFile keeps two programs from working on one directory.
const lockFile = "lock"

// Open finds a detached testbed again. It can do all that Start's can, but for
// adding sidecars.
func Open(directory string) (*Testbed, error) {
	t, err := open(directory)
	if err != nil {
		return nil, err
	}
	if t.options.SPIFFE == SPIRE {
		if err := t.connectSPIRE(); err != nil {
			return nil, err
		}
	}
	if kubeconfig := t.environment.AdminKubeconfig; kubeconfig != "" {
		return t, t.connect(kubeconfig)
	}
	return t, nil
}

// open reads what is written down about a testbed, which may be left from one
// that crashed, or from before a reboot.
func open(directory string) (*Testbed, error) {
	directory, err := filepath.Abs(directory)
	if err != nil {
		return nil, fmt.Errorf("finding the testbed's directory: %w", err)
	}
	found, err := readState(directory)
	if err != nil {
		return nil, err
	}
	t := &Testbed{
		options: Options{
			Directory: directory, SPIFFE: found.SPIFFE, S3: found.S3, Node: found.Node,
			Detached: true, Progress: io.Discard,
		},
		environment: found.Environment,
		complete:    found.Complete,
	}
	for _, c := range found.Components {
		t.processes = append(t.processes, process.Adopt(c.Spec, c.Identity))
	}
	return t, nil
}

// Control changes a detached testbed, while nobody else does.
func Control(directory string, change func(*Testbed) error) error {
	if _, err := readState(directory); err != nil {
		return err
	}
	lock, err := lockDirectory(directory)
	if err != nil {
		return err
	}
	t, err := Open(directory)
	if err == nil {
		err = change(t)
	}
	return errors.Join(err, lock.Release())
}

// Complete says whether the testbed came up entirely.
func (t *Testbed) Complete() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.complete
}

// Options says what the testbed is made of; after Open only SPIFFE, S3 and Node.
func (t *Testbed) Options() Options { return t.options }

// Down stops whatever runs of a testbed and removes its directory. It works
// after a crash too. Where no testbed is it answers ErrNoTestbed.
func Down(ctx context.Context, directory string) error {
	t, err := open(directory)
	if errors.Is(err, ErrNoTestbed) {
		return errors.Join(err, sweepWithout(directory))
	}
	if err != nil {
		return err
	}
	if t.lock, err = lockDirectory(t.options.Directory); err != nil {
		return err
	}
	return t.Remove(ctx)
}

// sweepWithout ends the processes of a testbed whose directory somebody removed.
func sweepWithout(directory string) error {
	absolute, err := filepath.Abs(directory)
	if err != nil {
		return fmt.Errorf("finding the testbed's directory: %w", err)
	}
	t := Testbed{options: Options{Directory: absolute, Node: RealNode}} // who knows; nothing is lost by looking
	return errors.Join(process.Sweep(t.marker()), t.removeRealNode(context.Background()))
}

// removeRemains clears the directory of a testbed that runs no more. It refuses
// to touch one that runs, and a folder that is something else.
func removeRemains(directory string) error {
	entries, err := os.ReadDir(directory)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(entries) == 0 {
		return nil
	}
	if len(entries) == 1 && entries[0].Name() == lockFile {
		return nil // somebody ended right after it began
	}
	if err != nil {
		return fmt.Errorf("looking into the testbed's directory: %w", err)
	}
	t, err := open(directory)
	if errors.Is(err, ErrNoTestbed) {
		return fmt.Errorf("%s is not empty and no testbed made it: choose another directory", directory)
	}
	if err != nil {
		return err
	}
	for _, c := range t.Components() {
		if c.PID() != 0 {
			return fmt.Errorf("a testbed in %s is still running (%s is): take it down first", directory, c.Name())
		}
	}
	return Down(context.Background(), directory)
}

// lockDirectory waits a little: of a program that was killed this moment, a child
// that does not run its own program yet still holds the lock.
func lockDirectory(directory string) (*filelock.Lock, error) {
	ctx, cancel := context.WithTimeout(context.Background(), lockPatience)
	defer cancel()
	lock, err := filelock.Take(ctx, filepath.Join(directory, lockFile), func() {})
	if errors.Is(err, context.DeadlineExceeded) {
		return nil, fmt.Errorf("another program works on the testbed in %s right now: wait for it or end it", directory)
	}
	return lock, err
}

// makeFolders makes folders that every user may look into, whatever the umask.
func (t *Testbed) makeFolders(names ...string) error {
	for _, name := range names {
		if err := os.MkdirAll(t.path(name), 0o755); err != nil {
			return fmt.Errorf("making a folder of the testbed: %w", err)
		}
		for folder := t.path(name); len(folder) >= len(t.options.Directory); folder = filepath.Dir(folder) {
			if err := os.Chmod(folder, 0o755); err != nil {
				return fmt.Errorf("opening a folder of the testbed to its users: %w", err)
			}
		}
	}
	return nil
}

// makePrivateFolder makes a folder for one user only.
func (t *Testbed) makePrivateFolder(name string, user *process.User) (string, error) {
	path := t.path(name)
	if err := os.MkdirAll(path, 0o700); err != nil {
		return "", fmt.Errorf("making a folder of the testbed: %w", err)
	}
	return path, give(path, user)
}

// give makes a file or folder the user's own; nil is whoever we are.
func give(path string, user *process.User) error {
	if user == nil {
		return nil
	}
	if err := os.Chown(path, int(user.UID), int(user.GID)); err != nil {
		return fmt.Errorf("giving a file to uid %d: %w", user.UID, err)
	}
	return nil
}

// checkReachable finds out early what would fail in a way nobody understands:
// sockets whose path is too long, and folders other uids cannot pass through.
func (o Options) checkReachable() error {
	longest := workloadSocket
	if o.Node == RealNode {
		longest = containerdSocket + ".ttrpc" // containerd adds it for its shims
	}
	if socket := filepath.Join(o.Directory, longest); len(socket) > longestSocket {
		return fmt.Errorf("the path %s is too long for a unix socket (%d of %d bytes): choose a shorter directory", socket, len(socket), longestSocket)
	}
	if o.SPIFFE != SPIRE {
		return nil
	}
	for folder := filepath.Dir(o.Directory); ; folder = filepath.Dir(folder) {
		info, err := os.Stat(folder)
		if err == nil && info.Mode().Perm()&0o001 == 0 {
			return fmt.Errorf("the agents' uids cannot pass through %s: run chmod o+x %[1]s, choose another directory, or use SPIFFE=dev", folder)
		}
		if folder == filepath.Dir(folder) {
			return nil
		}
	}
}
