package recorder

import (
	"encoding/hex"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/oklog/ulid/v2"
)

// Where objects lie in the bucket. The segments and manifests of one day and one
// stream share the rest of their path, and the number at the end has a fixed
// width, so that listings come in the order of the numbers. Days never go back
// within a stream, and a manifest lies in the day of its segment. The chunks of a
// recorded stream lie in the days in which they were made.
const (
	journalPrefix  = "v1/journal/"
	manifestPrefix = "v1/manifests/"
	streamPrefix   = "v1/streams/"
	trustPrefix    = "v1/trust/"
	canaryPrefix   = "v1/canary/"

	segmentSuffix  = ".jsonl.zst"
	manifestSuffix = ".jws"
	trustSuffix    = ".json"
)

func segmentKey(cluster, day, stream string, first uint64) string {
	return fmt.Sprintf("%scluster=%s/dt=%s/%s/%020d%s", journalPrefix, cluster, day, stream, first, segmentSuffix)
}

func manifestKey(cluster, day, stream string, number uint64) string {
	return fmt.Sprintf("%scluster=%s/dt=%s/%s/%012d%s", manifestPrefix, cluster, day, stream, number, manifestSuffix)
}

func chunkFolder(cluster, day, auditID string) string {
	return fmt.Sprintf("%scluster=%s/dt=%s/%s/", streamPrefix, cluster, day, auditID)
}

func chunkKey(cluster, day, auditID string, number uint64) string {
	return fmt.Sprintf("%s%06d%s", chunkFolder(cluster, day, auditID), number, segmentSuffix)
}

func trustKey(hash string) string { return trustPrefix + hash + trustSuffix }

func dayOf(t time.Time) string { return t.UTC().Format(time.DateOnly) }

// newStream names one start of a broker. Names sort by their start.
func newStream(broker string, start time.Time) string {
	return broker + "-" + ulid.MustNew(ulid.Timestamp(start), ulid.DefaultEntropy()).String()
}

// validName accepts names that mean the same in a key, a path and a URL.
func validName(name string) bool {
	ok, err := regexp.MatchString(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`, name)
	return ok && err == nil
}

func isHash(text string) bool {
	decoded, err := hex.DecodeString(text)
	return err == nil && len(decoded) == 32 && strings.ToLower(text) == text
}
