package testbed

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"

	"github.com/taskgate/taskgate/e2e/internal/pki"
	"github.com/taskgate/taskgate/e2e/internal/process"
	"github.com/taskgate/taskgate/e2e/internal/toolset"
)

// WorkloadAPISocket is the name of the socket in the folder WorkloadAPIFolder.
const WorkloadAPISocket = "spire-agent.sock"

// podsID is the parent of the registration entries of pods: an alias of the agent
// that attests containers.
const podsID = "/testbed/pods"

// WorkloadAPIFolder is where pods of the real node find SPIRE, by a hostPath volume.
func (t *Testbed) WorkloadAPIFolder() string { return t.path("identity/pods") }

// NodeAddress is where pods reach programs of this machine. The testbed needs a
// real node.
func (t *Testbed) NodeAddress() netip.Addr { return t.node.network.Machine() }

// ImportImage gives an OCI archive to the real node. Pods find it under the name it
// has in the archive, and by its digest.
func (t *Testbed) ImportImage(ctx context.Context, archive, name, byDigest string) error {
	for _, arguments := range [][]string{{"import", archive}, {"tag", "--force", name, byDigest}} {
		if err := t.ctr(ctx, append([]string{"images"}, arguments...)...); err != nil {
			return fmt.Errorf("giving the image %s to containerd: %w", name, err)
		}
	}
	return nil
}

// KillContainer ends a container of the real node at once, with SIGKILL. id is that
// of its status, with or without the scheme.
func (t *Testbed) KillContainer(ctx context.Context, id string) error {
	if err := t.ctr(ctx, "tasks", "kill", "--signal=SIGKILL", strings.TrimPrefix(id, "containerd://")); err != nil {
		return fmt.Errorf("killing the container %s: %w", id, err)
	}
	return nil
}

// ctr talks to containerd about what belongs to Kubernetes.
func (t *Testbed) ctr(ctx context.Context, arguments ...string) error {
	command := exec.CommandContext(ctx, t.tools[toolset.Ctr], append([]string{"--address=" + t.path(containerdSocket), "--namespace=k8s.io"}, arguments...)...)
	if output, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("ctr %s: %w\n%s", strings.Join(arguments, " "), err, output)
	}
	return nil
}

// writeAttestorFiles makes the agent of the pods a client of the kubelet.
func (t *Testbed) writeAttestorFiles(c *cluster) error {
	if t.options.SPIFFE != SPIRE {
		return nil
	}
	pair, err := c.authority.Issue(pki.Leaf{CommonName: "testbed-spire-agent", Organization: []string{"system:masters"}})
	if err != nil {
		return err
	}
	return pair.Write(t.path("node/spire-agent.crt"), t.path("node/spire-agent.key"))
}

// startPodsAgent starts a SPIRE agent that tells containers apart: it asks the
// kubelet which one a caller is in. The other agent knows the workloads outside.
func (t *Testbed) startPodsAgent(ctx context.Context) error {
	if t.options.SPIFFE != SPIRE {
		return nil
	}
	port, err := t.claims.Claim()
	if err != nil {
		return err
	}
	token := t.path("node/spire-token")
	if err := errors.Join(t.makeFolders("identity/pods", "node/spire"), t.spire.writeJoinToken(ctx, podsID, token)); err != nil {
		return err
	}
	kubelet := object{
		"kubelet_secure_port": kubeletPort, "node_name": t.NodeAddress().String(), "kubelet_ca_path": t.path("kubernetes/ca.crt"),
		"certificate_path": t.path("node/spire-agent.crt"), "private_key_path": t.path("node/spire-agent.key"),
	}
	configuration := t.spireAgentConfiguration(spirePorts{server: t.spire.port, agentHealth: port}, spireAgent{
		socket: t.path("identity/pods", WorkloadAPISocket), data: t.path("node/spire"), token: token,
		attestor: plugin("k8s", kubelet),
	})
	if err := t.writeJSON("node/spire-agent.json", configuration); err != nil {
		return err
	}
	return t.run(ctx, process.Spec{
		Name:      ComponentPodsSPIREAgent,
		Path:      t.tools[toolset.SPIREAgent],
		Arguments: []string{"run", "-config", t.path("node/spire-agent.json")},
		Ready:     process.Probe{URL: readyURL(port), Socket: t.path("identity/pods", WorkloadAPISocket)},
		Advice:    "look at the logs of spire-server and kubelet too",
	}, port)
}
