package recorder

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Files beside the spool files of a stream, and beside the streams.
const (
	stateFile   = "state.json"
	segmentFile = "segment.zst"
	openFile    = "open"
	linkFile    = "last.json"
)

// sealState is what must survive a crash for the stream to go on without a fork
// or a gap. It is written before anything it describes is sent.
type sealState struct {
	Cluster  string
	Stream   string
	Number   uint64   // of the next manifest
	Previous []string // hashes one of which is the last manifest's; normally one
	Sealed   uint64   // last record covered by a stored manifest
	Day      string
	Pending  *pending `json:",omitempty"`
	Closed   bool     `json:",omitempty"` // the closing manifest is stored

	Chunked position          // what lies before it of streams is in stored chunks
	Chunks  *pendingChunks    `json:",omitempty"`
	Last    map[string]uint64 `json:",omitempty"` // number of the last chunk, by audit ID
	Owed    []chunk           `json:",omitempty"` // stored, and not named by a durable record
	Fork    string            `json:",omitempty"` // key of the object somebody else wrote
}

// pending is a manifest on its way, and the segment it is about. The segment's
// bytes are in a file of their own and are stored first; then Signed is set.
type pending struct {
	Manifest Manifest
	Key      string
	Signed   string   `json:",omitempty"`
	Earlier  []string `json:",omitempty"` // hashes of older signatures that may be stored
}

// saveState makes the state durable.
func (s *sealer) saveState(ctx context.Context) error {
	data, err := json.MarshalIndent(s.state, "", "  ")
	if err != nil {
		return s.fate.die(err)
	}
	return s.persist(ctx, stateFile, data)
}

// persist replaces a file of the stream. A full disk is waited for; any other
// failure is final, as for the spool itself.
func (s *sealer) persist(ctx context.Context, name string, data []byte) error {
	for attempt := 0; ; attempt++ {
		err := s.config.disk.replace(filepath.Join(s.directory, name), data)
		if err == nil {
			return nil
		}
		err = fmt.Errorf("writing %s in %s: %w", name, s.directory, err)
		if !full(err) {
			return s.fate.die(err)
		}
		s.uploader.fail(err)
		if err := s.uploader.pause(ctx, attempt); err != nil {
			return err
		}
	}
}

func loadState(directory string) (sealState, error) {
	var state sealState
	data, err := os.ReadFile(filepath.Join(directory, stateFile))
	if err != nil {
		return state, err
	}
	if err := json.Unmarshal(data, &state); err != nil {
		return state, damage(directory, filepath.Join(directory, stateFile), fmt.Errorf("%w: %w", ErrDamaged, err))
	}
	return state, nil
}

// loadLink returns what the next opening manifest says about the stream before.
func loadLink(spool string) (Link, error) {
	link := Link{Stream: unknownStream}
	data, err := os.ReadFile(filepath.Join(spool, linkFile))
	if errors.Is(err, os.ErrNotExist) {
		return link, nil
	}
	if err != nil {
		return link, err
	}
	if err := json.Unmarshal(data, &link); err != nil {
		return link, fmt.Errorf("reading %s: %w; move it away to start without it", filepath.Join(spool, linkFile), err)
	}
	return link, nil
}

// archivedBundle is the trust bundle that is known to be in the bucket.
type archivedBundle struct {
	bundle *x509bundle.Bundle
	hash   string
}

// archiveBundle stores the trust bundle in force unless that was done. The key is
// the hash of the content, so "exists" is as good as stored.
func (s *sealer) archiveBundle(ctx context.Context, domain spiffeid.TrustDomain) error {
	bundle, err := s.config.Identity.GetX509BundleForTrustDomain(domain)
	if err != nil {
		return fmt.Errorf("archiving the trust bundle: %w", err)
	}
	if s.bundle.bundle != nil && s.bundle.bundle.Equal(bundle) {
		return nil
	}
	data, err := spiffebundle.FromX509Bundle(bundle).Marshal()
	if err != nil {
		return fmt.Errorf("archiving the trust bundle: %w", err)
	}
	hash := hashOf(data)
	if _, err := s.uploader.attempt(ctx, trustKey(hash), data, s.config.Retention); err != nil && !errors.Is(err, ErrExists) {
		return fmt.Errorf("archiving the trust bundle: %w", err)
	}
	s.bundle = archivedBundle{bundle: bundle.Clone(), hash: hash}
	return nil
}

// bundleChanged tells whether the trust bundle in force is not the one the last
// manifest named.
func (s *sealer) bundleChanged() bool {
	svid, err := s.config.Identity.GetX509SVID()
	if err != nil {
		return false
	}
	bundle, err := s.config.Identity.GetX509BundleForTrustDomain(svid.ID.TrustDomain())
	return err == nil && !bundle.Equal(s.bundle.bundle)
}
