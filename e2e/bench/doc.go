// Package bench measures what taskgate costs, and whether it keeps the promises
// that are made about its speed. Every number comes out of one run, and what is
// judged are ratios of that run: absolute microseconds of one machine say little
// about another, and on a shared machine little about tomorrow.
//
// # Who is compared
//
// All contenders do the same call against the same API server, and all are up at
// the same time:
//
//   - direct: the client to kube-apiserver, with a client certificate. It is the
//     cluster's administrator, so that the API server neither impersonates nor
//     asks RBAC for it.
//   - twin: the plainest program that does taskgate's networking. Two processes
//     with an httputil.ReverseProxy each: HTTPS on localhost, then mutual TLS, then
//     the API server with the broker's own token and the very impersonation
//     headers the broker sends. It decides nothing and records nothing.
//   - taskgate: sidecar and broker as they are, with a grant, recording to a spool
//     on disk and to an S3 store with object lock.
//   - unrecorded: the same sidecar, and a broker of which the build takes the
//     recording out (see below). It exists for one question only.
//
// On every hop of every contender: TLS 1.3, ECDSA P-256, Go's own list of curves,
// no resumption, HTTP/1.1 with connections kept for calls that come and go, HTTP/2
// for watches. The clients are in this process, the contenders in others.
//
// # Rounds
//
// A block is one kind of call with one number of clients. It is measured in
// rounds; in each of them every contender has a turn, and then again in the
// opposite order, so that what drifts evenly cancels out. The two halves of a
// round count as one. A turn has a part that is not measured before it, long
// enough for connections and for taskgate's sealing (once a second) to be in full
// swing, and time after it for the sealing to end, so that no contender pays for
// the one before it. CPU per call counts all three parts.
//
// Each value is the median over the rounds, of the value itself or of its ratio to
// another contender in the same round, with the 95 % interval of a bootstrap. A
// gate is passed only if the worse end of the interval is within the limit.
//
// Around each round canaries look at the machine: SHA-256 of 16 KiB, a ping over
// loopback, time stolen by the hypervisor, CPU used by others. Rounds in which the
// machine was disturbed are dropped, unless hardly any would be left; then the
// result says so.
//
// Clients form a closed loop: each sends its next call when it has the answer to
// the last one. Latencies say what one client sees; they are not what an open
// arrival process would see.
//
// # Recording on and off
//
// The product has no switch for that, and gets none. The unrecorded broker is
// built from the same source with go build -overlay, which replaces four functions
// by ones that do nothing (variant.go); the source tree is not touched. What is
// left out is all that serves the record: making events, hashing answers, encoding,
// the spool with its fdatasync, sealing, the bucket. If one of the functions is
// renamed, the build of the variant says which.
//
// # Memory
//
// RSS comes from /proc/PID/smaps_rollup of freshly started processes, when it
// stands still. Per watch is the difference that a thousand make. It is measured
// twice: in a process that does nothing else, which is what the promise is about,
// and in one that served ordinary calls before and after the watches were opened;
// there the collector's room for garbage, which grows with what lives, is part of
// it. The peak during the large list is the kernel's own (VmHWM, reset before), in
// a process that was busy before.
//
// # What this is not
//
// etcd runs without fsync, so a create is compared with a faster one than in
// production. All processes and the clients share the same few cores, so the
// throughput of a contender contains the CPU of everybody. Peers that do not do the
// same job are not here; see reference/performance.md.
package bench
