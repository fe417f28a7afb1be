package recorder

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// The canonical form of a record is what encoding/json makes of an Event. This
// file writes the same bytes four times as fast, and knows where the number is;
// decodeEvent, and with it every Verify, holds it to that.

// ErrInvalid says that an event cannot be recorded as it is; nothing was.
var ErrInvalid = errors.New("not a valid record")

// The number has a fixed width so that it can be stamped into an encoded record
// without moving a byte.
const (
	seqDigits = 20
	zeroSeq   = "00000000000000000000"
)

// encode appends the canonical form of the record, with the number zero and a
// newline, and returns where in the result the digits of the number are. The
// event is not changed. recorded says that its strings come from a record, where
// they were made lossless already.
func (e *Event) encode(to []byte, now time.Time, recorded bool) (encoded []byte, digits int, err error) {
	if err := e.validate(); err != nil {
		return to, 0, err
	}
	o := object{data: to, recorded: recorded}
	o.open("")
	o.text("kind", "Event")
	o.text("apiVersion", "audit.k8s.io/v1")
	o.always("level", e.level())
	o.always("auditID", e.AuditID)
	o.always("stage", string(e.Stage))
	o.always("requestURI", e.RequestURI)
	o.always("verb", e.Verb)
	o.user("user", &e.User)
	if e.ImpersonatedUser != nil {
		o.user("impersonatedUser", e.ImpersonatedUser)
	}
	o.list("sourceIPs", e.SourceIPs)
	o.text("userAgent", e.UserAgent)
	o.reference(e.ObjectRef)
	o.status(e.ResponseStatus)
	if err := o.raw("requestObject", e.RequestObject); err != nil {
		return to, 0, err
	}
	o.time("requestReceivedTimestamp", e.RequestReceivedTimestamp)
	stage := e.StageTimestamp
	if stage.IsZero() {
		stage.Time = now
	}
	o.time("stageTimestamp", stage)
	digits = o.annotations(e.Annotations)
	o.close()
	return append(o.data, '\n'), digits, nil
}

// stampSeq overwrites the 20 digits at the beginning of digits.
func stampSeq(digits []byte, seq uint64) {
	for i := seqDigits - 1; i >= 0; i-- {
		digits[i] = byte('0' + seq%10)
		seq /= 10
	}
}

func (e *Event) validate() error {
	switch {
	case e.AuditID == "" || len(e.AuditID) > maxAuditID || lossless(e.AuditID) != e.AuditID:
		return fmt.Errorf("%w: auditID must be 1 to %d bytes of plain text", ErrInvalid, maxAuditID)
	case e.Stage != StageRequestReceived && e.Stage != StageResponseStarted && e.Stage != StageResponseComplete:
		return fmt.Errorf("%w: unknown stage %q", ErrInvalid, e.Stage)
	case !utf8.Valid(e.RequestObject):
		return fmt.Errorf("%w: requestObject is not UTF-8", ErrInvalid)
	}
	return nil
}

func (e *Event) level() string {
	switch {
	case e.Level != "":
		return e.Level
	case len(e.RequestObject) > 0:
		return "Request"
	default:
		return "Metadata"
	}
}

const base64Prefix = "base64:"

// lossless returns text that JSON can carry without loss: what is not UTF-8 (an
// agent may send any byte in a header) becomes "base64:" and its standard
// base64, and so does what begins with "base64:" itself, so that a reader can
// always tell.
func lossless(text string) string {
	if utf8.ValidString(text) && !strings.HasPrefix(text, base64Prefix) {
		return text
	}
	return base64Prefix + base64.StdEncoding.EncodeToString([]byte(text))
}

// object writes JSON objects. Names are constants that need no escaping.
type object struct {
	data     []byte
	begun    bool // the innermost object has a member already
	recorded bool // strings are lossless already
}

func (o *object) name(name string) {
	if o.begun {
		o.data = append(o.data, ',')
	}
	o.begun = true
	o.data = append(o.data, '"')
	o.data = append(o.data, name...)
	o.data = append(o.data, '"', ':')
}

// open begins an object, as the member with this name unless it is the outermost.
func (o *object) open(name string) {
	if name != "" {
		o.name(name)
	}
	o.data = append(o.data, '{')
	o.begun = false
}

func (o *object) close() {
	o.data = append(o.data, '}')
	o.begun = true
}

func (o *object) always(name, value string) {
	o.name(name)
	o.string(value)
}

func (o *object) string(value string) {
	if !o.recorded {
		value = lossless(value)
	}
	o.data = appendString(o.data, value)
}

// key is string for the name of a member.
func (o *object) key(key string) string {
	if o.recorded {
		return key
	}
	return lossless(key)
}

// text is always for a member that is left out if it is empty.
func (o *object) text(name, value string) {
	if value != "" {
		o.always(name, value)
	}
}

func (o *object) list(name string, values []string) {
	if len(values) > 0 {
		o.name(name)
		o.array(values)
	}
}

func (o *object) array(values []string) {
	if values == nil {
		o.data = append(o.data, "null"...)
		return
	}
	separator := byte('[')
	for _, value := range values {
		o.data = append(o.data, separator)
		o.string(value)
		separator = ','
	}
	if len(values) == 0 {
		o.data = append(o.data, '[')
	}
	o.data = append(o.data, ']')
}

func (o *object) time(name string, value MicroTime) {
	o.name(name)
	o.data = value.append(o.data)
}

// raw copies a JSON value without its spaces.
func (o *object) raw(name string, value json.RawMessage) error {
	if len(value) == 0 {
		return nil
	}
	compact, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("%w: %s: %w", ErrInvalid, name, err)
	}
	o.name(name)
	o.data = append(o.data, compact...)
	return nil
}

func (o *object) user(name string, user *UserInfo) {
	o.open(name)
	o.text("username", user.Username)
	o.text("uid", user.UID)
	o.list("groups", user.Groups)
	o.extra(user.Extra)
	o.close()
}

func (o *object) extra(extra map[string][]string) {
	if len(extra) == 0 {
		return
	}
	pairs := make([]pair[[]string], 0, len(extra))
	for key, values := range extra {
		pairs = append(pairs, pair[[]string]{o.key(key), values})
	}
	sortPairs(pairs)
	o.open("extra")
	for _, pair := range pairs {
		o.escaped(pair.key)
		o.array(pair.value)
	}
	o.close()
}

// escaped is name for a name that may need escaping.
func (o *object) escaped(name string) {
	if o.begun {
		o.data = append(o.data, ',')
	}
	o.begun = true
	o.data = append(appendString(o.data, name), ':')
}

// pair is one member of a map.
type pair[V any] struct {
	key   string
	value V
}

func sortPairs[V any](pairs []pair[V]) {
	slices.SortFunc(pairs, func(a, b pair[V]) int { return strings.Compare(a.key, b.key) })
}

func (o *object) reference(ref *ObjectReference) {
	if ref == nil {
		return
	}
	o.open("objectRef")
	o.text("resource", ref.Resource)
	o.text("namespace", ref.Namespace)
	o.text("name", ref.Name)
	o.text("uid", ref.UID)
	o.text("apiGroup", ref.APIGroup)
	o.text("apiVersion", ref.APIVersion)
	o.text("resourceVersion", ref.ResourceVersion)
	o.text("subresource", ref.Subresource)
	o.close()
}

func (o *object) status(status *ResponseStatus) {
	if status == nil {
		return
	}
	o.open("responseStatus")
	o.text("status", status.Status)
	o.text("message", status.Message)
	o.text("reason", status.Reason)
	if status.Code != 0 {
		o.name("code")
		o.data = strconv.AppendInt(o.data, int64(status.Code), 10)
	}
	o.close()
}

// annotations writes the annotations in the order of their keys, the number
// among them, and returns where its digits are.
func (o *object) annotations(annotations map[string]string) (digits int) {
	var few [32]pair[string]
	pairs := append(few[:0], pair[string]{AnnotationSeq, zeroSeq})
	for key, value := range annotations {
		if key != AnnotationSeq {
			pairs = append(pairs, pair[string]{o.key(key), value})
		}
	}
	sortPairs(pairs)
	o.open("annotations")
	for _, pair := range pairs {
		o.escaped(pair.key)
		if pair.key == AnnotationSeq {
			digits = len(o.data) + 1
		}
		o.string(pair.value)
	}
	o.close()
	return digits
}

// appendString writes a JSON string as encoding/json does, and leaves everything
// that needs an escape to it. The value must be UTF-8: encoding/json writes what
// is not in a form that it would not write again.
func appendString(to []byte, value string) []byte {
	for i := range len(value) {
		if c := value[i]; c < ' ' || c > '~' || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			escaped, _ := json.Marshal(value) // a string always encodes
			return append(to, escaped...)
		}
	}
	to = append(to, '"')
	to = append(to, value...)
	return append(to, '"')
}
