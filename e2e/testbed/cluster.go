package testbed

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/taskgate/taskgate/e2e/internal/pki"
	"github.com/taskgate/taskgate/e2e/internal/process"
	"github.com/taskgate/taskgate/e2e/internal/toolset"
)

const serviceRange = "10.96.0.0/24"

// cluster is what the parts of the control plane share.
type cluster struct {
	url       string // of the API server
	authority *pki.Authority

	etcdPort, peerPort, apiPort, controllerPort, schedulerPort int
}

// startCluster starts a control plane, or connects to the one that the options
// name.
func (t *Testbed) startCluster(ctx context.Context) error {
	if t.options.Kubeconfig != "" {
		return t.useCluster(ctx)
	}
	c, err := t.prepareCluster()
	if err != nil {
		return err
	}
	if err := t.run(ctx, t.etcd(c), c.etcdPort, c.peerPort); err != nil {
		return err
	}
	if err := t.run(ctx, t.apiServer(c), c.apiPort); err != nil {
		return err
	}
	if err := t.connect(t.path("kubernetes/admin.kubeconfig")); err != nil {
		return err
	}
	t.setEnvironment(func(e *Environment) { e.AuditLog = t.path("audit.log") })
	if t.options.WithoutControllers {
		return nil
	}
	if err := t.run(ctx, t.controllerManager(c), c.controllerPort); err != nil {
		return err
	}
	return t.run(ctx, t.scheduler(c), c.schedulerPort)
}

// prepareCluster picks ports and writes every certificate, key and kubeconfig.
func (t *Testbed) prepareCluster() (*cluster, error) {
	c := &cluster{}
	for _, port := range []*int{&c.etcdPort, &c.peerPort, &c.apiPort, &c.controllerPort, &c.schedulerPort} {
		var err error
		if *port, err = t.claims.Claim(); err != nil {
			return nil, err
		}
	}
	c.url = fmt.Sprintf("https://127.0.0.1:%d", c.apiPort)
	if err := t.makeFolders("kubernetes", "etcd"); err != nil {
		return nil, err
	}
	var err error
	if c.authority, err = pki.NewAuthority("taskgate testbed"); err != nil {
		return nil, err
	}
	if err := t.writeServerFiles(c.authority); err != nil {
		return nil, err
	}
	for name, leaf := range map[string]pki.Leaf{
		"admin":              {CommonName: "testbed-admin", Organization: []string{"system:masters"}},
		"controller-manager": {CommonName: "system:kube-controller-manager"},
		"scheduler":          {CommonName: "system:kube-scheduler"},
		"kwok":               {CommonName: "testbed-kwok", Organization: []string{"system:masters"}},
	} {
		if err := t.writeClientKubeconfig(c, name, leaf); err != nil {
			return nil, err
		}
	}
	if t.options.Node == RealNode {
		if err := t.prepareRealNode(c); err != nil {
			return nil, err
		}
	}
	return c, t.writeAuditPolicy()
}

// writeServerFiles writes what the API server, the controller manager, the
// scheduler and the fake kubelet serve with and trust.
func (t *Testbed) writeServerFiles(authority *pki.Authority) error {
	if err := os.WriteFile(t.path("kubernetes/ca.crt"), authority.Certificate(), 0o644); err != nil {
		return fmt.Errorf("writing the cluster's authority: %w", err)
	}
	hosts := []string{"127.0.0.1", "localhost", "10.96.0.1", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"}
	for name, leaf := range map[string]pki.Leaf{
		"server":  {CommonName: "kube-apiserver", Hosts: hosts},
		"kubelet": {CommonName: "kube-apiserver-kubelet-client", Organization: []string{"system:masters"}},
	} {
		pair, err := authority.Issue(leaf)
		if err != nil {
			return err
		}
		if err := pair.Write(t.path("kubernetes", name+".crt"), t.path("kubernetes", name+".key")); err != nil {
			return err
		}
	}
	key, err := pki.NewKey()
	if err != nil {
		return err
	}
	if err := os.WriteFile(t.path("kubernetes/service-account.key"), key, 0o600); err != nil {
		return fmt.Errorf("writing the key that signs service account tokens: %w", err)
	}
	return nil
}

// etcd runs without fsync: a testbed outlives no power cut.
func (t *Testbed) etcd(c *cluster) process.Spec {
	client, peer := fmt.Sprintf("http://127.0.0.1:%d", c.etcdPort), fmt.Sprintf("http://127.0.0.1:%d", c.peerPort)
	return process.Spec{
		Name: ComponentEtcd,
		Path: t.tools[toolset.Etcd],
		Arguments: []string{
			"--name=testbed", "--data-dir=" + t.path("etcd"), "--unsafe-no-fsync",
			"--listen-client-urls=" + client, "--advertise-client-urls=" + client,
			"--listen-peer-urls=" + peer, "--initial-advertise-peer-urls=" + peer,
			"--initial-cluster=testbed=" + peer,
		},
		Ready:  process.Probe{URL: client + "/health"},
		Grace:  time.Second, // it waits for its clients to go, and loses nothing when killed
		Advice: "check that the disk has room and that nothing else uses these ports, then start again (other ports are picked)",
	}
}

// apiServer writes its audit log before it answers (mode blocking), so that a
// test can join on it at once. A loopback address needs the endpoint reconciler
// off.
func (t *Testbed) apiServer(c *cluster) process.Spec {
	in := func(name string) string { return t.path("kubernetes", name) }
	arguments := []string{
		fmt.Sprintf("--etcd-servers=http://127.0.0.1:%d", c.etcdPort),
		"--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--endpoint-reconciler-type=none",
		fmt.Sprintf("--secure-port=%d", c.apiPort),
		"--tls-cert-file=" + in("server.crt"), "--tls-private-key-file=" + in("server.key"), "--client-ca-file=" + in("ca.crt"),
		"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file=" + in("service-account.key"),
		"--service-account-signing-key-file=" + in("service-account.key"),
		"--authorization-mode=Node,RBAC", "--allow-privileged=true", "--service-cluster-ip-range=" + serviceRange,
		"--kubelet-certificate-authority=" + in("ca.crt"), "--kubelet-client-certificate=" + in("kubelet.crt"),
		"--kubelet-client-key=" + in("kubelet.key"), "--kubelet-preferred-address-types=InternalIP,Hostname",
		"--audit-policy-file=" + in("audit-policy.yaml"), "--audit-log-path=" + t.path("audit.log"),
		"--audit-log-mode=blocking", "--audit-log-maxsize=100000", "--profiling=false",
		"--shutdown-watch-termination-grace-period=1s", // else open watches keep a stopped server for a minute
	}
	return process.Spec{
		Name:      ComponentAPIServer,
		Path:      t.tools[toolset.KubeAPIServer],
		Arguments: append(arguments, t.options.APIServerArguments...),
		Ready:     process.Probe{URL: c.url + "/readyz", CA: in("ca.crt")},
		Advice:    "look for the first line with an E or F in the log; on a slow machine start again",
	}
}

// controllerManager makes ReplicaSets, service accounts and root CA config maps,
// and ends namespaces.
func (t *Testbed) controllerManager(c *cluster) process.Spec {
	in := func(name string) string { return t.path("kubernetes", name) }
	return process.Spec{
		Name: ComponentControllerManager,
		Path: t.tools[toolset.KubeControllerManager],
		Arguments: append(t.controllerArguments("controller-manager", c.controllerPort),
			"--use-service-account-credentials=true",
			"--node-monitor-period=500ms", // so that a new node is usable at once, not after five seconds
			"--service-account-private-key-file="+in("service-account.key"), "--root-ca-file="+in("ca.crt"),
		),
		Ready:  process.Probe{URL: fmt.Sprintf("https://127.0.0.1:%d/healthz", c.controllerPort), CA: in("ca.crt")},
		Advice: "look at the log of kube-apiserver too",
	}
}

// scheduler puts pods on the node.
func (t *Testbed) scheduler(c *cluster) process.Spec {
	return process.Spec{
		Name:      ComponentScheduler,
		Path:      t.tools[toolset.KubeScheduler],
		Arguments: t.controllerArguments("scheduler", c.schedulerPort),
		Ready:     process.Probe{URL: fmt.Sprintf("https://127.0.0.1:%d/healthz", c.schedulerPort), CA: t.path("kubernetes/ca.crt")},
		Advice:    "look at the log of kube-apiserver too",
	}
}

func (t *Testbed) controllerArguments(name string, port int) []string {
	kubeconfig := t.path("kubernetes", name+".kubeconfig")
	return []string{
		"--kubeconfig=" + kubeconfig, "--authentication-kubeconfig=" + kubeconfig, "--authorization-kubeconfig=" + kubeconfig,
		"--bind-address=127.0.0.1", fmt.Sprintf("--secure-port=%d", port),
		"--tls-cert-file=" + t.path("kubernetes/server.crt"), "--tls-private-key-file=" + t.path("kubernetes/server.key"),
		"--leader-elect=false", "--profiling=false",
		"--kube-api-qps=500", "--kube-api-burst=1000", // the usual 20 a second cost seconds at every start
	}
}
