package cli

import (
	"encoding/json"
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
		Long: `Grants lists TaskGrants: who may do what, for which task, and for how long. Ended
ones are left out unless you ask for --all.`,
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
	list := new(v1alpha1.TaskGrantList)
	if err := client.Get().Resource("taskgrants").Do(cmd.Context()).Into(list); err != nil {
		return fmt.Errorf("listing the TaskGrants: %w", err)
	}
	list.Items = slices.DeleteFunc(list.Items, o.hides)
	switch o.output {
	case "json":
		encoder := json.NewEncoder(cmd.OutOrStdout())
		encoder.SetIndent("", "  ")
		return encoder.Encode(list.Items)
	case "table":
		return printGrants(cmd.OutOrStdout(), list.Items, time.Now())
	}
	return fmt.Errorf("--output is table or json, not %q", o.output)
}

func (o *grantsOptions) hides(g v1alpha1.TaskGrant) bool {
	over := meta.IsStatusConditionTrue(g.Status.Conditions, v1alpha1.GrantEnded)
	return g.Name == control.HeartbeatObject || over && !o.all || o.agent != "" && g.Spec.Agent != o.agent || o.policy != "" && g.Spec.Policy != o.policy
}

func printGrants(out io.Writer, grants []v1alpha1.TaskGrant, now time.Time) error {
	if len(grants) == 0 {
		_, err := fmt.Fprintln(out, "No agent may do anything at the moment.")
		return err
	}
	table := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(table, "NAME\tAGENT\tTASK\tSTATE\tENDS IN\tPOLICY\tMAY")
	for i := range grants {
		g := &grants[i]
		state, ends := "Unseen", "-"
		if active := meta.FindStatusCondition(g.Status.Conditions, v1alpha1.GrantActive); active != nil {
			state = active.Reason
		}
		if meta.IsStatusConditionTrue(g.Status.Conditions, v1alpha1.GrantActive) && g.Status.ExpiresAt != nil {
			ends = duration.HumanDuration(g.Status.ExpiresAt.Sub(now))
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", g.Name, safe(g.Spec.Agent), safe(g.Spec.Task), state, ends, g.Spec.Policy, may(g.Spec.Rules))
	}
	return table.Flush()
}

// may says the rules in a few words.
func may(rules []v1alpha1.Rule) string {
	var words []string
	for _, rule := range rules {
		words = append(words, fmt.Sprintf("%s %s in %s", strings.Join(rule.Verbs, ","), strings.Join(rule.Resources, ","), strings.Join(rule.Namespaces, ",")))
	}
	text := safe(strings.Join(words, "; "))
	const most = 80
	if len(text) > most {
		return text[:most] + "…"
	}
	return text
}
