package stream_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	gorilla "github.com/gorilla/websocket"
	corev1 "k8s.io/api/core/v1"
	portforwardconstants "k8s.io/apimachinery/pkg/util/portforward"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	clientspdy "k8s.io/client-go/transport/spdy"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"

	"github.com/taskgate/taskgate/broker/stream"
)

// forward echoes every connection in upper case, and refuses port 9.
func forward(streams <-chan httpstream.Stream) {
	errorsOf := map[string]httpstream.Stream{}
	for s := range streams {
		id := s.Headers().Get(corev1.PortForwardRequestIDHeader)
		if s.Headers().Get(corev1.StreamType) == corev1.StreamTypeError {
			errorsOf[id] = s
			continue
		}
		failed := errorsOf[id]
		go func() {
			defer s.Close()
			defer failed.Close()
			if s.Headers().Get(corev1.PortHeader) == "9" {
				fmt.Fprint(failed, "nobody listens on 9")
				s.Reset()
				return
			}
			data, err := io.ReadAll(s)
			if err == nil {
				_, _ = io.WriteString(s, strings.ToUpper(string(data)))
			}
		}()
	}
}

func servePorts(w http.ResponseWriter, in *http.Request) {
	if _, err := httpstream.Handshake(in, w, []string{portforwardconstants.PortForwardV1Name}); err != nil {
		return
	}
	streams := make(chan httpstream.Stream, 100)
	defer close(streams)
	conn := spdy.NewResponseUpgrader().UpgradeResponse(w, in, func(s httpstream.Stream, _ <-chan struct{}) error { streams <- s; return nil })
	if conn == nil {
		return
	}
	defer conn.Close()
	go forward(streams)
	<-conn.CloseChan()
	time.Sleep(50 * time.Millisecond) // the library may still hand over streams
}

func serveTunnel(w http.ResponseWriter, in *http.Request) {
	upgrader := gorilla.Upgrader{Subprotocols: []string{portforwardconstants.WebsocketsSPDYTunnelingPortForwardV1}}
	conn, err := upgrader.Upgrade(w, in, nil)
	if err != nil {
		return
	}
	streams := make(chan httpstream.Stream, 100)
	defer close(streams)
	tunnelled, err := spdy.NewServerConnection(portforward.NewTunnelingConnection("pod", conn), func(s httpstream.Stream, _ <-chan struct{}) error { streams <- s; return nil })
	if err != nil {
		return
	}
	defer tunnelled.Close()
	go forward(streams)
	<-tunnelled.CloseChan()
	time.Sleep(50 * time.Millisecond)
}

// forwarder runs client-go's port forwarder and returns the local addresses.
func (r *rig) forwarder(webSocket bool, ports ...string) (addresses []string, stop func()) {
	r.Helper()
	config := &rest.Config{Host: r.broker.URL}
	target, err := url.Parse(r.broker.URL + "/api/v1/namespaces/shop/pods/web-0/portforward")
	if err != nil {
		r.Fatal(err)
	}
	dialer, err := portforward.NewSPDYOverWebsocketDialer(target, config)
	if !webSocket {
		roundTripper, upgrader, spdyErr := clientspdy.RoundTripperFor(config)
		dialer, err = clientspdy.NewDialer(upgrader, &http.Client{Transport: roundTripper}, http.MethodPost, target), spdyErr
	}
	if err != nil {
		r.Fatal(err)
	}
	stopped, ready, done := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	pf, err := portforward.New(dialer, ports, stopped, ready, io.Discard, io.Discard)
	if err != nil {
		r.Fatal(err)
	}
	go func() { done <- pf.ForwardPorts() }()
	select {
	case <-ready:
	case err := <-done:
		r.Fatalf("forwarding: %v", err)
	}
	forwarded, err := pf.GetPorts()
	if err != nil {
		r.Fatal(err)
	}
	for _, port := range forwarded {
		addresses = append(addresses, fmt.Sprintf("127.0.0.1:%d", port.Local))
	}
	return addresses, func() { close(stopped); <-done }
}

func exchange(t *testing.T, address, text string) string {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
	_ = conn.(*net.TCPConn).CloseWrite()
	answer, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	return string(answer)
}

// TestPortForward: connections are numbered, their data recorded in both
// directions, over SPDY and over its tunnel.
func TestPortForward(t *testing.T) {
	for _, webSocket := range []bool{true, false} {
		t.Run(fmt.Sprintf("webSocket=%v", webSocket), func(t *testing.T) {
			r := newRig(t, nil)
			addresses, stop := r.forwarder(webSocket, "0:80", "0:443")
			big := pattern(300_000)
			for i, text := range []string{"hello", big, "bye"} {
				if got := exchange(t, addresses[i%2], text); got != strings.ToUpper(text) {
					t.Fatalf("connection %d: %d bytes came back: %.40q", i+1, len(got), got)
				}
				connection := uint32(i + 1)
				if in, out := r.journal.data(stream.Stdin, connection), r.journal.data(stream.Stdout, connection); in != text || out != strings.ToUpper(text) {
					t.Errorf("connection %d: on record are %d and %d bytes", connection, len(in), len(out))
				}
			}
			stop()
			outcome := r.outcome()
			if outcome.Cause != nil || outcome.AgentLeft || outcome.FromAgent != int64(len(big)+8) || outcome.FromPod != outcome.FromAgent {
				t.Errorf("%+v", outcome)
			}
			for _, f := range r.journal.frames {
				if want := map[uint32]uint16{1: 80, 2: 443, 3: 80}[f.Connection]; f.Port != want {
					t.Errorf("a frame of connection %d has port %d", f.Connection, f.Port)
				}
			}
		})
	}
}

// TestPortRefused: what goes wrong in the pod is relayed and recorded.
func TestPortRefused(t *testing.T) {
	for _, webSocket := range []bool{true, false} {
		r := newRig(t, nil)
		addresses, stop := r.forwarder(webSocket, "0:9")
		conn, err := net.Dial("tcp", addresses[0])
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		if n, _ := conn.Read(make([]byte, 1)); n != 0 {
			t.Error("data came from a port nobody listens on")
		}
		conn.Close()
		r.outcome()
		stop()
		if said := r.journal.data(stream.Error, 1); said != "nobody listens on 9" {
			t.Errorf("on record: %q", said)
		}
	}
}
