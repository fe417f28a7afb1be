package process

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"
)

const probeTimeout = 2 * time.Second

// Probe says how to ask a process whether it is ready. The zero value asks
// nothing: the process is ready once it runs.
type Probe struct {
	URL    string `json:"url,omitempty"`    // must answer 200
	CA     string `json:"ca,omitempty"`     // file of the authority that signed the server's certificate, for https
	Socket string `json:"socket,omitempty"` // unix socket that must accept a connection
}

// try answers nil when the process is ready.
func (p Probe) try(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	if p.Socket != "" {
		if err := dialSocket(ctx, p.Socket); err != nil {
			return err
		}
	}
	if p.URL != "" {
		return p.get(ctx)
	}
	return nil
}

func dialSocket(ctx context.Context, socket string) error {
	connection, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return err
	}
	return connection.Close()
}

func (p Probe) get(ctx context.Context) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, p.URL, nil)
	if err != nil {
		return err
	}
	transport, err := p.transport()
	if err != nil {
		return err
	}
	defer transport.CloseIdleConnections()
	response, err := transport.RoundTrip(request) // a redirect is not ready
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }() // only the status counts
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s answered %s", p.URL, response.Status)
	}
	return nil
}

// transport makes new connections and uses no proxy: whatever the environment
// says, a testbed lives on loopback.
func (p Probe) transport() (*http.Transport, error) {
	transport := &http.Transport{DisableKeepAlives: true}
	if p.CA == "" {
		return transport, nil
	}
	content, err := os.ReadFile(p.CA)
	if err != nil {
		return nil, fmt.Errorf("reading the authority of %s: %w", p.URL, err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(content) {
		return nil, errors.New("no certificate in " + p.CA)
	}
	transport.TLSClientConfig = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	return transport, nil
}
