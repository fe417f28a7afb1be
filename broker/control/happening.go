package control

import (
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/taskgate/taskgate/api/v1alpha1"
)

// Happening is something that became of a TaskGrant or an Approval, written down
// by this replica just now. Each is reported by the one replica whose write won.
type Happening struct {
	Kind      string // TaskGrant or Approval
	Name, UID string
	// Reason is one word for what happened: TaskGrantRequested, TaskGranted,
	// TaskGrantDenied, TaskGrantEnded, ApprovalRequested, ApprovalApproved,
	// ApprovalDenied, ApprovalExpired or ApprovalConsumed.
	Reason string
	Text   string // for people; holds nothing an agent wrote
	Time   time.Time

	Agent, Task, Policy string
	Grant, GrantUID     string
	Digest              string
	Gate                string   // of an Approval
	Summary             string   // what the agent wants, in words that hold its own
	By                  []string // the people who settled it
	Approvers           int32    // how many people are asked, and of which groups
	Groups              []string
	ExpiresAt           time.Time // when the request is too old; zero if never
}

// tell makes an Event of what became of an object, and reports it to whoever
// listens. It never waits for the cluster. The text holds nothing an agent wrote.
func (c *Controller) tell(object metav1.Object, reason, text string, by ...string) {
	h := Happening{Name: object.GetName(), UID: string(object.GetUID()), Reason: reason, Text: text, By: by, Time: c.config.Now()}
	switch object := object.(type) {
	case *v1alpha1.TaskGrant:
		h.Kind, h.Grant, h.GrantUID, h.Digest = v1alpha1.TargetTaskGrant, h.Name, h.UID, Digest(&object.Spec)
		h.Agent, h.Task, h.Policy, h.Summary = object.Spec.Agent, object.Spec.Task, object.Spec.Policy, object.Spec.Reason
	case *v1alpha1.Approval:
		spec := &object.Spec
		h.Kind, h.Grant, h.GrantUID, h.Digest, h.Gate = v1alpha1.TargetApproval, spec.Grant, spec.GrantUID, spec.Digest, spec.Gate
		h.Agent, h.Task, h.Policy, h.Summary = spec.Agent, spec.Task, spec.Policy, spec.Summary
		h.Approvers, h.Groups, h.ExpiresAt = spec.Approvers, spec.Groups, spec.ExpiresAt.Time
	}
	c.event(&h)
	if c.config.Tell != nil {
		c.config.Tell(h)
	}
}
