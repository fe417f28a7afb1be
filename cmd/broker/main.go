// The broker is the boundary between agents and a cluster. See its --help.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"
	_ "golang.org/x/crypto/x509roots/fallback" // the image has no certificates of its own

	"github.com/taskgate/taskgate/broker"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "broker:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	var path string
	root := &cobra.Command{
		Use:   "broker",
		Short: "Serve agents' sidecars: decide, record, forward",
		Long: `The broker takes calls from the sidecars of agents over mutual TLS (SPIFFE),
lets through what a TaskGrant allows, and records every call before it happens.

Everything is set in one file; broker config prints a commented one. The
credential of the bucket comes from where AWS tools look for it, such as
AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.

It is ready when http://HOST:9090/readyz says so (add ?verbose for the reasons).
SIGTERM lets calls end, seals all records and exits 0; it exits 1 if records had
to stay in the spool, which the next start or broker drain seals.`,
		SilenceUsage: true, SilenceErrors: true, Args: cobra.NoArgs,
		RunE: withConfig(&path, broker.Run),
	}
	root.PersistentFlags().StringVar(&path, "config", "/etc/taskgate/broker.yaml", "path of the configuration `file`")
	root.AddCommand(&cobra.Command{
		Use: "drain", Short: "Seal what earlier starts left in the spool, then exit", Args: cobra.NoArgs,
		RunE: withConfig(&path, broker.Drain),
	}, &cobra.Command{
		Use: "check", Short: "Read the configuration, say what is wrong with it, then exit", Args: cobra.NoArgs,
		RunE: withConfig(&path, func(context.Context, *broker.Configuration, zerolog.Logger) error { return nil }),
	}, &cobra.Command{
		Use: "config", Short: "Print a commented configuration file", Args: cobra.NoArgs,
		Run: func(cmd *cobra.Command, _ []string) { fmt.Fprint(cmd.OutOrStdout(), broker.ExampleConfiguration) },
	})
	return root
}

func withConfig(path *string, run func(context.Context, *broker.Configuration, zerolog.Logger) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, _ []string) error {
		config, err := broker.Load(*path)
		if err != nil {
			return err
		}
		return run(cmd.Context(), config, broker.NewLogger(os.Stderr, config.LogLevel))
	}
}
