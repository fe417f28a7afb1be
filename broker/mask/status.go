package mask

import (
	"encoding/json"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// words are the parts of a Status that people read. They are written at the end
// of the object, when its reason is known.
type words struct {
	reason  string
	message *string
	details *metav1.StatusDetails
}

// harmlessReason are those whose words name objects and fields, and never quote
// what is in them. A patch that does not fit (Invalid, BadRequest) is answered
// with the whole object it would have made, values and all.
func harmlessReason(reason string) bool {
	return slices.Contains([]metav1.StatusReason{
		metav1.StatusReasonNotFound, metav1.StatusReasonAlreadyExists, metav1.StatusReasonConflict, metav1.StatusReasonForbidden,
		metav1.StatusReasonUnauthorized, metav1.StatusReasonTimeout, metav1.StatusReasonServerTimeout, metav1.StatusReasonTooManyRequests,
		metav1.StatusReasonExpired, metav1.StatusReasonGone, metav1.StatusReasonNotAcceptable, metav1.StatusReasonUnsupportedMediaType,
		metav1.StatusReasonMethodNotAllowed, metav1.StatusReasonServiceUnavailable, metav1.StatusReasonRequestEntityTooLarge,
	}, metav1.StatusReason(reason))
}

// unquoted is what stands for words that could quote values.
const unquoted = "the cluster refused this; its words could quote values of the Secret and are masked"

// take keeps a part of a Status for later; false for every other field.
func (w *words) take(m *masker, name string) (bool, error) {
	switch name {
	case "message":
		return true, m.decoder.Decode(&w.message)
	case "details":
		return true, m.decoder.Decode(&w.details)
	}
	return false, nil
}

// write writes the parts there were. Of an error that could quote values the
// places stay, and the words go.
func (w *words) write(m *masker, separator string) error {
	if !harmlessReason(w.reason) {
		if w.message != nil {
			*w.message = unquoted
		}
		if w.details != nil {
			for i := range w.details.Causes {
				w.details.Causes[i].Message = Text
			}
		}
	}
	for _, part := range []struct {
		name  string
		there bool
		value any
	}{{"message", w.message != nil, w.message}, {"details", w.details != nil, w.details}} {
		if !part.there {
			continue
		}
		encoded, err := json.Marshal(part.value)
		if err != nil {
			return err
		}
		m.out.WriteString(separator + `"` + part.name + `":`)
		m.out.Write(encoded)
		separator = ","
	}
	return nil
}
