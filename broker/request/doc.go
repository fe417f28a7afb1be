// Package request turns one HTTP request of an agent into the call it means.
//
// The broker calls [Parser.Parse] once per request. What Parse returns is all the rest
// of the broker knows: the decision is made about it, the record is written
// about it, and the request that goes to the cluster is built from it ([Request])
// and from nothing the client spelled. Where the parse that decides is the parse
// that is forwarded there is no second reading to disagree with.
//
// # What it promises
//
//   - The verb, group, resource, subresource, namespace and name are those the
//     API server will see: k8s.io/apiserver's own RequestInfoFactory reads the
//     path, and a path that is not the one canonical spelling of what it read is
//     refused.
//   - Each query parameter is known for that verb, occurs once, and is written
//     again from its parsed form.
//   - A body is held whole, within the API server's own limit, and decoded
//     strictly (no duplicate keys) before anything is decided. The bytes that
//     were judged are the bytes that are forwarded.
//   - What opens a stream is known from the call, not from its headers: exec,
//     attach and port-forward need an upgrade, to a protocol that can be recorded,
//     and nothing else may have one.
//   - Options of a DELETE that are given twice have to agree (the API server
//     ignores the query as soon as there is a body).
//
// # Which way it fails
//
// Closed: everything it does not understand is a [*Refusal] with a reason of the
// closed vocabulary and an HTTP status. The package has no state and makes no
// network calls; it is fuzzed against RequestInfoFactory and, in the end-to-end
// tests, against the audit log of a real API server.
package request
