package request

import (
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/taskgate/taskgate/authz"
)

// maxParameters is far above what any client sends, but for the arguments of a
// command; net/http itself would take ten thousand.
const maxParameters = 512

// parseQuery reads a raw query of which every pair parses and every name occurs
// once, but for the lists of streams: the arguments of a command, and ports.
func parseQuery(raw string) (url.Values, *Refusal) {
	if raw == "" {
		return url.Values{}, nil
	}
	if strings.Count(raw, "&") >= maxParameters {
		return nil, refuse(authz.BadQuery, "Count", "the query has more than %d parameters", maxParameters)
	}
	if strings.Contains(raw, ";") {
		return nil, refuse(authz.BadQuery, "Separator", "the query holds a semicolon; separate parameters by & and write %%3B in values")
	}
	values, err := url.ParseQuery(raw)
	if err != nil {
		return nil, refuse(authz.BadQuery, "Encoding", "the query holds a parameter that cannot be decoded")
	}
	for name, given := range values {
		if name == "command" {
			if slices.ContainsFunc(given, notAnArgument) {
				return nil, refuse(authz.BadQuery, "Character", "an argument of the command holds a zero byte or is not UTF-8")
			}
			continue
		}
		if len(given) > 1 && name != "ports" {
			return nil, refuse(authz.BadQuery, "Duplicate", "the parameter %q is given %d times", name, len(given))
		}
		if slices.ContainsFunc(given, notPlain) {
			return nil, refuse(authz.BadQuery, "Character", "the value of %q holds control characters or is not UTF-8", name)
		}
	}
	return values, nil
}

func notPlain(value string) bool {
	return strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\uFFFD' })
}

// notAnArgument allows what scripts on a command line have: lines, tabs, and any
// other character but what execve cannot take.
func notAnArgument(value string) bool { return strings.ContainsAny(value, "\x00\uFFFD") }

// check says what is wrong with a parameter's value; nil where the API server
// judges it and nothing here depends on it.
type check func(string) bool

func anything(string) bool { return true }

// boolean takes what clients write ("True" comes from Python). The API server
// takes every word but false and 0 for true.
func boolean(s string) bool {
	return slices.Contains([]string{"true", "false", "1", "0"}, strings.ToLower(s))
}
func number(s string) bool        { _, err := strconv.ParseInt(s, 10, 64); return err == nil }
func dryRunAll(s string) bool     { return s == "All" }
func duration(s string) bool      { _, err := time.ParseDuration(s); return err == nil }
func labelSelector(s string) bool { _, err := labels.Parse(s); return err == nil }
func fieldSelector(s string) bool { _, err := fields.ParseSelector(s); return err == nil }
func oneOf(words ...string) check { return func(s string) bool { return slices.Contains(words, s) } }
func join(sets ...parameters) parameters {
	all := parameters{}
	for _, set := range sets {
		for name, check := range set {
			all[name] = check
		}
	}
	return all
}

// parameters are the names a kind of call may carry, with the check of the
// value. They are those of the option types of k8s.io/apimachinery and
// k8s.io/api (query_test.go compares), less what is refused on purpose:
// insecureSkipTLSVerifyBackend, ignoreStoreReadErrorWithClusterBreakingPotential
// and the alpha shardSelector.
type parameters map[string]check

// tables lists the parameters by kind of call.
func tables() map[kind]parameters {
	always := parameters{"pretty": anything, "timeout": duration}
	write := join(always, parameters{
		"dryRun": dryRunAll, "fieldManager": anything, "fieldValidation": oneOf("Ignore", "Warn", "Strict"),
	})
	selectors := parameters{
		"labelSelector": labelSelector, "fieldSelector": fieldSelector, "limit": number, "continue": anything,
		"resourceVersion": anything, "resourceVersionMatch": oneOf("Exact", "NotOlderThan"), "timeoutSeconds": number,
		"sendInitialEvents": boolean, "allowWatchBookmarks": boolean,
	}
	deletion := join(always, parameters{
		"gracePeriodSeconds": number, "orphanDependents": boolean, "dryRun": dryRunAll,
		"propagationPolicy": oneOf("Orphan", "Background", "Foreground"),
	})
	terminal := parameters{"stdin": boolean, "stdout": boolean, "stderr": boolean, "tty": boolean, "container": containerName}
	table := join(always, parameters{"includeObject": oneOf("None", "Metadata", "Object")})
	lists := join(table, selectors, parameters{"watch": boolean})
	return map[kind]parameters{
		{verb: authz.Get}:                 join(table, parameters{"resourceVersion": anything}),
		{verb: authz.Get, nameless: true}: join(always, parameters{"hash": anything}),
		{verb: authz.Get, log: true}: join(always, parameters{
			"container": anything, "follow": boolean, "previous": boolean, "sinceSeconds": number, "sinceTime": anything,
			"timestamps": boolean, "tailLines": number, "limitBytes": number, "stream": oneOf("All", "Stdout", "Stderr"),
		}),
		{verb: authz.Create, stream: "exec"}:        join(terminal, parameters{"command": anything}),
		{verb: authz.Create, stream: "attach"}:      terminal,
		{verb: authz.Create, stream: "portforward"}: {"ports": portList},
		{verb: authz.List}:                          lists,
		{verb: authz.Watch}:                         lists,
		{verb: authz.Create}:                        write,
		{verb: authz.Update}:                        write,
		{verb: authz.Patch}:                         join(write, parameters{"force": boolean}),
		{verb: authz.Delete}:                        deletion,
		{verb: authz.DeleteCollection}:              join(deletion, selectors),
	}
}

// kind tells calls apart that take different parameters.
type kind struct {
	verb     authz.Verb
	nameless bool   // names no resource, such as /version
	log      bool   // the log of a pod
	stream   string // the subresource of a pod that is opened as a stream
}

// judgeQuery refuses parameters that are unknown for the call or have a value
// the broker and the API server might read differently.
func (p *Parser) judgeQuery(call *authz.Call, query url.Values) *Refusal {
	accepted := p.parameters[kind{
		verb:     call.Verb,
		nameless: call.Resource == "" && call.Verb == authz.Get,
		log:      call.Group == "" && call.Resource == "pods" && call.Subresource == "log",
		stream:   streamOf(call),
	}]
	for name, values := range query {
		check, found := accepted[name]
		if !found {
			return refuse(authz.BadQuery, "Unknown", "the parameter %q is not known for %s", name, call.Verb)
		}
		if slices.ContainsFunc(values, func(value string) bool { return !check(value) }) {
			return refuse(authz.BadQuery, "Value", "the value of the parameter %q is not understood", name)
		}
	}
	return nil
}
