package recorder

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// Kind says what a manifest states.
type Kind string

// A stream is opened by one manifest and closed by one; the others are about
// one segment each, or say that the broker still lives.
const (
	KindOpen      Kind = "open"
	KindSegment   Kind = "segment"
	KindHeartbeat Kind = "heartbeat"
	KindClose     Kind = "close"
)

const (
	manifestFormat = "taskgate.dev/manifest/v1"
	manifestType   = "taskgate-manifest+json" // typ, RFC 7515 section 4.1.9
	maxManifest    = 64 << 10

	// How a stream ended.
	endClosed    = "closed"
	endRecovered = "recovered"

	// unknownStream is what an opening manifest names when this machine holds no
	// trace of an earlier stream of its broker.
	unknownStream = "unknown"
)

// Manifest is a broker's signed statement about its stream (the payload of a
// JWS in compact form, RFC 7515, with the X509-SVID in x5c). Hashes are SHA-256
// in lower-case hex, of the stored bytes.
type Manifest struct {
	Format  string    `json:"format"`
	Cluster string    `json:"cluster"`
	Stream  string    `json:"stream"`
	Number  uint64    `json:"number"` // from 1, without a gap
	Kind    Kind      `json:"kind"`
	Time    MicroTime `json:"time"` // of the signature
	// Previous is the hash of the manifest before this one; empty in an opening
	// manifest. If it is not known which of several signatures of that manifest
	// the bucket took, PreviousOr has the others.
	Previous   string   `json:"previous,omitempty"`
	PreviousOr []string `json:"previousOr,omitempty"`
	// Trust is the hash of the trust bundle in force, archived beside.
	Trust string `json:"trust"`
	// Last is the number of the last record this stream has sealed, 0 if none.
	Last uint64 `json:"last"`

	// A segment: its first record and the number of records; where it lies. The
	// version is empty if the store took the object and its answer was lost.
	First   uint64 `json:"first,omitempty"`
	Count   uint64 `json:"count,omitempty"`
	Key     string `json:"key,omitempty"`
	Version string `json:"version,omitempty"`
	SHA256  string `json:"sha256,omitempty"`
	Size    int64  `json:"size,omitempty"`
	RawSize int64  `json:"rawSize,omitempty"` // decompressed

	// An opening manifest: the last manifest of this broker's stream before.
	Follows *Link `json:"follows,omitempty"`
	// A closing manifest: "closed", or "recovered" by a later start.
	End string `json:"end,omitempty"`
}

// Link names the last manifest of a stream; Stream is "unknown" without one.
type Link struct {
	Stream   string   `json:"stream"`
	Manifest string   `json:"manifest,omitempty"`
	Or       []string `json:"or,omitempty"` // as PreviousOr
}

func hashOf(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// signatureAlgorithms are those the keys of X509-SVIDs allow.
func signatureAlgorithms() []jose.SignatureAlgorithm {
	return []jose.SignatureAlgorithm{jose.ES256, jose.ES384, jose.ES512, jose.RS256, jose.EdDSA}
}

func algorithmFor(svid *x509svid.SVID) (jose.SignatureAlgorithm, error) {
	switch key := svid.PrivateKey.Public().(type) {
	case *ecdsa.PublicKey:
		switch key.Params().BitSize {
		case 256:
			return jose.ES256, nil
		case 384:
			return jose.ES384, nil
		case 521:
			return jose.ES512, nil
		}
	case *rsa.PublicKey:
		return jose.RS256, nil
	case ed25519.PublicKey:
		return jose.EdDSA, nil
	}
	return "", fmt.Errorf("signing with a key of type %T is not possible; let SPIRE issue ec-p256", svid.PrivateKey.Public())
}

// sign makes the stored bytes of a manifest.
func (m *Manifest) sign(svid *x509svid.SVID) ([]byte, error) {
	algorithm, err := algorithmFor(svid)
	if err != nil {
		return nil, err
	}
	var chain []string
	for _, certificate := range svid.Certificates {
		chain = append(chain, base64.StdEncoding.EncodeToString(certificate.Raw))
	}
	options := new(jose.SignerOptions).WithType(manifestType).WithHeader("x5c", chain)
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: algorithm, Key: svid.PrivateKey}, options)
	if err != nil {
		return nil, fmt.Errorf("signing a manifest: %w", err)
	}
	payload, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("signing a manifest: %w", err)
	}
	signed, err := signer.Sign(payload)
	if err != nil {
		return nil, fmt.Errorf("signing a manifest: %w", err)
	}
	compact, err := signed.CompactSerialize()
	return []byte(compact), err
}

// signedManifest is a manifest as it was stored. Nothing in it is to be believed
// before its chain and then its signature were verified.
type signedManifest struct {
	Manifest
	hash      string
	chain     []*x509.Certificate
	signature *jose.JSONWebSignature
}

// joseHeader is the whole protected header, in the order the signer writes it.
type joseHeader struct {
	Algorithm string   `json:"alg"`
	Type      string   `json:"typ"`
	Chain     []string `json:"x5c"`
}

// parseManifest takes stored bytes apart. It accepts exactly what sign makes, so
// that no byte can be changed without a trace, not even an unused bit of the
// base64.
func parseManifest(data []byte) (*signedManifest, error) {
	if len(data) > maxManifest {
		return nil, fmt.Errorf("a manifest has at most %d bytes", maxManifest)
	}
	parts, err := splitCompact(data)
	if err != nil {
		return nil, err
	}
	var header joseHeader
	if err := decodeCanonical(parts[0], &header); err != nil {
		return nil, fmt.Errorf("reading the header: %w", err)
	}
	m := &signedManifest{hash: hashOf(data)}
	if err := decodeCanonical(parts[1], &m.Manifest); err != nil {
		return nil, fmt.Errorf("reading the payload: %w", err)
	}
	if header.Type != manifestType || m.Format != manifestFormat {
		return nil, fmt.Errorf("%q in format %q is not known here", header.Type, m.Format)
	}
	if len(header.Chain) == 0 || len(header.Chain) > 4 {
		return nil, errors.New("x5c must hold 1 to 4 certificates")
	}
	for _, encoded := range header.Chain {
		der, err := base64.StdEncoding.Strict().DecodeString(encoded)
		if err != nil {
			return nil, fmt.Errorf("reading x5c: %w", err)
		}
		certificate, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("reading x5c: %w", err)
		}
		m.chain = append(m.chain, certificate)
	}
	m.signature, err = jose.ParseSignedCompact(string(data), signatureAlgorithms())
	return m, err
}

func splitCompact(data []byte) ([3][]byte, error) {
	var decoded [3][]byte
	parts := bytes.Split(data, []byte("."))
	if len(parts) != len(decoded) {
		return decoded, errors.New("not a JWS in compact form")
	}
	for i, part := range parts {
		plain, err := base64.RawURLEncoding.DecodeString(string(part))
		if err != nil {
			return decoded, fmt.Errorf("not a JWS in compact form: %w", err)
		}
		if base64.RawURLEncoding.EncodeToString(plain) != string(part) {
			return decoded, fmt.Errorf("%w: the base64 of part %d", ErrNotCanonical, i+1)
		}
		decoded[i] = plain
	}
	return decoded, nil
}

// checkSignature verifies the signature with the key of the leaf.
func (m *signedManifest) checkSignature() error {
	_, err := m.signature.Verify(m.chain[0].PublicKey)
	return err
}
