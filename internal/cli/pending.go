package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/duration"

	"github.com/taskgate/taskgate/api/v1alpha1"
	"github.com/taskgate/taskgate/broker/control"
	"github.com/taskgate/taskgate/internal/inert"
)

type pendingOptions struct {
	cluster
	watch  bool
	output string
}

func pendingCommand() *cobra.Command {
	var o pendingOptions
	cmd := &cobra.Command{
		Use:   "pending",
		Short: "See what waits for people",
		Long: `Pending lists the TaskGrants that wait and the Approvals that are open: who asks for
what, who has to agree, and how long there is.

With --watch it goes on: each thing that comes, changes or is settled is a line.`,
		Example: `  taskgate pending
  taskgate pending -w
  taskgate pending -o json | jq -r '.[].name'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd) },
	}
	o.cluster.flags(cmd)
	cmd.Flags().BoolVarP(&o.watch, "watch", "w", false, "go on and say what changes, until interrupted")
	cmd.Flags().StringVarP(&o.output, "output", "o", "table", "table or json; with --watch one JSON object a line")
	return cmd
}

func (o *pendingOptions) run(cmd *cobra.Command) error {
	if o.output != "table" && o.output != "json" {
		return couldNot("--output is table or json, not %q", o.output)
	}
	client, err := o.client()
	if err != nil {
		return couldNot("%w", err)
	}
	if o.watch {
		return o.follow(cmd, client)
	}
	all, err := readBoard(cmd.Context(), client)
	if err != nil {
		return explain(err, "listing what waits", roleApprover)
	}
	now := time.Now()
	waiting := all.waiting(now)
	if o.output == "table" {
		return printPending(cmd.OutOrStdout(), waiting, now)
	}
	items := []pendingItem{}
	for _, t := range waiting {
		items = append(items, item(t, now))
	}
	return printJSON(cmd.OutOrStdout(), items)
}

// board is everything people decide about.
type board struct {
	approvals []*v1alpha1.Approval
	grants    []*v1alpha1.TaskGrant
	policies  []*v1alpha1.AgentPolicy
	decisions []v1alpha1.Decision
	// policiesHidden says that the person may not read policies.
	policiesHidden bool
}

// readBoard reads it once. Policies a person may not read are left out: then it is
// not known whom a TaskGrant needs.
func readBoard(ctx context.Context, c *objects) (*board, error) {
	approvalList, err := list[v1alpha1.ApprovalList](ctx, c, approvals, "")
	if err != nil {
		return nil, err
	}
	grantList, err := list[v1alpha1.TaskGrantList](ctx, c, grants, "")
	if err != nil {
		return nil, err
	}
	decisionList, err := list[v1alpha1.DecisionList](ctx, c, decisions, "")
	if err != nil {
		return nil, err
	}
	policyList, err := list[v1alpha1.AgentPolicyList](ctx, c, policies, "")
	if err != nil && !apierrors.IsForbidden(err) {
		return nil, err
	}
	return &board{pointers(approvalList.Items), pointers(grantList.Items), pointers(policyList.Items), decisionList.Items, err != nil}, nil
}

func pointers[T any](items []T) []*T {
	all := make([]*T, len(items))
	for i := range items {
		all[i] = &items[i]
	}
	return all
}

// targets are those that keep wants, with what is known about them, oldest first.
func (b *board) targets(keep func(*target) bool) []*target {
	byPolicy, byGrant, byUID := map[string]*v1alpha1.AgentPolicy{}, map[string]*v1alpha1.TaskGrant{}, map[string][]v1alpha1.Decision{}
	for _, policy := range b.policies {
		byPolicy[policy.Name] = policy
	}
	for _, d := range b.decisions {
		byUID[d.Spec.Target.UID] = append(byUID[d.Spec.Target.UID], d)
	}
	var all []*target
	add := func(t *target) {
		t.under(byPolicy[t.policyName])
		if keep(t) {
			t.decided(byUID[t.uid])
			all = append(all, t)
		}
	}
	for _, grant := range b.grants {
		byGrant[string(grant.UID)] = grant
		if grant.Name != control.HeartbeatObject {
			add(ofGrant(grant))
		}
	}
	for _, approval := range b.approvals {
		t := ofApproval(approval)
		t.grant = byGrant[approval.Spec.GrantUID]
		add(t)
	}
	slices.SortFunc(all, func(a, b *target) int {
		return cmp.Or(a.created.Compare(b.created), strings.Compare(a.path(), b.path()))
	})
	return all
}

// waiting are those that are not settled, oldest first.
func (b *board) waiting(now time.Time) []*target {
	return b.targets(func(t *target) bool { return t.standing(now).word == "Waiting" })
}

func printPending(out io.Writer, waiting []*target, now time.Time) error {
	if len(waiting) == 0 {
		_, err := fmt.Fprintln(out, "Nothing waits for people.")
		return err
	}
	table := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(table, "NAME\tKIND\tAGENT\tTASK\tSUMMARY\tGATE\tNEEDS\tAGE\tEXPIRES IN")
	for _, t := range waiting {
		expires := "-"
		if at := t.expires(); !at.IsZero() {
			expires = duration.HumanDuration(at.Sub(now))
		}
		needs := t.needs()
		if s := t.standing(now); !s.open {
			needs = s.why
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", cell(t.name), t.kind, cell(t.agent), cell(t.task), cell(t.summary()), cell(t.gate()),
			cell(needs), duration.HumanDuration(now.Sub(t.created)), expires)
	}
	return table.Flush()
}

// mostCell is how much of a text fits into a table.
const mostCell = 80

func cell(text string) string { return cmp.Or(inert.Short(text, mostCell), "-") }

// pendingItem is one thing that waits, for programs.
type pendingItem struct {
	Name      string     `json:"name"`
	Kind      string     `json:"kind"`
	State     string     `json:"state"`
	Why       string     `json:"why"`
	Agent     string     `json:"agent"`
	Task      string     `json:"task"`
	Policy    string     `json:"policy"`
	Summary   string     `json:"summary"`
	Gate      string     `json:"gate,omitempty"`
	Approved  int        `json:"approved"`
	Approvers int        `json:"approvers"`
	Groups    []string   `json:"groups,omitempty"`
	Digest    string     `json:"digest"`
	Created   time.Time  `json:"created"`
	Expires   *time.Time `json:"expires,omitempty"`
}

func item(t *target, now time.Time) pendingItem {
	s := t.standing(now)
	i := pendingItem{
		Name: t.name, Kind: t.kind, State: s.word, Why: s.why, Agent: t.agent, Task: t.task, Policy: t.policyName, Summary: t.summary(),
		Approved: t.yeses(), Approvers: t.approvers, Groups: t.groups, Digest: t.digest, Created: t.created,
	}
	if t.approval != nil {
		i.Gate = t.approval.Spec.Gate
	}
	if at := t.expires(); !at.IsZero() {
		i.Expires = &at
	}
	return i
}
