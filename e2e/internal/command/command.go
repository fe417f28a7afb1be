// Package command is the command line of the testbed: up, down, status, and
// taking single components away and back for fault tests.
package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/taskgate/taskgate/e2e/testbed"
)

// defaultFolder is where the testbed lives inside the repository.
const defaultFolder = ".testbed"

// New is the root command. Progress and results go to output.
func New(output io.Writer) *cobra.Command {
	var directory string
	root := &cobra.Command{
		Use:   "testbed",
		Short: "A real Kubernetes control plane, SPIFFE identities, an S3 store and taskgate, on this machine",
		Long: `A testbed is what taskgate needs around it, all of it real: etcd and kube-apiserver,
a fake node whose pods run at once or a real one, SPIRE (or a stand-in), an S3 store with object
lock, a broker, and two agents, alpha and beta, each behind its own sidecar.

Everything runs on loopback, on ports that are free, and writes into one directory.
The programs are built from source when they are missing, which takes about 25
minutes the first time, and are kept in ~/.cache/taskgate/testbed. To use programs
of your own, point TASKGATE_TESTBED_BIN (or KUBEBUILDER_ASSETS) at their folder.`,
		Example: `  testbed up
  source .testbed/env
  kubectl --kubeconfig "$TASKGATE_ADMIN_KUBECONFIG" get nodes
  testbed down`,
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			return completeDirectory(&directory)
		},
	}
	root.PersistentFlags().StringVar(&directory, "dir", "", "the testbed's directory (default .testbed in the root of the repository)")
	root.SetOut(output)
	root.AddCommand(newUp(&directory), newDown(&directory), newStatus(&directory), newBuild())
	root.AddCommand(newControls(&directory)...)
	return root
}

func completeDirectory(directory *string) error {
	if *directory != "" {
		return nil
	}
	repository, err := testbed.FindRepository()
	if err != nil {
		return fmt.Errorf("%w, or say --dir", err)
	}
	*directory = filepath.Join(repository, defaultFolder)
	return nil
}

func newBuild() *cobra.Command {
	return &cobra.Command{
		Use:   "build",
		Short: "Build the programs any testbed needs, as far as they are missing, and start nothing",
		Args:  cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			if err := testbed.BuildTools(command.Context(), command.OutOrStdout()); err != nil {
				return err
			}
			command.Println("every program is there")
			return nil
		},
	}
}

func newDown(directory *string) *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "Stop the testbed and remove its directory, also after a crash",
		Args:  cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			err := testbed.Down(command.Context(), *directory)
			if errors.Is(err, testbed.ErrNoTestbed) {
				command.Println("no testbed in", *directory)
				return nil
			}
			if err == nil {
				command.Println("the testbed in", *directory, "is gone")
			}
			return err
		},
	}
}

func newStatus(directory *string) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Say which components run; the exit code is 1 unless all do",
		Args:  cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			bed, err := testbed.Open(*directory)
			if err != nil {
				return err
			}
			return printStatus(command.OutOrStdout(), bed)
		},
	}
}

func printStatus(output io.Writer, bed *testbed.Testbed) error {
	for _, component := range bed.Components() {
		state := "stopped"
		if pid := component.PID(); pid != 0 {
			state = fmt.Sprintf("running, process %d", pid)
		}
		if _, err := fmt.Fprintf(output, "%-26s%s\n", component.Name(), state); err != nil {
			return err
		}
	}
	return problem(bed)
}

// problem answers nil when the testbed is entirely up.
func problem(bed *testbed.Testbed) error {
	if !bed.Complete() {
		return fmt.Errorf("the testbed in %s never came up entirely: take it down", bed.Directory())
	}
	for _, component := range bed.Components() {
		if component.PID() == 0 {
			return fmt.Errorf("%[1]s does not run (its log is %[2]s): run testbed start %[1]s, or take the testbed down", component.Name(), component.Log())
		}
	}
	return nil
}

// newControls are the commands for one component.
func newControls(directory *string) []*cobra.Command {
	build := func(use, short string, do func(context.Context, testbed.Component) error) *cobra.Command {
		return &cobra.Command{
			Use:     use + " COMPONENT...",
			Short:   short,
			Example: fmt.Sprintf("  testbed %s broker-0\n  testbed %[1]s s3", use),
			Args:    cobra.MinimumNArgs(1),
			RunE: func(command *cobra.Command, names []string) error {
				return testbed.Control(*directory, func(bed *testbed.Testbed) error {
					var errs []error
					for _, name := range names {
						errs = append(errs, do(command.Context(), bed.Component(name)))
					}
					return errors.Join(errs...)
				})
			},
		}
	}
	return []*cobra.Command{
		build("stop", "Stop single components, and leave the rest running",
			func(ctx context.Context, c testbed.Component) error { return c.Stop(ctx) }),
		build("kill", "Kill single components with SIGKILL",
			func(_ context.Context, c testbed.Component) error { return c.Kill() }),
		build("start", "Start single components again, on the same ports and data",
			func(ctx context.Context, c testbed.Component) error { return c.Start(ctx) }),
		build("restart", "Stop and start single components",
			func(ctx context.Context, c testbed.Component) error { return c.Restart(ctx) }),
	}
}
