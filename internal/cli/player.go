package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/term"

	"github.com/taskgate/taskgate/internal/inert"
	"github.com/taskgate/taskgate/recorder"
)

// player shows frames as time passes. Its clock is that of the recording, with
// pauses cut to idle.
type player struct {
	out      io.Writer
	frames   frames // can be read again, to go back
	visible  func(recorder.Channel) bool
	speed    float64
	idle     time.Duration // longest pause, 0 for any
	newlines bool          // the terminal does not go back to the left at \n

	at     time.Duration // where it stands
	seek   time.Duration // what lies before it is shown at once
	paused bool
}

// key is what a person can press.
type key byte

const (
	keyPause key = iota
	keyForward
	keyBack
	keyQuit
)

// leap is how far an arrow goes.
const leap = 5 * time.Second

var (
	errQuit = errors.New("enough was seen")
	errBack = errors.New("from the beginning")
)

// play shows everything, until the person has seen enough, which is no error.
// Without keys it cannot be controlled.
func (p *player) play(ctx context.Context, keys <-chan key) error {
	for {
		err := p.pass(ctx, keys)
		if errors.Is(err, errBack) {
			// Home, and clear: the screen is drawn anew up to where it goes on.
			if _, err := io.WriteString(p.out, "\x1b[0m\x1b[r\x1b[H\x1b[2J"); err != nil {
				return err
			}
			continue
		}
		// No colours, and the whole screen for what follows.
		_, failed := io.WriteString(p.out, "\x1b[0m\x1b7\x1b[r\x1b8\r\n")
		if errors.Is(err, errQuit) {
			err = nil
		}
		return errors.Join(err, failed)
	}
}

// pass plays once from the beginning.
func (p *player) pass(ctx context.Context, keys <-chan key) error {
	screen := inert.Screen{}
	p.at = 0
	due, last := time.Duration(0), time.Time{}
	var text []byte
	return each(p.frames, func(f *recorder.Frame) error {
		if !last.IsZero() {
			pause := max(0, f.Time.Sub(last))
			if p.idle > 0 {
				pause = min(pause, p.idle)
			}
			due += pause
		}
		last = f.Time
		if err := p.wait(ctx, due, keys); err != nil {
			return err
		}
		if !p.visible(f.Channel) {
			return nil
		}
		text = screen.Append(text[:0], f.Data)
		if p.newlines {
			text = bytes.ReplaceAll(text, []byte("\n"), []byte("\r\n"))
		}
		_, err := p.out.Write(text)
		return err
	})
}

// wait returns when the clock has come to due.
func (p *player) wait(ctx context.Context, due time.Duration, keys <-chan key) error {
	for {
		if p.at = max(p.at, min(due, p.seek)); p.at >= due && !p.paused {
			return ctx.Err()
		}
		var passed <-chan time.Time
		begun := time.Now()
		if !p.paused {
			timer := time.NewTimer(time.Duration(float64(due-p.at) / p.speed))
			defer timer.Stop()
			passed = timer.C
		}
		select {
		case <-passed:
			p.at = due
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case pressed := <-keys:
			if !p.paused {
				p.at = min(due, p.at+time.Duration(float64(time.Since(begun))*p.speed))
			}
			if err := p.press(pressed); err != nil {
				return err
			}
		}
	}
}

func (p *player) press(pressed key) error {
	switch pressed {
	case keyPause:
		p.paused = !p.paused
	case keyForward:
		p.seek = p.at + leap
	case keyBack:
		p.seek = max(0, p.at-leap)
		return errBack
	case keyQuit:
		return errQuit
	}
	return nil
}

// readKeys reads keys from the terminal as they are pressed. done ends that and
// puts the terminal back; it is never nil. keys is nil where reading could not be
// ended.
func readKeys() (keys <-chan key, done func(), err error) {
	done = func() {}
	file, err := os.OpenFile("/dev/tty", os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, done, nil // nobody is there to press one
	}
	if file.SetReadDeadline(time.Time{}) != nil {
		return nil, done, file.Close()
	}
	restore, err := makeRaw(file)
	if err != nil {
		return nil, done, errors.Join(err, file.Close())
	}
	pressed := make(chan key)
	ended := make(chan struct{})
	var reading sync.WaitGroup
	reading.Go(func() {
		buffer := make([]byte, 16)
		for {
			n, err := file.Read(buffer)
			if err != nil {
				return // closed by done
			}
			for _, k := range keysIn(buffer[:n]) {
				select {
				case pressed <- k:
				case <-ended:
					return
				}
			}
		}
	})
	return pressed, func() {
		restore()
		close(ended)
		file.Close()
		reading.Wait()
	}, nil
}

// makeRaw has the terminal give keys as they are pressed and show none of them.
func makeRaw(file *os.File) (restore func(), err error) {
	control, err := file.SyscallConn() // File.Fd would make reading uninterruptible
	if err != nil {
		return nil, err
	}
	var before *term.State
	var failed error
	err = control.Control(func(fd uintptr) { before, failed = term.MakeRaw(int(fd)) })
	if err = errors.Join(err, failed); err != nil {
		return nil, fmt.Errorf("setting up the terminal: %w", err)
	}
	return func() {
		_ = control.Control(func(fd uintptr) { _ = term.Restore(int(fd), before) }) // nothing else can be done about it
	}, nil
}

// keysIn are the keys in what a terminal sent at once.
func keysIn(data []byte) []key {
	var keys []key
	for len(data) > 0 {
		used := 1
		switch {
		case bytes.HasPrefix(data, []byte("\x1b[C")):
			keys, used = append(keys, keyForward), 3
		case bytes.HasPrefix(data, []byte("\x1b[D")):
			keys, used = append(keys, keyBack), 3
		case data[0] == ' ':
			keys = append(keys, keyPause)
		case data[0] == 'q' || data[0] == 0x03: // Ctrl-C comes as a key
			keys = append(keys, keyQuit)
		}
		data = data[used:]
	}
	return keys
}
