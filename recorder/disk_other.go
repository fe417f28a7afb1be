//go:build !linux

package recorder

import (
	"errors"
	"os"
)

// A broker runs on Linux; elsewhere this package only verifies and reads.

func datasync(file *os.File) error { return file.Sync() }

func lockDirectory(string) (*os.File, error) {
	return nil, errors.New("a spool needs Linux")
}
