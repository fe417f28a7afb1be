package testbed

import (
	"context"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/taskgate/taskgate/e2e/internal/process"
)

// TrustDomain is the SPIFFE trust domain of every testbed.
const TrustDomain = "example.org"

// The two agents that every testbed has.
const (
	Alpha = "alpha"
	Beta  = "beta"
)

// AgentNamespace is the namespace in the SPIFFE IDs of agents.
const AgentNamespace = "agents"

const brokerWorkload = "broker"

// The uids that workloads run as when SPIRE tells them apart. They belong to
// nobody on a usual machine; files of the testbed are made their own.
const (
	brokerUID uint32 = 64001 + iota
	alphaUID
	betaUID
	firstFreeUID
)

// workloadSocket is the longest socket path of a testbed.
const workloadSocket = "identity/" + brokerWorkload + ".sock"

// Workload is a program with a SPIFFE identity.
type Workload struct {
	Name   string
	ID     spiffeid.ID
	UID    uint32 // what SPIRE knows it by
	Socket string // of its Workload API
}

// user is whom the program runs as; nil where nobody tells uids apart.
func (t *Testbed) user(w Workload) *process.User {
	if t.options.SPIFFE != SPIRE {
		return nil
	}
	return &process.User{UID: w.UID, GID: w.UID}
}

// workload names one of ours by the usual scheme of SPIFFE IDs.
func (t *Testbed) workload(name string, uid uint32, namespace, account string) Workload {
	socket := t.path("identity", name+".sock")
	if t.options.SPIFFE == SPIRE {
		socket = t.path("identity/agent.sock")
	}
	id := spiffeid.RequireFromSegments(spiffeid.RequireTrustDomainFromString(TrustDomain), "ns", namespace, "sa", account)
	return Workload{Name: name, ID: id, UID: uid, Socket: socket}
}

// workloads is everybody who has an identity from the start.
func (t *Testbed) workloads() []Workload {
	return []Workload{
		t.brokerWorkload(),
		t.workload(Alpha, alphaUID, AgentNamespace, Alpha),
		t.workload(Beta, betaUID, AgentNamespace, Beta),
	}
}

func (t *Testbed) brokerWorkload() Workload {
	return t.workload(brokerWorkload, brokerUID, brokerNamespace, brokerAccount)
}

// startIdentities starts whoever issues SVIDs and writes the trust bundle.
func (t *Testbed) startIdentities(ctx context.Context) error {
	if err := t.makeFolders("identity"); err != nil {
		return err
	}
	t.setEnvironment(func(e *Environment) { e.TrustBundle = t.path("bundle.json") })
	if t.options.SPIFFE == SPIRE {
		return t.startSPIRE(ctx)
	}
	return t.startDevIdentities(ctx)
}

// startDevIdentities starts a program of our own that gives each workload its
// identity on a socket of its own.
func (t *Testbed) startDevIdentities(ctx context.Context) error {
	t.say("SPIFFE=dev: identities are given to whoever asks, nothing is attested. Use SPIFFE=spire to see the real thing.")
	arguments := []string{
		"--trust-domain", TrustDomain, "--sockets", t.path("identity"), "--bundle", t.path("bundle.json"),
		"--ttl", t.options.SVIDTTL.String(),
	}
	for _, w := range t.workloads() {
		arguments = append(arguments, fmt.Sprintf("%s=%s", w.Name, w.ID))
	}
	return t.run(ctx, process.Spec{
		Name:      ComponentDevIdentities,
		Path:      t.path("bin", devProgram),
		Arguments: arguments,
		Ready:     process.Probe{Socket: t.workloads()[2].Socket}, // the last it opens
		Advice:    "read its log; if that does not help, this is a bug in the testbed",
	})
}
