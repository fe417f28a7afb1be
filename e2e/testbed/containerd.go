package testbed

import (
	"context"
	_ "embed" // the configuration of containerd
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"text/template"
	"time"

	"github.com/taskgate/taskgate/e2e/internal/nodehost"
	"github.com/taskgate/taskgate/e2e/internal/process"
	"github.com/taskgate/taskgate/e2e/internal/toolset"
)

// containerdSocket is relative to the directory.
const containerdSocket = "node/containerd.sock"

//go:embed containerd.toml
var containerdConfiguration string

// containerd runs the containers, in all namespaces of the node: what it starts
// stays in them.
func (t *Testbed) containerd() process.Spec {
	return process.Spec{
		Name:      ComponentContainerd,
		Path:      t.path("node", toolset.Containerd),
		Arguments: []string{"--config=" + t.path("node/containerd.toml")},
		Inside:    &process.Inside{Socket: t.nodeSocket(), Network: true},
		Ready:     process.Probe{Socket: t.path(containerdSocket)},
		Advice:    "look for level=error in the log; its overlayfs needs a directory on a disk of its own, not in a container's file system",
	}
}

// writeContainerdFiles writes its configuration and that of the pods' network.
func (t *Testbed) writeContainerdFiles() error {
	parsed, err := template.New("containerd.toml").Parse(containerdConfiguration)
	if err != nil {
		return fmt.Errorf("reading containerd's configuration: %w", err)
	}
	file, err := os.Create(t.path("node/containerd.toml"))
	if err != nil {
		return fmt.Errorf("writing containerd's configuration: %w", err)
	}
	values := map[string]string{
		"Socket": t.path(containerdSocket), "Node": t.node.network.Node().String(), "Pause": PauseImage,
		"Plugins": networkPlugins, "Networks": t.path("node/cni"),
	}
	if err := errors.Join(parsed.Execute(file, values), file.Close()); err != nil {
		return fmt.Errorf("writing containerd's configuration: %w", err)
	}
	return t.writeJSON("node/cni/testbed.conflist", t.podNetwork())
}

// podNetwork attaches pods to the bridge that is there already. They find the
// machine at the gateway.
func (t *Testbed) podNetwork() object {
	network := t.node.network
	address := network.Prefix.Masked().Addr().As4()
	within := func(last byte) string { return fmt.Sprintf("%d.%d.%d.%d", address[0], address[1], address[2], last) }
	return object{
		"cniVersion": "1.0.0", "name": "testbed",
		"plugins": []object{{
			"type": "bridge", "bridge": nodehost.Bridge, "isGateway": false, "ipMasq": false, "hairpinMode": true,
			"ipam": object{
				"type": "host-local",
				"ranges": [][]object{{{
					"subnet": network.Prefix.String(), "rangeStart": within(10), "rangeEnd": within(250), "gateway": network.Machine().String(),
				}}},
				"routes": []object{{"dst": "0.0.0.0/0"}},
			},
		}},
	}
}

// loadImages makes the images and gives them to containerd.
func (t *Testbed) loadImages(ctx context.Context) error {
	begin := time.Now()
	archive := t.path("node/images.tar")
	if err := writeImages(ctx, archive); err != nil {
		return err
	}
	if err := t.ctr(ctx, "images", "import", archive); err != nil {
		return fmt.Errorf("giving images to containerd: %w", err)
	}
	t.say("loaded %s (%s)", ToolsImage, time.Since(begin).Round(10*time.Millisecond))
	return nil
}

func (t *Testbed) writeJSON(name string, content object) error {
	encoded, err := json.MarshalIndent(content, "", "  ")
	if err != nil {
		return fmt.Errorf("encoding %s: %w", name, err)
	}
	if err := os.WriteFile(t.path(name), encoded, 0o600); err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	return nil
}
