package broker

import (
	"net/http"
	"slices"
	"strings"

	"github.com/taskgate/taskgate/authz"
	"github.com/taskgate/taskgate/recorder"
)

// The one user all agents are in the cluster, and the group they all have. The
// agent, its task and its grant travel as extras, the policy as a group, so that
// Kubernetes RBAC can be given per policy and the cluster's own audit log names
// who it was.
const (
	upstreamUser        = "taskgate:agent"
	upstreamGroup       = "taskgate:agents"
	policyGroupPrefix   = "taskgate:policy:"
	extraAgent          = "agent.taskgate.dev"
	extraTask           = "task.taskgate.dev"
	extraGrant          = "grant.taskgate.dev"
	impersonateUser     = "Impersonate-User"
	impersonateGroup    = "Impersonate-Group"
	impersonateAgent    = "Impersonate-Extra-Agent.taskgate.dev" // as net/http spells it
	impersonateTask     = "Impersonate-Extra-Task.taskgate.dev"
	impersonateGrant    = "Impersonate-Extra-Grant.taskgate.dev"
	headerAuditID       = "Audit-Id"
	headerAuthorization = "Authorization"
)

// principal is who a call is in the cluster. The zero principal is nobody, and
// nothing leaves for nobody.
type principal struct {
	agent string // SPIFFE ID; never empty
	// task, grant and policy are of the grant that is charged; all empty for
	// discovery, which needs none.
	task, grant, policy string
}

// principalOf binds an agent to the grant that is charged.
func principalOf(agent string, grant *authz.Grant) principal {
	if grant == nil {
		return principal{agent: agent}
	}
	return principal{agent: agent, task: grant.Task, grant: grant.UID, policy: grant.Policy}
}

// valid reports whether every part the principal needs is there, and none that
// could mean something else: a header value is trimmed by whoever reads it.
func (p principal) valid() bool {
	parts := [...]string{p.agent, p.task, p.grant, p.policy}
	needed := len(parts)
	if p.grant == "" && p.task == "" && p.policy == "" {
		needed = 1
	}
	for _, part := range parts[:needed] {
		if part == "" || part != strings.TrimSpace(part) || strings.ContainsFunc(part, func(r rune) bool { return r < ' ' || r > '~' }) {
			return false
		}
	}
	return true
}

// user is the principal as records name it.
func (p principal) user() *recorder.UserInfo {
	user := &recorder.UserInfo{Username: upstreamUser, Groups: []string{upstreamGroup}, Extra: map[string][]string{extraAgent: {p.agent}}}
	if p.policy != "" {
		user.Groups = append(user.Groups, policyGroupPrefix+p.policy)
	}
	if p.grant != "" {
		user.Extra[extraTask], user.Extra[extraGrant] = []string{p.task}, []string{p.grant}
	}
	return user
}

// impersonation are all headers that say who a request is of (Kubernetes,
// Authenticating, "User impersonation").
var impersonation = [...]string{impersonateUser, impersonateGroup, impersonateAgent, impersonateTask, impersonateGrant}

// claim is what one of these headers has to say for the principal: the first
// count values. None means that it must not be there.
func (p principal) claim(name string) (values [2]string, count int) {
	switch name {
	case impersonateUser:
		return [2]string{upstreamUser}, 1
	case impersonateGroup:
		if p.policy == "" {
			return [2]string{upstreamGroup}, 1
		}
		return [2]string{upstreamGroup, policyGroupPrefix + p.policy}, 2
	case impersonateAgent:
		return [2]string{p.agent}, 1
	case impersonateTask:
		if p.grant != "" {
			return [2]string{p.task}, 1
		}
	case impersonateGrant:
		if p.grant != "" {
			return [2]string{p.grant}, 1
		}
	}
	return values, 0
}

// impersonate writes the principal into the headers of a request.
func (p principal) impersonate(header http.Header) {
	for _, name := range impersonation {
		if values, count := p.claim(name); count > 0 {
			header[name] = slices.Clone(values[:count])
		}
	}
}
