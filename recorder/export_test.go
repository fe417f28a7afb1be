package recorder

import (
	"bytes"
	"crypto/sha256"
	"io"
	"os"
	"runtime"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// Encoder returns a function that encodes an event into a buffer it keeps, and
// returns how many bytes that took.
func Encoder() func(*Event) int {
	var buffer []byte
	return func(event *Event) int {
		var err error
		if buffer, _, err = event.encode(buffer[:0], time.Time{}, false); err != nil {
			panic(err)
		}
		return len(buffer)
	}
}

// EncodeNumbered encodes an event as the spool does, with a number.
func EncodeNumbered(event *Event, seq uint64) ([]byte, error) {
	line, digits, err := event.encode(nil, time.Time{}, false)
	if err != nil {
		return nil, err
	}
	stampSeq(line[digits:], seq)
	return bytes.TrimSuffix(line, []byte("\n")), nil
}

// Functions under test that nobody else needs.
var (
	DecodeEvent  = decodeEvent
	NewHeader    = newHeader
	AppendFrame  = appendFrame
	NewStream    = newStream
	SegmentKey   = segmentKey
	ManifestKey  = manifestKey
	FileHeader   = fileHeader
	KindOutcome  = kindOutcome
	ErrorOfStore = storeError
	HashOf       = hashOf
)

// Sign makes the stored bytes of a manifest.
func Sign(m *Manifest, svid *x509svid.SVID) ([]byte, error) { return m.sign(svid) }

// ManifestFormat is the format manifests name.
const ManifestFormat = manifestFormat

// ParseManifest returns the manifest in stored bytes, whoever signed it.
func ParseManifest(data []byte) (*Manifest, error) {
	m, err := parseManifest(data)
	if err != nil {
		return nil, err
	}
	return &m.Manifest, m.checkSignature()
}

// ScanFile reads a spool file and returns the numbers in it.
func ScanFile(data []byte, number uint64) (seqs []uint64, end int64, torn bool, err error) {
	end, torn, err = scanFile(data, number, func(f frame, _ int64) error {
		seqs = append(seqs, f.seq)
		return nil
	})
	return seqs, end, torn, err
}

// CheckSegment reads a segment as Verify does.
func CheckSegment(content io.Reader, m *Manifest) (reason Reason, err error) {
	reader, err := newSegmentReader()
	if err != nil {
		return "", err
	}
	defer reader.decoder.Close()
	_, bad, err := reader.check(content, m)
	if bad != nil {
		reason = bad.reason
	}
	return reason, err
}

// DiskHooks stand in front of the disk; a nil one changes nothing.
type DiskHooks struct {
	Prepare func(path string) error
	Write   func() error
	Sync    func() error
	Replace func(path string, done bool) error // before and after
}

// HookDisk puts hooks in front of the disk of a configuration.
func HookDisk(config *Config, hooks DiskHooks) {
	real := realDisk()
	config.disk = disk{
		prepare: func(path string, header []byte, size int64) (*os.File, error) {
			if hooks.Prepare != nil {
				if err := hooks.Prepare(path); err != nil {
					return nil, err
				}
			}
			return real.prepare(path, header, size)
		},
		write: func(file *os.File, data []byte, offset int64) error {
			if hooks.Write != nil {
				if err := hooks.Write(); err != nil {
					return err
				}
			}
			return real.write(file, data, offset)
		},
		sync: func(file *os.File) error {
			if hooks.Sync != nil {
				if err := hooks.Sync(); err != nil {
					return err
				}
			}
			return real.sync(file)
		},
		replace: func(path string, data []byte) error {
			if hooks.Replace == nil {
				return real.replace(path, data)
			}
			if err := hooks.Replace(path, false); err != nil {
				return err
			}
			if err := real.replace(path, data); err != nil {
				return err
			}
			return hooks.Replace(path, true)
		},
	}
}

// HeapInUse is how many bytes of the heap are in use.
func HeapInUse() int64 {
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return int64(stats.HeapInuse)
}

// Forms of a frame.
var (
	AppendLine  = appendLine
	AppendPiece = appendPiece
	ParsePiece  = parsePiece
)

// ReadLine reads one line of a chunk.
func ReadLine(line []byte) (Frame, error) { return new(lineReader).read(line) }

// CheckChunk reads a chunk as Verify does, one whose record is right about its hash.
func CheckChunk(content []byte, frames, bytesOfData uint64) (reason Reason, err error) {
	reader, err := newSegmentReader()
	if err != nil {
		return "", err
	}
	defer reader.decoder.Close()
	_, bad, err := reader.checkChunk(bytes.NewReader(content), &chunkFact{sha256: sha256.Sum256(content), frames: frames, bytes: bytesOfData})
	if bad != nil {
		reason = bad.reason
	}
	return reason, err
}
