// Package sidecar is the agent's side of taskgate: a Kubernetes API endpoint on
// localhost that carries each call to the broker under the pod's SPIFFE
// identity. The agent gets no credential, only a local token that is worth
// nothing outside its pod.
//
// # What it does
//
// [Run] serves HTTPS on loopback with a certificate authority of its own
// (identity.LocalAuthority), writes a kubeconfig and an in-cluster folder for
// the agent, and forwards over mutual TLS to exactly one SPIFFE ID, the broker's.
//
// A call passes two steps. The guard (guard.go) asks whether the caller is the
// agent and not, say, a web page in somebody's browser: Host, Origin, the form of
// the request, the local token. The forwarder (forward.go) drops credentials and
// origin claims the agent sent, and passes everything else on as it came: the
// request target byte for byte, and headers that must be refused. The sidecar is
// not where calls are judged. The broker judges the spelling the agent chose, and
// records the refusal; a sidecar that cleaned up first would hide the attempt.
//
// Ordinary calls use HTTP/1.1 connections, long-running reads (watch, follow) share
// a few HTTP/2 connections. All of them belong to one
// uplink (uplink.go), which is replaced as a whole when the SVID or a trust
// bundle changes; what is under way on the old one ends in its own time, but
// never after the end of the SVIDs that opened it. An upgrade (exec, attach,
// port-forward) gets an HTTP/1.1 connection of its own (tunnel.go); once the broker
// has switched protocols the bytes pass as they are.
//
// # What it promises
//
//   - Nothing reaches the broker without the local token, and nothing leaves the
//     pod without an unexpired SVID.
//   - It listens on loopback only.
//   - A write is never sent twice. A read is sent again once if the connection it
//     was given broke, as net/http does.
//   - A restart keeps authority and token, so running clients go on.
//   - Answers are passed on as they come; an answer that breaks off is seen to
//     break off.
//
// # Which way it fails
//
// Closed, at once and in words. Without an SVID the answer is 503 NoIdentity;
// without a broker 503 BrokerUnavailable within two seconds (a read whose
// connection turns out to be dead: within four), which also says whether the call
// may have been made. Readiness means an SVID is held, the
// listeners are up and the files are written. It does not mean that the broker
// can be reached or that a grant exists: the agent should start and be told no in
// words it can act on.
package sidecar
