// Package condition reads and evaluates the conditions of gates (`when`).
//
// A condition is an expression in CEL, in the environment of the API server's own
// admission policies: the same libraries, the same limits of cost. It is about
//
//	request    what is asked: verb, group, version, resource, subresource,
//	           namespace, name (text), dryRun (bool), query (a map of text)
//	object     what the object would become: the result of a dry run of a create,
//	           update or patch; null for everything else
//	oldObject  what it is now: for update, patch and delete; else null
//	params     under which grant: agent, task, grant, policy (text)
//
// # Which way it fails
//
// Closed: toward the gate. An expression that cannot be compiled is an error, and
// its policy grants nothing. One that fails when it is evaluated (a field that is
// not there, an object that is not there, a cost over the limit) holds, and the
// call waits for a person.
//
// The package is pure: it makes no calls and never logs. Objects are made by the
// broker (broker/conditional.go).
package condition
