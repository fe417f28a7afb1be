package e2e_test

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// TestGuard: the sidecar serves its own agent and nobody else, and what it
// refuses never reaches the broker.
func TestGuard(t *testing.T) {
	rig := newCasesRig(t)
	a := rig.newAgent(t, "case-guard")
	rig.policy(t, "case-guard", a, "", everything)
	rig.grant(t, "case-guard", "case-guard", a, "1h", everything)
	sidecar := a.doors(t)[0]
	port := sidecar.address[strings.LastIndex(sidecar.address, ":")+1:]
	rows := []struct {
		id, name string
		host     string
		lines    string // more header lines; the token stands if it does not hold one
		code     int
		reason   string
	}{
		{"T230", "attacker", "evil.com", "", 421, "BadHeader"},
		{"T230", "attacker with a port", "rebind.attacker:8001", "", 421, "BadHeader"},
		{"T231", "rebinding", "rebind.attacker:" + port, "", 421, "BadHeader"},
		{"T230", "empty", "", "", 421, "BadHeader"},
		{"T230", "any address", "0.0.0.0:" + port, "", 421, "BadHeader"},
		{"T230", "another loopback", "127.0.0.2:" + port, "", 421, "BadHeader"},
		{"T230", "suffix", "localhost.evil.com", "", 421, "BadHeader"},
		{"T230", "prefix", "evil-localhost", "", 421, "BadHeader"},
		{"T230", "userinfo", "localhost@evil.com", "", 400, ""},
		{"T230", "number", "2130706433", "", 421, "BadHeader"},
		{"T230", "trailing dot", "evil.com.", "", 421, "BadHeader"},
		{"T230", "localhost", "localhost:" + port, "", 200, ""},
		{"T230", "127.0.0.1", "127.0.0.1:" + port, "", 200, ""},
		{"T230", "::1", "[::1]:" + port, "", 200, ""},
		{"T230", "kubernetes.default.svc", "kubernetes.default.svc", "", 200, ""},
		{"T231", "origin", "127.0.0.1:" + port, "Origin: https://evil.com", 403, "BadHeader"},
		{"T231", "null origin", "127.0.0.1:" + port, "Origin: null", 403, "BadHeader"},
		{"T231", "own origin", "127.0.0.1:" + port, "Origin: https://127.0.0.1:" + port, 403, "BadHeader"},
		{"T231", "fetch site", "127.0.0.1:" + port, "Sec-Fetch-Site: same-origin", 403, "BadHeader"},
		{"T231", "fetch mode", "127.0.0.1:" + port, "sec-fetch-mode: cors", 403, "BadHeader"},
		{"T231", "fetch with underscores", "127.0.0.1:" + port, "Sec_Fetch_Dest: x", 403, "BadHeader"},
		{"T234", "no token", "127.0.0.1:" + port, "Authorization: ", 401, "IdentityUnknown"},
		{"T234", "wrong token", "127.0.0.1:" + port, "Authorization: Bearer " + strings.Repeat("x", len(a.Token)), 401, "IdentityUnknown"},
		{"T234", "token cut short", "127.0.0.1:" + port, "Authorization: Bearer " + a.Token[:len(a.Token)-1], 401, "IdentityUnknown"},
		{"T234", "token and more", "127.0.0.1:" + port, "Authorization: Bearer " + a.Token + "x", 401, "IdentityUnknown"},
		{"T234", "two tokens", "127.0.0.1:" + port, "Authorization: Bearer " + a.Token + "\r\nAuthorization: Bearer x", 401, "IdentityUnknown"},
		{"T234", "another agent's token", "127.0.0.1:" + port, "Authorization: Bearer " + rig.all.Token, 401, "IdentityUnknown"},
		{"T234", "basic", "127.0.0.1:" + port, "Authorization: Basic " + a.Token, 401, "IdentityUnknown"},
		{"T234", "token in a cookie", "127.0.0.1:" + port, "Authorization: \r\nCookie: token=" + a.Token, 401, "IdentityUnknown"},
		{"T075", "administrator's token", "127.0.0.1:" + port, "Authorization: Bearer " + rig.adminToken(t), 401, "IdentityUnknown"},
	}
	passed := 0
	for _, row := range rows {
		lines := row.lines
		if !strings.Contains(lines, "Authorization:") {
			lines = strings.TrimPrefix(lines+"\r\nAuthorization: Bearer "+a.Token, "\r\n")
		}
		answer := raw(t, sidecar.address, sidecar.config, "http/1.1", "GET "+casePod+" HTTP/1.1\r\nHost: "+row.host+"\r\n"+lines+"\r\nConnection: close\r\n\r\n")
		got := statuses(answer)
		if len(got) != 1 || got[0] != row.code || !strings.Contains(answer, "[taskgate:"+row.reason) && row.reason != "" {
			t.Errorf("%s %s: answered %v, want %d %s: %.400q", row.id, row.name, got, row.code, row.reason, answer)
		}
		if row.code == 200 {
			passed++
		}
	}
	if reached := a.reached(t); len(reached) != passed {
		t.Errorf("the API server saw %d calls, want %d", len(reached), passed)
	}
	time.Sleep(1500 * time.Millisecond) // what is recorded is in the bucket by now
	for _, event := range rig.journal.all(t) {
		if event.User.Username == a.id && event.ResponseStatus != nil && event.ResponseStatus.Code != 200 && !strings.HasSuffix(event.RequestURI, "/selfsubjectreviews") { // the rig asks whether the grant is there
			t.Errorf("the broker saw %s %s", event.Verb, event.RequestURI)
		}
	}
}

// TestQueryToken: the token counts in its header only.
func TestQueryToken(t *testing.T) {
	rig := newCasesRig(t)
	got := rig.reader.do(t, "GET", casePod+"?access_token="+rig.reader.Token, map[string]string{"Authorization": "-"}, "")
	if got.code != 401 || !strings.Contains(got.body, "IdentityUnknown") {
		t.Errorf("T234: %d %s", got.code, got.body)
	}
	protocol := map[string]string{"Authorization": "-", "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Protocol": "base64url.bearer.authorization.k8s.io." + rig.reader.Token}
	if got := rig.reader.ways(t)[2].do(t, "GET", casePod+"/exec", protocol, ""); got.code != 401 {
		t.Errorf("T234: a token as a subprotocol: %d %s", got.code, got.body)
	}
}

// TestLoopbackOnly: the sidecar listens nowhere a neighbour could reach.
func TestLoopbackOnly(t *testing.T) {
	rig := newCasesRig(t)
	address := strings.TrimPrefix(rig.reader.URL, "https://")
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, address := range addresses {
		ip := address.(*net.IPNet).IP
		if ip.Equal(net.IPv4(127, 0, 0, 1)) {
			continue
		}
		conn, err := net.DialTimeout("tcp", net.JoinHostPort(ip.String(), port), time.Second)
		if err == nil {
			_ = conn.Close() // unexpected
			t.Errorf("T235: it can be reached at %s", ip)
		}
	}
	if conn, err := net.DialTimeout("tcp", "127.0.0.2:"+port, time.Second); err == nil {
		_ = conn.Close() // unexpected
		t.Error("T235: it can be reached at 127.0.0.2")
	}
}

// TestSlowClients lose their connection, not the sidecar's.
func TestSlowClients(t *testing.T) {
	t.Parallel()
	rig := newCasesRig(t)
	for _, door := range rig.reader.doors(t) {
		for name, begin := range map[string]string{"nothing": "", "a header that goes on": "GET /version HTTP/1.1\r\nHost: x\r\nX-A: "} {
			if (door.name == "sidecar") == (begin == "") {
				continue // one of each is enough
			}
			t.Run(door.name+" "+name, func(t *testing.T) {
				t.Parallel()
				config := door.config.Clone()
				config.NextProtos = []string{"http/1.1"}
				conn, err := tls.Dial("tcp", door.address, config)
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = conn.Close() }() // the other side did
				began := time.Now()
				_, _ = conn.Write([]byte(begin)) // an end shows below
				closed := make(chan struct{})
				go func() {
					defer close(closed)
					_, _ = conn.Read(make([]byte, 1000)) // an answer or an end
				}()
				for {
					select {
					case <-closed:
						t.Logf("T241: ended after %s", time.Since(began).Round(100*time.Millisecond))
						return
					case <-time.After(500 * time.Millisecond):
						if begin != "" {
							_, _ = conn.Write([]byte("a")) // an end shows above
						}
						if time.Since(began) > 30*time.Second {
							t.Fatal("T241: it may go on for ever")
						}
					}
				}
			})
		}
	}
}

// TestSlowBody: a body that trickles is cut off at a deadline, and nothing is
// forwarded. The sidecar itself has no such deadline: whoever is slow there holds
// up nobody but itself.
func TestSlowBody(t *testing.T) {
	t.Parallel()
	rig := newCasesRig(t)
	door := rig.all.doors(t)[1]
	const patience = 40 * time.Second
	t.Run("h2", func(t *testing.T) {
		t.Parallel()
		w := dialWire(t, door)
		began := time.Now()
		w.encoded.Reset()
		for _, f := range and(door.plain("POST", caseMaps), field{"content-type", "application/json"}) {
			if err := w.encoder.WriteField(hpack.HeaderField{Name: f.name, Value: f.value}); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: w.encoded.Bytes(), EndHeaders: true}); err != nil {
			t.Fatal(err)
		}
		stop := make(chan struct{})
		defer close(stop)
		go func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(time.Second):
					_ = w.WriteData(1, false, []byte(" ")) // an end shows below
				}
			}
		}()
		if got := w.read(1, patience); got.status != "408" || !strings.Contains(got.content, "BadBody") {
			t.Errorf("T213: %s", got)
		}
		t.Logf("T213: cut off after %s", time.Since(began).Round(100*time.Millisecond))
	})
	t.Run("h1", func(t *testing.T) {
		t.Parallel()
		config := door.config.Clone()
		config.NextProtos = []string{"http/1.1"}
		conn, err := tls.Dial("tcp", door.address, config)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }() // the other side did
		began := time.Now()
		go func() {
			_, err := fmt.Fprintf(conn, "POST %s HTTP/1.1\r\n%sContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n", caseMaps, door.head)
			for ; err == nil; time.Sleep(time.Second) {
				_, err = conn.Write([]byte(" "))
			}
		}()
		_ = conn.SetReadDeadline(began.Add(patience)) // an open connection takes it
		content, err := io.ReadAll(conn)
		if got := statuses(string(content)); !slices.Equal(got, []int{http.StatusRequestTimeout}) || !strings.Contains(string(content), "BadBody") {
			t.Errorf("T213: %v after %s: %.300q (%v)", got, time.Since(began), content, err)
		}
		t.Logf("T213: cut off after %s", time.Since(began).Round(100*time.Millisecond))
	})
}

// TestFiles: what the sidecar leaves for its agent is readable by the agent, and
// its own state is not.
func TestFiles(t *testing.T) {
	rig := newCasesRig(t)
	folder := filepath.Join(rig.Directory(), rig.reader.name)
	owner := func(path string) uint32 {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		return info.Sys().(*syscall.Stat_t).Uid
	}
	uid := owner(fmt.Sprintf("/proc/%d", rig.Sidecar(rig.reader.name).PID()))
	for _, part := range []string{"agent", "state"} {
		err := filepath.WalkDir(filepath.Join(folder, part), func(path string, entry os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := entry.Info()
			if err != nil {
				return err
			}
			if info.Mode().Perm()&0o077 != 0 || owner(path) != uid {
				t.Errorf("%s has the mode %s and belongs to %d", path, info.Mode(), owner(path))
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	var names []string
	entries, err := os.ReadDir(filepath.Join(folder, "agent", "serviceaccount"))
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	if err != nil || !slices.Equal(names, []string{"ca.crt", "namespace", "token"}) {
		t.Errorf("the in-cluster directory holds %v (%v)", names, err)
	}
	environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", rig.Sidecar(rig.reader.name).PID()))
	if err != nil || strings.Contains(string(environ), rig.reader.Token) || strings.Contains(string(environ), "PRIVATE") {
		t.Errorf("T238: the sidecar's environment holds a secret (%v)", err)
	}
}

// TestPinnedGrant: a sidecar that is pinned to one grant uses no other, and an
// agent cannot pin itself to more.
func TestPinnedGrant(t *testing.T) {
	rig := newCasesRig(t)
	a := rig.newAgent(t, "case-pinned", "--grant", "case-pinned-1")
	maps := `{namespaces: [case-a], apiGroups: [""], resources: [configmaps], verbs: [get, list]}`
	rig.policy(t, "case-pinned", a, "", caseReads, maps)
	rig.grant(t, "case-pinned-1", "case-pinned", a, "1h", caseReads)
	rig.grant(t, "case-pinned-2", "case-pinned", a, "1h", maps)
	sidecar, broker := a.ways(t)[0], a.ways(t)[1]
	for _, row := range []struct {
		name   string
		way    way
		pin    string
		target string
		reason string
	}{
		{"inside the pinned one", sidecar, "", casePods, ""},
		{"inside the other", sidecar, "", caseMaps, "OutsideGrant"},
		{"the agent says another", sidecar, "case-pinned-2", caseMaps, "OutsideGrant"},
		{"past the sidecar", broker, "", caseMaps, ""},
		{"past the sidecar, pinned", broker, "case-pinned-1", caseMaps, "OutsideGrant"},
		{"past the sidecar, somebody else's", broker, "case-all", caseMaps, "NoGrant"},
	} {
		header := map[string]string{}
		if row.pin != "" {
			header["Taskgate-Grant"] = row.pin
		}
		if got := row.way.do(t, "GET", row.target, header, ""); got.reason() != row.reason {
			t.Errorf("%s: %d %q, want %q", row.name, got.code, got.reason(), row.reason)
		}
	}
}
