package demo

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/taskgate/taskgate/e2e/testbed"
	"github.com/taskgate/taskgate/e2e/testbed/testbedtest"
)

// TestMain lets this test program be the program bucket, as the demo itself is.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == BucketName {
		if err := Bucket(os.Stdout).ExecuteContext(context.Background()); err != nil {
			_, _ = os.Stderr.WriteString("bucket: " + err.Error() + "\n")
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// TestChecks plays once for real, with the stack that the quick start does not
// have, and then again and again with one answer changed each time: the demo
// must notice every one.
func TestChecks(t *testing.T) {
	t.Parallel()
	options := testbed.Options{S3: testbed.MinIO}
	if os.Geteuid() == 0 {
		options.SPIFFE = testbed.SPIRE
	}
	bed := testbedtest.Start(t, options)
	players, err := newCast(bed)
	if err != nil {
		t.Fatal(err)
	}
	var screenshot bytes.Buffer
	tape := &recording{shell: posixShell{players}}
	if err := perform(t.Context(), tape, &screen{out: &screenshot, stable: stabiliser(bed)}, bed, steps(testbed.Kwok)); err != nil {
		t.Fatalf("%v\n%s", err, &screenshot)
	}
	checkStable(t, screenshot.String())
	checkReadme(t, screenshot.String())
	checkNames(t, values(bed))
	if err := replay(t, tape.takes, bed); err != nil {
		t.Fatalf("the same answers again: %v", err)
	}
	for i, original := range tape.takes {
		for name, change := range changes {
			takes := slices.Clone(tape.takes)
			if takes[i].result = change(original.result); takes[i].result == original.result {
				continue
			}
			var f *failure
			if err := replay(t, takes, bed); !errors.As(err, &f) {
				t.Errorf("%s$ %s: nothing fails with %s: %v", original.who, original.line, name, err)
			}
		}
	}
}

// changes are what may become of an answer. The first two are what a world would
// say in which a refusal is none, or nothing works.
var changes = map[string]func(result) result{
	"another exit code": func(r result) result { r.code = 1 - min(r.code, 1); return r },
	"no output":         func(r result) result { r.output = ""; return r },
	"a dead command":    func(r result) result { r.code = -1; return r },
}

func replay(t *testing.T, takes []take, bed *testbed.Testbed) error {
	t.Helper()
	return perform(t.Context(), &replaying{takes: takes}, &screen{out: io.Discard}, bed, hasty(steps(testbed.Kwok)))
}

// hasty takes the patience out of steps: on tape nothing changes by waiting.
func hasty(all []step) []step {
	for _, s := range all {
		for i := range s.acts {
			s.acts[i].patience = 0
		}
	}
	return all
}

// take is a command and its answer.
type take struct {
	who    role
	line   string
	before string // of a watching command
	result result
}

// recording keeps what a shell answers.
type recording struct {
	shell shell
	takes []take
}

func (r *recording) run(ctx context.Context, who role, line string) (result, error) {
	answer, err := r.shell.run(ctx, who, line)
	if last := len(r.takes) - 1; last >= 0 && r.takes[last].line == line { // an act with patience
		r.takes = r.takes[:last]
	}
	r.takes = append(r.takes, take{who: who, line: line, result: answer})
	return answer, err
}

func (r *recording) watch(ctx context.Context, who role, line string, meanwhile func(string) error) (result, error) {
	at := len(r.takes)
	r.takes = append(r.takes, take{who: who, line: line})
	answer, err := r.shell.watch(ctx, who, line, func(before string) error {
		r.takes[at].before = before
		return meanwhile(before)
	})
	r.takes[at].result = answer
	return answer, err
}

// replaying answers from a recording.
type replaying struct{ takes []take }

func (r *replaying) next(who role, line string) (take, error) {
	if len(r.takes) == 0 || r.takes[0].who != who || r.takes[0].line != line {
		return take{}, errors.New("not on tape: " + line)
	}
	t := r.takes[0]
	r.takes = r.takes[1:]
	return t, nil
}

func (r *replaying) run(_ context.Context, who role, line string) (result, error) {
	t, err := r.next(who, line)
	return t.result, err
}

func (r *replaying) watch(_ context.Context, who role, line string, meanwhile func(string) error) (result, error) {
	t, err := r.next(who, line)
	if err == nil {
		err = meanwhile(t.before)
	}
	return t.result, err
}

// checkReadme looks for what the README shows of the demo: all of it has to be in
// the output, in the same order; … at the end of a line is whatever the demo says.
func checkReadme(t *testing.T, output string) {
	t.Helper()
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, shown, _ := strings.Cut(string(readme), "```demo\n")
	shown, _, found := strings.Cut(shown, "```")
	if !found || shown == "" {
		t.Fatal("the README shows nothing of the demo")
	}
	for line := range strings.Lines(shown) {
		_, rest, found := strings.Cut(output, strings.TrimSuffix(line, "…\n"))
		if !found {
			t.Errorf("the README shows a line that the demo does not print there: %s", line)
			continue
		}
		output = rest
	}
}

// checkNames looks for names in command lines that nothing keeps.
func checkNames(t *testing.T, values map[string]string) {
	t.Helper()
	known := slices.Collect(maps.Keys(values))
	for _, s := range steps(testbed.Kwok) {
		for _, a := range s.acts {
			for _, k := range a.keeps {
				known = append(known, k.names...)
			}
			for _, name := range placeholder.FindAllString(a.types, -1) {
				if !slices.Contains(known, strings.Trim(name, "{}")) {
					t.Errorf("%s: nothing keeps %s", a.types, name)
				}
			}
		}
	}
}
