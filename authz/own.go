package authz

// OwnGroup is the API group of taskgate's own objects.
const OwnGroup = "taskgate.dev"

// OwnObjects reports whether the call is an agent's own business with its grants
// and approvals: to ask for a grant, to look, to give a grant back. Whose objects
// it gets to see is not decided here; package broker/tasks shows it only its own.
// Everything else in the group is on the never-list.
func (c *Call) OwnObjects() bool {
	if c.Group != OwnGroup || c.Subresource != "" || c.Namespace != "" {
		return false
	}
	switch c.Resource {
	case "taskgrants":
		return c.Verb == Get || c.Verb == List || c.Verb == Watch || c.Verb == Delete || c.Verb == Create && c.Name == ""
	case "approvals":
		return c.Verb == Get || c.Verb == List || c.Verb == Watch
	}
	return false
}

// OwnObjects decides about such a call. Somebody no policy is about can be given
// nothing, so there is nothing to ask for and nothing to wait for; what it once
// had it may still look at and give back.
func (s *Set) OwnObjects(c *Call) Decision {
	if len(s.policies) == 0 && (c.Verb == Create || c.Verb == Watch) {
		return Decision{Reason: NoGrant, Cause: "NoPolicy"}
	}
	return Decision{Verdict: Allow, Self: true}
}

// Policies are the policies that are about the agent, by name. They must not be
// changed.
func (s *Set) Policies() []*Policy { return s.policies }

// Offer is what an agent could ask for to be allowed a call.
type Offer struct {
	Policy *Policy
	// Rule is the smallest rule that covers the call, with the constraints the
	// policy insists on.
	Rule Rule
}

// Offer finds the first policy of the agent, by name, that could give a rule for
// the call; false if none does, or if the call is never allowed. It is meant for
// the text of a refusal and decides nothing.
func (s *Set) Offer(c *Call) (Offer, bool) {
	if c.Resource == "" || s.boundary.never(c) != "" {
		return Offer{}, false
	}
	for _, policy := range s.policies {
		if policy.Invalid != "" || policy.Suspended {
			continue
		}
		for i := range policy.Allow {
			wanted := smallest(c, &policy.Allow[i])
			if wanted.refuses(c) == "" && len(Missing(policy.Allow, []Rule{wanted})) == 0 {
				return Offer{policy, wanted}, true
			}
		}
	}
	return Offer{}, false
}

// smallest is the rule for one call and nothing else, constrained like a rule of
// a ceiling.
func smallest(c *Call, ceiling *Rule) Rule {
	wanted := Rule{
		Namespaces: []string{c.Namespace}, APIGroups: []string{c.Group}, Resources: []string{c.QualifiedResource()}, Verbs: []string{c.Verb.String()},
		Redacted: ceiling.Redacted, Commands: ceiling.Commands, Containers: ceiling.Containers, NoStdin: ceiling.NoStdin, NoTTY: ceiling.NoTTY,
	}
	if c.Namespace == "" {
		wanted.Namespaces = []string{Everything}
	}
	if c.Name != "" {
		wanted.ResourceNames = []string{c.Name}
	}
	if c.Creates { // creations are not matched by name
		wanted.Verbs, wanted.ResourceNames = append(wanted.Verbs, Create.String()), nil
	}
	if c.ServiceAccount != "" && c.ServiceAccount != "default" {
		wanted.ServiceAccounts = []string{c.ServiceAccount}
	}
	return wanted
}
