package sidecar

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/rs/zerolog"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"k8s.io/apimachinery/pkg/util/validation"
)

// Defaults of Config, for the flags to show.
const (
	DefaultListen        = "127.0.0.1:6443"
	DefaultHealth        = "127.0.0.1:7080"
	DefaultStateDir      = "/run/taskgate-sidecar/state"
	DefaultAgentDir      = "/var/run/taskgate"
	DefaultAgentFileMode = fs.FileMode(0o600)
	DefaultNamespace     = "default"
	DefaultGrace         = 25 * time.Second
)

// Config is all a sidecar needs to know. No field is a secret. Zero values of
// fields with a default take the default.
type Config struct {
	// Broker is where the broker listens, host:port. A host name may have several
	// addresses (a headless service); all are tried. Must be set.
	Broker string
	// BrokerID is the only SPIFFE ID this sidecar talks to. Must be set.
	BrokerID spiffeid.ID
	// WorkloadAPI is the address of the SPIFFE Workload API, such as
	// unix:///run/spire/agent.sock. Default: $SPIFFE_ENDPOINT_SOCKET.
	WorkloadAPI string
	// Hint picks one of several SVIDs by its hint. Default: the first.
	Hint string
	// Listen are the addresses of the agent's HTTPS endpoint. Each must be
	// 127.0.0.1:port or [::1]:port; port 0 takes a free one. The first stands in
	// the kubeconfig. Default: DefaultListen.
	Listen []string
	// Health is the address of the health endpoint (plain HTTP), under the same
	// rule as Listen. Default: DefaultHealth.
	Health string
	// StateDir keeps the local authority. Only the sidecar may have it mounted; a
	// memory-backed volume is meant. It must not overlap AgentDir.
	// Default: DefaultStateDir.
	StateDir string
	// AgentDir gets the files for the agent: kubeconfig and serviceaccount/. The
	// agent must see it under the same path. Default: DefaultAgentDir.
	AgentDir string
	// AgentFileMode is the mode of the files in AgentDir, at most 0644. An agent
	// that runs as another user needs 0644. Folders get the matching x bits.
	// Default: DefaultAgentFileMode.
	AgentFileMode fs.FileMode
	// Namespace is the agent's default namespace, usually the pod's.
	// Default: DefaultNamespace.
	Namespace string
	// Grant is the name of the one TaskGrant to use. It can only narrow what the
	// agent may do. Default: the broker chooses among the active ones.
	Grant string
	// Grace is how long calls under way have to end after ctx ended; watches and
	// followed logs are cut at once. Default: DefaultGrace.
	Grace time.Duration
	// Log receives state changes, never anything of a request above debug. The
	// zero value logs nothing.
	Log zerolog.Logger
}

// Validate reports everything that is wrong with the configuration.
func (c Config) Validate() error {
	c = c.withDefaults()
	problems := []error{
		checkBroker(c.Broker),
		checkFolders(c.StateDir, c.AgentDir),
		checkLoopback("health", c.Health),
	}
	if c.BrokerID.IsZero() || c.BrokerID.Path() == "" {
		problems = append(problems, errors.New("broker-id: the broker's SPIFFE ID is needed, such as spiffe://example.org/ns/taskgate/sa/broker"))
	}
	for _, address := range c.Listen {
		problems = append(problems, checkLoopback("listen", address))
	}
	if c.AgentFileMode&^0o644 != 0 || c.AgentFileMode&0o400 == 0 {
		problems = append(problems, fmt.Errorf("agent-file-mode: %04o is not between 0400 and 0644", uint32(c.AgentFileMode)))
	}
	if wrong := validation.IsDNS1123Label(c.Namespace); len(wrong) > 0 {
		problems = append(problems, fmt.Errorf("namespace: %q is not the name of a namespace: %s", c.Namespace, wrong[0]))
	}
	if wrong := validation.IsDNS1123Subdomain(c.Grant); c.Grant != "" && len(wrong) > 0 {
		problems = append(problems, fmt.Errorf("grant: %q is not the name of a TaskGrant: %s", c.Grant, wrong[0]))
	}
	if c.Grace < 0 {
		problems = append(problems, fmt.Errorf("grace: %s is negative", c.Grace))
	}
	return errors.Join(problems...)
}

func (c Config) withDefaults() Config {
	setDefault(&c.Health, DefaultHealth)
	setDefault(&c.StateDir, DefaultStateDir)
	setDefault(&c.AgentDir, DefaultAgentDir)
	setDefault(&c.AgentFileMode, DefaultAgentFileMode)
	setDefault(&c.Namespace, DefaultNamespace)
	setDefault(&c.Grace, DefaultGrace)
	if len(c.Listen) == 0 {
		c.Listen = []string{DefaultListen}
	}
	return c
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

func checkBroker(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil || host == "" {
		return fmt.Errorf("broker: %q is not host:port", address)
	}
	if number, err := strconv.ParseUint(port, 10, 16); err != nil || number == 0 {
		return fmt.Errorf("broker: %q is not a port", port)
	}
	return nil
}

// checkLoopback accepts the two addresses that the serving certificate names.
// Host names are not accepted: what they mean is decided elsewhere.
func checkLoopback(field, address string) error {
	parsed, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("%s: %q is not an address and a port, such as 127.0.0.1:6443", field, address)
	}
	if ip := parsed.Addr(); ip != netip.AddrFrom4([4]byte{127, 0, 0, 1}) && ip != netip.IPv6Loopback() {
		return fmt.Errorf("%s: %s is not loopback; the sidecar serves only its own pod: use 127.0.0.1 or [::1]", field, address)
	}
	return nil
}

// checkFolders keeps the authority's key out of the agent's sight.
func checkFolders(state, agent string) error {
	state, stateErr := filepath.Abs(state)
	agent, agentErr := filepath.Abs(agent)
	if err := errors.Join(stateErr, agentErr); err != nil {
		return err
	}
	if within(state, agent) || within(agent, state) {
		return fmt.Errorf("state-dir: %s and agent-dir %s must not lie in one another: the agent would see the sidecar's key", state, agent)
	}
	return nil
}

func within(path, folder string) bool {
	relative, err := filepath.Rel(folder, path)
	return err == nil && relative != ".." && !strings.HasPrefix(relative, "../")
}
