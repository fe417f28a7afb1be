package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/taskgate/taskgate/internal/inert"
	"github.com/taskgate/taskgate/recorder"
)

type replayOptions struct {
	place
	terminal   func(any) bool
	speed      float64
	idleLimit  time.Duration
	typed      bool
	cast, raw  string
	connection uint32
	output     string
}

func replayCommand(terminal func(any) bool) *cobra.Command {
	o := replayOptions{terminal: terminal}
	cmd := &cobra.Command{
		Use:   "replay AUDIT-ID [PLACE]",
		Short: "Play back what was typed and printed in a stream",
		Long: `Replay shows a recorded exec or attach as it was, from the chunks that the
journal names and that have the hash it says. In a terminal it plays: space
pauses, the right and left arrow go five seconds on or back, q ends it. What is
printed is text, colours and movements of the cursor; anything else a terminal
would act on is left out. If the output is no terminal, the text comes at once.

What the agent typed is not shown (a terminal had echoed it) unless you ask with
--stdin. Of a kubectl cp (a tar over exec) it shows the names, sizes and SHA-256
of the files, of a port-forward its connections. --raw writes the bytes of one
channel exactly as they were: the tar of a copy, for example.

` + placeHelp + `

Exit code 0: all of it. 1: it is not complete; what is missing is said. 2: it
could not be read.`,
		Example: `  taskgate streams s3://records --endpoint https://s3.example.org
  taskgate replay 4bd5c1de-8e5f-4a3b-9d0c-0f6c9a7f2b11 s3://records --endpoint https://s3.example.org
  taskgate replay 4bd5c1de-8e5f-4a3b-9d0c-0f6c9a7f2b11 ./copy --cast exec.cast
  taskgate replay 4bd5c1de-8e5f-4a3b-9d0c-0f6c9a7f2b11 ./copy --raw stdout | tar -t`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error { return o.run(cmd, args) },
	}
	o.place.flags(cmd)
	flags := cmd.Flags()
	flags.Float64Var(&o.speed, "speed", 1, "how many times as fast")
	flags.DurationVar(&o.idleLimit, "idle-limit", 2*time.Second, "longest pause; 0 for as long as they were")
	flags.BoolVar(&o.typed, "stdin", false, "show what was typed, too")
	flags.StringVar(&o.cast, "cast", "", "write an asciicast v2 to this `file`, - for standard output; whatever was printed is in it, so play it where a terminal cannot be harmed")
	flags.StringVar(&o.raw, "raw", "", "write the exact bytes of one `channel`: stdin, stdout, stderr, error or resize; of a port-forward stdin is toward the pod")
	flags.Uint32Var(&o.connection, "connection", 0, "`number` of the connection of a port-forward, for --raw")
	flags.StringVarP(&o.output, "output", "o", "text", "text, or json for what is known about the stream instead of what passed in it")
	return cmd
}

// frames are what is replayed.
type frames = iter.Seq2[*recorder.Frame, error]

func (o *replayOptions) run(cmd *cobra.Command, args []string) error {
	if !(o.speed > 0) || o.idleLimit < 0 {
		return errors.New("--speed must be more than zero, and --idle-limit not less")
	}
	if o.output != "text" && o.output != "json" {
		return fmt.Errorf("--output is text or json, not %q", o.output)
	}
	channel, err := channelNamed(o.raw)
	if err != nil {
		return err
	}
	bucket, done, err := o.open(args[1:])
	if err != nil {
		return err
	}
	defer done()
	recording, err := recorder.FindRecording(cmd.Context(), bucket, args[0])
	if errors.Is(err, recorder.ErrNotFound) {
		return no("%w; see taskgate streams, and taskgate records for calls that are no streams", err)
	}
	if err != nil {
		return couldNot("%w", err)
	}
	err = o.show(cmd, sessionOf(recording), channel, recording.Frames(cmd.Context(), bucket))
	if errors.Is(err, recorder.ErrIncomplete) {
		return no("%w", err)
	}
	return err
}

func channelNamed(name string) (recorder.Channel, error) {
	var names []string
	for channel := recorder.Stdin; channel <= recorder.Resize; channel++ {
		if name == "" || name == channel.String() || name == strconv.Itoa(int(channel)) {
			return channel, nil
		}
		names = append(names, channel.String())
	}
	return 0, fmt.Errorf("--raw is one of %v, not %q", names, name)
}

// show does what was asked for. What is incomplete is shown as far as it goes.
func (o *replayOptions) show(cmd *cobra.Command, s *session, channel recorder.Channel, all frames) error {
	out, tty := cmd.OutOrStdout(), o.terminal(cmd.OutOrStdout())
	archive, isArchive := s.archive()
	switch {
	case o.raw != "" && tty:
		return errors.New("raw bytes are not for a terminal; send them to a file or another program")
	case o.raw != "":
		return o.writeRaw(out, s, channel, all)
	case o.cast == "-":
		return writeCast(out, s, all)
	case o.cast != "":
		return castTo(o.cast, s, all)
	case o.output == "json":
		return printSummary(out, s, all)
	case isArchive:
		return printFiles(out, s, archive, all)
	case s.Kind == "portforward":
		return printConnections(out, s, all)
	case tty:
		return o.play(cmd.Context(), out, s, all)
	}
	return o.print(out, all)
}

// writeRaw writes one channel as it was.
func (o *replayOptions) writeRaw(out io.Writer, s *session, channel recorder.Channel, all frames) error {
	if forward := s.Kind == "portforward"; forward != (o.connection > 0) {
		return errors.New("--connection is for a port-forward, which needs it: without --raw its connections are listed")
	}
	_, err := io.Copy(out, newChannelReader(all, channel, o.connection))
	return err
}

func castTo(name string, s *session, all frames) error {
	file, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600) // it may hold what nobody should see
	if err != nil {
		return fmt.Errorf("writing the asciicast: %w", err)
	}
	return errors.Join(writeCast(file, s, all), file.Close())
}

// print writes the text at once, without what a terminal would act on.
func (o *replayOptions) print(out io.Writer, all frames) error {
	buffered := bufio.NewWriter(out)
	screens := map[recorder.Channel]*inert.Screen{}
	var text []byte
	err := each(all, func(f *recorder.Frame) error {
		if !o.visible(f.Channel) {
			return nil
		}
		if screens[f.Channel] == nil {
			screens[f.Channel] = &inert.Screen{Plain: true}
		}
		text = screens[f.Channel].Append(text[:0], f.Data)
		_, err := buffered.Write(text)
		return err
	})
	for _, screen := range screens {
		_, _ = buffered.Write(screen.Flush(nil)) // Flush tells
	}
	return errors.Join(err, buffered.Flush())
}

// visible tells whether a channel is shown on a screen.
func (o *replayOptions) visible(channel recorder.Channel) bool {
	return channel == recorder.Stdout || channel == recorder.Stderr || channel == recorder.Stdin && o.typed
}

// each calls visit for the frames up to the first error.
func each(all frames, visit func(*recorder.Frame) error) error {
	for f, err := range all {
		if err == nil {
			err = visit(f)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// connection is what passed in one connection of a port-forward.
type connection struct {
	Connection uint32    `json:"connection"`
	Port       uint16    `json:"port"`
	Begin      time.Time `json:"begin"`
	End        time.Time `json:"end"` // of the last frame
	ToPod      uint64    `json:"toPod"`
	FromPod    uint64    `json:"fromPod"`
	Error      string    `json:"error,omitempty"`
}

// maxConnections bounds what is listed of one port-forward.
const maxConnections = 100_000

func connections(all frames) ([]*connection, error) {
	found := map[uint32]*connection{}
	var order []*connection
	err := each(all, func(f *recorder.Frame) error {
		c := found[f.Connection]
		if c == nil {
			if len(found) == maxConnections {
				return fmt.Errorf("there are more than %d connections", maxConnections)
			}
			c = &connection{Connection: f.Connection, Port: f.Port, Begin: f.Time.UTC()}
			found[f.Connection], order = c, append(order, c)
		}
		c.End = f.Time.UTC()
		switch f.Channel {
		case recorder.Stdin:
			c.ToPod += uint64(len(f.Data))
		case recorder.Stdout:
			c.FromPod += uint64(len(f.Data))
		case recorder.ErrorChannel:
			c.Error += string(f.Data[:min(len(f.Data), 1000-min(1000, len(c.Error)))])
		}
		return nil
	})
	return order, err
}

func printConnections(out io.Writer, s *session, all frames) error {
	p := &printer{out: out}
	p.line("%s", inert.Line(s.what()))
	list, err := connections(all)
	for _, c := range list {
		line := fmt.Sprintf("connection %d to port %d: %s for %s, %d bytes to the pod, %d from it", c.Connection, c.Port, c.Begin.Format(time.RFC3339),
			c.End.Sub(c.Begin).Round(time.Millisecond), c.ToPod, c.FromPod)
		if c.Error != "" {
			line += ", error: " + c.Error
		}
		p.line("%s", inert.Line(line))
	}
	return errors.Join(p.err, err)
}

// printSummary tells what is known about a stream, as JSON.
func printSummary(out io.Writer, s *session, all frames) error {
	summary := struct {
		*session
		Files       []archived    `json:"files,omitempty"`
		Connections []*connection `json:"connections,omitempty"`
		Incomplete  string        `json:"incomplete,omitempty"`
	}{session: s}
	var err error
	channel, isArchive := s.archive()
	switch {
	case isArchive:
		summary.Files, err = files(all, channel)
	case s.Kind == "portforward":
		summary.Connections, err = connections(all)
	default:
		err = each(all, func(*recorder.Frame) error { return nil })
	}
	if err != nil && !errors.Is(err, recorder.ErrIncomplete) && !errors.Is(err, errNoArchive) {
		return err
	}
	if err != nil {
		summary.Incomplete = err.Error()
	}
	return errors.Join(printJSON(out, summary), err)
}

// play shows the stream in a terminal.
func (o *replayOptions) play(ctx context.Context, out io.Writer, s *session, all frames) error {
	keys, done, err := readKeys()
	if err != nil {
		return err
	}
	defer done()
	p := &player{out: out, frames: all, visible: o.visible, speed: o.speed, idle: o.idleLimit, newlines: keys != nil && !s.TTY}
	return p.play(ctx, keys)
}

// channelReader reads the bytes of one channel. Its frames are read up to the end,
// so that what is missing is noticed.
type channelReader struct {
	next func() (*recorder.Frame, error, bool)
	stop func()
	want func(*recorder.Frame) bool
	rest []byte
	err  error
}

func newChannelReader(all frames, channel recorder.Channel, connection uint32) *channelReader {
	next, stop := iter.Pull2(all)
	return &channelReader{next: next, stop: stop, want: func(f *recorder.Frame) bool {
		return f.Channel == channel && f.Connection == connection
	}}
}

// Read implements io.Reader.
func (r *channelReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 && r.err == nil {
		f, err, ok := r.next()
		switch {
		case !ok:
			r.err = io.EOF
		case err != nil:
			r.err = err
		case r.want(f):
			r.rest = slices.Clone(f.Data)
		}
	}
	if len(r.rest) == 0 {
		r.stop()
		return 0, r.err
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}
