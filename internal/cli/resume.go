package cli

import (
	"context"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/taskgate/taskgate/api/v1alpha1"
	"github.com/taskgate/taskgate/authz"
	"github.com/taskgate/taskgate/broker/control"
	"github.com/taskgate/taskgate/internal/inert"
)

type resumeOptions struct {
	suspendOptions
	hold string
}

func resumeCommand() *cobra.Command {
	var o resumeOptions
	cmd := &cobra.Command{
		Use:   "resume --agent ID | --policy NAME | --all | --hold AGENT",
		Short: "Undo suspend, or let an agent ask again after a revoke",
		Long: `Resume undoes what taskgate suspend did, by the same flag. What has ended stays ended:
agents ask for new grants.

--hold AGENT lifts the hold that taskgate revoke put an agent on: from then on it is
given what its policies give without asking people.`,
		Example: `  taskgate resume --agent spiffe://example.org/ns/agents/sa/fixer
  taskgate resume --hold spiffe://example.org/ns/agents/sa/fixer
  taskgate resume --all`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd) },
	}
	o.cluster.flags(cmd)
	cmd.Flags().StringVar(&o.agent, "agent", "", "the agent with this SPIFFE `ID`")
	cmd.Flags().StringVar(&o.policy, "policy", "", "the AgentPolicy of this `name`")
	cmd.Flags().BoolVar(&o.all, "all", false, "the AgentPolicies that suspend --all has suspended")
	cmd.Flags().StringVar(&o.hold, "hold", "", "lift the hold of the agent with this SPIFFE `ID`")
	cmd.Flags().BoolVar(&o.dryRun, "dry-run", false, dryRunHelp)
	cmd.MarkFlagsMutuallyExclusive("agent", "policy", "all", "hold")
	cmd.MarkFlagsOneRequired("agent", "policy", "all", "hold")
	return cmd
}

func (o *resumeOptions) run(cmd *cobra.Command) error {
	client, err := o.client()
	if err != nil {
		return couldNot("%w", err)
	}
	say := newSpeaker(cmd.OutOrStdout(), o.dryRun)
	switch {
	case o.agent != "":
		err = o.resumeAgent(cmd.Context(), client, say)
	case o.policy != "":
		err = o.resumePolicy(cmd.Context(), client, say)
	case o.all:
		err = o.resumeAll(cmd.Context(), client, say)
	case o.hold != "":
		err = o.liftHold(cmd.Context(), client, say)
	default:
		err = couldNot("resume what? An empty name is none")
	}
	return worst([]error{explain(err, "resuming", roleOperator), say.err})
}

// resumeAgent deletes the policy that stopped the agent, if it still is what
// suspend made.
func (o *resumeOptions) resumeAgent(ctx context.Context, c *objects, say *speaker) error {
	id, err := agentID(o.agent)
	if err != nil {
		return err
	}
	ours := agentSuspension(id)
	policy, err := get[v1alpha1.AgentPolicy](ctx, c, policies, ours.Name)
	if apierrors.IsNotFound(err) {
		return no("%s is not suspended by itself; see kubectl get agentpolicies for its policies", id)
	}
	if err != nil {
		return err
	}
	if !slices.Equal(policy.Spec.Agents, ours.Spec.Agents) || len(policy.Spec.Allow) > 0 {
		return no("the AgentPolicy %s was changed and is more than a suspension now: look at it yourself", policy.Name)
	}
	options := &metav1.DeleteOptions{DryRun: dryRunOption(o.dryRun), Preconditions: &metav1.Preconditions{UID: &policy.UID, ResourceVersion: &policy.ResourceVersion}}
	if err := c.rest.Delete().Resource(policies).Name(policy.Name).Body(options).Do(ctx).Error(); err != nil {
		return err
	}
	say.did("resumed", "resume", "%s", id)
	say.line("  its grants that have not ended are good again; other suspended policies that name it still stop it")
	return nil
}

func (o *resumeOptions) resumePolicy(ctx context.Context, c *objects, say *speaker) error {
	policy, err := readPolicy(ctx, c, o.policy)
	if err != nil {
		return err
	}
	if !policy.Spec.Suspended {
		say.line("the AgentPolicy %s is not suspended", policy.Name)
		return nil
	}
	if err := o.unsuspend(ctx, c, policy.Name); err != nil {
		return err
	}
	say.did("resumed", "resume", "the AgentPolicy %s", policy.Name)
	say.line("  grants that have ended stay ended; agents ask for new ones, and what waits goes on")
	return nil
}

func (o *resumeOptions) unsuspend(ctx context.Context, c *objects, name string) error {
	change := map[string]any{
		"metadata": map[string]any{"annotations": map[string]any{suspendedByAll: nil}},
		"spec":     map[string]any{"suspended": false},
	}
	return c.merge(ctx, policies, name, change, o.dryRun)
}

// resumeAll leaves alone what was suspended for a reason of its own, and names it.
func (o *resumeOptions) resumeAll(ctx context.Context, c *objects, say *speaker) error {
	all, err := list[v1alpha1.AgentPolicyList](ctx, c, policies, "")
	if err != nil {
		return err
	}
	byAll := func(p *v1alpha1.AgentPolicy) bool { return p.Spec.Suspended && p.Annotations[suspendedByAll] == "true" }
	var failed []error
	names := sortedNames(all.Items, byAll)
	for _, name := range names {
		if err := o.unsuspend(ctx, c, name); err != nil {
			failed = append(failed, explain(err, "resuming the AgentPolicy "+name, roleOperator))
			continue
		}
		say.did("resumed", "resume", "the AgentPolicy %s", name)
	}
	if len(names) == 0 {
		say.line("no AgentPolicy is suspended by suspend --all")
	}
	still := sortedNames(all.Items, func(p *v1alpha1.AgentPolicy) bool {
		return p.Spec.Suspended && !byAll(p) && p.Name != control.HeartbeatObject
	})
	if len(still) > 0 {
		say.line("  suspended by themselves, and still so: %s", strings.Join(still, ", "))
	}
	return worst(failed)
}

func (o *resumeOptions) liftHold(ctx context.Context, c *objects, say *speaker) error {
	id, err := agentID(o.hold)
	if err != nil {
		return err
	}
	all, err := list[v1alpha1.TaskGrantList](ctx, c, grants, "spec.agent="+id)
	if err != nil {
		return err
	}
	change := map[string]any{"metadata": map[string]any{"annotations": map[string]any{v1alpha1.ResumedAnnotation: "true"}}}
	lifted := 0
	for i := range all.Items {
		grant := &all.Items[i]
		if grant.Status.EndReason != authz.EndRevoked || grant.Annotations[v1alpha1.ResumedAnnotation] == "true" {
			continue
		}
		if err := c.merge(ctx, grants, grant.Name, change, o.dryRun); err != nil {
			return err
		}
		lifted++
		say.did("lifted", "lift", "the hold of %s under the policy %s, from the revoked grant %s", id, inert.Line(grant.Spec.Policy), inert.Line(grant.Name))
	}
	if lifted == 0 {
		say.line("%s is not on hold", id)
	} else {
		say.line("  it is given again what its policies give without asking people")
	}
	return nil
}
