package control

import (
	"context"
	"encoding/json"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/taskgate/taskgate/api/v1alpha1"
)

// Resources of the group taskgate.dev.
const (
	policies  = "agentpolicies"
	grants    = "taskgrants"
	approvals = "approvals"
	decisions = "decisions"
)

// client reads and writes the objects of taskgate.dev.
type client struct {
	rest      rest.Interface
	parameter runtime.ParameterCodec
}

func newClient(config *rest.Config) (*client, error) {
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		return nil, err
	}
	own := rest.CopyConfig(config)
	own.APIPath = "/apis"
	own.GroupVersion = &v1alpha1.GroupVersion
	own.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	own.DisableCompression = true // to compress all grants costs the API server more time than to send them
	own.QPS, own.Burst = 200, 400 // the brokers' own writes are few; a queue would only make them late
	restClient, err := rest.RESTClientFor(own)
	if err != nil {
		return nil, fmt.Errorf("making a client for the control cluster: %w", err)
	}
	return &client{rest: restClient, parameter: runtime.NewParameterCodec(scheme)}, nil
}

func (c *client) getPolicy(ctx context.Context, name string) (*v1alpha1.AgentPolicy, error) {
	policy := new(v1alpha1.AgentPolicy)
	return policy, c.rest.Get().Resource(policies).Name(name).Do(ctx).Into(policy)
}

func (c *client) getGrant(ctx context.Context, name string) (*v1alpha1.TaskGrant, error) {
	grant := new(v1alpha1.TaskGrant)
	return grant, c.rest.Get().Resource(grants).Name(name).Do(ctx).Into(grant)
}

func (c *client) get(ctx context.Context, resource, name string, into runtime.Object) error {
	return c.rest.Get().Resource(resource).Name(name).Do(ctx).Into(into)
}

// list lists what has a value in a field, as of now.
func (c *client) list(ctx context.Context, resource, field, value string, into runtime.Object) error {
	options := metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector(field, value).String()}
	return c.rest.Get().Resource(resource).VersionedParams(&options, c.parameter).Do(ctx).Into(into)
}

func (c *client) create(ctx context.Context, resource string, object, into runtime.Object) error {
	return c.rest.Post().Resource(resource).Body(object).Do(ctx).Into(into)
}

// remove deletes an object if it is still the one with that UID.
func (c *client) remove(ctx context.Context, resource, name string, uid types.UID) error {
	return c.rest.Delete().Resource(resource).Name(name).Body(metav1.NewPreconditionDeleteOptions(string(uid))).Do(ctx).Error()
}

// updateStatus replaces the status if the object is still at the resource
// version it was read at; otherwise the error is a conflict.
func (c *client) updateStatus(ctx context.Context, resource, name string, object runtime.Object) error {
	return c.rest.Put().Resource(resource).Name(name).SubResource("status").Body(object).Do(ctx).Error()
}

// beat writes this broker's heartbeat into an inert object. A merge patch of one
// key does not conflict with the other replicas' keys.
func (c *client) beat(ctx context.Context, resource, broker, value string) error {
	patch, err := json.Marshal(map[string]any{"status": map[string]any{"heartbeats": map[string]string{broker: value}}})
	if err != nil {
		return err
	}
	return c.rest.Patch(types.MergePatchType).Resource(resource).Name(HeartbeatObject).SubResource("status").Body(patch).Do(ctx).Error()
}

// listWatch is what an informer of one resource needs.
func listWatch[L any, P interface {
	*L
	runtime.Object
}](c *client, resource string) *cache.ListWatch {
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			list := P(new(L))
			return list, c.rest.Get().Resource(resource).VersionedParams(&options, c.parameter).Do(ctx).Into(list)
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			options.Watch = true
			return c.rest.Get().Resource(resource).VersionedParams(&options, c.parameter).Watch(ctx)
		},
	}
}
