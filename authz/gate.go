package authz

import "time"

// Gate names calls that wait for a human. Unlike in a [Rule], an empty list
// matches every call.
type Gate struct {
	Name          string
	Policy        string // empty for a built-in gate
	Namespaces    []string
	APIGroups     []string
	Resources     []string
	Verbs         []string
	ResourceNames []string
	// When is the expression that narrows the gate, for people to read, and
	// Condition what became of it. A gate with an expression and without a
	// Condition holds for every call its lists match.
	When      string
	Condition Condition
	Approvers int
	Groups    []string
	// TTL is how long a request for approval stays open, UseWithin how long the
	// call may be made after the last yes. Zero is no time at all.
	TTL       time.Duration
	UseWithin time.Duration
	// Hold keeps the call open for a while instead of refusing it at once.
	Hold bool
	// PinVersion binds an approval to the version of the object that was shown.
	PinVersion bool
}

// How long built-in gates give people and agents, and gates that say nothing.
const (
	DefaultTTL       = 15 * time.Minute
	DefaultUseWithin = 5 * time.Minute
)

// builtinGate is a gate in which nothing is set but its name.
func builtinGate(name string) Gate {
	return Gate{Name: name, Approvers: 1, TTL: DefaultTTL, UseWithin: DefaultUseWithin}
}

// Condition says whether a gate holds for a call its lists match. Holds MUST be
// true whenever that cannot be found out, MUST NOT make calls, and both methods
// MUST be safe for concurrent use.
type Condition interface {
	// NeedsObjects reports whether Holds looks at the object of the call.
	NeedsObjects() bool
	Holds(Facts) bool
}

// Facts are what a condition is about, as plain values. What there is not is nil.
type Facts struct {
	Request, Object, OldObject, Params map[string]any
}

type compiledGate struct {
	*Gate
	matcher
}

// outdoes reports whether a gate of a policy stands in the place of another one, nil
// if there is none: it asks for more people, or for as many and no less says of which
// groups. A built-in gate never says so, and gives way.
func (g *Gate) outdoes(other *Gate) bool {
	return other == nil || g.Approvers > other.Approvers ||
		g.Approvers == other.Approvers && (len(g.Groups) > 0 || len(other.Groups) == 0)
}

func compileGate(g *Gate) compiledGate {
	m := compileRule(&Rule{
		Namespaces: orEverything(g.Namespaces), APIGroups: orEverything(g.APIGroups),
		Resources: orEverything(g.Resources), Verbs: orEverything(g.Verbs),
	})
	// ResourceNames is left out on purpose: see match.
	return compiledGate{Gate: g, matcher: m}
}

func orEverything(list []string) []string {
	if len(list) == 0 {
		return []string{Everything}
	}
	return list
}

// match holds for a call that names no object even if the gate lists names: a
// create or a list could concern one of them.
func (g *compiledGate) match(c *Call) bool {
	if !g.matcher.match(c, c.Verb) && !(c.Creates && g.matcher.match(c, Create)) {
		return false
	}
	if len(g.ResourceNames) == 0 || c.Name == "" {
		return true
	}
	for _, name := range g.ResourceNames {
		if name == c.Name {
			return true
		}
	}
	return false
}

// builtin is a gate that stands unless every policy of the agent waives it.
type builtin struct {
	gate Gate
	// writesOnly says that it never stands before a call that only reads. Most
	// calls do, and are not asked about such a gate at all (Set.gate).
	writesOnly bool
	about      func(*Call) bool
}

func (b *builtin) hits(c *Call) bool {
	return (c.Verb.Mutates() || !b.writesOnly) && b.about(c)
}

// stands reports whether the gate is in the way of a call under a rule. Values
// that are masked need nobody's yes.
func (b *builtin) stands(c *Call, rule *Rule) bool {
	return b.hits(c) && !(rule.Redacted && b.gate.Name == secretValues)
}

// secretValues is the gate before the values of Secrets.
const secretValues = "secret-values"

// builtins returns the built-in gates (design, section 5) in the order in which
// they are tried.
func builtins() []builtin {
	named := func(name string, about func(*Call) bool) builtin {
		return builtin{gate: builtinGate(name), about: about}
	}
	writes := func(name string, about func(*Call) bool) builtin {
		return builtin{gate: builtinGate(name), writesOnly: true, about: about}
	}
	return []builtin{
		named("namespace-delete", func(c *Call) bool {
			return core(c, "namespaces") && (c.Verb == Delete || c.Subresource == "finalize")
		}),
		writes("deletecollection", func(c *Call) bool { return c.Verb == DeleteCollection }),
		named("exec", func(c *Call) bool {
			return core(c, "pods") && (c.Subresource == "exec" || c.Subresource == "attach")
		}),
		named("port-forward", func(c *Call) bool { return core(c, "pods") && c.Subresource == "portforward" }),
		writes("debug", func(c *Call) bool { return core(c, "pods") && c.Subresource == "ephemeralcontainers" }),
		named(secretValues, showsSecrets),
		writes("rbac", func(c *Call) bool { return c.Group == "rbac.authorization.k8s.io" }),
		writes("crd", func(c *Call) bool {
			return c.Group == "apiextensions.k8s.io" && c.Resource == "customresourcedefinitions"
		}),
		writes("pv", func(c *Call) bool { return core(c, "persistentvolumes") }),
		writes("node", func(c *Call) bool { return core(c, "nodes") }),
	}
}

func core(c *Call, resource string) bool { return c.Group == "" && c.Resource == resource }

// showsSecrets holds for every call whose answer can carry values of Secrets the
// agent did not send itself: the API server answers a patch, an update and some
// deletes with the whole object.
func showsSecrets(c *Call) bool { return c.Secrets() && c.Verb != Create }
