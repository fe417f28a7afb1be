package identity

import (
	"crypto/tls"
	"fmt"
	"slices"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
)

// ServerTLS makes the broker's side of mutual TLS. A client whose trust domain
// is not in accepted does not get through the handshake; an empty list accepts
// nobody.
//
// Session tickets are off. Were GetConfigForClient ever set, they would have to
// be off on the configuration it returns as well: Go aborts handshakes when the
// two disagree.
func (s *Source) ServerTLS(accepted []spiffeid.TrustDomain) *tls.Config {
	return s.harden(&tls.Config{
		GetCertificate: tlsconfig.GetCertificate(s),
		ClientAuth:     tls.RequireAnyClientCert, // VerifyConnection decides
		NextProtos:     []string{"h2", "http/1.1"},
		VerifyConnection: s.verifyConnection(func(id spiffeid.ID) error {
			if !slices.Contains(accepted, id.TrustDomain()) {
				return fmt.Errorf("trust domain %q is not accepted here", id.TrustDomain().Name())
			}
			return nil
		}),
	})
}

// ClientTLS makes the sidecar's side of mutual TLS. It talks to exactly one
// SPIFFE ID; the zero ID matches nobody.
func (s *Source) ClientTLS(server spiffeid.ID, protocols ...string) *tls.Config {
	return s.harden(&tls.Config{
		GetClientCertificate: tlsconfig.GetClientCertificate(s),
		NextProtos:           protocols,
		// SPIFFE replaces the verification of host names by that of the SPIFFE
		// ID, which happens in VerifyConnection.
		InsecureSkipVerify: true,
		VerifyConnection: s.verifyConnection(func(id spiffeid.ID) error {
			if server.IsZero() {
				return fmt.Errorf("no SPIFFE ID is expected")
			}
			return spiffeid.MatchID(server)(id)
		}),
	})
}

func (s *Source) harden(config *tls.Config) *tls.Config {
	config.MinVersion = tls.VersionTLS13
	config.SessionTicketsDisabled = true
	config.ClientSessionCache = nil
	// Full records from the first byte: the hops are inside one cluster.
	config.DynamicRecordSizingDisabled = true
	return config
}

// verifyConnection runs for every handshake, resumed ones too (which do not
// exist here), before any byte of the application is exchanged.
func (s *Source) verifyConnection(accept func(spiffeid.ID) error) func(tls.ConnectionState) error {
	return func(state tls.ConnectionState) error {
		id, outcome := s.verify(state.PeerCertificates)
		if outcome.err != nil {
			return outcome.err
		}
		if err := accept(id); err != nil {
			return fmt.Errorf("%w: %w", ErrUntrusted, err)
		}
		return nil
	}
}
