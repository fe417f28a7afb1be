package bench

import (
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
)

// A variant is one of taskgate's programs, built from the source as it is but
// for a few functions that do something else first. go build -overlay does that
// without touching the tree, so the product needs neither switch nor build tag.
type variant struct {
	program string // package path below the repository
	changes []change
	added   map[string]string // files that do not exist: path and content
}

// change puts statements at the beginning of a function.
type change struct {
	file     string // path below the repository
	function string // Name or Receiver.Name
	first    string
	appended string // to the end of the file
}

// unrecorded is the broker without all that serves the record. What the first
// statements return is what makes the rest of the broker go on as usual.
func unrecorded() variant {
	return variant{program: "./cmd/broker", changes: []change{
		{
			file: "recorder/recorder.go", function: "Recorder.Append",
			first:    "if true { return Receipt{batch: benchDone}, nil }",
			appended: "var benchDone = func() *batch { b := &batch{done: make(chan struct{})}; close(b.done); return b }()",
		},
		{
			file: "broker/exchange.go", function: "exchange.event",
			first: "if true { return &recorder.Event{Annotations: make(map[string]string, 8)} }",
		},
		{file: "broker/exchange.go", function: "withPrincipal", first: "if true { return }"},
		{file: "broker/exchange.go", function: "newTally", first: "if true { return &tally{} }"},
	}}
}

//go:embed profiles.go.txt
var profilesSource string

// profiled is a program that serves profiles of itself on a unix socket, at the
// path in the environment variable TASKGATE_BENCH_PROFILES, with its pid for %d.
func profiled(name string) variant {
	folder := "cmd/" + name
	return variant{
		program: "./" + folder,
		changes: []change{{file: folder + "/main.go", function: "main", first: "go benchServeProfiles()"}},
		added:   map[string]string{folder + "/bench_profiles.go": profilesSource},
	}
}

// build writes the program to a file.
func (v variant) build(ctx context.Context, repository, target string) error {
	folder, err := os.MkdirTemp("", "taskgate-bench-overlay-")
	if err != nil {
		return fmt.Errorf("making a folder for changed sources: %w", err)
	}
	defer func() { _ = os.RemoveAll(folder) }() // in the system's folder for temporary files
	overlay, err := v.write(repository, folder)
	if err != nil {
		return err
	}
	command := exec.CommandContext(ctx, "go", "build", "-buildvcs=false", "-overlay", overlay, "-o", target, v.program)
	command.Dir = repository
	command.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	if output, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("building a variant of %s: %w\n%s", v.program, err, output)
	}
	return nil
}

// write stores the changed files, and the overlay that names them.
func (v variant) write(repository, folder string) (string, error) {
	sources := maps.Clone(v.added)
	if sources == nil {
		sources = map[string]string{}
	}
	for _, c := range v.changes {
		source, changed := sources[c.file]
		if !changed {
			content, err := os.ReadFile(filepath.Join(repository, c.file))
			if err != nil {
				return "", fmt.Errorf("reading a source to change: %w", err)
			}
			source = string(content)
		}
		var err error
		if sources[c.file], err = c.apply(source); err != nil {
			return "", err
		}
	}
	replace := map[string]string{}
	for i, file := range slices.Sorted(maps.Keys(sources)) {
		target := filepath.Join(folder, fmt.Sprintf("%d.go", i))
		if err := os.WriteFile(target, []byte(sources[file]), 0o644); err != nil {
			return "", fmt.Errorf("writing a changed source: %w", err)
		}
		replace[filepath.Join(repository, file)] = target
	}
	content, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", fmt.Errorf("encoding the overlay: %w", err)
	}
	overlay := filepath.Join(folder, "overlay.json")
	if err := os.WriteFile(overlay, content, 0o644); err != nil {
		return "", fmt.Errorf("writing the overlay: %w", err)
	}
	return overlay, nil
}

// apply returns the source with the change.
func (c change) apply(source string) (string, error) {
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, c.file, source, parser.SkipObjectResolution)
	if err != nil {
		return "", fmt.Errorf("reading a source to change: %w", err)
	}
	for _, declaration := range file.Decls {
		function, ok := declaration.(*ast.FuncDecl)
		if !ok || function.Body == nil || functionName(function) != c.function {
			continue
		}
		at := set.Position(function.Body.Lbrace).Offset + 1
		return source[:at] + "\n" + c.first + "\n" + source[at:] + "\n" + c.appended + "\n", nil
	}
	return "", fmt.Errorf("%s has no function %s any more: e2e/bench/variant.go has to name its successor", c.file, c.function)
}

// functionName is Name, or Receiver.Name for a method.
func functionName(function *ast.FuncDecl) string {
	if function.Recv == nil {
		return function.Name.Name
	}
	receiver := function.Recv.List[0].Type
	if pointer, ok := receiver.(*ast.StarExpr); ok {
		receiver = pointer.X
	}
	if name, ok := receiver.(*ast.Ident); ok {
		return name.Name + "." + function.Name.Name
	}
	return ""
}
