package authz

import (
	"slices"
	"strings"
)

// Boundary is the never-list: what is refused whatever a grant says. The zero
// value is the list without the namespaces an installation adds.
type Boundary struct {
	// Namespaces of the broker, of SPIRE and of whatever else must stay out of
	// reach of agents, for reads too.
	Namespaces []string
	// AgentNamespaces are the namespaces agents run in: network policies there
	// keep the agents in and are out of their reach. Empty means every namespace.
	AgentNamespaces []string
}

// never names the reason a call is never allowed, or returns "".
//
// It is a list of what is refused, so what it does not know passes on to the
// grants; the lists of groups are therefore whole groups, not kinds.
func (b *Boundary) never(c *Call) string {
	if c.Namespace != "" && slices.Contains(b.Namespaces, c.Namespace) {
		return "ProtectedNamespace"
	}
	if c.HostAccess != "" {
		return "PodPolicy"
	}
	switch c.Group {
	case OwnGroup:
		return "OwnObjects" // what an agent may do here has been allowed before
	case "admissionregistration.k8s.io":
		return "AdmissionConfiguration"
	case "apiregistration.k8s.io":
		return "APIService"
	case "spire.spiffe.io":
		return "SPIRERegistration"
	case "authentication.k8s.io", "authorization.k8s.io":
		return "Review" // the self reviews have been answered before
	case "certificates.k8s.io":
		if c.Subresource == "approval" {
			return "CertificateApproval"
		}
	case "":
		return b.neverCore(c)
	}
	if strings.Contains(c.Resource, "networkpolic") && c.Verb.Mutates() &&
		(len(b.AgentNamespaces) == 0 || c.Namespace == "" || slices.Contains(b.AgentNamespaces, c.Namespace)) {
		return "NetworkPolicy"
	}
	return ""
}

func (b *Boundary) neverCore(c *Call) string {
	switch c.Subresource {
	case "proxy":
		return "Proxy"
	case "token":
		return "TokenRequest"
	}
	if c.ServiceAccountToken {
		return "TokenSecret"
	}
	return ""
}
