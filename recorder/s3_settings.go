package recorder

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/lifecycle"
)

// Settings implements Store.
func (s *S3) Settings(ctx context.Context) (Settings, error) {
	ctx, date := withDate(ctx)
	var settings Settings
	versioning, err := s.core.GetBucketVersioning(ctx, s.bucket)
	if err != nil {
		return settings, fmt.Errorf("reading whether bucket %s has versioning (s3:GetBucketVersioning): %w", s.bucket, storeError(err))
	}
	settings.Versioning = versioning.Enabled()
	state, mode, _, _, err := s.core.GetObjectLockConfig(ctx, s.bucket)
	switch {
	case err == nil:
		settings.ObjectLock = state == "Enabled"
	case !absent(err):
		return settings, fmt.Errorf("reading whether bucket %s has object lock (s3:GetBucketObjectLockConfiguration): %w", s.bucket, storeError(err))
	}
	if mode != nil {
		settings.DefaultMode = mode.String()
	}
	if settings.Noncurrent, err = s.noncurrent(ctx); err != nil {
		return settings, err
	}
	if settings.Excess, err = s.excess(ctx); err != nil {
		return settings, err
	}
	settings.ServerTime = *date
	return settings, nil
}

// absent tells a setting that is not there, or that a store does not have at
// all, from one that could not be read.
func absent(err error) bool {
	status := minio.ToErrorResponse(err).StatusCode
	return status == http.StatusNotFound || status == http.StatusNotImplemented || minio.ToErrorResponse(err).Code == minio.NotImplemented
}

func (s *S3) noncurrent(ctx context.Context) (time.Duration, error) {
	config, err := s.core.GetBucketLifecycle(ctx, s.bucket)
	if err != nil {
		if absent(err) {
			return 0, nil
		}
		return 0, fmt.Errorf("reading the lifecycle rules of bucket %s (s3:GetLifecycleConfiguration): %w", s.bucket, storeError(err))
	}
	var shortest time.Duration
	for _, rule := range config.Rules {
		days := time.Duration(rule.NoncurrentVersionExpiration.NoncurrentDays) * 24 * time.Hour
		if rule.Status == "Enabled" && days > 0 && (shortest == 0 || days < shortest) {
			shortest = days
		}
	}
	return shortest, nil
}

// excess tries to lift the legal hold of an object that does not exist, and to
// set lifecycle rules that no store takes. A credential that may not is denied
// before the store looks at the object or the rules.
func (s *S3) excess(ctx context.Context) ([]string, error) {
	off := minio.LegalHoldDisabled
	hold := s.core.PutObjectLegalHold(ctx, s.bucket, journalPrefix+"none", minio.PutObjectLegalHoldOptions{Status: &off})
	rules := lifecycle.NewConfiguration()
	rules.Rules = []lifecycle.Rule{{ID: "taskgate-try", Status: "Invalid"}}
	rule := s.core.SetBucketLifecycle(ctx, s.bucket, rules)
	if absent(rule) {
		rule = ErrDenied // there are no such rules
	}
	var excess []string
	for _, try := range []struct {
		may string
		err error
	}{{"lift legal holds (s3:PutObjectLegalHold)", hold}, {"change lifecycle rules (s3:PutLifecycleConfiguration)", rule}} {
		switch err := storeError(try.err); {
		case errors.Is(err, ErrDenied):
		case err == nil || errors.Is(err, ErrRefused):
			excess = append(excess, try.may)
		default:
			return nil, fmt.Errorf("trying whether the credential may %s: %w", try.may, err)
		}
	}
	return excess, nil
}
