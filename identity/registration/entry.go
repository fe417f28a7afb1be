package registration

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Hint is on every entry this package makes. A sidecar picks its SVID by it where
// the Workload API offers several (SPIFFE Workload API, section 5.2.1).
const Hint = "taskgate"

// Entry is a registration entry of a SPIRE server.
type Entry struct {
	ID       string
	SPIFFEID spiffeid.ID
	ParentID spiffeid.ID
	// Selectors as type:value, all of which a workload must have; sorted.
	Selectors     []string
	TTL           time.Duration // of X509-SVIDs, in whole seconds
	Hint          string
	FederatesWith []string // names of trust domains, sorted

	// What entries of others may have, and ours never.
	JWTTTL     time.Duration
	DNSNames   []string
	ExpiresAt  int64 // seconds since 1970; 0 is never
	Admin      bool
	Downstream bool
	StoreSVID  bool
}

// entryID names an entry after what makes it unique on a server. Each part is
// preceded by its length, so that no two entries run together to the same text.
func entryID(set string, e *Entry) string {
	hash := sha256.New()
	for _, part := range append([]string{e.SPIFFEID.String(), e.ParentID.String()}, e.Selectors...) {
		_, _ = hash.Write(binary.BigEndian.AppendUint64(nil, uint64(len(part)))) // a hash never fails
		_, _ = hash.Write([]byte(part))
	}
	return idPrefix(set) + hex.EncodeToString(hash.Sum(nil)[:16])
}

// idPrefix begins the IDs of a set. Names of sets have no dot, so no prefix
// begins another one.
func idPrefix(set string) string { return "taskgate." + set + "." }

// owned reports whether an entry is of this set. A set without a name owns
// nothing.
func owned(set string, e *Entry) bool {
	return set != "" && strings.HasPrefix(e.ID, idPrefix(set)) && e.Hint == Hint
}

// differences names the fields that have to change. Everything SPIRE keeps about
// an entry is compared, so that nothing stays that somebody added.
func differences(want, have *Entry) []string {
	var fields []string
	differ := func(name string, is bool) {
		if is {
			fields = append(fields, name)
		}
	}
	differ("spiffeID", want.SPIFFEID != have.SPIFFEID)
	differ("parentID", want.ParentID != have.ParentID)
	differ("selectors", !slices.Equal(want.Selectors, have.Selectors))
	differ("ttl", want.TTL != have.TTL)
	differ("hint", want.Hint != have.Hint)
	differ("federatesWith", !slices.Equal(want.FederatesWith, have.FederatesWith))
	differ("jwtTTL", want.JWTTTL != have.JWTTTL)
	differ("dnsNames", !slices.Equal(want.DNSNames, have.DNSNames))
	differ("expiresAt", want.ExpiresAt != have.ExpiresAt)
	differ("admin", want.Admin != have.Admin)
	differ("downstream", want.Downstream != have.Downstream)
	differ("storeSVID", want.StoreSVID != have.StoreSVID)
	return fields
}

// imageDigest is the end of an image reference that no other image can have.
var imageDigest = regexp.MustCompile(`^k8s:container-image:([^@\s]+@)?sha256:[0-9a-f]{64}$`)

// CheckSelectors returns nil if the selectors let nothing in but one container,
// with one image, of one service account. Otherwise the error names what is
// missing: without the container's name and image every container of the pod, the
// agent's own among them, gets the identity. No selectors, empty values and tags
// of images are refused.
func CheckSelectors(selectors []string) error {
	var missing []string
	for _, need := range []struct{ prefix, what string }{
		{"k8s:ns:", "the namespace (k8s:ns)"},
		{"k8s:sa:", "the service account (k8s:sa)"},
		{"k8s:container-name:", "the container (k8s:container-name)"},
	} {
		if !slices.ContainsFunc(selectors, func(s string) bool { return strings.HasPrefix(s, need.prefix) && len(s) > len(need.prefix) }) {
			missing = append(missing, need.what)
		}
	}
	if !slices.ContainsFunc(selectors, imageDigest.MatchString) {
		missing = append(missing, "the image by its digest (k8s:container-image:…@sha256:…)")
	}
	if len(missing) > 0 {
		return fmt.Errorf("the selectors let more than the sidecar in: they do not name %s", strings.Join(missing, ", "))
	}
	return nil
}
