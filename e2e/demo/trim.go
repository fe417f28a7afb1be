package demo

import (
	"regexp"
	"slices"
	"strings"
	"text/tabwriter"
)

// nothing shows that there was an output, and no more.
func nothing([]string) []string { return []string{"…"} }

// only shows the lines that begin with one of these.
func only(prefixes ...string) func([]string) []string {
	return func(lines []string) []string {
		return slices.DeleteFunc(slices.Clone(lines), func(line string) bool {
			return !slices.ContainsFunc(prefixes, func(prefix string) bool { return strings.HasPrefix(line, prefix) })
		})
	}
}

// what leaves out the next step, which a refusal names after what it refuses.
func what(lines []string) []string {
	trimmed := slices.Clone(lines)
	for i, line := range trimmed {
		if before, _, found := strings.Cut(line, " Next: "); found {
			trimmed[i] = before + " …"
		}
	}
	return trimmed
}

// table shortens the cells of a table and aligns it anew.
func table(lines []string) []string {
	var out strings.Builder
	writer := tabwriter.NewWriter(&out, 0, 1, 2, ' ', 0)
	for _, line := range lines {
		cells := regexp.MustCompile(` {2,}`).ReplaceAllString(shorten(line), "\t")
		_, _ = writer.Write([]byte(cells + "\n")) // a strings.Builder takes everything
	}
	_ = writer.Flush()
	return strings.Split(strings.TrimRight(out.String(), "\n"), "\n")
}

// shorten leaves out the middle of names such as
// v1/journal/cluster=testbed/dt=2026-11-23/broker-0-01M843XA2VCNHTCCAXQFRFYPQQ/00000000000000000001
// and days.
func shorten(line string) string {
	for _, long := range []struct{ pattern, short string }{
		{`cluster=[^/ ]+/dt=[^/ ]+/[^/ ]+/`, "…/"},
		{`/0{10,}(\d+)`, "/0…$1"},
		{`(broker-\d+-01)[0-9A-Z]{24}`, "$1…"},
		{`spiffe://example\.org/ns/agents/sa/`, "…/sa/"},
		{`\d{4}-\d\d-\d\dT(\d\d:\d\d:\d\d)\.\d{3}Z`, "$1"},
	} {
		line = regexp.MustCompile(long.pattern).ReplaceAllString(line, long.short)
	}
	return line
}
