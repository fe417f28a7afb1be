// Package devidentity is the stand-in for SPIRE of a quick start: SPIFFE
// identities from a throw-away authority, for whoever asks.
//
// It attests nothing. Every workload has a socket of its own, and whoever can
// open that socket gets the identity. The authority lives in memory: a restart
// makes a new one, which trusts none of the identities given out before.
package devidentity

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/taskgate/taskgate/internal/spiffetest"
)

// Config says whom to serve.
type Config struct {
	TrustDomain string
	Sockets     string        // folder; the socket of a workload is NAME.sock in it
	Bundle      string        // file for the trust bundle, in the SPIFFE format
	TTL         time.Duration // of an SVID
	Workloads   []string      // NAME=SPIFFE-ID
}

// NewCommand is the command line of the program.
func NewCommand(output io.Writer) *cobra.Command {
	var config Config
	command := &cobra.Command{
		Use:           "dev-workload-api NAME=SPIFFE-ID...",
		Short:         "Give SPIFFE identities to whoever asks (for testbeds; attests nothing)",
		Args:          cobra.MinimumNArgs(1),
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(command *cobra.Command, workloads []string) error {
			config.Workloads = workloads
			return Run(command.Context(), config, output)
		},
	}
	command.Flags().StringVar(&config.TrustDomain, "trust-domain", "example.org", "the SPIFFE trust domain")
	command.Flags().StringVar(&config.Sockets, "sockets", ".", "folder for the sockets, one per workload")
	command.Flags().StringVar(&config.Bundle, "bundle", "bundle.json", "file the trust bundle is written to")
	command.Flags().DurationVar(&config.TTL, "ttl", time.Hour, "life of an SVID")
	return command
}

// Run serves until ctx ends. The trust bundle is written before the first
// socket opens, and the sockets open in the order given.
func Run(ctx context.Context, config Config, output io.Writer) error {
	if _, err := fmt.Fprintln(output, "WARNING: this program attests nothing; whoever opens a socket gets its identity"); err != nil {
		return err
	}
	authority, err := spiffetest.NewCA(config.TrustDomain)
	if err != nil {
		return fmt.Errorf("making the authority: %w", err)
	}
	bundle, err := authority.BundleJSON()
	if err != nil {
		return fmt.Errorf("encoding the trust bundle: %w", err)
	}
	if err := os.WriteFile(config.Bundle, bundle, 0o644); err != nil {
		return fmt.Errorf("writing the trust bundle: %w", err)
	}
	for _, workload := range config.Workloads {
		name, id, err := parse(workload)
		if err != nil {
			return err
		}
		server, err := authority.ServeTTL(ctx, filepath.Join(config.Sockets, name+".sock"), config.TTL, id)
		if err != nil {
			return fmt.Errorf("serving %s: %w", name, err)
		}
		defer server.Close()
	}
	<-ctx.Done()
	return nil
}

func parse(workload string) (string, spiffeid.ID, error) {
	name, text, found := strings.Cut(workload, "=")
	if !found || name == "" || strings.ContainsRune(name, filepath.Separator) {
		return "", spiffeid.ID{}, fmt.Errorf("%q is not of the form NAME=SPIFFE-ID", workload)
	}
	id, err := spiffeid.FromString(text)
	if err != nil {
		return "", spiffeid.ID{}, fmt.Errorf("reading the identity of %s: %w", name, err)
	}
	return name, id, nil
}
