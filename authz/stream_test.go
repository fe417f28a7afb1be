package authz_test

import (
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/taskgate/taskgate/authz"
)

// TestStreamRules (T153): a rule's commands, containers, stdin and tty bind what
// is opened under it, and the refusal says which of them.
func TestStreamRules(t *testing.T) {
	agent := spiffeid.RequireFromString("spiffe://example.org/ns/agents/sa/alpha")
	exec := func(command ...string) authz.Call {
		return authz.Call{Verb: authz.Create, Resource: "pods", Subresource: "exec", Namespace: "shop", Name: "web-0", Stream: &authz.Stream{Command: command, Container: "web"}}
	}
	with := func(c authz.Call, change func(*authz.Call)) authz.Call {
		copied := *c.Stream
		c.Stream = &copied
		change(&c)
		return c
	}
	attach := with(exec(), func(c *authz.Call) { c.Subresource = "attach" })
	forward := with(exec(), func(c *authz.Call) { c.Subresource, c.Stream.Container, c.Stream.Stdin = "portforward", "", true })
	stdin := with(exec("nginx", "-t"), func(c *authz.Call) { c.Stream.Stdin = true })
	tty := with(exec("nginx", "-t"), func(c *authz.Call) { c.Stream.TTY = true })
	commands := authz.Rule{Commands: [][]string{{"nginx", "-t"}, {"sh", "-c", "*"}, {}}}
	for name, row := range map[string]struct {
		rule authz.Rule
		call authz.Call
		want string // the constraint that refuses it
	}{
		"anything":               {authz.Rule{}, exec("rm", "-rf", "/"), ""},
		"exactly":                {commands, exec("nginx", "-t"), ""},
		"more":                   {commands, exec("nginx", "-t", "-q"), "commands"},
		"less":                   {commands, exec("nginx"), "commands"},
		"none":                   {commands, exec(), "commands"},
		"a beginning":            {commands, exec("sh", "-c", "ls"), ""},
		"the whole beginning":    {commands, exec("sh", "-c"), ""},
		"another beginning":      {commands, exec("sh", "-x", "ls"), "commands"},
		"a star is no glob":      {authz.Rule{Commands: [][]string{{"n*"}}}, exec("nginx"), "commands"},
		"all":                    {authz.Rule{Commands: [][]string{{"*"}}}, exec("nginx"), ""},
		"no command at all":      {authz.Rule{Commands: [][]string{}}, exec("nginx"), "commands"},
		"attach under commands":  {commands, attach, "commands"},
		"forward under commands": {authz.Rule{Commands: [][]string{{"*"}}}, forward, "commands"},
		"container":              {authz.Rule{Containers: []string{"web"}}, exec("ls"), ""},
		"another container":      {authz.Rule{Containers: []string{"db"}}, exec("ls"), "containers"},
		"no container":           {authz.Rule{Containers: []string{"web"}}, with(exec("ls"), func(c *authz.Call) { c.Stream.Container = "" }), "containers"},
		"forward and containers": {authz.Rule{Containers: []string{"web"}}, forward, "containers"},
		"stdin":                  {authz.Rule{NoStdin: true}, stdin, "stdin"},
		"without stdin":          {authz.Rule{NoStdin: true}, exec("ls"), ""},
		"forward sends":          {authz.Rule{NoStdin: true}, forward, "stdin"},
		"tty":                    {authz.Rule{NoTTY: true}, tty, "tty"},
		"without tty":            {authz.Rule{NoTTY: true}, exec("ls"), ""},
	} {
		rule := row.rule
		rule.Namespaces, rule.APIGroups, rule.Verbs = []string{"shop"}, []string{""}, []string{"create"}
		rule.Resources = []string{"pods/exec", "pods/attach", "pods/portforward"}
		index, err := authz.NewIndex(authz.Boundary{})
		if err != nil {
			t.Fatal(err)
		}
		now := time.Now()
		if err := index.PutPolicy(&authz.Policy{Name: "shop", UID: "p", Agents: []string{"spiffe://example.org/**"}, Allow: []authz.Rule{rule}, MaxTTL: time.Hour, Waive: []string{"exec", "port-forward"}}); err != nil {
			t.Fatal(err)
		}
		if err := index.PutGrant(&authz.Grant{Name: "g", UID: "g", Agent: agent.String(), Task: "t", Policy: "shop", Rules: []authz.Rule{rule}, Active: true, TTL: time.Hour, ActiveFrom: now.Add(-time.Minute), ExpiresAt: now.Add(time.Hour)}); err != nil {
			t.Fatal(err)
		}
		set, err := index.Pin(agent).Set()
		if err != nil {
			t.Fatal(err)
		}
		d := authz.Decide(authz.Question{Set: set, Call: &row.call, Now: now, FreshUntil: now.Add(time.Hour)})
		switch {
		case row.want == "" && d.Verdict != authz.Allow:
			t.Errorf("%s: %s %s", name, d.Reason, d.Cause)
		case row.want != "" && (d.Verdict != authz.Deny || d.Reason != authz.OutsideGrant || d.Cause != row.want):
			t.Errorf("%s: verdict %d, %s %q", name, d.Verdict, d.Reason, d.Cause)
		}
	}
}

// TestCommandsWithin: a grant's commands lie inside of those of its policy.
func TestCommandsWithin(t *testing.T) {
	rule := func(commands ...[]string) authz.Rule {
		return authz.Rule{Namespaces: []string{"shop"}, APIGroups: []string{""}, Resources: []string{"pods/exec"}, Verbs: []string{"create"}, Commands: commands, Containers: []string{"web"}}
	}
	ceiling := []authz.Rule{rule([]string{"sh", "-c", "*"}, []string{"nginx", "-t"})}
	for name, row := range map[string]struct {
		wanted authz.Rule
		inside bool
	}{
		"the same":          {rule([]string{"sh", "-c", "*"}), true},
		"one of them":       {rule([]string{"sh", "-c", "ls"}), true},
		"a narrower one":    {rule([]string{"sh", "-c", "ls", "*"}), true},
		"a wider one":       {rule([]string{"sh", "*"}), false},
		"the widest":        {rule([]string{"*"}), false},
		"any command":       {rule(), false},
		"more than exactly": {rule([]string{"nginx", "-t", "*"}), false},
	} {
		if missing := authz.Missing(ceiling, []authz.Rule{row.wanted}); (len(missing) == 0) != row.inside {
			t.Errorf("%s: %v", name, missing)
		}
	}
	anywhere := rule([]string{"nginx", "-t"})
	anywhere.Containers = nil
	if len(authz.Missing(ceiling, []authz.Rule{anywhere})) == 0 {
		t.Error("any container lies inside of one")
	}
}
