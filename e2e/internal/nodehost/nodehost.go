package nodehost

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/taskgate/taskgate/e2e/internal/cgroups"
	"github.com/taskgate/taskgate/e2e/internal/namespaces"
)

// Config says what the host is made of.
type Config struct {
	Directory string  // stays visible inside, wherever it is
	State     string  // folder for what the node keeps on disk; in Directory
	Socket    string  // where the namespaces are handed out; in Directory
	Cgroup    string  // name of the control group for pods
	Network   Network // of the pods
}

// NewCommand is the command line of the program.
func NewCommand() *cobra.Command {
	var config Config
	command := &cobra.Command{
		Use:           "testbed-node",
		Short:         "Be the machine of a testbed's real node (the testbed starts it, as process 1 of its namespaces)",
		Args:          cobra.NoArgs,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(command *cobra.Command, _ []string) error {
			return Run(command.Context(), config)
		},
	}
	flags := command.Flags()
	flags.StringVar(&config.Directory, "directory", "", "folder that stays visible inside")
	flags.StringVar(&config.State, "state", "", "folder for the node's /var/lib and /var/log")
	flags.StringVar(&config.Socket, "socket", "", "socket that hands out the namespaces")
	flags.StringVar(&config.Cgroup, "cgroup", "", "control group for pods")
	flags.StringVar(&config.Network.Interface, "interface", "", "interface on the machine")
	flags.TextVar(&config.Network.Prefix, "network", config.Network.Prefix, "addresses of the pods, a /24")
	return command
}

// Run makes the host and keeps it until ctx ends. It refuses to run anywhere but
// in namespaces of its own, because it changes those it is in.
func Run(ctx context.Context, config Config) error {
	if os.Getpid() != 1 {
		return errors.New("this program makes sense only as process 1 of namespaces of its own: start a testbed with NODE=real")
	}
	if err := prepareMounts(config.Directory, config.State); err != nil {
		return err
	}
	if err := cgroups.Make(config.Cgroup); err != nil {
		return err
	}
	network, err := config.Network.make(ctx)
	if err != nil {
		return err
	}
	set := namespaces.Set{Network: network}
	if set.Mount, err = os.Open("/proc/self/ns/mnt"); err != nil {
		return fmt.Errorf("opening the mount namespace: %w", err)
	}
	if set.PID, err = os.Open("/proc/self/ns/pid"); err != nil {
		return fmt.Errorf("opening the PID namespace: %w", err)
	}
	// A socket that a killed host left would keep us from listening.
	if err := os.Remove(config.Socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("removing an old socket: %w", err)
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return namespaces.Serve(ctx, config.Socket, set) })
	group.Go(func() error { return reap(ctx) })
	return group.Wait()
}

// reap waits for the children that ended: whoever loses its parent in a PID
// namespace becomes a child of its process 1.
func reap(ctx context.Context) error {
	ended := make(chan os.Signal, 1) // one that waits stands for all
	signal.Notify(ended, syscall.SIGCHLD)
	defer signal.Stop(ended)
	for {
		for {
			pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
			if pid <= 0 && !errors.Is(err, syscall.EINTR) {
				break // nobody else ended, or there are no children
			}
		}
		select {
		case <-ended:
		case <-ctx.Done():
			return nil
		}
	}
}
