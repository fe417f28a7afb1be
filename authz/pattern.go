package authz

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// pattern matches SPIFFE IDs segment by segment. The trust domain is always
// exact, so that an ID of a federated domain never matches by accident. The zero
// pattern matches nothing.
type pattern struct {
	domain   spiffeid.TrustDomain
	segments []string
	deeper   bool // ends in /**: any number (at least one) of further segments
}

// parsePattern reads spiffe://domain/segment/*/segment[/**]. An ID without
// wildcards is a pattern that matches itself.
func parsePattern(text string) (pattern, error) {
	rest, found := strings.CutPrefix(text, "spiffe://")
	if !found {
		return pattern{}, fmt.Errorf("agent pattern %q: write it as spiffe://<trust domain>/<path>", text)
	}
	name, path, _ := strings.Cut(rest, "/")
	domain, err := spiffeid.TrustDomainFromString(name)
	if err != nil || domain.Name() != name {
		return pattern{}, fmt.Errorf("agent pattern %q: %q is not a trust domain in lower case", text, name)
	}
	path, deeper := cutDeeper(path)
	p := pattern{domain: domain, deeper: deeper}
	if path == "" {
		if !deeper {
			return pattern{}, fmt.Errorf("agent pattern %q: a path is needed; an ID without one names no workload", text)
		}
		return p, nil
	}
	p.segments = strings.Split(path, "/")
	for _, segment := range p.segments {
		if segment != "*" && spiffeid.ValidatePathSegment(segment) != nil {
			return pattern{}, fmt.Errorf("agent pattern %q: segment %q is neither a SPIFFE path segment nor *; ** may only be the last one", text, segment)
		}
	}
	return p, nil
}

func cutDeeper(path string) (string, bool) {
	if path == "**" {
		return "", true
	}
	return strings.CutSuffix(path, "/**")
}

func (p *pattern) match(id spiffeid.ID) bool {
	if p.domain.IsZero() || id.TrustDomain() != p.domain || id.Path() == "" {
		return false
	}
	segments := strings.Split(id.Path()[1:], "/")
	if len(segments) < len(p.segments) || (!p.deeper && len(segments) != len(p.segments)) ||
		(p.deeper && len(segments) == len(p.segments)) {
		return false
	}
	for i, want := range p.segments {
		if want != "*" && want != segments[i] {
			return false
		}
	}
	return true
}

// Matches reports whether the policy is about the agent. A pattern that cannot
// be read is about nobody.
func (p *Policy) Matches(agent spiffeid.ID) bool {
	return slices.ContainsFunc(p.Agents, func(text string) bool {
		pattern, err := parsePattern(text)
		return err == nil && pattern.match(agent)
	})
}
