// Package doctor looks at an installation and says what is wrong with it, why that
// matters, and how to mend it. taskgate doctor uses it.
//
// It only reads. Each check stands alone: [Run] goes through [Checks] in their
// order, each with a time limit, and one that could not be made is told as such,
// with the reason; it never counts as good. A check is left out only if its name
// is given for that.
package doctor

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"

	"github.com/taskgate/taskgate/api/v1alpha1"
	"github.com/taskgate/taskgate/recorder"
)

// Severity says how bad a finding is.
type Severity string

// Errors mean that something promised does not hold or does not work; warnings
// that it holds less than it could, or that somebody switched it off on purpose.
// Notes are no findings, they only tell.
const (
	Error   Severity = "error"
	Warning Severity = "warning"
	Note    Severity = "note"
)

// Finding is one thing that is wrong. Object and What hold text from the cluster.
type Finding struct {
	Severity Severity `json:"severity"`
	Object   string   `json:"object"`
	What     string   `json:"what"`
	Why      string   `json:"why,omitempty"`
	Fix      string   `json:"fix,omitempty"` // a command, or what to do
}

// Result is the outcome of one check.
type Result struct {
	Check    string    `json:"check"`
	Title    string    `json:"title"`
	Findings []Finding `json:"findings"`
	// Problem says why the check could not be made, wholly or in part.
	Problem string `json:"problem,omitempty"`
	Skipped bool   `json:"skipped,omitempty"`
}

// Good reports whether the check was made and found nothing but notes.
func (r *Result) Good() bool {
	return r.Problem == "" && !r.Skipped && !slices.ContainsFunc(r.Findings, func(f Finding) bool { return f.Severity != Note })
}

// Report is the outcome of all checks.
type Report []Result

// Found reports whether any check found something, Unknown whether one could not be
// made.
func (r Report) Found() bool {
	return slices.ContainsFunc(r, func(result Result) bool {
		return slices.ContainsFunc(result.Findings, func(f Finding) bool { return f.Severity != Note })
	})
}

// Unknown reports whether a check could not be made.
func (r Report) Unknown() bool {
	return slices.ContainsFunc(r, func(result Result) bool { return result.Problem != "" })
}

// Config is what the checks look at. What is missing makes its checks impossible,
// not good.
type Config struct {
	Kubernetes kubernetes.Interface
	Metadata   metadata.Interface
	Policies   func(context.Context) ([]v1alpha1.AgentPolicy, error)
	// Manifests are the YAML files of one folder of manifests/.
	Manifests func(folder string) ([]string, error)

	SystemNamespace string
	BrokerSelector  string   // labels of the broker's pods
	BrokerURLs      []string // instead: where /readyz is, such as http://127.0.0.1:9090
	Fetch           *http.Client

	WorkloadAPI, Hint string
	Bucket            recorder.Bucket
	// Silence is how long a broker may store nothing: more than its heartbeat.
	Silence time.Duration

	Skip    []string
	Timeout time.Duration // of each check
	Now     func() time.Time
}

// Check is one thing to look at. An error says that it could not be told, or not in
// full; findings count all the same.
type Check struct {
	Name, Title string
	look        func(*Config, context.Context) ([]Finding, error)
}

// Checks are all checks, the first things first.
func Checks() []Check {
	return []Check{
		{"decisions", "the policies that make approvals true (control cluster)", (*Config).decisions},
		{"admission", "the policy that judges what agents make (guarded cluster)", (*Config).admission},
		{"injection", "the policies that put a sidecar into agents' pods", (*Config).injection},
		{"broker", "the brokers", (*Config).broker},
		{"policies", "the AgentPolicies", (*Config).policies},
		{"pods", "the pods of agents", (*Config).pods},
		{"network", "the networks of agents", (*Config).network},
		{"tokens", "tokens in agents' namespaces", (*Config).tokens},
		{"identity", "the identity that SPIRE gives here", (*Config).identity},
		{"bucket", "the locks of the bucket", (*Config).bucket},
		{"journals", "the brokers' journals in the bucket", (*Config).journals},
	}
}

// Run makes the checks.
func Run(ctx context.Context, config *Config) (Report, error) {
	checks := Checks()
	for _, name := range config.Skip {
		if !slices.ContainsFunc(checks, func(c Check) bool { return c.Name == name }) {
			return nil, fmt.Errorf("there is no check %q", name)
		}
	}
	var report Report
	for _, check := range checks {
		report = append(report, check.run(ctx, config))
	}
	return report, nil
}

func (c Check) run(ctx context.Context, config *Config) Result {
	result := Result{Check: c.Name, Title: c.Title, Findings: []Finding{}}
	if slices.Contains(config.Skip, c.Name) {
		result.Skipped = true
		return result
	}
	ctx, cancel := context.WithTimeout(ctx, config.Timeout)
	defer cancel()
	findings, err := c.look(config, ctx)
	result.Findings = append(result.Findings, findings...)
	if err == nil {
		err = ctx.Err() // whatever it found in that time is not all
	}
	if err != nil {
		result.Problem = err.Error()
	}
	return result
}
