package identity_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/taskgate/taskgate/identity"
)

const stateFile = "local-authority.pem"

func openLocal(t testing.TB, dir string, c *clock) *identity.LocalAuthority {
	t.Helper()
	return must(identity.OpenLocalAuthority(dir, c.now))(t)
}

func TestLocalAuthorityIsReused(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "state")
	var c clock
	first := openLocal(t, dir, &c)
	if first.Made() != "first start" {
		t.Errorf("made: %q", first.Made())
	}
	for name, want := range map[string]fs.FileMode{dir: 0o700 | fs.ModeDir, filepath.Join(dir, stateFile): 0o600} {
		if got := must(os.Stat(name))(t).Mode(); got != want {
			t.Errorf("%s has mode %v", name, got)
		}
	}
	c.advance(8 * 365 * 24 * time.Hour)
	again := openLocal(t, dir, &c)
	if again.Made() != "" || again.Token() != first.Token() || !bytes.Equal(again.CACertificatePEM(), first.CACertificatePEM()) {
		t.Errorf("a new one was made: %q", again.Made())
	}
	if entries := must(os.ReadDir(dir))(t); len(entries) != 1 {
		t.Errorf("left behind: %v", entries)
	}
}

// TestLocalAuthorityIsRenewed shows what makes a new one, and that the reason is
// told.
func TestLocalAuthorityIsRenewed(t *testing.T) {
	block := func(content []byte, kind string) []byte {
		for b, rest := pem.Decode(content); b != nil; b, rest = pem.Decode(rest) {
			if b.Type == kind {
				return pem.EncodeToMemory(b)
			}
		}
		return nil
	}
	const token, key, certificate = "TASKGATE LOCAL TOKEN", "PRIVATE KEY", "CERTIFICATE"
	for name, test := range map[string]struct {
		damage func(t *testing.T, path string, content []byte, c *clock)
		want   string
	}{
		"gone":      {func(t *testing.T, path string, _ []byte, _ *clock) { os.Remove(path) }, "first start"},
		"empty":     {func(t *testing.T, path string, _ []byte, _ *clock) { os.Truncate(path, 0) }, "damaged: certificate"},
		"truncated": {func(t *testing.T, path string, content []byte, _ *clock) { os.Truncate(path, int64(len(content)/2)) }, "damaged: certificate"},
		"huge":      {func(t *testing.T, path string, _ []byte, _ *clock) { os.Truncate(path, 1<<30) }, "not a file this program wrote"},
		"a flipped bit in the certificate": {func(t *testing.T, path string, content []byte, _ *clock) {
			der, _ := pem.Decode(content)
			der.Bytes[len(der.Bytes)/2] ^= 1
			write(t, path, pem.EncodeToMemory(der), block(content, key), block(content, token))
		}, "damaged: certificate"},
		"another key": {func(t *testing.T, path string, content []byte, c *clock) {
			other := t.TempDir()
			os.Chmod(other, 0o700)
			openLocal(t, other, c)
			write(t, path, block(content, certificate), block(must(os.ReadFile(filepath.Join(other, stateFile)))(t), key), block(content, token))
		}, "the key is not that of the certificate"},
		"no token": {func(t *testing.T, path string, content []byte, _ *clock) {
			write(t, path, block(content, certificate), block(content, key))
		}, "the token is not complete"},
		"a short token": {func(t *testing.T, path string, content []byte, _ *clock) {
			write(t, path, block(content, certificate), block(content, key), pem.EncodeToMemory(&pem.Block{Type: token, Bytes: []byte("short")}))
		}, "the token is not complete"},
		"near its end":       {func(_ *testing.T, _ string, _ []byte, c *clock) { c.advance(9*365*24*time.Hour + time.Hour) }, "ends at"},
		"a clock set back":   {func(_ *testing.T, _ string, _ []byte, c *clock) { c.advance(-48 * time.Hour) }, "begins at"},
		"readable by others": {func(t *testing.T, path string, _ []byte, _ *clock) { os.Chmod(path, 0o644) }, "others could read the stored one (mode 0644)"},
		"a link": {func(t *testing.T, path string, _ []byte, _ *clock) {
			os.Rename(path, path+"2")
			os.Symlink(path+"2", path)
		}, "not a file this program wrote"},
		"a folder of the name":  {func(t *testing.T, path string, _ []byte, _ *clock) { os.Remove(path); os.Mkdir(path, 0o700) }, ""},
		"something else's file": {func(t *testing.T, path string, _ []byte, _ *clock) { write(t, path, []byte("hello")) }, "damaged: certificate"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "state")
			var c clock
			first := openLocal(t, dir, &c)
			path := filepath.Join(dir, stateFile)
			test.damage(t, path, must(os.ReadFile(path))(t), &c)
			second, err := identity.OpenLocalAuthority(dir, c.now)
			if test.want == "" {
				if err == nil || !strings.Contains(err.Error(), "storing the local authority") {
					t.Errorf("%v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(second.Made(), test.want) {
				t.Errorf("made: %q, not %q", second.Made(), test.want)
			}
			if second.Token() == first.Token() || second.CheckToken(first.Token()) || first.CheckToken(second.Token()) {
				t.Error("the token is the old one")
			}
			if third := openLocal(t, dir, &c); third.Made() != "" || third.Token() != second.Token() {
				t.Errorf("the new one was not stored: %q", third.Made())
			}
		})
	}
}

func write(t testing.TB, path string, parts ...[]byte) {
	t.Helper()
	if err := os.WriteFile(path, bytes.Join(parts, nil), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestLocalFolder(t *testing.T) {
	var c clock
	file := filepath.Join(t.TempDir(), "file")
	write(t, file)
	if _, err := identity.OpenLocalAuthority(file, c.now); err == nil || !strings.Contains(err.Error(), "opening the folder of the local authority") {
		t.Errorf("a file: %v", err)
	}
	empty := filepath.Join(t.TempDir(), "empty")
	os.Mkdir(empty, 0o777)
	os.Chmod(empty, 0o777)
	openLocal(t, empty, &c)
	if got := must(os.Stat(empty))(t).Mode().Perm(); got != 0o700 {
		t.Errorf("an open folder of ours was left at %v", got)
	}
	os.Chmod(empty, 0o755) // it holds nothing but our file
	openLocal(t, empty, &c)
	shared := filepath.Join(t.TempDir(), "shared")
	os.Mkdir(shared, 0o755)
	write(t, filepath.Join(shared, "other"))
	if _, err := identity.OpenLocalAuthority(shared, c.now); err == nil || !strings.Contains(err.Error(), "holds other files; name a folder of its own") {
		t.Errorf("a folder of others: %v", err)
	}
	if got := must(os.Stat(shared))(t).Mode().Perm(); got != 0o755 {
		t.Errorf("a folder of others was changed to %v", got)
	}
	link := filepath.Join(t.TempDir(), "link")
	os.Symlink(empty, link)
	if _, err := identity.OpenLocalAuthority(link, c.now); err == nil || !strings.Contains(err.Error(), "is not a folder") {
		t.Errorf("a link: %v", err)
	}
}

func TestLocalToken(t *testing.T) {
	var c clock
	a := openLocal(t, filepath.Join(t.TempDir(), "state"), &c)
	token := a.Token()
	if len(token) != 43 || strings.ContainsAny(token, "+/=. \n") {
		t.Errorf("%q is not 256 bits of base64url", token)
	}
	if !a.CheckToken(token) {
		t.Error("the token itself does not match")
	}
	for _, wrong := range []string{"", " ", token[:42], token + "A", strings.ToLower(token), token + "\n", strings.Repeat("A", 43)} {
		if a.CheckToken(wrong) {
			t.Errorf("%q matches", wrong)
		}
	}
	var zero identity.LocalAuthority
	if zero.CheckToken("") || zero.CheckToken(token) {
		t.Error("the zero authority accepts a token")
	}
}

// TestLocalTLS shows that clients which trust the authority, and only those, find
// the endpoint under all its names, and that old clients find it too.
func TestLocalTLS(t *testing.T) {
	var c clock
	a := openLocal(t, filepath.Join(t.TempDir(), "state"), &c)
	listener := must(tls.Listen("tcp", "127.0.0.1:0", a.ServerTLS()))(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			conn.(*tls.Conn).Handshake()
			conn.Close()
		}
	}()
	defer func() { listener.Close(); <-done }()
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(a.CACertificatePEM()) {
		t.Fatal("the CA certificate is not PEM")
	}
	dial := func(config *tls.Config) (tls.ConnectionState, error) {
		config.Time = c.now
		conn, err := tls.Dial("tcp", listener.Addr().String(), config)
		if err != nil {
			return tls.ConnectionState{}, err
		}
		defer conn.Close()
		return conn.ConnectionState(), nil
	}
	names := []string{"127.0.0.1", "::1", "localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"}
	if got := a.Names(); len(got) != len(names) {
		t.Errorf("names %v", got)
	}
	for _, name := range names {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			state, err := dial(&tls.Config{RootCAs: roots, ServerName: name, MaxVersion: version, NextProtos: []string{"h2", "http/1.1"}})
			if err != nil || state.Version != version || state.NegotiatedProtocol != "h2" {
				t.Errorf("%s %x: %v", name, version, err)
			}
		}
	}
	for name, config := range map[string]*tls.Config{
		"another name": {RootCAs: roots, ServerName: "broker"},
		"TLS 1.1":      {RootCAs: roots, ServerName: "localhost", MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11},
		"other roots":  {RootCAs: x509.NewCertPool(), ServerName: "localhost"},
	} {
		if _, err := dial(config); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}

	// The serving certificate is renewed while the process runs.
	first := must(dial(&tls.Config{RootCAs: roots, ServerName: "localhost"}))(t).PeerCertificates[0]
	same := must(dial(&tls.Config{RootCAs: roots, ServerName: "localhost"}))(t).PeerCertificates[0]
	if !first.Equal(same) {
		t.Error("each connection shows another certificate")
	}
	c.advance(20 * 24 * time.Hour)
	later := must(dial(&tls.Config{RootCAs: roots, ServerName: "localhost"}))(t).PeerCertificates[0]
	if later.Equal(first) || !later.NotAfter.After(first.NotAfter) {
		t.Error("the certificate was not renewed")
	}
	if first.IsCA || len(first.URIs) != 0 || first.KeyUsage != x509.KeyUsageDigitalSignature {
		t.Errorf("%+v", first)
	}
	if ip := net.ParseIP("127.0.0.1"); !first.IPAddresses[0].Equal(ip) {
		t.Errorf("%v", first.IPAddresses)
	}
}
