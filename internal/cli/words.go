package cli

import (
	"fmt"
	"strings"

	"github.com/taskgate/taskgate/api/v1alpha1"
)

// What is said here is made of text from agents and still has to be escaped by
// whoever shows it.

// callWords says verb and object of a call. It is made of what the broker parsed,
// not of the summary.
func callWords(c *v1alpha1.ApprovalCall) string {
	verb := map[string]string{
		"exec": "Run a command in", "attach": "Attach to", "portforward": "Forward ports of", "ephemeralcontainers": "Add a container to",
	}[c.Subresource]
	if verb == "" && c.Verb == "deletecollection" {
		verb = "Delete all matching"
	}
	if verb == "" {
		first := min(1, len(c.Verb))
		verb = strings.ToUpper(c.Verb[:first]) + c.Verb[first:]
	}
	words := verb + " " + word(c.Resource)
	if c.Group != "" {
		words += "." + word(c.Group)
	}
	if c.Subresource != "" {
		words += "/" + word(c.Subresource)
	}
	if c.Name != "" {
		words += " " + word(c.Name)
	}
	if c.Namespace != "" && c.Resource != "namespaces" {
		words += " in namespace " + word(c.Namespace)
	}
	return words
}

// ruleWords says one rule of a grant.
func ruleWords(r *v1alpha1.Rule) string {
	groups := ""
	if strings.Join(r.APIGroups, "") != "" {
		groups = " (API groups " + wordList(r.APIGroups, ", ") + ")"
	}
	words := fmt.Sprintf("%s %s%s in %s", wordList(r.Verbs, ", "), wordList(r.Resources, ", "), groups, namespaces(r.Namespaces))
	if len(r.ResourceNames) > 0 {
		words += ", named " + wordList(r.ResourceNames, ", ")
	}
	for _, command := range r.Commands {
		words += ", command " + wordList(command, " ")
	}
	if len(r.Containers) > 0 {
		words += ", container " + wordList(r.Containers, ", ")
	}
	if r.Values != "" {
		words += ", without the values of Secrets"
	}
	if r.Stdin != nil && !*r.Stdin {
		words += ", without input"
	}
	if r.TTY != nil && !*r.TTY {
		words += ", without a terminal"
	}
	if len(r.ServiceAccounts) > 0 {
		words += ", pods as service account " + wordList(r.ServiceAccounts, ", ")
	}
	return words
}

// may says the rules in a few words.
func may(rules []v1alpha1.Rule) string {
	var words []string
	for _, rule := range rules {
		words = append(words, fmt.Sprintf("%s %s in %s", wordList(rule.Verbs, ","), wordList(rule.Resources, ","), wordList(rule.Namespaces, ",")))
	}
	return strings.Join(words, "; ")
}

// word writes what is no plain word as a shell would take it. Otherwise an object
// called "a in namespace b" would read like another object, and a name with a comma
// like a restriction of ours.
func word(text string) string {
	odd := func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-._:/*", r))
	}
	if text == "" || strings.ContainsFunc(text, odd) {
		return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
	}
	return text
}

func wordList(texts []string, separator string) string {
	words := make([]string, len(texts))
	for i, text := range texts {
		words[i] = word(text)
	}
	return strings.Join(words, separator)
}

func namespaces(names []string) string {
	if len(names) == 1 && names[0] == "*" {
		return "every namespace and the whole cluster"
	}
	return "namespace " + wordList(names, ", ")
}

// risk says why a built-in gate stands, "" if it is not one of them.
func risk(gate string) string {
	return map[string]string{
		"namespace-delete": "everything in the namespace goes with it",
		"deletecollection": "one call deletes many objects",
		"exec":             "a command in a container can do whatever the container may, unseen by the Kubernetes API",
		"port-forward":     "it opens a way into the pod's network, past the Kubernetes API",
		"debug":            "it adds a container to a running pod",
		"secret-values":    "it shows the values of Secrets to the agent",
		"rbac":             "it changes who may do what in the cluster",
		"crd":              "it changes the kinds of objects the cluster knows",
		"pv":               "it changes where data is stored",
		"node":             "it changes a node and everything that runs there",
	}[gate]
}

// gateWords says which gate a call waits at and why, with the rule as written
// where it can be read. A policy's gate may be another policy's than the grant's.
func (t *target) gateWords() []string {
	gate := t.approval.Spec.Gate
	if why := risk(gate); why != "" {
		return []string{fmt.Sprintf("gate %s (built in): %s", gate, why)}
	}
	lines := []string{"gate " + gate + ", set by an AgentPolicy"}
	if t.policy == nil {
		return lines
	}
	for _, g := range t.policy.Spec.Gates {
		if g.Name == gate && g.When != "" {
			lines = append(lines, "it stands when "+g.When)
		}
	}
	return lines
}

// summary says what is asked for.
func (t *target) summary() string {
	if t.approval != nil {
		if t.approval.Spec.Summary != "" {
			return t.approval.Spec.Summary
		}
		return callWords(&t.approval.Spec.Call)
	}
	return may(t.grant.Spec.Rules)
}

// words are all words an agent may have chosen so that they are misread.
func (t *target) words() string {
	if t.approval == nil {
		words := t.task
		for i := range t.grant.Spec.Rules {
			words += " " + ruleWords(&t.grant.Spec.Rules[i])
		}
		return words
	}
	c := &t.approval.Spec.Call
	return strings.Join(append([]string{c.Name, c.Namespace, c.Resource, c.Subresource, c.Query, t.task, t.approval.Spec.Summary, t.approval.Spec.Diff}, c.Command...), " ")
}

// meaning is what approving means.
func (t *target) meaning() string {
	if t.approval != nil {
		return fmt.Sprintf("lets exactly this call through, once, within %s after the last person agreed; a changed call asks anew", t.approval.Spec.UseWithin.Duration)
	}
	return fmt.Sprintf("starts this grant for %s; it ends by itself, or with taskgate revoke %s", t.grant.Spec.TTL.Duration, t.name)
}

// gate is the name of what it waits at.
func (t *target) gate() string {
	if t.approval != nil {
		return t.approval.Spec.Gate
	}
	return "grant"
}
