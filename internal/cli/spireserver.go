package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/taskgate/taskgate/identity"
	"github.com/taskgate/taskgate/identity/registration"
	"github.com/taskgate/taskgate/internal/inert"
)

// spireServer says how the SPIRE server is reached.
type spireServer struct {
	specOptions
	socket, address, workloadAPI string
	timeout                      time.Duration
	output                       string
}

const spireServerHelp = `The SPIRE server is reached by its administration socket (--server-socket, on the
server's own machine or in its pod), or over TCP (--server HOST:PORT) with an SVID
from the Workload API, which must have admin rights.`

func (o *spireServer) register(cmd *cobra.Command) {
	o.specOptions.register(cmd)
	flags := cmd.Flags()
	flags.StringVar(&o.socket, "server-socket", os.Getenv("SPIRE_SERVER_SOCKET"), "`path` of the SPIRE server's administration socket (default $SPIRE_SERVER_SOCKET)")
	flags.StringVar(&o.address, "server", "", "`host:port` of the SPIRE server, instead")
	flags.StringVar(&o.workloadAPI, "workload-api", "", "`address` of the Workload API with the SVID for --server (default $SPIFFE_ENDPOINT_SOCKET)")
	flags.DurationVar(&o.timeout, "timeout", spirePatience, "how long all of it may take")
	flags.StringVarP(&o.output, "output", "o", "text", "text or json")
}

// connect makes the client. done is never nil.
func (o *spireServer) connect(ctx context.Context, domain string) (server *registration.Server, done func(), err error) {
	done = func() {}
	if o.address == "" {
		if o.socket == "" {
			return nil, done, errors.New("where is the SPIRE server? Give --server-socket PATH (often /tmp/spire-server/private/api.sock), or --server HOST:PORT")
		}
		if _, err := os.Stat(o.socket); err != nil {
			return nil, done, fmt.Errorf("the socket of the SPIRE server: %w", err)
		}
		server, err = registration.ConnectSocket(o.socket)
	} else {
		var source *identity.Source
		if source, err = identity.Open(ctx, identity.Config{Address: o.workloadAPI}); err != nil {
			return nil, done, err
		}
		done = func() { _ = source.Close() } // nothing is lost with it
		if err = source.Wait(ctx); err != nil {
			return nil, done, err
		}
		trust, problem := spiffeid.TrustDomainFromString(domain)
		if problem != nil {
			return nil, done, problem
		}
		server, err = registration.ConnectTCP(o.address, trust, source)
	}
	if err != nil {
		return nil, done, err
	}
	closeSource := done
	return server, func() { _ = server.Close(); closeSource() }, nil
}

// plan compares the description with the server.
func (o *spireServer) plan(ctx context.Context, cmd *cobra.Command) (*registration.Plan, *registration.Server, func(), error) {
	none := func() {}
	if o.output != "text" && o.output != "json" {
		return nil, nil, none, fmt.Errorf("--output is text or json, not %q", o.output)
	}
	spec, err := o.spec(cmd)
	if err != nil {
		return nil, nil, none, err
	}
	wanted, err := spec.Entries()
	if err != nil {
		return nil, nil, none, err
	}
	server, done, err := o.connect(ctx, spec.TrustDomain)
	if err != nil {
		return nil, nil, done, err
	}
	held, err := server.Entries(ctx)
	if err != nil {
		return nil, nil, done, err
	}
	return registration.NewPlan(spec.Name, wanted, held), server, done, nil
}

func planCommand() *cobra.Command {
	var o spireServer
	cmd := &cobra.Command{
		Use:   "plan -f FILE",
		Short: "Say what apply would change at the SPIRE server, and change nothing",
		Long: `Plan compares the description with what the SPIRE server holds. It also tells who
else gives an agent's ID away, and who would undo the work.

` + spireServerHelp + `

Exit code 0: nothing is to be done. 1: something is. 2: it could not be told.`,
		Example: `  taskgate spire plan -f agents.yaml --server-socket /run/spire/server/api.sock`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), o.timeout)
			defer cancel()
			plan, _, done, err := o.plan(ctx, cmd)
			defer done()
			if err != nil {
				return couldNot("%w", err)
			}
			if err := o.print(cmd.OutOrStdout(), plan, nil); err != nil {
				return couldNot("%w", err)
			}
			if !plan.Done() {
				return &exitError{code: 1}
			}
			return nil
		},
	}
	o.register(cmd)
	return cmd
}

func applyCommand() *cobra.Command {
	var o spireServer
	var prune bool
	cmd := &cobra.Command{
		Use:   "apply -f FILE [--prune]",
		Short: "Make the SPIRE server hold the entries of the described agents",
		Long: `Apply creates and updates entries at the SPIRE server, and with --prune deletes
those of the same set (name) that the description no longer asks for. It touches
no entry it did not make, and makes none with admin or downstream rights.

A new image makes new entries beside the old ones: apply before the rollout with
both images in the file, and after it with the new one and --prune.

Apply may be repeated: it does what is left to do.

` + spireServerHelp + `

Exit code 0: all is as described. 1: an entry could not be made, or somebody else
gives an agent's ID away. 2: it could not be done or told; repeat it.`,
		Example: `  taskgate spire apply -f agents.yaml --server-socket /run/spire/server/api.sock --prune`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), o.timeout)
			defer cancel()
			return o.apply(ctx, cmd, prune)
		},
	}
	o.register(cmd)
	cmd.Flags().BoolVar(&prune, "prune", false, "delete entries of the set that are not described any more")
	return cmd
}

func (o *spireServer) apply(ctx context.Context, cmd *cobra.Command, prune bool) error {
	plan, server, done, err := o.plan(ctx, cmd)
	defer done()
	if err != nil {
		return couldNot("%w", err)
	}
	outcomes, applyErr := server.Apply(ctx, plan, prune)
	if outcomes == nil {
		outcomes = []registration.Outcome{} // apply was asked for, plan was not
	}
	if err := o.print(cmd.OutOrStdout(), plan, outcomes); err != nil {
		return couldNot("%w", err)
	}
	failed := 0
	for _, outcome := range outcomes {
		if outcome.Err != nil {
			failed++
		}
	}
	switch {
	case applyErr != nil:
		return couldNot("%w; %d of %s were not done. Repeat the command: it goes on from what the server holds", applyErr, failed, count(len(outcomes), "change"))
	case failed > 0:
		return no("%d of %s were refused", failed, count(len(outcomes), "change"))
	case len(plan.Conflicts)+len(plan.Exposed) > 0:
		return &exitError{code: 1}
	}
	return nil
}

// entryJSON is how entries are shown to programs.
type entryJSON struct {
	Action    string   `json:"action,omitempty"`
	ID        string   `json:"id"`
	SPIFFEID  string   `json:"spiffeID"`
	ParentID  string   `json:"parentID"`
	Selectors []string `json:"selectors"`
	TTL       string   `json:"ttl,omitempty"`
	Fields    []string `json:"fields,omitempty"`
	Why       string   `json:"why,omitempty"`
	Error     string   `json:"error,omitempty"`
}

func newEntryJSON(action string, e *registration.Entry) entryJSON {
	j := entryJSON{Action: action, ID: e.ID, SPIFFEID: e.SPIFFEID.String(), ParentID: e.ParentID.String(), Selectors: e.Selectors}
	if e.TTL > 0 {
		j.TTL = e.TTL.String()
	}
	return j
}

// planJSON is a plan, or what became of one (results).
type planJSON struct {
	Set       string      `json:"set"`
	Done      bool        `json:"done"`
	Changes   []entryJSON `json:"changes"`
	Stale     []entryJSON `json:"stale"`
	Unchanged int         `json:"unchanged"`
	Conflicts []entryJSON `json:"conflicts"`
	Exposed   []entryJSON `json:"exposed"`
	Warnings  []string    `json:"warnings"`
	Results   []entryJSON `json:"results,omitempty"`
}

func newPlanJSON(plan *registration.Plan, outcomes []registration.Outcome) *planJSON {
	j := &planJSON{
		Set: plan.Set, Done: plan.Done(), Unchanged: plan.Unchanged, Warnings: append([]string{}, plan.Warnings...),
		Changes: []entryJSON{}, Stale: []entryJSON{}, Conflicts: []entryJSON{}, Exposed: []entryJSON{},
	}
	for i := range plan.Create {
		j.Changes = append(j.Changes, newEntryJSON(string(registration.Created), &plan.Create[i]))
	}
	for i := range plan.Update {
		change := newEntryJSON(string(registration.Updated), &plan.Update[i].Want)
		change.Fields = plan.Update[i].Fields
		j.Changes = append(j.Changes, change)
	}
	for i := range plan.Stale {
		j.Stale = append(j.Stale, newEntryJSON("", &plan.Stale[i]))
	}
	for _, group := range []struct {
		to   *[]entryJSON
		from []registration.Conflict
	}{{&j.Conflicts, plan.Conflicts}, {&j.Exposed, plan.Exposed}} {
		for i := range group.from {
			conflict := newEntryJSON("", &group.from[i].Other)
			conflict.Why = group.from[i].Why
			*group.to = append(*group.to, conflict)
		}
	}
	for i := range outcomes {
		result := newEntryJSON(string(outcomes[i].Action), &outcomes[i].Entry)
		if outcomes[i].Err != nil {
			result.Error = outcomes[i].Err.Error()
		}
		j.Results = append(j.Results, result)
	}
	return j
}

// print shows a plan, or with outcomes (even none) what became of it.
func (o *spireServer) print(out io.Writer, plan *registration.Plan, outcomes []registration.Outcome) error {
	view := newPlanJSON(plan, outcomes)
	if o.output == "json" {
		return printJSON(out, view)
	}
	p := &printer{out: out}
	if outcomes == nil {
		p.changes(view)
	} else {
		p.results(view)
	}
	for _, other := range view.Conflicts {
		p.line("CONFLICT: the entry %s %s", inert.Line(other.ID), inert.Line(other.Why))
	}
	for _, other := range view.Exposed {
		p.line("EXPOSED: %s: the entry %s, which is not of this set, %s", inert.Line(other.SPIFFEID), inert.Line(other.ID), inert.Line(other.Why))
	}
	for _, warning := range view.Warnings {
		p.line("warning: %s", inert.Line(warning))
	}
	return p.err
}

func (p *printer) changes(view *planJSON) {
	for _, e := range view.Changes {
		p.entry(e)
	}
	for _, e := range view.Stale {
		e.Action = "stale, deleted with --prune:"
		p.entry(e)
	}
	if view.Done {
		p.line("Nothing is to be done: %s of %q as described.", entries(view.Unchanged), view.Set)
		return
	}
	p.line("%s to make or change, %d stale, %d as described.", entries(len(view.Changes)), len(view.Stale), view.Unchanged)
}

func entries(n int) string {
	if n == 1 {
		return "1 entry"
	}
	return fmt.Sprintf("%d entries", n)
}

func (p *printer) entry(e entryJSON) {
	fields := ""
	if len(e.Fields) > 0 {
		fields = fmt.Sprintf(" (differs: %s)", wordList(e.Fields, ", "))
	}
	p.line("%s %s%s", e.Action, inert.Line(e.SPIFFEID), fields)
	p.line("    entry %s, parent %s", inert.Line(e.ID), inert.Line(e.ParentID))
	for _, selector := range e.Selectors {
		p.line("    %s", inert.Line(selector))
	}
}

func (p *printer) results(view *planJSON) {
	done := 0
	for _, e := range view.Results {
		if e.Error != "" {
			p.line("NOT DONE: %s %s (%s): %s", e.Action, inert.Line(e.SPIFFEID), inert.Line(e.ID), inert.Line(e.Error))
			continue
		}
		done++
		p.line("%sd %s (%s)", e.Action, inert.Line(e.SPIFFEID), inert.Line(e.ID))
	}
	p.line("%d done, %d not done, %d were as described.", done, len(view.Results)-done, view.Unchanged)
}
