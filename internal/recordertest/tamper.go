package recordertest

import (
	"bytes"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/taskgate/taskgate/recorder"
)

// What follows is what an attacker could do to a store that does not keep its
// promises, or to a copy.

// Clone copies the bucket, so that a test can tamper with the copy.
func (m *MemoryStore) Clone(test testing.TB) *MemoryStore {
	clone := NewMemoryStore(test)
	m.mu.Lock()
	defer m.mu.Unlock()
	clone.Now, clone.count = m.Now, m.count
	clone.objects = maps.Clone(m.objects)
	for key, versions := range clone.objects {
		clone.objects[key] = slices.Clone(versions)
	}
	return clone
}

// Replace changes the content of the newest version in place, as a bit error or
// an attacker below the store would.
func (m *MemoryStore) Replace(key string, change func([]byte) []byte) {
	changed := change(bytes.Clone(m.Body(key)))
	m.mu.Lock()
	defer m.mu.Unlock()
	object := &m.objects[key][0]
	object.Body, object.Size = changed, int64(len(changed))
}

// Remove takes an object away with all its versions.
func (m *MemoryStore) Remove(key string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.objects, key)
}

// Add stores a version, locked if until is not zero, whatever there is already.
func (m *MemoryStore) Add(key string, body []byte, until time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.addLocked(key, body, until, false)
}

// Hide puts a delete marker over an object.
func (m *MemoryStore) Hide(key string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.addLocked(key, nil, time.Time{}, true)
}

// SetLock changes the lock of the newest version.
func (m *MemoryStore) SetLock(key string, lock recorder.Lock) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.objects[key][0].Lock = lock
}

// SetModified changes the store's time of the newest version.
func (m *MemoryStore) SetModified(key string, at time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.objects[key][0].Modified = at
}

// Body is the content of the newest version.
func (m *MemoryStore) Body(key string) []byte { return m.Versions(key)[0].Body }
