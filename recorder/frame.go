package recorder

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// A spool file is a header, then frames, then zeros up to the size it was made
// with. All numbers are little endian.
//
//	header  16 magic, 8 number of the file, 8 salt, 4 CRC32C of what precedes, 28 zero
//	frame   4 length of the payload, 4 CRC32C, 4 start of the batch, 1 kind,
//	        1 length of the audit ID, 2 zero, 8 sequence number,
//	        payload (audit ID, record, newline), zeros up to a multiple of 8
//
// A piece of a stream is a frame too. It has no number of its own but carries that
// of the record before it, and its payload is the audit ID and the piece in the
// form of appendPiece.
//
// The CRC of a frame covers everything behind it and begins with the header's,
// which is random because of the salt: bytes left over from another file never
// verify. The start of the batch is the offset at which the write that brought
// the frame began. A batch is written only after the one before it was synced,
// so a frame of a later batch proves that everything before that batch was
// durable once: this is how a torn tail and damage are told apart.
const (
	fileMagic   = "taskgate spool 1"
	fileHeader  = 64
	frameHeader = 24
	maxAuditID  = 255
	// maxRecord bounds one encoded record: a 3 MiB request, escaped, and what is
	// around it.
	maxRecord = 8 << 20
)

// ErrDamaged says that the spool holds acknowledged records that cannot be read
// back. No record is dropped silently for it.
var ErrDamaged = errors.New("the spool is damaged")

type frameKind byte

const (
	kindNote    frameKind = iota + 1 // neither opens nor closes anything
	kindIntent                       // opens its audit ID
	kindOutcome                      // closes it
	kindChunk                        // a note that names a chunk of a stream
	kindPiece                        // no record: a piece of a stream
)

func kindOf(stage Stage) frameKind {
	switch stage {
	case StageRequestReceived:
		return kindIntent
	case StageResponseComplete:
		return kindOutcome
	default:
		return kindNote
	}
}

type frame struct {
	kind  frameKind
	seq   uint64
	batch int64
	id    []byte
	line  []byte // with its newline; of a piece its own form
}

func frameSize(id string, line []byte) int64 {
	return (int64(frameHeader+len(id)+len(line)) + 7) &^ 7
}

// frameLength is how many bytes a frame takes, by its header.
func frameLength(header []byte) int64 {
	return (frameHeader + int64(binary.LittleEndian.Uint32(header)) + 7) &^ 7
}

// newHeader makes the header of a file and the seed of its checksums.
func newHeader(number uint64) ([]byte, uint32) {
	header := make([]byte, fileHeader)
	copy(header, fileMagic)
	binary.LittleEndian.PutUint64(header[16:], number)
	_, _ = rand.Read(header[24:32]) // crypto/rand does not fail
	seed := crc32.Checksum(header[:32], crc32.MakeTable(crc32.Castagnoli))
	binary.LittleEndian.PutUint32(header[32:], seed)
	return header, seed
}

// parseHeader returns the seed of the checksums, and whether the header is whole
// and belongs to the file with this number.
func parseHeader(data []byte, number uint64) (seed uint32, ok bool) {
	if len(data) < fileHeader || string(data[:16]) != fileMagic || binary.LittleEndian.Uint64(data[16:]) != number {
		return 0, false
	}
	seed = crc32.Checksum(data[:32], crc32.MakeTable(crc32.Castagnoli))
	return seed, binary.LittleEndian.Uint32(data[32:]) == seed && allZero(data[36:fileHeader])
}

// appendFrame adds one frame to a batch that will be written at offset batch.
func appendFrame(to []byte, seed uint32, batch int64, kind frameKind, seq uint64, id string, line []byte) []byte {
	start := len(to)
	to = append(to, make([]byte, frameHeader)...)
	to = append(to, id...)
	to = append(to, line...)
	header := to[start : start+frameHeader]
	binary.LittleEndian.PutUint32(header, uint32(len(id)+len(line)))
	binary.LittleEndian.PutUint32(header[8:], uint32(batch))
	header[12], header[13] = byte(kind), byte(len(id))
	binary.LittleEndian.PutUint64(header[16:], seq)
	sum := crc32.Update(seed, crc32.MakeTable(crc32.Castagnoli), header[:4])
	sum = crc32.Update(sum, crc32.MakeTable(crc32.Castagnoli), to[start+8:])
	binary.LittleEndian.PutUint32(header[4:], sum)
	for (len(to)-start)%8 != 0 {
		to = append(to, 0)
	}
	return to
}

// parseFrame reads the frame at the beginning of data, which lies at offset in
// its file, and returns how many bytes it takes. Its slices alias data.
func parseFrame(data []byte, offset int64, seed uint32) (frame, int64, bool) {
	if len(data) < frameHeader {
		return frame{}, 0, false
	}
	length := int64(binary.LittleEndian.Uint32(data))
	f := frame{
		kind:  frameKind(data[12]),
		batch: int64(binary.LittleEndian.Uint32(data[8:])),
		seq:   binary.LittleEndian.Uint64(data[16:]),
	}
	idLength := int64(data[13])
	if length <= idLength || length > int64(len(data)-frameHeader) || length > maxRecord+maxAuditID ||
		f.kind < kindNote || f.kind > kindPiece || f.batch > offset || data[14] != 0 || data[15] != 0 {
		return frame{}, 0, false
	}
	sum := crc32.Update(seed, crc32.MakeTable(crc32.Castagnoli), data[:4])
	sum = crc32.Update(sum, crc32.MakeTable(crc32.Castagnoli), data[8:frameHeader+length])
	if sum != binary.LittleEndian.Uint32(data[4:]) {
		return frame{}, 0, false
	}
	f.id = data[frameHeader : frameHeader+idLength]
	f.line = data[frameHeader+idLength : frameHeader+length]
	return f, min((frameHeader+length+7)&^7, int64(len(data))), true
}

// scanFrames calls visit for each frame in data, which begins at offset in its
// file, and returns the offset behind the last good one. It is the only reader
// of the spool: the sealer and recovery both go through it.
func scanFrames(data []byte, offset int64, seed uint32, visit func(frame, int64) error) (int64, error) {
	for {
		f, size, ok := parseFrame(data, offset, seed)
		if !ok {
			return offset, nil
		}
		if err := visit(f, offset+size); err != nil {
			return offset, err
		}
		data, offset = data[size:], offset+size
	}
}

// scanFile reads a whole spool file. torn says that bytes nobody was ever told
// to be durable follow the good frames. ErrDamaged means that durable ones are
// unreadable.
func scanFile(data []byte, number uint64, visit func(frame, int64) error) (end int64, torn bool, err error) {
	seed, ok := parseHeader(data, number)
	if !ok {
		// The header is synced before a file is used, so without one nothing was
		// ever acknowledged, unless it was damaged later.
		if len(data) > fileHeader && !allZero(data[fileHeader:]) {
			return 0, false, fmt.Errorf("%w: the header is unreadable", ErrDamaged)
		}
		return 0, false, nil
	}
	end, err = scanFrames(data[fileHeader:], fileHeader, seed, visit)
	if err != nil {
		return end, false, err
	}
	for at := end; at < int64(len(data)); at += 8 {
		if later, _, ok := parseFrame(data[at:], at, seed); ok && later.batch > end {
			return end, false, fmt.Errorf("%w: at offset %d, before record %d", ErrDamaged, end, later.seq)
		}
	}
	return end, !allZero(data[end:]), nil
}

func allZero(data []byte) bool {
	for _, b := range data {
		if b != 0 {
			return false
		}
	}
	return true
}
