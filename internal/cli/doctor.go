package cli

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"

	"github.com/taskgate/taskgate/api/v1alpha1"
	"github.com/taskgate/taskgate/internal/doctor"
	"github.com/taskgate/taskgate/internal/inert"
	"github.com/taskgate/taskgate/manifests"
)

type doctorOptions struct {
	cluster
	place
	config doctor.Config
	output string
}

func doctorCommand() *cobra.Command {
	var o doctorOptions
	cmd := &cobra.Command{
		Use:   "doctor [PLACE]",
		Short: "Look at an installation, and say what is wrong and how to mend it",
		Long: `Doctor looks at everything that taskgate leans on, and changes nothing:

` + checkList() + `
Each finding says what it is, why it matters, and how to mend it. A check that
could not be made says so, and does not count as good; leave one out on purpose
with --skip. Where the control cluster and the guarded cluster are two, run it for
each, and skip the checks about the other.

Your kubeconfig needs to read admission policies, AgentPolicies, namespaces, pods,
NetworkPolicies, the names of Secrets in agents' namespaces, and, if no
--broker-url is given, pods/proxy in the system namespace.

` + placeHelp + `

Exit code 0: all is well. 1: something was found (an error or a warning). 2: nothing was
found, but a check could not be made.`,
		Example: `  taskgate doctor s3://records --endpoint https://s3.example.org
  taskgate doctor --skip bucket,journals,identity --broker-url http://127.0.0.1:9090
  taskgate doctor -o json s3://records`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return o.run(cmd, args) },
	}
	o.cluster.flags(cmd)
	o.place.flags(cmd)
	flags := cmd.Flags()
	flags.StringSliceVar(&o.config.Skip, "skip", nil, "`checks` to leave out, by name")
	flags.StringArrayVar(&o.config.BrokerURLs, "broker-url", nil, "`URL` of a broker's health port, such as http://127.0.0.1:9090; may be repeated (default: its pods, through the API server)")
	flags.StringVar(&o.config.SystemNamespace, "system-namespace", "taskgate-system", "`namespace` of the brokers")
	flags.StringVar(&o.config.BrokerSelector, "broker-selector", "app.kubernetes.io/name=taskgate-broker", "`labels` of the brokers' pods")
	flags.StringVar(&o.config.WorkloadAPI, "workload-api", os.Getenv("SPIFFE_ENDPOINT_SOCKET"), "`address` of a Workload API (default $SPIFFE_ENDPOINT_SOCKET)")
	flags.StringVar(&o.config.Hint, "hint", "", "the `hint` by which an SVID is picked there")
	flags.DurationVar(&o.config.Silence, "silence", 3*time.Minute, "how long a broker may store nothing; its heartbeat comes every minute")
	flags.DurationVar(&o.config.Timeout, "timeout", 30*time.Second, "how long each check may take")
	flags.StringVarP(&o.output, "output", "o", "text", "text or json")
	return cmd
}

func checkList() string {
	text := ""
	for _, check := range doctor.Checks() {
		text += fmt.Sprintf("  %-10s %s\n", check.Name, check.Title)
	}
	return text
}

func (o *doctorOptions) run(cmd *cobra.Command, args []string) error {
	if o.output != "text" && o.output != "json" {
		return couldNot("--output is text or json, not %q", o.output)
	}
	if err := o.connect(); err != nil {
		return couldNot("%w", err)
	}
	if len(args) > 0 || os.Getenv("TASKGATE_S3_BUCKET") != "" {
		bucket, done, err := o.open(args)
		if err != nil {
			return couldNot("%w", err)
		}
		defer done()
		o.config.Bucket = bucket
	}
	report, err := doctor.Run(cmd.Context(), &o.config)
	if err != nil {
		return couldNot("%w", err)
	}
	if o.output == "json" {
		err = printJSON(cmd.OutOrStdout(), struct {
			Found   bool          `json:"found"`
			Unknown bool          `json:"unknown"`
			Checks  doctor.Report `json:"checks"`
		}{report.Found(), report.Unknown(), report})
	} else {
		err = printDiagnosis(cmd.OutOrStdout(), report)
	}
	switch {
	case err != nil:
		return couldNot("%w", err)
	case report.Found():
		return &exitError{code: 1}
	case report.Unknown():
		return &exitError{code: 2}
	}
	return nil
}

// connect makes the clients of the cluster. Without a kubeconfig the checks of the
// cluster cannot be made, and say so; the others can.
func (o *doctorOptions) connect() error {
	o.config.Now, o.config.Manifests = time.Now, manifests.Folder
	o.config.Fetch = &http.Client{Timeout: 10 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	objects, err := o.client()
	if err != nil {
		if o.kubeconfig != "" || o.context != "" {
			return err
		}
		return nil
	}
	config := rest.CopyConfig(objects.config)
	config.QPS, config.Burst = 50, 100
	if o.config.Kubernetes, err = kubernetes.NewForConfig(config); err != nil {
		return err
	}
	if o.config.Metadata, err = metadata.NewForConfig(config); err != nil {
		return err
	}
	o.config.Policies = func(ctx context.Context) ([]v1alpha1.AgentPolicy, error) {
		list, err := list[v1alpha1.AgentPolicyList](ctx, objects, policies, "")
		return list.Items, err
	}
	return nil
}

// printDiagnosis shows a line for each check and what it found beneath.
func printDiagnosis(out io.Writer, report doctor.Report) error {
	p := &printer{out: out}
	found, unknown := 0, 0
	for i := range report {
		result := &report[i]
		verdict := "FOUND"
		switch {
		case result.Good():
			verdict = "ok"
		case result.Skipped:
			verdict = "left out"
		case result.Problem != "" && !(doctor.Report{*result}).Found():
			verdict = "UNKNOWN"
		}
		p.line("%-9s%-10s %s", verdict, result.Check, result.Title)
		for _, f := range result.Findings {
			p.finding(f)
			if f.Severity != doctor.Note {
				found++
			}
		}
		if result.Problem != "" {
			unknown++
			p.line("  could not check: %s", inert.Line(result.Problem))
		}
	}
	p.line("%s, %s could not be made in full", count(found, "finding"), count(unknown, "check"))
	return p.err
}

func (p *printer) finding(f doctor.Finding) {
	p.line("  %s: %s %s", f.Severity, inert.Line(f.Object), inert.Line(f.What))
	if f.Why != "" {
		p.line("    why: %s", inert.Line(f.Why))
	}
	if f.Fix != "" {
		p.line("    fix: %s", inert.Line(f.Fix))
	}
}
