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
	at      position // what lies before it is sealed
	work    workspace
	file    string // that had the last chunks
	open    map[string]struct{}
	named   map[string]struct{} // keys of chunks that recovery found a record of
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

// sealSome seals what is durable next, at most one segment of records and as much
// of streams, and says whether there was anything.
func (s *sealer) sealSome(ctx context.Context) (bool, error) {
	extent, ok := s.spool.after(s.at)
	if !ok {
		return false, nil
	}
	data, err := extent.read(s.config.SegmentBytes, s.work.data)
	if err != nil {
		return false, s.fate.die(fmt.Errorf("reading the spool back: %w", err))
	}
	s.work.data = data
	p, err := s.sort(data, extent)
	if err != nil {
		return false, s.fate.die(fmt.Errorf("reading the spool back: %w", err))
	}
	// The chunks go first: where a closing record is in the bucket, all of its
	// stream is, too.
	if err := s.storeChunks(ctx, p); err != nil {
		return false, err
	}
	if manifest := p.manifest; manifest.Count > 0 {
		manifest.Key = segmentKey(s.state.Cluster, s.day(), s.state.Stream, manifest.First)
		manifest.SHA256, manifest.Size = hashOf(p.segment.Bytes()), int64(p.segment.Len())
		if err := s.propose(ctx, manifest, p.segment.Bytes()); err != nil {
			return false, err
		}
	}
	s.at = p.end
	s.spool.sealedTo(s.at, s.at.Offset-extent.from)
	return true, s.trim(ctx)
}

// portion is what of an extent is sealed at once.
type portion struct {
	end      position
	manifest Manifest
	segment  bytes.Buffer
	pieces   map[string][][]byte // of streams, by audit ID
	order    []string            // of those audit IDs
	ended    []string            // audit IDs with a closing record
}

// sort compresses the records of an extent into a segment, with what its manifest
// says about them, and puts the pieces of streams aside, which alias data. What the
// bucket already holds (after a restart) only counts for what is open.
func (s *sealer) sort(data []byte, extent extent) (*portion, error) {
	p := &portion{manifest: Manifest{Kind: KindSegment}, pieces: map[string][][]byte{}}
	s.encoder.Reset(&p.segment)
	taken := int64(0)
	end, err := scanFrames(data, extent.from, extent.seed, func(f frame, end int64) error {
		piece, size := f.kind == kindPiece, int64(len(f.line))
		if piece && s.state.Chunked.before(position{extent.number, end}) || !piece && f.seq > s.state.Sealed {
			if taken > 0 && taken+size > s.config.SegmentBytes {
				return errEnough
			}
			taken += size
			if piece {
				p.add(f)
				return nil
			}
			m := &p.manifest
			if m.Count == 0 {
				m.First = f.seq
			}
			m.Count, m.Last, m.RawSize = m.Count+1, f.seq, m.RawSize+size
			if _, err := s.encoder.Write(f.line); err != nil {
				return err
			}
		}
		s.track(f, p)
		return nil
	})
	p.end = position{extent.number, end}
	if err != nil && !errors.Is(err, errEnough) {
		return p, err
	}
	whole := int64(len(data)) == extent.to-extent.from
	if end == extent.from || whole && err == nil && end < extent.to {
		return p, fmt.Errorf("%w: %s at offset %d", ErrDamaged, extent.path, end)
	}
	return p, s.encoder.Close()
}

func (p *portion) add(f frame) {
	id := string(f.id)
	if p.pieces[id] == nil {
		p.order = append(p.order, id)
	}
	p.pieces[id] = append(p.pieces[id], f.line)
}

func (s *sealer) track(f frame, p *portion) {
	switch f.kind {
	case kindIntent:
		s.open[string(f.id)] = struct{}{}
	case kindOutcome:
		delete(s.open, string(f.id))
		p.ended = append(p.ended, string(f.id))
	}
}

// sealAll seals everything that is durable now. What becomes durable meanwhile
// waits for its own second, or under load this would never end.
func (s *sealer) sealAll(ctx context.Context) error {
	if err := s.name(ctx); err != nil {
		return err
	}
	end := s.spool.durableEnd()
	if !s.at.before(end) {
		s.work = workspace{}
	}
	for s.at.before(end) {
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
	existed, err := s.put(ctx, p.Key, func() ([]byte, error) { return s.signature(ctx, p) }, nil)
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
	_, err = s.put(ctx, p.Manifest.Key, func() ([]byte, error) { return body, nil },
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

// put stores one object, however often that must be tried, and dies of a fork.
func (s *sealer) put(ctx context.Context, key string, body func() ([]byte, error), taken func(Stored)) (existed bool, err error) {
	existed, err = s.insist(ctx, key, &s.unknown, body, taken)
	if errors.Is(err, ErrExists) {
		err = s.fork(ctx, key)
	}
	return existed, err
}

// insist stores one object, however often that must be tried. It may run for
// several objects at once.
//
// An answer that leaves open whether the object was stored is remembered: after
// it, "exists" means that it was. Without it, "exists" means that somebody else
// writes under our name, and is returned.
func (s *sealer) insist(ctx context.Context, key string, unknown *bool, body func() ([]byte, error), taken func(Stored)) (existed bool, err error) {
	for attempt := 0; ; attempt++ {
		if err := s.fate.err(); err != nil {
			return false, err
		}
		data, err := body()
		if err != nil {
			s.uploader.fail(err)
		} else {
			stored, err := s.uploader.attempt(ctx, key, data, s.config.Retention)
			switch {
			case err == nil:
				*unknown = false
				if taken != nil {
					taken(stored)
				}
				return false, nil
			case errors.Is(err, ErrExists) && *unknown:
				*unknown = false
				return true, nil
			case errors.Is(err, ErrExists):
				return false, err
			case !errors.Is(err, ErrRefused):
				*unknown = true
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
