package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/taskgate/taskgate/api/v1alpha1"
	"github.com/taskgate/taskgate/internal/inert"
)

// The resources of taskgate.dev.
const (
	policies  = "agentpolicies"
	grants    = "taskgrants"
	approvals = "approvals"
	decisions = "decisions"
)

// The roles in manifests/ that give a person what a command needs.
const (
	roleOperator = "taskgate-operator"
	roleApprover = "taskgate-approver"
)

// cluster is the control cluster, reached with the person's own credential.
type cluster struct{ kubeconfig, context string }

func (c *cluster) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&c.kubeconfig, "kubeconfig", "", "`path` of a kubeconfig (default $KUBECONFIG or ~/.kube/config)")
	cmd.Flags().StringVar(&c.context, "context", "", "`name` of a context in it")
}

// objects reads and writes the objects of taskgate.dev.
type objects struct {
	rest      rest.Interface
	parameter runtime.ParameterCodec
	config    *rest.Config // for other API groups
}

func (c *cluster) client() (*objects, error) {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = c.kubeconfig
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: c.context}).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("reading the kubeconfig: %w; give --kubeconfig", err)
	}
	scheme := runtime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		return nil, err
	}
	own := rest.CopyConfig(config)
	own.APIPath = "/apis"
	own.GroupVersion = &v1alpha1.GroupVersion
	own.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	client, err := rest.RESTClientFor(own)
	return &objects{client, runtime.NewParameterCodec(scheme), config}, err
}

// pointer is the pointer to an API type.
type pointer[T any] interface {
	*T
	runtime.Object
}

func get[T any, P pointer[T]](ctx context.Context, c *objects, resource, name string) (P, error) {
	object := P(new(T))
	return object, c.rest.Get().Resource(resource).Name(name).Do(ctx).Into(object)
}

// list lists what a field selector leaves, which may be empty.
func list[T any, P pointer[T]](ctx context.Context, c *objects, resource, selector string) (P, error) {
	object := P(new(T))
	options := &metav1.ListOptions{FieldSelector: selector}
	return object, c.rest.Get().Resource(resource).VersionedParams(options, c.parameter).Do(ctx).Into(object)
}

// plainWatch lists first and then watches, as kubectl does: what answers may be a
// sidecar, which need not know the newer way of listing by watching.
type plainWatch struct{ *cache.ListWatch }

// IsWatchListSemanticsUnSupported is how client-go asks.
func (plainWatch) IsWatchListSemanticsUnSupported() bool { return true }

// listWatch is what an informer needs.
func listWatch[T any, P pointer[T]](c *objects, resource, selector string) cache.ListerWatcher {
	return plainWatch{&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			object := P(new(T))
			options.FieldSelector = selector
			return object, c.rest.Get().Resource(resource).VersionedParams(&options, c.parameter).Do(ctx).Into(object)
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			options.Watch, options.FieldSelector = true, selector
			return c.rest.Get().Resource(resource).VersionedParams(&options, c.parameter).Watch(ctx)
		},
	}}
}

// merge changes an object by a merge patch; a dry run changes nothing and is
// judged by the API server all the same.
func (c *objects) merge(ctx context.Context, resource, name string, change any, dryRun bool) error {
	patch, err := json.Marshal(change)
	if err != nil {
		return err
	}
	options := &metav1.PatchOptions{DryRun: dryRunOption(dryRun)}
	return c.rest.Patch(types.MergePatchType).Resource(resource).Name(name).VersionedParams(options, c.parameter).Body(patch).Do(ctx).Error()
}

func dryRunOption(dryRun bool) []string {
	if dryRun {
		return []string{metav1.DryRunAll}
	}
	return nil
}

// explain says what a person can do about an error of the API server.
func explain(err error, doing, role string) error {
	var exit *exitError
	switch {
	case err == nil, errors.As(err, &exit):
		return err
	case apierrors.IsUnauthorized(err):
		return couldNot("%s: the cluster does not accept your credential: %w", doing, err)
	case apierrors.IsForbidden(err):
		return no("%s: you may not do that; the ClusterRole %s allows it: %w", doing, role, err)
	}
	return couldNot("%s: %w", doing, err)
}

// printJSON prints an object for programs, and so that a terminal shows it as it
// is.
func printJSON(out io.Writer, object any) error {
	document, err := json.MarshalIndent(object, "", "  ")
	if err != nil {
		return err
	}
	_, err = out.Write(append(inert.JSON(document), '\n'))
	return err
}

// printLine prints an object as one line.
func printLine(out io.Writer, object any) error {
	document, err := json.Marshal(object)
	if err != nil {
		return err
	}
	_, err = out.Write(append(inert.JSON(document), '\n'))
	return err
}
