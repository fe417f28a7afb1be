package demo

import (
	"regexp"
	"slices"
	"strings"
	"testing"
)

var placeholder = regexp.MustCompile(`\{[a-z]+\}`)

// checkStable looks for what would be something else in another play.
func checkStable(t *testing.T, text string) {
	t.Helper()
	for what, pattern := range map[string]string{
		"a port":                  `(127\.0\.0\.1|localhost):[0-9]{5}`,
		"a folder":                `/tmp/`,
		"a day":                   `20\d\d-\d\d-\d\d`,
		"a time":                  `\b\d\d:\d\d:[0-9]*[1-9]`,
		"a ULID":                  `01[0-9A-HJKMNP-TV-Z]{20,}`,
		"a UUID":                  `[0-9a-f]{8}-[0-9a-f]{4}`,
		"a duration":              `\d\.\d+ ?m?s\b`,
		"a count":                 `\d+ (records|segments|manifests|objects|bits)`,
		"a colour":                "\x1b",
		"a place for a value":     `\{[a-z]+\}`,
		"a line that is too long": `(?m)^.{150}`,
	} {
		if found := regexp.MustCompile(pattern).FindString(text); found != "" {
			t.Errorf("the output is not stable; it holds %s: %q", what, found)
		}
	}
}

func TestWrap(t *testing.T) {
	text := strings.Repeat("word ", 40) + "end"
	lines := wrap(text, "  ", "    ")
	if len(lines) != 2 || !strings.HasPrefix(lines[0], "  word") || !strings.HasPrefix(lines[1], "    word") {
		t.Errorf("wrapped to %q", lines)
	}
	if got := strings.Join(strings.Fields(strings.Join(lines, " ")), " "); got != text {
		t.Errorf("wrapping changed the text to %q", got)
	}
	if long := strings.Repeat("x", 2*width); !slices.Equal(wrap(long, "", "  "), []string{long}) {
		t.Error("a word was broken")
	}
}

func TestTable(t *testing.T) {
	lines := []string{
		"TIME                      AGENT                                    VERB",
		"2026-11-23T12:10:07.825Z  spiffe://example.org/ns/agents/sa/alpha  get pods",
	}
	want := []string{"TIME      AGENT       VERB", "12:10:07  …/sa/alpha  get pods"}
	if got := table(lines); !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}

func TestShorten(t *testing.T) {
	const line = "delete v1/journal/cluster=testbed/dt=2026-11-23/broker-0-01M843XA2VCNHTCCAXQFRFYPQQ/00000000000000000012.jsonl.zst"
	if got := shorten(line); got != "delete v1/journal/…/0…12.jsonl.zst" {
		t.Errorf("got %q", got)
	}
}

func TestQuote(t *testing.T) {
	for text, want := range map[string]string{"/a/b-1.sh": "/a/b-1.sh", "a b": "'a b'", "it's": `'it'\''s'`, "": "''"} {
		if got := quote(text); got != want {
			t.Errorf("%q became %s, not %s", text, got, want)
		}
	}
}
