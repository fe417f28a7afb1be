package stream

import (
	"fmt"
	"io"
	"time"

	"github.com/gorilla/websocket"
	"k8s.io/apimachinery/pkg/util/remotecommand"
)

// maxMessage is the largest message that is taken, in bytes. Clients send 32 KiB.
const maxMessage = 1 << 20

// webSocket is the side of an exec or attach that speaks WebSocket: each message
// begins with the number of its channel.
type webSocket struct {
	conn *websocket.Conn
	at   *link
	v5   bool // channels can end
	pod  bool // the peer is the pod's side
	wants

	message io.Reader // what is left of the message under way
	channel Channel
}

func newWebSocket(conn *websocket.Conn, at *link, protocol string, pod bool, w wants) *webSocket {
	s := &webSocket{conn: conn, at: at, v5: protocol == remotecommand.StreamProtocolV5Name, pod: pod, wants: w}
	conn.SetReadLimit(maxMessage)
	conn.SetPongHandler(func(string) error { return s.at.listen() })
	return s
}

func (s *webSocket) link() *link { return s.at }

func (s *webSocket) read(lend func() (*buffer, error)) (event, error) {
	for s.message == nil {
		if err := s.at.listen(); err != nil {
			return event{}, err
		}
		_, message, err := s.conn.NextReader()
		if err != nil {
			return event{}, err
		}
		if e, whole, err := s.begin(message); whole || err != nil {
			return e, err
		}
	}
	held, err := lend()
	if err != nil {
		return event{}, err
	}
	e := event{Frame: Frame{Channel: s.channel}, lane: lane{channel: s.channel}, buffer: held}
	n, err := io.ReadFull(s.message, held.bytes[1:])
	if err == io.EOF || err == io.ErrUnexpectedEOF { // of the message; that of the connection is another error
		s.message, err = nil, nil
	}
	e.Data = held.bytes[1 : 1+n]
	return e, err
}

// begin reads the number of the channel, and reports whether that was the whole
// message.
func (s *webSocket) begin(message io.Reader) (_ event, whole bool, _ error) {
	var head [1]byte
	if _, err := io.ReadFull(message, head[:]); err != nil {
		if err == io.EOF {
			return event{}, false, nil // an empty message says nothing
		}
		return event{}, false, err
	}
	if head[0] == remotecommand.StreamClose {
		if !s.v5 {
			return event{}, false, nil // some clients say so all the same; servers do not hear it
		}
		e, err := s.readEnd(message)
		return e, true, err
	}
	channel := Channel(head[0])
	if !s.sends(channel, s.pod) {
		return event{}, false, fmt.Errorf("%w: data on channel %d", ErrProtocol, channel)
	}
	s.message, s.channel = message, channel
	return event{}, false, nil
}

// readEnd reads which channel has ended (KEP-4006).
func (s *webSocket) readEnd(message io.Reader) (event, error) {
	var which [2]byte
	n, err := io.ReadFull(message, which[:])
	if err != io.ErrUnexpectedEOF || n != 1 || which[0] > byte(Resize) {
		return event{}, fmt.Errorf("%w: the end of no channel", ErrProtocol)
	}
	channel := Channel(which[0])
	return event{Frame: Frame{Channel: channel, End: true}, lane: lane{channel: channel}}, nil
}

func (s *webSocket) write(e *event) error {
	if e.opens {
		return nil
	}
	if err := s.conn.SetWriteDeadline(time.Now().Add(s.at.silence)); err != nil {
		return err
	}
	if e.End {
		if !s.v5 || !s.pod || e.Channel != Stdin {
			return nil // only a client says so
		}
		return s.conn.WriteMessage(websocket.BinaryMessage, []byte{remotecommand.StreamClose, byte(e.Channel)})
	}
	if e.buffer == nil {
		return s.conn.WriteMessage(websocket.BinaryMessage, append([]byte{byte(e.Channel)}, e.Data...))
	}
	e.buffer.bytes[0] = byte(e.Channel) // in front of the data
	return s.conn.WriteMessage(websocket.BinaryMessage, e.buffer.bytes[:1+len(e.Data)])
}

func (s *webSocket) ping() {
	_ = s.conn.WriteControl(websocket.PingMessage, nil, time.Now().Add(s.at.silence)) // a peer that is gone is found by reading
}

func (s *webSocket) finish(last []byte) error {
	if last != nil {
		if err := s.write(&event{Frame: Frame{Channel: Error, Data: last}}); err != nil {
			return err
		}
	}
	return sayGoodbye(s.conn)
}

func sayGoodbye(conn *websocket.Conn) error {
	normal := websocket.FormatCloseMessage(websocket.CloseNormalClosure, "")
	return conn.WriteControl(websocket.CloseMessage, normal, time.Now().Add(cutTime))
}
