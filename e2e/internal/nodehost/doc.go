// Package nodehost is the machine that the testbed's real node believes to be on:
// a process with namespaces of its own, in which containerd, the kubelet and all
// pods run.
//
// It exists for the end. A node leaves much behind on the machine it runs on:
// containers that outlive containerd, mounts, interfaces, sockets in /run. Here
// the kernel takes all of it away when one process ends, however it ends: with the
// first process of a PID namespace it kills all others in it, with the last one it
// drops the mount and the network namespace. A test that is killed leaves no pod.
//
// The host is process 1 of a PID and a mount namespace, which package process
// makes. It prepares these, adds a network namespace, and hands all three to who
// connects to its socket (package namespaces); when that socket is there the host
// is ready. It lives until SIGTERM, and reaps what its children leave.
//
// # What differs inside
//
//   - /run, /var/lib and /var/log are the node's own, as containerd, the kubelet
//     and CNI plugins have paths there that cannot be configured,
//   - settings of the kernel that a kubelet changes for the whole machine are
//     files that nobody reads,
//   - the network is a bridge that pods are attached to. One wire goes from it to
//     an interface on the machine: programs there reach pods and pods reach them,
//     at the first address of the network. Nothing else is reached: nothing is
//     forwarded or translated on the machine, and no setting of it is changed.
//
// The control group that pods live in is the one thing that outlives the host;
// who started it removes that (package cgroups).
package nodehost
