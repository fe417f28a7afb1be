package stream

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// resizeEvery is the shortest time between two sizes that are recorded and passed
// on.
const resizeEvery = 50 * time.Millisecond

// maxSize bounds what is kept of a size that has not arrived whole, in bytes.
const maxSize = 1 << 10

// resize keeps the newest size of a terminal until it is time to pass it on. The
// zero value is ready.
type resize struct {
	begun   []byte // of a size that is not whole yet
	size    terminalSize
	pending bool
	passed  time.Time
	timer   *time.Timer
}

// terminalSize is what clients send (client-go, tools/remotecommand).
type terminalSize struct{ Width, Height uint16 }

// take reads sizes, wherever the client cut them.
func (r *resize) take(data []byte) error {
	r.begun = append(r.begun, data...)
	decoder := json.NewDecoder(bytes.NewReader(r.begun))
	read := int64(0)
	for {
		var size terminalSize
		err := decoder.Decode(&size)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("%w: a size of the terminal", ErrProtocol)
		}
		r.size, r.pending, read = size, true, decoder.InputOffset()
	}
	r.begun = append(r.begun[:0], r.begun[read:]...)
	if len(r.begun) > maxSize {
		return fmt.Errorf("%w: a size of the terminal that does not end", ErrProtocol)
	}
	if r.pending && r.timer == nil {
		r.timer = time.NewTimer(time.Until(r.passed.Add(resizeEvery)))
	}
	return nil
}

// due is ready when there is a size to pass on; nil if there is none.
func (r *resize) due() <-chan time.Time {
	if r.timer == nil {
		return nil
	}
	return r.timer.C
}

// newest returns the size to pass on, as clients write it, nil if there is none.
func (r *resize) newest() []byte {
	r.stop()
	if !r.pending {
		return nil
	}
	r.pending, r.passed = false, time.Now()
	return fmt.Appendf(nil, "{\"Width\":%d,\"Height\":%d}\n", r.size.Width, r.size.Height)
}

func (r *resize) stop() {
	if r.timer != nil {
		r.timer.Stop()
		r.timer = nil
	}
}
