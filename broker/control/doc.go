// Package control keeps the broker's side of the control cluster: the objects of
// taskgate.dev, and the admission policies the boundary leans on.
//
// The broker runs one [Controller]. It fills the index of package authz from
// informers, writes what became of grants and policies into their status, proves
// by heartbeat that what it sees is fresh, reserves budgets, and watches over
// the admission policies of the guarded cluster.
//
// # What it promises
//
//   - There is no leader. Every replica computes the same status from the same
//     objects and writes it by compare-and-swap; the loser of a race reads again
//     and finds nothing left to do.
//   - What a status says never decides alone: the index judges each grant anew
//     against the policies it holds (package authz).
//   - What is final (Denied, Ended) is computed from a policy read live, never
//     from an informer that may be behind.
//   - [authz.Index.Fresh] moves only when a value this replica wrote came back
//     through the very watch that fills the index, for each watched kind.
//   - A budget that is never to be overrun is reserved in the grant's status
//     before it is spent; what a crashed replica had reserved is lost, not spent
//     twice.
//
// # Which way it fails
//
// Closed. An object that cannot be converted grants nothing and says so in a
// condition. A control cluster that is out of reach makes the index stale, and
// stale denies. A budget that cannot be reserved counts as spent. Admission
// policies that are absent, changed or not enforcing make the broker not ready.
package control
