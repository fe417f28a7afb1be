package request

import (
	"encoding/base64"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/util/portforward"
	"k8s.io/apimachinery/pkg/util/remotecommand"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/taskgate/taskgate/authz"
)

// Stream is what an exec, attach or port-forward wants to open, and in which
// protocols. What it wants in the pod is in Call.Stream.
type Stream struct {
	// WebSocket is the protocol that was asked for; otherwise it is SPDY/3.1.
	WebSocket bool
	// Protocols are those the client offered that can be recorded, in its order;
	// never empty.
	Protocols      []string
	Stdout, Stderr bool
	// Ports of a port-forward, empty if the client named none.
	Ports []uint16
}

// opensStream reports whether the call can only be answered by a stream.
func opensStream(call *authz.Call) bool { return streamOf(call) != "" }

// streamOf is the subresource of a call that opens a stream, empty otherwise.
func streamOf(call *authz.Call) string {
	if call.Group == "" && call.Resource == "pods" && slices.Contains([]string{"exec", "attach", "portforward"}, call.Subresource) {
		return call.Subresource
	}
	return ""
}

// bearerProtocol begins the subprotocol by which browsers send a token
// (k8s.io/apiserver, authentication/request/websocket).
const bearerProtocol = "base64url.bearer.authorization.k8s.io."

// judgeProtocols refuses credentials where a protocol belongs, upgrade or not.
func judgeProtocols(header http.Header) *Refusal {
	for _, protocol := range tokens(header, "Sec-Websocket-Protocol") {
		if strings.HasPrefix(strings.ToLower(protocol), bearerProtocol) {
			return badUpgrade("a credential in Sec-WebSocket-Protocol is not taken; use the kubeconfig of your sidecar")
		}
	}
	return nil
}

// judgeUpgrade lets exactly exec, attach and port-forward be upgraded, in exactly
// one way, and refuses them without.
func judgeUpgrade(r *http.Request, call *authz.Call) *Refusal {
	connection := connectionTokens(r.Header)
	upgrades := r.Header.Values("Upgrade")
	settings := len(r.Header.Values("Http2-Settings")) > 0 || slices.Contains(connection, "http2-settings")
	asked := len(upgrades) > 0 || settings || slices.Contains(connection, "upgrade")
	switch {
	case !asked && opensStream(call):
		return badUpgrade("%s opens a stream: send the request with an upgrade to SPDY/3.1 or WebSocket, as kubectl does", call.Subresource)
	case !asked:
		return nil
	case !opensStream(call):
		return badUpgrade("only exec, attach and port-forward of pods can be upgraded")
	case settings || len(upgrades) != 1 || !slices.Contains(connection, "upgrade") || r.ProtoMajor != 1:
		return badUpgrade("an upgrade needs HTTP/1.1, Connection: Upgrade, and one protocol")
	}
	webSocket := strings.EqualFold(upgrades[0], "websocket")
	switch {
	case webSocket && !isWebSocket(r):
		return badUpgrade("the request for a WebSocket is not one of RFC 6455")
	case !webSocket && (upgrades[0] != "SPDY/3.1" || r.Method != http.MethodPost && r.Method != http.MethodGet):
		return badUpgrade("upgrades are served to SPDY/3.1 and WebSocket only")
	case len(protocolsOf(r, call)) == 0:
		return badUpgrade("none of the stream protocols can be recorded; use v5.channel.k8s.io or v4.channel.k8s.io (for port-forward %s, over WebSocket %s)",
			portforward.PortForwardV1Name, portforward.WebsocketsSPDYTunnelingPortForwardV1)
	}
	return nil
}

func badUpgrade(format string, args ...any) *Refusal {
	return refuse(authz.BadUpgrade, "", format, args...).as(http.StatusForbidden)
}

// isWebSocket checks the opening handshake (RFC 6455, section 4.2.1) but for what
// judgeUpgrade does.
func isWebSocket(r *http.Request) bool {
	key := r.Header.Values("Sec-Websocket-Key")
	if r.Method != http.MethodGet || len(key) != 1 || !slices.Equal(r.Header.Values("Sec-Websocket-Version"), []string{"13"}) {
		return false
	}
	decoded, err := base64.StdEncoding.DecodeString(key[0])
	return err == nil && len(decoded) == 16
}

// protocolsOf are the protocols the client offers that can be recorded.
func protocolsOf(r *http.Request, call *authz.Call) []string {
	webSocket := strings.EqualFold(r.Header.Get("Upgrade"), "websocket")
	known := []string{remotecommand.StreamProtocolV5Name, remotecommand.StreamProtocolV4Name}
	if call.Subresource == "portforward" {
		known = []string{portforward.PortForwardV1Name}
		if webSocket {
			known = []string{portforward.WebsocketsSPDYTunnelingPortForwardV1}
		}
	}
	name := "X-Stream-Protocol-Version"
	if webSocket {
		name = "Sec-Websocket-Protocol"
	}
	var offered []string
	for _, protocol := range tokens(r.Header, name) {
		if slices.Contains(known, protocol) && !slices.Contains(offered, protocol) {
			offered = append(offered, protocol)
		}
	}
	return offered
}

func tokens(header http.Header, name string) []string {
	var list []string
	for _, line := range header.Values(name) {
		for token := range strings.SplitSeq(line, ",") {
			if token = strings.TrimSpace(token); token != "" {
				list = append(list, token)
			}
		}
	}
	return list
}

// takeStream notes in the call what it wants of the pod, and writes the query in
// one form: two spellings of the same command are one call.
func (p *Request) takeStream(r *http.Request) *Refusal {
	body, refusal := readBody(r)
	if refusal != nil {
		return refusal
	}
	if len(body) > 0 {
		return refuse(authz.BadBody, "Unexpected", "%s has no body", p.Call.Subresource)
	}
	for _, name := range []string{"stdin", "stdout", "stderr", "tty"} {
		if isTrue(p.query, name) {
			p.query.Set(name, "true")
		} else {
			p.query.Del(name)
		}
	}
	wants := &authz.Stream{
		Command: p.query["command"], Container: p.query.Get("container"), Stdin: p.query.Has("stdin"), TTY: p.query.Has("tty"),
	}
	p.Stream = &Stream{
		WebSocket: strings.EqualFold(r.Header.Get("Upgrade"), "websocket"), Protocols: protocolsOf(r, &p.Call),
		Stdout: p.query.Has("stdout"), Stderr: p.query.Has("stderr"),
	}
	for _, value := range p.query["ports"] {
		for number := range strings.SplitSeq(value, ",") {
			n, _ := strconv.ParseUint(number, 10, 16) // judged with the query
			p.Stream.Ports = append(p.Stream.Ports, uint16(n))
		}
	}
	p.Call.Stream = wants
	switch p.Call.Subresource {
	case "portforward":
		wants.Stdin = true
		return nil
	case "exec":
		if len(wants.Command) == 0 {
			return refuse(authz.BadQuery, "Command", "exec needs a command")
		}
	}
	if !wants.Stdin && !p.Stream.Stdout && !p.Stream.Stderr {
		return refuse(authz.BadQuery, "Value", "%s needs stdin, stdout or stderr", p.Call.Subresource)
	}
	return nil
}

func containerName(s string) bool { return len(validation.IsDNS1123Label(s)) == 0 }

// portList takes what clients write: numbers, separated by commas.
func portList(s string) bool {
	for number := range strings.SplitSeq(s, ",") {
		if n, err := strconv.ParseUint(number, 10, 16); err != nil || n == 0 || strconv.FormatUint(n, 10) != number {
			return false
		}
	}
	return true
}
