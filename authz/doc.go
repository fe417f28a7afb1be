// Package authz answers one question: may it, right now?
//
// The broker fills an [Index] with the policies and grants of the cluster, pins
// the compiled [Set] of an agent to each of its connections, and asks [Decide]
// for every [Call]. Decide is a pure function of plain values: it reads no
// clock, takes no lock, allocates nothing, and can be read as a table
// (decide_test.go is that table).
//
// # What it promises
//
//   - Nothing is allowed unless an active grant covers the call, and the grant's
//     policy still matches the agent, is valid, and still covers the grant.
//   - The never-list ([Boundary]) comes first; no grant and no waiver passes it.
//     Only what an agent does with its own grants and approvals
//     ([Call.OwnObjects]) is allowed before, and needs no grant.
//   - Gates of every policy that matches the agent apply, whichever grant covers
//     the call; a built-in gate is off only if all of them waive it.
//   - A change of a policy or a grant that the index has seen is in force for
//     the next Decide: a Set is good for one generation of the index only.
//
// # Secrets
//
// Reading values of Secrets is behind the built-in gate secret-values. A rule with
// Redacted (values: Redacted) needs no such yes: the call passes, and Decision.Values
// stays false, which obliges the broker to mask the answer whatever the verb. Which
// rule a call is under is not the agent's choice: within the charged grant a rule
// that names the Secret (resourceNames) goes before one about all of them, and
// otherwise one that redacts before one that does not. An agent that holds both
// kinds in different grants is charged for the one that ends first, and may pin the
// other. A gate of a policy holds for masked answers too, and no yes to it unmasks
// them.
//
// # Which way it fails
//
// Closed. The zero Decision denies. A nil Set, a policy source that has not been
// proven fresh within the bound, an empty field of a rule, a rule with words
// nobody knows, a grant without an end: all deny. Gates fail the other way
// round for the same reason: an empty field of a gate matches every call.
//
// Rules match as RBAC does (k8s.io/component-helpers/auth/rbac/validation);
// whether a grant lies within its policy is computed by that very package
// ([Missing]), and the compiled form used per call is tested against it.
//
// The package never logs, records nothing, and knows neither HTTP nor clients.
package authz
