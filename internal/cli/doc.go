// Package cli holds the commands of taskgate, the program for people: operators,
// approvers, SPIRE administrators and auditors.
//
// Every command reads what it needs from flags, falls back to the environment,
// and says what is missing and how to give it. What agents have written is
// escaped before it is shown ([safe]). Commands for auditors need read access to
// the bucket and nothing else; commands for operators use the person's own
// Kubernetes credential.
//
// Exit codes: 0 done, 1 an error or a broken proof, 2 a proof that could not be
// attempted.
package cli
