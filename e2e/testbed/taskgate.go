package testbed

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/taskgate/taskgate/e2e/internal/process"
)

// brokerGrace lets a broker seal what it has recorded before it is killed.
const brokerGrace = time.Minute

// brokerEndpoints are what one broker replica listens on.
type brokerEndpoints struct {
	agents, health string // host:port
}

// agents is what later sidecars need to know.
type agents struct {
	mu      sync.Mutex
	brokers []brokerEndpoints
	lastUID uint32
}

// startTaskgate starts the brokers and the sidecars of both agents.
func (t *Testbed) startTaskgate(ctx context.Context) error {
	if t.options.WithoutTaskgate {
		return nil
	}
	for replica := range t.options.Brokers {
		if err := t.startBroker(ctx, replica); err != nil {
			return err
		}
	}
	for name, set := range map[string]func(*Environment, Access){
		Alpha: func(e *Environment, a Access) { e.Alpha = a },
		Beta:  func(e *Environment, a Access) { e.Beta = a },
	} {
		access, err := t.AddSidecar(ctx, SidecarOptions{Name: name, Agent: name})
		if err != nil {
			return err
		}
		t.setEnvironment(func(e *Environment) { set(e, access) })
	}
	return nil
}

// startBroker runs one replica in a folder of its own.
func (t *Testbed) startBroker(ctx context.Context, replica int) error {
	workload := t.brokerWorkload()
	folder, err := t.makePrivateFolder(brokerFolder(replica), t.user(workload))
	if err != nil {
		return err
	}
	agentsPort, err := t.claims.Claim()
	if err != nil {
		return err
	}
	healthPort, err := t.claims.Claim()
	if err != nil {
		return err
	}
	listen := brokerEndpoints{agents: fmt.Sprintf("127.0.0.1:%d", agentsPort), health: fmt.Sprintf("127.0.0.1:%d", healthPort)}
	if err := t.writeBrokerFiles(ctx, folder, replica, listen); err != nil {
		return err
	}
	store := t.Store()
	spec := process.Spec{
		Name:      brokerName(replica),
		Path:      t.path("bin/broker"),
		Arguments: []string{"--config", filepath.Join(folder, "config.yaml")},
		Environment: append([]string{
			"AWS_ACCESS_KEY_ID=" + store.Broker.Key, "AWS_SECRET_ACCESS_KEY=" + store.Broker.Secret,
		}, t.options.BrokerEnvironment...),
		Directory: folder,
		User:      t.user(workload),
		Ready:     process.Probe{URL: "http://" + listen.health + "/readyz"},
		Grace:     brokerGrace,
		Advice:    fmt.Sprintf("read http://%s/readyz?verbose and the log; the configuration is %s", listen.health, filepath.Join(folder, "config.yaml")),
	}
	if err := t.run(ctx, spec, agentsPort, healthPort); err != nil {
		return err
	}
	t.agents.mu.Lock()
	t.agents.brokers = append(t.agents.brokers, listen)
	t.agents.mu.Unlock()
	if replica > 0 {
		return nil
	}
	pid := t.Broker(replica).PID()
	t.setEnvironment(func(e *Environment) {
		e.BrokerAddress, e.BrokerMetrics = listen.agents, "http://"+listen.health+"/metrics"
		e.BrokerPID, e.BrokerSpool = pid, filepath.Join(folder, "spool")
	})
	return nil
}

// writeBrokerFiles writes configuration and credentials, readable by the broker.
func (t *Testbed) writeBrokerFiles(ctx context.Context, folder string, replica int, listen brokerEndpoints) error {
	workload := t.brokerWorkload()
	kubeconfig := filepath.Join(folder, "kubeconfig")
	if err := t.writeBrokerKubeconfig(ctx, kubeconfig); err != nil {
		return err
	}
	configuration := t.brokerConfiguration(folder, replica, listen)
	if t.options.BrokerConfiguration != nil {
		t.options.BrokerConfiguration(replica, configuration)
	}
	content, err := yaml.Marshal(configuration)
	if err != nil {
		return fmt.Errorf("encoding the broker's configuration: %w", err)
	}
	file := filepath.Join(folder, "config.yaml")
	if err := os.WriteFile(file, content, 0o600); err != nil {
		return fmt.Errorf("writing the broker's configuration: %w", err)
	}
	return errors.Join(give(kubeconfig, t.user(workload)), give(file, t.user(workload)))
}

func (t *Testbed) brokerConfiguration(folder string, replica int, listen brokerEndpoints) map[string]any {
	store := t.Store()
	return map[string]any{
		"apiVersion": "config.taskgate.dev/v1alpha1",
		"kind":       "BrokerConfiguration",
		"name":       brokerName(replica),
		"cluster":    "testbed",
		"listen":     map[string]any{"agents": listen.agents, "health": listen.health},
		"identity":   map[string]any{"workloadAPI": "unix://" + t.brokerWorkload().Socket},
		"guarded":    map[string]any{"kubeconfig": filepath.Join(folder, "kubeconfig")},
		"recorder": map[string]any{
			"spool":     filepath.Join(folder, "spool"),
			"retention": "1h",
			"store":     map[string]any{"endpoint": store.Endpoint, "bucket": store.Bucket, "region": store.Region},
		},
	}
}

// brokerFolder is broker for the first replica, then broker-1 and so on.
func brokerFolder(replica int) string {
	if replica == 0 {
		return brokerWorkload
	}
	return brokerName(replica)
}
