package demo

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode/utf8"
)

// screen is where the play is seen.
type screen struct {
	out    io.Writer
	colour bool
	stable func(string) string // replaces what differs between two plays; nil: nothing does
}

const (
	width  = 110
	indent = "   "
	deep   = "     "
)

// The colours of a terminal.
const (
	bold  = "1"
	dim   = "2"
	red   = "31"
	green = "32"
	cyan  = "36"
)

// isTerminal says whether colours can be seen and are wanted.
func isTerminal(out io.Writer) bool {
	file, ok := out.(*os.File)
	if !ok || os.Getenv("NO_COLOR") != "" || os.Getenv("TERM") == "dumb" {
		return false
	}
	info, err := file.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

func (s *screen) title(text string) {
	s.print("", "", "", "")
	s.print(text, "", "", bold)
}

func (s *screen) say(text string) {
	if text != "" {
		s.print(text, indent, indent, "")
	}
}

func (s *screen) command(who role, line string) {
	s.print(string(who)+"$ "+shorten(line), indent, deep+"  ", cyan)
}

// goesOn says that what follows is the output of a command typed earlier.
func (s *screen) goesOn(who role) { s.print(string(who)+", still watching:", indent, deep, cyan) }

// output shows what a command printed, trimmed.
func (s *screen) output(text string, trim func([]string) []string) {
	text = strings.TrimRight(text, "\n")
	if text == "" {
		return
	}
	lines := strings.Split(text, "\n")
	if trim != nil {
		lines = trim(lines)
	}
	for _, line := range lines {
		s.print(shorten(line), deep, deep+"  ", dim)
	}
}

func (s *screen) holds(claim string) {
	if claim != "" {
		s.print("✓ "+claim, indent, indent+"  ", green)
	}
}

func (s *screen) failed(f *failure) {
	s.print("✗ "+f.claim, indent, indent+"  ", red)
	s.print("expected: "+strings.Join(f.expected, ", "), deep, deep+"  ", red)
	if !f.trimmed {
		s.print(fmt.Sprintf("came:     exit code %d, and the output above", f.came.code), deep, deep+"  ", red)
		return
	}
	s.print(fmt.Sprintf("came:     exit code %d, and this output:", f.came.code), deep, deep+"  ", red)
	for line := range strings.SplitSeq(strings.TrimRight(f.came.output, "\n"), "\n") {
		s.print(line, deep+"  ", deep+"  ", red)
	}
}

// duration is how long something took, in the words of a claim. In stable
// output it is not told.
func (s *screen) duration(took time.Duration) string {
	if s.stable != nil {
		return ""
	}
	return fmt.Sprintf(" after %.2f s", took.Seconds())
}

// print writes a line, broken where it gets too long for a screen.
func (s *screen) print(text, begin, next, colour string) {
	if s.stable != nil {
		text = s.stable(text)
	}
	for _, line := range wrap(text, begin, next) {
		if s.colour && colour != "" {
			line = "\x1b[" + colour + "m" + line + "\x1b[0m"
		}
		_, _ = fmt.Fprintln(s.out, line) // a play that nobody sees is no failure
	}
}

// wrap breaks a text at spaces. What is inside a line stays as it is, columns
// included.
func wrap(text, begin, next string) []string {
	var lines []string
	line := begin + text
	for utf8.RuneCountInString(line) > width {
		limit := len(string([]rune(line)[:width+1]))
		at := strings.LastIndex(line[:limit], " ")
		if at <= len(next) || strings.TrimSpace(line[:at]) == "" {
			break
		}
		lines = append(lines, strings.TrimRight(line[:at], " "))
		line = next + strings.TrimLeft(line[at:], " ")
	}
	return append(lines, line)
}
