// Package toolset finds or builds the programs a testbed is made of.
//
// Nothing is downloaded as a binary. Each family of programs has a Go module of
// its own under e2e/tools whose go.mod and go.sum pin every line of source, so
// that a build gives the same programs everywhere and no server code enters the
// go.mod of the product.
//
// A build takes minutes the first time, therefore its result is kept outside
// the tree, in a folder named after the hash of all that went into it:
//
//	${XDG_CACHE_HOME:-~/.cache}/taskgate/testbed/<module>-<hash>/<program>
//
// Programs appear there by rename, complete or not at all, and a file lock
// makes the second of two builders wait for the first. Who has the programs
// already points TASKGATE_TESTBED_BIN (or, for the API server, etcd and kubectl,
// KUBEBUILDER_ASSETS) at their folder.
package toolset
