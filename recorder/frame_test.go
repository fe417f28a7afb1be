package recorder_test

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/taskgate/taskgate/recorder"
)

// spoolFile makes a file of batches of records, each batch as long as batches
// says, and returns it with the offset behind each record.
func spoolFile(number uint64, batches ...int) (data []byte, ends []int) {
	data, seed := recorder.NewHeader(number)
	seq := uint64(0)
	for _, records := range batches {
		start := int64(len(data))
		for range records {
			seq++
			data = recorder.AppendFrame(data, seed, start, recorder.KindOutcome, seq, "id", fmt.Appendf(nil, "{\"record\":%d}\n", seq))
			ends = append(ends, len(data))
		}
	}
	return data, ends
}

func zeros(data []byte, n int) []byte { return append(slices.Clone(data), make([]byte, n)...) }

// TestScanDropsOnlyATornTail cuts the file at every byte of the last batch, both
// short and with zeros in place of what is missing (T202).
func TestScanDropsOnlyATornTail(t *testing.T) {
	data, ends := spoolFile(1, 2, 1, 3)
	durable := ends[2] // the last batch was never acknowledged
	for cut := durable; cut <= len(data); cut++ {
		for _, file := range [][]byte{data[:cut], zeros(data[:cut], len(data)-cut+100)} {
			seqs, _, _, err := recorder.ScanFile(file, 1)
			if err != nil {
				t.Fatalf("cut at %d: %v", cut, err)
			}
			whole := 3
			for _, end := range ends[3:] {
				if cut >= end {
					whole++
				}
			}
			// Padding is not part of the record, so a record may be whole earlier.
			if len(seqs) < whole || len(seqs) > whole+1 {
				t.Fatalf("cut at %d: read %d records, want %d", cut, len(seqs), whole)
			}
		}
	}
}

// TestScanToleratesHolesInTheLastBatch: the disk may write the blocks of one
// write in any order before power is cut.
func TestScanToleratesHolesInTheLastBatch(t *testing.T) {
	data, ends := spoolFile(1, 2, 3)
	holed := zeros(data, 64)
	clear(holed[ends[1]:ends[2]])
	seqs, end, torn, err := recorder.ScanFile(holed, 1)
	if err != nil || len(seqs) != 2 || int(end) != ends[1] || !torn {
		t.Errorf("got %v, end %d, torn %v, %v", seqs, end, torn, err)
	}
}

// TestScanFindsDamage flips a bit in each byte of every batch but the last: what
// was acknowledged is missing, and that is not a torn tail.
func TestScanFindsDamage(t *testing.T) {
	data, ends := spoolFile(1, 2, 2, 2)
	for at := recorder.FileHeader; at < ends[3]; at++ {
		damaged := zeros(data, 64)
		damaged[at] ^= 0x10
		seqs, _, _, err := recorder.ScanFile(damaged, 1)
		if !errors.Is(err, recorder.ErrDamaged) && len(seqs) != 6 { // padding may change without harm
			t.Fatalf("bit at %d: read %v, %v, want ErrDamaged", at, seqs, err)
		}
	}
	for at := range 36 {
		damaged := slices.Clone(data)
		damaged[at] ^= 1
		if _, _, _, err := recorder.ScanFile(damaged, 1); !errors.Is(err, recorder.ErrDamaged) {
			t.Fatalf("bit at %d of the header: %v, want ErrDamaged", at, err)
		}
	}
}

// TestStaleBytesNeverVerify puts the frames of one file behind the header of
// another with the same number.
func TestStaleBytesNeverVerify(t *testing.T) {
	old, _ := spoolFile(1, 3)
	fresh, ends := spoolFile(1, 1)
	mixed := append(slices.Clone(fresh), old[ends[0]:]...)
	seqs, _, torn, err := recorder.ScanFile(mixed, 1)
	if err != nil || len(seqs) != 1 || !torn {
		t.Errorf("got %v, torn %v, %v", seqs, torn, err)
	}
}

func TestScanUnusedFile(t *testing.T) {
	header, _ := recorder.NewHeader(3)
	for name, data := range map[string][]byte{"no file": nil, "zeros": make([]byte, 4096), "half a header": header[:20], "header": zeros(header, 4096)} {
		seqs, _, torn, err := recorder.ScanFile(data, 3)
		if err != nil || torn || len(seqs) != 0 {
			t.Errorf("%s: got %v, torn %v, %v", name, seqs, torn, err)
		}
	}
	used, _ := spoolFile(3, 1)
	if _, _, _, err := recorder.ScanFile(used, 4); !errors.Is(err, recorder.ErrDamaged) {
		t.Errorf("a file under another number: %v, want ErrDamaged", err)
	}
}

// FuzzScanFile shows that no bytes make the reader panic, and that what it reads
// was written.
func FuzzScanFile(f *testing.F) {
	data, _ := spoolFile(1, 2, 1, 3)
	f.Add(data)
	f.Add(zeros(data, 100))
	f.Fuzz(func(t *testing.T, fuzzed []byte) {
		seqs, end, _, err := recorder.ScanFile(fuzzed, 1)
		if end > int64(len(fuzzed)) {
			t.Fatalf("end %d of %d bytes", end, len(fuzzed))
		}
		if err == nil && !bytes.HasPrefix(fuzzed, data[:16]) && len(seqs) > 0 {
			t.Fatalf("read %v without a header", seqs)
		}
	})
}
