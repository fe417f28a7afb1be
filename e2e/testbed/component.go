package testbed

import (
	"context"
	"fmt"
	"strings"
	"syscall"

	"github.com/taskgate/taskgate/e2e/internal/process"
)

// The names of the components, and of their logs in the folder log. Brokers are
// named broker-0, broker-1 and so on, sidecars sidecar-alpha, sidecar-beta.
const (
	ComponentEtcd              = "etcd"
	ComponentAPIServer         = "kube-apiserver"
	ComponentControllerManager = "kube-controller-manager"
	ComponentScheduler         = "kube-scheduler"
	ComponentKwok              = "kwok"
	ComponentNode              = "node" // what containerd and the kubelet run in; its end is theirs
	ComponentContainerd        = "containerd"
	ComponentKubelet           = "kubelet"
	ComponentStore             = "s3"
	ComponentSPIREServer       = "spire-server"
	ComponentSPIREAgent        = "spire-agent"
	ComponentPodsSPIREAgent    = "spire-agent-pods" // for containers of the real node
	ComponentDevIdentities     = "dev-workload-api"

	brokerPrefix  = "broker-"
	sidecarPrefix = "sidecar-"
)

// Component is one program of the testbed, for tests that take it away. Naming
// one that does not exist is an error of its methods.
type Component struct {
	testbed *Testbed
	name    string
}

// Component finds a component by its name.
func (t *Testbed) Component(name string) Component { return Component{testbed: t, name: name} }

// Broker is a broker replica, counted from 0.
func (t *Testbed) Broker(replica int) Component { return t.Component(brokerName(replica)) }

// Sidecar is the sidecar of an agent.
func (t *Testbed) Sidecar(agent string) Component { return t.Component(sidecarPrefix + agent) }

// Components is every component, in the order they were started.
func (t *Testbed) Components() []Component {
	t.mu.Lock()
	defer t.mu.Unlock()
	var components []Component
	for _, p := range t.processes {
		components = append(components, t.Component(p.Spec().Name))
	}
	return components
}

// Name is the name of the component.
func (c Component) Name() string { return c.name }

// Stop ends the component gracefully, or by force when that takes too long.
func (c Component) Stop(ctx context.Context) error {
	return c.with(func(p *process.Process) error { return p.Stop(ctx) })
}

// Kill ends the component at once, with SIGKILL.
func (c Component) Kill() error {
	return c.with(func(p *process.Process) error { return p.Kill() })
}

// Signal sends a signal such as SIGSTOP or SIGCONT.
func (c Component) Signal(signal syscall.Signal) error {
	return c.with(func(p *process.Process) error { return p.Signal(signal) })
}

// Start starts the component again, on the same ports and data, and waits until
// it is ready. One that runs stays as it is.
func (c Component) Start(ctx context.Context) error {
	return c.with(func(p *process.Process) error {
		if err := c.Launch(); err != nil {
			return err
		}
		return p.WaitReady(ctx)
	})
}

// Launch starts the component again and does not wait until it is ready, for
// tests in which it cannot be.
func (c Component) Launch() error {
	return c.with(func(p *process.Process) error {
		if err := p.Launch(); err != nil {
			return err
		}
		if c.name == brokerName(0) {
			c.testbed.setEnvironment(func(e *Environment) { e.BrokerPID = p.Identity().PID })
		}
		return c.testbed.save()
	})
}

// WaitReady waits until a component that was launched is ready.
func (c Component) WaitReady(ctx context.Context) error {
	return c.with(func(p *process.Process) error { return p.WaitReady(ctx) })
}

// Restart is Stop and then Start.
func (c Component) Restart(ctx context.Context) error {
	if err := c.Stop(ctx); err != nil {
		return err
	}
	return c.Start(ctx)
}

// PID is that of the running component, 0 when it does not run.
func (c Component) PID() int {
	p, err := c.process()
	if err != nil || !p.Alive() {
		return 0
	}
	return p.Identity().PID
}

// ExitCode is that of the component's last run, -1 when a signal ended it. It is
// known only for a component that ended and was not started detached.
func (c Component) ExitCode() (code int, known bool) {
	p, err := c.process()
	if err != nil || p.Exit() == nil {
		return 0, false
	}
	return p.Exit().ExitCode(), true
}

// Log is the file with all that the component printed.
func (c Component) Log() string { return c.testbed.path("log", c.name+".log") }

func (c Component) with(do func(*process.Process) error) error {
	p, err := c.process()
	if err != nil {
		return err
	}
	return do(p)
}

func (c Component) process() (*process.Process, error) {
	if p := c.testbed.processNamed(c.name); p != nil {
		return p, nil
	}
	var names []string
	for _, other := range c.testbed.Components() {
		names = append(names, other.name)
	}
	return nil, fmt.Errorf("there is no component %q; there are: %s", c.name, strings.Join(names, ", "))
}

// processNamed finds a component that was started; nil when there is none.
func (t *Testbed) processNamed(name string) *process.Process {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range t.processes {
		if p.Spec().Name == name {
			return p
		}
	}
	return nil
}

// tierCount is the number of groups that tierOf makes.
const tierCount = 4

// tierOf says when a component is stopped: lower comes first.
func tierOf(name string) int {
	switch {
	case strings.HasPrefix(name, sidecarPrefix):
		return 0
	case strings.HasPrefix(name, brokerPrefix):
		return 1
	case name == ComponentEtcd, name == ComponentNode:
		return 3 // others do not end well without them
	default:
		return 2
	}
}

func brokerName(replica int) string { return fmt.Sprintf("%s%d", brokerPrefix, replica) }
