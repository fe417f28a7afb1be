package recorder

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"time"
)

// Stage says when in the life of a call a record was made (audit.k8s.io/v1).
type Stage string

// A record with StageRequestReceived is an intent: it stays open until a record
// with StageResponseComplete and the same AuditID. A denial, an approval or a
// decision is one record with StageResponseComplete and opens nothing.
const (
	StageRequestReceived  Stage = "RequestReceived"
	StageResponseStarted  Stage = "ResponseStarted" // stream or watch opened
	StageResponseComplete Stage = "ResponseComplete"
)

// Keys of [Event.Annotations]. AnnotationSeq is set by Append, whatever the
// caller put there.
const (
	AnnotationSeq            = "taskgate.dev/seq"
	AnnotationSession        = "taskgate.dev/session" // UID of the grant
	AnnotationTask           = "taskgate.dev/task"
	AnnotationGrant          = "taskgate.dev/grant"
	AnnotationPolicy         = "taskgate.dev/policy"
	AnnotationDecision       = "taskgate.dev/decision"
	AnnotationReason         = "taskgate.dev/reason"
	AnnotationApproval       = "taskgate.dev/approval"
	AnnotationDigest         = "taskgate.dev/digest"
	AnnotationSVID           = "taskgate.dev/svid" // SHA-256 of the leaf
	AnnotationRequestBytes   = "taskgate.dev/request-bytes"
	AnnotationRequestSHA256  = "taskgate.dev/request-sha256"
	AnnotationResponseBytes  = "taskgate.dev/response-bytes"
	AnnotationResponseSHA256 = "taskgate.dev/response-sha256"
	AnnotationStream         = "taskgate.dev/stream" // key of the chunk a record names
	AnnotationOutcome        = "taskgate.dev/outcome"
	AnnotationPurpose        = "taskgate.dev/purpose"
	AnnotationParent         = "taskgate.dev/parent" // AuditID of the call this one was made for
	AnnotationCandidates     = "taskgate.dev/candidates"
	AnnotationWaived         = "taskgate.dev/waived"
	AnnotationCause          = "taskgate.dev/cause"

	// In a record that names a chunk of a recorded stream, and that the recorder
	// makes itself. AnnotationStream is in it, too.
	AnnotationChunk        = "taskgate.dev/chunk" // number of the chunk, from 1
	AnnotationChunkVersion = "taskgate.dev/chunk-version"
	AnnotationChunkSHA256  = "taskgate.dev/chunk-sha256"
	// Of one chunk in a record that names it, of all in a closing record, which
	// also has the bytes of each channel, as in "taskgate.dev/stream-bytes-stdout".
	AnnotationStreamFrames = "taskgate.dev/stream-frames"
	AnnotationStreamBytes  = "taskgate.dev/stream-bytes"
	AnnotationExitCode     = "taskgate.dev/exit-code" // of the command of an exec
)

// OutcomeUnknown is the value of AnnotationOutcome in the record that recovery
// writes for an intent whose outcome was lost.
const OutcomeUnknown = "unknown"

// Event is one record: a subset of Event of audit.k8s.io/v1, with the same JSON
// names in the same order, so that tools for Kubernetes audit logs read it.
// What is added here must be added to encode, too.
type Event struct {
	Kind                     string            `json:"kind,omitempty"`
	APIVersion               string            `json:"apiVersion,omitempty"`
	Level                    string            `json:"level"`
	AuditID                  string            `json:"auditID"`
	Stage                    Stage             `json:"stage"`
	RequestURI               string            `json:"requestURI"`
	Verb                     string            `json:"verb"`
	User                     UserInfo          `json:"user"`
	ImpersonatedUser         *UserInfo         `json:"impersonatedUser,omitempty"`
	SourceIPs                []string          `json:"sourceIPs,omitempty"`
	UserAgent                string            `json:"userAgent,omitempty"`
	ObjectRef                *ObjectReference  `json:"objectRef,omitempty"`
	ResponseStatus           *ResponseStatus   `json:"responseStatus,omitempty"`
	RequestObject            json.RawMessage   `json:"requestObject,omitempty"`
	RequestReceivedTimestamp MicroTime         `json:"requestReceivedTimestamp"`
	StageTimestamp           MicroTime         `json:"stageTimestamp"`
	Annotations              map[string]string `json:"annotations,omitempty"`
}

// UserInfo is UserInfo of authentication.k8s.io/v1.
type UserInfo struct {
	Username string              `json:"username,omitempty"`
	UID      string              `json:"uid,omitempty"`
	Groups   []string            `json:"groups,omitempty"`
	Extra    map[string][]string `json:"extra,omitempty"`
}

// ObjectReference is ObjectReference of audit.k8s.io/v1.
type ObjectReference struct {
	Resource        string `json:"resource,omitempty"`
	Namespace       string `json:"namespace,omitempty"`
	Name            string `json:"name,omitempty"`
	UID             string `json:"uid,omitempty"`
	APIGroup        string `json:"apiGroup,omitempty"`
	APIVersion      string `json:"apiVersion,omitempty"`
	ResourceVersion string `json:"resourceVersion,omitempty"`
	Subresource     string `json:"subresource,omitempty"`
}

// ResponseStatus is the part of metav1.Status that a record keeps.
type ResponseStatus struct {
	Status  string `json:"status,omitempty"`
	Message string `json:"message,omitempty"`
	Reason  string `json:"reason,omitempty"`
	Code    int32  `json:"code,omitempty"`
}

// MicroTime is written in UTC with exactly six decimals, as in metav1.MicroTime;
// the zero time is null.
type MicroTime struct{ time.Time }

const microTimeLayout = `"2006-01-02T15:04:05.000000Z07:00"`

// MarshalJSON implements json.Marshaler.
func (t MicroTime) MarshalJSON() ([]byte, error) {
	return t.append(nil), nil
}

func (t MicroTime) append(to []byte) []byte {
	if t.IsZero() {
		return append(to, "null"...)
	}
	t.Time = t.UTC()
	year, month, day := t.Date()
	if year < 0 || year > 9999 { // more digits than the fast way writes
		return t.AppendFormat(to, microTimeLayout)
	}
	hour, minute, second := t.Clock()
	to = appendDigits(append(to, '"'), year, 4)
	to = appendDigits(append(to, '-'), int(month), 2)
	to = appendDigits(append(to, '-'), day, 2)
	to = appendDigits(append(to, 'T'), hour, 2)
	to = appendDigits(append(to, ':'), minute, 2)
	to = appendDigits(append(to, ':'), second, 2)
	to = appendDigits(append(to, '.'), t.Nanosecond()/1000, 6)
	return append(to, 'Z', '"')
}

// appendDigits appends a number with leading zeros.
func appendDigits(to []byte, number, digits int) []byte {
	to = append(to, zeroSeq[:digits]...)
	for at := len(to) - 1; number > 0; at-- {
		to[at] += byte(number % 10)
		number /= 10
	}
	return to
}

// UnmarshalJSON implements json.Unmarshaler.
func (t *MicroTime) UnmarshalJSON(data []byte) error {
	if string(data) == "null" {
		t.Time = time.Time{}
		return nil
	}
	parsed, err := time.Parse(microTimeLayout, string(data))
	t.Time = parsed
	return err
}

// Seq is the number of the record in its stream, 0 if it has none.
func (e *Event) Seq() uint64 {
	seq, err := strconv.ParseUint(e.Annotations[AnnotationSeq], 10, 64)
	if err != nil {
		return 0
	}
	return seq
}

// ErrNotCanonical says that a line is not what this package's encoder would
// write: an unknown, repeated or reordered field, other spacing or escapes.
var ErrNotCanonical = errors.New("not in canonical form")

// decodeEvent is the inverse of encode for one line without its newline. It
// accepts exactly the canonical form: what it returns encodes to the same bytes.
func decodeEvent(line []byte) (*Event, error) {
	event := new(Event)
	if err := decodeCanonical(line, event); err != nil {
		return nil, err
	}
	if len(event.Annotations[AnnotationSeq]) != seqDigits || event.Seq() == 0 {
		return nil, fmt.Errorf("%w: no sequence number of %d digits", ErrNotCanonical, seqDigits)
	}
	return event, nil
}

// decodeCanonical decodes strictly and refuses data that into does not encode to.
func decodeCanonical(data []byte, into any) error {
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		return fmt.Errorf("%w: %w", ErrNotCanonical, err)
	}
	again, err := json.Marshal(into)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNotCanonical, err)
	}
	if !bytes.Equal(again, data) {
		return fmt.Errorf("%w: it reads differently from how it is written", ErrNotCanonical)
	}
	return nil
}

// unknownOutcome is the outcome of an intent whose real one was lost in a crash
// or never came.
func unknownOutcome(intent *Event, now time.Time) *Event {
	outcome := *intent
	outcome.Stage = StageResponseComplete
	outcome.RequestObject = nil
	outcome.Level = "Metadata"
	outcome.StageTimestamp.Time = now
	outcome.Annotations = maps.Clone(intent.Annotations)
	outcome.Annotations[AnnotationOutcome] = OutcomeUnknown
	return &outcome
}
