package e2e_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"maps"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"

	"github.com/taskgate/taskgate/e2e/testbed"
	"github.com/taskgate/taskgate/recorder"
)

// journal reads the records in the bucket as an auditor, each segment once.
type journal struct {
	recorder.Bucket
	mu      sync.Mutex
	read    map[string]bool // keys of segments
	records []*recorder.Event
	byID    map[string][]*recorder.Event
}

func openJournal(store testbed.ObjectStore) (*journal, error) {
	bucket, err := recorder.NewS3(recorder.S3Config{
		Endpoint: store.Endpoint, Bucket: store.Bucket, Region: store.Region, AccessKey: store.Auditor.Key, SecretKey: store.Auditor.Secret,
	})
	return &journal{Bucket: bucket, read: map[string]bool{}, byID: map[string][]*recorder.Event{}}, err
}

// List leaves out what was read before.
func (j *journal) List(ctx context.Context, prefix string) iter.Seq2[recorder.Version, error] {
	return func(yield func(recorder.Version, error) bool) {
		for version, err := range j.Bucket.List(ctx, prefix) {
			if !j.read[version.Key] && !yield(version, err) {
				return
			}
		}
	}
}

// Get remembers what was read.
func (j *journal) Get(ctx context.Context, key, version string) (io.ReadCloser, error) {
	j.read[key] = true
	return j.Bucket.Get(ctx, key, version)
}

// refresh reads what is new.
func (j *journal) refresh(ctx context.Context) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	for event, err := range recorder.Scan(ctx, j, recorder.Filter{}) {
		if err != nil {
			return err
		}
		j.records = append(j.records, event)
		j.byID[event.AuditID] = append(j.byID[event.AuditID], event)
	}
	return nil
}

// of waits until the call of each audit ID is completely in the bucket, and
// answers its records.
func (j *journal) of(t testing.TB, ids ...string) map[string][]*recorder.Event {
	t.Helper()
	found := map[string][]*recorder.Event{}
	eventually(t, 20*time.Second, "that the records reach the bucket", func() error {
		if err := j.refresh(t.Context()); err != nil {
			return err
		}
		j.mu.Lock()
		defer j.mu.Unlock()
		for _, id := range ids {
			records := j.byID[id]
			if !slices.ContainsFunc(records, isOutcome) {
				return fmt.Errorf("the call %s has %d records", id, len(records))
			}
			found[id] = records
		}
		return nil
	})
	return found
}

// isOutcome finds the record of an outcome. Behind it only chunks of a stream may
// be named.
func isOutcome(e *recorder.Event) bool { return e.Stage == recorder.StageResponseComplete }

// all answers every record that is in the bucket now.
func (j *journal) all(t testing.TB) []*recorder.Event {
	t.Helper()
	if err := j.refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.records)
}

// auditTail reads the API server's audit log, each line once, and keeps no
// bodies.
type auditTail struct {
	mu     sync.Mutex
	offset int64
	byID   map[string][]auditv1.Event
}

func (a *auditTail) refresh(path string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // no call of the broker yet
	}
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }() // only read
	if _, err := file.Seek(a.offset, io.SeekStart); err != nil {
		return err
	}
	lines := bufio.NewReaderSize(file, 1<<20)
	for {
		line, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return nil // the API server may be writing the last line
		}
		if err != nil {
			return err
		}
		var event auditv1.Event
		if err := json.Unmarshal(line, &event); err != nil {
			return err
		}
		a.offset += int64(len(line))
		event.RequestObject, event.ResponseObject = nil, nil
		a.byID[string(event.AuditID)] = append(a.byID[string(event.AuditID)], event)
	}
}

// upstream answers the API server's own audit entries of the broker's calls, by
// audit ID. It writes them before it answers.
func (s *stack) upstream(t testing.TB) map[string][]auditv1.Event {
	t.Helper()
	if err := s.audit.refresh(s.Environment().AuditLog); err != nil {
		t.Fatal(err)
	}
	s.audit.mu.Lock()
	defer s.audit.mu.Unlock()
	return maps.Clone(s.audit.byID)
}
