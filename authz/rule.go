package authz

import (
	"slices"
	"strings"
)

// Everything is the wildcard of rules.
const Everything = "*"

// Rule gives verbs on resources in namespaces. An empty list matches nothing,
// except ResourceNames, where it means every name, as in RBAC.
type Rule struct {
	Namespaces    []string
	APIGroups     []string
	Resources     []string
	Verbs         []string
	ResourceNames []string

	// Constraints of what the rule gives. The zero value constrains nothing.
	Redacted        bool       // values of Secrets are masked
	Commands        [][]string // exec may run only these, and nothing else may be opened; nil: any
	Containers      []string   // exec and attach may enter only these, and no port may be forwarded; nil: any
	NoStdin         bool       // streams may not send input
	NoTTY           bool       // streams may not have a terminal
	ServiceAccounts []string   // pods may run as these besides default
}

// matcher is the compiled form of a rule or a gate: the same test, prepared.
type matcher struct {
	verbs      uint16 // bit 1<<verb
	groups     words
	resources  []resourceWord
	namespaces words
	names      []string // nil: every name
}

// words is a list of exact words or everything. The zero value matches nothing.
type words struct {
	all   bool
	exact []string
}

func compileWords(list []string) words {
	if slices.Contains(list, Everything) {
		return words{all: true}
	}
	return words{exact: list}
}

func (w *words) match(word string) bool {
	return w.all || slices.Contains(w.exact, word)
}

// resourceWord is one entry of a resources list: resource and subresource, each
// possibly a wildcard.
type resourceWord struct {
	resource, subresource string
	everything            bool // the entry "*"
}

func compileResources(list []string) []resourceWord {
	compiled := make([]resourceWord, 0, len(list))
	for _, entry := range list {
		resource, subresource, _ := strings.Cut(entry, "/")
		compiled = append(compiled, resourceWord{resource, subresource, entry == Everything})
	}
	return compiled
}

// match follows rbac/validation: "*" is every resource and subresource, "*/x" the
// subresource x of all resources, anything else is exact ("pods/*" is no
// wildcard).
func (w *resourceWord) match(resource, subresource string) bool {
	if w.everything {
		return true
	}
	if w.subresource != subresource {
		return false
	}
	return w.resource == resource || (w.resource == Everything && subresource != "")
}

func compileVerbs(list []string) uint16 {
	var bits uint16
	for _, name := range list {
		if name == Everything {
			return ^uint16(1) // every verb but the zero one
		}
		bits |= 1 << ParseVerb(name) // a word nobody knows sets the bit of the zero Verb …
	}
	return bits &^ 1 // … which is taken away here
}

func compileRule(r *Rule) matcher {
	m := matcher{
		verbs:     compileVerbs(r.Verbs),
		groups:    compileWords(r.APIGroups),
		resources: compileResources(r.Resources),
		// An empty namespace would be "no namespace", which has to be written "*".
		namespaces: compileWords(slices.DeleteFunc(slices.Clone(r.Namespaces), isEmpty)),
	}
	if len(r.ResourceNames) > 0 {
		m.names = r.ResourceNames
	}
	return m
}

func isEmpty(word string) bool { return word == "" }

// match reports whether the rule covers the call done with that verb. It is
// false for a call that names no resource: rules speak of resources only.
func (m *matcher) match(c *Call, verb Verb) bool {
	if m.verbs&(1<<verb) == 0 || c.Resource == "" {
		return false
	}
	return m.matchResource(c) && m.groups.match(c.Group) && m.namespaces.match(c.Namespace) &&
		(m.names == nil || (c.Name != "" && slices.Contains(m.names, c.Name)))
}

func (m *matcher) matchResource(c *Call) bool {
	for i := range m.resources {
		if m.resources[i].match(c.Resource, c.Subresource) {
			return true
		}
	}
	return false
}
