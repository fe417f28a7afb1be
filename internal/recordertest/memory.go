// Package recordertest has what tests of and around the recorder need: a bucket
// in memory that checks the recorder's promises itself and fails on demand
// ([MemoryStore]), the contract every real store must keep ([StoreContract]), and
// a recorder over both ([Open]).
package recordertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/taskgate/taskgate/recorder"
)

// Operation is one kind of request to a store.
type Operation string

// The operations of recorder.Store.
const (
	Put      Operation = "put"
	Delete   Operation = "delete"
	Settings Operation = "settings"
)

// Fault makes requests fail. Every fault comes in two forms: without effect, and
// applied but reported as failed.
type Fault struct {
	Operation Operation
	Prefix    string        // of the key
	Applied   bool          // take effect, then report Err
	Err       error         // nil with a Delay: only slow
	Delay     time.Duration // before the answer, or until the request is given up
	Skip      int           // how many requests pass first
	Times     int           // how many requests fail; 0 means all until Heal
}

// ErrInjected is the failure of a Fault without an error of its own; it leaves
// open whether the request took effect.
var ErrInjected = errors.New("injected failure: connection reset")

// Object is one version of an object.
type Object struct {
	recorder.Version
	Body []byte
	Lock recorder.Lock
}

// MemoryStore is a bucket with object lock in memory: a recorder.Store with the
// rights of a broker and a recorder.Bucket with those of an auditor. It reports
// to the test whatever a recorder must never do. Safe for concurrent use.
type MemoryStore struct {
	test testing.TB
	// Now is the store's clock.
	Now func() time.Time
	// Config is what Settings reports; the time is filled in.
	Config recorder.Settings
	// Unlocked makes the store let locked canaries be deleted; MayDelete makes the
	// credential able to delete everything, NoCanary unable to delete canaries.
	Unlocked, MayDelete, NoCanary bool

	mu      sync.Mutex
	objects map[string][]Object // newest first
	sent    map[string][]byte   // what was first tried to be put under a key
	faults  []*Fault
	count   int
	puts    int
}

// NewMemoryStore makes an empty, safe bucket.
func NewMemoryStore(test testing.TB) *MemoryStore {
	return &MemoryStore{
		test: test, Now: time.Now, Config: recorder.Settings{ObjectLock: true, Versioning: true},
		objects: map[string][]Object{}, sent: map[string][]byte{},
	}
}

// Fail adds a fault. Later faults apply to what earlier ones let pass.
func (m *MemoryStore) Fail(fault Fault) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if fault.Err == nil && fault.Delay == 0 {
		fault.Err = ErrInjected
	}
	m.faults = append(m.faults, &fault)
}

// Heal removes all faults.
func (m *MemoryStore) Heal() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.faults = nil
}

// Puts is the number of Put requests so far.
func (m *MemoryStore) Puts() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.puts
}

// fault takes the first fault that applies to a request.
func (m *MemoryStore) fault(operation Operation, key string) *Fault {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, fault := range m.faults {
		if fault.Operation != operation || !strings.HasPrefix(key, fault.Prefix) {
			continue
		}
		if fault.Skip > 0 {
			fault.Skip--
			continue
		}
		if fault.Times == 1 {
			m.faults = slices.Delete(m.faults, i, i+1)
		} else if fault.Times > 1 {
			fault.Times--
		}
		return fault
	}
	return nil
}

// with runs a request under the fault that applies to it.
func (m *MemoryStore) with(ctx context.Context, operation Operation, key string, apply func() error) error {
	fault := m.fault(operation, key)
	if fault == nil {
		return apply()
	}
	var err error
	if fault.Applied || fault.Err == nil {
		err = apply()
	}
	if fault.Delay > 0 {
		timer := time.NewTimer(fault.Delay)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if fault.Err != nil {
		return fault.Err
	}
	return err
}

// Put implements recorder.Store.
func (m *MemoryStore) Put(ctx context.Context, key string, body []byte, until time.Time) (stored recorder.Stored, err error) {
	m.check(key, body, until)
	err = m.with(ctx, Put, key, func() error {
		stored, err = m.put(key, body, until)
		return err
	})
	if err != nil {
		stored.Version = ""
	}
	return stored, err
}

// check asserts what must hold for every attempt, whatever becomes of it.
func (m *MemoryStore) check(key string, body []byte, until time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.puts++
	if !until.After(m.Now()) {
		m.test.Errorf("%s is put with a lock that has ended: %s", key, until)
	}
	if !strings.HasPrefix(key, "v1/journal/") {
		return
	}
	if before, ok := m.sent[key]; ok && !bytes.Equal(before, body) {
		m.test.Errorf("%s was first sent with other bytes", key)
	}
	m.sent[key] = bytes.Clone(body)
}

func (m *MemoryStore) put(key string, body []byte, until time.Time) (recorder.Stored, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if versions := m.objects[key]; len(versions) > 0 {
		return recorder.Stored{ServerTime: m.Now()}, fmt.Errorf("%w: %s", recorder.ErrExists, key)
	}
	return recorder.Stored{Version: m.addLocked(key, body, until, false), ServerTime: m.Now()}, nil
}

func (m *MemoryStore) addLocked(key string, body []byte, until time.Time, marker bool) string {
	m.count++
	object := Object{
		Version: recorder.Version{Key: key, ID: fmt.Sprintf("v%d", m.count), Size: int64(len(body)), Modified: m.Now(), Marker: marker},
		Body:    bytes.Clone(body),
	}
	if !until.IsZero() {
		object.Lock = recorder.Lock{Mode: "COMPLIANCE", Until: until}
	}
	m.objects[key] = slices.Insert(m.objects[key], 0, object)
	return object.ID
}

// DeleteVersion implements recorder.Store.
func (m *MemoryStore) DeleteVersion(ctx context.Context, key, version string) error {
	return m.with(ctx, Delete, key, func() error {
		m.mu.Lock()
		defer m.mu.Unlock()
		canary := strings.HasPrefix(key, "v1/canary/")
		if canary && m.NoCanary || !canary && !m.MayDelete {
			return fmt.Errorf("%w: %s", recorder.ErrDenied, key)
		}
		at := slices.IndexFunc(m.objects[key], func(o Object) bool { return o.ID == version })
		switch {
		case at < 0:
			return nil
		case m.objects[key][at].Lock.Until.After(m.Now()) && !m.Unlocked:
			return fmt.Errorf("%w: %s is locked", recorder.ErrDenied, key)
		case !canary:
			m.test.Errorf("the recorder deleted %s", key)
		}
		m.objects[key] = slices.Delete(m.objects[key], at, at+1)
		return nil
	})
}

// Settings implements recorder.Store.
func (m *MemoryStore) Settings(ctx context.Context) (settings recorder.Settings, err error) {
	err = m.with(ctx, Settings, "", func() error {
		m.mu.Lock()
		defer m.mu.Unlock()
		settings = m.Config
		settings.ServerTime = m.Now()
		return nil
	})
	return settings, err
}

// List implements recorder.Bucket.
func (m *MemoryStore) List(_ context.Context, prefix string) iter.Seq2[recorder.Version, error] {
	return func(yield func(recorder.Version, error) bool) {
		m.mu.Lock()
		keys := slices.Sorted(maps.Keys(m.objects))
		m.mu.Unlock()
		folder := ""
		for _, key := range keys {
			rest, found := strings.CutPrefix(key, prefix)
			if !found {
				continue
			}
			if name, _, nested := strings.Cut(rest, "/"); nested {
				if name != folder && !yield(recorder.Version{Key: prefix + name + "/"}, nil) {
					return
				}
				folder = name
				continue
			}
			for _, object := range m.Versions(key) {
				if !yield(object.Version, nil) {
					return
				}
			}
		}
	}
}

// Get implements recorder.Bucket.
func (m *MemoryStore) Get(_ context.Context, key, version string) (io.ReadCloser, error) {
	object, err := m.find(key, version)
	if err != nil {
		return nil, err
	}
	return io.NopCloser(bytes.NewReader(object.Body)), nil
}

// Lock implements recorder.Bucket.
func (m *MemoryStore) Lock(_ context.Context, key, version string) (recorder.Lock, error) {
	object, err := m.find(key, version)
	return object.Lock, err
}

// Time implements recorder.Bucket.
func (m *MemoryStore) Time(context.Context) (time.Time, error) { return m.Now(), nil }

func (m *MemoryStore) find(key, version string) (Object, error) {
	for _, object := range m.Versions(key) {
		if (object.ID == version || version == "") && !object.Marker {
			return object, nil
		}
	}
	return Object{}, fmt.Errorf("%w: %s", recorder.ErrNotFound, key)
}

// Versions returns the versions of one key, newest first.
func (m *MemoryStore) Versions(key string) []Object {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.objects[key])
}

// Keys returns the keys under a prefix in their order.
func (m *MemoryStore) Keys(prefix string) []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Sorted(func(yield func(string) bool) {
		for key := range m.objects {
			if strings.HasPrefix(key, prefix) && !yield(key) {
				return
			}
		}
	})
}

// Change sets exported fields while a recorder runs.
func (m *MemoryStore) Change(change func(*MemoryStore)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	change(m)
}
