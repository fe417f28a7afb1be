package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime/debug"
	"strconv"
	"strings"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/taskgate/taskgate/sidecar"
)

const help = `sidecar gives the agent in its pod a Kubernetes API endpoint on localhost.

The agent uses it like any cluster, with the kubeconfig (or the in-cluster files)
that the sidecar writes to --agent-dir. Each call goes to the taskgate broker over
mutual TLS under the pod's SPIFFE identity; the broker decides and records it. The
agent never holds a credential that is worth anything outside its pod.

The sidecar starts without the broker, without a grant and even without an
identity: until these are there, calls are answered with what is missing.
"sidecar probe ready" says whether it has an identity.

Every flag can be set by an environment variable: --broker-id by
TASKGATE_BROKER_ID, and so on. A flag wins over its variable.`

const examples = `  # in a pod; the Workload API from $SPIFFE_ENDPOINT_SOCKET
  sidecar --broker broker.taskgate.svc:8443 --broker-id spiffe://example.org/ns/taskgate/sa/broker

  # on a workstation
  sidecar --broker 127.0.0.1:8443 --broker-id spiffe://example.org/broker \
    --workload-api unix:///tmp/agent.sock --state-dir ~/.taskgate/state --agent-dir ~/.taskgate/agent
  kubectl --kubeconfig ~/.taskgate/agent/kubeconfig get pods`

func newCommand() *cobra.Command {
	var config sidecar.Config
	var logLevel string
	command := &cobra.Command{
		Use:               "sidecar",
		Short:             "Give the agent in this pod a Kubernetes API endpoint",
		Long:              help,
		Example:           examples,
		Version:           version(),
		Args:              cobra.NoArgs,
		SilenceUsage:      true,
		SilenceErrors:     true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
		PersistentPreRunE: func(command *cobra.Command, _ []string) error { return fromEnvironment(command.Flags()) },
		RunE: func(command *cobra.Command, _ []string) error {
			level, err := zerolog.ParseLevel(logLevel)
			if err != nil {
				return fmt.Errorf("log-level: %w; use debug, info, warn or error", err)
			}
			config.Log = zerolog.New(os.Stderr).Level(level).With().Timestamp().Logger()
			return sidecar.Run(command.Context(), config)
		},
	}
	flags := command.Flags()
	flags.StringVar(&config.Broker, "broker", "", "where the broker listens, `host:port`; all addresses of the host are tried")
	flags.TextVar(&config.BrokerID, "broker-id", spiffeid.ID{}, "the broker's `SPIFFE ID`; the sidecar talks to no other")
	flags.StringVar(&config.WorkloadAPI, "workload-api", "", "`address` of the SPIFFE Workload API (default $SPIFFE_ENDPOINT_SOCKET)")
	flags.StringVar(&config.Hint, "hint", "", "take the SVID with this `hint` if the Workload API offers several")
	flags.StringSliceVar(&config.Listen, "listen", []string{sidecar.DefaultListen}, "`address` of the agent's HTTPS endpoint, 127.0.0.1 or [::1]; may be repeated")
	flags.StringVar(&config.StateDir, "state-dir", sidecar.DefaultStateDir, "`folder` for the local certificate authority, mounted in no other container")
	flags.StringVar(&config.AgentDir, "agent-dir", sidecar.DefaultAgentDir, "`folder` for the agent's kubeconfig and in-cluster files, mounted under the same path in the agent's containers")
	config.AgentFileMode = sidecar.DefaultAgentFileMode
	flags.Var((*octal)(&config.AgentFileMode), "agent-file-mode", "`mode` of those files; 0644 if the agent runs as another user")
	flags.StringVar(&config.Namespace, "namespace", sidecar.DefaultNamespace, "the agent's default `namespace`")
	flags.StringVar(&config.Grant, "grant", "", "use only the TaskGrant of this `name`")
	flags.DurationVar(&config.Grace, "grace", sidecar.DefaultGrace, "`time` calls under way have to end on shutdown")
	flags.StringVar(&logLevel, "log-level", "info", "debug, info, warn or error")
	command.PersistentFlags().StringVar(&config.Health, "health", sidecar.DefaultHealth, "`address` of the health endpoint, 127.0.0.1 or [::1]")
	command.AddCommand(newProbe(&config.Health))
	return command
}

func newProbe(health *string) *cobra.Command {
	return &cobra.Command{
		Use:       "probe startup|ready|live",
		Short:     "Ask the running sidecar how it is, for exec probes: exit 0 or 1, and a line that says why",
		Args:      cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		ValidArgs: []string{"startup", "ready", "live"},
		RunE: func(command *cobra.Command, args []string) error {
			line, err := sidecar.Probe(command.Context(), *health, args[0])
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(command.OutOrStdout(), line)
			return err
		},
	}
}

// fromEnvironment sets the flags that were not given from their variables.
func fromEnvironment(flags *pflag.FlagSet) error {
	var problems []error
	flags.VisitAll(func(flag *pflag.Flag) {
		variable := "TASKGATE_" + strings.ToUpper(strings.ReplaceAll(flag.Name, "-", "_"))
		value, set := os.LookupEnv(variable)
		if !set || value == "" || flag.Changed || flag.Name == "help" || flag.Name == "version" {
			return
		}
		if err := flags.Set(flag.Name, value); err != nil {
			problems = append(problems, fmt.Errorf("environment variable %s: %w", variable, err))
		}
	})
	return errors.Join(problems...)
}

// octal is a file mode as people write it.
type octal fs.FileMode

func (o *octal) String() string { return fmt.Sprintf("%04o", uint32(*o)) }
func (o *octal) Type() string   { return "mode" }
func (o *octal) Set(text string) error {
	mode, err := strconv.ParseUint(text, 8, 32)
	if err != nil {
		return fmt.Errorf("%q is not an octal file mode such as 0644", text)
	}
	*o = octal(mode)
	return nil
}

// version is what the build recorded (go install module@version, or a commit).
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	for _, setting := range info.Settings {
		if setting.Key == "vcs.revision" && info.Main.Version == "(devel)" {
			return setting.Value
		}
	}
	return info.Main.Version
}
