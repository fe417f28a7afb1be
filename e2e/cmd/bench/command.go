package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/taskgate/taskgate/e2e/bench"
	"github.com/taskgate/taskgate/e2e/testbed"
)

// clientGC keeps the garbage collector of the clients out of the way.
const clientGC = 800

type flags struct {
	options        bench.Options
	quick          bool
	json, output   string
	check, publish bool
}

func newCommand() *cobra.Command {
	f := flags{options: bench.Usual()}
	command := &cobra.Command{
		Use:   "bench",
		Short: "Measure what taskgate costs, against the direct path and a plain two-hop proxy",
		Long: `Bench starts a testbed with three ways to one API server and measures them in turn:
directly, through two plain httputil.ReverseProxy processes, and through sidecar
and broker with recording. It prints a table and, for each promise about speed and
memory, whether it is kept. What counts are ratios within the run.

It takes about 25 minutes; nothing else should run on the machine. The method is in
bench/README.md and in the package documentation of e2e/bench.`,
		Example: `  make bench
  go run ./cmd/bench --quick
  go run ./cmd/bench --only get,recording --rounds 20
  go run ./cmd/bench --check --publish`,
		Args: cobra.NoArgs, SilenceErrors: true, SilenceUsage: true,
		RunE: func(command *cobra.Command, _ []string) error { return f.run(command) },
	}
	set := command.Flags()
	set.IntVar(&f.options.Rounds, "rounds", f.options.Rounds, "rounds per kind of call and number of clients")
	set.DurationVar(&f.options.RoundDuration, "round-duration", f.options.RoundDuration, "measured `time` per contender and round")
	set.BoolVar(&f.quick, "quick", false, "a look in passing: few short rounds")
	set.StringSliceVar(&f.options.Only, "only", nil, "measure only these `parts`: "+strings.Join(bench.Parts(), ", "))
	set.StringVar(&f.options.SPIFFE, "spiffe", f.options.SPIFFE, "where identities come from: dev or spire")
	set.StringVar(&f.json, "json", "", "also write everything, rounds included, as JSON to this `file` (- for standard output)")
	set.StringVar(&f.output, "output", "", "`folder` for last.md and last.json (default bench/last in the repository)")
	set.BoolVar(&f.check, "check", false, "exit 1 unless every gate is passed")
	set.BoolVar(&f.publish, "publish", false, "put the table into bench/README.md")
	command.AddCommand(newHop(), newProfile())
	return command
}

// newHop is a process of the twin; people do not call it.
func newHop() *cobra.Command {
	return &cobra.Command{
		Use: "hop FILE", Hidden: true, Args: cobra.ExactArgs(1),
		RunE: func(command *cobra.Command, arguments []string) error {
			config, err := bench.ReadHopConfig(arguments[0])
			if err != nil {
				return err
			}
			return bench.ServeHop(command.Context(), config)
		},
	}
}

func (f *flags) run(command *cobra.Command) error {
	if f.quick {
		asked := f.options
		f.options = asked.Quick()
		if command.Flags().Changed("rounds") {
			f.options.Rounds = asked.Rounds
		}
		if command.Flags().Changed("round-duration") {
			f.options.RoundDuration = asked.RoundDuration
		}
	}
	f.options.Progress = command.ErrOrStderr()
	f.options.Command = strings.Join(append([]string{"bench"}, os.Args[1:]...), " ")
	debug.SetGCPercent(clientGC)
	began := time.Now()
	report, err := bench.Run(command.Context(), f.options)
	if err != nil {
		return err
	}
	report.Took = time.Since(began).Round(time.Second).String()
	if err := f.write(command, report); err != nil {
		return err
	}
	if f.check && report.Failed() {
		return errors.New("not every gate is passed")
	}
	return nil
}

func (f *flags) write(command *cobra.Command, report *bench.Report) error {
	repository, err := testbed.FindRepository()
	if err != nil {
		return err
	}
	if f.output == "" {
		f.output = filepath.Join(repository, "bench", "last")
	}
	if err := bench.WriteFiles(report, f.output); err != nil {
		return err
	}
	if f.publish {
		if err := bench.Publish(report, filepath.Join(repository, "bench", "README.md")); err != nil {
			return err
		}
	}
	if f.json == "-" {
		return bench.WriteJSON(command.OutOrStdout(), report)
	}
	if f.json != "" {
		file, err := os.Create(f.json)
		if err != nil {
			return fmt.Errorf("writing the results: %w", err)
		}
		if err := errors.Join(bench.WriteJSON(file, report), file.Close()); err != nil {
			return err
		}
	}
	_, err = fmt.Fprint(command.OutOrStdout(), report.Markdown())
	return err
}

func newProfile() *cobra.Command {
	options := bench.UsualProfile()
	command := &cobra.Command{
		Use:   "profile",
		Short: "Say where the CPU time of a call and the memory of an idle watch go, in broker and sidecar",
		Long: `Profile builds broker and sidecar so that they serve profiles (no release does), puts
them under load, and prints per call: CPU time by kind of work, the dearest
functions, allocations; and per idle watch: memory by kind, who allocated it, and
which goroutines there are. The raw profiles stay in --output, for go tool pprof.`,
		Example: `  go run ./cmd/bench profile
  go run ./cmd/bench profile --call list --clients 4 --output /tmp/profiles`,
		Args: cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			options.Progress = command.ErrOrStderr()
			debug.SetGCPercent(clientGC)
			return bench.Profile(command.Context(), options, command.OutOrStdout())
		},
	}
	set := command.Flags()
	set.IntVar(&options.Clients, "clients", options.Clients, "clients at once")
	set.DurationVar(&options.Duration, "duration", options.Duration, "`time` under load")
	set.StringVar(&options.Call, "call", options.Call, "get, list or create")
	set.IntVar(&options.Watches, "watches", options.Watches, "idle watches; 0: leave that part out")
	set.IntVar(&options.Lines, "lines", options.Lines, "lines of each list")
	set.StringVar(&options.Output, "output", "", "`folder` for the raw profiles (default: a new one in the system's folder for temporary files)")
	return command
}
