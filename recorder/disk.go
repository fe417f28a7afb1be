package recorder

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// ErrLocked says that another process uses the spool directory.
var ErrLocked = errors.New("another process uses the spool")

// disk is what the spool asks of the operating system: fields, so that tests can
// make each of them fail.
type disk struct {
	prepare func(path string, header []byte, size int64) (*os.File, error)
	write   func(file *os.File, data []byte, offset int64) error
	sync    func(file *os.File) error
	replace func(path string, data []byte) error
}

func realDisk() disk {
	return disk{
		prepare: prepareFile,
		write: func(file *os.File, data []byte, offset int64) error {
			_, err := file.WriteAt(data, offset)
			return err
		},
		sync:    datasync,
		replace: replaceFile,
	}
}

// prepareFile makes a file of zeros behind a header, durably and under its final
// name, so that writing to it later allocates nothing: it cannot fail for lack
// of space, and its sync has no metadata to write.
func prepareFile(path string, header []byte, size int64) (_ *os.File, err error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil { // give the space back: the seal's own files need some
			file.Close()
			os.Remove(path)
		}
	}()
	chunk := make([]byte, min(size, 1<<20))
	copy(chunk, header)
	for offset := int64(0); offset < size; offset += int64(len(chunk)) {
		chunk = chunk[:min(int64(len(chunk)), size-offset)]
		if _, err := file.WriteAt(chunk, offset); err != nil {
			return nil, err
		}
		clear(chunk[:min(len(header), len(chunk))])
	}
	if err := file.Sync(); err != nil {
		return nil, err
	}
	if err := syncDirectory(filepath.Dir(path)); err != nil {
		return nil, err
	}
	return file, nil
}

// replaceFile writes a file so that a crash leaves either the old content or the
// new, never a mixture; when it returns, the new one is durable.
func replaceFile(path string, data []byte) error {
	temporary := path + ".tmp"
	file, err := os.OpenFile(temporary, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = file.Write(data)
	if err == nil {
		err = file.Sync()
	}
	if err = errors.Join(err, file.Close()); err != nil {
		os.Remove(temporary) // the space may be needed; the old content stands
		return err
	}
	if err := os.Rename(temporary, path); err != nil {
		return err
	}
	return syncDirectory(filepath.Dir(path))
}

func syncDirectory(path string) error {
	directory, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(directory.Sync(), directory.Close())
}

// makeDirectory makes a directory that is still there after a power cut.
func makeDirectory(path string) error {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return fmt.Errorf("making the spool: %w", err)
	}
	return syncDirectory(filepath.Dir(path))
}

// full tells a lack of space, which passes, from a failing disk, which does not.
func full(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}
