package cli

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/taskgate/taskgate/internal/inert"
	"github.com/taskgate/taskgate/recorder"
)

// caster writes an asciicast v2 (docs.asciinema.org, manual/asciicast/v2): a header
// and then one event a line. Text there is UTF-8, so a character that two frames
// share goes whole with the later one, and what is no UTF-8 becomes U+FFFD: the
// chunks are the evidence, this is a way to look at it.
type caster struct {
	out      *bufio.Writer
	session  *session
	held     []recorder.Frame // before the size of the terminal is known
	begun    bool
	start    time.Time
	at       time.Duration
	unwhole  map[recorder.Channel][]byte
	newlines bool // \n alone goes down and not back
}

// maxHeld is how many frames without output may come before the first size.
const maxHeld = 100

func writeCast(out io.Writer, s *session, all frames) error {
	c := &caster{out: bufio.NewWriter(out), session: s, unwhole: map[recorder.Channel][]byte{}, newlines: !s.TTY}
	err := each(all, c.frame)
	return errors.Join(err, c.finish())
}

// frame takes the next frame. The header, which comes first, wants the size of the
// terminal, which clients send first but not always.
func (c *caster) frame(f *recorder.Frame) error {
	if c.begun {
		return c.event(f)
	}
	width, height, sized := sizeOf(f)
	output := f.Channel == recorder.Stdout || f.Channel == recorder.Stderr
	held := *f
	held.Data = bytes.Clone(f.Data)
	c.held = append(c.held, held)
	if sized || output || len(c.held) == maxHeld {
		return c.begin(width, height, sized)
	}
	return nil
}

func (c *caster) begin(width, height int, sized bool) error {
	if !sized {
		width, height = 80, 24
	}
	c.begun, c.start = true, c.session.Time
	if len(c.held) > 0 {
		c.start = c.held[0].Time
	}
	header, err := json.Marshal(struct {
		Version   int    `json:"version"`
		Width     int    `json:"width"`
		Height    int    `json:"height"`
		Timestamp int64  `json:"timestamp"`
		Title     string `json:"title"`
	}{2, width, height, c.start.Unix(), inert.Line(c.session.what())})
	if err != nil {
		return err
	}
	if _, err := c.out.Write(append(header, '\n')); err != nil {
		return err
	}
	for i := range c.held {
		if err := c.event(&c.held[i]); err != nil {
			return err
		}
	}
	c.held = nil
	return nil
}

func (c *caster) event(f *recorder.Frame) error {
	c.at = max(c.at, f.Time.Sub(c.start)) // clocks may be set back, casts not
	switch f.Channel {
	case recorder.Stdout, recorder.Stderr:
		return c.text("o", f)
	case recorder.Stdin:
		return c.text("i", f)
	case recorder.Resize:
		if width, height, ok := sizeOf(f); ok {
			return c.line("r", fmt.Appendf(nil, "%dx%d", width, height))
		}
	case recorder.ErrorChannel:
		var status struct{ Status, Message string }
		if json.Unmarshal(f.Data, &status) == nil && status.Status == "Failure" {
			return c.line("m", []byte(status.Message))
		}
	}
	return nil
}

// text writes what is whole, and at the end of a channel the rest.
func (c *caster) text(code string, f *recorder.Frame) error {
	data := append(c.unwhole[f.Channel], f.Data...)
	whole := inert.Whole(data)
	if f.End {
		whole = len(data)
	}
	c.unwhole[f.Channel] = bytes.Clone(data[whole:])
	data = data[:whole]
	if code == "o" && c.newlines {
		data = bytes.ReplaceAll(data, []byte("\n"), []byte("\r\n"))
	}
	if len(data) == 0 {
		return nil
	}
	return c.line(code, data)
}

func (c *caster) line(code string, data []byte) error {
	text, err := json.Marshal(string(data))
	if err != nil {
		return err
	}
	line := strconv.AppendFloat([]byte("["), c.at.Seconds(), 'f', 6, 64)
	line = fmt.Appendf(line, ", %q, %s]\n", code, text)
	_, err = c.out.Write(line)
	return err
}

func (c *caster) finish() error {
	if !c.begun {
		if err := c.begin(0, 0, false); err != nil {
			return err
		}
	}
	for _, channel := range []recorder.Channel{recorder.Stdin, recorder.Stdout, recorder.Stderr} {
		if rest := c.unwhole[channel]; len(rest) > 0 {
			code := "o"
			if channel == recorder.Stdin {
				code = "i"
			}
			if err := c.line(code, rest); err != nil {
				return err
			}
		}
	}
	return c.out.Flush()
}

// sizeOf reads a change of the terminal's size, as clients send it.
func sizeOf(f *recorder.Frame) (width, height int, ok bool) {
	if f.Channel != recorder.Resize {
		return 0, 0, false
	}
	decoder := json.NewDecoder(bytes.NewReader(f.Data))
	var size struct{ Width, Height uint16 }
	for decoder.Decode(&size) == nil { // the last one counts
		width, height, ok = int(size.Width), int(size.Height), size.Width > 0 && size.Height > 0
	}
	return width, height, ok
}
