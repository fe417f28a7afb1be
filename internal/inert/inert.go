package inert

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// mostMarks is how many combining marks may sit on one letter, more than any
// language in use needs. Towers of them reach into the lines above.
const mostMarks = 3

// Line is text as one line: a newline is escaped too.
func Line(text string) string { return escape(text, false) }

// Text is text of several lines. Other line breaks than \n are escaped.
func Text(text string) string { return escape(text, true) }

// Short is the one line that the first most bytes of text make. If that is not
// all of it, the whole length is said.
func Short(text string, most int) string {
	shown, whole := Cut(text, most)
	if whole {
		return Line(shown)
	}
	return fmt.Sprintf("%s… (%d bytes in all)", Line(shown), len(text))
}

// Cut returns at most the first most bytes of text, never a part of a character,
// and whether that is the whole.
func Cut(text string, most int) (shown string, whole bool) {
	if len(text) <= most {
		return text, true
	}
	end := max(0, most)
	for back := 0; back < utf8.UTFMax && end > 0 && !utf8.RuneStart(text[end]); back++ {
		end--
	}
	return text[:end], false
}

// JSON escapes what is not a plain visible character inside a JSON document, which
// stays the same document: encoding/json leaves the bidirectional overrides and the
// invisible ones as they are.
func JSON(document []byte) []byte {
	var out []byte
	for len(document) > 0 {
		r, size := utf8.DecodeRune(document)
		switch {
		case r == '\n', plain(r) && !(r == utf8.RuneError && size == 1):
			out = append(out, document[:size]...)
		case r > 0xffff:
			high, low := (r-0x10000)>>10+0xd800, (r-0x10000)&0x3ff+0xdc00
			out = fmt.Appendf(out, `\u%04x\u%04x`, high, low)
		default:
			out = fmt.Appendf(out, `\u%04x`, r)
		}
		document = document[size:]
	}
	return out
}

func escape(text string, lines bool) string {
	var out strings.Builder
	marks := mostMarks // a mark at the start would sit on what stands before the text
	for len(text) > 0 {
		r, size := utf8.DecodeRuneInString(text)
		if unicode.Is(unicode.M, r) {
			marks++
		} else {
			marks = 0
		}
		switch {
		case r == utf8.RuneError && size == 1:
			fmt.Fprintf(&out, `\x%02x`, text[0])
			marks = mostMarks
		case r == '\n' && lines:
			out.WriteByte('\n')
			marks = mostMarks
		case !plain(r) || marks > mostMarks:
			writeEscape(&out, r)
			marks = mostMarks
		case r == '\\' && ambiguous(text[size:], lines):
			out.WriteString(`\\`)
		default:
			out.WriteRune(r)
		}
		text = text[size:]
	}
	return out.String()
}

func writeEscape(out *strings.Builder, r rune) {
	switch {
	case r < utf8.RuneSelf:
		fmt.Fprintf(out, `\x%02x`, r)
	case r <= 0xffff:
		fmt.Fprintf(out, `\u%04x`, r)
	default:
		fmt.Fprintf(out, `\U%08x`, r)
	}
}

// ambiguous reports whether a backslash before rest would look like the start of
// an escape of ours.
func ambiguous(rest string, lines bool) bool {
	r, size := utf8.DecodeRuneInString(rest)
	if size == 0 || r == '\n' && lines {
		return false
	}
	return strings.ContainsRune(`xuU\`, r) || r == utf8.RuneError || !plain(r)
}

// plain reports whether a character is visible as itself, alone, and in its place:
// letters, marks, digits, punctuation and symbols of the Unicode version Go knows,
// and the one space. Not plain are controls, format characters (bidirectional ones
// and joiners among them), other spaces, private and unassigned characters, and
// letters and marks that are drawn as nothing.
func plain(r rune) bool {
	return unicode.IsPrint(r) && !unicode.In(r, unicode.Variation_Selector, unicode.Other_Default_Ignorable_Code_Point) && r != brailleBlank
}

// brailleBlank is a symbol without any dot.
const brailleBlank = '\u2800'
