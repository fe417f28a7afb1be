package stream

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// Request is what a call asks to open, as it was parsed.
type Request struct {
	// WebSocket says that the agent asked for it, and not for SPDY/3.1.
	WebSocket   bool
	PortForward bool // and not exec or attach
	Stdin       bool
	Stdout      bool
	Stderr      bool
	TTY         bool
	// Ports that a port-forward may reach; empty means all, as clients that use
	// SPDY name none before they open a connection.
	Ports []uint16
}

// wants is what may be said on a stream.
type wants struct{ Request }

// The headers by which clients say what a SPDY stream is for, and their words for
// it (k8s.io/api/core/v1).
const (
	headerStreamType = corev1.StreamType
	headerPort       = corev1.PortHeader
	headerRequestID  = corev1.PortForwardRequestIDHeader
	typeData         = corev1.StreamTypeData
	typeError        = corev1.StreamTypeError
)

// sends reports whether data on a channel may come from a side.
func (w *wants) sends(channel Channel, pod bool) bool {
	switch channel {
	case Stdin:
		return !pod && w.Stdin
	case Resize:
		return !pod
	case Stdout, Stderr, Error:
		return pod
	}
	return false
}

// channelOf is the channel of a stream type that was asked for.
func (w *wants) channelOf(kind string) (Channel, bool) {
	switch kind {
	case corev1.StreamTypeStdin:
		return Stdin, w.Stdin
	case corev1.StreamTypeStdout:
		return Stdout, w.Stdout
	case corev1.StreamTypeStderr:
		return Stderr, w.Stderr && !w.TTY
	case corev1.StreamTypeError:
		return Error, true
	case corev1.StreamTypeResize:
		return Resize, w.TTY
	}
	return 0, false
}

// typeOf is the inverse of channelOf, and of what connections have.
func typeOf(l lane) string {
	if l.connection > 0 && l.channel == Stdin {
		return typeData
	}
	switch l.channel {
	case Stdin:
		return corev1.StreamTypeStdin
	case Stdout:
		return corev1.StreamTypeStdout
	case Stderr:
		return corev1.StreamTypeStderr
	case Resize:
		return corev1.StreamTypeResize
	}
	return typeError
}

func (w *wants) mayReach(port uint16) bool {
	return len(w.Ports) == 0 || slices.Contains(w.Ports, port)
}
