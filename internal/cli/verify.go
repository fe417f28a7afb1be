package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/taskgate/taskgate/internal/inert"
	"github.com/taskgate/taskgate/recorder"
)

type verifyOptions struct {
	place
	bundles, brokers []string
	cluster          string
	from, to         string
	minRetention     time.Duration
	output           string
}

func verifyCommand() *cobra.Command {
	var o verifyOptions
	cmd := &cobra.Command{
		Use:   "verify [PLACE]",
		Short: "Prove that the record is whole, unchanged, signed and locked",
		Long: `Verify recomputes everything from the bucket alone: each record and its number,
each hash, each signature and the chain of manifests, and for a bucket also the
lock of every object and whether anything was hidden or written twice. It needs
nothing from the broker.

Trust starts at --trust-bundle, the bundle of your SPIFFE trust domain, which you
should have from its administrators and not from the bucket. --broker-id says
whose signatures count.

` + placeHelp + `

Exit code 0: proven. 1: broken; the first bad record is named. 2: it could not be
checked.`,
		Example: `  taskgate verify s3://records --endpoint https://s3.example.org \
    --trust-bundle bundle.json --broker-id spiffe://example.org/ns/taskgate-system/sa/taskgate-broker
  taskgate verify ./copy --trust-bundle bundle.json --broker-id spiffe://… -o json`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return o.run(cmd, args) },
	}
	o.place.flags(cmd)
	flags := cmd.Flags()
	flags.StringArrayVar(&o.bundles, "trust-bundle", nil, "`file` with the trust bundle, SPIFFE JSON or PEM; may be repeated (default $TASKGATE_TRUST_BUNDLE)")
	flags.StringArrayVar(&o.brokers, "broker-id", nil, "SPIFFE `ID` of the brokers; may be repeated (default $TASKGATE_BROKER_ID)")
	flags.StringVar(&o.cluster, "cluster", "", "only this cluster")
	flags.StringVar(&o.from, "from", "", "only from this `day` on (2026-11-23)")
	flags.StringVar(&o.to, "to", "", "only up to this `day`")
	flags.DurationVar(&o.minRetention, "min-retention", 0, "how long each object must have been locked from when it was stored")
	flags.StringVarP(&o.output, "output", "o", "text", "text or json")
	return cmd
}

// cannotCheck marks everything that goes wrong before a verdict.
func cannotCheck(err error) error { return &exitError{2, fmt.Errorf("cannot check: %w", err)} }

func (o *verifyOptions) run(cmd *cobra.Command, args []string) error {
	config, err := o.config()
	if err != nil {
		return cannotCheck(err)
	}
	bucket, done, err := o.open(args)
	if err != nil {
		return cannotCheck(err)
	}
	defer done()
	report, err := recorder.Verify(cmd.Context(), bucket, config)
	if err != nil {
		return cannotCheck(err)
	}
	out := cmd.OutOrStdout()
	if o.output == "json" {
		err = printJSON(out, struct {
			Proven bool `json:"proven"`
			*recorder.Report
		}{report.Proven(), report})
	} else {
		err = printReport(out, report)
	}
	if err != nil {
		return cannotCheck(err)
	}
	if !report.Proven() {
		return &exitError{code: 1}
	}
	return nil
}

func (o *verifyOptions) config() (recorder.VerifyConfig, error) {
	config := recorder.VerifyConfig{Cluster: o.cluster, MinRetention: o.minRetention}
	if o.output != "text" && o.output != "json" {
		return config, fmt.Errorf("--output is text or json, not %q", o.output)
	}
	bundles, brokers := o.bundles, o.brokers
	if len(bundles) == 0 && os.Getenv("TASKGATE_TRUST_BUNDLE") != "" {
		bundles = []string{os.Getenv("TASKGATE_TRUST_BUNDLE")}
	}
	if len(brokers) == 0 && os.Getenv("TASKGATE_BROKER_ID") != "" {
		brokers = []string{os.Getenv("TASKGATE_BROKER_ID")}
	}
	if len(bundles) == 0 {
		return config, errors.New("without a trust bundle nothing can be proven; get it from the administrators of the trust domain and give --trust-bundle")
	}
	if len(brokers) == 0 {
		return config, errors.New("whose signatures count? Give --broker-id, such as spiffe://example.org/ns/taskgate-system/sa/taskgate-broker")
	}
	for _, text := range brokers {
		id, err := spiffeid.FromString(text)
		if err != nil {
			return config, fmt.Errorf("--broker-id: %w", err)
		}
		config.BrokerIDs = append(config.BrokerIDs, id)
	}
	for _, path := range bundles {
		bundle, err := readBundle(path, config.BrokerIDs)
		if err != nil {
			return config, err
		}
		config.TrustBundles = append(config.TrustBundles, bundle...)
	}
	var err error
	if config.From, err = day(o.from, "--from"); err != nil {
		return config, err
	}
	config.To, err = day(o.to, "--to")
	return config, err
}

// readBundle reads a bundle once for each trust domain the brokers are in: the
// file itself does not say which domain it is for.
func readBundle(path string, brokers []spiffeid.ID) ([]*x509bundle.Bundle, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the trust bundle: %w", err)
	}
	var bundles []*x509bundle.Bundle
	seen := map[spiffeid.TrustDomain]bool{}
	for _, id := range brokers {
		if domain := id.TrustDomain(); !seen[domain] {
			seen[domain] = true
			bundle, err := recorder.ParseTrustBundle(domain, data)
			if err != nil {
				return nil, fmt.Errorf("reading the trust bundle %s: %w", path, err)
			}
			bundles = append(bundles, bundle)
		}
	}
	return bundles, nil
}

func day(text, flag string) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	at, err := time.Parse(time.DateOnly, text)
	if err != nil {
		return at, fmt.Errorf("%s: write a day as 2026-11-23", flag)
	}
	return at, nil
}

// printReport tells the verdict first, then what it rests on.
func printReport(out io.Writer, report *recorder.Report) error {
	p := &printer{out: out}
	if report.Proven() {
		p.line("PROVEN: %d records in %d segments, signed by %d manifests", report.Records, report.Segments, report.Manifests)
	} else {
		p.line("BROKEN: %s; the first: %s", count(len(report.Findings), "finding"), inert.Line(report.Findings[0].String()))
	}
	if report.Recordings > 0 {
		p.line("  %s recorded: %d frames in %d chunks, %d bytes", count(int(report.Recordings), "stream"), report.Frames, report.Chunks, report.StreamBytes)
	}
	for _, stream := range report.Streams {
		p.line("  stream %s/%s: records 1 to %d, %s, last manifest %d at %s", inert.Line(stream.Cluster), inert.Line(stream.Stream), stream.Last, stream.End,
			stream.Number, stream.Time.UTC().Format(time.RFC3339))
	}
	for _, finding := range report.Findings {
		p.line("  broken: %s", inert.Line(finding.String()))
	}
	for _, note := range report.Notes {
		p.line("  note: %s", inert.Line(note.String()))
	}
	if report.Unknown > 0 {
		p.line("  note: %d calls whose outcome is not known are recorded as such", report.Unknown)
	}
	for _, what := range report.NotChecked {
		p.line("  not checked: %s", what)
	}
	if report.Omitted > 0 {
		p.line("  and %d more findings and notes", report.Omitted)
	}
	return p.err
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// printer keeps the first error of writing.
type printer struct {
	out io.Writer
	err error
}

func (p *printer) line(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.out, format+"\n", args...)
	}
}
