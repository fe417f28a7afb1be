// Package testbed starts, on one machine, everything that taskgate needs around
// it, and taskgate itself:
//
//   - a Kubernetes control plane: etcd, kube-apiserver with an audit log,
//     kube-controller-manager, kube-scheduler, and a fake node (kwok) whose pods
//     run at once, or a real one (containerd and a kubelet) that runs containers;
//     or a cluster that exists already,
//   - SPIFFE identities: a SPIRE server and agent that tell workloads apart by
//     their uid, or a stand-in that attests nothing,
//   - an S3 store with object lock: versitygw or MinIO, with a user each for the
//     administrator, the broker and an auditor,
//   - brokers, and the sidecars of two agents, alpha and beta.
//
// Nothing of it is a mock. What a test sees here is what a cluster would do.
//
// # Life
//
// Start brings a testbed up, Stop ends it, Remove also removes its directory. A
// test wants it to die with the test (package testbedtest does the rest); a
// person wants it to live on: Options.Detached, then Open, Control and Down,
// which the command e2e/cmd/testbed puts on a command line. Either way all that
// runs is written down in pids.json before the next thing starts, and every
// process carries a mark in its environment, so that Down finds all of it after
// a crash, and never ends a process that is not its own.
//
// Two testbeds share nothing: ports are free ones, and everything else is in the
// testbed's directory. The only thing shared are the programs, which are built
// from source when they are missing (package toolset).
//
// # The real node
//
// Options.Node = RealNode needs root, runc, CNI plugins, iproute2 and a static
// busybox. RunPod runs pods of the one image there is, ToolsImage; there is no
// registry, no DNS and no address of a Service. Pods reach programs of this machine
// that listen on their node's address (status.hostIP), and such programs reach them.
//
// All of it lives in namespaces of its own and ends with the component node, like
// a computer that is switched off: package nodehost. No setting of the machine is
// changed; what it sees is one interface, and control groups for the pods. After
// a kill of node, start containerd and the kubelet again too: the pods come back.
//
// # Taking things away
//
// Fault tests stop, kill, hold and restart single components: see Component.
// A component comes back on the same port with the same data.
//
// # Directory
//
//	env           what to source; see Environment
//	pids.json     what runs, and how it was started
//	log/          all output of each component
//	audit.log     what the API server itself recorded about the broker's calls
//	bundle.json   SPIFFE trust bundle
//	bin/          sidecar, broker, taskgate, kubectl
//	kubernetes/   certificates and kubeconfigs
//	broker/       configuration, kubeconfig and spool; then broker-1/ and so on
//	alpha/ beta/  state of a sidecar, and what it wrote for its agent
//	identity/     sockets of the Workload API
//	kwok/ etcd/ s3/ spire/
//	node/         configuration, sockets, images, /var/lib and /var/log of the real node
//
// # Trust
//
// A testbed is for machines whose users trust each other. The API server, the
// store and the Workload API listen on loopback, the real node's kubelet on its
// own network, where it asks the cluster who may what. The fake node's kubelet asks
// nobody who they are, and runs the commands of kubectl exec on the machine, as
// nobody when the testbed runs as root. env and pids.json hold credentials and
// are readable by their owner only.
package testbed
