package control

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/flowcontrol"

	"github.com/taskgate/taskgate/api/v1alpha1"
)

// events tells people, with Kubernetes Events, what became of grants and
// approvals. They are a convenience: what has to be provable is on record, so one
// that cannot be written, or comes too fast, is dropped.
type events struct {
	waiting chan *corev1.Event
	pace    flowcontrol.RateLimiter
}

// eventNamespace is where Kubernetes keeps Events about objects without one.
const eventNamespace = metav1.NamespaceDefault

func newEvents() events {
	return events{waiting: make(chan *corev1.Event, 256), pace: flowcontrol.NewTokenBucketRateLimiter(10, 100)}
}

// event makes an Event. It never waits.
func (c *Controller) event(h *Happening) {
	now := metav1.NewTime(h.Time)
	event := &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "taskgate-", Namespace: eventNamespace},
		InvolvedObject: corev1.ObjectReference{
			APIVersion: v1alpha1.GroupVersion.String(), Kind: h.Kind, Name: h.Name, UID: types.UID(h.UID),
		},
		Type: corev1.EventTypeNormal, Reason: h.Reason, Message: h.Text, Count: 1, FirstTimestamp: now, LastTimestamp: now,
		Source: corev1.EventSource{Component: "taskgate-broker", Host: c.config.Broker}, ReportingController: "taskgate.dev/broker", ReportingInstance: c.config.Broker,
	}
	select {
	case c.events.waiting <- event:
	default: // too many at once
	}
}

// writeEvents writes them until ctx ends.
func (c *Controller) writeEvents(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case event := <-c.events.waiting:
			if !c.events.pace.TryAccept() {
				continue
			}
			c.writeEvent(ctx, event)
		}
	}
}

func (c *Controller) writeEvent(ctx context.Context, event *corev1.Event) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if _, err := c.deciding.client.CoreV1().Events(event.Namespace).Create(ctx, event, metav1.CreateOptions{}); err != nil {
		c.config.Log.Debug().Err(err).Str("reason", event.Reason).Str("name", event.InvolvedObject.Name).Msg("cannot write an Event")
	}
}
