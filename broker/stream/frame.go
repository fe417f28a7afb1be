package stream

import (
	"context"
	"errors"
	"time"
)

// Channel is one way of a stream, by the numbers of Kubernetes' remote command
// protocol. A port-forward has three for each connection: Stdin is what goes
// toward the pod, Stdout what comes from it, Error what went wrong there.
type Channel uint8

// The channels (k8s.io/apimachinery, util/remotecommand).
const (
	Stdin Channel = iota
	Stdout
	Stderr
	Error
	Resize
)

// Frame is what is recorded: one piece of one channel.
type Frame struct {
	Time       time.Time
	Connection uint32 // of a port-forward, from 1; 0 otherwise
	Port       uint16 // of the connection
	Channel    Channel
	// End says that nothing more comes on the channel.
	End bool
	// Data is good until Append returns. A frame without data and without End is
	// the opening of a connection.
	Data []byte
}

// Journal is where frames are recorded. Append MUST keep the order of its calls
// and MUST copy Data. An error of it, or of the receipt, means that the frame may
// not be on record; the stream is then cut.
type Journal interface {
	Append(ctx context.Context, f *Frame) (Receipt, error)
}

// Receipt stands for a frame that was appended. Wait MUST return nil only when the
// frame is durable.
type Receipt interface {
	Wait(ctx context.Context) error
}

// Why a stream is ended here, and not by one of its sides.
var (
	ErrProtocol = errors.New("what was sent cannot be understood as the protocol of the stream")
	ErrRecorder = errors.New("the stream cannot be recorded")
	ErrSilent   = errors.New("a side of the stream does not answer")
	ErrBytes    = errors.New("the stream carried as much as one may")
	ErrTime     = errors.New("the stream was open for as long as one may be")
	// ErrBroken says that the stream ended without a word of how the command did:
	// the way to the pod broke.
	ErrBroken = errors.New("the way to the pod broke off")
)

// event is what a side did: a frame, or the opening or the reset of a channel.
type event struct {
	Frame
	// lane is the channel as both sides know it; a connection of a port-forward has
	// one lane for data, in both directions.
	lane   lane
	opens  bool
	resets bool // the channel is given up, not ended in order
	buffer *buffer
}

// lane is one channel of one connection.
type lane struct {
	connection uint32
	channel    Channel
}

// recorded reports whether the event is worth a frame.
func (e *event) recorded(toPod bool) bool {
	switch {
	case len(e.Data) > 0:
		return true
	case e.End:
		return !(toPod && e.lane.channel != Stdin) // clients end at once what they only read
	}
	return e.opens && e.Connection > 0 && e.lane.channel == Stdin
}
