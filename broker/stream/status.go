package stream

import (
	"encoding/json"
	"strconv"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/remotecommand"
)

// maxStatus bounds what is kept of the error channel to be understood; all of it
// is passed on.
const maxStatus = 64 << 10

// status is what the pod's side said on the error channel of an exec or attach.
// The zero value is nothing.
type status struct{ said []byte }

func (s *status) observe(e *event) {
	if e.Connection == 0 && e.Channel == Error && len(s.said)+len(e.Data) <= maxStatus {
		s.said = append(s.said, e.Data...)
	}
}

// heard reports whether the pod's side said anything about the end.
func (s *status) heard() bool { return len(s.said) > 0 }

// exitCode is that of the command; false if none is known.
func (s *status) exitCode() (int, bool) {
	var said metav1.Status
	if err := json.Unmarshal(s.said, &said); err != nil {
		return 0, false
	}
	if said.Status == metav1.StatusSuccess {
		return 0, true
	}
	if said.Reason != remotecommand.NonZeroExitCodeReason || said.Details == nil {
		return 0, false
	}
	for _, cause := range said.Details.Causes {
		if cause.Type == remotecommand.ExitCodeCauseType {
			code, err := strconv.ParseUint(cause.Message, 10, 8)
			return int(code), err == nil
		}
	}
	return 0, false
}
