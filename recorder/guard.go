package recorder

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"
)

const (
	// canaryRetention outlives the hourly attempts to delete the canary.
	canaryRetention = 24 * time.Hour
	// noVersion is a version ID that is well-formed everywhere and, in a bucket
	// that was versioned from its first day, belongs to nothing.
	noVersion = "null"
)

// verdict is what one look at the bucket's safety found.
type verdict struct {
	unsafe  []string // empty: records are safe there
	warning *Problem
}

// inspect finds out whether the bucket keeps what is put there, from the broker
// itself too. An error says that it could not be found out.
func inspect(ctx context.Context, config *Config, uploader *uploader) (verdict, error) {
	var v verdict
	settings, err := config.Store.Settings(ctx)
	if err != nil {
		return v, fmt.Errorf("reading the bucket's settings: %w", err)
	}
	uploader.clock(settings.ServerTime)
	if !settings.ObjectLock {
		v.unsafe = append(v.unsafe, "object lock is off; it can only be switched on when a bucket is made, so make a new one")
	}
	if !settings.Versioning {
		v.unsafe = append(v.unsafe, "versioning is off; switch it on")
	}
	if settings.DefaultMode != "" && settings.DefaultMode != compliance {
		v.unsafe = append(v.unsafe, "the default retention is "+settings.DefaultMode+"; set COMPLIANCE or none")
	}
	if n := settings.Noncurrent; n > 0 && n < config.Retention {
		v.warning = &Problem{LifecycleConflict, fmt.Sprintf("a lifecycle rule deletes noncurrent versions after %s, before their retention of %s ends; remove it", n, config.Retention)}
	}
	excess, err := lint(ctx, config.Store)
	if err != nil {
		return v, err
	}
	for _, may := range append(settings.Excess, excess...) {
		v.unsafe = append(v.unsafe, "the credential may "+may+"; take that from it")
	}
	if len(v.unsafe) > 0 {
		return v, nil // a canary would prove nothing more
	}
	problem, err := canary(ctx, config, uploader)
	if problem != "" {
		v.unsafe = append(v.unsafe, problem)
	}
	return v, err
}

// lint tries what the credential must not be able to do, on objects that do not
// exist. Whatever the store answers other than "denied", it did not say no.
func lint(ctx context.Context, store Store) ([]string, error) {
	var excess []string
	for _, prefix := range []string{journalPrefix, manifestPrefix, streamPrefix, trustPrefix} {
		err := store.DeleteVersion(ctx, prefix+"none", noVersion)
		switch {
		case errors.Is(err, ErrDenied):
		case err == nil, errors.Is(err, ErrRefused):
			excess = append(excess, "delete versions under "+prefix)
		default:
			return nil, fmt.Errorf("trying whether the credential may delete: %w", err)
		}
	}
	return excess, nil
}

// canary locks an object and tries to delete it. The credential may delete under
// the canary's prefix, so it is the lock that refuses, not a policy: that too is
// tried.
func canary(ctx context.Context, config *Config, uploader *uploader) (problem string, err error) {
	switch err := config.Store.DeleteVersion(ctx, canaryPrefix+"none", noVersion); {
	case errors.Is(err, ErrDenied):
		return "the canary proves nothing: the credential may not delete versions under " + canaryPrefix + ", so a refusal says nothing about the lock; allow it there", nil
	case err != nil && !errors.Is(err, ErrRefused):
		return "", fmt.Errorf("trying the canary: %w", err)
	}
	key := path.Join(canaryPrefix, config.Broker, ulid.Make().String())
	stored, err := uploader.attempt(ctx, key, []byte("canary\n"), canaryRetention)
	if err != nil {
		return "", fmt.Errorf("storing the canary: %w", err)
	}
	if stored.Version == "" {
		return "the store gave no version to what it stored; switch versioning on", nil
	}
	switch err := config.Store.DeleteVersion(ctx, key, stored.Version); {
	case err == nil:
		return "a locked object could be deleted: this store does not keep its locks; do not use it", nil
	case errors.Is(err, ErrRefused):
		return "", nil
	default:
		return "", fmt.Errorf("trying to delete the canary: %w", err)
	}
}

// guard keeps the newest verdict and when the next is due. Locked by the
// recorder's mutex.
type guard struct {
	safe     bool // the last verdict was good
	problem  error
	warning  *Problem
	failures uint64 // verdicts that were bad
	next     time.Time
}

func (g *guard) take(v verdict, now time.Time, config *Config) {
	g.safe, g.problem, g.warning = len(v.unsafe) == 0, nil, v.warning
	g.next = now.Add(config.CanaryEvery)
	if !g.safe {
		g.failures++
		g.problem = &Problem{BucketUnsafe, strings.Join(v.unsafe, "; ")}
		g.next = now.Add(config.RetryMax)
	}
}
