// Package cli holds the commands of taskgate, the program for people: operators,
// approvers, SPIRE administrators and auditors.
//
// Every command reads what it needs from flags, falls back to the environment,
// and says what is missing and how to give it. What agents have written is made
// inert before it is shown (package inert). Commands for auditors need read access
// to the bucket and nothing else; the others use the person's own Kubernetes
// credential, and what they check early the cluster and the broker check again:
// nothing here is a boundary.
//
// Exit codes: 0 done, 1 the answer is no (refused, settled otherwise, a broken
// proof), 2 it could not be done or told.
package cli
