package recorder

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// newSealer takes over the stream in directory, whose state is on disk, and its
// spool.
func newSealer(config *Config, uploader *uploader, fate *fate, directory string, limits spoolConfig) (*sealer, error) {
	state, err := loadState(directory)
	if err != nil {
		return nil, err
	}
	if state.Fork != "" {
		return nil, forkProblem(directory, state.Fork)
	}
	encoder, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	spool, err := openSpool(directory, limits, state.Sealed)
	if err != nil {
		return nil, err
	}
	return &sealer{
		config: config, uploader: uploader, fate: fate, spool: spool, directory: directory,
		encoder: encoder, state: state, open: map[string]struct{}{}, named: map[string]struct{}{},
	}, nil
}

// newStreamDirectory makes the place of a new stream. The state comes first, so
// a directory without one never held a record.
func newStreamDirectory(config *Config, stream string) (string, error) {
	directory := filepath.Join(config.Spool, stream)
	if err := makeDirectory(directory); err != nil {
		return "", err
	}
	data, err := json.Marshal(sealState{Cluster: config.Cluster, Stream: stream, Number: 1})
	if err != nil {
		return "", err
	}
	if err := config.disk.replace(filepath.Join(directory, stateFile), data); err != nil {
		return "", fmt.Errorf("making the spool: %w", err)
	}
	return directory, nil
}

// streamDirectories lists the streams earlier processes left, oldest first, and
// removes what is left of finished ones.
func streamDirectories(spool string) ([]string, error) {
	entries, err := os.ReadDir(spool)
	if err != nil {
		return nil, fmt.Errorf("reading the spool: %w", err)
	}
	var found []string
	for _, entry := range entries {
		directory := filepath.Join(spool, entry.Name())
		_, err := os.Stat(filepath.Join(directory, stateFile))
		switch {
		case !entry.IsDir():
		case strings.HasSuffix(entry.Name(), doneSuffix), errors.Is(err, os.ErrNotExist):
			if err := os.RemoveAll(directory); err != nil {
				return nil, err
			}
		case err != nil:
			return nil, err
		default:
			found = append(found, directory)
		}
	}
	slices.SortFunc(found, func(a, b string) int { return strings.Compare(streamStart(a), streamStart(b)) })
	return found, nil
}

// streamStart is the part of a stream's name that tells when it began.
func streamStart(name string) string { return name[strings.LastIndexByte(name, '-')+1:] }

const doneSuffix = ".done"

// begin finishes what a crash interrupted and makes sure the stream is opened.
func (s *sealer) begin(ctx context.Context) error {
	if s.state.Pending != nil {
		s.unknown = true // the process that began it may have sent it
		if err := s.settle(ctx); err != nil {
			return err
		}
	}
	if s.state.Chunks != nil {
		if err := s.resumeChunks(ctx); err != nil {
			return err
		}
	}
	if s.state.Number > 1 {
		return nil
	}
	link, err := loadLink(s.config.Spool)
	if err != nil {
		return s.fate.die(err)
	}
	return s.declare(ctx, Manifest{Kind: KindOpen, Follows: &link})
}

// finish seals the rest of the stream, gives every open intent an outcome,
// closes the stream in the bucket and removes its spool.
func (s *sealer) finish(ctx context.Context, end string) error {
	untouched := s.state.Number == 1 && s.state.Pending == nil
	if untouched && s.spool.durableSeq() == 0 {
		return s.remove() // it never was, as far as the bucket knows
	}
	if err := s.begin(ctx); err != nil {
		return err
	}
	if !s.state.Closed {
		s.spool.stop()
		if err := s.spool.flush(ctx); err != nil {
			return err
		}
		for _, step := range []func(context.Context) error{s.sealAll, s.nameAll, s.concede, s.sealAll} {
			if err := step(ctx); err != nil {
				return err
			}
		}
		if err := s.declare(ctx, Manifest{Kind: KindClose, End: end}); err != nil {
			return err
		}
	}
	n := len(s.state.Previous)
	link, err := json.Marshal(Link{Stream: s.state.Stream, Manifest: s.state.Previous[n-1], Or: s.state.Previous[:n-1]})
	if err != nil {
		return s.fate.die(err)
	}
	// A crash before this leaves a closed stream whose close is done again; one
	// behind it leaves a directory that is removed again.
	if err := s.persist(ctx, filepath.Join("..", linkFile), link); err != nil {
		return err
	}
	return s.remove()
}

func (s *sealer) remove() error {
	s.spool.close()
	// Renamed first, and durably: half a directory under the stream's own name
	// would look like damage to the next start.
	done := s.directory + doneSuffix
	for _, step := range []func() error{
		func() error { return os.Rename(s.directory, done) },
		func() error { return syncDirectory(s.config.Spool) },
		func() error { return os.RemoveAll(done) },
	} {
		if err := step(); err != nil {
			return s.fate.die(fmt.Errorf("removing a sealed spool: %w", err))
		}
	}
	return nil
}

// concede records that the outcome of every open intent is unknown.
func (s *sealer) concede(ctx context.Context) error {
	intents, err := s.intents(s.spool.before(^uint64(0)))
	if err != nil {
		return s.fate.die(err)
	}
	for _, intent := range intents {
		err := s.patiently(ctx, func() error {
			receipt, err := s.spool.last(unknownOutcome(intent, s.config.Now()), kindOutcome)
			if err == nil {
				err = receipt.Wait(ctx)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// patiently repeats what the spool has no room for. Room may come.
func (s *sealer) patiently(ctx context.Context, do func() error) error {
	for attempt := 0; ; attempt++ {
		err := do()
		if !errors.Is(err, ErrUnavailable) {
			return err
		}
		s.uploader.fail(err)
		if err := s.uploader.pause(ctx, attempt); err != nil {
			return err
		}
	}
}

// trim deletes the files whose records are all sealed. The intents in them that
// are still open are kept in a file of their own first, without their request
// bodies, so that recovery knows them however long ago they were recorded.
func (s *sealer) trim(ctx context.Context) error {
	files := s.spool.before(s.at.Number)
	if len(files) == 0 {
		return nil
	}
	intents, err := s.intents(files)
	if err != nil {
		return s.fate.die(err)
	}
	data, seed := newHeader(0)
	for _, intent := range intents {
		intent.RequestObject = nil
		line, err := json.Marshal(intent)
		if err != nil {
			return s.fate.die(err)
		}
		data = appendFrame(data, seed, fileHeader, kindIntent, intent.Seq(), intent.AuditID, append(line, '\n'))
	}
	if err := s.persist(ctx, openFile, data); err != nil {
		return err
	}
	// Saved after that, and before anything is deleted: recovery refuses a spool
	// that begins behind the last record it believes to be sealed.
	if err := s.saveState(ctx); err != nil {
		return err
	}
	for _, file := range files {
		if err := s.spool.drop(file); err != nil {
			return s.fate.die(fmt.Errorf("trimming the spool: %w", err))
		}
	}
	return nil
}

// intents returns the intents that are open now and were recorded in the files
// trimmed earlier or in these, oldest first.
func (s *sealer) intents(files []*spoolFile) ([]*Event, error) {
	found := map[string]*Event{}
	sources := []*spoolFile{{path: filepath.Join(s.directory, openFile)}}
	for _, file := range append(sources, files...) {
		if len(found) == len(s.open) {
			break // none is open, or all were found in an earlier file
		}
		data, err := os.ReadFile(file.path)
		if errors.Is(err, os.ErrNotExist) && file.number == 0 {
			continue
		}
		if err != nil {
			return nil, err
		}
		_, _, err = scanFile(data, file.number, func(f frame, _ int64) error {
			if _, open := s.open[string(f.id)]; !open || f.kind != kindIntent {
				return nil
			}
			event, err := decodeEvent(f.line[:len(f.line)-1])
			found[string(f.id)] = event
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("reading the open intents from %s: %w", file.path, err)
		}
	}
	events := make([]*Event, 0, len(found))
	for _, event := range found {
		events = append(events, event)
	}
	slices.SortFunc(events, func(a, b *Event) int { return int(a.Seq()) - int(b.Seq()) })
	return events, nil
}

// recoverIntents learns which intents were open when the files now gone were
// trimmed. It precedes all sealing.
func (s *sealer) recoverIntents() error {
	path := filepath.Join(s.directory, openFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	_, torn, err := scanFile(data, 0, func(f frame, _ int64) error {
		s.open[string(f.id)] = struct{}{}
		return nil
	})
	if torn && err == nil {
		err = fmt.Errorf("%w: the open intents", ErrDamaged)
	}
	if err != nil {
		return damage(s.directory, path, err)
	}
	return nil
}

// heartbeat stores a manifest that says only that the broker lives, if the last
// one is old or names another trust bundle than the one in force: what is signed
// under the next bundle must find it archived and vouched for under this one.
func (s *sealer) heartbeat(ctx context.Context) error {
	if s.config.Now().Sub(s.touched) < s.config.Heartbeat && !s.bundleChanged() {
		return nil
	}
	return s.declare(ctx, Manifest{Kind: KindHeartbeat})
}
