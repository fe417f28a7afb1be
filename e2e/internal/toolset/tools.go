package toolset

import "time"

// The programs a testbed may need.
const (
	Etcd                  = "etcd"
	KubeAPIServer         = "kube-apiserver"
	KubeControllerManager = "kube-controller-manager"
	KubeScheduler         = "kube-scheduler"
	Kubectl               = "kubectl"
	SPIREServer           = "spire-server"
	SPIREAgent            = "spire-agent"
	MinIO                 = "minio"
	VersityGW             = "versitygw"
	Kwok                  = "kwok"
	Kubelet               = "kubelet"
	Containerd            = "containerd"
	ContainerdShim        = "containerd-shim-runc-v2" // containerd looks for it under this name
	Ctr                   = "ctr"
)

// tool says how one program is built.
type tool struct {
	module     string        // folder under e2e/tools
	source     string        // package path
	cgo        bool          // needs a C compiler
	kubernetes bool          // wants to be told which version of Kubernetes it is
	assets     bool          // part of the usual KUBEBUILDER_ASSETS
	usual      time.Duration // of a cold build on two cores, after those listed before it
}

func tools() map[string]tool {
	const (
		kubernetes = "k8s.io/kubernetes/cmd/"
		containerd = "github.com/containerd/containerd/v2/cmd/"
	)
	return map[string]tool{
		KubeAPIServer:         {module: "kubernetes", source: kubernetes + "kube-apiserver", kubernetes: true, assets: true, usual: 5 * time.Minute},
		Etcd:                  {module: "kubernetes", source: "go.etcd.io/etcd/server/v3", assets: true, usual: 10 * time.Second},
		Kubectl:               {module: "kubernetes", source: kubernetes + "kubectl", kubernetes: true, assets: true, usual: 20 * time.Second},
		KubeControllerManager: {module: "kubernetes", source: kubernetes + "kube-controller-manager", kubernetes: true, usual: 90 * time.Second},
		KubeScheduler:         {module: "kubernetes", source: kubernetes + "kube-scheduler", kubernetes: true, usual: 10 * time.Second},
		SPIREServer:           {module: "spire", source: "github.com/spiffe/spire/cmd/spire-server", cgo: true, usual: 5 * time.Minute},
		SPIREAgent:            {module: "spire", source: "github.com/spiffe/spire/cmd/spire-agent", cgo: true, usual: 30 * time.Second},
		MinIO:                 {module: "minio", source: "github.com/minio/minio", usual: 3*time.Minute + 30*time.Second},
		VersityGW:             {module: "versitygw", source: "github.com/versity/versitygw/cmd/versitygw", usual: 50 * time.Second},
		Kwok:                  {module: "kwok", source: "sigs.k8s.io/kwok/cmd/kwok", usual: time.Minute},
		Kubelet:               {module: "kubernetes", source: kubernetes + "kubelet", kubernetes: true, usual: 90 * time.Second},
		Containerd:            {module: "containerd", source: containerd + "containerd", usual: 2 * time.Minute},
		ContainerdShim:        {module: "containerd", source: containerd + "containerd-shim-runc-v2", usual: 10 * time.Second},
		Ctr:                   {module: "containerd", source: containerd + "ctr", usual: 10 * time.Second},
	}
}
