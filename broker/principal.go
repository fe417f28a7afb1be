package broker

import (
	"net/http"
	"strings"

	"github.com/taskgate/taskgate/authz"
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
	impersonateExtra    = "Impersonate-Extra-"
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
	parts := []string{p.agent}
	if p.grant != "" || p.task != "" || p.policy != "" {
		parts = append(parts, p.task, p.grant, p.policy)
	}
	for _, part := range parts {
		if part == "" || part != strings.TrimSpace(part) || strings.ContainsFunc(part, func(r rune) bool { return r < ' ' || r > '~' }) {
			return false
		}
	}
	return true
}

// groups are the groups of the principal.
func (p principal) groups() []string {
	if p.policy == "" {
		return []string{upstreamGroup}
	}
	return []string{upstreamGroup, policyGroupPrefix + p.policy}
}

// extras are the extra attributes of the principal.
func (p principal) extras() map[string]string {
	extras := map[string]string{extraAgent: p.agent}
	if p.grant != "" {
		extras[extraTask], extras[extraGrant] = p.task, p.grant
	}
	return extras
}

// impersonate writes the principal into the headers of a request (Kubernetes,
// Authenticating, "User impersonation").
func (p principal) impersonate(header http.Header) {
	header[impersonateUser] = []string{upstreamUser}
	header[impersonateGroup] = p.groups()
	for key, value := range p.extras() {
		header[http.CanonicalHeaderKey(impersonateExtra+key)] = []string{value}
	}
}
