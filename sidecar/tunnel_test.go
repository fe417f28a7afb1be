package sidecar_test

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"
)

const upgradeToExec = "GET /api/v1/namespaces/shop/pods/web-0/exec?command=ls&stdout=true HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\n" +
	"Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n"

// switching is a broker that switches, says hello in the same packet, and then does
// what it is told.
func (s *stack) switching(then func(*tls.Conn, *bufio.Reader)) (served <-chan struct{}) {
	done := make(chan struct{})
	s.broker.handle(func(w http.ResponseWriter, _ *http.Request) {
		defer close(done)
		conn, in, err := http.NewResponseController(w).Hijack()
		if err != nil {
			s.t.Error(err)
			return
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(patience))
		io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\nAudit-Id: a-1\r\n\r\nhello")
		then(conn.(*tls.Conn), in.Reader)
	})
	return done
}

func (s *stack) upgrade(t *testing.T) (*tls.Conn, *bufio.Reader) {
	t.Helper()
	conn := s.dialTLS(t, "http/1.1")
	fmt.Fprintf(conn, upgradeToExec, s.token)
	in := bufio.NewReader(conn)
	answer, err := http.ReadResponse(in, nil)
	if err != nil || answer.StatusCode != http.StatusSwitchingProtocols || answer.Header.Get("X-Stream-Protocol-Version") != "v4.channel.k8s.io" || answer.Header.Get("Audit-Id") != "a-1" {
		t.Fatalf("%v %+v", err, answer)
	}
	return conn, in
}

// TestTunnel: after a switch bytes pass both ways, and each end of a direction is
// passed on by itself.
func TestTunnel(t *testing.T) {
	s := newStack(t)
	big := strings.Repeat("0123456789", 100_000)
	served := s.switching(func(conn *tls.Conn, in *bufio.Reader) {
		if got, err := io.ReadAll(in); err != nil || string(got) != big {
			t.Errorf("the broker read %d bytes: %v", len(got), err)
		}
		io.WriteString(conn, big)
		conn.CloseWrite()
	})
	conn, in := s.upgrade(t)
	go func() {
		io.WriteString(conn, big)
		conn.CloseWrite()
	}()
	if got, err := io.ReadAll(in); err != nil || string(got) != "hello"+big {
		t.Errorf("the agent read %d bytes: %v", len(got), err)
	}
	<-served
}

// TestTunnelEnds: if one end breaks, the other is closed, and a sidecar that shuts
// down closes both.
func TestTunnelEnds(t *testing.T) {
	s := newStack(t)
	served := s.switching(func(conn *tls.Conn, in *bufio.Reader) { conn.NetConn().Close() })
	_, in := s.upgrade(t)
	if _, err := io.Copy(io.Discard, in); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the agent's connection stays open")
	}
	<-served

	served = s.switching(func(_ *tls.Conn, in *bufio.Reader) { io.Copy(io.Discard, in) })
	conn, _ := s.upgrade(t)
	conn.NetConn().Close()
	<-served

	served = s.switching(func(_ *tls.Conn, in *bufio.Reader) { io.Copy(io.Discard, in) })
	_, in = s.upgrade(t)
	begin := time.Now()
	if err := s.stop(); err != nil {
		t.Error(err)
	}
	if took := time.Since(begin); took > patience/2 {
		t.Errorf("the tunnel held the shutdown up for %v", took)
	}
	io.Copy(io.Discard, in)
	<-served
}
