package authz

import "slices"

// refuses names the constraint of the rule that a stream does not keep, in the
// words of the API; empty if it keeps all, and for calls that open none.
//
// A constraint that cannot be held against the call refuses it: a rule with
// commands gives neither attach (what runs already is not known) nor port-forward,
// one with containers needs the container to be named.
func (r *Rule) refuses(c *Call) string {
	s := c.Stream
	switch {
	case s == nil:
		return ""
	case r.Commands != nil && (c.Subresource != "exec" || !slices.ContainsFunc(r.Commands, func(allowed []string) bool { return runs(allowed, s.Command) })):
		return "commands"
	case r.Containers != nil && !slices.Contains(r.Containers, s.Container):
		return "containers"
	case r.NoStdin && s.Stdin:
		return "stdin"
	case r.NoTTY && s.TTY:
		return "tty"
	}
	return ""
}

// runs reports whether an entry of commands allows a command: exactly this list
// of arguments or, if the entry ends in "*", any list that begins with what stands
// before it. The command may be such an entry itself; then all that it allows has
// to be allowed.
func runs(allowed, command []string) bool {
	last := len(allowed) - 1
	if last < 0 || allowed[last] != Everything {
		return last >= 0 && slices.Equal(allowed, command)
	}
	return len(command) >= last && slices.Equal(allowed[:last], command[:last])
}

// brokenBy names the constraint by which the active grants refuse a call that
// their rules match otherwise; empty if there is none.
func (q *Question) brokenBy() string {
	for i := range q.Set.grants {
		g := &q.Set.grants[i]
		if q.Pinned != "" && g.Name != q.Pinned || g.standingAt(q.Now) != active {
			continue
		}
		for n := range g.rules {
			if broken := g.Rules[n].refuses(q.Call); broken != "" && g.rules[n].match(q.Call, q.Call.Verb) {
				return broken
			}
		}
	}
	return ""
}
