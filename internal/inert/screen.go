package inert

import (
	"bytes"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Screen makes what a program printed to its terminal safe to show in another
// one, piece by piece as it came. Text, colours and the movement of the cursor
// pass, so that it looks as it did. Nothing passes that a terminal would answer or
// act on beyond its own screen: no title, clipboard, link, picture, device report,
// mode, other character set or bell. Characters that are not plain are escaped as
// [Text] does it. The zero value is ready; it is not safe for concurrent use.
//
// A control sequence that is cut off, or longer than any that does good, is dropped.
// A string (OSC, DCS, APC, PM, SOS) ends at the end of its line at the latest, so
// that it cannot swallow what follows.
type Screen struct {
	// Plain drops colours and movements too, for output that is not a terminal: a
	// carriage return begins a new line, so that nothing overwrites anything.
	Plain bool

	state    screenState
	sequence []byte // parameters of a control sequence, without ESC [
	rest     []byte // a character that is not whole yet
	length   int    // of a string
	marks    int
	returned bool // Plain: a carriage return began a line, and \n is part of it
}

type screenState byte

const (
	inText         screenState = iota
	inEscape                   // behind ESC
	inIntermediate             // behind ESC and a byte that wants another
	inControl                  // behind ESC [
	inString                   // behind ESC ] and the like
)

const (
	escapeByte   = 0x1b
	mostSequence = 64   // bytes in a control sequence
	mostString   = 4096 // bytes in a string
)

// Append appends the safe form of data to a slice and returns it. What is not whole
// at the end waits for the next call.
func (s *Screen) Append(to, data []byte) []byte {
	for len(data) > 0 {
		switch {
		case s.state == inText && (data[0] >= ' ' && data[0] != 0x7f):
			to, data = s.text(to, data)
		case s.state == inText:
			to = s.cutOff(to)
			to = s.control(to, data[0])
			data = data[1:]
		default:
			var used bool
			if to, used = s.inside(to, data[0]); used {
				data = data[1:]
			}
		}
	}
	return to
}

// Flush appends what is left of a character that never became whole.
func (s *Screen) Flush(to []byte) []byte { return s.cutOff(to) }

func (s *Screen) cutOff(to []byte) []byte {
	if len(s.rest) > 0 {
		to = s.runes(to, s.rest)
		s.rest = s.rest[:0]
	}
	return to
}

// text takes the characters up to the next control.
func (s *Screen) text(to, data []byte) (_, rest []byte) {
	s.returned = false
	end := bytes.IndexFunc(data, func(r rune) bool { return r < ' ' || r == 0x7f })
	if end < 0 {
		end = len(data)
	}
	run, rest := data[:end], data[end:]
	for len(s.rest) > 0 && len(run) > 0 && !utf8.FullRune(s.rest) {
		if utf8.RuneStart(run[0]) {
			break
		}
		s.rest = append(s.rest, run[0])
		run = run[1:]
	}
	if len(run) == 0 && len(s.rest) > 0 && !utf8.FullRune(s.rest) {
		return to, rest
	}
	to = s.cutOff(to)
	if whole := Whole(run); len(rest) == 0 && whole < len(run) {
		s.rest = append(s.rest, run[whole:]...)
		run = run[:whole]
	}
	return s.runes(to, run), rest
}

// Whole is the length of data without a character (UTF-8) that is not whole at its
// end.
func Whole(data []byte) int {
	for back := 1; back < utf8.UTFMax && back <= len(data); back++ {
		if at := len(data) - back; utf8.RuneStart(data[at]) {
			if utf8.FullRune(data[at:]) {
				return len(data)
			}
			return at
		}
	}
	return len(data)
}

// runes appends text without controls below U+0080.
func (s *Screen) runes(to, data []byte) []byte {
	for len(data) > 0 {
		r, size := utf8.DecodeRune(data)
		if unicode.Is(unicode.M, r) {
			s.marks++
		} else {
			s.marks = 0
		}
		switch {
		case r == utf8.RuneError && size == 1:
			to = append(to, escape(string(data[:1]), false)...)
		case !plain(r) || s.marks > mostMarks:
			to = append(to, escapeOf(r)...)
		default:
			to = append(to, data[:size]...)
		}
		data = data[size:]
	}
	return to
}

func escapeOf(r rune) string {
	var out strings.Builder
	writeEscape(&out, r)
	return out.String()
}

// control takes a control character in text.
func (s *Screen) control(to []byte, c byte) []byte {
	s.marks = mostMarks // a mark would sit on something else
	returned := s.returned
	s.returned = false
	switch {
	case c == escapeByte:
		s.state = inEscape
	case c == '\n' && returned:
	case c == '\n', c == '\t':
		return append(to, c)
	case c == '\r' && s.Plain:
		s.returned = true
		return append(to, '\n')
	case c == '\r', c == '\b' && !s.Plain:
		return append(to, c)
	}
	return to
}

// inside takes one byte of a sequence. It is not used if it is not part of it.
func (s *Screen) inside(to []byte, c byte) (_ []byte, used bool) {
	switch {
	case c == 0x18 || c == 0x1a: // CAN, SUB
		s.state = inText
		return to, true
	case c == escapeByte: // what was begun is given up; ST ends in a backslash that is dropped
		s.state = inEscape
		return to, true
	case c == '\n':
		s.state = inText
		return to, false
	}
	switch s.state {
	case inEscape:
		return s.behindEscape(to, c), true
	case inIntermediate:
		if c >= 0x30 {
			s.state = inText
		}
	case inControl:
		return s.inControl(to, c), true
	case inString:
		if s.length++; s.length > mostString {
			s.state = inText
			return to, false
		}
		if c == 0x07 {
			s.state = inText
		}
	}
	return to, true
}

func (s *Screen) behindEscape(to []byte, c byte) []byte {
	s.state = inText
	switch {
	case c == '[':
		s.state, s.sequence = inControl, s.sequence[:0]
	case strings.IndexByte("]P_^X", c) >= 0: // OSC, DCS, APC, PM, SOS
		s.state, s.length = inString, 0
	case c >= 0x20 && c <= 0x2f:
		s.state = inIntermediate
	case strings.IndexByte("78DEM", c) >= 0 && !s.Plain: // save, restore and move the cursor
		return append(to, escapeByte, c)
	}
	return to
}

func (s *Screen) inControl(to []byte, c byte) []byte {
	switch {
	case c >= 0x40 && c <= 0x7e:
		s.state = inText
		if !s.Plain && harmless(s.sequence, c) {
			to = append(append(append(to, escapeByte, '['), s.sequence...), c)
		}
	case c >= 0x20 && c <= 0x3f && len(s.sequence) < mostSequence:
		s.sequence = append(s.sequence, c)
	case c >= 0x20: // too long, or not ASCII
		s.state = inText
	}
	return to
}

// harmless tells whether a control sequence (ECMA-48, 5.4) only draws or moves the
// cursor, by no more than any screen is wide.
func harmless(parameters []byte, final byte) bool {
	digits, count := 0, 1
	for _, c := range parameters {
		switch {
		case c >= '0' && c <= '9':
			digits++
		case c == ';' || c == ':' && final == 'm':
			digits, count = 0, count+1
		default:
			return false // private, or with an intermediate byte
		}
		if digits > 4 {
			return false
		}
	}
	switch final {
	case 'A', 'B', 'C', 'D', 'E', 'F', 'G', 'H', 'K', 'L', 'M', 'P', 'X', '@', 'S', '`', 'a', 'd', 'e', 'f', 'm', 'r':
		return true
	case 'J':
		return string(parameters) != "3" && count == 1 // 3 is what was scrolled away
	case 'T':
		return count == 1 // with five it is about the mouse
	case 's', 'u':
		return len(parameters) == 0
	}
	return false
}
