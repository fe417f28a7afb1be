// Package recorder answers: what happened, provably?
//
// The broker appends records ([Recorder.Append]) and what passes in streams
// ([Recorder.Stream]); auditors read and prove them ([Verify], [Scan],
// [Recordings]). In between lie a spool on the broker's own disk and a
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
//   - A frame of a stream whose Receipt was waited for is as safe as a record, is
//     in the bucket once, and keeps its place among the frames of its stream.
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
// # Life of a frame
//
// The frames of streams (exec, attach, port-forward) go through the same spool, in
// the same batches and under the same limits, and come back on every path that
// records come back on. They have no numbers: each carries that of the record before
// it, so that recovery still notices a record that is missing. When the sealer comes
// to a part of the spool it makes one chunk of each stream that has frames in it
// (JSON lines, zstd), syncs all of them to the spool, stores them, and appends a
// record for each, with its hash: chunks are signed for as records are. Chunks are
// stored before the segment of the same part. So where a closing record is in the
// bucket, the whole stream is; only the records that name its last chunks may come
// behind it.
//
// A file of the spool goes when its frames are in stored chunks, and the state that
// is synced beside it knows which of these have no record yet. How far chunks are
// made is a place in the spool, which never moves, so that no frame gets into two
// chunks; and recovery looks in the spool for the record of a chunk before it
// appends one, so that no chunk is named twice.
//
// Streams must not take the room of calls: they wait when the spool is half full or
// when 8 MiB of them (1 MiB of one) are on their way to the disk.
//
// # Which way it fails
//
//   - The spool cannot grow (disk full, over its size limit, or its oldest
//     unsealed record is over the age limit): Append returns [ErrUnavailable].
//     It heals by itself. The age limit does not hold for outcomes, which are
//     owed.
//   - A stream that can go on neither now nor within Config.StreamStall:
//     Stream.Append returns ErrUnavailable. Nothing of the frame is recorded, so
//     nothing of it may pass.
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
