package cli

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/taskgate/taskgate/api/v1alpha1"
	"github.com/taskgate/taskgate/broker/control"
	"github.com/taskgate/taskgate/internal/inert"
)

// suspendedByAll marks the policies that suspend --all has suspended, so that
// resume --all resumes those and no other.
const suspendedByAll = "taskgate.dev/suspended-by-all"

type suspendOptions struct {
	cluster
	agent, policy string
	all, dryRun   bool
}

func (o *suspendOptions) flags(cmd *cobra.Command) {
	o.cluster.flags(cmd)
	cmd.Flags().StringVar(&o.agent, "agent", "", "the agent with this SPIFFE `ID`, whatever policies it is under")
	cmd.Flags().StringVar(&o.policy, "policy", "", "all agents under the AgentPolicy of this `name`")
	cmd.Flags().BoolVar(&o.all, "all", false, "all AgentPolicies")
	cmd.Flags().BoolVar(&o.dryRun, "dry-run", false, dryRunHelp)
	cmd.MarkFlagsMutuallyExclusive("agent", "policy", "all")
	cmd.MarkFlagsOneRequired("agent", "policy", "all")
}

func suspendCommand() *cobra.Command {
	var o suspendOptions
	cmd := &cobra.Command{
		Use:   "suspend --agent ID | --policy NAME | --all",
		Short: "Stop an agent, a policy, or everything, at once",
		Long: `Suspend stops agents: every call is refused and every stream closed until taskgate
resume.

  --agent ID     stops one agent. Its grants live on, as long as they would have.
  --policy NAME  stops all agents the policy names, under whatever policy they act,
                 and ends the grants under this one for good.
  --all          does that to all policies there are now.`,
		Example: `  taskgate suspend --agent spiffe://example.org/ns/agents/sa/fixer
  taskgate suspend --policy shop
  taskgate suspend --all`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd) },
	}
	o.flags(cmd)
	return cmd
}

func (o *suspendOptions) run(cmd *cobra.Command) error {
	client, err := o.client()
	if err != nil {
		return couldNot("%w", err)
	}
	say := newSpeaker(cmd.OutOrStdout(), o.dryRun)
	switch {
	case o.agent != "":
		err = o.suspendAgent(cmd.Context(), client, say)
	case o.policy != "":
		err = o.suspendPolicy(cmd.Context(), client, say)
	case o.all:
		err = o.suspendAll(cmd.Context(), client, say)
	default:
		err = couldNot("suspend what? An empty name is none")
	}
	return worst([]error{explain(err, "suspending", roleOperator), say.err})
}

// agentSuspension is the policy that stops one agent. It allows nothing, so that
// it gives nothing when it is no longer suspended.
func agentSuspension(id string) *v1alpha1.AgentPolicy {
	sum := sha256.Sum256([]byte(id))
	return &v1alpha1.AgentPolicy{
		TypeMeta:   metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: "AgentPolicy"},
		ObjectMeta: metav1.ObjectMeta{Name: "suspend-" + hex.EncodeToString(sum[:5])},
		Spec: v1alpha1.AgentPolicySpec{
			Agents: []string{id}, Suspended: true,
			Grant: v1alpha1.GrantLimits{MaxTTL: metav1.Duration{Duration: time.Hour}, Approval: v1alpha1.GrantApproval{Approvers: 10}},
		},
	}
}

// agentID refuses what no agent can be called: to suspend a misspelt ID would stop
// nobody and look as if it had.
func agentID(text string) (string, error) {
	id, err := spiffeid.FromString(text)
	if err != nil {
		return "", couldNot("%q is no SPIFFE ID such as spiffe://example.org/ns/agents/sa/fixer: %w", text, err)
	}
	if id.Path() == "" {
		return "", couldNot("%q names a trust domain, not an agent", text)
	}
	return id.String(), nil
}

func (o *suspendOptions) suspendAgent(ctx context.Context, c *objects, say *speaker) error {
	id, err := agentID(o.agent)
	if err != nil {
		return err
	}
	policy := agentSuspension(id)
	options := &metav1.CreateOptions{DryRun: dryRunOption(o.dryRun)}
	err = c.rest.Post().Resource(policies).VersionedParams(options, c.parameter).Body(policy).Do(ctx).Error()
	if apierrors.IsAlreadyExists(err) {
		err = c.merge(ctx, policies, policy.Name, map[string]any{"spec": map[string]any{"agents": []string{id}, "suspended": true}}, o.dryRun)
	}
	if err != nil {
		return err
	}
	say.did("suspended", "suspend", "%s, by the AgentPolicy %s", id, policy.Name)
	say.line("  every call is refused and every stream closed; its grants live on until they end: see taskgate grants --agent %s", id)
	say.line("  undo it with taskgate resume --agent %s", id)
	return nil
}

func (o *suspendOptions) suspendPolicy(ctx context.Context, c *objects, say *speaker) error {
	policy, err := readPolicy(ctx, c, o.policy)
	if err != nil {
		return err
	}
	if policy.Spec.Suspended {
		say.line("the AgentPolicy %s is suspended already", policy.Name)
		return nil
	}
	if err := c.merge(ctx, policies, policy.Name, map[string]any{"spec": map[string]any{"suspended": true}}, o.dryRun); err != nil {
		return err
	}
	say.did("suspended", "suspend", "the AgentPolicy %s", policy.Name)
	say.line("  the agents it names are stopped, and the grants under it have ended; new ones can be asked for after taskgate resume --policy %s", policy.Name)
	return nil
}

func readPolicy(ctx context.Context, c *objects, name string) (*v1alpha1.AgentPolicy, error) {
	if name == control.HeartbeatObject {
		return nil, no("%s is the brokers' own and stays suspended", name)
	}
	policy, err := get[v1alpha1.AgentPolicy](ctx, c, policies, name)
	if apierrors.IsNotFound(err) {
		return nil, couldNot("there is no AgentPolicy %q", name)
	}
	return policy, err
}

// suspendAll goes on when one policy cannot be suspended, and says so in the end.
func (o *suspendOptions) suspendAll(ctx context.Context, c *objects, say *speaker) error {
	all, err := list[v1alpha1.AgentPolicyList](ctx, c, policies, "")
	if err != nil {
		return err
	}
	change := map[string]any{
		"metadata": map[string]any{"annotations": map[string]any{suspendedByAll: "true"}},
		"spec":     map[string]any{"suspended": true},
	}
	stopped := 0
	var failed []error
	for i := range all.Items {
		policy := &all.Items[i]
		if policy.Spec.Suspended {
			continue
		}
		if err := c.merge(ctx, policies, policy.Name, change, o.dryRun); err != nil {
			failed = append(failed, explain(err, "suspending the AgentPolicy "+policy.Name, roleOperator))
			continue
		}
		stopped++
		say.did("suspended", "suspend", "the AgentPolicy %s", policy.Name)
	}
	if len(failed) == 0 && stopped == 0 {
		say.line("every AgentPolicy is suspended already")
	}
	if stopped > 0 {
		say.line("  all their agents are stopped and their grants have ended; policies made from now on are not suspended. Undo it with taskgate resume --all")
	}
	return worst(failed)
}

// speaker says what was done, or would be done by a dry run.
type speaker struct {
	printer
	dryRun bool
}

func newSpeaker(out io.Writer, dryRun bool) *speaker {
	return &speaker{printer{out: out}, dryRun}
}

func (s *speaker) did(past, verb, format string, args ...any) {
	if s.dryRun {
		past = "dry run: would " + verb
	}
	s.line("%s %s", past, fmt.Sprintf(format, args...))
}

// sortedNames are the names of policies in order.
func sortedNames(items []v1alpha1.AgentPolicy, keep func(*v1alpha1.AgentPolicy) bool) []string {
	var names []string
	for i := range items {
		if keep(&items[i]) {
			names = append(names, inert.Line(items[i].Name))
		}
	}
	slices.Sort(names)
	return names
}
