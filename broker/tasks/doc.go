// Package tasks serves an agent its own objects of taskgate.dev: it asks for a
// TaskGrant, looks at its grants and approvals, and gives a grant back.
//
// Package broker calls [Server.Prepare] once the call is allowed, and [Call.Do]
// once it is on record. The calls go to the control cluster under the broker's
// own account, never under the agent's principal, and never to the guarded
// cluster: what Kubernetes would let that account see is narrowed here.
//
// # What it promises
//
//   - An agent sees only objects whose spec.agent is its own SPIFFE ID. The API
//     server is asked with that field selector, and every object that comes back
//     is looked at again (show.go). Somebody else's object is not found, in the
//     very words in which one is that does not exist.
//   - Of what an agent sends only the name, task, reason, rules, ttl and policy
//     reach the control cluster. Who it is comes from its SVID (create.go).
//   - Of an Approval the agent does not see what people are shown to judge it by:
//     the diff may hold what the agent may not read.
//   - To delete a TaskGrant is to give it back: the grant ends, the object stays
//     for the record, and the agent sees it no more.
//   - One agent cannot fill the control cluster (quota.go).
//
// # Which way it fails
//
// Closed. An object that cannot be read, or is not provably the agent's, is left
// out; an answer that breaks off does so visibly. Errors of the control cluster
// are passed on in its own words.
package tasks
