package e2e_test

import (
	"bytes"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/minio/madmin-go/v3"
	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/minio/minio-go/v7/pkg/lifecycle"

	"github.com/taskgate/taskgate/e2e/testbed"
)

// faultBucket is a bucket that is not safe, and what a broker must say about it.
type faultBucket struct {
	name   string
	only   string // the store that can do this; empty: both
	make   minio.MakeBucketOptions
	setUp  func(*testing.T, *minio.Client, string)
	policy func(string) string                // changes what the broker may do there
	as     *testbed.Credentials               // nil: the broker's own
	hook   func(*testing.T, *faultS3, string) // changes the store
	want   []string
}

// testStoreUnsafe starts brokers on buckets that are not safe, and on a safe one
// with credentials that are not (T190, T191, T193).
func testStoreUnsafe(t *testing.T, b *faultBed, s *faultS3) {
	if code, _ := b.terminate(t); code != 0 {
		t.Errorf("the broker ended with %d", code)
	}
	admin := b.Store().Admin
	versioned := func(t *testing.T, client *minio.Client, bucket string) {
		if err := client.EnableVersioning(t.Context(), bucket); err != nil {
			t.Fatal(err)
		}
	}
	for _, bucket := range []faultBucket{
		{name: "nolock", setUp: versioned, want: []string{"BucketUnsafe{", "object lock is off"}},
		{name: "plain", want: []string{"BucketUnsafe{", "object lock is off", "versioning is off"}},
		{name: "governance", make: minio.MakeBucketOptions{ObjectLocking: true}, setUp: faultGovernance, want: []string{"BucketUnsafe{", "the default retention is GOVERNANCE"}},
		{name: "admin-key", make: minio.MakeBucketOptions{ObjectLocking: true}, as: &admin, want: []string{
			"BucketUnsafe{", "the credential may delete versions under v1/journal/", "v1/manifests/", "v1/trust/",
		}},
		{name: "no-canary", make: minio.MakeBucketOptions{ObjectLocking: true}, policy: faultNoCanary, want: []string{"BucketUnsafe{", "the canary proves nothing"}},
		{name: "liar", make: minio.MakeBucketOptions{ObjectLocking: true}, hook: faultLiar, want: []string{"BucketUnsafe{", "a locked object could be deleted"}},
		{name: "no-rights", make: minio.MakeBucketOptions{ObjectLocking: true}, policy: func(string) string { return "" }, want: []string{"reading the bucket's settings"}},
		{name: "delete", make: minio.MakeBucketOptions{ObjectLocking: true}, policy: faultAlso("/v1/canary/*", "/v1/*"), want: []string{
			"BucketUnsafe{", "the credential may delete versions under v1/journal/",
		}},
		{name: "legal-hold", make: minio.MakeBucketOptions{ObjectLocking: true}, policy: faultAlso(`"s3:PutObject"`, `"s3:PutObject","s3:PutObjectLegalHold"`), want: []string{
			"BucketUnsafe{", "the credential may lift legal holds",
		}},
		{name: "put-lifecycle", only: testbed.MinIO, make: minio.MakeBucketOptions{ObjectLocking: true},
			policy: faultAlso(`"s3:GetBucketVersioning"`, `"s3:GetBucketVersioning","s3:PutLifecycleConfiguration"`), want: []string{"BucketUnsafe{", "lifecycle"}},
	} {
		if bucket.only != "" && bucket.only != b.Options().S3 {
			continue
		}
		t.Run(bucket.name, func(t *testing.T) { bucket.test(t, b, s) })
		s.on(nil)
	}
	b.startBroker(t)
	b.untilReady(t, 20*time.Second)
}

func (f faultBucket) test(t *testing.T, b *faultBed, s *faultS3) {
	store := b.Store()
	client, err := store.Client(store.Admin)
	if err != nil {
		t.Fatal(err)
	}
	if err := client.MakeBucket(t.Context(), f.name, f.make); err != nil {
		t.Fatal(err)
	}
	if f.setUp != nil {
		f.setUp(t, client, f.name)
	}
	b.permit(t, f)
	if f.hook != nil {
		f.hook(t, s, f.name)
	}
	var environment []string
	if f.as != nil {
		environment = []string{"AWS_ACCESS_KEY_ID=" + f.as.Key, "AWS_SECRET_ACCESS_KEY=" + f.as.Secret}
	}
	broker := b.runBroker(t, func(config map[string]any) { // it is killed with the test
		recorder := config["recorder"].(map[string]any)
		recorder["store"].(map[string]any)["bucket"] = f.name
		recorder["spool"] = recorder["spool"].(string) + "-" + f.name
	}, environment)
	began := time.Now()
	page := ""
	eventually(t, 8*time.Second, "the broker says what is wrong with the bucket", func() error {
		var code int
		code, page = faultFetch(broker.health + "/readyz?verbose")
		for _, wanted := range f.want {
			if code != http.StatusServiceUnavailable || !strings.Contains(page, wanted) {
				return &faultMissing{wanted, page}
			}
		}
		return nil
	})
	took := faultSince(began)
	answers := []faultAnswer{b.alpha.get(t.Context()), b.alpha.create(t.Context(), "unsafe")}
	upstream := b.upstream(t)
	for _, answer := range answers {
		if !answer.is("RecorderUnavailable") || len(upstream[answer.auditID]) > 0 {
			t.Errorf("a call was answered %s; the API server saw %d of it", answer, len(upstream[answer.auditID]))
		}
	}
	for version, err := range b.versions(t, f.name) {
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(version, "v1/canary/") {
			t.Errorf("the broker put %s into an unsafe bucket", version)
		}
	}
	if f.name == "nolock" { // once: it waits for the bucket until its grace ends
		if code, output := broker.stop(t); code != 0 && !strings.Contains(output, "not everything is sealed") {
			t.Errorf("the broker ended with %d: %s", code, output)
		}
	}
	for line := range strings.Lines(page) {
		if strings.HasPrefix(line, "[-]recorder") {
			t.Logf("after %s: %s", took, strings.TrimSpace(line))
		}
	}
}

// faultMissing says what a page does not hold.
type faultMissing struct{ wanted, page string }

func (m *faultMissing) Error() string { return "no " + m.wanted + " in " + m.page }

// versions yields the keys of a bucket.
func (b *faultBed) versions(t *testing.T, bucket string) func(func(string, error) bool) {
	client, err := b.Store().Client(b.Store().Admin)
	if err != nil {
		t.Fatal(err)
	}
	return func(yield func(string, error) bool) {
		for info := range client.ListObjectsIter(t.Context(), bucket, minio.ListObjectsOptions{Recursive: true, WithVersions: true}) {
			if !yield(info.Key, info.Err) {
				return
			}
		}
	}
}

func faultGovernance(t *testing.T, client *minio.Client, bucket string) {
	mode, days, unit := minio.Governance, uint(1), minio.Days
	if err := client.SetBucketObjectLockConfig(t.Context(), bucket, &mode, &days, &unit); err != nil {
		t.Fatal(err)
	}
}

// faultNoCanary takes the right to delete versions of the canary away.
func faultNoCanary(policy string) string {
	return strings.NewReplacer(`"s3:DeleteObjectVersion"`, `"s3:GetObjectTagging"`, `"s3:DeleteObject"`, `"s3:GetObjectTagging"`).Replace(policy)
}

// faultLiar is a store that seems to delete what is locked.
func faultLiar(_ *testing.T, s *faultS3, _ string) {
	s.on(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if r.Method == http.MethodDelete && strings.Contains(r.URL.Path, "/v1/canary/") {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// faultAlso changes one part of the policy, which must be there.
func faultAlso(part, by string) func(string) string {
	return func(policy string) string {
		if !strings.Contains(policy, part) {
			panic(part + " is not in " + policy)
		}
		return strings.Replace(policy, part, by, 1)
	}
}

// permit gives the broker the rights in a new bucket that it has in its own.
func (b *faultBed) permit(t *testing.T, f faultBucket) {
	t.Helper()
	store := b.Store()
	change := f.policy
	if change == nil {
		change = func(policy string) string { return policy }
	}
	if b.Options().S3 == testbed.MinIO {
		b.permitMinIO(t, f.name, change)
		return
	}
	client, err := store.Client(store.Admin)
	if err != nil {
		t.Fatal(err)
	}
	policy, err := client.GetBucketPolicy(t.Context(), store.Bucket)
	if err != nil {
		t.Fatal(err)
	}
	if policy = change(strings.ReplaceAll(policy, ":::"+store.Bucket, ":::"+f.name)); policy == "" {
		return
	}
	if err := client.SetBucketPolicy(t.Context(), f.name, policy); err != nil {
		t.Fatal(err)
	}
}

func (b *faultBed) permitMinIO(t *testing.T, bucket string, change func(string) string) {
	t.Helper()
	store := b.Store()
	endpoint, err := url.Parse(store.Endpoint)
	if err != nil {
		t.Fatal(err)
	}
	admin, err := madmin.NewWithOptions(endpoint.Host, &madmin.Options{Creds: credentials.NewStaticV4(store.Admin.Key, store.Admin.Secret, "")})
	if err != nil {
		t.Fatal(err)
	}
	info, err := admin.InfoCannedPolicyV2(t.Context(), store.Broker.Key)
	if err != nil {
		t.Fatal(err)
	}
	policy := change(string(bytes.ReplaceAll(info.Policy, []byte(":::"+store.Bucket), []byte(":::"+bucket))))
	if policy == "" {
		return
	}
	name := "broker-" + bucket
	if err := admin.AddCannedPolicy(t.Context(), name, []byte(policy)); err != nil {
		t.Fatal(err)
	}
	if _, err := admin.AttachPolicy(t.Context(), madmin.PolicyAssociationReq{Policies: []string{name}, User: store.Broker.Key}); err != nil {
		t.Fatal(err)
	}
}

// testStoreLifecycle has a rule that deletes noncurrent versions too early: the
// broker goes on and has to warn (T194).
func testStoreLifecycle(t *testing.T, b *faultBed, _ *faultS3) {
	if b.Options().S3 != testbed.MinIO {
		t.Skip("versitygw knows no lifecycle rules")
	}
	client, err := b.Store().Client(b.Store().Admin)
	if err != nil {
		t.Fatal(err)
	}
	config := lifecycle.NewConfiguration()
	config.Rules = []lifecycle.Rule{{ID: "early", Status: "Enabled", NoncurrentVersionExpiration: lifecycle.NoncurrentVersionExpiration{NoncurrentDays: 1}}}
	if err := client.SetBucketLifecycle(t.Context(), b.Store().Bucket, config); err != nil {
		t.Fatal(err)
	}
	if code, _ := b.terminate(t); code != 0 {
		t.Errorf("the broker ended with %d", code)
	}
	broker := b.runBroker(t, func(config map[string]any) {
		config["recorder"].(map[string]any)["retention"] = "720h"
	}, nil)
	eventually(t, 20*time.Second, "the broker is ready", func() error {
		if code, page := faultFetch(broker.health + "/readyz"); code != http.StatusOK {
			return &faultMissing{"ok", page}
		}
		return nil
	})
	if answer := b.alpha.get(t.Context()); !answer.ok() {
		t.Errorf("a call was answered %s", answer)
	}
	_, page := faultFetch(broker.health + "/readyz?verbose")
	_, metrics := faultFetch(broker.health + "/metrics")
	_, output := broker.stop(t)
	if !strings.Contains(output+page+metrics, "LifecycleConflict") {
		t.Error("nothing says LifecycleConflict: not the log, not /readyz?verbose, not the metrics")
	}
	if err := client.SetBucketLifecycle(t.Context(), b.Store().Bucket, lifecycle.NewConfiguration()); err != nil {
		t.Fatal(err)
	}
	b.startBroker(t)
}
