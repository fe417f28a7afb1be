// Package arch holds the rules of the source tree as tests: who may import whom,
// what only one package may do, and how large things may become. Each rule says
// why it is there.
package arch

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/taskgate/taskgate/"

// source is one package of this module as go list sees it.
type source struct {
	ImportPath, Dir string
	Imports         []string
	GoFiles         []string
}

func (s source) name() string { return strings.TrimPrefix(s.ImportPath, module) }

func packages(t *testing.T) []source {
	t.Helper()
	command := exec.Command("go", "list", "-json=ImportPath,Dir,Imports,GoFiles", module+"...")
	command.Dir = "../.."
	output, err := command.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []source
	decoder := json.NewDecoder(strings.NewReader(string(output)))
	for {
		var s source
		if err := decoder.Decode(&s); err == io.EOF {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, s)
	}
}

// ours lists which packages of this module a package may import. What is not
// listed may import none: imports point down, and a new arrow is a decision.
var ours = map[string][]string{
	"api/v1alpha1":          {},
	"identity":              {},
	"identity/registration": {"identity"},
	"authz":                 {},
	"recorder":              {},
	"manifests":             {},
	"internal/relay":        {},
	"internal/inert":        {},
	"broker/request":        {"authz"},
	"broker/notify":         {},
	"broker/control":        {"api/v1alpha1", "authz", "broker/condition", "manifests"},
	"broker/mask":           {},
	"broker/condition":      {"authz"},
	"broker/stream":         {},
	"broker/tasks":          {"api/v1alpha1", "authz", "broker/control", "broker/request"},
	"broker":                {"api/v1alpha1", "authz", "broker/control", "broker/mask", "broker/notify", "broker/request", "broker/stream", "broker/tasks", "identity", "internal/relay", "recorder"},
	"sidecar":               {"identity", "internal/relay"},
	"internal/cli":          {"api/v1alpha1", "authz", "broker/control", "identity", "identity/registration", "internal/doctor", "internal/inert", "manifests", "recorder"},
	"internal/doctor":       {"api/v1alpha1", "identity/registration", "recorder"},
	"cmd/broker":            {"broker"},
	"cmd/sidecar":           {"sidecar"},
	"cmd/taskgate":          {"internal/cli"},
	"internal/arch":         {},
	"internal/spiffetest":   {},
	"internal/recordertest": {"internal/spiffetest", "recorder"},
}

// strangers must not be imported by the packages named.
var strangers = []struct {
	in     []string
	prefix string
	except []string
	why    string
}{
	{[]string{"identity", "identity/registration", "authz", "recorder", "broker/condition", "broker/mask", "broker/request", "broker/stream", "internal/doctor", "internal/relay", "internal/inert"}, "github.com/rs/zerolog", nil, "leaves never log: errors go up and are logged once"},
	{[]string{"identity", "identity/registration", "recorder"}, "k8s.io/", nil, "who speaks and what is recorded do not depend on Kubernetes' types"},
	{[]string{"authz"}, "k8s.io/", []string{"k8s.io/api/rbac/v1", "k8s.io/component-helpers/auth/rbac/validation"}, "decisions are about plain values; RBAC's own comparison is the exception"},
	{[]string{"*"}, "log", []string{"broker", "sidecar"}, "one logger, passed in Config; net/http wants one of these for its own complaints"},
	{[]string{"*"}, "github.com/rs/zerolog/log", nil, "one logger, passed in Config"},
	{[]string{"*"}, "testing", []string{"internal/recordertest"}, "tests stay in tests"},
}

func TestImports(t *testing.T) {
	for _, p := range packages(t) {
		allowed, listed := ours[p.name()]
		if !listed {
			t.Errorf("%s: a new package; say in arch_test.go what it may import", p.name())
		}
		for _, path := range p.Imports {
			if own, isOurs := strings.CutPrefix(path, module); isOurs && !slices.Contains(allowed, own) {
				t.Errorf("%s imports %s: imports point down (design, section 2)", p.name(), own)
			}
			for _, rule := range strangers {
				concerned := slices.Contains(rule.in, p.name()) || slices.Contains(rule.in, "*")
				hit := path == rule.prefix || strings.HasSuffix(rule.prefix, "/") && strings.HasPrefix(path, rule.prefix)
				if concerned && hit && !slices.Contains(rule.except, path) && !slices.Contains(rule.except, p.name()) {
					t.Errorf("%s imports %s: %s", p.name(), path, rule.why)
				}
			}
		}
	}
}

// only says which packages alone may use a name of another package.
var only = map[string]struct {
	in  []string
	why string
}{
	"os.Exit":            {[]string{"cmd/broker", "cmd/sidecar", "cmd/taskgate"}, "an exit elsewhere skips what others deferred"},
	"log.Fatal":          {nil, "an exit elsewhere skips what others deferred"},
	"http.DefaultClient": {nil, "it follows redirects and has no timeout"},
	"http.Get":           {nil, "it follows redirects and has no timeout"},
}

const (
	maxFunction = 80
	maxFile     = 400
)

func TestSource(t *testing.T) {
	for _, p := range packages(t) {
		for _, file := range p.GoFiles {
			if strings.HasPrefix(file, "zz_generated") {
				continue
			}
			checkFile(t, p, filepath.Join(p.Dir, file))
		}
	}
}

func checkFile(t *testing.T, p source, path string) {
	t.Helper()
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, path, nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	line := func(at token.Pos) int { return set.Position(at).Line }
	short := p.name() + "/" + filepath.Base(path)
	if lines := line(file.End()); lines > maxFile {
		t.Errorf("%s has %d lines; at most %d can be read in one go", short, lines, maxFile)
	}
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncDecl:
			if length := line(n.End()) - line(n.Pos()) + 1; length > maxFunction {
				t.Errorf("%s: %s has %d lines; at most %d", short, n.Name.Name, length, maxFunction)
			}
			if n.Name.Name == "init" && n.Recv == nil {
				t.Errorf("%s: init does things nobody asked for", short)
			}
		case *ast.SelectorExpr:
			if x, ok := n.X.(*ast.Ident); ok {
				if rule, found := only[x.Name+"."+n.Sel.Name]; found && !slices.Contains(rule.in, p.name()) {
					t.Errorf("%s:%d: %s.%s: %s", short, line(n.Pos()), x.Name, n.Sel.Name, rule.why)
				}
			}
		case *ast.CompositeLit:
			if s, ok := n.Type.(*ast.SelectorExpr); ok && s.Sel.Name == "Config" && p.name() != "identity" {
				if x, ok := s.X.(*ast.Ident); ok && x.Name == "tls" {
					t.Errorf("%s:%d: identity makes every TLS configuration", short, line(n.Pos()))
				}
			}
		case *ast.StructType:
			for _, field := range n.Fields.List {
				if s, ok := field.Type.(*ast.SelectorExpr); ok && s.Sel.Name == "Context" {
					t.Errorf("%s:%d: a context in a struct outlives its call", short, line(field.Pos()))
				}
			}
		case *ast.GenDecl:
			checkGlobals(t, short, n, file)
		}
		return true
	})
}

// checkGlobals refuses package variables that can change. Errors, compiled
// tables and pools are written once.
func checkGlobals(t *testing.T, short string, declaration *ast.GenDecl, file *ast.File) {
	t.Helper()
	if declaration.Tok != token.VAR || !slices.Contains(file.Decls, ast.Decl(declaration)) {
		return
	}
	for _, spec := range declaration.Specs {
		value := spec.(*ast.ValueSpec)
		if len(value.Values) == 0 && !strings.HasPrefix(short, "manifests/") && !strings.HasSuffix(short, "example.go") {
			t.Errorf("%s: the package variable %s has no value of its own: it is meant to change", short, value.Names[0].Name)
		}
	}
}
