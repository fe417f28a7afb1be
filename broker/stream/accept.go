package stream

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"

	"github.com/gorilla/websocket"
	portforwarding "k8s.io/client-go/tools/portforward"
	"k8s.io/klog/v2"
)

// The headers of a SPDY upgrade (k8s.io/streaming, httpstream).
const (
	HeaderProtocol          = "X-Stream-Protocol-Version"
	HeaderWebSocketProtocol = "Sec-Websocket-Protocol"
	upgradeSPDY             = "SPDY/3.1"
)

// Agent is the agent's side of a stream. Who gets one has to Carry it.
type Agent struct {
	side
	portForward bool
}

// Accept answers the agent's upgrade, with the protocol the pod's side agreed to.
// After an error the connection is of no more use; an answer may have been
// written.
func Accept(w http.ResponseWriter, r *http.Request, header http.Header, asked Request, protocol string) (*Agent, error) {
	taken := &hijacker{ResponseWriter: w}
	agent, err := accept(taken, r, header, wants{asked}, protocol)
	if err != nil {
		if taken.at != nil {
			taken.at.Close()
		}
		return nil, fmt.Errorf("answering an upgrade: %w", err)
	}
	return &Agent{side: agent, portForward: asked.PortForward}, nil
}

func accept(w *hijacker, r *http.Request, header http.Header, asked wants, protocol string) (side, error) {
	if !asked.WebSocket {
		in, err := w.acceptSPDY(header, protocol)
		if err != nil {
			return nil, err
		}
		return newSPDY(w.at, in, w.at, false, asked)
	}
	upgrader := websocket.Upgrader{
		Subprotocols: []string{protocol},
		CheckOrigin:  func(*http.Request) bool { return true }, // callers are sidecars with an SVID, and those refuse web pages
	}
	conn, err := upgrader.Upgrade(w, r, header)
	if err != nil {
		return nil, err
	}
	if conn.Subprotocol() != protocol {
		return nil, errors.New("the agent did not ask for the protocol it gets")
	}
	if asked.PortForward {
		return tunnelled(conn, w.at, false, asked)
	}
	return newWebSocket(conn, w.at, protocol, false, asked), nil
}

// tunnelled is SPDY inside of the messages of a WebSocket (KEP-4006).
func tunnelled(conn *websocket.Conn, at *link, pod bool, asked wants) (side, error) {
	conn.SetReadLimit(2 * maxMessage) // one message may hold a whole frame
	tunnel := portforwarding.NewTunnelingConnectionWithLogger(klog.Logger{}, conn)
	s, err := newSPDY(at, tunnel, tunnel, pod, asked)
	if err != nil {
		return nil, err
	}
	return &overTunnel{overSPDY: s, conn: conn}, nil
}

// overTunnel is a SPDY side inside of a WebSocket.
type overTunnel struct {
	*overSPDY
	conn *websocket.Conn
}

func (s *overTunnel) finish(last []byte) error {
	return errors.Join(s.overSPDY.finish(last), sayGoodbye(s.conn))
}

// hijacker takes the connection of a request over, and keeps its link.
type hijacker struct {
	http.ResponseWriter
	at *link
}

// Hijack implements http.Hijacker.
func (h *hijacker) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, buffered, err := http.NewResponseController(h.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	h.at = newLink(conn)
	return h.at, buffered, nil
}

// acceptSPDY answers an upgrade to SPDY, and returns where to read from: the
// server may have read what came behind the request.
func (h *hijacker) acceptSPDY(header http.Header, protocol string) (io.Reader, error) {
	answer := h.Header()
	for name, values := range header {
		answer[name] = values
	}
	answer.Set("Connection", "Upgrade")
	answer.Set("Upgrade", upgradeSPDY)
	answer.Set(HeaderProtocol, protocol)
	h.WriteHeader(http.StatusSwitchingProtocols)
	_, buffered, err := h.Hijack()
	if err != nil {
		return nil, err
	}
	return buffered.Reader, nil
}
