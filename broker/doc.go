// Package broker is the boundary: every call of every agent goes through it.
//
// [Run] is the program. It accepts sidecars over mutual TLS, understands each
// request (package request), decides (package authz, fed by package control),
// puts it on record (package recorder), and forwards it to the cluster under a
// principal that can be no other (upstream.go).
//
// # The request path
//
//	identify  the peer's SVID is checked for every request, not once per connection
//	parse     request.Parser: one reading for the decision, the record and the cluster
//	admit     the one door: decide, ask people at a gate, charge, record the intent,
//	          use the approval up
//	forward   takes the admission only admit can make; builds headers from nothing
//	release   no byte of an answer leaves before the intent is durable
//	complete  the outcome is recorded
//
// A call that opens a stream is admitted like any other. Then the pod is looked at
// once more, a connection is opened for this stream alone, and package stream
// carries it (streams.go).
//
// Calls about the agent itself never get to forward: reviews are answered from the
// grants (reviews.go), and its own TaskGrants and Approvals are served from the
// control cluster (own.go, package tasks), decided and recorded like all others.
//
// # What it promises
//
//   - Nothing is forwarded, and nothing is shown to an agent, before it is on
//     record: mutations wait for the disk before they are sent, reads before the
//     first byte of the answer is released. Refusals are records too.
//
//   - What reaches the cluster carries exactly the bound principal. The transport
//     itself refuses anything else (hop.go).
//
//   - What a stream carries is durable before it is released to either side.
//
//   - A call that goes on (watch, follow, a stream) ends when what allowed it ends: the
//     grant, the SVID, the freshness of the policies, the broker.
//
//   - A gated call passes only on the yes of enough people to exactly that call
//     (digest.go), once over all replicas (consume.go), and only while what
//     it is about is still the object they were shown. What stays open is the
//     moment between that look and the call: a delete carries the UID as a
//     precondition, other verbs do not.
//
// # Which way it fails
//
// Closed, with one of the reasons of authz.Reason and a text that says what to
// do next. A panic in a handler is a 500 to that agent and nobody else; an
// invariant that does not hold sends nothing upstream.
package broker
