package recorder

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
)

// ErrUnavailable says that nothing can be recorded at the moment, and so nothing
// may be done. It passes by itself when the cause does.
var ErrUnavailable = errors.New("the recorder is unavailable")

// errEnding says that the spool was closed before the record was written.
var errEnding = fmt.Errorf("%w: it is closing", ErrUnavailable)

// spoolConfig is the part of Config that the spool of one stream needs.
type spoolConfig struct {
	fileSize int64
	limit    int64         // bytes on disk, all files
	ageLimit time.Duration // of the oldest unsealed record
	segment  int64         // unsealed bytes at which the sealer is woken
	now      func() time.Time
	disk     disk
	fate     *fate
}

// spool keeps the records of one stream on disk until they are sealed.
// Three goroutines share it: whoever appends, the writer, and the maker of files.
type spool struct {
	directory string
	config    spoolConfig
	encoded   sync.Pool     // of *record
	grown     chan struct{} // tells the sealer that a segment is full
	retry     chan struct{} // tells the maker that there may be space again
	wait      sync.WaitGroup

	// scratch belongs to the writer.
	scratch []byte

	// mu guards what follows. It is never held during encoding, checksums or
	// input and output, so a large record does not stall the others.
	mu     sync.Mutex
	work   *sync.Cond // the writer waits for a batch that is due
	linger *time.Timer
	supply *sync.Cond // the writer waits for a file, the maker for its use

	next    uint64   // number of the next record
	queue   []*batch // not yet taken by the writer; the last one is being filled
	due     bool     // the writer has to take all of queue now
	lazy    bool     // … and will have to soon: linger runs
	tail    *batch   // the newest batch, taken or not
	closed  bool     // append refuses; only last may add records
	ending  bool     // both goroutines end
	starved bool     // the writer found no room, and gave the numbers of its batches back

	files    []*spoolFile // oldest first; the last is the one written to
	spare    *spoolFile   // made ahead
	spareErr error        // why there is none
	bytes    int64        // all files on disk

	durable  uint64 // number of the last record that was synced
	unsealed int64  // bytes of frames not yet sealed
	marks    []mark // when unsealed frames became durable; oldest first

	streams map[string]*Stream // begun, and without a closing record
	pieces  int64              // bytes of pieces of streams in queue or being written
	room    chan struct{}      // closed when a stream may go on; nil if none waits
}

type spoolFile struct {
	number uint64
	path   string
	size   int64
	seed   uint32
	file   *os.File // nil if an earlier process wrote it
	end    int64    // durable frames end here
}

// mark says that the frames from a position on became durable at or after at.
// first is the number of the first of them.
type mark struct {
	position
	first uint64
	at    time.Time
}

// record is one encoded event, or one encoded piece of a stream.
type record struct {
	buffer []byte
	digits int // where its number is
	kind   frameKind
	id     string
	seq    uint64
	stream *Stream // of a piece
}

// openSpool reads what an earlier process left in directory and starts the
// writer. sealed is the last record the bucket is known to hold.
func openSpool(directory string, config spoolConfig, sealed uint64) (*spool, error) {
	s := &spool{
		directory: directory, config: config,
		grown: make(chan struct{}, 1), retry: make(chan struct{}, 1),
		streams: map[string]*Stream{},
	}
	s.encoded.New = func() any { return new(record) }
	s.work, s.supply = sync.NewCond(&s.mu), sync.NewCond(&s.mu)
	s.linger = time.AfterFunc(lingerTime, s.lingered)
	if err := s.load(sealed); err != nil {
		return nil, err
	}
	s.wait.Go(s.makeFiles)
	s.wait.Go(s.write)
	return s, nil
}

// append encodes an event and queues it for the writer.
func (s *spool) append(event *Event) (Receipt, error) {
	return s.enqueue(event, kindOf(event.Stage), false)
}

// last is append for the records the sealer makes from recorded ones; it works
// after stop.
func (s *spool) last(event *Event, kind frameKind) (Receipt, error) {
	return s.enqueue(event, kind, true)
}

func (s *spool) enqueue(event *Event, kind frameKind, closing bool) (Receipt, error) {
	now := s.config.now()
	encoded := s.encoded.Get().(*record)
	var err error
	encoded.buffer, encoded.digits, err = event.encode(encoded.buffer, now, closing)
	size := frameSize(event.AuditID, encoded.buffer)
	if limit := min(maxRecord, s.config.fileSize-fileHeader); err == nil && size > limit {
		err = fmt.Errorf("%w: it takes %d bytes and at most %d are possible", ErrInvalid, size, limit)
	}
	if err != nil {
		s.recycle(encoded)
		return Receipt{}, err
	}
	encoded.kind, encoded.id = kind, event.AuditID

	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.admitLocked(now, closing, kind == kindOutcome || kind == kindChunk); err != nil {
		s.recycle(encoded)
		return Receipt{}, err
	}
	encoded.seq = s.next
	s.next++
	stampSeq(encoded.buffer[encoded.digits:], encoded.seq)
	if kind == kindOutcome {
		s.endLocked(event.AuditID)
	}
	return Receipt{seq: encoded.seq, batch: s.queueLocked(encoded, size)}, nil
}

// queueLocked puts what has its number into the batch that is being filled.
func (s *spool) queueLocked(encoded *record, size int64) *batch {
	b := s.batchLocked(size)
	b.records = append(b.records, encoded)
	b.size += size
	s.scheduleLocked(encoded.kind)
	return b
}

// unavailable returns why append would refuse now, nil if it would not.
func (s *spool) unavailable() error {
	now := s.config.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.admitLocked(now, false, false)
}

// admitLocked decides whether a record may get a number. What ends a call, or
// names what the bucket has already taken, may wait longer for the bucket than
// what begins a call: it is owed.
func (s *spool) admitLocked(now time.Time, closing, owed bool) error {
	if err := s.config.fate.err(); err != nil {
		return err
	}
	if s.ending || s.closed && !closing {
		return errEnding
	}
	if s.starved {
		if s.spare == nil {
			return s.spareErr
		}
		s.starved = false
	}
	if !owed && len(s.marks) > 0 && now.Sub(s.marks[0].at) > s.config.ageLimit {
		return fmt.Errorf("%w: record %d waits for the bucket since %s, longer than the limit of %s; see to the bucket, nothing is lost",
			ErrUnavailable, s.marks[0].first, s.marks[0].at.UTC().Format(time.RFC3339), s.config.ageLimit)
	}
	return nil
}

// batchLocked returns the batch that is being filled, a new one if size bytes
// more would make it too large for one write.
func (s *spool) batchLocked(size int64) *batch {
	limit := min(4<<20, s.config.fileSize-fileHeader)
	if n := len(s.queue); n > 0 && s.queue[n-1].size+size <= limit {
		return s.queue[n-1]
	}
	s.tail = &batch{spool: s, done: make(chan struct{})}
	s.queue = append(s.queue, s.tail)
	return s.tail
}

// write is the writer: it takes what has gathered since the last sync. Nothing
// that somebody waits for is held back to gather more.
func (s *spool) write() {
	for b := s.take(); b != nil; b = s.take() {
		file, err := s.fileFor(b)
		if err != nil {
			s.refuse(b, err)
			continue
		}
		data := s.assemble(file, b)
		err = s.config.disk.write(file.file, data, file.end)
		if err == nil {
			err = s.config.disk.sync(file.file)
		}
		if err != nil {
			// What a failed write or sync left on disk cannot be known, and asking
			// again may answer that all is well. Only a new process can recover.
			s.fail(b, s.config.fate.die(fmt.Errorf("writing the spool file %s: %w", file.path, err)))
			continue
		}
		s.publish(file, b)
	}
}

func (s *spool) take() *batch {
	s.mu.Lock()
	defer s.mu.Unlock()
	for !s.due && !s.ending {
		s.work.Wait()
	}
	if len(s.queue) == 0 {
		return nil
	}
	b := s.queue[0]
	s.queue = s.queue[1:]
	s.due = len(s.queue) > 0
	return b
}

// fileFor returns the file that has room for the batch, or why there is none.
func (s *spool) fileFor(b *batch) (*spoolFile, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.config.fate.err(); err != nil {
		return nil, err
	}
	if n := len(s.files); n > 0 && s.files[n-1].file != nil {
		if s.files[n-1].end+b.size <= s.files[n-1].size {
			return s.files[n-1], nil
		}
	}
	for s.spare == nil && s.spareErr == nil && !s.ending {
		s.supply.Wait()
	}
	switch {
	case s.spare == nil && s.spareErr != nil:
		return nil, s.spareErr
	case s.spare == nil:
		return nil, errEnding
	}
	if n := len(s.files); n > 0 && s.files[n-1].file != nil {
		s.files[n-1].file.Close() // everything in it was synced
	}
	s.files = append(s.files, s.spare)
	file := s.spare
	s.spare = nil
	s.supply.Broadcast()
	return file, nil
}

// assemble turns a batch into the bytes of one write.
func (s *spool) assemble(file *spoolFile, b *batch) []byte {
	data := s.scratch[:0]
	for _, r := range b.records {
		data = appendFrame(data, file.seed, file.end, r.kind, r.seq, r.id, r.buffer)
	}
	s.scratch = data
	if cap(data) > 4<<20 {
		s.scratch = nil // a rare large one; do not keep it
	}
	return data
}

// publish makes a synced batch visible to the sealer and to those who wait.
func (s *spool) publish(file *spoolFile, b *batch) {
	now := s.config.now()
	first, last := b.records[0].seq, b.records[len(b.records)-1].seq
	s.mu.Lock()
	if n := len(s.marks); n == 0 || now.Sub(s.marks[n-1].at) > time.Second {
		s.marks = append(s.marks, mark{position: position{file.number, file.end}, first: first, at: now})
	}
	file.end += b.size
	s.durable = last
	s.unsealed += b.size
	full := s.unsealed >= s.config.segment
	s.settleLocked(b, true)
	s.mu.Unlock()
	close(b.done)
	if full {
		notify(s.grown)
	}
	for _, r := range b.records {
		s.recycle(r)
	}
	b.records = nil // a receipt may be kept for long
}

// refuse gives up every batch that is not on disk, for lack of room. Not a byte
// of them was written, so their numbers are given out again; and as they are the
// newest numbers, no gap arises.
func (s *spool) refuse(b *batch, err error) {
	s.mu.Lock()
	waiting := append([]*batch{b}, s.queue...)
	s.queue, s.due = nil, false
	s.next = s.durable + 1
	s.starved = true
	s.mu.Unlock()
	for _, b := range waiting {
		s.fail(b, err)
	}
}

func (s *spool) fail(b *batch, err error) {
	s.mu.Lock()
	s.settleLocked(b, false)
	s.mu.Unlock()
	b.err = err
	close(b.done)
}

// recycle keeps a record's buffer for another one, unless it is a large one.
func (s *spool) recycle(r *record) {
	if cap(r.buffer) > 64<<10 {
		return
	}
	r.buffer, r.stream = r.buffer[:0], nil
	s.encoded.Put(r)
}

// flush waits until all that was appended before is durable.
func (s *spool) flush(ctx context.Context) error {
	s.mu.Lock()
	newest := s.tail
	s.mu.Unlock()
	if newest == nil {
		return nil
	}
	err := Receipt{batch: newest}.Wait(ctx)
	if errors.Is(err, ErrUnavailable) {
		return nil // refused, and whoever appended was told so
	}
	return err
}

// stop makes append refuse from now on: what flush waits for next is all there
// will be, and no record can slip in behind the closing manifest.
func (s *spool) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
}

// close writes what is queued, ends both goroutines and closes the files.
func (s *spool) close() {
	s.mu.Lock()
	s.ending = true
	s.work.Broadcast()
	s.supply.Broadcast()
	s.mu.Unlock()
	s.linger.Stop()
	notify(s.retry)
	s.wait.Wait()
	for _, file := range append(s.files, s.spare) {
		if file != nil && file.file != nil {
			file.file.Close() // synced, or nobody was told
		}
	}
}

// notify wakes the one reader of a channel of capacity one.
func notify(channel chan struct{}) {
	select {
	case channel <- struct{}{}:
	default:
	}
}
