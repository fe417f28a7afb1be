package recorder_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/taskgate/taskgate/internal/recordertest"
	"github.com/taskgate/taskgate/recorder"
)

// TestUnsafeBucket: records are refused and none is stored until the bucket is
// safe; then it goes on by itself (T190, T191, T193).
func TestUnsafeBucket(t *testing.T) {
	for name, test := range map[string]struct {
		spoil, mend func(*recordertest.MemoryStore)
		says        string
	}{
		"no object lock": {
			func(m *recordertest.MemoryStore) { m.Config.ObjectLock = false },
			func(m *recordertest.MemoryStore) { m.Config.ObjectLock = true }, "object lock is off",
		},
		"no versioning": {
			func(m *recordertest.MemoryStore) { m.Config.Versioning = false },
			func(m *recordertest.MemoryStore) { m.Config.Versioning = true }, "versioning is off",
		},
		"governance": {
			func(m *recordertest.MemoryStore) { m.Config.DefaultMode = "GOVERNANCE" },
			func(m *recordertest.MemoryStore) { m.Config.DefaultMode = "COMPLIANCE" }, "GOVERNANCE",
		},
		"legal hold": {
			func(m *recordertest.MemoryStore) { m.Config.Excess = []string{"lift legal holds"} },
			func(m *recordertest.MemoryStore) { m.Config.Excess = nil }, "the credential may lift legal holds",
		},
		"may delete": {
			func(m *recordertest.MemoryStore) { m.MayDelete = true },
			func(m *recordertest.MemoryStore) { m.MayDelete = false }, "the credential may delete versions under v1/journal/",
		},
		"may not delete canaries": {
			func(m *recordertest.MemoryStore) { m.NoCanary = true },
			func(m *recordertest.MemoryStore) { m.NoCanary = false }, "the canary proves nothing",
		},
		"locks do not hold": {
			func(m *recordertest.MemoryStore) { m.Unlocked = true },
			func(m *recordertest.MemoryStore) { m.Unlocked = false }, "a locked object could be deleted",
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.store.Change(test.spoil)
			r, err := recorder.Open(context.Background(), f.config)
			if err != nil {
				t.Fatal(err)
			}
			var problem *recorder.Problem
			recordertest.Eventually(t, "the verdict", func() error {
				if !errors.As(r.Ready(), &problem) {
					return r.Ready()
				}
				return nil
			})
			if problem.Reason != recorder.BucketUnsafe || !strings.Contains(problem.Detail, test.says) {
				t.Errorf("got %v, want BucketUnsafe with %q", problem, test.says)
			}
			if _, err := r.Append(recordertest.Call("a")); !errors.Is(err, recorder.ErrUnavailable) {
				t.Errorf("got %v, want ErrUnavailable", err)
			}
			if keys := f.store.Keys("v1/journal/"); len(keys) != 0 {
				t.Errorf("stored %v", keys)
			}
			f.store.Change(test.mend)
			recordertest.Eventually(t, "it is mended", r.Ready)
			if r.Status().UnsafeVerdicts == 0 {
				t.Error("no unsafe verdict was counted")
			}
			f.calls(r, 1)
			f.close(r)
			f.proven(f.store, 2, "closed")
		})
	}
}

// TestBucketBecomesUnsafe: the hourly canary finds it.
func TestBucketBecomesUnsafe(t *testing.T) {
	f := newFixture(t)
	now := &clock{}
	f.config.Now, f.store.Now, f.config.CanaryEvery = now.Now, now.Now, 30*time.Minute
	r := f.open()
	f.store.Change(func(m *recordertest.MemoryStore) { m.Unlocked = true })
	f.calls(r, 1)
	now.advance(30 * time.Minute)
	var problem *recorder.Problem
	recordertest.Eventually(t, "the canary is found dead", func() error {
		if !errors.As(r.Ready(), &problem) {
			return errors.New("still ready")
		}
		return nil
	})
	f.store.Change(func(m *recordertest.MemoryStore) { m.Unlocked = false })
	recordertest.Eventually(t, "it is mended", r.Ready)
	f.close(r)
	f.proven(f.store, 2, "closed")
}

func TestLifecycleConflictIsAWarning(t *testing.T) {
	f := newFixture(t)
	f.store.Change(func(m *recordertest.MemoryStore) { m.Config.Noncurrent = time.Minute })
	r := f.open()
	if warning := r.Status().Warning; warning == nil || warning.Reason != recorder.LifecycleConflict {
		t.Errorf("got %v, want LifecycleConflict", warning)
	}
	f.close(r)
}

// TestClockSkew: a store that refuses for its clock, and one whose clock is
// merely far off (T203).
func TestClockSkew(t *testing.T) {
	t.Run("refused", func(t *testing.T) {
		f := newFixture(t)
		r := f.open()
		f.store.Fail(recordertest.Fault{Operation: recordertest.Put, Err: recorder.ErrClockSkew})
		f.calls(r, 1)
		skewed(f, r)
	})
	t.Run("observed", func(t *testing.T) {
		f := newFixture(t)
		now := &clock{}
		f.store.Now = now.Now
		r := f.open()
		now.advance(16 * time.Minute)
		f.calls(r, 1)
		recordertest.Eventually(t, "the skew shows", func() error {
			if r.Ready() == nil {
				return errors.New("still ready")
			}
			return nil
		})
		now.advance(-16 * time.Minute)
		f.store.Fail(recordertest.Fault{Operation: recordertest.Put, Err: recorder.ErrClockSkew})
		f.abandon(r)
	})
}

func skewed(f *fixture, r *recorder.Recorder) {
	var problem *recorder.Problem
	recordertest.Eventually(f, "the skew shows", func() error {
		if !errors.As(r.Ready(), &problem) {
			return errors.New("still ready")
		}
		return nil
	})
	if _, err := r.Append(recordertest.Call("a")); problem.Reason != recorder.ClockSkew || !errors.Is(err, recorder.ErrUnavailable) {
		f.Errorf("got %v and %v", problem, err)
	}
	f.store.Heal()
	recordertest.Eventually(f, "the clock is set", r.Ready)
	f.close(r)
	f.proven(f.store, 2, "closed")
}
