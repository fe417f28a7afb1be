package recorder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"time"
)

// Errors of a Store and a Bucket. Any other error leaves open whether the
// operation took effect.
var (
	// ErrExists says that the key has a version already; nothing was written.
	ErrExists = errors.New("the object exists")
	// ErrRefused says that the store answered no for a definite reason and
	// changed nothing.
	ErrRefused = errors.New("the store refused")
	// ErrDenied is the ErrRefused of a credential that may not do this, or of a
	// lock that holds.
	ErrDenied = fmt.Errorf("%w: access denied", ErrRefused)
	// ErrClockSkew is the ErrRefused of a store whose clock is far from ours.
	ErrClockSkew = fmt.Errorf("%w: the clocks of this machine and of the store are too far apart", ErrRefused)
	// ErrNotFound says that there is no such object or version.
	ErrNotFound = errors.New("no such object")
	// ErrNotKept says that a copy does not keep what was asked for.
	ErrNotKept = errors.New("not kept in a copy")
)

// Store is where a broker writes. Implementations MUST be safe for concurrent
// use, MUST NOT retry by themselves, and MUST return the errors above exactly
// when they know: the recorder takes ErrExists on a first attempt for a fork and
// ErrRefused for the promise that nothing was stored.
type Store interface {
	// Put creates an object under a key that has no version yet (If-None-Match:
	// *), with a checksum the store verifies, locked in COMPLIANCE mode until
	// retainUntil. When it returns nil the object is durable.
	Put(ctx context.Context, key string, body []byte, retainUntil time.Time) (Stored, error)

	// DeleteVersion deletes one version for good. The recorder calls it to be
	// refused: it MUST return an error that wraps ErrRefused if the version is
	// still there, and one that wraps ErrDenied if the credential may not.
	// Deleting what does not exist succeeds.
	DeleteVersion(ctx context.Context, key, version string) error

	// Settings reads how the bucket is set up and what the credential may do
	// beyond its task.
	Settings(ctx context.Context) (Settings, error)
}

// Stored is what a store says about an object it has taken.
type Stored struct {
	Version    string
	ServerTime time.Time // zero if the store did not say
}

// Settings is how a bucket is set up, as far as the safety of records depends
// on it.
type Settings struct {
	ServerTime  time.Time
	ObjectLock  bool
	Versioning  bool
	DefaultMode string // of the bucket's own retention rule, "" without one
	// Noncurrent is the shortest time after which a lifecycle rule deletes
	// versions that are not the newest; zero if none does.
	Noncurrent time.Duration
	// Excess names what the credential may do and must not, as far as harmless
	// attempts show it.
	Excess []string
}

// Bucket is what an auditor reads. Implementations MUST be safe for concurrent
// use.
type Bucket interface {
	// List yields what lies directly under prefix, which is empty or ends in
	// "/": every version of every object, delete markers too, versions of one
	// key next to each other, and each folder once. Keys of objects ascend.
	List(ctx context.Context, prefix string) iter.Seq2[Version, error]

	// Get opens the content of one version; an empty version is the newest.
	Get(ctx context.Context, key, version string) (io.ReadCloser, error)

	// Lock returns the retention of one version, or ErrNotKept.
	Lock(ctx context.Context, key, version string) (Lock, error)

	// Time is the store's clock, the zero time for a copy.
	Time(ctx context.Context) (time.Time, error)
}

// Version is one line of a listing.
type Version struct {
	Key      string // of a folder it ends in "/", and the rest is zero
	ID       string // "" in a copy
	Size     int64
	Modified time.Time // the store's clock; zero in a copy
	Marker   bool      // a delete marker, which has no content
}

// Lock is the retention of one version.
type Lock struct {
	Mode  string // "COMPLIANCE", "GOVERNANCE" or ""
	Until time.Time
}

// compliance is the only lock nobody can lift (S3 Object Lock).
const compliance = "COMPLIANCE"

// Reason names a Problem.
type Reason string

// The reasons for which a recorder tells its operator to act.
const (
	BucketUnsafe      Reason = "BucketUnsafe"
	ClockSkew         Reason = "ClockSkew"
	ForkSuspected     Reason = "ForkSuspected"
	LifecycleConflict Reason = "LifecycleConflict"
)

// Problem is something only an operator can put right.
type Problem struct {
	Reason Reason
	Detail string
}

// Error implements error.
func (p *Problem) Error() string { return fmt.Sprintf("%s{%s}", p.Reason, p.Detail) }
