package recorder_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/taskgate/taskgate/recorder"
)

// s3Server answers every request with one handler and counts them.
func s3Server(t *testing.T, handler http.HandlerFunc) (*recorder.S3, *atomic.Int64) {
	var requests atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		handler(w, r)
	}))
	t.Cleanup(server.Close)
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	store, err := recorder.NewS3(recorder.S3Config{
		Endpoint: server.URL, Bucket: "records", AccessKey: "key", SecretKey: "the-secret-key", Transport: transport,
	})
	if err != nil {
		t.Fatal(err)
	}
	return store, &requests
}

func s3Error(status int, code string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		fmt.Fprintf(w, "<Error><Code>%s</Code><Message>no</Message></Error>", code)
	}
}

// TestPutOnTheWire: what every store must see to take an object once and lock it
// (T198).
func TestPutOnTheWire(t *testing.T) {
	until := time.Date(2033, 1, 2, 3, 4, 5, 0, time.UTC)
	var header http.Header
	store, requests := s3Server(t, func(w http.ResponseWriter, r *http.Request) {
		header = r.Header
		w.Header().Set("Date", "Mon, 23 Nov 2026 11:00:00 GMT")
		w.Header().Set("X-Amz-Version-Id", "v7")
	})
	stored, err := store.Put(context.Background(), "v1/a", []byte("content"), until)
	if err != nil || stored.Version != "v7" || !stored.ServerTime.Equal(time.Date(2026, 11, 23, 11, 0, 0, 0, time.UTC)) {
		t.Errorf("got %+v, %v", stored, err)
	}
	for name, want := range map[string]string{
		"If-None-Match":                       "*",
		"X-Amz-Object-Lock-Mode":              "COMPLIANCE",
		"X-Amz-Object-Lock-Retain-Until-Date": "2033-01-02T03:04:05Z",
		"Content-Md5":                         "mgNkuembtIDdJeHwKEyFVQ==",
		"X-Amz-Content-Sha256":                recorder.HashOf([]byte("content")),
		"Content-Encoding":                    "", // clients would decompress without a word
	} {
		if got := header.Get(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if n := requests.Load(); n != 1 {
		t.Errorf("%d requests were made", n)
	}
}

// TestStoreErrors: one attempt each, and only definite answers become definite
// errors.
func TestStoreErrors(t *testing.T) {
	for _, test := range []struct {
		status  int
		code    string
		want    error
		unclear bool
	}{
		{412, "PreconditionFailed", recorder.ErrExists, false},
		{403, "AccessDenied", recorder.ErrDenied, false},
		{403, "RequestTimeTooSkewed", recorder.ErrClockSkew, false},
		{403, "SignatureDoesNotMatch", recorder.ErrRefused, false},
		{400, "BadDigest", recorder.ErrRefused, false},
		{409, "ConditionalRequestConflict", nil, true},
		{429, "TooManyRequests", nil, true},
		{408, "RequestTimeout", nil, true},
		{500, "InternalError", nil, true},
		{503, "SlowDown", nil, true},
	} {
		t.Run(test.code, func(t *testing.T) {
			store, requests := s3Server(t, s3Error(test.status, test.code))
			_, err := store.Put(context.Background(), "v1/a", []byte("content"), time.Now().Add(time.Hour))
			definite := errors.Is(err, recorder.ErrRefused) || errors.Is(err, recorder.ErrExists)
			if err == nil || definite == test.unclear || test.want != nil && !errors.Is(err, test.want) {
				t.Errorf("got %v", err)
			}
			if n := requests.Load(); n != 1 {
				t.Errorf("%d requests were made", n)
			}
			if strings.Contains(fmt.Sprint(err), "the-secret-key") {
				t.Error("the error tells the secret")
			}
		})
	}
}

func TestPutWithoutAServer(t *testing.T) {
	store, err := recorder.NewS3(recorder.S3Config{Endpoint: "http://127.0.0.1:1", Bucket: "records", AccessKey: "key", SecretKey: "secret", Transport: &http.Transport{}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.Put(context.Background(), "v1/a", nil, time.Now().Add(time.Hour)); err == nil || errors.Is(err, recorder.ErrRefused) {
		t.Errorf("got %v", err)
	}
}

func TestS3Settings(t *testing.T) {
	answers := map[string]http.HandlerFunc{
		"versioning": func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, `<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>`)
		},
		"object-lock": func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, `<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled><Rule><DefaultRetention><Mode>GOVERNANCE</Mode><Days>1</Days></DefaultRetention></Rule></ObjectLockConfiguration>`)
		},
		"lifecycle": func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, `<LifecycleConfiguration><Rule><Status>Enabled</Status><NoncurrentVersionExpiration><NoncurrentDays>30</NoncurrentDays></NoncurrentVersionExpiration></Rule>`+
				`<Rule><Status>Disabled</Status><NoncurrentVersionExpiration><NoncurrentDays>1</NoncurrentDays></NoncurrentVersionExpiration></Rule></LifecycleConfiguration>`)
		},
		"legal-hold": s3Error(404, "NoSuchKey"),
	}
	store, _ := s3Server(t, func(w http.ResponseWriter, r *http.Request) {
		for setting, answer := range answers {
			if r.URL.Query().Has(setting) {
				answer(w, r)
			}
		}
	})
	got, err := store.Settings(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if !got.Versioning || !got.ObjectLock || got.DefaultMode != "GOVERNANCE" || got.Noncurrent != 30*24*time.Hour || len(got.Excess) != 2 || got.ServerTime.IsZero() {
		t.Errorf("got %+v", got)
	}

	answers["object-lock"] = s3Error(404, "ObjectLockConfigurationNotFoundError")
	answers["lifecycle"] = s3Error(501, "NotImplemented")
	answers["legal-hold"] = s3Error(403, "AccessDenied")
	if got, err = store.Settings(context.Background()); err != nil || got.ObjectLock || got.Noncurrent != 0 || len(got.Excess) != 0 {
		t.Errorf("got %+v, %v", got, err)
	}
	answers["versioning"] = s3Error(403, "AccessDenied")
	if _, err = store.Settings(context.Background()); err == nil || !strings.Contains(err.Error(), "s3:GetBucketVersioning") {
		t.Errorf("got %v, want the right that is missing", err)
	}
}

func TestS3Endpoint(t *testing.T) {
	for _, endpoint := range []string{"", "s3.example.org", "ftp://s3.example.org", "https://s3.example.org/bucket", "https://"} {
		if _, err := recorder.NewS3(recorder.S3Config{Endpoint: endpoint}); err == nil {
			t.Errorf("%q was accepted", endpoint)
		}
	}
}
