package recorder

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

const spoolSuffix = ".spool"

// spareRetry is how often the maker tries again after it failed.
const spareRetry = 500 * time.Millisecond

// makeFiles keeps one empty file ahead of the writer. Lack of space and the
// spool's own limit show here, and nowhere else.
func (s *spool) makeFiles() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for number := s.lastNumberLocked() + 1; ; {
		for s.spare != nil && !s.ending {
			s.supply.Wait()
		}
		if s.ending {
			return
		}
		file, err := s.makeFileLocked(number)
		if err == nil {
			s.spare, s.spareErr = file, nil
			s.bytes += file.size
			number++
			s.supply.Broadcast()
			continue
		}
		s.spareErr = err
		s.supply.Broadcast()
		s.mu.Unlock()
		select {
		case <-s.retry: // something was trimmed, or the end
		case <-time.After(spareRetry):
		}
		s.mu.Lock()
	}
}

// makeFileLocked lets the lock go while it works on the disk.
func (s *spool) makeFileLocked(number uint64) (*spoolFile, error) {
	if s.bytes+s.config.fileSize > s.config.limit {
		return nil, fmt.Errorf("%w: the spool in %s takes %d bytes and may take %d; see to the bucket, or raise the limit",
			ErrUnavailable, s.directory, s.bytes, s.config.limit)
	}
	s.mu.Unlock()
	defer s.mu.Lock()
	header, seed := newHeader(number)
	path := filepath.Join(s.directory, fmt.Sprintf("%08d%s", number, spoolSuffix))
	file, err := s.config.disk.prepare(path, header, s.config.fileSize)
	if err != nil {
		return nil, fmt.Errorf("%w: no room for %d bytes in %s: %w; free some space", ErrUnavailable, s.config.fileSize, s.directory, err)
	}
	return &spoolFile{number: number, path: path, size: s.config.fileSize, seed: seed, file: file, end: fileHeader}, nil
}

func (s *spool) lastNumberLocked() uint64 {
	if n := len(s.files); n > 0 {
		return s.files[n-1].number
	}
	return 0
}

// position is a place between two frames. The zero position is before all.
type position struct {
	Number uint64 // of the file
	Offset int64
}

func (p position) before(other position) bool {
	return p.Number < other.Number || p.Number == other.Number && p.Offset < other.Offset
}

// extent is a run of durable frames in one file.
type extent struct {
	path     string
	number   uint64
	seed     uint32
	from, to int64
}

// after returns the durable frames that follow a position, as far as they are in
// one file; false if there are none.
func (s *spool) after(p position) (extent, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.afterLocked(p)
}

func (s *spool) afterLocked(p position) (extent, bool) {
	for _, file := range s.files {
		from := int64(fileHeader)
		if file.number == p.Number {
			from = p.Offset
		}
		if file.number >= p.Number && from < file.end {
			return extent{path: file.path, number: file.number, seed: file.seed, from: from, to: file.end}, true
		}
	}
	return extent{}, false
}

// read returns the bytes of an extent in buffer, or in a new one if it is too
// small: at most limit unless the first frame alone is longer; scanFrames stops at
// a frame that was cut off.
func (e extent) read(limit int64, buffer []byte) ([]byte, error) {
	file, err := os.Open(e.path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	data := slices.Grow(buffer[:0], frameHeader)[:frameHeader]
	if _, err := file.ReadAt(data, e.from); err != nil {
		return nil, err
	}
	size := int(min(e.to-e.from, max(limit, frameLength(data))))
	data = slices.Grow(data[:0], size)[:size]
	if _, err := file.ReadAt(data, e.from); err != nil {
		return nil, err
	}
	return data, nil
}

// durableSeq is the number of the last record on disk.
func (s *spool) durableSeq() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.durable
}

// durableEnd is where the frames on disk end.
func (s *spool) durableEnd() position {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.files); n > 0 {
		return position{s.files[n-1].number, s.files[n-1].end}
	}
	return position{}
}

// usage is the bytes the spool takes and since when its oldest unsealed record
// has been durable, the zero time if all are sealed.
func (s *spool) usage() (bytes int64, oldest time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.marks) > 0 {
		oldest = s.marks[0].at
	}
	return s.bytes, oldest
}

// sealedTo notes that what lies before a position is in the bucket; bytes of it
// were not before.
func (s *spool) sealedTo(p position, bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unsealed = max(0, s.unsealed-bytes)
	for len(s.marks) > 1 && !p.before(s.marks[1].position) {
		s.marks = s.marks[1:]
	}
	if _, more := s.afterLocked(p); !more {
		s.marks = nil
	}
	s.wakeLocked()
}

// before returns the files with a lower number, oldest first.
func (s *spool) before(number uint64) []*spoolFile {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(s.files), func(f *spoolFile) bool { return f.number >= number })
}

// drop deletes a file whose records are all sealed.
func (s *spool) drop(file *spoolFile) error {
	if err := os.Remove(file.path); err != nil {
		return err
	}
	s.mu.Lock()
	s.files = slices.DeleteFunc(s.files, func(f *spoolFile) bool { return f == file })
	s.bytes -= file.size
	s.mu.Unlock()
	notify(s.retry)
	return nil
}

// load reads the files an earlier process left, drops a torn tail, and sets the
// next number. It runs before any goroutine, and changes nothing on disk unless
// all is well.
func (s *spool) load(sealed uint64) error {
	numbers, err := spoolNumbers(s.directory)
	if err != nil {
		return err
	}
	found := survey{sealed: sealed}
	for _, number := range numbers {
		path := filepath.Join(s.directory, fmt.Sprintf("%08d%s", number, spoolSuffix))
		if err := found.add(path, number); err != nil {
			return damage(s.directory, path, err)
		}
	}
	if found.next != 0 && found.next <= sealed {
		return damage(s.directory, s.directory, fmt.Errorf("%w: it ends with record %d and the bucket holds record %d", ErrDamaged, found.next-1, sealed))
	}
	s.durable = max(sealed, found.next-min(found.next, 1))
	s.next, s.unsealed = s.durable+1, found.unsealed
	for _, file := range found.files {
		if err := s.adopt(file); err != nil {
			return fmt.Errorf("cutting %s behind its last record: %w", file.path, err)
		}
	}
	if len(s.files) > 0 && (s.durable > sealed || found.pieces) {
		s.marks = []mark{{first: sealed + 1, at: s.config.now()}}
	}
	return syncDirectory(s.directory)
}

// survey is what recovery learns from the files in their order.
type survey struct {
	sealed   uint64
	next     uint64 // number of the record to come, 0: none was seen
	unsealed int64  // bytes of frames after record sealed
	pieces   bool   // there are pieces of streams
	files    []*spoolFile
	torn     string // the file that ends in a torn tail; nothing may follow
}

func (v *survey) add(path string, number uint64) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	file := &spoolFile{number: number, path: path}
	file.seed, _ = parseHeader(data, number)
	end, torn, err := scanFile(data, number, func(f frame, _ int64) error {
		next := f.seq // the number that would be next here
		if f.kind == kindPiece {
			next++
			v.pieces = true
		}
		switch {
		case next < v.next, next > max(v.next, v.sealed+1):
			// A gap among sealed records only means that of several files to trim
			// the deletion of a later one survived a power cut.
			return fmt.Errorf("%w: record %d is missing", ErrDamaged, max(v.next, v.sealed+1))
		case v.torn != "":
			return fmt.Errorf("%w: %s ends in the middle and record %d follows", ErrDamaged, v.torn, f.seq)
		case f.kind == kindPiece || f.seq > v.sealed:
			v.unsealed += frameSize(string(f.id), f.line)
		}
		v.next = f.seq + 1
		return nil
	})
	if torn {
		v.torn = path
	}
	file.end, file.size = end, end
	v.files = append(v.files, file)
	return err
}

// adopt takes over one file of an earlier process. The file is cut behind its
// last good frame, durably, before anything is written behind it: otherwise the
// next recovery would find a torn tail in the middle and call it damage.
func (s *spool) adopt(file *spoolFile) error {
	if file.end <= fileHeader { // made ahead and never used, or its only batch was torn
		return os.Remove(file.path)
	}
	opened, err := os.OpenFile(file.path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	if err := errors.Join(opened.Truncate(file.end), opened.Sync(), opened.Close()); err != nil {
		return err
	}
	s.files = append(s.files, file)
	s.bytes += file.size
	return nil
}

func damage(directory, path string, err error) error {
	return fmt.Errorf("reading %s: %w; nothing was changed. Copy %s away and look at the disk: the bucket proves what was sealed, the copy holds the rest. "+
		"To start without it, move it out of the spool", path, err, directory)
}

func spoolNumbers(directory string) ([]uint64, error) {
	entries, err := os.ReadDir(directory)
	if err != nil {
		return nil, fmt.Errorf("reading the spool: %w", err)
	}
	var numbers []uint64
	for _, entry := range entries {
		if name, found := strings.CutSuffix(entry.Name(), spoolSuffix); found {
			number, err := strconv.ParseUint(name, 10, 64)
			if err != nil {
				return nil, fmt.Errorf("the spool holds %s, which is not a file of ours; move it away", filepath.Join(directory, entry.Name()))
			}
			numbers = append(numbers, number)
		}
	}
	slices.Sort(numbers)
	return numbers, nil
}
