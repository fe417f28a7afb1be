package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	watchtools "k8s.io/client-go/tools/watch"

	"github.com/taskgate/taskgate/api/v1alpha1"
	"github.com/taskgate/taskgate/internal/inert"
)

type waitOptions struct {
	cluster
	timeout time.Duration
}

func waitCommand() *cobra.Command {
	var o waitOptions
	cmd := &cobra.Command{
		Use:   "wait NAME",
		Short: "Wait until an Approval or a TaskGrant is settled",
		Long: `Wait is for agents and scripts: it waits until people have said yes or no, and says
which in one line. It works with any kubeconfig, also through an agent's sidecar.
NAME is approval/NAME, taskgrant/NAME, or the name alone.

Exit code 0: approved, or active; make the call now. 1: denied, expired, used or
ended; waiting longer changes nothing. 2: not settled in time, or it could not be
told.`,
		Example: `  taskgate wait ap-1f2e3d4c5b-0 && kubectl delete namespace shop
  taskgate wait taskgrant/inc-4711 --timeout 1h`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return o.run(cmd, args[0]) },
	}
	o.cluster.flags(cmd)
	cmd.Flags().DurationVar(&o.timeout, "timeout", 15*time.Minute, "how long to wait")
	return cmd
}

func (o *waitOptions) run(cmd *cobra.Command, name string) error {
	client, err := o.client()
	if err != nil {
		return couldNot("%w", err)
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), o.timeout)
	defer cancel()
	t, err := resolve(ctx, client, name)
	if err != nil {
		return err
	}
	s, err := t.settled(ctx, client)
	switch {
	case err != nil && cmd.Context().Err() != nil:
		return couldNot("%s is not settled: interrupted", t.path())
	case err != nil && ctx.Err() != nil:
		return couldNot("%s is not settled after %s: %s", t.path(), o.timeout, s.why)
	case err != nil:
		return couldNot("waiting for %s: %w", t.path(), err)
	}
	if _, err := fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\n", inert.Line(t.path()), inert.Line(s.why)); err != nil {
		return couldNot("%w", err)
	}
	if !s.good {
		return &exitError{code: 1}
	}
	return nil
}

// settled watches until the target is anything but waiting, and returns how it
// stood last. It ends with the context; a watch that breaks is taken up again.
func (t *target) settled(ctx context.Context, c *objects) (standing, error) {
	last := t.standing(time.Now())
	if last.word != "Waiting" {
		return last, nil
	}
	if at := t.expires(); !at.IsZero() {
		// The broker writes the end into the status; a broker that is down must not
		// make this wait for ever.
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadlineCause(ctx, at.Add(expiryPatience), errPast)
		defer cancel()
	}
	selector := "metadata.name=" + t.name
	lists, object := listWatch[v1alpha1.TaskGrantList](c, grants, selector), runtime.Object(&v1alpha1.TaskGrant{})
	if t.approval != nil {
		lists, object = listWatch[v1alpha1.ApprovalList](c, approvals, selector), &v1alpha1.Approval{}
	}
	gone := standing{word: "Deleted", why: "it is gone"}
	_, err := watchtools.UntilWithSync(ctx, lists, object, func(store cache.Store) (bool, error) {
		if len(store.List()) == 0 {
			last = gone
		}
		return last == gone, nil
	}, func(event watch.Event) (bool, error) {
		now, err := t.again(event.Object)
		switch {
		case err != nil:
			return false, err
		case event.Type == watch.Deleted || now.uid != t.uid:
			last = gone
		default:
			last = now.standing(time.Now())
		}
		return last.word != "Waiting", nil
	})
	if err != nil && errors.Is(context.Cause(ctx), errPast) {
		return t.standing(time.Now()), nil
	}
	return last, err
}

// expiryPatience is how long after its end an Approval's status may come.
const expiryPatience = 5 * time.Second

var errPast = errors.New("the time to decide is over")

// again is the target as the watch shows it.
func (t *target) again(object runtime.Object) (*target, error) {
	switch o := object.(type) {
	case *v1alpha1.Approval:
		return ofApproval(o), nil
	case *v1alpha1.TaskGrant:
		return ofGrant(o), nil
	}
	return nil, fmt.Errorf("the cluster sent %T", object)
}
