package registration

import (
	"cmp"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"sigs.k8s.io/yaml"
)

// What a description has to begin with.
const (
	APIVersion = "config.taskgate.dev/v1alpha1"
	Kind       = "SPIRERegistration"
)

// The defaults of a description.
const (
	DefaultContainer = "taskgate"
	DefaultTTL       = 15 * time.Minute
	DefaultTemplate  = "spiffe://{trustDomain}/ns/{namespace}/sa/{serviceAccount}"
)

// Below a minute a short outage of SPIRE takes identities away; over a day a
// stolen key is of use for too long.
const (
	minTTL = time.Minute
	maxTTL = 24 * time.Hour
)

// AnyServiceAccount stands for every service account of a namespace. Only a
// ClusterSPIFFEID can say that.
const AnyServiceAccount = "*"

// Spec describes the agents of one cluster, and what their sidecar is.
type Spec struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	// Name of the set: the entries are told from those of other sets, such as
	// other clusters on the same SPIRE server, by it. Part of their IDs.
	Name        string `json:"name"`
	TrustDomain string `json:"trustDomain"`
	// ParentID is the SPIFFE ID of the SPIRE agents of the cluster's nodes: one
	// agent's, or an alias for all of them.
	ParentID string `json:"parentID,omitempty"`
	// Cluster is the name the nodes attest by (k8s_psat). Given instead of ParentID, an alias for
	// all nodes of the cluster is registered too.
	Cluster string `json:"cluster,omitempty"`
	// SPIFFEID is the template of the agents' IDs. Default: DefaultTemplate.
	SPIFFEID string `json:"spiffeID,omitempty"`
	// TTL of X509-SVIDs, such as 15m (the default).
	TTL           string   `json:"ttl,omitempty"`
	FederatesWith []string `json:"federatesWith,omitempty"`
	// ClassName is that of the spire-controller-manager which is to act.
	ClassName string  `json:"className,omitempty"`
	Sidecar   Sidecar `json:"sidecar"`
	// Agents must be written; an empty list is none.
	Agents []Agent `json:"agents"`
}

// Sidecar says which container gets the identity.
type Sidecar struct {
	Container string `json:"container,omitempty"` // default: DefaultContainer
	// Images by digest, as Kubernetes reports them (imageID of the container's
	// status). Several let an old and a new one run side by side.
	Images []string `json:"images"`
}

// Agent is one service account whose pods are an agent's.
type Agent struct {
	Namespace      string `json:"namespace"`
	ServiceAccount string `json:"serviceAccount"`
	SPIFFEID       string `json:"spiffeID,omitempty"` // instead of the template
}

// Parse reads a description in YAML or JSON. An unknown field is an error.
func Parse(data []byte) (*Spec, error) {
	spec := new(Spec)
	if err := yaml.UnmarshalStrict(data, spec); err != nil {
		return nil, fmt.Errorf("reading the description of agents: %w", err)
	}
	if spec.APIVersion != APIVersion || spec.Kind != Kind {
		return nil, fmt.Errorf("the description of agents must begin with apiVersion: %s and kind: %s", APIVersion, Kind)
	}
	return spec, spec.Complete()
}

var (
	label     = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)
	subdomain = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$`)
	image     = regexp.MustCompile(`^([^@\s:]+(:[0-9]+)?(/[^@\s:]+)*@)?sha256:[0-9a-f]{64}$`)
	cluster   = regexp.MustCompile(`^[A-Za-z0-9._-]+$`)
)

// Complete fills in defaults, brings lists into order, and checks everything; the
// error names all that is wrong. A field that is missing is wrong, not everything.
func (s *Spec) Complete() error {
	s.SPIFFEID = cmp.Or(s.SPIFFEID, DefaultTemplate)
	s.TTL = cmp.Or(s.TTL, DefaultTTL.String())
	s.Sidecar.Container = cmp.Or(s.Sidecar.Container, DefaultContainer)
	for _, list := range []*[]string{&s.FederatesWith, &s.Sidecar.Images} {
		*list = slices.Clone(*list)
		slices.Sort(*list)
	}
	s.Agents = slices.Clone(s.Agents)
	slices.SortStableFunc(s.Agents, func(a, b Agent) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.ServiceAccount, b.ServiceAccount))
	})
	var problems []error
	wrong := func(is bool, format string, args ...any) {
		if is {
			problems = append(problems, fmt.Errorf(format, args...))
		}
	}
	_, err := spiffeid.TrustDomainFromString(s.TrustDomain)
	wrong(err != nil || strings.Contains(s.TrustDomain, "/"), "trustDomain: %q is none; write it like example.org", s.TrustDomain)
	wrong(!label.MatchString(s.Name), "name: %q cannot name a set of entries; write small letters, digits and -", s.Name)
	wrong(s.Cluster != "" && !cluster.MatchString(s.Cluster), "cluster: %q is no name of a cluster", s.Cluster)
	wrong(s.Cluster != "" && s.ParentID != "", "cluster and parentID: give one of them")
	ttl, err := time.ParseDuration(s.TTL)
	wrong(err != nil || ttl < minTTL || ttl > maxTTL || ttl%time.Second != 0, "ttl: %q is not between %s and %s", s.TTL, minTTL, maxTTL)
	for _, name := range s.FederatesWith {
		_, err := spiffeid.TrustDomainFromString(name)
		wrong(err != nil || name == s.TrustDomain, "federatesWith: %q is no other trust domain", name)
	}
	wrong(!label.MatchString(s.Sidecar.Container), "sidecar.container: %q is no name of a container", s.Sidecar.Container)
	wrong(len(s.Sidecar.Images) == 0, "sidecar.images: missing; without the image any program in a container of that name would get the identity")
	for i, name := range s.Sidecar.Images {
		wrong(!image.MatchString(name), "sidecar.images: %q has no digest; a tag can be moved. Write repository@sha256:…, as kubectl get pod shows it in imageID", name)
		wrong(i > 0 && name == s.Sidecar.Images[i-1], "sidecar.images: %q is there twice", name)
	}
	wrong(s.Agents == nil, "agents: missing; write agents: [] if there are to be none")
	if err := errors.Join(problems...); err != nil {
		return err
	}
	return s.checkAgents()
}

// checkAgents makes sure that every agent has an identity of its own.
func (s *Spec) checkAgents() error {
	var problems []error
	seen := map[string]string{}
	once := func(key, who string) {
		if other, found := seen[key]; found {
			problems = append(problems, fmt.Errorf("agents: %s and %s are the same, or share %s", other, who, key))
		}
		seen[key] = who
	}
	for _, a := range s.Agents {
		who := a.Namespace + "/" + a.ServiceAccount
		if !label.MatchString(a.Namespace) || a.ServiceAccount != AnyServiceAccount && !subdomain.MatchString(a.ServiceAccount) {
			problems = append(problems, fmt.Errorf("agents: %q names no namespace and service account", who))
			continue
		}
		once("the service account "+who, who)
		id, err := s.identity(a, func(name string) string { return map[string]string{"podUID": "uid", "serviceAccount": "any"}[name] })
		if err != nil {
			problems = append(problems, err)
			continue
		}
		if a.ServiceAccount != AnyServiceAccount {
			once(id.String(), who)
		}
	}
	return errors.Join(problems...)
}

var placeholder = regexp.MustCompile(`\{[^{}]*\}`)

// text fills in an agent's template. What only a pod knows (podUID, and the
// service account where any will do) is asked of late; "" means it cannot be
// known here.
func (s *Spec) text(a Agent, late func(name string) string) (string, error) {
	values := map[string]string{"trustDomain": s.TrustDomain, "namespace": a.Namespace, "podUID": late("podUID"), "serviceAccount": a.ServiceAccount}
	if a.ServiceAccount == AnyServiceAccount {
		values["serviceAccount"] = late("serviceAccount")
	}
	var problem error
	template := cmp.Or(a.SPIFFEID, s.SPIFFEID)
	filled := placeholder.ReplaceAllStringFunc(template, func(found string) string {
		value, known := values[found[1:len(found)-1]]
		switch {
		case !known:
			problem = fmt.Errorf("spiffeID: %s in %q is not known; there are {trustDomain}, {namespace}, {serviceAccount} and {podUID}", found, template)
		case value == "":
			problem = fmt.Errorf("agents: %s/%s: %s is known only where pods are; use the format ClusterSPIFFEID", a.Namespace, a.ServiceAccount, found)
		}
		return value
	})
	return filled, problem
}

// identity is the agent's SPIFFE ID, if one can be told from the description.
func (s *Spec) identity(a Agent, late func(name string) string) (spiffeid.ID, error) {
	text, err := s.text(a, late)
	if err != nil {
		return spiffeid.ID{}, err
	}
	id, err := spiffeid.FromString(text)
	switch {
	case err != nil:
		return id, fmt.Errorf("agents: %s/%s: %q is no SPIFFE ID: %w", a.Namespace, a.ServiceAccount, text, err)
	case id.TrustDomain().Name() != s.TrustDomain:
		return id, fmt.Errorf("agents: %s/%s: %s is not in the trust domain %s", a.Namespace, a.ServiceAccount, id, s.TrustDomain)
	case id.Path() == "" || id.Path() == "/spire" || strings.HasPrefix(id.Path(), "/spire/"):
		return id, fmt.Errorf("agents: %s/%s: %s is SPIRE's own", a.Namespace, a.ServiceAccount, id)
	}
	return id, nil
}

// offline is what can be known without a pod: nothing.
func offline(string) string { return "" }

// Entries are the registration entries the description asks for, the alias of the
// cluster's nodes first. It fails if the description leaves something to the pod,
// or does not say which SPIRE agents attest the nodes.
func (s *Spec) Entries() ([]Entry, error) {
	domain, err := spiffeid.TrustDomainFromString(s.TrustDomain)
	if err != nil {
		return nil, err
	}
	var entries []Entry
	parent, err := s.parent(domain)
	if err != nil {
		return nil, err
	}
	ttl, err := time.ParseDuration(s.TTL)
	if err != nil {
		return nil, err
	}
	if s.Cluster != "" {
		entries = append(entries, s.nodes(domain, parent))
	}
	for _, a := range s.Agents {
		if a.ServiceAccount == AnyServiceAccount {
			return nil, fmt.Errorf("agents: %s/*: an entry names one service account; name it, or use the format ClusterSPIFFEID", a.Namespace)
		}
		id, err := s.identity(a, offline)
		if err != nil {
			return nil, err
		}
		for _, image := range s.Sidecar.Images {
			e := Entry{
				SPIFFEID: id, ParentID: parent, TTL: ttl, Hint: Hint, FederatesWith: s.FederatesWith,
				Selectors: s.selectors(a.Namespace, a.ServiceAccount, image),
			}
			if err := CheckSelectors(e.Selectors); err != nil {
				return nil, fmt.Errorf("%s: %w", id, err)
			}
			e.ID = entryID(s.Name, &e)
			entries = append(entries, e)
		}
	}
	return entries, nil
}

func (s *Spec) selectors(namespace, account, image string) []string {
	selectors := []string{"k8s:ns:" + namespace, "k8s:sa:" + account, "k8s:container-name:" + s.Sidecar.Container, "k8s:container-image:" + image}
	slices.Sort(selectors)
	return selectors
}

func (s *Spec) parent(domain spiffeid.TrustDomain) (spiffeid.ID, error) {
	if s.Cluster != "" {
		return spiffeid.FromSegments(domain, "taskgate", "nodes", s.Cluster)
	}
	if s.ParentID == "" {
		return spiffeid.ID{}, errors.New("which SPIRE agents are the parents? Give cluster (the name nodes attest by with k8s_psat), or parentID (spire-server agent list shows it)")
	}
	id, err := spiffeid.FromString(s.ParentID)
	if err != nil || id.TrustDomain() != domain || id.Path() == "" {
		return id, fmt.Errorf("parentID: %q is no SPIFFE ID in the trust domain %s", s.ParentID, domain.Name())
	}
	return id, nil
}

// nodes is the alias for all nodes of a cluster. Its parent is the server, so it
// is about SPIRE agents and gives no workload an identity.
func (s *Spec) nodes(domain spiffeid.TrustDomain, alias spiffeid.ID) Entry {
	e := Entry{
		SPIFFEID: alias, ParentID: spiffeid.RequireFromSegments(domain, "spire", "server"), Hint: Hint,
		Selectors: []string{"k8s_psat:cluster:" + s.Cluster},
	}
	e.ID = entryID(s.Name, &e)
	return e
}
