package demo

import (
	"net/url"
	"regexp"
	"strings"

	"github.com/taskgate/taskgate/e2e/testbed"
)

// stabiliser makes a function that replaces what is another thing in every play:
// ports, folders, times, names made at random, and counts. Columns keep their
// places.
func stabiliser(bed *testbed.Testbed) func(string) string {
	e := bed.Environment()
	names := strings.NewReplacer(
		bed.Directory(), ".testbed",
		host(e.Alpha.URL), "127.0.0.1:6443",
		host(e.Beta.URL), "127.0.0.1:6443",
		host(bed.Admin().Host), "api-server",
		host(e.Store.Endpoint), "store",
	)
	patterns := []struct {
		pattern     *regexp.Regexp
		replacement string
	}{
		{regexp.MustCompile(`\b\d\d:\d\d:\d\d\b`), "12:00:00"},
		{regexp.MustCompile(`\b01[0-9A-HJKMNP-TV-Z]{24}\b`), "VERSION"},
		{regexp.MustCompile(`\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b`), "VERSION"},
		{regexp.MustCompile(`\d+ (records|segments|manifests|objects|bits)\b`), "N $1"},
		{regexp.MustCompile(`( ends in )\d+s\b`), "${1}5s"},
		{regexp.MustCompile(`\b20\d\d-\d\d-\d\d`), "DAY"},
		{regexp.MustCompile(`\b[0-9a-f]{64}\b`), "DIGEST"},
		{regexp.MustCompile(`\d+[ms] left\b`), "15m left"},
		{regexp.MustCompile(`\bap-[0-9a-f]{10}-\d+\b`), "ap-1"},
		{regexp.MustCompile(`\b\d\d:\d\dZ\b`), "12:15Z"},
		{regexp.MustCompile(`\b\d\d:\d\d:\d\dZ\b`), "12:00:00Z"},
		{regexp.MustCompile(`--timeout=\d+m\b`), "--timeout=15m"},
		{regexp.MustCompile(`( {2,})\d+[smh]$`), "${1}1s"}, // the column AGE
	}
	return func(text string) string {
		text = names.Replace(text)
		for _, p := range patterns {
			text = p.pattern.ReplaceAllString(text, p.replacement)
		}
		return text
	}
}

// host is the host and port of a URL.
func host(address string) string {
	if parsed, err := url.Parse(address); err == nil && parsed.Host != "" {
		return parsed.Host
	}
	return address
}
