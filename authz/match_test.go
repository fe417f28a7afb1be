package authz

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/component-helpers/auth/rbac/validation"
)

// TestRulesMatchLikeRBAC compares the compiled rules with Kubernetes' own
// comparison on random rules and calls: a rule covers a call exactly if RBAC
// says it covers the rule that allows nothing but this call.
func TestRulesMatchLikeRBAC(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	pick := func(words ...string) []string {
		var picked []string
		for range 1 + random.IntN(2) {
			picked = append(picked, words[random.IntN(len(words))])
		}
		return picked
	}
	one := func(words ...string) string { return words[random.IntN(len(words))] }
	matches := 0
	for range 200_000 {
		rule := Rule{
			Namespaces: []string{"shop"},
			APIGroups:  pick("", "apps", "*", "batch"),
			Resources:  pick("pods", "pods/log", "*/log", "*", "deployments", "pods/*", "*/scale"),
			Verbs:      pick("get", "list", "*", "create", "patch"),
		}
		if random.IntN(3) == 0 {
			rule.ResourceNames = pick("a", "b")
		}
		c := Call{
			Verb: ParseVerb(one("get", "list", "create", "patch", "delete")), Group: one("", "apps", "batch"),
			Resource: one("pods", "deployments"), Subresource: one("", "log", "scale"), Namespace: "shop", Name: one("", "a", "b", "c"),
		}
		only := rbacv1.PolicyRule{Verbs: []string{c.Verb.String()}, APIGroups: []string{c.Group}, Resources: []string{c.QualifiedResource()}}
		if c.Name != "" {
			only.ResourceNames = []string{c.Name}
		}
		want, _ := validation.Covers([]rbacv1.PolicyRule{toRBAC(&rule)}, []rbacv1.PolicyRule{only})
		compiled := compileRule(&rule)
		if got := compiled.match(&c, c.Verb); got != want {
			t.Fatalf("rule %+v, call %+v: got %v, RBAC says %v", rule, c, got, want)
		}
		if want {
			matches++
		}
	}
	if matches < 1000 {
		t.Errorf("only %d of the random calls matched: the comparison says little", matches)
	}
}

// TestEmptyMatchesNothing: each list of a rule left empty, or holding only words
// nobody knows, takes everything away.
func TestEmptyMatchesNothing(t *testing.T) {
	whole := Rule{Namespaces: []string{"*"}, APIGroups: []string{"*"}, Resources: []string{"*"}, Verbs: []string{"*"}}
	c := Call{Verb: Get, Resource: "pods", Name: "a"}
	matches := func(change func(*Rule)) bool {
		rule := whole
		change(&rule)
		compiled := compileRule(&rule)
		return compiled.match(&c, c.Verb)
	}
	if !matches(func(*Rule) {}) {
		t.Fatal("the whole rule does not match")
	}
	for name, change := range map[string]func(*Rule){
		"namespaces":           func(r *Rule) { r.Namespaces = nil },
		"apiGroups":            func(r *Rule) { r.APIGroups = nil },
		"resources":            func(r *Rule) { r.Resources = nil },
		"verbs":                func(r *Rule) { r.Verbs = nil },
		"namespace \"\"":       func(r *Rule) { r.Namespaces = []string{""} },
		"namespace prefix":     func(r *Rule) { r.Namespaces = []string{"sho*"} },
		"unknown verbs":        func(r *Rule) { r.Verbs = []string{"", "impersonate", "GET"} },
		"resource pods*":       func(r *Rule) { r.Resources = []string{"pods*"} },
		"resource \"\"":        func(r *Rule) { r.Resources = []string{""} },
		"resource of a prefix": func(r *Rule) { r.Resources = []string{"pod"} },
	} {
		if matches(change) {
			t.Errorf("%s: matches", name)
		}
	}
}

func TestPatterns(t *testing.T) {
	rows := []struct {
		pattern, id string
		want        bool
	}{
		{"spiffe://a.org/ns/x/sa/a1", "spiffe://a.org/ns/x/sa/a1", true},
		{"spiffe://a.org/ns/x/sa/a1", "spiffe://a.org/ns/x/sa/a10", false},
		{"spiffe://a.org/ns/x/sa/a1", "spiffe://a.org/ns/x/sa/a1/x", false},
		{"spiffe://a.org/ns/x/sa/a1", "spiffe://a.org/ns/x/sa/A1", false},
		{"spiffe://a.org/ns/x/sa/a1", "spiffe://b.org/ns/x/sa/a1", false},
		{"spiffe://a.org/ns/*/sa/a1", "spiffe://a.org/ns/y/sa/a1", true},
		{"spiffe://a.org/ns/*/sa/a1", "spiffe://a.org/ns/y/z/sa/a1", false},
		{"spiffe://a.org/ns/*", "spiffe://a.org/ns/y/sa", false},
		{"spiffe://a.org/ns/**", "spiffe://a.org/ns/y/sa", true},
		{"spiffe://a.org/ns/**", "spiffe://a.org/ns/y", true},
		{"spiffe://a.org/ns/**", "spiffe://a.org/ns", false},
		{"spiffe://a.org/ns/**", "spiffe://a.org/nsx/y", false},
		{"spiffe://a.org/**", "spiffe://a.org/x", true},
		{"spiffe://a.org/**", "spiffe://a.org", false},
		{"spiffe://a.org/**", "spiffe://a.org.evil/x", false},
		{"spiffe://a.org/*/x", "spiffe://a.org/*/x", false}, // no such ID; see below
	}
	for _, row := range rows {
		p, err := parsePattern(row.pattern)
		if err != nil {
			t.Errorf("%s: %v", row.pattern, err)
			continue
		}
		id, err := spiffeid.FromString(row.id)
		if got := err == nil && p.match(id); got != row.want {
			t.Errorf("%s on %s: got %v", row.pattern, row.id, got)
		}
	}
	for _, bad := range []string{
		"", "*", "spiffe://", "spiffe://a.org", "spiffe://a.org/", "spiffe://*/x", "spiffe://*.org/x", "spiffe://A.org/x",
		"https://a.org/x", "spiffe://a.org/x*", "spiffe://a.org/**/x", "spiffe://a.org//x", "spiffe://a.org/x/", "spiffe://a.org/../x",
		"spiffe://a.org/x%2fy", "spiffe://a.org/x?y", "spiffe://a.org:80/x", "spiffe://user@a.org/x",
	} {
		if p, err := parsePattern(bad); err == nil {
			t.Errorf("%q is taken for a pattern: %+v", bad, p)
		}
	}
	if (&pattern{}).match(spiffeid.RequireFromString("spiffe://a.org/x")) {
		t.Error("the zero pattern matches")
	}
}

func TestMissing(t *testing.T) {
	r := func(text string) Rule { // verbs namespaces groups resources [names]
		f := strings.Fields(text)
		list := func(i int) []string { return strings.Split(strings.ReplaceAll(f[i], "core", ""), ",") }
		rule := Rule{Verbs: list(0), Namespaces: list(1), APIGroups: list(2), Resources: list(3)}
		if len(f) > 4 {
			rule.ResourceNames = list(4)
		}
		return rule
	}
	allowed := []Rule{r("get,list shop core,apps pods,deployments"), r("get * core nodes"), r("get shop core secrets db")}
	allowed[2].Redacted = true
	redacted := func(rule Rule) Rule { rule.Redacted = true; return rule }

	rows := []struct {
		wanted Rule
		want   string
	}{
		{r("get shop core pods"), "[]"},
		{r("get,list shop core,apps pods,deployments"), "[]"},
		{r("get shop core pods web-0"), "[]"},
		{r("delete shop core pods"), "[delete pods in namespace shop]"},
		{r("get,delete shop,bank core pods"), "[delete pods in namespace shop get pods in namespace bank delete pods in namespace bank]"},
		{r("get * core pods"), "[get pods in namespace *]"},
		{r("* shop core pods"), "[* pods in namespace shop]"},
		{r("get shop core *"), "[get * in namespace shop]"},
		{r("get shop * pods"), "[get pods.* in namespace shop]"},
		{r("get shop core pods/log"), "[get pods/log in namespace shop]"},
		{r("get bank core nodes"), "[]"},
		{r("get shop apps nodes x"), "[get nodes.apps in namespace shop named x]"},
		{r("get shop core secrets db"), "[get secrets in namespace shop named db]"},
		{redacted(r("get shop core secrets db")), "[]"},
		{redacted(r("get shop core secrets")), "[get secrets in namespace shop]"},
	}
	for _, row := range rows {
		if got := fmt.Sprint(Missing(allowed, []Rule{row.wanted})); got != row.want {
			t.Errorf("%+v:\n got %s\nwant %s", row.wanted, got, row.want)
		}
	}
	if Missing(nil, []Rule{r("get shop core pods")}) == nil {
		t.Error("a policy without a ceiling covers something")
	}
}

func TestConstraintsOfTheCeiling(t *testing.T) {
	ceiling := Rule{Commands: [][]string{{"nginx", "-t"}}, NoStdin: true, NoTTY: true, ServiceAccounts: []string{"a"}}
	same := ceiling
	if !ceiling.admits(&same) {
		t.Error("the ceiling does not admit itself")
	}
	for name, change := range map[string]func(*Rule){
		"any command":     func(r *Rule) { r.Commands = nil },
		"another command": func(r *Rule) { r.Commands = [][]string{{"nginx", "-t"}, {"sh"}} },
		"more arguments":  func(r *Rule) { r.Commands = [][]string{{"nginx", "-t", "-q"}} },
		"stdin":           func(r *Rule) { r.NoStdin = false },
		"tty":             func(r *Rule) { r.NoTTY = false },
		"another account": func(r *Rule) { r.ServiceAccounts = []string{"a", "b"} },
	} {
		wanted := ceiling
		change(&wanted)
		if ceiling.admits(&wanted) {
			t.Errorf("%s: admitted", name)
		}
	}
	fewer := Rule{Commands: [][]string{{"nginx", "-t"}}, NoStdin: true, NoTTY: true}
	if !ceiling.admits(&fewer) || !(&Rule{}).admits(&fewer) {
		t.Error("asking for less is refused")
	}
}
