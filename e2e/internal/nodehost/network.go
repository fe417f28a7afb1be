package nodehost

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/taskgate/taskgate/e2e/internal/namespaces"
)

// Bridge is the interface that CNI attaches pods to.
const Bridge = "pods0"

// uplink is the bridge's end of the wire to the machine.
const uplink = "uplink"

// Network is a /24 of its own for one node and its pods.
type Network struct {
	Interface string       // the machine's end of the wire, at most 15 bytes
	Prefix    netip.Prefix // the /24
}

// Machine is the address of the machine: what pods call to reach a program on it,
// and where the kubelet listens.
func (n Network) Machine() netip.Addr { return n.Prefix.Masked().Addr().Next() }

// Node is the address of the bridge, where containerd listens.
func (n Network) Node() netip.Addr { return n.Machine().Next() }

// bridgeAddress is the bridge's own, of the kind that nobody assigns. A bridge
// without one takes the lowest of its ports, and with each pod that comes or goes may
// be lost to the machine for a minute.
func (n Network) bridgeAddress() net.HardwareAddr {
	address := n.Node().As4()
	return net.HardwareAddr{2, 0, address[0], address[1], address[2], address[3]}
}

// make builds the network and answers its namespace, which lives as long as the
// descriptor is open.
func (n Network) make(ctx context.Context) (*os.File, error) {
	var namespace *os.File
	err := onNewThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("making a network namespace: %w", err)
		}
		var err error
		if namespace, err = os.Open("/proc/thread-self/ns/net"); err != nil {
			return fmt.Errorf("opening the network namespace: %w", err)
		}
		return ip(ctx, nil,
			"link set lo up",
			fmt.Sprintf("link add %s address %s type bridge", Bridge, n.bridgeAddress()),
			fmt.Sprintf("address add %s/%d dev %s", n.Node(), n.Prefix.Bits(), Bridge),
			"link set "+Bridge+" up",
			"route add default via "+n.Machine().String(),
		)
	})
	if err != nil {
		return nil, err
	}
	if err := n.wire(ctx, namespace); err != nil {
		return nil, err
	}
	return namespace, onNewThread(func() error {
		if err := unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("joining the network namespace: %w", err)
		}
		return ip(ctx, nil, "link set "+uplink+" master "+Bridge+" up")
	})
}

// wire connects the machine with the namespace. The interface ends with either
// side; one of a host that was killed may still be going.
func (n Network) wire(ctx context.Context, namespace *os.File) error {
	_ = ip(ctx, nil, "link delete "+n.Interface) // usually there is none
	return ip(ctx, namespace,
		// The child's descriptor 3 is the first extra file.
		"link add "+n.Interface+" type veth peer name "+uplink+" netns /proc/self/fd/3",
		fmt.Sprintf("address add %s/%d dev %s", n.Machine(), n.Prefix.Bits(), n.Interface),
		"link set "+n.Interface+" up",
	)
}

// onNewThread does what changes a thread for good on one that ends afterwards.
func onNewThread(do func() error) error {
	done := make(chan error, 1)
	namespaces.Go(func() { done <- do() })
	return <-done
}

// ip runs commands of iproute2 from the calling thread's network.
func ip(ctx context.Context, extra *os.File, commands ...string) error {
	for _, line := range commands {
		command := exec.CommandContext(ctx, "ip", strings.Fields(line)...)
		if extra != nil {
			command.ExtraFiles = []*os.File{extra}
		}
		if output, err := command.CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %w: %s", line, err, strings.TrimSpace(string(output)))
		}
	}
	return nil
}
