package sidecar

import (
	"encoding/json"
	"net/http"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilnet "k8s.io/apimachinery/pkg/util/net"
)

// Reasons the sidecar itself refuses a call with. They belong to the one closed
// vocabulary agents branch on (design.md, section 6); NoIdentity and
// BrokerUnavailable are said by nobody else.
const (
	reasonNoIdentity        = "NoIdentity"
	reasonBrokerUnavailable = "BrokerUnavailable"
	reasonNotReady          = "NotReady"
	reasonIdentityUnknown   = "IdentityUnknown"
	reasonBadHeader         = "BadHeader"
	reasonBadPath           = "BadPath"
	reasonBadBody           = "BadBody"
	reasonBadUpgrade        = "BadUpgrade"

	// causeOutcomeUnknown stands beside BrokerUnavailable or NotReady when the call
	// may have been made.
	causeOutcomeUnknown = "OutcomeUnknown"
)

// refusal is an answer the sidecar gives itself.
type refusal struct {
	code   int
	reason string // of the vocabulary above
	what   string // what is wrong, and why
	next   string // what the caller can do; kubectl prints nothing but the message
	cause  string // a finer cause, or empty
}

// write never sends Retry-After: client-go would repeat any call up to ten times
// without a word, writes included.
func (r refusal) write(w http.ResponseWriter, target string) {
	message := "[taskgate:" + r.reason + "] " + r.what + ". Next: " + r.next
	causes := []metav1.StatusCause{{Type: metav1.CauseType(r.reason), Message: r.what}}
	if r.cause != "" {
		causes = append(causes, metav1.StatusCause{Type: metav1.CauseType(r.cause)})
	}
	body, err := json.Marshal(metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"},
		Status:   metav1.StatusFailure,
		Code:     int32(r.code),
		Reason:   kubernetesReason(r.code),
		Message:  message,
		Details:  &metav1.StatusDetails{Causes: causes},
	})
	if err != nil { // plain strings always encode
		panic(err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.Header().Set("Cache-Control", "no-store")
	// client-go reads no Status from these and prints a text of its own, but it
	// always prints warnings. kubectl asks for them before anything else.
	if target == "/api" || target == "/apis" || target == "/version" || strings.HasPrefix(target, "/openapi/") {
		if warning, err := utilnet.NewWarningHeader(299, "taskgate", message); err == nil {
			w.Header().Set("Warning", warning)
		}
	}
	w.WriteHeader(r.code)
	w.Write(body) // whoever is gone needs no answer
}

// brief shortens the text of an error for people: the beginning says what was
// tried, the end why it failed, and much of the wrapping between them is noise.
// Only printable ASCII gets to a terminal.
func brief(err error) string {
	const head, tail = 70, 85
	text := strings.Map(func(c rune) rune {
		if c < ' ' || c > '~' {
			return ' '
		}
		return c
	}, err.Error())
	if len(text) <= head+tail {
		return text
	}
	return text[:head] + " ... " + text[len(text)-tail:]
}

// kubernetesReason is what clients such as client-go branch on.
func kubernetesReason(code int) metav1.StatusReason {
	switch code {
	case http.StatusBadRequest:
		return metav1.StatusReasonBadRequest
	case http.StatusUnauthorized:
		return metav1.StatusReasonUnauthorized
	case http.StatusForbidden:
		return metav1.StatusReasonForbidden
	case http.StatusMethodNotAllowed:
		return metav1.StatusReasonMethodNotAllowed
	case http.StatusServiceUnavailable:
		return metav1.StatusReasonServiceUnavailable
	default:
		return metav1.StatusReasonUnknown
	}
}
