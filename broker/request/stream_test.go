package request_test

import (
	"fmt"
	"maps"
	"strings"
	"testing"
)

var (
	webSocket = map[string]string{
		"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
		"Sec-WebSocket-Protocol": "v5.channel.k8s.io, v4.channel.k8s.io, v3.channel.k8s.io, SPDY/3.1+portforward.k8s.io",
	}
	overSPDY = map[string]string{
		"Connection": "Upgrade", "Upgrade": "SPDY/3.1",
		"X-Stream-Protocol-Version": "v5.channel.k8s.io\nv4.channel.k8s.io\nchannel.k8s.io\nportforward.k8s.io",
	}
)

const onPod = "/api/v1/namespaces/shop/pods/web-0/"

// TestUpgrades (H-01 to H-10): what may be upgraded is known from the call, and
// anything else is not, however it is spelled.
func TestUpgrades(t *testing.T) {
	with := func(base map[string]string, name, value string) map[string]string {
		header := maps.Clone(base)
		delete(header, name)
		if value != "" {
			header[name] = value
		}
		return header
	}
	const exec = onPod + "exec?command=ls&stdout=true"
	for name, row := range map[string]struct {
		method, target string
		header         map[string]string
		want           string
	}{
		"exec, WebSocket":             {"GET", exec, webSocket, "v5.channel.k8s.io v4.channel.k8s.io"},
		"exec, SPDY":                  {"POST", exec, overSPDY, "v5.channel.k8s.io v4.channel.k8s.io"},
		"exec, SPDY, GET":             {"GET", exec, overSPDY, "v5.channel.k8s.io v4.channel.k8s.io"},
		"attach":                      {"GET", onPod + "attach?stdin=true", webSocket, "v5.channel.k8s.io v4.channel.k8s.io"},
		"port-forward, SPDY":          {"POST", onPod + "portforward", overSPDY, "portforward.k8s.io"},
		"port-forward, WebSocket":     {"GET", onPod + "portforward?ports=80", webSocket, "SPDY/3.1+portforward.k8s.io"},
		"another case":                {"GET", exec, with(webSocket, "Upgrade", "WebSocket"), "v5.channel.k8s.io v4.channel.k8s.io"},
		"only what cannot be decoded": {"GET", exec, with(webSocket, "Sec-WebSocket-Protocol", "v3.channel.k8s.io, base64.channel.k8s.io, v4.base64.channel.k8s.io"), "BadUpgrade"},
		"no protocol":                 {"GET", exec, with(webSocket, "Sec-WebSocket-Protocol", ""), "BadUpgrade"},
		"no protocol of SPDY":         {"POST", exec, with(overSPDY, "X-Stream-Protocol-Version", ""), "BadUpgrade"},
		"raw port-forward":            {"GET", onPod + "portforward?ports=80", with(webSocket, "Sec-WebSocket-Protocol", "v4.channel.k8s.io"), "BadUpgrade"},
		"POST to a WebSocket":         {"POST", exec, webSocket, "BadUpgrade"},
		"PUT":                         {"PUT", exec, overSPDY, "BadUpgrade"},
		"version":                     {"GET", exec, with(webSocket, "Sec-WebSocket-Version", "8"), "BadUpgrade"},
		"no key":                      {"GET", exec, with(webSocket, "Sec-WebSocket-Key", ""), "BadUpgrade"},
		"short key":                   {"GET", exec, with(webSocket, "Sec-WebSocket-Key", "aGk="), "BadUpgrade"},
		"two keys":                    {"GET", exec, with(webSocket, "Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==\ndGhlIHNhbXBsZSBub25jZQ=="), "BadUpgrade"},
		"two upgrades":                {"GET", exec, with(webSocket, "Upgrade", "websocket\nh2c"), "BadUpgrade"},
		"two upgrades in a line":      {"GET", exec, with(webSocket, "Upgrade", "websocket, h2c"), "BadUpgrade"},
		"h2c":                         {"GET", exec, with(overSPDY, "Upgrade", "h2c"), "BadUpgrade"},
		"h2c beside":                  {"GET", exec, with(webSocket, "HTTP2-Settings", "AAMAAABk"), "BadUpgrade"},
		"older SPDY":                  {"POST", exec, with(overSPDY, "Upgrade", "SPDY/3"), "BadUpgrade"},
		"no connection option":        {"GET", exec, with(webSocket, "Connection", "close"), "BadUpgrade"},
		"the option alone":            {"GET", exec, map[string]string{"Connection": "Upgrade"}, "BadUpgrade"},
		"nothing":                     {"POST", exec, nil, "BadUpgrade"},
		"watch":                       {"GET", "/api/v1/namespaces/shop/pods?watch=true", webSocket, "BadUpgrade"},
		"log":                         {"GET", onPod + "log", webSocket, "BadUpgrade"},
		"proxy":                       {"GET", onPod + "proxy", webSocket, "BadUpgrade"},
		"exec of something else":      {"GET", "/apis/x.example.org/v1/namespaces/shop/pods/web-0/exec?command=ls&stdout=true", webSocket, "BadUpgrade"},
		"version path":                {"GET", "/version", overSPDY, "BadUpgrade"},
		"bearer":                      {"GET", exec, with(webSocket, "Sec-WebSocket-Protocol", "v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.dG9rZW4"), "BadUpgrade"},
		"bearer, another case":        {"GET", exec, with(webSocket, "Sec-WebSocket-Protocol", "v5.channel.k8s.io\nBase64URL.bearer.authorization.k8s.io.x"), "BadUpgrade"},
		"bearer without an upgrade":   {"GET", "/version", map[string]string{"Sec-WebSocket-Protocol": "base64url.bearer.authorization.k8s.io.x"}, "BadUpgrade"},
		// what the command may be
		"no command":         {"GET", onPod + "exec?stdout=true", webSocket, "BadQuery/Command"},
		"no way out":         {"GET", onPod + "exec?command=ls&stdout=false", webSocket, "BadQuery/Value"},
		"attach, a command":  {"GET", onPod + "attach?command=ls&stdout=true", webSocket, "BadQuery/Unknown"},
		"a bad container":    {"GET", exec + "&container=a/b", webSocket, "BadQuery/Value"},
		"two containers":     {"GET", exec + "&container=a&container=b", webSocket, "BadQuery/Duplicate"},
		"a flag that is odd": {"GET", exec + "&tty=maybe", webSocket, "BadQuery/Value"},
		"unknown":            {"GET", exec + "&dryRun=All", webSocket, "BadQuery/Unknown"},
		"a zero byte":        {"GET", exec + "&command=%00", webSocket, "BadQuery/Character"},
		"no UTF-8":           {"GET", exec + "&command=%ff", webSocket, "BadQuery/Character"},
		"ports":              {"POST", onPod + "portforward?ports=80,0", overSPDY, "BadQuery/Value"},
		"ports, spelling":    {"POST", onPod + "portforward?ports=080", overSPDY, "BadQuery/Value"},
		"command elsewhere":  {"GET", "/api/v1/namespaces/shop/pods?command=ls", nil, "BadQuery/Unknown"},
	} {
		parsed, refusal := parse(t, row.method, row.target, row.header, "")
		got := meaning(parsed, refusal)
		if refusal == nil && parsed.Stream != nil {
			got = strings.Join(parsed.Stream.Protocols, " ")
		}
		if got != row.want {
			t.Errorf("%s: got %s, want %s", name, got, row.want)
		}
		if refusal == nil && (parsed.Stream == nil || parsed.Call.Stream == nil) {
			t.Errorf("%s: nothing is known of the stream", name)
		}
	}
}

// TestOneCommand: every spelling of a command, and every way to open it, is the
// same call.
func TestOneCommand(t *testing.T) {
	script := "if%20true%3B%20then%0A%09echo%20%22hi%22%0Afi"
	rows := []struct {
		method, query string
		header        map[string]string
	}{
		{"GET", "command=sh&command=-c&command=" + script + "&container=web&stdin=true&stdout=true&tty=false", webSocket},
		{"POST", "command=sh&command=-c&command=" + script + "&container=web&stdin=true&stdout=true&tty=false", overSPDY},
		{"POST", "stdout=1&stdin=True&container=web&command=sh&command=-c&command=" + strings.ReplaceAll(script, "%20", "+"), overSPDY},
		{"GET", "stderr=false&stdout=true&stdin=1&command=sh&container=web&command=-c&command=" + script, webSocket},
	}
	want := ""
	for i, row := range rows {
		parsed, refusal := parse(t, row.method, onPod+"exec?"+row.query, row.header, "")
		if refusal != nil {
			t.Fatalf("%d: %v", i, refusal)
		}
		got := fmt.Sprintf("%s %+v %+v", parsed.Query(), parsed.Call, *parsed.Call.Stream)
		got = strings.ReplaceAll(got, fmt.Sprintf("%p", parsed.Call.Stream), "")
		if want == "" {
			want = got
		}
		if got != want {
			t.Errorf("%d:\n got %s\nwant %s", i, got, want)
		}
		if s := parsed.Call.Stream; len(s.Command) != 3 || s.Command[2] != "if true; then\n\techo \"hi\"\nfi" || s.Container != "web" || !s.Stdin || s.TTY || !parsed.Stream.Stdout || parsed.Stream.Stderr {
			t.Errorf("%d: %+v %+v", i, s, parsed.Stream)
		}
	}
	parsed, _ := parse(t, "POST", onPod+"portforward?ports=80&ports=443,8443", overSPDY, "")
	if got := fmt.Sprint(parsed.Stream.Ports); got != "[80 443 8443]" || !parsed.Call.Stream.Stdin {
		t.Errorf("ports %s, %+v", got, parsed.Call.Stream)
	}
	if _, refusal := parse(t, "POST", onPod+"exec?command=ls&stdout=true", overSPDY, "{}"); refusal == nil || refusal.Reason != "BadBody" {
		t.Errorf("a body: %v", refusal)
	}
}
