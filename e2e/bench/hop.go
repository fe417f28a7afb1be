package bench

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
)

// HopConfig describes one process of the twin: a reverse proxy and nothing else.
// All certificates and keys are files.
type HopConfig struct {
	Listen      string `json:"listen"`
	Certificate string `json:"certificate"`
	Key         string `json:"key"`
	// ClientCA makes the listener ask for a client certificate.
	ClientCA string `json:"clientCA,omitempty"`

	Target            string `json:"target"` // URL
	TargetCA          string `json:"targetCA"`
	TargetCertificate string `json:"targetCertificate,omitempty"`
	TargetKey         string `json:"targetKey,omitempty"`

	// Mutual says which side is the hop between the two processes, which taskgate
	// tunes; see identity.harden.
	Mutual MutualSide `json:"mutual"`

	Remove []string    `json:"remove,omitempty"` // headers
	Set    http.Header `json:"set,omitempty"`    // headers
}

// MutualSide is the side of a process on which mutual TLS is.
type MutualSide string

// The sides.
const (
	MutualUp   MutualSide = "up"
	MutualDown MutualSide = "down"
)

// ReadHopConfig reads the file a hop is started with.
func ReadHopConfig(path string) (HopConfig, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return HopConfig{}, fmt.Errorf("reading what the hop is to do: %w", err)
	}
	var config HopConfig
	if err := json.Unmarshal(content, &config); err != nil {
		return HopConfig{}, fmt.Errorf("reading what the hop is to do: %w", err)
	}
	return config, nil
}

// ServeHop is the process of a hop; it serves until ctx ends.
func ServeHop(ctx context.Context, config HopConfig) error {
	handler, err := config.proxy()
	if err != nil {
		return err
	}
	server, err := config.serverTLS()
	if err != nil {
		return err
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", config.Listen)
	if err != nil {
		return fmt.Errorf("listening for the hop: %w", err)
	}
	s := &http.Server{Handler: handler, TLSConfig: server}
	context.AfterFunc(ctx, func() { _ = s.Close() }) // a benchmark's calls are worth nothing once it ends
	if err := s.ServeTLS(listener, "", ""); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving the hop: %w", err)
	}
	return nil
}

// proxy is what anybody would write first.
func (c HopConfig) proxy() (http.Handler, error) {
	target, err := url.Parse(c.Target)
	if err != nil {
		return nil, fmt.Errorf("reading the target of the hop: %w", err)
	}
	transport, err := c.transport()
	if err != nil {
		return nil, err
	}
	return &httputil.ReverseProxy{
		Transport: transport,
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			for _, name := range c.Remove {
				delete(r.Out.Header, name)
			}
			for name, values := range c.Set {
				r.Out.Header[name] = values
			}
		},
	}, nil
}

// protocols sends watches over HTTP/2 and everything else over HTTP/1.1, as
// sidecar and broker do.
type protocols struct{ short, long *http.Transport }

func (p protocols) RoundTrip(r *http.Request) (*http.Response, error) {
	if strings.Contains(r.URL.RawQuery, "watch=true") {
		return p.long.RoundTrip(r)
	}
	return p.short.RoundTrip(r)
}

func (c HopConfig) transport() (http.RoundTripper, error) {
	roots, err := readPool(c.TargetCA)
	if err != nil {
		return nil, err
	}
	settings := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, DynamicRecordSizingDisabled: c.Mutual == MutualUp}
	if c.TargetCertificate != "" {
		pair, err := tls.LoadX509KeyPair(c.TargetCertificate, c.TargetKey)
		if err != nil {
			return nil, fmt.Errorf("reading the client certificate of the hop: %w", err)
		}
		settings.Certificates = []tls.Certificate{pair}
	}
	return protocols{short: newTransport(settings, false), long: newTransport(settings, true)}, nil
}

// newTransport is a transport of one protocol that keeps its connections.
func newTransport(settings *tls.Config, http2 bool) *http.Transport {
	transport := &http.Transport{
		TLSClientConfig: settings.Clone(), DisableCompression: true, MaxIdleConnsPerHost: 256,
		Protocols: new(http.Protocols),
	}
	transport.Protocols.SetHTTP1(!http2)
	transport.Protocols.SetHTTP2(http2)
	return transport
}

func (c HopConfig) serverTLS() (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(c.Certificate, c.Key)
	if err != nil {
		return nil, fmt.Errorf("reading the certificate of the hop: %w", err)
	}
	settings := &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair}, SessionTicketsDisabled: true,
		NextProtos: []string{"h2", "http/1.1"}, DynamicRecordSizingDisabled: c.Mutual == MutualDown,
	}
	if c.ClientCA == "" {
		return settings, nil
	}
	settings.ClientAuth = tls.RequireAndVerifyClientCert
	settings.ClientCAs, err = readPool(c.ClientCA)
	return settings, err
}

func readPool(file string) (*x509.CertPool, error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("reading an authority: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(content) {
		return nil, errors.New("no certificate in " + file)
	}
	return pool, nil
}
