package bench

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/taskgate/taskgate/e2e/internal/ports"
)

// TestTwinDoesTheSameNetworking: watches go over HTTP/2, everything else over
// HTTP/1.1, TLS 1.3 everywhere, with the broker's headers in place of the agent's.
func TestTwinDoesTheSameNetworking(t *testing.T) {
	upstream := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %x %s %s %s", r.Proto, r.TLS.Version, r.Header.Get("Authorization"), r.Header.Get("Impersonate-User"), r.URL.RequestURI())
	}))
	upstream.EnableHTTP2 = true
	upstream.StartTLS()
	defer upstream.Close()
	folder, local := t.TempDir(), freeAddress(t)
	upstreamCA := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: upstream.Certificate().Raw})
	write(t, folder, "upstream.crt", upstreamCA)
	certificates(t, folder)
	in := func(name string) string { return filepath.Join(folder, name) }
	remote := HopConfig{
		Listen: freeAddress(t), Certificate: in("remote.crt"), Key: in("remote.key"), ClientCA: in("ca.crt"), Target: upstream.URL,
		TargetCA: in("upstream.crt"), Mutual: MutualDown, Set: http.Header{"Authorization": {"Bearer broker"}, "Impersonate-User": {"agent"}},
	}
	serve(t, remote)
	serve(t, HopConfig{
		Listen: local, Certificate: in("local.crt"), Key: in("local.key"), Target: "https://" + remote.Listen, TargetCA: in("ca.crt"),
		TargetCertificate: in("client.crt"), TargetKey: in("client.key"), Mutual: MutualUp, Remove: []string{"Authorization"},
	})
	roots, err := readPool(in("ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	c := &contender{name: Twin, url: "https://" + local, tls: &tls.Config{RootCAs: roots}, header: header("agent")}
	for path, protocol := range map[string]string{"/api": "HTTP/1.1", "/api?watch=true": "HTTP/2.0"} {
		answer, err := c.open(newTransport(c.tls, protocol == "HTTP/2.0"), call{method: http.MethodGet, path: path, want: http.StatusOK})
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(answer.Body)
		answer.Body.Close()
		want := fmt.Sprintf("%s %x Bearer broker agent %s", protocol, tls.VersionTLS13, path)
		if string(got) != want || answer.Proto != protocol || err != nil {
			t.Errorf("%s: got %q over %s, want %q; %v", path, got, answer.Proto, want, err)
		}
	}
	stranger := &contender{name: "stranger", url: "https://" + remote.Listen, tls: &tls.Config{RootCAs: roots}}
	if _, err := stranger.open(newTransport(stranger.tls, false), call{method: http.MethodGet, path: "/", want: http.StatusOK}); err == nil {
		t.Error("the second hop takes calls without a client certificate")
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	var claims ports.Claims
	port, err := claims.Claim()
	if err != nil {
		t.Fatal(err)
	}
	if err := claims.ReleaseAll(); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", port)
}

func write(t *testing.T, folder, name string, content []byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(folder, name), content, 0o600); err != nil {
		t.Fatal(err)
	}
}

func certificates(t *testing.T, folder string) {
	t.Helper()
	if err := (&twin{folder: folder}).writeCertificates(); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(filepath.Join(folder, "client.crt"))
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(content)
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil || len(certificate.IPAddresses) > 0 {
		t.Errorf("the client certificate is none: %v", err)
	}
}

// serve runs a hop until the test ends, and returns when it listens.
func serve(t *testing.T, config HopConfig) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- ServeHop(ctx, config) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	for range 200 {
		if conn, err := net.Dial("tcp", config.Listen); err == nil {
			conn.Close()
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("the hop does not listen")
}
