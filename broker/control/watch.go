package control

import (
	"context"
	"fmt"
	"io"
	"net/http"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/json"

	"github.com/taskgate/taskgate/api/v1alpha1"
)

// watchGrants watches TaskGrants. What is known of the type beforehand makes this a
// quarter of the work of the client's own decoder, which reads every event three
// times to find out what it is; with many grants that is most of a broker's start.
func (c *client) watchGrants(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
	options.Watch = true
	body, err := c.rest.Get().Resource(grants).VersionedParams(&options, c.parameter).Stream(ctx)
	if err != nil {
		return nil, err
	}
	decoder := &grantDecoder{body: body, events: json.NewDecoderCaseSensitivePreserveInts(body)}
	return watch.NewStreamWatcher(decoder, apierrors.NewClientErrorReporter(http.StatusInternalServerError, http.MethodGet, "ClientWatchDecoding")), nil
}

// grantDecoder reads the events of a watch of TaskGrants (watch.Decoder). It is used
// by one goroutine, but for Close.
type grantDecoder struct {
	body   io.Closer
	events json.Decoder
}

// grantEvent is an event about a grant, or a metav1.Status where the watch failed.
type grantEvent struct {
	Type   watch.EventType `json:"type"`
	Object struct {
		v1alpha1.TaskGrant
		Message string              `json:"message"`
		Reason  metav1.StatusReason `json:"reason"`
		Code    int32               `json:"code"`
	} `json:"object"`
}

// Decode returns the next event. After an error there is none: the reflector
// begins anew, and nothing was missed.
func (d *grantDecoder) Decode() (watch.EventType, runtime.Object, error) {
	event := new(grantEvent)
	err := d.events.Decode(event)
	switch event.Type {
	case watch.Error: // a Status has a word where grants have an object, which is the error
		return watch.Error, &metav1.Status{Status: metav1.StatusFailure, Message: event.Object.Message, Reason: event.Object.Reason, Code: event.Object.Code}, nil
	case watch.Added, watch.Modified, watch.Deleted, watch.Bookmark:
		return event.Type, &event.Object.TaskGrant, err
	}
	if err == nil {
		err = fmt.Errorf("an event of the unknown type %q", event.Type)
	}
	return "", nil, err
}

// Close has Decode return.
func (d *grantDecoder) Close() { _ = d.body.Close() } // nothing was written to it
