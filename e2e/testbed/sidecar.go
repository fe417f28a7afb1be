package testbed

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"k8s.io/client-go/tools/clientcmd"

	"github.com/taskgate/taskgate/e2e/internal/process"
)

// SidecarOptions describes one more sidecar.
type SidecarOptions struct {
	// Name is unique in the testbed; the component is called sidecar-NAME and
	// its files are in the folder NAME.
	Name string
	// Agent is Alpha or Beta to share that agent's identity. Empty: a new agent,
	// spiffe://example.org/ns/agents/sa/NAME, which only SPIRE can register.
	Agent string
	// Replica is the broker it talks to, counted from 0.
	Replica int
	// Arguments and Environment come on top of the usual ones.
	Arguments   []string
	Environment []string
}

// AddSidecar starts a sidecar and answers how its agent reaches the cluster.
func (t *Testbed) AddSidecar(ctx context.Context, options SidecarOptions) (Access, error) {
	workload, err := t.agentWorkload(ctx, options)
	if err != nil {
		return Access{}, err
	}
	broker, err := t.brokerEndpoints(options.Replica)
	if err != nil {
		return Access{}, err
	}
	if err := t.makeFolders(options.Name); err != nil {
		return Access{}, err
	}
	stateFolder, stateErr := t.makePrivateFolder(filepath.Join(options.Name, "state"), t.user(workload))
	agentFolder, agentErr := t.makePrivateFolder(filepath.Join(options.Name, "agent"), t.user(workload))
	if err := errors.Join(stateErr, agentErr); err != nil {
		return Access{}, err
	}
	port, portErr := t.claims.Claim()
	healthPort, healthErr := t.claims.Claim()
	if err := errors.Join(portErr, healthErr); err != nil {
		return Access{}, err
	}
	health := fmt.Sprintf("127.0.0.1:%d", healthPort)
	arguments := []string{
		"--broker", broker.agents, "--broker-id", t.brokerWorkload().ID.String(),
		"--workload-api", "unix://" + workload.Socket,
		"--listen", fmt.Sprintf("127.0.0.1:%d", port), "--health", health,
		"--state-dir", stateFolder, "--agent-dir", agentFolder, "--namespace", AgentNamespace,
	}
	spec := process.Spec{
		Name:        sidecarPrefix + options.Name,
		Path:        t.path("bin/sidecar"),
		Arguments:   slices.Concat(arguments, t.options.SidecarArguments, options.Arguments),
		Environment: slices.Concat(t.options.SidecarEnvironment, options.Environment),
		Directory:   stateFolder,
		User:        t.user(workload),
		Ready:       process.Probe{URL: "http://" + health + "/readyz"},
		Advice:      fmt.Sprintf("read http://%s/readyz and the log; the broker may be the reason", health),
	}
	if err := t.run(ctx, spec, port, healthPort); err != nil {
		return Access{}, err
	}
	return readAccess(agentFolder)
}

// agentWorkload answers the identity a sidecar gets, registering a new one.
func (t *Testbed) agentWorkload(ctx context.Context, options SidecarOptions) (Workload, error) {
	if t.processNamed(sidecarPrefix+options.Name) != nil {
		return Workload{}, fmt.Errorf("there is a sidecar named %s already", options.Name)
	}
	if options.Agent != "" {
		for _, w := range t.workloads() {
			if w.Name == options.Agent {
				return w, nil
			}
		}
		return Workload{}, fmt.Errorf("the testbed has no agent named %s", options.Agent)
	}
	if t.spire == nil {
		return Workload{}, fmt.Errorf("a new agent %s needs SPIFFE=spire; with dev, name one of the agents there are", options.Name)
	}
	workload := t.workload(options.Name, t.nextUID(), AgentNamespace, options.Name)
	_, err := t.spire.CreateEntry(ctx, Entry{ID: workload.ID, UID: workload.UID})
	return workload, err
}

func (t *Testbed) nextUID() uint32 {
	t.agents.mu.Lock()
	defer t.agents.mu.Unlock()
	t.agents.lastUID = max(t.agents.lastUID+1, firstFreeUID)
	return t.agents.lastUID
}

func (t *Testbed) brokerEndpoints(replica int) (brokerEndpoints, error) {
	t.agents.mu.Lock()
	defer t.agents.mu.Unlock()
	if replica < 0 || replica >= len(t.agents.brokers) {
		return brokerEndpoints{}, fmt.Errorf("there is no broker replica %d, only %d in all", replica, len(t.agents.brokers))
	}
	return t.agents.brokers[replica], nil
}

// readAccess reads what the sidecar wrote for its agent.
func readAccess(folder string) (Access, error) {
	kubeconfig := filepath.Join(folder, "kubeconfig")
	configuration, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return Access{}, fmt.Errorf("reading the kubeconfig that the sidecar wrote: %w", err)
	}
	token, err := os.ReadFile(filepath.Join(folder, "serviceaccount", "token"))
	if err != nil {
		return Access{}, fmt.Errorf("reading the token that the sidecar wrote: %w", err)
	}
	return Access{
		Kubeconfig: kubeconfig,
		URL:        configuration.Host,
		Token:      string(token),
		CA:         filepath.Join(folder, "serviceaccount", "ca.crt"),
	}, nil
}
