// Package process runs the programs of a testbed as child processes.
//
// A program is described by a [Spec], which is plain data: it can be stored in
// a file and used by another program later to stop or restart what this one
// started. Whether a program is ready is therefore also data, a [Probe].
//
// There are two lifetimes. An attached process dies with the program that
// started it, even when that is killed: tests leave nothing behind. A detached
// one lives on in a session of its own.
//
// A process may be the first of namespaces of its own, which end with it and take
// along whatever it started, or join those of another one ([Spec]).
//
// A pid alone says nothing, because the kernel uses it again. An [Identity]
// adds the moment the process started and the boot it belongs to; nothing here
// sends a signal before the identity was checked.
package process
