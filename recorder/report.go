package recorder

import (
	"cmp"
	"fmt"
	"slices"
	"sync"
	"time"
)

// The reasons of findings. A finding breaks the proof; a note does not.
const (
	UnknownObject    Reason = "unknown_object"    // no verified manifest names it
	ExtraVersion     Reason = "extra_version"     // a key was written more than once
	MissingObject    Reason = "missing_object"    // named, or needed for the chain, and not there
	HashMismatch     Reason = "hash_mismatch"     // not the content that was signed
	Misplaced        Reason = "misplaced"         // other records of the journal lie here
	Malformed        Reason = "malformed"         // not a manifest, or one that contradicts itself
	BadSignature     Reason = "bad_signature"     //
	UntrustedSigner  Reason = "untrusted_signer"  // no bundle that counts, or not a broker
	SignatureTime    Reason = "signature_time"    // outside the SVID's life or far from the store's time
	ChainBroken      Reason = "chain_broken"      // does not continue the manifest before it
	SequenceGap      Reason = "sequence_gap"      // numbers are missing or repeated
	NotCanonical     Reason = "not_canonical"     // a record is not in canonical form
	TooLarge         Reason = "too_large"         // larger than it may be or says it is
	LockMissing      Reason = "lock_missing"      // not locked in COMPLIANCE mode, or too briefly
	Fork             Reason = "fork"              // two valid manifests with one number
	Truncated        Reason = "truncated"         // the end of a stream was taken away
	TotalsDiffer     Reason = "totals_differ"     // a recorded stream is not as long as its record says
	DeleteMarker     Reason = "delete_marker"     // note: hidden, the content is there
	StreamOpen       Reason = "open"              // note: no closing manifest (yet)
	HeartbeatMissing Reason = "heartbeat_missing" // note: an open stream is silent
	Unproven         Reason = "unproven"          // note: stored and not signed for yet
	Unreferenced     Reason = "unreferenced"      // note: a trust bundle no manifest names
)

// Finding is one thing that is wrong, or worth knowing.
type Finding struct {
	Reason  Reason `json:"reason"`
	Cluster string `json:"cluster,omitempty"`
	Stream  string `json:"stream,omitempty"`
	// Seq is the first record that is not proven because of it; 0 if that cannot
	// be said.
	Seq    uint64 `json:"seq,omitempty"`
	Key    string `json:"key,omitempty"`
	Detail string `json:"detail"`
}

// String is the finding as one line for people.
func (f Finding) String() string {
	text := string(f.Reason)
	if f.Stream != "" {
		text += fmt.Sprintf(" in %s/%s", f.Cluster, f.Stream)
	}
	if f.Seq != 0 {
		text += fmt.Sprintf(" from record %d on", f.Seq)
	}
	text += ": " + f.Detail
	if f.Key != "" {
		text += " (" + f.Key + ")"
	}
	return text
}

// StreamReport says how far one stream is proven.
type StreamReport struct {
	Cluster  string    `json:"cluster"`
	Stream   string    `json:"stream"`
	Last     uint64    `json:"last"`   // number of the last proven record
	Time     time.Time `json:"time"`   // of the last manifest
	Number   uint64    `json:"number"` // of the last manifest
	Manifest string    `json:"manifest"`
	End      string    `json:"end"` // "closed", "recovered" or "open"
}

// Report is the outcome of Verify.
type Report struct {
	Findings   []Finding      `json:"findings"`
	Notes      []Finding      `json:"notes"`
	Streams    []StreamReport `json:"streams"`
	NotChecked []string       `json:"notChecked,omitempty"` // what this bucket cannot show
	Manifests  uint64         `json:"manifests"`
	Segments   uint64         `json:"segments"`
	Records    uint64         `json:"records"`
	Bytes      int64          `json:"bytes"` // of records, decompressed
	// Unknown counts records that say that an outcome is not known.
	Unknown uint64 `json:"unknown"`
	// Recordings counts recorded streams (of exec, attach and port-forward), Chunks
	// and Frames what they consist of, StreamBytes the data in the frames.
	Recordings  uint64 `json:"recordings"`
	Chunks      uint64 `json:"chunks"`
	Frames      uint64 `json:"frames"`
	StreamBytes uint64 `json:"streamBytes"`
	// Omitted counts findings and notes beyond the first thousand of each.
	Omitted uint64 `json:"omitted,omitempty"`

	mu sync.Mutex
}

// Proven tells whether nothing was found that breaks the proof.
func (r *Report) Proven() bool { return len(r.Findings) == 0 }

// maxFindings keeps a hostile bucket from filling the memory.
const maxFindings = 1000

func (r *Report) find(f Finding) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.keep(&r.Findings, f)
}

func (r *Report) note(f Finding) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.keep(&r.Notes, f)
}

func (r *Report) keep(list *[]Finding, f Finding) {
	if len(*list) >= maxFindings {
		r.Omitted++
		return
	}
	*list = append(*list, f)
}

func (r *Report) notChecked(what string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.Contains(r.NotChecked, what) {
		r.NotChecked = append(r.NotChecked, what)
	}
}

func (r *Report) count(segment segmentFacts) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.Segments++
	r.Records += segment.count
	r.Bytes += segment.raw
	r.Unknown += segment.unknown
}

func (r *Report) countRecording() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.Recordings++
}

func (r *Report) countChunk(t totals) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.Chunks++
	r.Frames += t.frames
	r.StreamBytes += t.sum()
}

// sort puts findings in the order of streams and numbers, so that the first is
// the first bad record; those of no stream may follow from it and come last.
func (r *Report) sort() {
	for _, list := range [][]Finding{r.Findings, r.Notes} {
		slices.SortStableFunc(list, func(a, b Finding) int {
			if (a.Stream == "") != (b.Stream == "") {
				return cmp.Compare(b.Stream, a.Stream)
			}
			return cmp.Or(cmp.Compare(a.Cluster, b.Cluster), cmp.Compare(a.Stream, b.Stream), cmp.Compare(a.Seq, b.Seq))
		})
	}
	slices.Sort(r.NotChecked)
}
