// Package recorder answers: what happened, provably?
//
// The broker appends records ([Recorder.Append]); auditors read and prove them
// ([Verify], [Scan]). In between lie a spool on the broker's own disk and a
// bucket in which every object is locked (S3 Object Lock, COMPLIANCE).
//
// # What it promises
//
//   - A [Receipt] that was waited for means the record survives kill -9 and,
//     as far as the disk keeps its word about fdatasync, a power cut.
//   - Records of one stream (one start of one broker) are numbered from 1
//     without a gap. What was acknowledged is sealed in the bucket or still in
//     the spool; recovery drops nothing but a torn tail nobody waited for.
//   - Every object in the bucket is created once, never overwritten, and named
//     by a signed manifest that names the manifest before it. Verify recomputes
//     all of it from bucket read access and a trust bundle, without the broker.
//   - An intent (StageRequestReceived) without an outcome (StageResponseComplete,
//     same AuditID) gets one that says so, outcome=unknown, when its stream is
//     closed: by Close, or by the next start after a crash.
//
// # Life of a record
//
// Append encodes it once, gives it its number and puts it into the batch being
// filled. One writer goroutine takes the batch, writes it to a preallocated
// spool file in one call, syncs once, and wakes everybody who waits for it;
// records that arrive meanwhile form the next batch, so there is no timer.
// Once a second, or at 8 MiB, the sealer compresses what is durable into one
// segment (JSON lines, zstd), stores it, signs the manifest with the broker's
// X509-SVID (JWS, RFC 7515, with the chain in x5c), stores that, and only then
// lets the spool go.
//
// Every store operation can fail without effect or take effect and report a
// failure. Therefore the bytes of a segment and of its manifest are synced to
// the spool before they are first sent and sent again unchanged; "already
// exists" is a fork on the first attempt and success after one whose outcome is
// unknown. Only a manifest that waited longer than the age limit is signed anew,
// because Verify wants signature and storage close together; while it is unknown
// which signature the bucket took, the next manifest names each of them.
//
// # Which way it fails
//
//   - The spool cannot grow (disk full, over its size limit, or its oldest
//     unsealed record is over the age limit): Append returns [ErrUnavailable].
//     It heals by itself. The age limit does not hold for outcomes, which are
//     owed.
//   - A write or sync of the spool fails: the recorder is dead ([Recorder.Dead]);
//     the process must end, because what a failed fsync left on disk is not
//     knowable. The next start recovers.
//   - The bucket is unreachable: the spool takes over until its limits.
//   - The bucket is not safe (no object lock, versioning off, GOVERNANCE, the
//     canary could be deleted, the credential may delete records), or was not yet
//     seen to be safe since the start: [Recorder.Ready] says so and Append refuses.
//     So it does while the clocks here and there are more than 5 minutes apart.
//   - An object of our own stream exists before we wrote it: the recorder is dead,
//     and the spool stays as it is until an operator has looked.
//   - The spool holds acknowledged records that cannot be read back: Open fails
//     and changes nothing.
//   - Bytes in the bucket that do not parse, records that are not in canonical
//     form, objects nobody signed: Verify fails and names the first bad number.
//
// The package never logs, knows neither Kubernetes nor policy, and never
// redacts: what must not be kept must not be appended.
package recorder
