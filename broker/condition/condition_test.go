package condition_test

import (
	"strings"
	"testing"

	"github.com/taskgate/taskgate/authz"
	"github.com/taskgate/taskgate/broker/condition"
)

func deployment(replicas any) map[string]any {
	return map[string]any{"metadata": map[string]any{"name": "web"}, "spec": map[string]any{"replicas": replicas, "paused": true}}
}

func facts() authz.Facts {
	return authz.Facts{
		Request: map[string]any{
			"verb": "patch", "group": "apps", "version": "v1", "resource": "deployments", "subresource": "scale", "namespace": "shop", "name": "web",
			"dryRun": false, "query": map[string]any{"force": "true"},
		},
		Params:    map[string]any{"agent": "spiffe://example.org/ns/agents/sa/alpha", "task": "INC-1", "grant": "inc-1", "policy": "shop"},
		Object:    deployment(int64(11)),
		OldObject: deployment(int64(3)),
	}
}

// TestHolds: a clear no is a no, and everything else a yes.
func TestHolds(t *testing.T) {
	rows := []struct {
		expression     string
		needs, holds   bool
		withoutObjects bool // what holds if there are none
	}{
		{"true", false, true, true},
		{"false", false, false, false},
		{"object.spec.replicas > 10", true, true, true},
		{"object.spec.replicas > 11", true, false, true},
		{"object.spec.replicas > oldObject.spec.replicas * 4", true, false, true},
		{"object.spec.paused == true", true, true, true},
		{"has(object.spec.paused) && object.spec.paused == false", true, false, true},
		{"object == null", true, false, true},
		{"object != null", true, true, false},
		{"oldObject == null && request.verb == 'patch'", true, false, true},
		{"object.spec.nothing > 10", true, true, true},             // no such field
		{"object.spec.replicas == 'eleven'", true, false, true},    // equality across types is false, not an error
		{"object.spec.replicas.startsWith('x')", true, true, true}, // no such method for a number
		{"1 / 0 == 1", false, true, true},
		{"request.namespace == 'shop' && request.name.startsWith('web')", false, true, true},
		{"request.verb in ['update', 'patch'] && request.subresource == ''", false, false, false},
		{"request.dryRun", false, false, false},
		{"'force' in request.query && request.query['force'] == 'true'", false, true, true},
		{"request.query['none'] == 'x'", false, true, true}, // no such key
		{"params.task.startsWith('INC-')", false, true, true},
		{"params.agent.endsWith('/beta')", false, false, false},
		{"quantity('1Gi').isGreaterThan(quantity('1Mi'))", false, true, true}, // the libraries of Kubernetes
		{"object.spec.replicas > 10 || request.namespace == 'shop'", true, true, true},
	}
	var compiler condition.Compiler
	for _, row := range rows {
		compiled, err := compiler.Compile(row.expression)
		if err != nil {
			t.Errorf("%s: %v", row.expression, err)
			continue
		}
		if got := compiled.NeedsObjects(); got != row.needs {
			t.Errorf("%s: needs objects: %v", row.expression, got)
		}
		if got := compiled.Holds(facts()); got != row.holds {
			t.Errorf("%s: holds: %v", row.expression, got)
		}
		without := facts()
		without.Object, without.OldObject = nil, nil
		if got := compiled.Holds(without); got != row.withoutObjects {
			t.Errorf("%s: holds without objects: %v", row.expression, got)
		}
		if again, _ := compiler.Compile(row.expression); again != compiled {
			t.Errorf("%s: compiled twice", row.expression)
		}
	}
	if !(*condition.Condition)(nil).Holds(facts()) || !new(condition.Condition).Holds(facts()) {
		t.Error("what was never compiled does not hold")
	}
	if compiled, _ := compiler.Compile("request.verb == 'get'"); !compiled.Holds(authz.Facts{}) {
		t.Error("holds not without facts")
	}
}

// TestErrors say what is wrong.
func TestErrors(t *testing.T) {
	long := "[" + strings.Repeat("1,", 199) + "1]"
	for expression, says := range map[string]string{
		"":                         "Syntax error",
		"object.spec.replicas >":   "Syntax error",
		"object.spec.replicas":     "it has to be true or false",
		"1":                        "it has to be true or false",
		"request.verbs == 'get'":   "undefined field 'verbs'",
		"params.team == 'x'":       "undefined field 'team'",
		"request.verb == 1":        "no matching overload",
		"subject.name == 'x'":      "undeclared reference to 'subject'",
		"authorizer.path('/') != ": "Syntax error",
		long + ".map(a, " + long + ".map(b, " + long + ".map(c, a + b + c))).size() > 0": "costs at least",
		strings.Repeat("(", 1000) + "true" + strings.Repeat(")", 1000):                   "recursion",
	} {
		_, err := condition.Compile(expression)
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%.60s: got %v, want %q", expression, err, says)
		}
	}
}

// FuzzCompile: whatever the expression is, it is an error or a condition that can
// be asked.
func FuzzCompile(f *testing.F) {
	for _, seed := range []string{"true", "object.spec.replicas > 10", "request.verb == 'get'", "oldObject.x.y[0].z", "[1].all(x, x > 0)", "'a'.matches('a+')"} {
		f.Add(seed)
	}
	f.Fuzz(func(_ *testing.T, expression string) {
		if len(expression) > 4096 {
			return // the API server takes no longer ones
		}
		if compiled, err := condition.Compile(expression); err == nil {
			compiled.Holds(facts())
		}
	})
}
