package recorder

import "time"

// Status is a snapshot for metrics and for people. Counters start with the
// process.
type Status struct {
	Stream     string
	SpoolBytes int64 // of all streams in the spool
	// OldestUnsealed is since when the oldest record or frame that is not in the
	// bucket has been durable; zero if there is none.
	OldestUnsealed time.Time
	Durable        uint64    // number of the last durable record
	Sealed         uint64    // number of the last record in the bucket
	LastSealed     time.Time // when the bucket took the last manifest
	LastManifest   string    // its hash
	Uploads        Uploads
	// Failing is why the last request to the bucket failed; nil if it worked.
	Failing error
	// UnsafeVerdicts counts checks that found the bucket unsafe.
	UnsafeVerdicts uint64
	NextCanary     time.Time
	// Warning is a problem that does not keep the recorder from working; nil if
	// there is none.
	Warning *Problem
}

// Status returns how the recorder is doing.
func (r *Recorder) Status() Status {
	status := Status{Stream: r.live.state.Stream, Durable: r.live.spool.durableSeq(), Failing: r.uploader.failure()}
	for _, s := range r.sealers() {
		bytes, oldest := s.spool.usage()
		status.SpoolBytes += bytes
		if !oldest.IsZero() && (status.OldestUnsealed.IsZero() || oldest.Before(status.OldestUnsealed)) {
			status.OldestUnsealed = oldest
		}
	}
	r.uploader.mu.Lock()
	status.Uploads = r.uploader.counts
	r.uploader.mu.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	status.Sealed, status.LastSealed, status.LastManifest = r.sealed.last, r.sealed.at, r.sealed.manifest
	status.UnsafeVerdicts, status.NextCanary, status.Warning = r.guard.failures, r.guard.next, r.guard.warning
	return status
}
