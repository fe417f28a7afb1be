package recorder_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/taskgate/taskgate/internal/recordertest"
	"github.com/taskgate/taskgate/internal/spiffetest"
	"github.com/taskgate/taskgate/recorder"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if directory := os.Getenv(childVariable); directory != "" {
		os.Exit(childMain(directory))
	}
	goleak.VerifyTestMain(m)
}

// fixture is a bucket, a broker's identity and a configuration over both.
type fixture struct {
	*testing.T
	store    *recordertest.MemoryStore
	identity *recordertest.Identity
	ca       *spiffetest.CA
	config   recorder.Config
}

func newFixture(t *testing.T) *fixture {
	store := recordertest.NewMemoryStore(t)
	identity, ca := recordertest.NewIdentity(t)
	return &fixture{T: t, store: store, identity: identity, ca: ca, config: recordertest.Config(t, store, identity)}
}

func (f *fixture) open() *recorder.Recorder { return recordertest.Open(f, f.config) }

// calls records n calls with their outcomes.
func (f *fixture) calls(r *recorder.Recorder, n int) {
	f.Helper()
	for i := range n {
		call := recordertest.Call(fmt.Sprintf("call-%d-%d", time.Now().UnixNano(), i))
		recordertest.Record(f, r, call)
		recordertest.Record(f, r, recordertest.Outcome(call, 200))
	}
}

func (f *fixture) close(r *recorder.Recorder) {
	f.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := r.Close(ctx); err != nil {
		f.Fatal(err)
	}
}

// abandon ends a recorder as a crash would, as far as the bucket can tell: what
// is not sealed stays in the spool.
func (f *fixture) abandon(r *recorder.Recorder) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_ = r.Close(ctx) // says that the spool is kept, or nothing if it was faster
}

// sealed waits until every durable record and frame is in the bucket.
func (f *fixture) sealed(r *recorder.Recorder) {
	f.Helper()
	recordertest.Eventually(f, "everything is sealed", func() error {
		if status := r.Status(); status.Sealed != status.Durable || !status.OldestUnsealed.IsZero() {
			return fmt.Errorf("sealed %d of %d: %v", status.Sealed, status.Durable, status.Failing)
		}
		return nil
	})
}

func verifyConfig(bundle *x509bundle.Bundle) recorder.VerifyConfig {
	return recorder.VerifyConfig{TrustBundles: []*x509bundle.Bundle{bundle}, BrokerIDs: []spiffeid.ID{recordertest.BrokerID()}}
}

func (f *fixture) verify(bucket recorder.Bucket) *recorder.Report {
	f.Helper()
	report, err := recorder.Verify(context.Background(), bucket, verifyConfig(f.ca.Bundle()))
	if err != nil {
		f.Fatal(err)
	}
	return report
}

// proven verifies and expects no finding, records in number, and each stream's
// end in turn.
func (f *fixture) proven(bucket recorder.Bucket, records uint64, ends ...string) *recorder.Report {
	f.Helper()
	report := f.verify(bucket)
	for _, finding := range report.Findings {
		f.Errorf("found %s", finding)
	}
	if report.Records != records || len(report.Streams) != len(ends) {
		f.Fatalf("%d records in %d streams are proven, want %d in %d", report.Records, len(report.Streams), records, len(ends))
	}
	for i, end := range ends {
		if report.Streams[i].End != end {
			f.Errorf("stream %d ends %q, want %q", i, report.Streams[i].End, end)
		}
	}
	return report
}

// scan returns all records in the bucket by stage and audit ID.
func scan(t testing.TB, bucket recorder.Bucket) map[string]*recorder.Event {
	t.Helper()
	events := map[string]*recorder.Event{}
	for event, err := range recorder.Scan(context.Background(), bucket, recorder.Filter{}) {
		if err != nil {
			t.Fatal(err)
		}
		events[string(event.Stage)+" "+event.AuditID] = event
	}
	return events
}

func copyTree(t testing.TB, from string) string {
	t.Helper()
	to := t.TempDir()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	return to
}

// spoolFiles returns the spool files of all streams.
func spoolFiles(t testing.TB, spool string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(spool, "*", "*.spool"))
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// clock is a clock a test moves.
type clock struct {
	mu     sync.Mutex
	offset time.Duration
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.offset)
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.offset += d
}

// rotate replaces the SVID by one of another authority.
func (f *fixture) rotate(ca *spiffetest.CA) {
	f.identity.Issue(f, ca, spiffetest.Leaf{ID: recordertest.BrokerID()})
}
