package broker

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/rs/zerolog"

	"github.com/taskgate/taskgate/broker/control"
	"github.com/taskgate/taskgate/broker/notify"
	"github.com/taskgate/taskgate/recorder"
)

// happened puts what became of a grant or an approval on record, and tells others.
//
// The record follows the write, because only the replica whose write won knows of
// it; it does not prove that the grant was right, each call under it does. If it
// cannot be kept, that is logged: what was decided is in the control cluster and in
// the records of the calls it let through.
func (b *boundary) happened(h control.Happening) {
	at := recorder.MicroTime{Time: h.Time}
	e := &recorder.Event{
		AuditID: uuid.NewString(), Stage: recorder.StageResponseComplete, Verb: verbOf(h.Reason),
		User:                     recorder.UserInfo{Username: h.Agent},
		ObjectRef:                &recorder.ObjectReference{APIGroup: "taskgate.dev", APIVersion: "v1alpha1", Resource: resourceOf(h.Kind), Name: h.Name, UID: h.UID},
		RequestReceivedTimestamp: at, StageTimestamp: at,
		Annotations: map[string]string{
			recorder.AnnotationPurpose: "lifecycle", recorder.AnnotationReason: h.Reason,
			recorder.AnnotationSession: h.GrantUID, recorder.AnnotationGrant: h.Grant, recorder.AnnotationTask: h.Task,
			recorder.AnnotationPolicy: h.Policy, recorder.AnnotationDigest: h.Digest,
		},
	}
	if h.Kind == "Approval" {
		e.Annotations[recorder.AnnotationApproval] = h.Name
		e.Annotations[annotationGate] = h.Gate
	}
	if len(h.By) > 0 {
		e.Annotations[annotationDeciders] = joinNames(h.By)
	}
	if h.Reason == "ApprovalRequested" {
		// The call that asked has made a record of it, with what people see.
	} else if _, err := b.recorder.Append(e); err != nil {
		b.log.Warn().Err(err).Str("name", h.Name).Str("reason", h.Reason).Msg("cannot record what became of a grant or an approval")
	}
	b.notify.Send(notificationOf(&h))
}

// verbOf is the word under which records of lifecycles are found.
func verbOf(reason string) string {
	switch reason {
	case "TaskGrantRequested", "ApprovalRequested":
		return "ask"
	case "TaskGranted", "ApprovalApproved":
		return "approve"
	case "TaskGrantDenied", "ApprovalDenied":
		return "deny"
	case "ApprovalConsumed":
		return "consume"
	}
	return "end"
}

func resourceOf(kind string) string {
	if kind == "Approval" {
		return "approvals"
	}
	return "taskgrants"
}

// notificationOf is what others are told. The zero Event is told to nobody.
func notificationOf(h *control.Happening) notify.Event {
	event := notify.Event{
		ID: h.UID + "." + h.Reason, Subject: resourceOf(h.Kind) + "/" + h.Name, Time: h.Time,
		Data: notify.Data{
			Name: h.Name, Agent: h.Agent, Task: h.Task, Summary: strconv.QuoteToASCII(h.Summary), Gate: h.Gate,
			Approvers: h.Approvers, Groups: h.Groups, By: h.By, ExpiresAt: timeOrNil(h.ExpiresAt),
		},
	}
	switch h.Reason {
	case "TaskGrantRequested":
		event.Type = notify.GrantRequested
	case "ApprovalRequested":
		event.Type = notify.ApprovalRequested
	case "TaskGranted", "TaskGrantDenied":
		event.Type, event.Data.Verdict = notify.GrantDecided, verbOf(h.Reason)
	case "ApprovalApproved", "ApprovalDenied", "ApprovalExpired":
		event.Type, event.Data.Verdict = notify.ApprovalDecided, verbOf(h.Reason)
	default:
		return notify.Event{}
	}
	return event
}

func timeOrNil(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

// openNotifier reads the signing secrets. Without receivers it returns nil.
func openNotifier(config *Configuration, log zerolog.Logger) (*notify.Notifier, error) {
	if len(config.Notify) == 0 {
		return nil, nil
	}
	settings := notify.Config{Cluster: config.Cluster, Log: log}
	for _, r := range config.Notify {
		secret, err := os.ReadFile(r.SecretFile)
		if err != nil {
			return nil, fmt.Errorf("reading the signing secret of a receiver (notify): %w", err)
		}
		settings.Receivers = append(settings.Receivers, notify.Receiver{URL: r.URL, Secret: strings.TrimSpace(string(secret))})
	}
	return notify.New(settings)
}
