package process

import (
	"bytes"
	"fmt"
	"os"
	"strings"
)

const tailBytes = 16 << 10

// failure is the error a person reads when a component does not come up.
func (p *Process) failure(what string, last error) error {
	var text strings.Builder
	fmt.Fprintf(&text, "%s %s", p.spec.Name, what)
	if last != nil {
		fmt.Fprintf(&text, " (last try: %v)", last)
	}
	fmt.Fprintf(&text, "; the end of %s:\n%s", p.spec.Log, indent(Tail(p.spec.Log)))
	if p.spec.Advice != "" {
		fmt.Fprintf(&text, "what to do: %s", p.spec.Advice)
	}
	return fmt.Errorf("%s", strings.TrimRight(text.String(), "\n"))
}

// startFailure is the error when there is no process at all, and so no log.
func (p *Process) startFailure(err error) error {
	if p.spec.Advice == "" {
		return fmt.Errorf("starting %s: %w", p.spec.Name, err)
	}
	return fmt.Errorf("starting %s: %w; what to do: %s", p.spec.Name, err, p.spec.Advice)
}

// Tail is the last lines of a log file; empty when there is none.
func Tail(path string) []string {
	file, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer func() { _ = file.Close() }() // only read
	info, err := file.Stat()
	if err != nil {
		return nil
	}
	content := make([]byte, min(info.Size(), tailBytes))
	read, _ := file.ReadAt(content, info.Size()-int64(len(content))) // what could be read will do
	lines := strings.Split(string(bytes.TrimRight(content[:read], "\n")), "\n")
	return lines[max(0, len(lines)-tailLines):]
}

func indent(lines []string) string {
	if len(lines) == 0 || len(lines) == 1 && lines[0] == "" {
		return "    (it is empty)\n"
	}
	return "    " + strings.Join(lines, "\n    ") + "\n"
}
