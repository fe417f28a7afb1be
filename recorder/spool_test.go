package recorder_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/taskgate/taskgate/internal/recordertest"
	"github.com/taskgate/taskgate/recorder"
)

func TestAppendFromManyWriters(t *testing.T) {
	f := newFixture(t)
	r := f.open()
	var group sync.WaitGroup
	var mu sync.Mutex
	seen := map[uint64]bool{}
	for range 32 {
		group.Go(func() {
			for range 50 {
				seq := recordertest.Record(t, r, recordertest.Outcome(recordertest.Call("a"), 200))
				mu.Lock()
				seen[seq] = true
				mu.Unlock()
			}
		})
	}
	group.Wait()
	for seq := range uint64(1600) {
		if !seen[seq+1] {
			t.Fatalf("nobody got number %d", seq+1)
		}
	}
	f.close(r)
	f.proven(f.store, 1600, "closed")
}

// TestLargeRecords: the largest request Kubernetes takes fits, a larger record
// than a file is refused and leaves no gap.
func TestLargeRecords(t *testing.T) {
	f := newFixture(t)
	f.config.FileSize, f.config.SpoolLimit = 8<<20, 64<<20
	r := f.open()
	object := func(size int) json.RawMessage {
		return json.RawMessage(`{"a":"` + strings.Repeat("x", size) + `"}`)
	}
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			call := recordertest.Call("a")
			call.RequestObject = object(3 << 20)
			recordertest.Record(t, r, recordertest.Outcome(call, 200))
			recordertest.Record(t, r, recordertest.Outcome(recordertest.Call("b"), 200))
		})
	}
	group.Wait()
	call := recordertest.Call("c")
	call.RequestObject = object(9 << 20)
	if _, err := r.Append(call); !errors.Is(err, recorder.ErrInvalid) {
		t.Errorf("got %v, want ErrInvalid", err)
	}
	f.calls(r, 1)
	f.close(r)
	f.proven(f.store, 18, "closed")
}

// TestNoSpace: while no file can be made, what no longer fits is refused and
// gets no number; with space it goes on by itself (T201).
func TestNoSpace(t *testing.T) {
	f := newFixture(t)
	var full atomic.Bool
	recorder.HookDisk(&f.config, recorder.DiskHooks{Prepare: func(string) error {
		if full.Load() {
			return &os.PathError{Op: "write", Err: syscall.ENOSPC}
		}
		return nil
	}})
	r := f.open()
	f.calls(r, 1)
	full.Store(true)
	var accepted uint64 = 2
	err := error(nil)
	for err == nil {
		var receipt recorder.Receipt
		if receipt, err = r.Append(recordertest.Outcome(recordertest.Call("a"), 200)); err == nil {
			err = receipt.Wait(context.Background())
		}
		if err == nil {
			accepted++
		}
	}
	if !errors.Is(err, recorder.ErrUnavailable) || !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("got %v, want ErrUnavailable for lack of space", err)
	}
	if err := r.Ready(); !errors.Is(err, recorder.ErrUnavailable) {
		t.Errorf("ready says %v", err)
	}
	if _, err := r.Append(recordertest.Call("b")); !errors.Is(err, recorder.ErrUnavailable) {
		t.Errorf("got %v, want ErrUnavailable", err)
	}
	full.Store(false)
	recordertest.Eventually(t, "there is space again", r.Ready)
	f.calls(r, 1)
	f.close(r)
	f.proven(f.store, accepted+2, "closed")
}

// TestSpoolLimit: with the bucket down the spool takes what it may, then refuses;
// when the bucket is back it goes on, without a gap (T195).
func TestSpoolLimit(t *testing.T) {
	f := newFixture(t)
	f.config.FileSize, f.config.SpoolLimit = 64<<10, 256<<10
	r := f.open()
	f.store.Fail(recordertest.Fault{Operation: recordertest.Put})
	accepted := fill(t, r)
	if accepted < 100 {
		t.Errorf("only %d records were accepted", accepted)
	}
	if status := r.Status(); status.SpoolBytes > f.config.SpoolLimit || status.Failing == nil || status.OldestUnsealed.IsZero() {
		t.Errorf("got %+v", status)
	}
	f.store.Heal()
	recordertest.Eventually(t, "the bucket took the backlog", r.Ready)
	f.calls(r, 1)
	f.sealed(r)
	f.close(r)
	f.proven(f.store, accepted+2, "closed")
}

// fill appends until the recorder is unavailable.
func fill(t *testing.T, r *recorder.Recorder) (accepted uint64) {
	t.Helper()
	for {
		receipt, err := r.Append(recordertest.Outcome(recordertest.Call("a"), 200))
		if err == nil {
			err = receipt.Wait(context.Background())
		}
		if errors.Is(err, recorder.ErrUnavailable) {
			return accepted
		}
		if err != nil {
			t.Fatal(err)
		}
		accepted++
	}
}

func TestAgeLimit(t *testing.T) {
	f := newFixture(t)
	now := &clock{}
	f.config.Now, f.store.Now = now.Now, now.Now
	r := f.open()
	f.store.Fail(recordertest.Fault{Operation: recordertest.Put, Prefix: "v1/journal/"})
	f.calls(r, 1)
	now.advance(9 * time.Minute)
	f.calls(r, 1)
	now.advance(2 * time.Minute)
	if _, err := r.Append(recordertest.Call("a")); !errors.Is(err, recorder.ErrUnavailable) || !strings.Contains(err.Error(), "longer than the limit") {
		t.Errorf("got %v, want ErrUnavailable for age", err)
	}
	recordertest.Record(t, r, recordertest.Outcome(recordertest.Call("owed"), 200))
	f.store.Heal()
	recordertest.Eventually(t, "the backlog is sealed", r.Ready)
	f.close(r)
	f.proven(f.store, 5, "closed")
}

// TestDiskFailureIsDeath: what a failed sync left on disk cannot be known, so
// nothing is acknowledged any more; the next start recovers all that was.
func TestDiskFailureIsDeath(t *testing.T) {
	for name, hooks := range map[string]func(func() error) recorder.DiskHooks{
		"sync":  func(fail func() error) recorder.DiskHooks { return recorder.DiskHooks{Sync: fail} },
		"write": func(fail func() error) recorder.DiskHooks { return recorder.DiskHooks{Write: fail} },
		"state": func(fail func() error) recorder.DiskHooks {
			return recorder.DiskHooks{Replace: func(string, bool) error { return fail() }}
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			var broken atomic.Bool
			whole := f.config
			recorder.HookDisk(&f.config, hooks(func() error {
				if broken.Load() {
					return syscall.EIO
				}
				return nil
			}))
			r := f.open()
			f.calls(r, 5)
			f.sealed(r)
			broken.Store(true)
			receipt, err := r.Append(recordertest.Call("lost"))
			if err == nil {
				err = receipt.Wait(context.Background())
			}
			if name != "state" && !errors.Is(err, recorder.ErrDead) {
				t.Errorf("got %v, want ErrDead", err)
			}
			<-r.Dead()
			if _, err := r.Append(recordertest.Call("late")); !errors.Is(err, recorder.ErrDead) || !errors.Is(r.Ready(), recorder.ErrDead) {
				t.Errorf("a dead recorder answers %v", err)
			}
			if err := r.Close(context.Background()); !errors.Is(err, syscall.EIO) {
				t.Errorf("closing says %v", err)
			}
			f.config = whole
			again := f.open()
			f.close(again)
			report := f.verify(f.store)
			if !report.Proven() || report.Records < 10 || report.Streams[0].End != "recovered" {
				t.Errorf("after recovery: %v, %+v", report.Findings, report.Streams)
			}
		})
	}
}

func TestSecondProcessIsKeptOut(t *testing.T) {
	f := newFixture(t)
	r := f.open()
	_, err := recorder.Open(context.Background(), f.config)
	if !errors.Is(err, recorder.ErrLocked) || !strings.Contains(err.Error(), f.config.Spool) {
		t.Errorf("got %v, want ErrLocked with the directory", err)
	}
	if err := recorder.Drain(context.Background(), f.config); !errors.Is(err, recorder.ErrLocked) {
		t.Errorf("drain: got %v, want ErrLocked", err)
	}
	f.close(r)
}

func TestWaitGivesUpWithItsContext(t *testing.T) {
	f := newFixture(t)
	release := make(chan struct{})
	var slow atomic.Bool
	recorder.HookDisk(&f.config, recorder.DiskHooks{Sync: func() error {
		if slow.Load() {
			<-release
		}
		return nil
	}})
	r := f.open()
	slow.Store(true)
	receipt, err := r.Append(recordertest.Outcome(recordertest.Call("a"), 200))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	if err := receipt.Wait(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want DeadlineExceeded", err)
	}
	close(release)
	if err := receipt.Wait(context.Background()); err != nil {
		t.Error(err)
	}
	if err := (recorder.Receipt{}).Wait(context.Background()); !errors.Is(err, recorder.ErrUnavailable) {
		t.Errorf("the zero receipt says %v", err)
	}
	f.close(r)
}

func TestConfigIsChecked(t *testing.T) {
	f := newFixture(t)
	for name, change := range map[string]func(*recorder.Config){
		"cluster":   func(c *recorder.Config) { c.Cluster = "a/b" },
		"broker":    func(c *recorder.Config) { c.Broker = "" },
		"spool":     func(c *recorder.Config) { c.Spool = "" },
		"store":     func(c *recorder.Config) { c.Store = nil },
		"retention": func(c *recorder.Config) { c.Retention = 0 },
		"file size": func(c *recorder.Config) { c.FileSize = 1 },
		"limit":     func(c *recorder.Config) { c.SpoolLimit = c.FileSize },
		"segment":   func(c *recorder.Config) { c.SegmentBytes = 1 << 30 },
		"duration":  func(c *recorder.Config) { c.Heartbeat = -1 },
	} {
		t.Run(name, func(t *testing.T) {
			config := f.config
			change(&config)
			if _, err := recorder.Open(context.Background(), config); err == nil {
				t.Error("it was accepted")
			}
		})
	}
}

// TestDamagedSpool: acknowledged records that cannot be read are an error that
// tells what to do, and nothing is touched.
func TestDamagedSpool(t *testing.T) {
	f := newFixture(t)
	f.config.FileSize = 64 << 10
	r := f.open()
	f.store.Fail(recordertest.Fault{Operation: recordertest.Put})
	f.calls(r, 100)
	f.abandon(r)
	files := spoolFiles(t, f.config.Spool)
	if len(files) < 3 {
		t.Fatalf("%d files are too few", len(files))
	}
	for name, harm := range map[string]func(string) error{
		"bit in the first file": func(spool string) error {
			return edit(spoolFiles(t, spool)[0], func(data []byte) []byte { data[300] ^= 1; return data })
		},
		"first file gone": func(spool string) error { return os.Remove(spoolFiles(t, spool)[0]) },
		"file in between gone": func(spool string) error {
			return os.Remove(spoolFiles(t, spool)[1])
		},
		"earlier file cut short": func(spool string) error {
			return edit(spoolFiles(t, spool)[1], func(data []byte) []byte { return data[:len(data)/2] })
		},
		"bit in the last file": func(spool string) error {
			all := spoolFiles(t, spool)
			return edit(all[len(all)-2], func(data []byte) []byte { data[300] ^= 1; return data })
		},
	} {
		t.Run(name, func(t *testing.T) {
			spool := copyTree(t, f.config.Spool)
			if err := harm(spool); err != nil {
				t.Fatal(err)
			}
			before := tree(t, spool)
			config := f.config
			config.Spool = spool
			_, err := recorder.Open(context.Background(), config)
			if !errors.Is(err, recorder.ErrDamaged) || !strings.Contains(err.Error(), "move it out") {
				t.Errorf("got %v, want ErrDamaged with what to do", err)
			}
			if after := tree(t, spool); after != before {
				t.Error("the spool was changed")
			}
		})
	}
}

func edit(path string, change func([]byte) []byte) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return os.WriteFile(path, change(data), 0o600)
}

// tree is all content of a directory.
func tree(t *testing.T, directory string) string {
	t.Helper()
	var all bytes.Buffer
	for _, file := range spoolFiles(t, directory) {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		all.WriteString(file)
		all.Write(data)
	}
	return all.String()
}
