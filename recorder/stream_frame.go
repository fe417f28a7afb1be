package recorder

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	vectors "github.com/segmentio/asm/base64"
)

// A piece of a stream has two forms. In the spool it is binary, little endian:
//
//	8 microseconds since 1970, 4 connection, 2 port, 1 channel, 1 end, data
//
// In a chunk it is a line of JSON that any tool reads, in exactly this order and
// without what is zero, but for t, ch and b64:
//
//	{"t":1795451234567890,"ch":1,"conn":1,"port":8080,"end":true,"b64":"aGVsbG8K"}
const pieceHeader = 16

// maxLine bounds a line, with its newline.
const maxLine = (MaxFrame+2)/3*4 + 128

// appendPiece writes a frame as the spool keeps it.
func appendPiece(to []byte, f *Frame, micros int64) []byte {
	to = slices.Grow(to, pieceHeader+len(f.Data))
	to = binary.LittleEndian.AppendUint64(to, uint64(micros))
	to = binary.LittleEndian.AppendUint32(to, f.Connection)
	to = binary.LittleEndian.AppendUint16(to, f.Port)
	end := byte(0)
	if f.End {
		end = 1
	}
	return append(append(to, byte(f.Channel), end), f.Data...)
}

// parsePiece is the inverse of appendPiece. The data aliases piece.
func parsePiece(piece []byte) (Frame, error) {
	if len(piece) < pieceHeader || piece[14] >= channels || piece[15] > 1 {
		return Frame{}, errors.New("not a piece of a stream")
	}
	return Frame{
		Time:       time.UnixMicro(int64(binary.LittleEndian.Uint64(piece))),
		Connection: binary.LittleEndian.Uint32(piece[8:]),
		Port:       binary.LittleEndian.Uint16(piece[12:]),
		Channel:    Channel(piece[14]),
		End:        piece[15] == 1,
		Data:       piece[pieceHeader:],
	}, nil
}

// take takes a piece out of the totals again.
func (t *totals) take(piece []byte) {
	t.frames--
	t.bytes[piece[14]] -= uint64(len(piece) - pieceHeader)
}

// appendLine writes a frame as a line of a chunk.
func appendLine(to []byte, f *Frame) []byte {
	to = append(to, `{"t":`...)
	to = strconv.AppendInt(to, f.Time.UnixMicro(), 10)
	to = append(to, `,"ch":`...)
	to = strconv.AppendUint(to, uint64(f.Channel), 10)
	if f.Connection != 0 {
		to = append(to, `,"conn":`...)
		to = strconv.AppendUint(to, uint64(f.Connection), 10)
	}
	if f.Port != 0 {
		to = append(to, `,"port":`...)
		to = strconv.AppendUint(to, uint64(f.Port), 10)
	}
	if f.End {
		to = append(to, `,"end":true`...)
	}
	to = append(to, `,"b64":"`...)
	to = appendBase64(to, f.Data)
	return append(to, "\"}\n"...)
}

// lineReader reads the lines of chunks, one at a time, into memory of its own.
type lineReader struct {
	data, again []byte
}

// read reads a line without its newline. It accepts exactly what appendLine writes.
// The frame's data is valid until the next call.
func (r *lineReader) read(line []byte) (Frame, error) {
	var f Frame
	rest := line
	micros, ok := number(&rest, `{"t":`, 64, true)
	f.Time = time.UnixMicro(micros)
	channel, found := number(&rest, `,"ch":`, 8, ok)
	f.Channel = Channel(channel)
	connection, _ := number(&rest, `,"conn":`, 32, found)
	port, _ := number(&rest, `,"port":`, 16, found)
	f.Connection, f.Port = uint32(connection), uint16(port)
	rest, f.End = bytes.CutPrefix(rest, []byte(`,"end":true`))
	rest, begins := bytes.CutPrefix(rest, []byte(`,"b64":"`))
	rest, ends := bytes.CutSuffix(rest, []byte(`"}`))
	if !found || !begins || !ends || f.Channel >= channels || len(rest) > maxLine {
		return f, fmt.Errorf("%w: not a frame of a stream", ErrNotCanonical)
	}
	var err error
	if r.data, err = base64.StdEncoding.AppendDecode(r.data[:0], rest); err != nil {
		return f, fmt.Errorf("%w: %w", ErrNotCanonical, err)
	}
	f.Data = r.data
	r.again = appendLine(r.again[:0], &f)
	if !bytes.Equal(r.again[:len(r.again)-1], line) || len(f.Data) > MaxFrame {
		return f, fmt.Errorf("%w: a frame reads differently from how it is written", ErrNotCanonical)
	}
	return f, nil
}

// appendBase64 is base64.StdEncoding.AppendEncode, and takes a tenth of its time
// where the processor has vectors. All that is printed goes through it.
func appendBase64(to, data []byte) []byte {
	begin, size := len(to), base64.StdEncoding.EncodedLen(len(data))
	to = slices.Grow(to, size)[:begin+size]
	vectors.StdEncoding.Encode(to[begin:], data)
	return to
}

// number reads a label and the number behind it, and cuts both off. It is false,
// and nothing is cut off, if they are not there or were not asked for.
func number(rest *[]byte, label string, bits int, asked bool) (int64, bool) {
	behind, found := bytes.CutPrefix(*rest, []byte(label))
	if !found || !asked {
		return 0, false
	}
	digits := 0
	for digits < len(behind) && (behind[digits] == '-' || behind[digits] >= '0' && behind[digits] <= '9') {
		digits++
	}
	value, err := strconv.ParseInt(string(behind[:min(digits, 21)]), 10, min(bits+1, 64))
	if err != nil {
		return 0, false
	}
	*rest = behind[digits:]
	return value, true
}
