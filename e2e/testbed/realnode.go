package testbed

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/taskgate/taskgate/e2e/internal/cgroups"
	"github.com/taskgate/taskgate/e2e/internal/nodehost"
	"github.com/taskgate/taskgate/e2e/internal/process"
	"github.com/taskgate/taskgate/e2e/internal/toolset"
)

// nodeProgram is what the real node runs on; see e2e/cmd/testbed-node.
const nodeProgram = "testbed-node"

// networkPlugins is where Debian puts the CNI plugins.
const networkPlugins = "/usr/lib/cni"

// vanishPatience is how long the kernel may take to drop a network namespace.
const vanishPatience = 5 * time.Second

// realNode is what the parts of the real node share.
type realNode struct {
	network nodehost.Network
	claim   net.Listener // keeps other testbeds from the network
}

// checkRealNode finds out whether this machine can have a real node.
func checkRealNode() error {
	if os.Geteuid() != 0 {
		return errors.New("NODE=real runs containers, which needs root: use NODE=kwok or become root")
	}
	var missing []error
	for _, program := range []string{"runc", "ip"} {
		_, err := exec.LookPath(program)
		missing = append(missing, err)
	}
	for _, plugin := range []string{"bridge", "host-local"} {
		_, err := os.Stat(filepath.Join(networkPlugins, plugin))
		missing = append(missing, err)
	}
	if err := errors.Join(append(missing, checkBusybox())...); err != nil {
		return fmt.Errorf("NODE=real needs programs of this machine: run make packages, or apt-get install runc containernetworking-plugins iproute2 busybox-static: %w", err)
	}
	if err := cgroups.Check(); err != nil {
		return fmt.Errorf("NODE=real needs control groups: use NODE=kwok, or a machine or a privileged container that has them: %w", err)
	}
	return nil
}

// prepareRealNode picks a network and writes all that the node reads.
func (t *Testbed) prepareRealNode(c *cluster) error {
	if err := t.makeFolders("node/cni"); err != nil {
		return err
	}
	if err := os.Chmod(t.path("node"), 0o700); err != nil { // who opens a socket in it owns the machine
		return fmt.Errorf("closing a folder of the testbed: %w", err)
	}
	prefix, claim, err := nodehost.Claim(t.options.Directory)
	if err != nil {
		return err
	}
	t.node = &realNode{network: nodehost.Network{Interface: t.nodeInterface(), Prefix: prefix}, claim: claim}
	for _, name := range []string{toolset.Containerd, toolset.ContainerdShim, toolset.Kubelet} {
		if err := place(t.tools[name], t.path("node", name)); err != nil {
			return err
		}
	}
	return errors.Join(t.writeContainerdFiles(), t.writeKubeletFiles(c), t.writeAttestorFiles(c))
}

// startRealNode starts the node and waits until a pod has run on it.
func (t *Testbed) startRealNode(ctx context.Context) error {
	for _, spec := range []process.Spec{t.nodeHost(), t.containerd()} {
		if err := t.run(ctx, spec); err != nil {
			return err
		}
	}
	if err := t.loadImages(ctx); err != nil {
		return err
	}
	if err := t.run(ctx, t.kubelet()); err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(t.admin)
	if err != nil {
		return fmt.Errorf("making a client of the cluster: %w", err)
	}
	begin := time.Now()
	if err := t.waitForNode(ctx, client, RealNodeName, ComponentKubelet); err != nil {
		return err
	}
	t.say("node %s is ready (%s)", RealNodeName, time.Since(begin).Round(10*time.Millisecond))
	begin = time.Now()
	first, err := t.RunPod(ctx, metav1.NamespaceDefault, "testbed-first")
	if err != nil {
		return err
	}
	at := int64(0)
	if err := client.CoreV1().Pods(first.Namespace).Delete(ctx, first.Name, metav1.DeleteOptions{GracePeriodSeconds: &at}); err != nil {
		return fmt.Errorf("deleting the first pod: %w", err)
	}
	t.say("a pod has run (%s)", time.Since(begin).Round(10*time.Millisecond))
	return t.startPodsAgent(ctx)
}

// nodeHost is process 1 of the node's namespaces. When it ends, the node is as
// dead as after a power failure.
func (t *Testbed) nodeHost() process.Spec {
	return process.Spec{
		Name: ComponentNode,
		Path: t.path("bin", nodeProgram),
		Arguments: []string{
			"--directory=" + t.options.Directory, "--state=" + t.path("node"), "--socket=" + t.nodeSocket(), "--cgroup=" + t.nodeCgroup(),
			"--interface=" + t.node.network.Interface, "--network=" + t.node.network.Prefix.String(),
		},
		Isolated: true,
		Ready:    process.Probe{Socket: t.nodeSocket()},
		Advice:   "a container needs to be privileged for this; or use NODE=kwok",
	}
}

// nodeSocket hands out the node's namespaces.
func (t *Testbed) nodeSocket() string { return t.path("node/host.sock") }

// nodeCgroup holds all pods. It is the testbed's own: two kubelets on one group
// would take each other's pods for left over ones.
func (t *Testbed) nodeCgroup() string { return "taskgate-" + t.nodeTag() }

// nodeInterface is the machine's end of the wire to the node.
func (t *Testbed) nodeInterface() string { return "tg" + t.nodeTag() }

// nodeTag is the same for the same directory, so that it is found after a crash.
func (t *Testbed) nodeTag() string {
	hash := sha256.Sum256([]byte(t.options.Directory))
	return hex.EncodeToString(hash[:5])
}

// removeRealNode removes what the node leaves when all its processes are gone:
// its control group, and for a moment its interface.
func (t *Testbed) removeRealNode(ctx context.Context) error {
	if t.options.Node != RealNode {
		return nil
	}
	err := cgroups.Remove(ctx, t.nodeCgroup())
	if t.node != nil {
		err = errors.Join(err, t.node.claim.Close())
		t.node = nil
	}
	return errors.Join(err, waitVanished(t.nodeInterface()))
}

// waitVanished waits until an interface is gone.
func waitVanished(name string) error {
	deadline := time.Now().Add(vanishPatience)
	for {
		if _, err := net.InterfaceByName(name); err != nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the node's interface %s is still there: run ip link delete %[1]s", name)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
