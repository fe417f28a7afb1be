package recorder_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/taskgate/taskgate/internal/recordertest"
	"github.com/taskgate/taskgate/internal/spiffetest"
	"github.com/taskgate/taskgate/recorder"
)

// TestVerifyPartsOfStreams verifies some days of streams that run over midnight: what
// was not asked for is not missed.
func TestVerifyPartsOfStreams(t *testing.T) {
	f := newFixture(t)
	now := &clock{}
	f.config.Now, f.store.Now = now.Now, now.Now
	f.identity.Issue(t, f.ca, spiffetest.Leaf{ID: recordertest.BrokerID(), TTL: 100 * time.Hour})
	r := f.open()
	long, first := begin(t, r, "long"), begin(t, r, "first")
	first.Close()
	pass(t, long, recorder.Stdout, "day one")
	end(t, r, first, "first")
	f.sealed(r)
	now.advance(24 * time.Hour)
	recordertest.Eventually(t, "the clocks agree again", r.Ready)
	pass(t, long, recorder.Stdout, "day two")
	f.sealed(r)
	now.advance(24 * time.Hour)
	recordertest.Eventually(t, "the clocks agree again", r.Ready)
	pass(t, long, recorder.Stdout, "day three")
	end(t, r, long, "long")
	f.close(r)
	day := func(days int) time.Time { return time.Now().AddDate(0, 0, days) }
	for name, period := range map[string][2]time.Time{
		"all": {}, "first": {{}, day(0)}, "second": {day(1), day(1)}, "from the second": {day(1), {}}, "up to the second": {{}, day(1)}, "third": {day(2), day(2)},
	} {
		config := verifyConfig(f.ca.Bundle())
		config.From, config.To = period[0], period[1]
		report, err := recorder.Verify(context.Background(), f.store, config)
		if err != nil {
			t.Fatal(err)
		}
		if !report.Proven() {
			t.Errorf("%s: found %v", name, report.Findings)
		}
	}
	if got, err := recorded(t, f.store, "long"); err != nil || len(got) != 3 {
		t.Errorf("%d frames, %v", len(got), err)
	}
	keys := f.store.Keys("v1/streams/")
	if len(keys) != 3 || !strings.Contains(keys[1], "dt="+day(1).UTC().Format(time.DateOnly)) {
		t.Errorf("the chunks are %v", keys)
	}
	f.store.Remove(keys[1])
	config := verifyConfig(f.ca.Bundle())
	config.From = day(1)
	report, err := recorder.Verify(context.Background(), f.store, config)
	if err != nil || report.Proven() {
		t.Errorf("a missing chunk of the second day is not found: %v", err)
	}
}

// TestSpoolOfStreamsOnly: a spool whose files hold nothing but pieces, some of them
// dropped, is recovered.
func TestSpoolOfStreamsOnly(t *testing.T) {
	f := newFixture(t)
	f.config.FileSize, f.config.SegmentBytes = 64<<10, 16<<10
	r := f.open()
	stream := begin(t, r, "bulk")
	frames := 0
	more := func(count int) {
		for range count {
			pass(t, stream, recorder.Stdout, fmt.Sprintf("%d %s", frames, strings.Repeat("x", 10<<10)))
			frames++
		}
	}
	more(40)
	recordertest.Eventually(t, "files are dropped", func() error {
		if files := spoolFiles(t, f.config.Spool); len(files) > 3 {
			return fmt.Errorf("%v are there", files)
		}
		return nil
	})
	f.store.Fail(recordertest.Fault{Operation: recordertest.Put})
	more(40)
	f.abandon(r)
	f.store.Heal()
	files := spoolFiles(t, f.config.Spool)
	if len(files) < 5 {
		t.Fatalf("only %v are there", files)
	}
	torn(t, files)
	f.close(f.open())
	recovered(f, []string{"RequestReceived bulk"})
	if got := holdsPrefix(t, f.store, "bulk", frames); got != frames {
		t.Errorf("%d frames are recorded of %d", got, frames)
	}
}

// torn adds garbage behind the last frame in the last file with any.
func torn(t *testing.T, files []string) {
	t.Helper()
	for i := len(files) - 1; i >= 0; i-- {
		data, err := os.ReadFile(files[i])
		if err != nil {
			t.Fatal(err)
		}
		var number uint64
		if _, err := fmt.Sscanf(filepath.Base(files[i]), "%d.spool", &number); err != nil {
			t.Fatal(err)
		}
		if seqs, end, _, err := recorder.ScanFile(data, number); err == nil && len(seqs) > 0 {
			copy(data[end:], "\x40\x00\x00\x00garbage")
			if err := os.WriteFile(files[i], data, 0o600); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatal("no file with frames")
}

// TestDamagedSpoolOfStreams: a piece that was acknowledged and cannot be read back
// is never dropped silently.
func TestDamagedSpoolOfStreams(t *testing.T) {
	f := newFixture(t)
	r := f.open()
	stream := begin(t, r, "bulk")
	f.sealed(r)
	f.store.Fail(recordertest.Fault{Operation: recordertest.Put})
	for range 5 {
		pass(t, stream, recorder.Stdout, "acknowledged")
	}
	f.abandon(r)
	f.store.Heal()
	file := spoolFiles(t, f.config.Spool)[0]
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	data[strings.Index(string(data), "acknowledged")] ^= 1
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := recorder.Open(context.Background(), f.config); err == nil || !strings.Contains(err.Error(), "the spool is damaged") {
		t.Errorf("got %v", err)
	}
}
