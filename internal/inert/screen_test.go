package inert

import (
	"bytes"
	"strings"
	"testing"
)

func shown(plain bool, pieces ...string) string {
	s := Screen{Plain: plain}
	var out []byte
	for _, piece := range pieces {
		out = s.Append(out, []byte(piece))
	}
	return string(s.Flush(out))
}

// TestScreen: what looks like something passes, what does something does not (T151).
func TestScreen(t *testing.T) {
	for name, test := range map[string]struct{ in, screen, plain string }{
		"text":                      {"häl\tlo\r\n世界 🙂\n", "häl\tlo\r\n世界 🙂\n", "häl\tlo\n世界 🙂\n"},
		"colours":                   {"\x1b[1;31mred\x1b[0m \x1b[38:2::1:2:3mtrue\x1b[m", "\x1b[1;31mred\x1b[0m \x1b[38:2::1:2:3mtrue\x1b[m", "red true"},
		"cursor":                    {"\x1b[2J\x1b[H\x1b[10;5Hx\x1b[K\x1b[3A\x1b7\x1b8\x1b[s\x1b[u", "\x1b[2J\x1b[H\x1b[10;5Hx\x1b[K\x1b[3A\x1b7\x1b8\x1b[s\x1b[u", "x"},
		"progress":                  {"10%\r20%\r\n", "10%\r20%\r\n", "10%\n20%\n"},
		"backspace":                 {"lss\b \b", "lss\b \b", "lss "},
		"clipboard (OSC 52)":        {"a\x1b]52;c;ZXZpbA==\x07b", "ab", "ab"},
		"clipboard, ended by ST":    {"a\x1b]52;c;ZXZpbA==\x1b\\b", "ab", "ab"},
		"title":                     {"a\x1b]0;root@bank\x07b", "ab", "ab"},
		"link (OSC 8)":              {"\x1b]8;;http://evil\x1b\\here\x1b]8;;\x1b\\", "here", "here"},
		"DCS":                       {"a\x1bP+q544e\x1b\\b", "ab", "ab"},
		"APC, PM, SOS":              {"a\x1b_Gi=1\x1b\\b\x1b^x\x1b\\c\x1bXx\x1b\\d", "abcd", "abcd"},
		"alternate screen":          {"a\x1b[?1049hb\x1b[?1049l", "ab", "ab"},
		"modes":                     {"a\x1b[4h\x1b[?25l\x1b[?2004h\x1b=\x1b>b", "ab", "ab"},
		"reports":                   {"a\x1b[6n\x1b[c\x1b[>c\x1b[?u\x1b[5nb\x05", "ab", "ab"},
		"window":                    {"a\x1b[21t\x1b[8;9;9t\x1b[2;1;1;1;1Tb", "ab", "ab"},
		"print":                     {"a\x1b[5ib", "ab", "ab"},
		"reset":                     {"a\x1bcb\x1b[!pc", "abc", "abc"},
		"character set":             {"a\x1b(0b\x0ec\x0fd", "abcd", "abcd"},
		"repeat a billion times":    {"a\x1b[999999999bb\x1b[99999Cc", "abc", "abc"},
		"what was scrolled away":    {"a\x1b[3Jb", "ab", "ab"},
		"bell and other controls":   {"a\a\x00\x7f\v\fb", "ab", "ab"},
		"eight bit controls":        {"a\u009b31mb\x9dc", `a\u009b31mb\x9dc`, `a\u009b31mb\x9dc`},
		"override":                  {"a\u202eb\u200bc", `a\u202eb\u200bc`, `a\u202eb\u200bc`},
		"tower of marks":            {"a" + strings.Repeat("\u0301", 9), "a\u0301\u0301\u0301" + strings.Repeat(`\u0301`, 6), "a\u0301\u0301\u0301" + strings.Repeat(`\u0301`, 6)},
		"not UTF-8":                 {"a\xff\xc3(b\xe4", `a\xff\xc3(b\xe4`, `a\xff\xc3(b\xe4`},
		"a string that never ends":  {"a\x1b]0;x\nnext line", "a\nnext line", "a\nnext line"},
		"one that is very long":     {"\x1bP" + strings.Repeat("x", mostString) + "end", "end", "end"},
		"a sequence inside another": {"\x1b]0;\x1b[31mred\x1b[1\x18x", "\x1b[31mredx", "redx"},
		"one that is too long":      {"\x1b[" + strings.Repeat("1;", 40) + "mx", "x", "x"},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "one that is too long" { // what follows the cut is text, and harmless
				if got := shown(false, test.in); strings.ContainsRune(got, 0x1b) || !strings.HasSuffix(got, "x") {
					t.Errorf("got %q", got)
				}
				return
			}
			if got := shown(false, test.in); got != test.screen {
				t.Errorf("%q shows as %q, want %q", test.in, got, test.screen)
			}
			if got := shown(true, test.in); got != test.plain {
				t.Errorf("%q is plainly %q, want %q", test.in, got, test.plain)
			}
			for at := range test.in {
				if got := shown(false, test.in[:at], test.in[at:]); got != test.screen {
					t.Errorf("cut at %d it shows as %q, want %q", at, got, test.screen)
				}
			}
			single := strings.Split(test.in, "")
			var bytewise []string
			for _, b := range []byte(test.in) {
				bytewise = append(bytewise, string([]byte{b}))
			}
			for _, pieces := range [][]string{single, bytewise} {
				if got := shown(true, pieces...); got != test.plain {
					t.Errorf("in pieces it is plainly %q, want %q", got, test.plain)
				}
			}
		})
	}
}

// TestScreenWithoutEnd: a mebibyte without a newline is not kept.
func TestScreenWithoutEnd(t *testing.T) {
	for _, begin := range []string{"", "\x1b]52;c;", "\x1b[", "\x1bP"} {
		s := Screen{}
		out := s.Append(nil, []byte(begin))
		piece := bytes.Repeat([]byte("1"), 1<<10)
		for range 1 << 10 {
			out = s.Append(out[:0], piece)
		}
		if len(s.sequence)+len(s.rest) > mostSequence+8 {
			t.Errorf("behind %q it keeps %d bytes", begin, len(s.sequence)+len(s.rest))
		}
		if !bytes.Equal(out, piece) {
			t.Errorf("behind %q the text is not shown in the end", begin)
		}
	}
}

// FuzzScreen: whatever comes, however it is cut, only harmless sequences pass.
func FuzzScreen(f *testing.F) {
	f.Add([]byte("\x1b]52;c;x\x07\x1b[31mred\x1b[0m\r\nü"), 5)
	f.Fuzz(func(t *testing.T, data []byte, cut int) {
		cut = max(0, min(cut, len(data)))
		whole, pieces := shown(false, string(data)), shown(false, string(data[:cut]), string(data[cut:]))
		if whole != pieces {
			t.Errorf("%q cut at %d shows as %q, whole as %q", data, cut, pieces, whole)
		}
		if again := shown(false, whole); again != whole {
			t.Errorf("%q shows as %q, and that as %q", data, whole, again)
		}
		for rest := whole; ; {
			_, after, found := strings.Cut(rest, "\x1b")
			if !found {
				break
			}
			rest = after
			end := strings.IndexFunc(rest, func(r rune) bool { return r >= '@' && r <= '~' && r != '[' || r >= '0' && r <= '9' && rest[0] != '[' })
			if end < 0 || rest[0] == '[' && !harmless([]byte(rest[1:end]), rest[end]) || rest[0] != '[' && !strings.Contains("78DEM", rest[:1]) {
				t.Fatalf("%q lets %q pass", data, rest[:min(10, len(rest))])
			}
		}
		plain := shown(true, string(data))
		if strings.ContainsFunc(plain, func(r rune) bool { return r < ' ' && r != '\n' && r != '\t' || r == 0x7f }) {
			t.Errorf("%q is plainly %q", data, plain)
		}
	})
}
