// Package spiffetest is a SPIFFE trust domain in memory, for tests and for the
// quick start: a throw-away certificate authority ([CA]) and a Workload API
// server ([Server]) that speaks the real protocol over a unix socket.
//
// It attests nothing: whoever can open the socket gets the identity. Programs
// that start it for people must say so.
package spiffetest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net/url"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// CA is a certificate authority for one trust domain.
type CA struct {
	domain      spiffeid.TrustDomain
	key         *ecdsa.PrivateKey
	certificate *x509.Certificate
}

// NewCA makes an authority with a key of its own; two with the same trust domain
// do not trust each other.
func NewCA(trustDomain string) (*CA, error) {
	domain, err := spiffeid.TrustDomainFromString(trustDomain)
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               pkix.Name{CommonName: "throw-away authority of " + trustDomain},
		URIs:                  []*url.URL{domain.ID().URL()},
		NotBefore:             now.Add(-time.Minute),
		NotAfter:              now.Add(10 * 365 * 24 * time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	certificate, err := sign(template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return &CA{domain: domain, key: key, certificate: certificate}, nil
}

// Leaf describes an SVID to issue. Change edits the template before it is
// signed, to make SVIDs a real authority would never issue.
type Leaf struct {
	ID        spiffeid.ID
	NotBefore time.Time     // zero: a minute ago
	TTL       time.Duration // from now; zero: one hour
	Hint      string
	Change    func(*x509.Certificate)
}

// Issue makes an X509-SVID. The ID may be of any trust domain: a hostile
// authority would do the same.
func (ca *CA) Issue(leaf Leaf) (*x509svid.SVID, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	if leaf.TTL == 0 {
		leaf.TTL = time.Hour
	}
	now := time.Now()
	if leaf.NotBefore.IsZero() {
		leaf.NotBefore = now.Add(-time.Minute)
	}
	template := &x509.Certificate{
		SerialNumber:          serial(),
		URIs:                  []*url.URL{leaf.ID.URL()},
		NotBefore:             leaf.NotBefore,
		NotAfter:              now.Add(leaf.TTL),
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if leaf.Change != nil {
		leaf.Change(template)
	}
	certificate, err := sign(template, ca.certificate, key.Public(), ca.key)
	if err != nil {
		return nil, err
	}
	return &x509svid.SVID{ID: leaf.ID, Certificates: []*x509.Certificate{certificate}, PrivateKey: key, Hint: leaf.Hint}, nil
}

// Bundle is the trust bundle of the authority.
func (ca *CA) Bundle() *x509bundle.Bundle {
	return x509bundle.FromX509Authorities(ca.domain, []*x509.Certificate{ca.certificate})
}

// BundleJSON is the trust bundle in the SPIFFE format (a JWKS document).
func (ca *CA) BundleJSON() ([]byte, error) {
	return spiffebundle.FromX509Bundle(ca.Bundle()).Marshal()
}

func sign(template, parent *x509.Certificate, public crypto.PublicKey, signer crypto.Signer) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, signer)
	if err != nil {
		return nil, fmt.Errorf("signing a certificate: %w", err)
	}
	return x509.ParseCertificate(der)
}

func serial() *big.Int {
	number, _ := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120)) // crypto/rand does not fail
	return number
}
