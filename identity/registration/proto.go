package registration

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
)

// mask names every field an entry of ours decides, so that an update also takes
// away what somebody else has put there.
func mask() *types.EntryMask {
	return &types.EntryMask{
		SpiffeId: true, ParentId: true, Selectors: true, X509SvidTtl: true, Hint: true, FederatesWith: true,
		JwtSvidTtl: true, DnsNames: true, ExpiresAt: true, Admin: true, Downstream: true, StoreSvid: true,
	}
}

// toProto writes only what ours may have: admin, downstream and the like stay at
// their zero values whatever e says.
func toProto(e *Entry) *types.Entry {
	selectors := make([]*types.Selector, len(e.Selectors))
	for i, selector := range e.Selectors {
		kind, value, _ := strings.Cut(selector, ":")
		selectors[i] = &types.Selector{Type: kind, Value: value}
	}
	return &types.Entry{
		Id: e.ID, SpiffeId: toProtoID(e.SPIFFEID), ParentId: toProtoID(e.ParentID), Selectors: selectors,
		X509SvidTtl: int32(e.TTL.Seconds()), Hint: e.Hint, FederatesWith: e.FederatesWith,
	}
}

func toProtoID(id spiffeid.ID) *types.SPIFFEID {
	return &types.SPIFFEID{TrustDomain: id.TrustDomain().Name(), Path: id.Path()}
}

func fromProto(e *types.Entry) (Entry, error) {
	id, err := fromProtoID(e.GetSpiffeId())
	if err != nil {
		return Entry{}, fmt.Errorf("entry %s: %w", e.GetId(), err)
	}
	parent, err := fromProtoID(e.GetParentId())
	if err != nil {
		return Entry{}, fmt.Errorf("entry %s: parent: %w", e.GetId(), err)
	}
	entry := Entry{
		ID: e.GetId(), SPIFFEID: id, ParentID: parent, TTL: time.Duration(e.GetX509SvidTtl()) * time.Second, Hint: e.GetHint(),
		FederatesWith: slices.Sorted(slices.Values(e.GetFederatesWith())),
		JWTTTL:        time.Duration(e.GetJwtSvidTtl()) * time.Second, DNSNames: e.GetDnsNames(), ExpiresAt: e.GetExpiresAt(),
		Admin: e.GetAdmin(), Downstream: e.GetDownstream(), StoreSVID: e.GetStoreSvid(),
	}
	for _, selector := range e.GetSelectors() {
		entry.Selectors = append(entry.Selectors, selector.GetType()+":"+selector.GetValue())
	}
	slices.Sort(entry.Selectors)
	return entry, nil
}

func fromProtoID(id *types.SPIFFEID) (spiffeid.ID, error) {
	return spiffeid.FromString("spiffe://" + id.GetTrustDomain() + id.GetPath())
}
