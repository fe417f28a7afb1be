package cli

import (
	"cmp"
	"fmt"
	"io"
	"net/url"
	"path"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/taskgate/taskgate/internal/inert"
	"github.com/taskgate/taskgate/recorder"
)

type streamsOptions struct {
	place
	selection
	output string
}

func streamsCommand() *cobra.Command {
	var o streamsOptions
	cmd := &cobra.Command{
		Use:   "streams [PLACE]",
		Short: "List what was recorded of exec, attach and port-forward",
		Long: `Streams lists the recorded sessions of exec (kubectl cp is one), attach and
port-forward, with the audit ID that taskgate replay wants. It reads the journal
and proves nothing: that is taskgate verify.

` + placeHelp,
		Example: `  taskgate streams s3://records --endpoint https://s3.example.org --task INC-4711
  taskgate streams ./copy --agent spiffe://example.org/ns/agents/sa/alpha --from 24h
  taskgate streams s3://records -o jsonl | jq -r 'select(.bytes > 1000000) | .auditID'`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return o.run(cmd, args) },
	}
	o.place.flags(cmd)
	flags := cmd.Flags()
	o.selection.flags(flags)
	flags.StringVarP(&o.output, "output", "o", "table", "table, or jsonl for one JSON object a line")
	return cmd
}

func (o *streamsOptions) run(cmd *cobra.Command, args []string) error {
	if err := o.selection.resolve(time.Now()); err != nil {
		return err
	}
	var write func(*session) error
	flush := func() error { return nil }
	switch o.output {
	case "jsonl":
		write = func(s *session) error { return printLine(cmd.OutOrStdout(), s) }
	case "table":
		table := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 4, 2, ' ', 0)
		flush, write = table.Flush, func(s *session) error { return s.row(table) }
		fmt.Fprintln(table, "TIME\tAUDIT ID\tAGENT\tTASK\tGRANT\tWHAT\tBYTES\tEND")
	default:
		return fmt.Errorf("--output is table or jsonl, not %q", o.output)
	}
	bucket, done, err := o.open(args)
	if err != nil {
		return err
	}
	defer done()
	for recording, err := range recorder.Recordings(cmd.Context(), bucket, o.filter) {
		if err != nil {
			return fmt.Errorf("reading the journal: %w", err)
		}
		if err := write(sessionOf(recording)); err != nil {
			return err
		}
	}
	return flush()
}

// session is what is said about one recorded stream.
type session struct {
	AuditID   string    `json:"auditID"`
	Time      time.Time `json:"time"`
	Agent     string    `json:"agent"`
	Task      string    `json:"task,omitempty"`
	Grant     string    `json:"grant,omitempty"`
	Session   string    `json:"session,omitempty"` // UID of the grant
	Kind      string    `json:"kind"`              // subresource
	Namespace string    `json:"namespace,omitempty"`
	Pod       string    `json:"pod,omitempty"`
	Container string    `json:"container,omitempty"`
	Command   []string  `json:"command,omitempty"`
	Ports     []string  `json:"ports,omitempty"`
	Stdin     bool      `json:"stdin,omitempty"`
	TTY       bool      `json:"tty,omitempty"`
	Bytes     uint64    `json:"bytes"`
	End       string    `json:"end"`
}

func sessionOf(r *recorder.Recording) *session {
	e := r.Record()
	s := &session{
		AuditID: r.AuditID, Time: e.StageTimestamp.UTC(), Agent: e.User.Username, Task: e.Annotations[recorder.AnnotationTask],
		Grant: e.Annotations[recorder.AnnotationGrant], Session: e.Annotations[recorder.AnnotationSession], Bytes: r.Bytes(), End: ending(r.End),
	}
	if ref := e.ObjectRef; ref != nil {
		s.Kind, s.Namespace, s.Pod = ref.Subresource, ref.Namespace, ref.Name
	}
	uri, err := url.Parse(e.RequestURI)
	if err != nil {
		return s // what cannot be read is not said
	}
	query := uri.Query()
	s.Command, s.Container, s.Ports = query["command"], query.Get("container"), query["ports"]
	s.Stdin, _ = strconv.ParseBool(query.Get("stdin"))
	s.TTY, _ = strconv.ParseBool(query.Get("tty"))
	return s
}

// ending says how a stream ended, by its closing record.
func ending(end *recorder.Event) string {
	if end == nil {
		return "open"
	}
	if outcome := end.Annotations[recorder.AnnotationOutcome]; outcome == recorder.OutcomeUnknown {
		return outcome
	}
	words := end.Annotations[recorder.AnnotationReason]
	if cause := end.Annotations[recorder.AnnotationCause]; cause != "" {
		words = strings.TrimPrefix(words+"/"+cause, "/")
	}
	if code := end.Annotations[recorder.AnnotationExitCode]; code != "" {
		words = strings.TrimSpace(words + " exit " + code)
	}
	if words == "" && end.ResponseStatus != nil && end.ResponseStatus.Code >= 400 {
		words = strconv.Itoa(int(end.ResponseStatus.Code))
	}
	return cmp.Or(words, "ended")
}

// what says the stream as kubectl would have been asked for it.
func (s *session) what() string {
	words := []string{map[string]string{"portforward": "port-forward"}[s.Kind]}
	if words[0] == "" {
		words[0] = cmp.Or(s.Kind, "?")
	}
	words = append(words, word(strings.TrimPrefix(s.Namespace+"/"+s.Pod, "/")))
	if s.Container != "" {
		words = append(words, "-c", word(s.Container))
	}
	switch {
	case s.Stdin && s.TTY:
		words = append(words, "-it")
	case s.Stdin:
		words = append(words, "-i")
	case s.TTY:
		words = append(words, "-t")
	}
	for _, port := range s.Ports {
		words = append(words, word(port))
	}
	if len(s.Command) > 0 {
		words = append(words, "--", wordList(s.Command, " "))
	}
	return strings.Join(words, " ")
}

// archive is the channel on which a tar passes, as kubectl cp has it.
func (s *session) archive() (recorder.Channel, bool) {
	if len(s.Command) < 2 || path.Base(s.Command[0]) != "tar" {
		return 0, false
	}
	switch flags := strings.TrimLeft(s.Command[1], "-"); {
	case strings.Contains(flags, "x"):
		return recorder.Stdin, true
	case strings.Contains(flags, "c"):
		return recorder.Stdout, true
	}
	return 0, false
}

func (s *session) row(out io.Writer) error {
	_, err := fmt.Fprintf(out, "%s\t%s\t%s\t%s\t%s\t%s\t%d\t%s\n", s.Time.Format("2006-01-02T15:04:05Z"), inert.Line(s.AuditID), inert.Line(cmp.Or(s.Agent, "-")),
		inert.Line(cmp.Or(s.Task, "-")), inert.Line(cmp.Or(s.Grant, "-")), inert.Short(s.what(), 100), s.Bytes, inert.Line(s.End))
	return err
}
