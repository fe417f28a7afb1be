package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/taskgate/taskgate/internal/inert"
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

// no is an answer that is no, couldNot the failure to find one.
func no(format string, args ...any) error { return &exitError{1, fmt.Errorf(format, args...)} }

func couldNot(format string, args ...any) error { return &exitError{2, fmt.Errorf(format, args...)} }

// ExitCode is the exit code for the error of a command.
func ExitCode(err error) int {
	var exit *exitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.code
	}
	return 2
}

// Message is what to print about the error of a command; empty if the command has
// said it. What is in it may come from anywhere.
func Message(err error) string {
	if err == nil {
		return ""
	}
	return inert.Text(err.Error())
}

// Command is the root command. It works as a kubectl plugin too.
func Command() *cobra.Command { return command(isTerminal) }

// command is Command for one idea of what a terminal is.
func command(terminal func(any) bool) *cobra.Command {
	name := "taskgate"
	if strings.HasPrefix(filepath.Base(os.Args[0]), "kubectl-") {
		name = "kubectl taskgate"
	}
	root := &cobra.Command{
		Use:   "taskgate",
		Short: "Give an AI agent a Kubernetes task, not a Kubernetes credential",
		Long: `taskgate is the program for people. What do you want to do?

  As an approver:  see what waits for you              taskgate pending
                   see what exactly is asked           taskgate show NAME
                   say yes or no                       taskgate approve NAME, taskgate deny NAME
  As an operator:  see what agents may do now          taskgate grants
                   take a grant away                   taskgate revoke GRANT
                   stop an agent, a policy, everything taskgate suspend --agent ID|--policy NAME|--all
                   let it go on                        taskgate resume
                   prepare RBAC for a policy           taskgate policy rbac NAME
                   see what is wrong                   taskgate doctor
  As a SPIRE admin: give agents their identities       taskgate spire render, taskgate spire apply
  As an auditor:   prove that the record is whole      taskgate verify
                   read what agents did                taskgate records
                   see what passed in their shells     taskgate streams, taskgate replay AUDIT-ID

Agents do not need it: they use kubectl through their sidecar. Scripts may use
taskgate wait NAME.

Every command acts with your own Kubernetes credential. Under the name
kubectl-taskgate in your PATH it is also kubectl taskgate.

Exit codes: 0 done, 1 the answer is no, 2 it could not be done or told.`,
		SilenceUsage: true, SilenceErrors: true,
		Annotations: map[string]string{cobra.CommandDisplayNameAnnotation: name},
	}
	root.AddGroup(&cobra.Group{ID: forApprovers, Title: "For approvers:"}, &cobra.Group{ID: forOperators, Title: "For operators:"}, &cobra.Group{ID: forAuditors, Title: "For auditors:"})
	group := func(id string, commands ...*cobra.Command) {
		for _, cmd := range commands {
			cmd.GroupID = id
			root.AddCommand(cmd)
		}
	}
	group(forApprovers, pendingCommand(), showCommand(terminal), decideCommand(approving(), terminal), decideCommand(denying(), terminal), waitCommand())
	group(forOperators, grantsCommand(), revokeCommand(), suspendCommand(), resumeCommand(), policyCommand(), spireCommand(), doctorCommand())
	group(forAuditors, verifyCommand(), recordsCommand(), streamsCommand(), replayCommand(terminal))
	root.AddCommand(versionCommand())
	return root
}

const (
	forApprovers = "approvers"
	forOperators = "operators"
	forAuditors  = "auditors"
)

// isTerminal reports whether a person is at the other end of what a command reads
// or writes.
func isTerminal(stream any) bool {
	file, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
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

func firstOf(values ...string) string {
	for _, value := range values {
		if value != "" {
			return value
		}
	}
	return ""
}
