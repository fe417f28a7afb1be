// Package pki makes the certificates of a test cluster: one authority, whose
// key never leaves memory, and leaves for a day or two of work. ECDSA keys,
// because RSA ones would take longer to make than the cluster takes to start.
package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"time"
)

// validity is long enough for a testbed that somebody forgets over a weekend.
const validity = 7 * 24 * time.Hour

// backdate allows for clients whose clock is a little behind.
const backdate = 5 * time.Minute

// Authority signs certificates for one testbed.
type Authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

// Leaf says what a certificate is for.
type Leaf struct {
	CommonName   string   // the user name, for Kubernetes clients
	Organization []string // the groups, for Kubernetes clients
	Hosts        []string // names and addresses, for servers; none makes a client certificate
}

// KeyPair is a certificate and its private key, both PEM.
type KeyPair struct {
	Certificate []byte
	Key         []byte
}

// NewAuthority makes a self-signed authority.
func NewAuthority(commonName string) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making the key of the authority: %w", err)
	}
	template := newTemplate(pkix.Name{CommonName: commonName})
	template.IsCA = true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("signing the authority: %w", err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("reading back the authority: %w", err)
	}
	return &Authority{certificate: certificate, key: key}, nil
}

// Certificate is the authority's certificate, PEM: what clients trust.
func (a *Authority) Certificate() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.certificate.Raw})
}

// Issue makes a key and signs a certificate for it.
func (a *Authority) Issue(leaf Leaf) (KeyPair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return KeyPair{}, fmt.Errorf("making the key of %s: %w", leaf.CommonName, err)
	}
	template := newTemplate(pkix.Name{CommonName: leaf.CommonName, Organization: leaf.Organization})
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if len(leaf.Hosts) > 0 {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	for _, host := range leaf.Hosts {
		if address := net.ParseIP(host); address != nil {
			template.IPAddresses = append(template.IPAddresses, address)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, key.Public(), a.key)
	if err != nil {
		return KeyPair{}, fmt.Errorf("signing the certificate of %s: %w", leaf.CommonName, err)
	}
	encodedKey, err := encodeKey(key)
	if err != nil {
		return KeyPair{}, err
	}
	return KeyPair{Certificate: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), Key: encodedKey}, nil
}

// Write stores the pair in two files, the key readable by its owner only.
func (p KeyPair) Write(certificateFile, keyFile string) error {
	if err := os.WriteFile(certificateFile, p.Certificate, 0o644); err != nil {
		return fmt.Errorf("writing a certificate: %w", err)
	}
	if err := os.WriteFile(keyFile, p.Key, 0o600); err != nil {
		return fmt.Errorf("writing a key: %w", err)
	}
	return nil
}

// NewKey makes a private key, PEM, such as the one that signs service account
// tokens.
func NewKey() ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	return encodeKey(key)
}

// encodeKey is the PEM form of a key that every component here reads.
func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encoding a key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), nil
}

func newTemplate(subject pkix.Name) *x509.Certificate {
	serial, _ := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120)) // crypto/rand does not fail
	now := time.Now()
	return &x509.Certificate{
		SerialNumber:          serial,
		Subject:               subject,
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(validity),
		BasicConstraintsValid: true,
	}
}
