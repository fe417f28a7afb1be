package recorder

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// datasync makes the content of a file durable. The size of a prepared file does
// not change any more, so its metadata need not be (fdatasync(2)).
func datasync(file *os.File) error {
	for {
		if err := syscall.Fdatasync(int(file.Fd())); !errors.Is(err, syscall.EINTR) {
			return os.NewSyscallError("fdatasync", err)
		}
	}
}

// lockDirectory keeps a second process out of the spool until the file returned
// is closed or the process ends, however it ends (flock(2)).
func lockDirectory(directory string) (*os.File, error) {
	file, err := os.OpenFile(filepath.Join(directory, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("locking the spool: %w", err)
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		file.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w: %s; stop that process, or give this one a directory of its own", ErrLocked, directory)
		}
		return nil, fmt.Errorf("locking the spool in %s: %w", directory, err)
	}
	return file, nil
}
