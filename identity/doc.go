// Package identity answers one question: who is speaking?
//
// The sidecar and the broker use it. It holds the program's own X509-SVID and
// the trust bundles, both kept up to date from the SPIFFE Workload API
// ([Source]), makes every tls.Config of this repository, and ties a connection
// to the SPIFFE ID of its peer ([Peer]).
//
// # What it promises
//
//   - A [Peer] exists only for a leaf certificate that verified against the
//     bundle of its own trust domain. Bundles of different trust domains are
//     never pooled (SPIFFE Federation, section 7), so a federated authority
//     cannot speak for a local ID.
//   - [Peer.Check] holds at the moment of the call, not at the moment of the
//     handshake: an SVID past its end, or an authority that left the bundle
//     since, is refused on a connection that is already open.
//   - No TLS session is ever resumed. Go does not run the verification of
//     certificates again on resumption (crypto/tls, VerifyPeerCertificate), so
//     tickets are off on both sides and the check sits in VerifyConnection.
//   - The client side accepts exactly one SPIFFE ID.
//
// # Which way it fails
//
// Closed. A source that never received an SVID has none and says why; an SVID
// that ran out is an error, not a stale answer; a trust domain without a bundle
// verifies nothing; a zero Peer fails every check. Nothing here logs: errors go
// up.
//
// The private certificate authority of the sidecar's local endpoint
// ([LocalAuthority]) lives here too, because this package owns tls.Config. It
// proves nothing about anybody but the sidecar itself.
package identity
