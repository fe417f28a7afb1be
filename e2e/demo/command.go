package demo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/taskgate/taskgate/e2e/testbed"
)

// ErrInterrupted is the answer of a command that Ctrl-C ended, and that left
// nothing behind.
var ErrInterrupted = errors.New("interrupted; nothing is left")

// options is what the command line says.
type options struct {
	bed   testbed.Options
	keep  bool
	plain bool
}

// Command is the command line of the demo. The play goes to output; what starts
// and what is in the way goes to progress.
func Command(output, progress io.Writer) *cobra.Command {
	o := new(options)
	command := &cobra.Command{
		Use:   "demo",
		Short: "See taskgate work, on this machine, from an agent's first call to an auditor's proof",
		Long: `Demo starts a Kubernetes control plane, an S3 store with object lock, a broker and
two agents on this machine, plays a few scenes, and checks every one of them. Its
exit code is 0 only if all checks held. At the end everything is gone.

With --keep nothing is played: everything is left running, with an example task,
for you to try. make down stops it.`,
		Args:          cobra.NoArgs,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(command *cobra.Command, _ []string) error {
			o.bed.Progress = progress
			if o.keep {
				return o.leaveRunning(command.Context(), output)
			}
			return o.play(command.Context(), output)
		},
	}
	flags := command.Flags()
	flags.StringVar(&o.bed.Directory, "dir", "", "where everything is written (default a temporary directory; with --keep .testbed in the repository)")
	flags.BoolVar(&o.keep, "keep", false, "play nothing, leave everything running, and say what to try")
	flags.BoolVar(&o.plain, "plain", false, "print the same in every run: no times, ports and random names, no colours")
	flags.StringVar(&o.bed.SPIFFE, "spiffe", testbed.Dev, "who gives identities: dev (attests nothing) or spire (needs root)")
	flags.StringVar(&o.bed.S3, "s3", testbed.VersityGW, "the S3 store: versitygw or minio")
	flags.StringVar(&o.bed.Node, "node", testbed.Kwok, "the node: kwok (a fake one) or none")
	return command
}

// play starts a testbed, plays on it and takes it down again.
func (o *options) play(ctx context.Context, output io.Writer) error {
	if o.bed.Node == testbed.RealNode {
		return errors.New("the shop of the demo runs an image that only a fake node has: play with --node kwok; make up NODE=real starts a real one")
	}
	if o.bed.Directory != "" {
		if bed, err := testbed.Open(o.bed.Directory); err == nil && anyRuns(bed) {
			return fmt.Errorf("something runs in %s: play elsewhere, or make down DIR=%[1]s first", bed.Directory())
		}
	}
	bed, err := o.start(ctx)
	if err != nil {
		return err
	}
	begin := time.Now()
	if err = playOn(ctx, bed, o.screen(output, bed), steps(o.bed.Node)); err == nil {
		o.progress("every check held (%s); stopping everything", time.Since(begin).Round(100*time.Millisecond))
	}
	return o.end(ctx, bed, err)
}

// start starts a testbed in a directory of its own.
func (o *options) start(ctx context.Context) (*testbed.Testbed, error) {
	repository, err := testbed.FindRepository()
	if err != nil {
		return nil, err
	}
	o.bed.Repository = repository
	if o.bed.Directory == "" {
		if o.bed.Directory, err = temporaryDirectory(); err != nil {
			return nil, err
		}
	}
	o.progress("starting a cluster, an object store, a broker and two agents in %s", o.bed.Directory)
	bed, err := testbed.Start(ctx, o.bed)
	switch {
	case err == nil:
		return bed, nil
	case ctx.Err() != nil:
		return nil, cmp.Or(clear(context.WithoutCancel(ctx), o.bed.Directory), ErrInterrupted)
	case os.Remove(o.bed.Directory) == nil: // nothing was written
		return nil, err
	}
	return nil, fmt.Errorf("starting what the demo needs (logs are in %s/log): %w", o.bed.Directory, err)
}

// temporaryDirectory makes a directory that workloads of other uids can reach.
func temporaryDirectory() (string, error) {
	folder, err := os.MkdirTemp("", "taskgate-demo-")
	if err != nil {
		return "", fmt.Errorf("making a directory for the demo: %w", err)
	}
	if err := os.Chmod(folder, 0o755); err != nil {
		return "", fmt.Errorf("opening the demo's directory: %w", err)
	}
	return folder, nil
}

// end takes a testbed down. After a failure its files stay; after an interrupt
// nothing does.
func (o *options) end(ctx context.Context, bed *testbed.Testbed, err error) error {
	const limit = 90 * time.Second
	interrupted := ctx.Err() != nil
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer cancel()
	switch {
	case interrupted:
		return cmp.Or(bed.Remove(ctx), ErrInterrupted)
	case err == nil:
		return bed.Remove(ctx)
	}
	return errors.Join(fmt.Errorf("%w\neverything is stopped; the logs are in %s/log", err, bed.Directory()), bed.Stop(ctx))
}

// clear removes what a start left that was interrupted, and nothing else.
func clear(ctx context.Context, directory string) error {
	err := testbed.Down(ctx, directory)
	if errors.Is(err, testbed.ErrNoTestbed) {
		_ = os.Remove(directory) // which does nothing unless it is empty
		return nil
	}
	return err
}

func (o *options) progress(format string, arguments ...any) {
	_, _ = fmt.Fprintf(o.bed.Progress, format+"\n", arguments...) // progress that nobody sees is no failure
}

func (o *options) screen(output io.Writer, bed *testbed.Testbed) *screen {
	if o.plain {
		return &screen{out: output, stable: stabiliser(bed)}
	}
	return &screen{out: output, colour: isTerminal(output)}
}

// playOn sets the scene on a testbed and plays steps there.
func playOn(ctx context.Context, bed *testbed.Testbed, out *screen, steps []step) error {
	c, err := newCast(bed)
	if err != nil {
		return err
	}
	return perform(ctx, posixShell{c}, out, bed, steps)
}

// perform is the whole play, with any shell.
func perform(ctx context.Context, s shell, out *screen, bed *testbed.Testbed, steps []step) error {
	values := values(bed)
	if err := silently(ctx, s, values, setScene(bed.Options().Node)); err != nil {
		return fmt.Errorf("setting the scene: %w", err)
	}
	out.title(title)
	for _, text := range opening() {
		out.say(text)
	}
	if err := newPlayer(s, out, values).play(ctx, steps); err != nil {
		return err
	}
	out.title("What you have seen")
	for _, text := range closing() {
		out.say(text)
	}
	return nil
}

// silently does acts that nobody sees.
func silently(ctx context.Context, s shell, values map[string]string, acts []act) error {
	p := newPlayer(s, &screen{out: io.Discard}, values)
	for _, a := range acts {
		if err := p.act(ctx, a); err != nil {
			var f *failure
			if errors.As(err, &f) {
				return fmt.Errorf("%s: %w: %s", a.types, err, f.came.output)
			}
			return err
		}
	}
	return nil
}
