package demo

import (
	"fmt"
	"regexp"
	"strings"
	"time"
)

// result is what came of a command.
type result struct {
	output string // both streams, in the order they came
	code   int    // exit code; -1 when it had to be killed
	took   time.Duration
}

// want is something that a result has to be.
type want struct {
	text  string // completes "expected: "
	holds func(r result, fill fill) bool
}

// fill puts what acts before have kept in place of {name}.
type fill func(string) string

func exits(code int) want {
	return want{fmt.Sprintf("exit code %d", code), func(r result, _ fill) bool { return r.code == code }}
}

func fails() want {
	return want{"a failure", func(r result, _ fill) bool { return r.code > 0 }}
}

func says(words string) want {
	return want{fmt.Sprintf("output with %q", words), func(r result, fill fill) bool { return strings.Contains(r.output, fill(words)) }}
}

func matches(pattern string) want {
	expression := regexp.MustCompile(pattern)
	return want{fmt.Sprintf("output that matches %s", pattern), func(r result, _ fill) bool { return expression.MatchString(r.output) }}
}

func within(limit time.Duration) want {
	return want{fmt.Sprintf("an end within %s", limit), func(r result, _ fill) bool { return r.took <= limit }}
}

// works is the outcome of a command that does what it is told.
func works(words ...string) []want { return append([]want{exits(0)}, saysAll(words)...) }

// refused is the outcome of a call that taskgate does not let through.
func refused(reason string) []want { return []want{fails(), says("[taskgate:" + reason + "]")} }

func saysAll(words []string) []want {
	var wants []want
	for _, word := range words {
		wants = append(wants, says(word))
	}
	return wants
}

// missing answers what of wants a result is not.
func missing(wants []want, r result, fill fill) []string {
	var texts []string
	for _, w := range wants {
		if !w.holds(r, fill) {
			texts = append(texts, w.text)
		}
	}
	return texts
}

// failure is a check that did not hold.
type failure struct {
	claim    string
	expected []string
	came     result
	trimmed  bool // not all of the output was shown
}

func (f *failure) Error() string {
	return fmt.Sprintf("this did not hold: %s (expected %s; came exit code %d)", f.claim, strings.Join(f.expected, ", "), f.came.code)
}
