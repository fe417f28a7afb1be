package identity

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// ErrExpired says that the peer's SVID has reached its end.
var ErrExpired = errors.New("the X509-SVID has expired")

// ErrUntrusted says that no acceptable authority stands behind the peer's SVID
// (any more).
var ErrUntrusted = errors.New("no trusted authority stands behind the X509-SVID")

// Bounds on what a peer may make us parse and verify; real chains are far below
// (a SPIRE leaf has about 600 bytes and two intermediates at the most).
const (
	maxChain     = 4
	maxLeafBytes = 16 << 10
)

// Peer is the verified other end of one TLS connection. The zero value fails
// every check. Safe for concurrent use.
type Peer struct {
	id     spiffeid.ID
	leaf   [sha256.Size]byte
	chain  []*x509.Certificate
	source *Source

	verified atomic.Pointer[verification]
}

// verification is the outcome of one full verification of the chain.
type verification struct {
	generation uint64
	notAfter   time.Time // earliest end of any certificate of the best chain
	err        error
}

// Peer verifies the certificates of an established connection. Call it once per
// connection and [Peer.Check] once per request.
func (s *Source) Peer(state tls.ConnectionState) (*Peer, error) {
	p := &Peer{chain: state.PeerCertificates, source: s}
	id, outcome := s.verify(p.chain)
	if outcome.err != nil {
		return nil, outcome.err
	}
	p.id = id
	p.leaf = sha256.Sum256(p.chain[0].Raw)
	p.verified.Store(&outcome)
	return p, nil
}

// ID is the SPIFFE ID of the peer's leaf certificate.
func (p *Peer) ID() spiffeid.ID { return p.id }

// LeafSHA256 is the hash of the peer's leaf certificate in DER form.
func (p *Peer) LeafSHA256() [sha256.Size]byte { return p.leaf }

// NotAfter is the moment from which Check fails unless the bundle changes.
func (p *Peer) NotAfter() time.Time {
	if outcome := p.verified.Load(); outcome != nil {
		return outcome.notAfter
	}
	return time.Time{}
}

// Check returns nil if the peer's SVID has not ended at now and is still backed
// by the bundle of its trust domain. It returns an error that wraps ErrExpired
// or ErrUntrusted otherwise, ErrUntrusted for a zero Peer. The chain is verified
// again only after the Workload API sent an update; between updates Check costs
// two comparisons.
func (p *Peer) Check(now time.Time) error {
	if p == nil || p.source == nil {
		return ErrUntrusted
	}
	outcome := p.verified.Load()
	if outcome == nil || outcome.generation != p.source.generation() {
		_, fresh := p.source.verify(p.chain)
		p.verified.Store(&fresh)
		outcome = &fresh
	}
	if outcome.err != nil {
		return outcome.err
	}
	if !now.Before(outcome.notAfter) {
		return fmt.Errorf("%w at %s", ErrExpired, outcome.notAfter.UTC().Format(time.RFC3339))
	}
	return nil
}

func (s *Source) generation() uint64 {
	if held := s.current.Load(); held != nil {
		return held.generation
	}
	return 0
}

// verify checks a chain against the bundle of the leaf's own trust domain
// (X509-SVID, section 5: one URI SAN with a path, no CA flag, no signing key usages).
func (s *Source) verify(chain []*x509.Certificate) (spiffeid.ID, verification) {
	outcome := verification{generation: s.generation()}
	if len(chain) == 0 || len(chain) > maxChain || len(chain[0].Raw) > maxLeafBytes {
		outcome.err = fmt.Errorf("%w: a chain of 1 to %d certificates with a leaf of at most %d bytes is needed", ErrUntrusted, maxChain, maxLeafBytes)
		return spiffeid.ID{}, outcome
	}
	now := s.config.Now()
	if end := chain[0].NotAfter; !now.Before(end) {
		outcome.err = fmt.Errorf("%w at %s", ErrExpired, end.UTC().Format(time.RFC3339))
		return spiffeid.ID{}, outcome
	}
	id, chains, err := x509svid.Verify(chain, s, x509svid.WithTime(now))
	if err != nil {
		outcome.err = fmt.Errorf("%w: %w", ErrUntrusted, err)
		return spiffeid.ID{}, outcome
	}
	if id.Path() == "" { // go-spiffe checks it only when it parses an SVID of our own
		outcome.err = fmt.Errorf("%w: %s names a trust domain, not a workload", ErrUntrusted, id)
		return spiffeid.ID{}, outcome
	}
	outcome.notAfter = latestEnd(chains)
	return id, outcome
}

// latestEnd is the end of the chain that holds longest; a chain holds as long
// as the certificate in it that ends first.
func latestEnd(chains [][]*x509.Certificate) time.Time {
	var latest time.Time
	for _, chain := range chains {
		end := chain[0].NotAfter
		for _, certificate := range chain[1:] {
			if certificate.NotAfter.Before(end) {
				end = certificate.NotAfter
			}
		}
		if end.After(latest) {
			latest = end
		}
	}
	return latest
}
