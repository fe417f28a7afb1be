package cli

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/util/duration"

	"github.com/taskgate/taskgate/api/v1alpha1"
	"github.com/taskgate/taskgate/broker/control"
	"github.com/taskgate/taskgate/internal/inert"
)

type grantsOptions struct {
	cluster
	agent, policy, output string
	all                   bool
}

func grantsCommand() *cobra.Command {
	var o grantsOptions
	cmd := &cobra.Command{
		Use:   "grants",
		Short: "See what agents may do now",
		Long: `Grants lists TaskGrants: who may do what, for which task, and for how long; and which
wait, and why. Ended ones are left out unless you ask for --all.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd) },
	}
	o.cluster.flags(cmd)
	cmd.Flags().StringVar(&o.agent, "agent", "", "only this SPIFFE `ID`")
	cmd.Flags().StringVar(&o.policy, "policy", "", "only under this AgentPolicy")
	cmd.Flags().BoolVar(&o.all, "all", false, "ended ones too")
	cmd.Flags().StringVarP(&o.output, "output", "o", "table", "table or json")
	return cmd
}

func (o *grantsOptions) run(cmd *cobra.Command) error {
	client, err := o.client()
	if err != nil {
		return err
	}
	all, err := list[v1alpha1.TaskGrantList](cmd.Context(), client, grants, "")
	if err != nil {
		return explain(err, "listing the TaskGrants", roleOperator)
	}
	all.Items = slices.DeleteFunc(all.Items, o.hides)
	switch o.output {
	case "json":
		return printJSON(cmd.OutOrStdout(), all.Items)
	case "table":
		return printGrants(cmd.OutOrStdout(), all.Items, time.Now())
	}
	return fmt.Errorf("--output is table or json, not %q", o.output)
}

func (o *grantsOptions) hides(g v1alpha1.TaskGrant) bool {
	over := meta.IsStatusConditionTrue(g.Status.Conditions, v1alpha1.GrantEnded)
	return g.Name == control.HeartbeatObject || over && !o.all || o.agent != "" && g.Spec.Agent != o.agent || o.policy != "" && g.Spec.Policy != o.policy
}

func printGrants(out io.Writer, items []v1alpha1.TaskGrant, now time.Time) error {
	p := &printer{out: out}
	active := func(g v1alpha1.TaskGrant) bool { return grantStanding(&g).good }
	if !slices.ContainsFunc(items, active) {
		p.line("No agent may do anything at the moment.")
	}
	if len(items) == 0 || p.err != nil {
		return p.err
	}
	table := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(table, "NAME\tAGENT\tTASK\tSTATE\tENDS IN\tPOLICY\tMAY")
	var waiting []string
	for i := range items {
		g := &items[i]
		s, ends := grantStanding(g), "-"
		if s.good && g.Status.ExpiresAt != nil {
			ends = duration.HumanDuration(g.Status.ExpiresAt.Sub(now))
		}
		if s.word == "Waiting" {
			waiting = append(waiting, fmt.Sprintf("%s: %s", inert.Line(g.Name), inert.Line(s.why)))
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", cell(g.Name), cell(g.Spec.Agent), cell(g.Spec.Task), cell(s.word), ends, cell(g.Spec.Policy), cell(may(g.Spec.Rules)))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	if len(waiting) > 0 {
		p.line("\nWaiting (see taskgate show NAME):\n  %s", strings.Join(waiting, "\n  "))
	}
	return p.err
}
