// Package registration tells SPIRE which container is which agent: it makes the
// registration entries that give an agent's SPIFFE ID to the sidecar of its pods
// and to no other container.
//
// The commands of taskgate spire use it. [Parse] reads a description of agents,
// [Spec.Entries] turns it into entries, [NewPlan] compares them with what a SPIRE
// server holds ([Server]), [Server.Apply] makes it so. [Spec.JSON], [Spec.StaticEntries]
// and [Spec.ClusterSPIFFEIDs] write them down for whoever registers in another
// way. [Look] tells from inside a pod what a Workload API hands out.
//
// # What it promises
//
//   - An entry for an agent names namespace, service account, container and the
//     digest of the image. What lacks one of these is refused, and the error says
//     which ([CheckSelectors]).
//   - The same description gives the same entries with the same IDs, in the same
//     order.
//   - An entry is ours if its ID begins with the name of the set and it carries
//     [Hint]; others are read, for warnings, and never changed or deleted.
//   - Nothing it writes is an administrator (admin), a downstream server, or kept
//     in a store; an entry of ours that became one is set back.
//
// # Which way it fails
//
// Closed. An answer that does not hold what was asked for is a failure of that
// entry. After a call of unknown outcome nothing more is tried: applying again
// starts from what the server holds then. Nothing is deleted unless everything
// was made before. Nothing here logs.
package registration
