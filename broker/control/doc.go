// Package control keeps the broker's side of the control cluster: the objects of
// taskgate.dev, and the admission policies the boundary leans on.
//
// The broker runs one [Controller]. It fills the index of package authz from
// watches, writes what became of grants and policies into their status, proves
// by heartbeat that what it sees is fresh, reserves budgets, and watches over
// the admission policies of both clusters. It says what Decisions of people are
// worth, for grants that wait for them and, live, for calls that do; and it cleans
// up what has been over for long.
//
// # What it promises
//
//   - There is no leader. Every replica computes the same status from the same
//     objects and writes it by compare-and-swap; the loser of a race reads again
//     and finds nothing left to do.
//   - What a status says never decides alone: the index judges each grant anew
//     against the policies it holds (package authz).
//   - What gives something (Active) or is final (Denied, Ended) is computed from
//     the grant, its policy and the Decisions about it read live, never from an
//     informer that may be behind.
//   - A Decision counts for one object, one UID and one digest, of a person who may
//     still decide, while the admission policies that make it true are there
//     ([Judge], [Controller.VerdictOn]). The first no is the last word.
//   - An Approval is consumed once over all replicas ([Controller.Consume]); its
//     status tells people what was decided and decides nothing.
//   - After a revocation the policy alone gives the agent nothing more until a
//     person says so.
//   - [authz.Index.Fresh] moves only when a value this replica wrote came back
//     through the very watch that fills the index, for each watched kind.
//   - A budget that is never to be overrun is reserved in the grant's status
//     before it is spent; what a crashed replica had reserved is lost, not spent
//     twice.
//
// # Many grants
//
// A hundred thousand grants may be there when a broker starts. A reflector fills
// [seenGrants] and no informer: what is kept of a grant is what decides, once, and
// the index holds the same value; only a grant that still waits is kept whole. A
// status rests on the grant as the API server has it, but for what people are told
// while it waits. Until all have been looked at once the collector runs more often
// (frugal), which is the one setting of the process that this package changes.
//
// # Which way it fails
//
// Closed. An object that cannot be converted grants nothing and says so in a
// condition. A control cluster that is out of reach makes the index stale, and
// stale denies. A budget that cannot be reserved counts as spent. Admission
// policies that are absent, changed or not enforcing make the broker not ready;
// without those of the control cluster calls that need nobody's approval go on, and
// no Decision counts.
package control
