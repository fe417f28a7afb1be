package cli

import (
	"context"
	"errors"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/taskgate/taskgate/api/v1alpha1"
	"github.com/taskgate/taskgate/internal/inert"
)

type revokeOptions struct {
	cluster
	dryRun bool
}

func revokeCommand() *cobra.Command {
	var o revokeOptions
	cmd := &cobra.Command{
		Use:   "revoke GRANT...",
		Short: "Take TaskGrants away, at once and for good",
		Long: `Revoke ends TaskGrants: the next call of the agent is refused, and what it has open is
closed. The agent is then on hold under the policy: what it asks for waits until you
say taskgate resume --hold AGENT, or until people approve a new grant.`,
		Example: `  taskgate revoke inc-4711
  taskgate grants -o json | jq -r '.[].metadata.name' | xargs taskgate revoke --dry-run`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return o.run(cmd, args) },
	}
	o.cluster.flags(cmd)
	cmd.Flags().BoolVar(&o.dryRun, "dry-run", false, dryRunHelp)
	return cmd
}

const dryRunHelp = "let the cluster judge it and say what would happen, but change nothing"

// run tries each grant, so that one that cannot be revoked saves none of the
// others.
func (o *revokeOptions) run(cmd *cobra.Command, names []string) error {
	client, err := o.client()
	if err != nil {
		return couldNot("%w", err)
	}
	say := newSpeaker(cmd.OutOrStdout(), o.dryRun)
	var failed []error
	for _, name := range names {
		if err := o.revoke(cmd.Context(), client, say, name); err != nil {
			failed = append(failed, err)
		}
	}
	return worst(append(failed, say.err))
}

func (o *revokeOptions) revoke(ctx context.Context, c *objects, say *speaker, name string) error {
	grant, err := get[v1alpha1.TaskGrant](ctx, c, grants, name)
	if apierrors.IsNotFound(err) {
		return couldNot("there is no TaskGrant %q", name)
	}
	if err != nil {
		return explain(err, "reading the TaskGrant "+name, roleOperator)
	}
	if meta.IsStatusConditionTrue(grant.Status.Conditions, v1alpha1.GrantEnded) || grant.Spec.Revoked {
		say.line("%s has ended already (%s); nothing to revoke", inert.Line(name), inert.Line(grantStanding(grant).why))
		return nil
	}
	change := map[string]any{"metadata": map[string]any{"uid": grant.UID}, "spec": map[string]any{"revoked": true}}
	if err := c.merge(ctx, grants, name, change, o.dryRun); err != nil {
		return explain(err, "revoking the TaskGrant "+name, roleOperator)
	}
	agent := inert.Line(grant.Spec.Agent)
	say.did("revoked", "revoke", "%s: %s, task %s", inert.Line(name), agent, inert.Line(grant.Spec.Task))
	say.line("  its calls are refused and its streams closed from now on; under the policy %s the agent is on hold until taskgate resume --hold %s", inert.Line(grant.Spec.Policy), agent)
	return nil
}

// worst joins errors; that something could not be done outweighs a no.
func worst(errs []error) error {
	joined := errors.Join(errs...)
	if joined == nil {
		return nil
	}
	code := 1
	for _, err := range errs {
		code = max(code, ExitCode(err))
	}
	return &exitError{code, joined}
}
