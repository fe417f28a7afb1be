package recorder

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// sealer moves the records of one stream from its spool to the bucket. It
// belongs to one goroutine.
type sealer struct {
	config    *Config
	uploader  *uploader
	fate      *fate
	spool     *spool
	directory string
	encoder   *zstd.Encoder

	state   sealState
	unknown bool     // the pending object may be stored already
	at      position // records before it are sealed
	seen    uint64   // number of the last record before at
	open    map[string]struct{}
	bundle  archivedBundle
	touched time.Time // when the last manifest was stored
	// signed is the SVID of the last signature, and the trust bundle it named.
	signed struct {
		svid  *x509svid.SVID
		trust string
	}
}

// errEnough ends a scan.
var errEnough = errors.New("enough")

// sealSome seals the next durable records, at most one segment of them, and
// says whether there were any.
func (s *sealer) sealSome(ctx context.Context) (bool, error) {
	extent, ok := s.spool.after(s.at)
	if !ok {
		return false, nil
	}
	data, err := extent.read(s.config.SegmentBytes)
	if err != nil {
		return false, s.fate.die(fmt.Errorf("reading the spool back: %w", err))
	}
	var body bytes.Buffer
	manifest, end, err := s.compress(&body, data, extent)
	if err != nil {
		return false, s.fate.die(fmt.Errorf("reading the spool back: %w", err))
	}
	next := position{number: extent.number, offset: end}
	if manifest.Count > 0 {
		manifest.Key = segmentKey(s.state.Cluster, s.day(), s.state.Stream, manifest.First)
		manifest.SHA256, manifest.Size = hashOf(body.Bytes()), int64(body.Len())
		if err := s.propose(ctx, manifest, body.Bytes()); err != nil {
			return false, err
		}
		s.spool.sealedTo(s.state.Sealed, end-extent.from)
	}
	s.at = next
	return true, s.trim(ctx)
}

// compress writes a segment's lines and returns what its manifest says about
// them. Frames the bucket already holds (after a restart) only count for the
// open intents.
func (s *sealer) compress(body *bytes.Buffer, data []byte, extent extent) (Manifest, int64, error) {
	s.encoder.Reset(body)
	m := Manifest{Kind: KindSegment}
	end, err := scanFrames(data, extent.from, extent.seed, func(f frame, _ int64) error {
		if f.seq > s.state.Sealed {
			if m.Count > 0 && m.RawSize+int64(len(f.line)) > s.config.SegmentBytes {
				return errEnough
			}
			if m.Count == 0 {
				m.First = f.seq
			}
			m.Count, m.Last = m.Count+1, f.seq
			m.RawSize += int64(len(f.line))
			if _, err := s.encoder.Write(f.line); err != nil {
				return err
			}
		}
		s.track(f)
		return nil
	})
	if err != nil && !errors.Is(err, errEnough) {
		return m, end, err
	}
	whole := int64(len(data)) == extent.to-extent.from
	if end == extent.from || whole && err == nil && end < extent.to {
		return m, end, fmt.Errorf("%w: %s at offset %d", ErrDamaged, extent.path, end)
	}
	return m, end, s.encoder.Close()
}

func (s *sealer) track(f frame) {
	s.seen = f.seq
	switch f.kind {
	case kindIntent:
		s.open[string(f.id)] = struct{}{}
	case kindOutcome:
		delete(s.open, string(f.id))
	}
}

// sealAll seals everything that is durable now. What becomes durable meanwhile
// waits for its own second, or under load this would never end.
func (s *sealer) sealAll(ctx context.Context) error {
	for end := s.spool.durableSeq(); s.seen < end; {
		if more, err := s.sealSome(ctx); err != nil || !more {
			return err
		}
	}
	return nil
}

// declare signs and stores a manifest that is not about a segment.
func (s *sealer) declare(ctx context.Context, m Manifest) error {
	m.Last = s.state.Sealed
	return s.propose(ctx, m, nil)
}

// propose makes a manifest, and the segment it is about, the pending work of the
// stream and does it. The bytes are durable here before they are first sent: a
// crash from now on is followed by sending the same bytes again.
func (s *sealer) propose(ctx context.Context, m Manifest, segment []byte) error {
	s.state.Day = s.day()
	m.Format, m.Cluster, m.Stream, m.Number = manifestFormat, s.state.Cluster, s.state.Stream, s.state.Number
	if n := len(s.state.Previous); n > 0 {
		m.Previous, m.PreviousOr = s.state.Previous[n-1], s.state.Previous[:n-1]
	}
	s.state.Pending = &pending{Manifest: m, Key: manifestKey(m.Cluster, s.state.Day, m.Stream, m.Number)}
	s.unknown = false
	if segment != nil {
		if err := s.persist(ctx, segmentFile, segment); err != nil {
			return err
		}
	}
	if err := s.saveState(ctx); err != nil {
		return err
	}
	return s.settle(ctx)
}

// settle stores what is pending. It returns only when that is in the bucket, when
// ctx ends, or when the recorder is dead.
func (s *sealer) settle(ctx context.Context) error {
	p := s.state.Pending
	if p.Manifest.Kind == KindSegment && p.Signed == "" {
		if err := s.settleSegment(ctx, p); err != nil {
			return err
		}
	}
	existed, err := s.put(ctx, p.Key, s.config.Retention, func() ([]byte, error) { return s.signature(ctx, p) }, nil)
	if err != nil {
		return err
	}
	s.state.Previous = []string{hashOf([]byte(p.Signed))}
	if existed { // any of the signatures that were sent may be the one that is there
		s.state.Previous = append(p.Earlier, s.state.Previous...)
	}
	s.state.Number++
	s.state.Sealed = p.Manifest.Last
	s.state.Closed = p.Manifest.Kind == KindClose
	s.state.Pending = nil
	s.touched = s.config.Now()
	return nil
}

func (s *sealer) settleSegment(ctx context.Context, p *pending) error {
	body, err := os.ReadFile(filepath.Join(s.directory, segmentFile))
	if err == nil && hashOf(body) != p.Manifest.SHA256 {
		err = fmt.Errorf("%w: it is not what was to be sent", ErrDamaged)
	}
	if err != nil {
		return s.fate.die(fmt.Errorf("reading the pending segment: %w", err))
	}
	_, err = s.put(ctx, p.Manifest.Key, s.config.Retention, func() ([]byte, error) { return body, nil },
		func(stored Stored) { p.Manifest.Version = stored.Version })
	return err
}

// signature returns the signed manifest, signed now if it is to be put for the
// first time. One that has waited for longer than the verifier would accept
// between signature and storage is signed anew; if the old one may have been
// stored, both count until the store tells.
func (s *sealer) signature(ctx context.Context, p *pending) ([]byte, error) {
	now := s.config.Now()
	if p.Signed != "" && now.Sub(p.Manifest.Time.Time) < s.config.AgeLimit {
		return []byte(p.Signed), nil
	}
	svid, err := s.signer(ctx, now)
	if err != nil {
		return nil, err
	}
	if p.Signed != "" && s.unknown {
		p.Earlier = append(p.Earlier, hashOf([]byte(p.Signed)))
	}
	p.Manifest.Time, p.Manifest.Trust = MicroTime{now.Truncate(time.Microsecond)}, s.bundle.hash
	signed, err := p.Manifest.sign(svid)
	if err != nil {
		return nil, err
	}
	p.Signed = string(signed)
	s.signed.svid, s.signed.trust = svid, s.bundle.hash
	return signed, s.saveState(ctx)
}

// signer returns the SVID to sign with, and archives the bundle to be named. The
// first manifest that names another bundle is signed as the one before it, if
// that SVID is valid still: who trusts that one can follow, even if the bundle and
// our SVID changed at the same time.
func (s *sealer) signer(ctx context.Context, now time.Time) (*x509svid.SVID, error) {
	svid, err := s.config.Identity.GetX509SVID()
	if err != nil {
		return nil, fmt.Errorf("signing a manifest: %w", err)
	}
	if leaf := svid.Certificates[0]; !validAt(leaf, now) {
		return nil, fmt.Errorf("signing a manifest: the SVID is valid from %s to %s, and such a signature would never count", leaf.NotBefore.Format(time.RFC3339), leaf.NotAfter.Format(time.RFC3339))
	}
	if err := s.archiveBundle(ctx, svid.ID.TrustDomain()); err != nil {
		return nil, err
	}
	if last := s.signed.svid; last != nil && s.signed.trust != s.bundle.hash && validAt(last.Certificates[0], now) {
		return last, nil
	}
	return svid, nil
}

func validAt(certificate *x509.Certificate, now time.Time) bool {
	return !now.Before(certificate.NotBefore) && !now.After(certificate.NotAfter)
}

// put stores one object, however often that must be tried.
//
// An answer that leaves open whether the object was stored is remembered: after
// it, "exists" means that it was. Without it, "exists" means that somebody else
// writes under our name.
func (s *sealer) put(ctx context.Context, key string, retention time.Duration, body func() ([]byte, error), taken func(Stored)) (existed bool, err error) {
	for attempt := 0; ; attempt++ {
		if err := s.fate.err(); err != nil {
			return false, err
		}
		data, err := body()
		if err != nil {
			s.uploader.fail(err)
		} else {
			stored, err := s.uploader.attempt(ctx, key, data, retention)
			switch {
			case err == nil:
				s.unknown = false
				if taken != nil {
					taken(stored)
				}
				return false, nil
			case errors.Is(err, ErrExists) && s.unknown:
				s.unknown = false
				return true, nil
			case errors.Is(err, ErrExists):
				return false, s.fork(ctx, key)
			case !errors.Is(err, ErrRefused):
				s.unknown = true
			}
		}
		if err := s.uploader.pause(ctx, attempt); err != nil {
			return false, err
		}
	}
}

// ErrFork says that an object of our own stream existed before we first wrote
// it: another process uses the same stream, or someone else can write to the
// bucket.
var ErrFork = errors.New("the stream was written by somebody else")

// fork stops the recorder, and every later one that finds this spool: to seal
// over a fork would hide it.
func (s *sealer) fork(ctx context.Context, key string) error {
	s.state.Fork = key
	saved := s.saveState(ctx)
	return errors.Join(s.fate.die(fmt.Errorf("%w: %w", ErrFork, forkProblem(s.directory, key))), saved)
}

func forkProblem(directory, key string) error {
	return &Problem{ForkSuspected, fmt.Sprintf("%s existed before this broker wrote it; find out with `taskgate verify` who did, then move %s out of the spool", key, directory)}
}

// day is the day new objects are filed under. It never goes back.
func (s *sealer) day() string { return max(s.state.Day, dayOf(s.config.Now())) }
