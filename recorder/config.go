package recorder

import (
	"cmp"
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// Identity gives the SVID to sign with and the trust bundle to archive.
// identity.Source is one. It must be safe for concurrent use.
type Identity interface {
	x509svid.Source
	x509bundle.Source
}

// Config says what to record for whom, and where to. Fields without "must" have
// a default that zero stands for.
type Config struct {
	// Cluster is the guarded cluster's name; must be 1 to 63 letters, digits,
	// dots, dashes and underscores.
	Cluster string
	// Broker is this replica's name, of the same form; must be unique among the
	// brokers that write to the bucket, and should be the same after a restart.
	Broker string
	// Spool is a directory of the broker's own on a local disk; must be set. It
	// holds the records that are not sealed yet, so it must survive a restart.
	Spool string
	// Store is the bucket; must be set.
	Store Store
	// Identity signs; must be set.
	Identity Identity
	// Retention is how long objects are locked; must be set. It cannot be
	// shortened afterwards, by anyone.
	Retention time.Duration

	// SpoolLimit bounds the spool, in bytes; at least two files. Default 1 GiB.
	SpoolLimit int64
	// AgeLimit is how long a record may wait for the bucket before no more are
	// accepted. Verify must be told if it is not the default, 10 minutes.
	AgeLimit time.Duration
	// FileSize is the size of a spool file, in bytes, 64 KiB to 1 GiB; no record
	// can be larger. Default 16 MiB.
	FileSize int64
	// SegmentBytes seals a segment early, in bytes before compression. Default
	// 8 MiB.
	SegmentBytes int64
	// SegmentEvery seals what there is. Default one second.
	SegmentEvery time.Duration
	// Heartbeat is the longest silence of a stream. Default 60 seconds.
	Heartbeat time.Duration
	// CanaryEvery is the time between two attempts to delete a locked object.
	// Default one hour.
	CanaryEvery time.Duration
	// PutTimeout bounds one attempt to store an object. Default 30 seconds.
	PutTimeout time.Duration
	// RetryMax is the longest pause between two attempts; the first is a
	// hundredth of it. Default 10 seconds.
	RetryMax time.Duration
	// StreamStall is how long a frame of a stream may wait for room. Default 30
	// seconds.
	StreamStall time.Duration
	// Now is the clock. Nil means time.Now.
	Now func() time.Time

	disk disk
}

// withDefaults returns the complete configuration, or what is wrong with it.
func (c Config) withDefaults() (*Config, error) {
	c.SpoolLimit = cmp.Or(c.SpoolLimit, 1<<30)
	c.AgeLimit = cmp.Or(c.AgeLimit, defaultAgeLimit)
	c.FileSize = cmp.Or(c.FileSize, 16<<20)
	c.SegmentBytes = cmp.Or(c.SegmentBytes, 8<<20)
	c.SegmentEvery = cmp.Or(c.SegmentEvery, time.Second)
	c.Heartbeat = cmp.Or(c.Heartbeat, defaultHeartbeat)
	c.CanaryEvery = cmp.Or(c.CanaryEvery, time.Hour)
	c.PutTimeout = cmp.Or(c.PutTimeout, 30*time.Second)
	c.RetryMax = cmp.Or(c.RetryMax, 10*time.Second)
	c.StreamStall = cmp.Or(c.StreamStall, 30*time.Second)
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.disk.prepare == nil {
		c.disk = realDisk()
	}
	switch {
	case !validName(c.Cluster) || !validName(c.Broker):
		return nil, fmt.Errorf("cluster %q and broker %q must be names of 1 to 63 letters, digits, dots, dashes and underscores", c.Cluster, c.Broker)
	case c.Spool == "" || c.Store == nil || c.Identity == nil:
		return nil, errors.New("a spool directory, a store and an identity must be given")
	case c.Retention <= 0:
		return nil, errors.New("a retention must be given")
	case c.FileSize < 64<<10 || c.FileSize > 1<<30 || c.SpoolLimit < 2*c.FileSize:
		return nil, fmt.Errorf("a spool file must have 64 KiB to 1 GiB and two must fit: %d bytes of %d", c.FileSize, c.SpoolLimit)
	case c.SegmentBytes < 1 || c.SegmentBytes > maxSegment-maxRecord:
		return nil, fmt.Errorf("a segment must have 1 to %d bytes", maxSegment-maxRecord)
	case min(c.AgeLimit, c.SegmentEvery, c.Heartbeat, c.CanaryEvery, c.PutTimeout, c.RetryMax, c.StreamStall) < 0:
		return nil, errors.New("a duration is negative")
	}
	return &c, nil
}

const (
	defaultAgeLimit  = 10 * time.Minute
	defaultHeartbeat = time.Minute
	// maxSegment bounds what a reader decompresses, whatever a manifest says.
	maxSegment = 64 << 20
	// recoveryFile is the size of the spool file in which an earlier stream's
	// lost outcomes are recorded.
	recoveryFile = 4 << 20
)

// spool is what the spool of a stream needs to know.
func (c *Config) spool(fate *fate) spoolConfig {
	return spoolConfig{
		fileSize: c.FileSize, limit: c.SpoolLimit, ageLimit: c.AgeLimit, segment: c.SegmentBytes,
		now: c.Now, disk: c.disk, fate: fate,
	}
}
