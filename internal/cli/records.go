package cli

import (
	"fmt"
	"io"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/taskgate/taskgate/internal/inert"
	"github.com/taskgate/taskgate/recorder"
)

type recordsOptions struct {
	place
	selection
	output string
}

func recordsCommand() *cobra.Command {
	var o recordsOptions
	cmd := &cobra.Command{
		Use:   "records [PLACE]",
		Short: "Read what agents did",
		Long: `Records reads the journal. It proves nothing: that is taskgate verify.

` + placeHelp,
		Example: `  taskgate records s3://records --endpoint https://s3.example.org --task INC-4711
  taskgate records ./copy --decision deny --from 24h
  taskgate records s3://records -o jsonl | jq 'select(.verb == "delete")'`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return o.run(cmd, args) },
	}
	o.place.flags(cmd)
	flags := cmd.Flags()
	o.selection.flags(flags)
	flags.StringVar(&o.filter.Verb, "verb", "", "only this verb")
	flags.StringVar(&o.filter.Decision, "decision", "", "only allow or deny")
	flags.StringVarP(&o.output, "output", "o", "table", "table, or jsonl for the records as they are (audit.k8s.io/v1 Events)")
	return cmd
}

func (o *recordsOptions) run(cmd *cobra.Command, args []string) error {
	if err := o.selection.resolve(time.Now()); err != nil {
		return err
	}
	var write func(*recorder.Event) error
	flush := func() error { return nil }
	switch o.output {
	case "jsonl":
		write = func(e *recorder.Event) error { return printLine(cmd.OutOrStdout(), e) }
	case "table":
		table := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 4, 2, ' ', 0)
		flush, write = table.Flush, func(e *recorder.Event) error { return row(table, e) }
		fmt.Fprintln(table, "TIME\tAGENT\tTASK\tDECISION\tVERB\tOBJECT\tRESULT")
	default:
		return fmt.Errorf("--output is table or jsonl, not %q", o.output)
	}
	bucket, done, err := o.open(args)
	if err != nil {
		return err
	}
	defer done()
	for event, err := range recorder.Scan(cmd.Context(), bucket, o.filter) {
		if err != nil {
			return fmt.Errorf("reading the journal: %w", err)
		}
		if err := write(event); err != nil {
			return err
		}
	}
	return flush()
}

// row shows one record. Intents are left out, as the outcome says it all, and so are
// the names of chunks, which are for machines.
func row(out io.Writer, e *recorder.Event) error {
	if e.Stage == recorder.StageRequestReceived || e.Annotations[recorder.AnnotationChunk] != "" {
		return nil
	}
	result := e.Annotations[recorder.AnnotationReason]
	if cause := e.Annotations[recorder.AnnotationCause]; cause != "" {
		result += "/" + cause
	}
	if result == "" && e.ResponseStatus != nil {
		result = strconv.Itoa(int(e.ResponseStatus.Code))
	}
	if outcome := e.Annotations[recorder.AnnotationOutcome]; outcome != "" {
		result += " (" + outcome + ")"
	}
	if e.Stage == recorder.StageResponseStarted {
		result += " opened"
	}
	_, err := fmt.Fprintf(out, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", e.StageTimestamp.UTC().Format("2006-01-02T15:04:05.000Z"), inert.Line(e.User.Username),
		inert.Line(firstOf(e.Annotations[recorder.AnnotationTask], "-")), e.Annotations[recorder.AnnotationDecision], inert.Line(e.Verb), inert.Line(object(e)), inert.Line(result))
	return err
}

func object(e *recorder.Event) string {
	ref := e.ObjectRef
	if ref == nil {
		return firstOf(e.RequestURI, "-")
	}
	text := ref.Resource
	if ref.APIGroup != "" {
		text += "." + ref.APIGroup
	}
	if ref.Subresource != "" {
		text += "/" + ref.Subresource
	}
	if ref.Namespace != "" && ref.Resource != "namespaces" {
		text = ref.Namespace + " " + text
	}
	if ref.Name != "" {
		text += " " + ref.Name
	}
	return text
}

// moment reads a day, a time, or a duration before now.
func moment(text, flag string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	for _, layout := range []string{time.DateOnly, time.RFC3339} {
		if at, err := time.Parse(layout, text); err == nil {
			return at, nil
		}
	}
	if ago, err := time.ParseDuration(text); err == nil {
		return now.Add(-ago), nil
	}
	return time.Time{}, fmt.Errorf("%s: %q is neither a day (2026-11-23), a time (2026-11-23T12:00:00Z) nor a duration (2h)", flag, text)
}
