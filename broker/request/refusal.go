package request

import (
	"fmt"
	"net/http"

	"github.com/taskgate/taskgate/authz"
)

// Refusal says why a request cannot be understood. It implements error.
type Refusal struct {
	Reason authz.Reason
	Cause  string // a finer word, often empty
	Status int    // HTTP status
	Text   string // what is wrong and what to do, for a person
}

// Error is the text with the reason in front.
func (r *Refusal) Error() string { return fmt.Sprintf("[taskgate:%s] %s", r.Reason, r.Text) }

func refuse(reason authz.Reason, cause, format string, args ...any) *Refusal {
	return &Refusal{Reason: reason, Cause: cause, Status: http.StatusBadRequest, Text: fmt.Sprintf(format, args...)}
}

func (r *Refusal) as(status int) *Refusal {
	r.Status = status
	return r
}
