package authz

import "strings"

// Verb is what a call does, in the words of Kubernetes RBAC. The zero Verb is
// none of them and is never allowed.
type Verb uint8

// The verbs of the Kubernetes API.
const (
	Get Verb = iota + 1
	List
	Watch
	Create
	Update
	Patch
	Delete
	DeleteCollection
)

var verbNames = [...]string{"", "get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"}

// ParseVerb returns the verb of that name, zero for any other word.
func ParseVerb(name string) Verb {
	for verb, known := range verbNames {
		if verb > 0 && known == name {
			return Verb(verb)
		}
	}
	return 0
}

// String is the name of the verb, empty for the zero Verb.
func (v Verb) String() string {
	if int(v) < len(verbNames) {
		return verbNames[v]
	}
	return ""
}

// Mutates reports whether the verb can change the cluster. A word nobody knows
// counts as one that does.
func (v Verb) Mutates() bool { return v != Get && v != List && v != Watch }

// Call is one request as the broker understood it. It holds nothing the client
// spelled: only what the parsed path, query and body mean.
type Call struct {
	Verb        Verb
	Group       string // "" is the core group
	Version     string // never decides
	Resource    string // plural; empty for a call that names no resource
	Subresource string
	Namespace   string
	Name        string // empty where the call names no object

	// Path is the path of a call that names no resource, such as /version.
	Path string

	// Creates is set for calls that create the object if it is missing: an apply
	// patch, a PUT whose body does not name the UID of an existing object. They
	// need create besides their own verb.
	Creates bool
	// ServiceAccountToken is set if the body is a Secret of the type that the
	// cluster fills with a token of a service account.
	ServiceAccountToken bool
	// ServiceAccount is what a pod or pod template in the body wants to run as;
	// empty and "default" are the same.
	ServiceAccount string
	// HostAccess names the first thing by which a pod or pod template in the body
	// would reach its node (hostNetwork, hostPath, privileged, …).
	HostAccess string
	// Stream is what an exec, an attach or a port-forward wants in the pod; nil for
	// any other call, and for the question whether there is any such call that
	// would be allowed.
	Stream *Stream
}

// Stream is what is asked of a running pod.
type Stream struct {
	Command   []string // of an exec, nil otherwise
	Container string   // empty: the one that the cluster takes by itself
	Stdin     bool     // the agent can send: to a command, or to a port
	TTY       bool
}

// QualifiedResource is the resource with its subresource, as RBAC writes it.
func (c *Call) QualifiedResource() string {
	if c.Subresource == "" {
		return c.Resource
	}
	return c.Resource + "/" + c.Subresource
}

// discovery reports whether the call only reads what kinds of objects there are.
func (c *Call) discovery() bool {
	if c.Resource != "" || c.Verb != Get {
		return false
	}
	switch head, rest, _ := strings.Cut(strings.TrimPrefix(c.Path, "/"), "/"); head {
	case "version":
		return rest == ""
	case "api":
		return !strings.Contains(rest, "/")
	case "apis":
		return strings.Count(rest, "/") <= 1
	case "openapi":
		return rest == "v2" || rest == "v3" || strings.HasPrefix(rest, "v3/")
	}
	return false
}

// Secrets reports whether the call is about Secrets, so that its answer can carry
// some.
func (c *Call) Secrets() bool { return core(c, "secrets") }

// AsksAboutItself reports whether the call is a review of what the caller itself
// is or may do. The broker answers it from the grants.
func (c *Call) AsksAboutItself() bool {
	if c.Verb != Create || c.Subresource != "" || c.Namespace != "" {
		return false
	}
	switch c.Group {
	case "authorization.k8s.io":
		return c.Resource == "selfsubjectaccessreviews" || c.Resource == "selfsubjectrulesreviews"
	case "authentication.k8s.io":
		return c.Resource == "selfsubjectreviews"
	}
	return false
}
