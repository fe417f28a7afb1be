package recorder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"slices"
	"strings"
	"time"
)

// Folder is a Bucket over a copy of a bucket in a directory. A copy keeps
// neither locks nor versions nor the store's times, so these are not checked.
type Folder struct{ root *os.Root }

// OpenFolder opens the directory that holds v1. Nothing outside it is ever read,
// not even through a symbolic link.
func OpenFolder(directory string) (*Folder, error) {
	root, err := os.OpenRoot(directory)
	if err != nil {
		return nil, fmt.Errorf("opening the copy of a bucket: %w", err)
	}
	if _, err := root.Stat("v1"); err != nil {
		root.Close()
		return nil, fmt.Errorf("opening the copy of a bucket: there is no v1 in %s; name the directory the bucket was copied to", directory)
	}
	return &Folder{root: root}, nil
}

// Close releases the directory.
func (f *Folder) Close() error { return f.root.Close() }

// List implements Bucket.
func (f *Folder) List(_ context.Context, prefix string) iter.Seq2[Version, error] {
	return func(yield func(Version, error) bool) {
		directory, err := f.root.Open(strings.TrimSuffix(prefix, "/"))
		if errors.Is(err, fs.ErrNotExist) {
			return
		}
		if err != nil {
			yield(Version{}, err)
			return
		}
		entries, err := directory.ReadDir(-1)
		if err = errors.Join(err, directory.Close()); err != nil {
			yield(Version{}, err)
			return
		}
		slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
		for _, entry := range entries {
			version, err := describe(prefix, entry)
			if !yield(version, err) {
				return
			}
		}
	}
}

func describe(prefix string, entry fs.DirEntry) (Version, error) {
	if entry.IsDir() {
		return Version{Key: prefix + entry.Name() + "/"}, nil
	}
	info, err := entry.Info()
	if err != nil {
		return Version{}, err
	}
	if !info.Mode().IsRegular() {
		return Version{}, fmt.Errorf("%s%s is not a regular file", prefix, entry.Name())
	}
	return Version{Key: prefix + entry.Name(), Size: info.Size()}, nil
}

// Get implements Bucket.
func (f *Folder) Get(_ context.Context, key, _ string) (io.ReadCloser, error) {
	file, err := f.root.Open(key)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s", ErrNotFound, key)
	}
	return file, err
}

// Lock implements Bucket: a copy keeps no locks.
func (f *Folder) Lock(context.Context, string, string) (Lock, error) { return Lock{}, ErrNotKept }

// Time implements Bucket: a copy keeps no times.
func (f *Folder) Time(context.Context) (time.Time, error) { return time.Time{}, nil }
