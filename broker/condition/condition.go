package condition

import (
	"errors"
	"fmt"
	"sync"

	"github.com/google/cel-go/cel"
	"k8s.io/apimachinery/pkg/util/version"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	apiservercel "k8s.io/apiserver/pkg/cel"
	"k8s.io/apiserver/pkg/cel/environment"
	"k8s.io/apiserver/pkg/cel/library"

	"github.com/taskgate/taskgate/authz"
)

// The variables.
const (
	request   = "request"
	object    = "object"
	oldObject = "oldObject"
	params    = "params"
)

// Condition is a compiled expression. It never changes and is safe for concurrent
// use. It implements [authz.Condition].
type Condition struct {
	program cel.Program
	objects bool
}

// Compiler compiles expressions, each once. The zero Compiler is ready; it is safe
// for concurrent use.
type Compiler struct {
	mu    sync.Mutex
	known map[string]compiled
}

type compiled struct {
	condition *Condition
	err       error
}

// maxKnown bounds what is remembered of expressions that may be long gone.
const maxKnown = 4096

// Compile returns the condition of an expression, or an error that says what is
// wrong with it and where.
func (c *Compiler) Compile(expression string) (*Condition, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if known, found := c.known[expression]; found {
		return known.condition, known.err
	}
	if c.known == nil || len(c.known) >= maxKnown {
		c.known = map[string]compiled{}
	}
	condition, err := Compile(expression)
	c.known[expression] = compiled{condition, err}
	return condition, err
}

// Compile is Compiler.Compile without a memory.
func Compile(expression string) (*Condition, error) {
	env, err := variables()
	if err != nil {
		return nil, fmt.Errorf("the environment of conditions: %w", err)
	}
	ast, issues := env.Compile(expression)
	if issues.Err() != nil {
		return nil, issues.Err()
	}
	if !ast.OutputType().IsExactType(cel.BoolType) {
		return nil, fmt.Errorf("the expression is a %s; it has to be true or false, as in %s.spec.replicas > 10", cel.FormatCELType(ast.OutputType()), object)
	}
	// What an expression costs at most depends on the object, which the limit at
	// run time sees to; one that costs too much for every object never works.
	cost, err := env.EstimateCost(ast, &library.CostEstimator{})
	if err != nil {
		return nil, fmt.Errorf("estimating the cost: %w", err)
	}
	if cost.Min > celconfig.PerCallLimit {
		return nil, fmt.Errorf("the expression costs at least %d, more than the limit of %d", cost.Min, celconfig.PerCallLimit)
	}
	program, err := env.Program(ast) // the limit is one of the environment's options
	if err != nil {
		return nil, err
	}
	condition := &Condition{program: program}
	for _, reference := range ast.NativeRep().ReferenceMap() {
		if reference.Name == object || reference.Name == oldObject {
			condition.objects = true
		}
	}
	return condition, nil
}

// NeedsObjects reports whether the condition looks at object or oldObject.
func (c *Condition) NeedsObjects() bool { return c.objects }

// Holds evaluates the condition. Everything but a clear no is a yes: an error, a
// cost over the limit, a condition that was never compiled.
func (c *Condition) Holds(facts authz.Facts) bool {
	if c == nil || c.program == nil {
		return true
	}
	result, _, err := c.program.Eval(map[string]any{
		request: orNull(facts.Request), object: orNull(facts.Object), oldObject: orNull(facts.OldObject), params: orNull(facts.Params),
	})
	if err != nil {
		return true
	}
	holds, isBool := result.Value().(bool)
	return holds || !isBool
}

// orNull makes a map that is not there null, and not one without entries.
func orNull(value map[string]any) any {
	if value == nil {
		return nil
	}
	return value
}

// compatibility is the version of Kubernetes whose expressions are understood:
// the one before that of the libraries, so that a policy works with brokers of
// this version and the one before.
func compatibility() *version.Version { return version.MajorMinor(1, 36) }

// variables is the environment. Making it takes much longer than an expression,
// and it is the same for all.
var variables = sync.OnceValues(func() (*cel.Env, error) {
	texts := func(names ...string) map[string]*apiservercel.DeclField {
		fields := map[string]*apiservercel.DeclField{}
		for _, name := range names {
			fields[name] = apiservercel.NewDeclField(name, apiservercel.StringType, true, nil, nil)
		}
		return fields
	}
	asked := texts("verb", "group", "version", "resource", "subresource", "namespace", "name")
	asked["dryRun"] = apiservercel.NewDeclField("dryRun", apiservercel.BoolType, true, nil, nil)
	query := apiservercel.NewMapType(apiservercel.StringType, apiservercel.StringType, 64)
	asked["query"] = apiservercel.NewDeclField("query", query, true, nil, nil)
	requestType := apiservercel.NewObjectType("taskgate.Request", asked)
	paramsType := apiservercel.NewObjectType("taskgate.Params", texts("agent", "task", "grant", "policy"))
	set, err := environment.MustBaseEnvSet(compatibility()).Extend(environment.VersionedOptions{
		IntroducedVersion: version.MajorMinor(1, 0),
		EnvOptions: []cel.EnvOption{
			cel.Variable(request, requestType.CelType()), cel.Variable(params, paramsType.CelType()),
			cel.Variable(object, cel.DynType), cel.Variable(oldObject, cel.DynType),
		},
		DeclTypes: []*apiservercel.DeclType{requestType, paramsType},
	})
	if err != nil {
		return nil, err
	}
	if env := set.NewExpressionsEnv(); env != nil {
		return env, nil
	}
	return nil, errors.New("there is none")
})
