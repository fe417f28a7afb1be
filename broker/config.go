package broker

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"regexp"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// Configuration is the broker's configuration file. An unknown field is an
// error. Secrets are not part of it: the credential of the bucket comes from the
// places AWS tools look in (AWS_ACCESS_KEY_ID and so on, AWS_SHARED_CREDENTIALS_FILE,
// the cloud's metadata service).
type Configuration struct {
	// APIVersion must be config.taskgate.dev/v1alpha1.
	APIVersion string `json:"apiVersion"`
	// Kind must be BrokerConfiguration.
	Kind string `json:"kind"`
	// Name of this replica; must be unique among the brokers of a bucket and the
	// same after a restart. Default: the host name, as in a StatefulSet.
	Name string `json:"name,omitempty"`
	// Cluster is the name of the guarded cluster in records; must be set, and must
	// not change.
	Cluster string `json:"cluster"`

	Listen   Listen   `json:"listen"`
	Identity Identity `json:"identity"`
	// Guarded is the cluster the agents' calls go to.
	Guarded Cluster `json:"guarded"`
	// Control is the cluster that holds the objects of taskgate.dev. Default: the
	// guarded one.
	Control   *Cluster  `json:"control,omitempty"`
	Never     Never     `json:"never"`
	Approvals Approvals `json:"approvals,omitempty"`
	Streams   Streams   `json:"streams,omitempty"`
	// StaleAfter is how long decisions may rest on policies that have not been
	// proven fresh. Default 30s, at most 5m.
	StaleAfter metav1.Duration `json:"staleAfter,omitempty"`
	// KeepEnded is how long TaskGrants that have ended stay in the control cluster,
	// with their Approvals and Decisions; the records stay in any case. Default
	// 168h (a week), at least 10s.
	KeepEnded metav1.Duration `json:"keepEnded,omitempty"`
	Recorder  Recorder        `json:"recorder"`
	// Notify lists who is told when people are asked for something, and what they
	// said. Nothing that is answered decides anything.
	Notify []Receiver `json:"notify,omitempty"`
	// ShutdownGrace is how long calls under way may take to end after SIGTERM, and
	// then once more as long for the records to reach the bucket. Default 20s.
	ShutdownGrace metav1.Duration `json:"shutdownGrace,omitempty"`
	// LogLevel is debug, info, warn or error. Default info. No level shows
	// headers, bodies or tokens.
	LogLevel string `json:"logLevel,omitempty"`
}

// Receiver is told of requests and decisions: a CloudEvent in JSON, signed as
// Standard Webhooks say.
type Receiver struct {
	// URL that takes the events; https, except on this machine.
	URL string `json:"url"`
	// SecretFile holds the signing secret, in the form whsec_<base64>.
	SecretFile string `json:"secretFile"`
}

// Listen says where the broker can be reached.
type Listen struct {
	// Agents is the address sidecars connect to, with mutual TLS. Default :8443.
	Agents string `json:"agents,omitempty"`
	// Health is the address of /livez, /readyz and /metrics, in plain HTTP.
	// Default :9090. Agents must not reach it.
	Health string `json:"health,omitempty"`
}

// Identity says who the broker is and whom it accepts.
type Identity struct {
	// WorkloadAPI is the address of the SPIFFE Workload API. Default: the
	// environment variable SPIFFE_ENDPOINT_SOCKET.
	WorkloadAPI string `json:"workloadAPI,omitempty"`
	// Hint picks one of several SVIDs. Default: the first.
	Hint string `json:"hint,omitempty"`
	// TrustDomains whose workloads are accepted. Default: the broker's own. IDs of
	// other domains need bundles that SPIRE federates to the broker.
	TrustDomains []string `json:"trustDomains,omitempty"`
}

// Cluster says how to reach an API server.
type Cluster struct {
	// Kubeconfig is a path. Default: the service account of the pod.
	Kubeconfig string `json:"kubeconfig,omitempty"`
}

// Never adds to what is refused whatever a grant says.
type Never struct {
	// Namespaces that are out of reach of agents. Default: taskgate-system and
	// spire, spire-server, spire-system. An empty list has to be written [].
	Namespaces *[]string `json:"namespaces,omitempty"`
	// AgentNamespaces are those agents run in; network policies there are out of
	// their reach. Default: every namespace.
	AgentNamespaces []string `json:"agentNamespaces,omitempty"`
}

// Approvals bounds what one agent may ask of people.
type Approvals struct {
	// MaxOpen is how many requests of one agent may wait for people at a time, so
	// that it cannot hide what others ask. Default 16.
	MaxOpen int `json:"maxOpen,omitempty"`
	// MaxPerDay is how many requests one agent may make in 24 hours; they stay
	// until their grant is cleaned up. Default 200.
	MaxPerDay int `json:"maxPerDay,omitempty"`
}

// Streams bounds each exec, attach and port-forward.
type Streams struct {
	// MaxBytes is how much one stream may carry, in both directions together.
	// Default 17179869184 (16 GiB).
	MaxBytes int64 `json:"maxBytes,omitempty"`
	// MaxTime is how long one may be open, if its grant does not end before.
	// Default 8h.
	MaxTime metav1.Duration `json:"maxTime,omitempty"`
	// ReadAhead is the memory that all streams share while they wait for the disk,
	// in bytes; each has 64 KiB of its own. Default 33554432 (32 MiB).
	ReadAhead int `json:"readAhead,omitempty"`
}

// Recorder says where records go.
type Recorder struct {
	// Spool is a directory of the broker's own on a local disk that survives a
	// restart; must be set.
	Spool string `json:"spool"`
	// SpoolLimit bounds it, in bytes. Default 1073741824 (1 GiB).
	SpoolLimit int64 `json:"spoolLimit,omitempty"`
	// AgeLimit is how long records may wait for the bucket before calls are
	// refused. Default 10m.
	AgeLimit metav1.Duration `json:"ageLimit,omitempty"`
	// Retention is how long the objects in the bucket are locked; must be set.
	// Nobody can shorten it afterwards.
	Retention metav1.Duration `json:"retention"`
	Store     Store           `json:"store"`
}

// Store is a bucket with object lock in an S3-compatible store.
type Store struct {
	// Endpoint is a URL such as https://s3.eu-central-1.amazonaws.com; must be
	// set. http is for stores on the same machine.
	Endpoint string `json:"endpoint"`
	// Bucket must have been created with object lock; must be set.
	Bucket string `json:"bucket"`
	// Region of the bucket. Default us-east-1.
	Region string `json:"region,omitempty"`
	// UnsafeHTTP allows an http endpoint that is not on this machine: whoever
	// listens reads what is recorded.
	UnsafeHTTP bool `json:"unsafeHTTP,omitempty"`
}

const (
	configVersion = "config.taskgate.dev/v1alpha1"
	configKind    = "BrokerConfiguration"
)

// Load reads a configuration file, strictly, and fills in the defaults.
func Load(path string) (*Configuration, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the configuration: %w", err)
	}
	config := new(Configuration)
	if err := yaml.UnmarshalStrict(data, config); err != nil {
		return nil, fmt.Errorf("reading the configuration %s: %w", path, err)
	}
	if err := config.complete(); err != nil {
		return nil, fmt.Errorf("the configuration %s: %w", path, err)
	}
	return config, nil
}

// complete fills in the defaults and returns all that is wrong.
func (c *Configuration) complete() error {
	if c.Name == "" {
		c.Name, _ = os.Hostname() // if that fails, the name is found missing below
	}
	orDefault(&c.Listen.Agents, ":8443")
	orDefault(&c.Listen.Health, ":9090")
	orDefault(&c.LogLevel, "info")
	orDefault(&c.Recorder.Store.Region, "us-east-1")
	orDefault(&c.StaleAfter.Duration, 30*time.Second)
	orDefault(&c.ShutdownGrace.Duration, 20*time.Second)
	orDefault(&c.KeepEnded.Duration, 7*24*time.Hour)
	orDefault(&c.Streams.MaxBytes, 16<<30)
	orDefault(&c.Streams.MaxTime.Duration, 8*time.Hour)
	orDefault(&c.Streams.ReadAhead, 32<<20)
	orDefault(&c.Approvals.MaxOpen, 16)
	orDefault(&c.Approvals.MaxPerDay, 200)
	if c.Never.Namespaces == nil {
		c.Never.Namespaces = &[]string{"taskgate-system", "spire", "spire-server", "spire-system"}
	}
	if c.Control == nil {
		c.Control = &c.Guarded
	}
	name := regexp.MustCompile(`^[A-Za-z0-9._-]{1,63}$`)
	var errs []error
	wrong := func(is bool, format string, args ...any) {
		if is {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	wrong(c.APIVersion != configVersion || c.Kind != configKind, "apiVersion and kind: must be %s and %s", configVersion, configKind)
	wrong(!name.MatchString(c.Name), "name: %q is not 1 to 63 letters, digits, dots, dashes and underscores", c.Name)
	wrong(!name.MatchString(c.Cluster), "cluster: %q is not 1 to 63 letters, digits, dots, dashes and underscores", c.Cluster)
	wrong(c.Recorder.Spool == "", "recorder.spool: must be a directory on a local disk")
	wrong(c.Recorder.Retention.Duration < time.Minute, "recorder.retention: must be at least 1m, such as 8760h for a year")
	wrong(c.Recorder.Store.Endpoint == "" || c.Recorder.Store.Bucket == "", "recorder.store: endpoint and bucket must be set")
	wrong(!c.Recorder.Store.UnsafeHTTP && !local(c.Recorder.Store.Endpoint),
		"recorder.store.endpoint: %q is neither https nor on this machine; set unsafeHTTP if you accept that whoever listens reads the records", c.Recorder.Store.Endpoint)
	wrong(c.StaleAfter.Duration < time.Second || c.StaleAfter.Duration > 5*time.Minute, "staleAfter: must be 1s to 5m")
	wrong(c.KeepEnded.Duration < 10*time.Second, "keepEnded: must be at least 10s, such as 168h for a week")
	wrong(c.Approvals.MaxOpen < 1 || c.Approvals.MaxPerDay < 1, "approvals: maxOpen and maxPerDay must be at least 1")
	wrong(c.Streams.MaxBytes < 1 || c.Streams.MaxTime.Duration < time.Second || c.Streams.ReadAhead < 1<<20, "streams: maxBytes must be at least 1, maxTime 1s, readAhead 1048576")
	wrong(!slices.Contains([]string{"debug", "info", "warn", "error"}, c.LogLevel), "logLevel: must be debug, info, warn or error")
	for field, address := range map[string]string{"listen.agents": c.Listen.Agents, "listen.health": c.Listen.Health} {
		_, _, err := net.SplitHostPort(address)
		wrong(err != nil, "%s: %q is not host:port", field, address)
	}
	for _, domain := range c.Identity.TrustDomains {
		_, err := spiffeid.TrustDomainFromString(domain)
		wrong(err != nil, "identity.trustDomains: %q: %w", domain, err)
	}
	return errors.Join(errs...)
}

func orDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// local reports whether an endpoint is https, or http on this machine.
func local(endpoint string) bool {
	parsed, err := url.Parse(endpoint)
	if err != nil || parsed.Scheme == "https" {
		return err == nil
	}
	ip := net.ParseIP(parsed.Hostname())
	return parsed.Hostname() == "localhost" || ip != nil && ip.IsLoopback()
}
