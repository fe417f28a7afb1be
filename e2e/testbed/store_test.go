package testbed_test

import (
	"bytes"
	"crypto/md5"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/signer"

	"github.com/taskgate/taskgate/e2e/testbed"
)

// call is one request to an S3 store, raw: what a client library makes of an
// answer is not the question here.
type call struct {
	name    string
	method  string
	path    string // after the bucket; query included
	headers map[string]string
	body    string
}

// fixture is what the calls work on.
type fixture struct {
	locked          string // version of v1/journal/locked, which is locked
	open            string // version of v1/journal/open, which is not
	canary, canary2 string // versions of v1/canary/open, which are not locked
}

func testStore(t *testing.T, store testbed.ObjectStore) {
	f := newFixture(t, store)
	until := time.Now().Add(time.Hour).UTC().Format(time.RFC3339)
	lock := map[string]string{"X-Amz-Object-Lock-Mode": "COMPLIANCE", "X-Amz-Object-Lock-Retain-Until-Date": until}
	retention := "<Retention><Mode>COMPLIANCE</Mode><RetainUntilDate>" + until + "</RetainUntilDate></Retention>"
	writes := []call{
		{name: "put outside v1/", method: http.MethodPut, path: "/other/a", headers: lock, body: "x"},
		{name: "delete an object", method: http.MethodDelete, path: "/v1/journal/open"},
		{name: "delete a version", method: http.MethodDelete, path: "/v1/journal/open?versionId=" + f.open},
		{name: "delete several objects", method: http.MethodPost, path: "?delete", body: "<Delete><Object><Key>v1/journal/open</Key><VersionId>" + f.open + "</VersionId></Object></Delete>"},
		{name: "leave a delete marker on the canary", method: http.MethodDelete, path: "/v1/canary/open"},
		{name: "hold an object", method: http.MethodPut, path: "/v1/journal/open?legal-hold", body: "<LegalHold><Status>ON</Status></LegalHold>"},
		{name: "tag an object", method: http.MethodPut, path: "/v1/journal/open?tagging", body: "<Tagging><TagSet></TagSet></Tagging>"},
		{name: "copy an object", method: http.MethodPut, path: "/v1/journal/copy", headers: map[string]string{"X-Amz-Copy-Source": store.Bucket + "/v1/journal/open"}},
		{name: "change the policy", method: http.MethodPut, path: "?policy", body: "{}"},
		{name: "delete the policy", method: http.MethodDelete, path: "?policy"},
		{name: "suspend versioning", method: http.MethodPut, path: "?versioning", body: "<VersioningConfiguration><Status>Suspended</Status></VersioningConfiguration>"},
		{name: "change object lock", method: http.MethodPut, path: "?object-lock", body: "<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled></ObjectLockConfiguration>"},
		{name: "change the lifecycle", method: http.MethodPut, path: "?lifecycle", body: "<LifecycleConfiguration><Rule><ID>a</ID><Status>Enabled</Status><Filter></Filter><Expiration><Days>1</Days></Expiration></Rule></LifecycleConfiguration>"},
		{name: "delete the bucket", method: http.MethodDelete},
	}
	settings := []call{
		{name: "read object lock", method: http.MethodGet, path: "?object-lock"},
		{name: "read versioning", method: http.MethodGet, path: "?versioning"},
		{name: "read the lifecycle", method: http.MethodGet, path: "?lifecycle"},
	}
	reads := []call{
		{name: "list", method: http.MethodGet, path: "?list-type=2"},
		{name: "list versions", method: http.MethodGet, path: "?versions"},
		{name: "get", method: http.MethodGet, path: "/v1/journal/locked"},
		{name: "get a version", method: http.MethodGet, path: "/v1/journal/locked?versionId=" + f.locked},
		{name: "head a version", method: http.MethodHead, path: "/v1/journal/locked?versionId=" + f.locked},
		{name: "read retention", method: http.MethodGet, path: "/v1/journal/locked?retention&versionId=" + f.locked},
	}
	puts := []call{
		{name: "put with retention", method: http.MethodPut, path: "/v1/journal/new", headers: lock, body: "x"},
		{name: "put without retention", method: http.MethodPut, path: "/v1/canary/new", body: "x"},
		{name: "extend retention", method: http.MethodPut, path: "/v1/journal/locked?retention", body: retention},
	}
	canary := func(version string) []call {
		return []call{{name: "delete a version of the canary", method: http.MethodDelete, path: "/v1/canary/open?versionId=" + version}}
	}
	others := []call{
		{name: "read the policy", method: http.MethodGet, path: "?policy"},
		{name: "read tags", method: http.MethodGet, path: "/v1/journal/open?tagging"},
	}

	for _, group := range []struct {
		user    string
		as      testbed.Credentials
		allowed bool
		calls   [][]call
	}{
		{"broker", store.Broker, true, [][]call{puts, settings, canary(f.canary)}},
		{"broker", store.Broker, false, [][]call{reads, writes, others}},
		{"auditor", store.Auditor, true, [][]call{reads}},
		{"auditor", store.Auditor, false, [][]call{puts, writes, settings, others, canary(f.canary2)}},
	} {
		for _, calls := range group.calls {
			for _, c := range calls {
				allowed, answer := try(t, store, group.as, c)
				if strings.Contains(answer, "<Code>NotImplemented</Code>") {
					t.Logf("%s: %s: the store cannot do this for anybody", group.user, c.name)
				} else if allowed != group.allowed {
					t.Errorf("%s: %s: allowed is %t, want %t (%s)", group.user, c.name, allowed, group.allowed, answer)
				}
			}
		}
	}
	testLock(t, store, f)
}

// testLock has the store's own administrator try to undo a lock.
func testLock(t *testing.T, store testbed.ObjectStore, f fixture) {
	version := "/v1/journal/locked?versionId=" + f.locked
	bypass := map[string]string{"X-Amz-Bypass-Governance-Retention": "true"}
	soon := time.Now().Add(time.Minute).UTC().Format(time.RFC3339)
	for _, c := range []call{
		{name: "delete a locked version", method: http.MethodDelete, path: version},
		{name: "delete a locked version, bypassing", method: http.MethodDelete, path: version, headers: bypass},
		{name: "shorten retention", method: http.MethodPut, path: strings.Replace(version, "?", "?retention&", 1), headers: bypass, body: "<Retention><Mode>COMPLIANCE</Mode><RetainUntilDate>" + soon + "</RetainUntilDate></Retention>"},
	} {
		if status, answer := send(t, store, store.Admin, c); status < http.StatusBadRequest {
			t.Errorf("administrator: %s: answered %d %s", c.name, status, answer)
		}
	}
	if status, answer := send(t, store, store.Auditor, call{method: http.MethodGet, path: version}); status != http.StatusOK || answer != "locked" {
		t.Errorf("the locked version is now answered with %d %q", status, answer)
	}
}

func newFixture(t *testing.T, store testbed.ObjectStore) fixture {
	t.Helper()
	client, err := store.Client(store.Admin)
	if err != nil {
		t.Fatal(err)
	}
	put := func(key string, options minio.PutObjectOptions) string {
		t.Helper()
		content := key[strings.LastIndex(key, "/")+1:]
		options.SendContentMd5, options.DisableMultipart = true, true
		info, err := client.PutObject(t.Context(), store.Bucket, key, strings.NewReader(content), int64(len(content)), options)
		if err != nil {
			t.Fatal(err)
		}
		return info.VersionID
	}
	retained := minio.PutObjectOptions{Mode: minio.Compliance, RetainUntilDate: time.Now().Add(30 * time.Minute)}
	return fixture{
		locked:  put("v1/journal/locked", retained),
		open:    put("v1/journal/open", minio.PutObjectOptions{}),
		canary:  put("v1/canary/open", minio.PutObjectOptions{}),
		canary2: put("v1/canary/open", minio.PutObjectOptions{}),
	}
}

// try answers whether the store allows a call. What it says afterwards, such as
// that there is no lifecycle, does not matter.
func try(t *testing.T, store testbed.ObjectStore, user testbed.Credentials, c call) (bool, string) {
	t.Helper()
	status, answer := send(t, store, user, c)
	return status != http.StatusForbidden && !strings.Contains(answer, "AccessDenied"), answer
}

func send(t *testing.T, store testbed.ObjectStore, user testbed.Credentials, c call) (int, string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), c.method, store.Endpoint+"/"+store.Bucket+c.path, bytes.NewReader([]byte(c.body)))
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range c.headers {
		request.Header.Set(name, value)
	}
	digest, sum := sha256.Sum256([]byte(c.body)), md5.Sum([]byte(c.body))
	request.Header.Set("X-Amz-Content-Sha256", hex.EncodeToString(digest[:]))
	if c.body != "" {
		request.Header.Set("Content-MD5", base64.StdEncoding.EncodeToString(sum[:]))
	}
	response, err := http.DefaultTransport.RoundTrip(signer.SignV4(*request, user.Key, user.Secret, "", store.Region))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }() // read to its end
	answer, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(answer)
}
