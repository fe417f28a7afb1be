package recordertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/taskgate/taskgate/recorder"
)

// StoreContract tests what the recorder relies on. make returns a bucket through
// a broker's credential and through an auditor's; it may be the same bucket each
// time, because every test writes under keys of its own.
func StoreContract(t *testing.T, make func() (recorder.Store, recorder.Bucket)) {
	for name, test := range map[string]func(*contract, *testing.T){
		"put creates a locked object":             (*contract).putCreates,
		"put never overwrites":                    (*contract).putRefusesSecond,
		"of concurrent puts one wins":             (*contract).putRace,
		"an abandoned put is not a refusal":       (*contract).putAbandoned,
		"a locked version cannot be deleted":      (*contract).deleteLocked,
		"only canaries may be deleted":            (*contract).deleteRights,
		"settings tell a safe bucket":             (*contract).settings,
		"listings show levels, in order, in full": (*contract).list,
		"what is not there is not found":          (*contract).notFound,
		"a recorder's journal verifies":           (*contract).journal,
	} {
		t.Run(name, func(t *testing.T) {
			store, bucket := make()
			test(&contract{store: store, bucket: bucket, prefix: "v1/canary/contract/" + ulid.Make().String() + "/"}, t)
		})
	}
}

type contract struct {
	store  recorder.Store
	bucket recorder.Bucket
	prefix string
}

func (c *contract) put(t *testing.T, key string, body string) recorder.Stored {
	t.Helper()
	stored, err := c.store.Put(t.Context(), key, []byte(body), time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	return stored
}

func (c *contract) content(t *testing.T, key, version string) string {
	t.Helper()
	reader, err := c.bucket.Get(t.Context(), key, version)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	data, err := io.ReadAll(reader)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func (c *contract) putCreates(t *testing.T) {
	until := time.Now().Add(time.Hour)
	stored, err := c.store.Put(t.Context(), c.prefix+"a", []byte("content"), until)
	if err != nil {
		t.Fatal(err)
	}
	if stored.Version == "" || time.Since(stored.ServerTime).Abs() > time.Minute {
		t.Errorf("got %+v", stored)
	}
	if got := c.content(t, c.prefix+"a", stored.Version); got != "content" {
		t.Errorf("got content %q", got)
	}
	lock, err := c.bucket.Lock(t.Context(), c.prefix+"a", stored.Version)
	if err != nil || lock.Mode != "COMPLIANCE" || lock.Until.Sub(until).Abs() > 2*time.Second {
		t.Errorf("got lock %+v, %v, want COMPLIANCE until %s", lock, err, until)
	}
}

func (c *contract) putRefusesSecond(t *testing.T) {
	c.put(t, c.prefix+"a", "first")
	_, err := c.store.Put(t.Context(), c.prefix+"a", []byte("second"), time.Now().Add(time.Hour))
	if !errors.Is(err, recorder.ErrExists) {
		t.Errorf("got %v, want ErrExists", err)
	}
	if got := c.content(t, c.prefix+"a", ""); got != "first" {
		t.Errorf("got content %q", got)
	}
}

func (c *contract) putRace(t *testing.T) {
	var group sync.WaitGroup
	outcomes := make(chan error, 8)
	for i := range cap(outcomes) {
		group.Go(func() {
			_, err := c.store.Put(t.Context(), c.prefix+"a", fmt.Appendf(nil, "writer %d", i), time.Now().Add(time.Hour))
			outcomes <- err
		})
	}
	group.Wait()
	close(outcomes)
	won := 0
	for err := range outcomes {
		if err == nil {
			won++
		} else if errors.Is(err, recorder.ErrRefused) {
			t.Errorf("a loser was told %v", err)
		}
	}
	if versions := c.versions(t, c.prefix); won != 1 || len(versions) != 1 {
		t.Errorf("%d won and %d versions are there", won, len(versions))
	}
}

func (c *contract) putAbandoned(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := c.store.Put(ctx, c.prefix+"a", []byte("content"), time.Now().Add(time.Hour))
	if errors.Is(err, recorder.ErrRefused) || errors.Is(err, recorder.ErrExists) {
		t.Errorf("an abandoned request was taken for an answer: %v", err)
	}
}

func (c *contract) deleteLocked(t *testing.T) {
	stored := c.put(t, c.prefix+"a", "content")
	if err := c.store.DeleteVersion(t.Context(), c.prefix+"a", stored.Version); !errors.Is(err, recorder.ErrRefused) {
		t.Errorf("got %v, want ErrRefused", err)
	}
	if got := c.content(t, c.prefix+"a", stored.Version); got != "content" {
		t.Errorf("got content %q", got)
	}
}

func (c *contract) deleteRights(t *testing.T) {
	if err := c.store.DeleteVersion(t.Context(), "v1/journal/none", "null"); !errors.Is(err, recorder.ErrDenied) {
		t.Errorf("deleting what is no canary: got %v, want ErrDenied", err)
	}
	if err := c.store.DeleteVersion(t.Context(), "v1/canary/none", "null"); errors.Is(err, recorder.ErrDenied) {
		t.Errorf("deleting a canary: got %v", err)
	}
}

func (c *contract) settings(t *testing.T) {
	settings, err := c.store.Settings(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !settings.ObjectLock || !settings.Versioning || len(settings.Excess) > 0 || time.Since(settings.ServerTime).Abs() > time.Minute {
		t.Errorf("got %+v", settings)
	}
}

func (c *contract) versions(t *testing.T, prefix string) []recorder.Version {
	t.Helper()
	var versions []recorder.Version
	for version, err := range c.bucket.List(t.Context(), prefix) {
		if err != nil {
			t.Fatal(err)
		}
		versions = append(versions, version)
	}
	return versions
}

// list goes over the thousand keys a store returns at once.
func (c *contract) list(t *testing.T) {
	var want []string
	for i := range 1005 {
		want = append(want, fmt.Sprintf("%sobjects/%06d", c.prefix, i))
	}
	var group sync.WaitGroup
	for part := range slices.Chunk(want, 200) {
		group.Go(func() {
			for _, key := range part {
				if _, err := c.store.Put(t.Context(), key, []byte(key), time.Now().Add(time.Minute)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	var got []string
	for _, version := range c.versions(t, c.prefix+"objects/") {
		if version.ID == "" || version.Marker || version.Size != int64(len(version.Key)) || time.Since(version.Modified).Abs() > time.Minute {
			t.Fatalf("got %+v", version)
		}
		got = append(got, version.Key)
	}
	if !slices.Equal(got, want) {
		t.Errorf("listed %d objects of %d, or in another order", len(got), len(want))
	}
	if got := c.versions(t, c.prefix); len(got) != 1 || got[0] != (recorder.Version{Key: c.prefix + "objects/"}) {
		t.Errorf("one folder is listed as %+v", got)
	}
	if got := c.versions(t, c.prefix+"none/"); len(got) != 0 {
		t.Errorf("nothing is listed as %+v", got)
	}
}

func (c *contract) notFound(t *testing.T) {
	if _, err := c.bucket.Get(t.Context(), c.prefix+"none", ""); !errors.Is(err, recorder.ErrNotFound) {
		t.Errorf("got %v, want ErrNotFound", err)
	}
}

func (c *contract) journal(t *testing.T) {
	identity, ca := NewIdentity(t)
	config := Config(t, c.store, identity)
	config.Cluster = "contract-" + strings.ToLower(ulid.Make().String())
	r := Open(t, config)
	for i := range 50 {
		call := Call(fmt.Sprint(i))
		Record(t, r, call)
		Record(t, r, Outcome(call, 200))
	}
	if err := r.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	report, err := recorder.Verify(t.Context(), c.bucket, recorder.VerifyConfig{
		TrustBundles: []*x509bundle.Bundle{ca.Bundle()}, BrokerIDs: []spiffeid.ID{BrokerID()}, Cluster: config.Cluster, MinRetention: config.Retention,
	})
	if err != nil {
		t.Fatal(err)
	}
	if !report.Proven() || report.Records != 100 || len(report.Streams) != 1 || report.Streams[0].End != "closed" {
		t.Errorf("got %v in %+v", report.Findings, report)
	}
	var found int
	for event, err := range recorder.Scan(t.Context(), c.bucket, recorder.Filter{Cluster: config.Cluster, Task: "INC-4711", Verb: "get"}) {
		if err != nil {
			t.Fatal(err)
		}
		found++
		if !bytes.Contains([]byte(event.RequestURI), []byte("/shop/pods/")) || event.Seq() != uint64(found) {
			t.Errorf("record %d reads %+v", found, event)
		}
	}
	if found != 100 {
		t.Errorf("scanned %d records of 100", found)
	}
}
