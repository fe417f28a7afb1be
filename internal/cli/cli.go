package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"unicode"

	"github.com/spf13/cobra"
)

// exitError carries the exit code of a command that has said all it has to say.
type exitError struct {
	code int
	err  error // nil if nothing is to be printed
}

func (e *exitError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// ExitCode is the exit code for the error of a command.
func ExitCode(err error) int {
	var exit *exitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.code
	}
	return 1
}

// Command is the root command. It works as a kubectl plugin too.
func Command() *cobra.Command {
	name := "taskgate"
	if strings.HasPrefix(filepath.Base(os.Args[0]), "kubectl-") {
		name = "kubectl taskgate"
	}
	root := &cobra.Command{
		Use:   "taskgate",
		Short: "Give an AI agent a Kubernetes task, not a Kubernetes credential",
		Long: `taskgate is the program for people. What do you want to do?

  As an operator:  see what agents may do now          taskgate grants
                   prepare RBAC for a policy           taskgate policy rbac NAME
  As an auditor:   prove that the record is whole      taskgate verify
                   read what agents did                taskgate records

Agents do not use it: they use kubectl through their sidecar.`,
		SilenceUsage: true, SilenceErrors: true,
		Annotations: map[string]string{cobra.CommandDisplayNameAnnotation: name},
	}
	root.AddCommand(verifyCommand(), recordsCommand(), grantsCommand(), policyCommand(), versionCommand())
	return root
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		Run: func(cmd *cobra.Command, _ []string) {
			version := "development"
			if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
				version = info.Main.Version
			}
			fmt.Fprintln(cmd.OutOrStdout(), "taskgate", version)
		},
	}
}

// safe makes text from elsewhere harmless for a terminal: control characters,
// bidirectional overrides and invisible characters are written as escapes.
func safe(text string) string {
	var out strings.Builder
	for _, r := range text {
		switch {
		case r == unicode.ReplacementChar, !unicode.IsPrint(r):
			fmt.Fprintf(&out, "\\u%04x", r)
		default:
			out.WriteRune(r)
		}
	}
	return out.String()
}

func firstOf(values ...string) string {
	for _, value := range values {
		if value != "" {
			return value
		}
	}
	return ""
}
