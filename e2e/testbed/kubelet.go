package testbed

import (
	"fmt"

	"github.com/taskgate/taskgate/e2e/internal/pki"
	"github.com/taskgate/taskgate/e2e/internal/process"
	"github.com/taskgate/taskgate/e2e/internal/toolset"
)

const (
	kubeletPort       = 10250 // of the node's address, which is nobody else's
	kubeletHealthPort = 10248
)

// kubelet stays in the network of the machine, where the API server is.
func (t *Testbed) kubelet() process.Spec {
	machine := t.node.network.Machine().String()
	return process.Spec{
		Name: ComponentKubelet,
		Path: t.path("node", toolset.Kubelet),
		Arguments: []string{
			"--config=" + t.path("node/kubelet.json"), "--kubeconfig=" + t.path("kubernetes/kubelet.kubeconfig"),
			"--hostname-override=" + RealNodeName, "--node-ip=" + machine,
		},
		Inside: &process.Inside{Socket: t.nodeSocket()},
		Ready:  process.Probe{URL: fmt.Sprintf("http://%s:%d/healthz", machine, kubeletHealthPort)},
		Advice: "look for the last line with an E in the log, and at the log of containerd too",
	}
}

// writeKubeletFiles makes the kubelet a client and a server of the cluster. Nobody
// asks it anything without a certificate or a token that the cluster knows.
func (t *Testbed) writeKubeletFiles(c *cluster) error {
	machine := t.node.network.Machine().String()
	server, err := c.authority.Issue(pki.Leaf{CommonName: RealNodeName, Hosts: []string{machine, RealNodeName}})
	if err != nil {
		return err
	}
	if err := server.Write(t.path("node/kubelet.crt"), t.path("node/kubelet.key")); err != nil {
		return err
	}
	client := pki.Leaf{CommonName: "system:node:" + RealNodeName, Organization: []string{"system:nodes"}}
	if err := t.writeClientKubeconfig(c, "kubelet", client); err != nil {
		return err
	}
	return t.writeJSON("node/kubelet.json", t.kubeletConfiguration(machine))
}

// kubeletConfiguration is a file of kubelet.config.k8s.io/v1beta1.
func (t *Testbed) kubeletConfiguration(machine string) object {
	return object{
		"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
		"address": machine, "port": kubeletPort, "readOnlyPort": 0,
		"healthzBindAddress": machine, "healthzPort": kubeletHealthPort,
		"tlsCertFile": t.path("node/kubelet.crt"), "tlsPrivateKeyFile": t.path("node/kubelet.key"),
		"authentication": object{
			"anonymous": object{"enabled": false},
			"webhook":   object{"enabled": true},
			"x509":      object{"clientCAFile": t.path("kubernetes/ca.crt")},
		},
		"authorization":            object{"mode": "Webhook"},
		"containerRuntimeEndpoint": "unix://" + t.path(containerdSocket),
		"cgroupDriver":             "cgroupfs", "cgroupRoot": "/" + t.nodeCgroup(),
		"failCgroupV1": false, "failSwapOn": false,
		"makeIPTablesUtilChains": false, // it would change the machine's
		"resolvConf":             "",    // pods have no DNS
		"volumePluginDir":        "/var/lib/kubelet/volume-plugins",
		// A disk that others have filled neither evicts pods nor deletes images.
		"evictionHard": object{}, "imageGCHighThresholdPercent": 100,
		"kubeAPIQPS": 500, "kubeAPIBurst": 1000,
	}
}
