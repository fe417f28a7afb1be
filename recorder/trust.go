package recorder

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// maxBundle bounds an archived trust bundle, in bytes.
const maxBundle = 1 << 20

// ParseTrustBundle reads a trust bundle in the SPIFFE format (a JWKS document,
// as in `spire-server bundle show -format spiffe`) or in PEM.
func ParseTrustBundle(domain spiffeid.TrustDomain, data []byte) (*x509bundle.Bundle, error) {
	var bundle *x509bundle.Bundle
	if bytes.HasPrefix(bytes.TrimSpace(data), []byte("{")) {
		parsed, err := spiffebundle.Parse(domain, data)
		if err != nil {
			return nil, fmt.Errorf("reading the trust bundle: %w", err)
		}
		bundle = parsed.X509Bundle()
	} else {
		parsed, err := x509bundle.Parse(domain, data)
		if err != nil {
			return nil, fmt.Errorf("reading the trust bundle: %w; it must be in SPIFFE or PEM format", err)
		}
		bundle = parsed
	}
	if bundle.Empty() {
		return nil, errors.New("reading the trust bundle: it holds no X.509 authority")
	}
	return bundle, nil
}

// trust is the authorities that count, per trust domain: those the auditor gave
// and those of archived bundles that a verified manifest names.
type trust struct {
	bundles *x509bundle.Set
	brokers []spiffeid.ID
	counted map[string]bool // hashes of archived bundles that count, or could not be read
}

func newTrust(bundles []*x509bundle.Bundle, brokers []spiffeid.ID) *trust {
	t := &trust{bundles: x509bundle.NewSet(), brokers: brokers, counted: map[string]bool{}}
	for _, bundle := range bundles {
		t.add(bundle)
	}
	return t
}

// add makes the authorities of a bundle count beside those that do.
func (t *trust) add(bundle *x509bundle.Bundle) {
	held, ok := t.bundles.Get(bundle.TrustDomain())
	if !ok {
		t.bundles.Add(bundle.Clone())
		return
	}
	for _, authority := range bundle.X509Authorities() {
		held.AddX509Authority(authority)
	}
}

// verify checks who signed a manifest and when: the chain first, because the
// key that checks the signature comes from it.
func (t *trust) verify(m *signedManifest, stored time.Time, tolerance time.Duration) *flaw {
	id, _, err := x509svid.Verify(m.chain, t.bundles, x509svid.WithTime(m.Time.Time))
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return &flaw{reason: SignatureTime, detail: fmt.Sprintf("signed at %s, when the SVID was not valid", m.Time.Format(time.RFC3339))}
	case err != nil:
		return &flaw{reason: UntrustedSigner, detail: err.Error()}
	case !slices.Contains(t.brokers, id):
		return &flaw{reason: UntrustedSigner, detail: fmt.Sprintf("signed by %s, which is not a broker", id)}
	}
	if err := m.checkSignature(); err != nil {
		return &flaw{reason: BadSignature, detail: err.Error()}
	}
	if apart := stored.Sub(m.Time.Time).Abs(); !stored.IsZero() && apart > tolerance {
		return &flaw{reason: SignatureTime, detail: fmt.Sprintf("signed at %s and stored at %s", m.Time.Format(time.RFC3339), stored.UTC().Format(time.RFC3339))}
	}
	return nil
}

// follow makes the archived bundle a verified manifest names count. The flaw is
// of that bundle, not of the manifest.
func (t *trust) follow(ctx context.Context, bucket Bucket, m *signedManifest) (*flaw, error) {
	if t.counted[m.Trust] {
		return nil, nil
	}
	if !isHash(m.Trust) {
		return &flaw{reason: Malformed, detail: "it names no trust bundle"}, nil
	}
	t.counted[m.Trust] = true
	data, err := readOldest(ctx, bucket, trustKey(m.Trust), maxBundle)
	switch {
	case errors.Is(err, ErrNotFound):
		return &flaw{reason: MissingObject, detail: "the archived trust bundle is not there"}, nil
	case err != nil:
		return nil, err
	case hashOf(data) != m.Trust:
		return &flaw{reason: HashMismatch, detail: "the archived trust bundle is not what was signed"}, nil
	}
	domain, err := x509svid.IDFromCert(m.chain[0])
	if err != nil {
		return nil, err // cannot be: the chain was verified
	}
	bundle, err := ParseTrustBundle(domain.TrustDomain(), data)
	if err != nil {
		return &flaw{reason: Malformed, detail: err.Error()}, nil
	}
	t.add(bundle)
	return nil, nil
}

// readOldest reads the version of an object that was there first.
func readOldest(ctx context.Context, bucket Bucket, key string, limit int64) ([]byte, error) {
	for versions, err := range objects(ctx, bucket, path.Dir(key)+"/", time.Time{}) {
		if err != nil {
			return nil, err
		}
		if versions[0].Key == key {
			if first, ok := oldest(versions); ok {
				return readVersion(ctx, bucket, first, limit)
			}
		}
	}
	return nil, fmt.Errorf("%w: %s", ErrNotFound, key)
}

// readVersion reads one version, at most limit bytes and one more.
func readVersion(ctx context.Context, bucket Bucket, version Version, limit int64) ([]byte, error) {
	content, err := bucket.Get(ctx, version.Key, version.ID)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(content, limit+1))
	return data, errors.Join(err, content.Close())
}
