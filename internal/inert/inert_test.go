package inert

import (
	"encoding/json"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"
)

// TestLine: T119. What a terminal would obey, reorder or not show is escaped.
func TestLine(t *testing.T) {
	for _, test := range []struct{ name, text, want string }{
		{"plain", "kubectl get pods -n shop", "kubectl get pods -n shop"},
		{"empty", "", ""},
		{"other languages", "größe 日本 café", "größe 日本 café"},
		{"clear the screen", "a\x1b[2Jb", `a\x1b[2Jb`},
		{"back to the start", "rm -rf /\rls", `rm -rf /\x0dls`},
		{"bell", "\a", `\x07`},
		{"clipboard", "\x1b]52;c;aGk=\x07", `\x1b]52;c;aGk=\x07`},
		{"device control", "\x1bPq\x1b\\", `\x1bPq\x1b\`},
		{"8-bit control sequence", "\u009b2J", `\u009b2J`},
		{"delete", "a\x7f", `a\x7f`},
		{"null", "a\x00b", `a\x00b`},
		{"tab", "a\tb", `a\x09b`},
		{"newline", "a\nb", `a\x0ab`},
		{"right to left override", "a\u202eb", `a\u202eb`},
		{"isolates", "\u2066\u2067\u2068\u2069", `\u2066\u2067\u2068\u2069`},
		{"marks of direction", "\u200e\u200f\u061c", `\u200e\u200f\u061c`},
		{"zero width", "a\u200bb\u200c\u200d\u2060\ufeff", `a\u200bb\u200c\u200d\u2060\ufeff`},
		{"separators", "\u2028\u2029\u0085", `\u2028\u2029\u0085`},
		{"other spaces", "a\u00a0b\u3000", `a\u00a0b\u3000`},
		{"soft hyphen", "a\u00adb", `a\u00adb`},
		{"fillers", "\u3164\u115f\u034f\u2800", `\u3164\u115f\u034f\u2800`},
		{"variation selector", "a\ufe0f\U000e0100", `a\ufe0f\U000e0100`},
		{"tags", "a\U000e0041", `a\U000e0041`},
		{"private use", "\ue000", `\ue000`},
		{"unassigned", "\u0378", `\u0378`},
		{"not UTF-8", "a\xff\xc3b", `a\xff\xc3b`},
		{"replacement character", "\ufffd", "\ufffd"},
		{"an escape that is none", `a\x1b`, `a\\x1b`},
		{"backslash before a control", "\\\x1b", `\\\x1b`},
		{"windows path", `C:\Temp`, `C:\Temp`},
		{"tower of marks", "a\u0301\u0301\u0301\u0301", "a\u0301\u0301\u0301" + `\u0301`},
		{"mark at the start", "\u0301a", `\u0301a`},
	} {
		if got := Line(test.text); got != test.want {
			t.Errorf("%s: %q became %q, want %q", test.name, test.text, got, test.want)
		}
	}
	if got, want := Text("a\nb\r\n\u2028\x1b"), "a\nb\\x0d\n\\u2028\\x1b"; got != want {
		t.Errorf("lines became %q, want %q", got, want)
	}
}

// TestShort: T121. What is cut says how long it is.
func TestShort(t *testing.T) {
	for _, test := range []struct {
		text string
		most int
		want string
	}{
		{"abc", 3, "abc"},
		{"abcd", 3, "abc… (4 bytes in all)"},
		{"aéé", 2, "a… (5 bytes in all)"},
		{strings.Repeat("x", 100<<10), 4, "xxxx… (102400 bytes in all)"},
		{"\x1b\x1b", 1, `\x1b… (2 bytes in all)`},
		{"\x80\x80\x80\x80\x80\x80\x80\x80", 6, `\x80\x80… (8 bytes in all)`},
		{"abc", 0, "… (3 bytes in all)"},
	} {
		if got := Short(test.text, test.most); got != test.want {
			t.Errorf("%.20q cut to %d is %q, want %q", test.text, test.most, got, test.want)
		}
	}
}

// TestSuspicious: T119.
func TestSuspicious(t *testing.T) {
	for _, test := range []struct {
		text string
		want []string
	}{
		{"delete pods web-0", nil},
		{"größe naïve Ångström 東京タワー", nil},
		{"по-русски написано", nil},
		{"p\u0430yments", []string{`"pаyments" mixes Cyrillic and Latin letters (p\u0430yments)`}},
		{"web-\u0430", []string{`"а" is written in Cyrillic letters that look like Latin ones (\u0430)`}},
		{"\u03bfperator", []string{`"οperator" mixes Greek and Latin letters (\u03bfperator)`}},
		{"a\u200b p\u0430 p\u0430", []string{`"pа" mixes Cyrillic and Latin letters (p\u0430)`}},
	} {
		if got := Suspicious(test.text); !reflect.DeepEqual(got, test.want) {
			t.Errorf("%q: %q, want %q", test.text, got, test.want)
		}
	}
	if got := Suspicious("aа bа cа dа eа fа gа"); len(got) != mostSuspicions+1 {
		t.Errorf("seven words are %d suspicions", len(got))
	}
}

func TestJSON(t *testing.T) {
	for _, text := range []string{"plain é", "\u202e\u200b\x7f\u009b\U000e0041", "\x1b\n\\u0041"} {
		document, err := json.Marshal(text)
		if err != nil {
			t.Fatal(err)
		}
		var back string
		safe := JSON(document)
		if err := json.Unmarshal(safe, &back); err != nil || back != text {
			t.Errorf("%q became %s: %q, %v", text, safe, back, err)
		}
		checkInert(t, string(safe))
	}
}

// checkInert scans what would go to a terminal, without the tables that made it.
func checkInert(t *testing.T, shown string) {
	t.Helper()
	if !utf8.ValidString(shown) {
		t.Fatalf("%q is not UTF-8", shown)
	}
	for _, r := range shown {
		bad := r < 0x20 && r != '\n' || r >= 0x7f && r <= 0xa0 || r == 0xad || r == 0x61c || r >= 0x200b && r <= 0x200f || r >= 0x2028 && r <= 0x202f ||
			r >= 0x2060 && r <= 0x206f || r == 0xfeff || r >= 0xe000 && r <= 0xf8ff || r >= 0xfe00 && r <= 0xfe0f || r >= 0xe0000
		if bad {
			t.Fatalf("%q holds %U", shown, r)
		}
	}
}

// plainAgain undoes Line and Text.
func plainAgain(t *testing.T, shown string) string {
	var out strings.Builder
	for len(shown) > 0 {
		width := map[string]int{`\x`: 4, `\u`: 6, `\U`: 10, `\\`: 2}[shown[:min(2, len(shown))]]
		switch {
		case width == 0:
			out.WriteByte(shown[0])
			shown = shown[1:]
			continue
		case width == 2:
			out.WriteByte('\\')
		default:
			value, err := strconv.ParseUint(shown[2:width], 16, 32)
			if err != nil {
				t.Fatalf("%q: %v", shown, err)
			}
			if width == 4 {
				out.WriteByte(byte(value))
			} else {
				out.WriteRune(rune(value))
			}
		}
		shown = shown[width:]
	}
	return out.String()
}

// FuzzInert: nothing a terminal would act on is left, and no two texts look the
// same.
func FuzzInert(f *testing.F) {
	for _, seed := range []string{"", "a\x1b[2J\r\x07", "\u202e\u2066\u200b\ufeff", "\\x1b\\\\", "\xff\xfe", "a\u0301\u0301\u0301\u0301\n\u0301", "p\u0430y"} {
		f.Add(seed, 10)
	}
	f.Fuzz(func(t *testing.T, text string, most int) {
		for _, shown := range []string{Line(text), Text(text)} {
			checkInert(t, shown)
			if back := plainAgain(t, shown); back != text {
				t.Fatalf("%q is shown as %q, which reads %q", text, shown, back)
			}
		}
		if strings.Contains(Line(text)+Short(text, most), "\n") {
			t.Fatalf("%q is more than one line", text)
		}
		checkInert(t, Short(text, most))
		checkInert(t, strings.Join(Suspicious(text), ""))
		if document, err := json.Marshal(text); err == nil {
			checkInert(t, string(JSON(document)))
		}
	})
}
