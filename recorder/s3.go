package recorder

import (
	"bytes"
	"context"
	"crypto/md5" //nolint:gosec // a checksum the protocol asks for, beside the SHA-256
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// S3Config names a bucket of an S3-compatible store and who asks.
type S3Config struct {
	// Endpoint is a URL such as https://s3.eu-central-1.amazonaws.com; must be set.
	Endpoint string
	Bucket   string // must be set
	Region   string // default us-east-1
	// AccessKey, SecretKey and SessionToken are the credential. Without them it
	// comes from the environment (AWS_ACCESS_KEY_ID ...), the AWS credentials
	// file or the cloud's metadata service, which also renew it.
	AccessKey, SecretKey, SessionToken string
	// Transport carries the requests. Nil means one with the system's root
	// certificates.
	Transport http.RoundTripper
}

// S3 is a Store and a Bucket in an S3-compatible store. Which of the two it can
// be depends on the rights of its credential.
type S3 struct {
	core   minio.Core
	bucket string
}

// NewS3 does not talk to the store yet.
func NewS3(config S3Config) (*S3, error) {
	endpoint, err := url.Parse(config.Endpoint)
	if err != nil || endpoint.Host == "" || endpoint.Scheme != "http" && endpoint.Scheme != "https" || endpoint.Path != "" && endpoint.Path != "/" {
		return nil, fmt.Errorf("the S3 endpoint %q must be a URL such as https://s3.example.org", config.Endpoint)
	}
	transport := config.Transport
	if transport == nil {
		if transport, err = minio.DefaultTransport(endpoint.Scheme == "https"); err != nil {
			return nil, fmt.Errorf("setting up S3: %w", err)
		}
	}
	region := config.Region
	if region == "" {
		region = "us-east-1"
	}
	client, err := minio.New(endpoint.Host, &minio.Options{
		Creds:     config.credential(),
		Secure:    endpoint.Scheme == "https",
		Region:    region, // otherwise the library asks for it, which needs a right of its own
		Transport: datedTransport{transport},
		// One attempt: only the recorder knows what "exists" means after another.
		MaxRetries: 1,
	})
	if err != nil {
		return nil, fmt.Errorf("setting up S3: %w", err)
	}
	return &S3{core: minio.Core{Client: client}, bucket: config.Bucket}, nil
}

func (c S3Config) credential() *credentials.Credentials {
	if c.AccessKey != "" {
		return credentials.NewStaticV4(c.AccessKey, c.SecretKey, c.SessionToken)
	}
	return credentials.NewChainCredentials([]credentials.Provider{
		&credentials.EnvAWS{}, &credentials.FileAWSCredentials{}, &credentials.IAM{},
	})
}

// datedTransport notes the server's Date (RFC 9110, section 6.6.1) for whoever
// asked for it with withDate.
type datedTransport struct{ http.RoundTripper }

type dateKey struct{}

func (t datedTransport) RoundTrip(request *http.Request) (*http.Response, error) {
	response, err := t.RoundTripper.RoundTrip(request)
	if err != nil {
		return nil, err
	}
	if date, ok := request.Context().Value(dateKey{}).(*time.Time); ok {
		if parsed, err := http.ParseTime(response.Header.Get("Date")); err == nil {
			*date = parsed
		}
	}
	return response, nil
}

// withDate returns a context whose requests, made one after the other, leave the
// server's time behind; zero if it did not say.
func withDate(ctx context.Context) (context.Context, *time.Time) {
	date := new(time.Time)
	return context.WithValue(ctx, dateKey{}, date), date
}

// Put implements Store.
func (s *S3) Put(ctx context.Context, key string, body []byte, retainUntil time.Time) (Stored, error) {
	options := minio.PutObjectOptions{
		ContentType: "application/octet-stream",
		Mode:        minio.Compliance, RetainUntilDate: retainUntil,
		DisableMultipart: true,
		// The signature covers the SHA-256 of the body instead of a stream of
		// signed chunks, which stores confuse with a content encoding.
		DisableContentSha256: true,
	}
	options.SetMatchETagExcept("*")
	// Content-MD5 is what object lock asks for (S3 PutObject); the trailing
	// checksum that minio-go could send instead fails on versitygw.
	sum, legacy := sha256.Sum256(body), md5.Sum(body)
	ctx, date := withDate(ctx)
	info, err := s.core.PutObject(ctx, s.bucket, key, bytes.NewReader(body), int64(len(body)),
		base64.StdEncoding.EncodeToString(legacy[:]), hex.EncodeToString(sum[:]), options)
	return Stored{Version: info.VersionID, ServerTime: *date}, storeError(err)
}

// DeleteVersion implements Store.
func (s *S3) DeleteVersion(ctx context.Context, key, version string) error {
	err := storeError(s.core.RemoveObject(ctx, s.bucket, key, minio.RemoveObjectOptions{VersionID: version}))
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}

// List implements Bucket.
func (s *S3) List(ctx context.Context, prefix string) iter.Seq2[Version, error] {
	return func(yield func(Version, error) bool) {
		var last Version
		for info := range s.core.ListObjectsIter(ctx, s.bucket, minio.ListObjectsOptions{Prefix: prefix, WithVersions: true}) {
			version := Version{Key: info.Key, ID: info.VersionID, Size: info.Size, Modified: info.LastModified, Marker: info.IsDeleteMarker}
			if version == last && info.Err == nil {
				continue // versitygw 1.8 begins a page with the last line of the one before
			}
			last = version
			if !yield(version, storeError(info.Err)) {
				return
			}
		}
		if err := ctx.Err(); err != nil { // minio-go ends a listing early without a word
			yield(Version{}, err)
		}
	}
}

// Get implements Bucket.
func (s *S3) Get(ctx context.Context, key, version string) (io.ReadCloser, error) {
	content, _, _, err := s.core.GetObject(ctx, s.bucket, key, minio.GetObjectOptions{VersionID: version})
	if err != nil {
		return nil, storeError(err)
	}
	return content, nil
}

// Lock implements Bucket. It reads the headers of the object, because not every
// store's answer to GetObjectRetention can be parsed.
func (s *S3) Lock(ctx context.Context, key, version string) (Lock, error) {
	info, err := s.core.StatObject(ctx, s.bucket, key, minio.StatObjectOptions{VersionID: version})
	if err != nil {
		return Lock{}, storeError(err)
	}
	lock := Lock{Mode: info.Metadata.Get("X-Amz-Object-Lock-Mode")}
	if until := info.Metadata.Get("X-Amz-Object-Lock-Retain-Until-Date"); until != "" {
		if lock.Until, err = time.Parse(time.RFC3339, until); err != nil {
			return Lock{}, fmt.Errorf("reading the lock of %s: %w", key, err)
		}
	}
	return lock, nil
}

// Time implements Bucket. The store tells whole seconds only, so Time waits one:
// what was stored before the call is not later than its answer.
func (s *S3) Time(ctx context.Context) (time.Time, error) {
	select {
	case <-ctx.Done():
		return time.Time{}, ctx.Err()
	case <-time.After(time.Second):
	}
	ctx, date := withDate(ctx)
	exists, err := s.core.BucketExists(ctx, s.bucket)
	if err != nil {
		return time.Time{}, storeError(err)
	}
	if !exists {
		return time.Time{}, fmt.Errorf("%w: bucket %s", ErrNotFound, s.bucket)
	}
	return *date, nil
}

// storeError translates what a store answers. Only a definite answer becomes
// ErrRefused; anything unclear stays an error that leaves the outcome open.
func storeError(err error) error {
	if err == nil {
		return nil
	}
	response := minio.ToErrorResponse(err)
	switch status := response.StatusCode; {
	case status == http.StatusPreconditionFailed:
		return fmt.Errorf("%w: %w", ErrExists, err)
	case response.Code == minio.RequestTimeTooSkewed:
		return fmt.Errorf("%w: %w", ErrClockSkew, err)
	case response.Code == minio.AccessDenied:
		return fmt.Errorf("%w: %w", ErrDenied, err)
	case status == http.StatusNotFound:
		return fmt.Errorf("%w: %w: %w", ErrRefused, ErrNotFound, err)
	case status == http.StatusConflict, status == http.StatusTooManyRequests, status == http.StatusRequestTimeout:
		return err
	case status >= 400 && status < 500:
		return fmt.Errorf("%w: %w", ErrRefused, err)
	}
	return err
}
