package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/taskgate/taskgate/identity/registration"
	"github.com/taskgate/taskgate/internal/inert"
)

type lookOptions struct {
	workloadAPI, hint, expect string
	none                      bool
	timeout                   time.Duration
	output                    string
}

func lookCommand() *cobra.Command {
	var o lookOptions
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Tell which identity the Workload API gives to this very process",
		Long: `Verify asks the Workload API what it gives to whoever asks: to the container this
command runs in. It shows each SVID, its hint, how long it is good for, and which
one a sidecar with the same --hint would take.

It proves something about this container only: which selectors stand behind an
SVID cannot be seen from here. That no other container gets the identity is
shown by running

  taskgate spire verify --none        in the agent's container, where it must find
                                      nothing, even with the socket mounted
  taskgate spire plan -f agents.yaml  beside the SPIRE server, which lists every
                                      entry that gives an agent's ID to more than
                                      its sidecar

Exit code 0: as expected. 1: not so. 2: it could not be told.`,
		Example: `  taskgate spire verify --expect spiffe://example.org/ns/agents/sa/fixer --hint taskgate
  kubectl exec fixer-0 -c agent -- taskgate spire verify --none -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd) },
	}
	flags := cmd.Flags()
	flags.StringVar(&o.workloadAPI, "workload-api", os.Getenv("SPIFFE_ENDPOINT_SOCKET"), "`address` of the Workload API, such as unix:///run/spire/agent.sock (default $SPIFFE_ENDPOINT_SOCKET)")
	flags.StringVar(&o.hint, "hint", "", "the sidecar's --hint (registration by taskgate gives "+registration.Hint+")")
	flags.StringVar(&o.expect, "expect", "", "the SPIFFE `ID` it should be")
	flags.BoolVar(&o.none, "none", false, "it should get no identity")
	flags.DurationVar(&o.timeout, "timeout", 10*time.Second, "how long to wait for an answer")
	flags.StringVarP(&o.output, "output", "o", "text", "text or json")
	cmd.MarkFlagsMutuallyExclusive("none", "expect")
	return cmd
}

// lookReport is what verify found.
type lookReport struct {
	Good      bool                `json:"good"`
	SVIDs     []registration.Seen `json:"svids"`
	Problems  []string            `json:"problems"`
	NotProven []string            `json:"notProven"`
}

func (o *lookOptions) run(cmd *cobra.Command) error {
	if o.output != "text" && o.output != "json" {
		return couldNot("--output is text or json, not %q", o.output)
	}
	var expected spiffeid.ID
	if o.expect != "" {
		var err error
		if expected, err = spiffeid.FromString(o.expect); err != nil {
			return couldNot("--expect: %w", err)
		}
	}
	if o.workloadAPI == "" {
		return couldNot("where is the Workload API? Give --workload-api, such as unix:///run/spire/agent.sock")
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), o.timeout)
	defer cancel()
	seen, err := registration.Look(ctx, o.workloadAPI, o.hint)
	if err != nil && !errors.Is(err, registration.ErrNoIdentity) {
		return couldNot("%w", err)
	}
	report := lookReport{SVIDs: append([]registration.Seen{}, seen...), Problems: []string{}, NotProven: []string{}}
	switch {
	case o.none && len(seen) > 0:
		report.Problems = append(report.Problems, "this container gets an identity and should not: its entry lacks the sidecar's container name or image")
	case o.none:
		report.NotProven = append(report.NotProven, "that it stays so: an entry made later may let this container in")
	case err != nil:
		report.Problems = append(report.Problems, err.Error()+". There is no entry for this container, it has not reached the SPIRE agent yet, or its image has another digest")
	default:
		report.Problems = append(report.Problems, registration.Judge(seen, expected, o.hint, time.Now())...)
		report.NotProven = append(report.NotProven, "that no other container gets the same identity: run it with --none in the agent's container, and taskgate spire plan beside the SPIRE server")
	}
	report.Good = len(report.Problems) == 0
	if err := o.print(cmd, &report); err != nil {
		return couldNot("%w", err)
	}
	if !report.Good {
		return &exitError{code: 1}
	}
	return nil
}

func (o *lookOptions) print(cmd *cobra.Command, report *lookReport) error {
	out := cmd.OutOrStdout()
	if o.output == "json" {
		return printJSON(out, report)
	}
	p := &printer{out: out}
	if len(report.SVIDs) == 0 {
		p.line("no identity")
	}
	for _, s := range report.SVIDs {
		hint, picked := "no hint", ""
		if s.Hint != "" {
			hint = fmt.Sprintf("hint %q", s.Hint)
		}
		if s.Picked {
			picked = ", the one a sidecar takes"
		}
		p.line("%s, %s, good for %s, until %s%s", inert.Line(s.ID), inert.Line(hint),
			time.Until(s.Until).Round(time.Second), s.Until.Format(time.RFC3339), picked)
	}
	for _, problem := range report.Problems {
		p.line("WRONG: %s", inert.Line(problem))
	}
	for _, what := range report.NotProven {
		p.line("not proven: %s", what)
	}
	return p.err
}
