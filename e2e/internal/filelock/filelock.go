// Package filelock keeps two programs on one machine from doing the same thing
// at once. The kernel drops a lock when its holder dies, so a crash needs no
// cleaning up.
package filelock

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
)

// ErrHeld is the answer of Try when somebody else holds the lock.
var ErrHeld = errors.New("the lock is held by another program")

const retryInterval = 200 * time.Millisecond

// Lock is held until Release.
type Lock struct {
	file *os.File
}

// Try takes the lock at path or answers ErrHeld at once.
func Try(path string) (*Lock, error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening a lock file: %w", err)
	}
	err = syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if err == nil {
		return &Lock{file: file}, nil
	}
	_ = file.Close() // nothing was written
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return nil, ErrHeld
	}
	return nil, fmt.Errorf("locking %s: %w", path, err)
}

// Take waits for the lock at path; onWait is called once when there is a wait.
func Take(ctx context.Context, path string, onWait func()) (*Lock, error) {
	ticker := time.NewTicker(retryInterval)
	defer ticker.Stop()
	for waited := false; ; waited = true {
		lock, err := Try(path)
		if !errors.Is(err, ErrHeld) {
			return lock, err
		}
		if !waited {
			onWait()
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for %s: %w", path, context.Cause(ctx))
		case <-ticker.C:
		}
	}
}

// Release gives the lock back. The file stays: removing it would let a third
// program lock a file that the second one still waits for.
func (l *Lock) Release() error {
	return l.file.Close()
}
