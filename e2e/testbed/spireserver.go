package testbed

import (
	"context"
	"crypto/x509"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	localauthorityv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/localauthority/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"k8s.io/apimachinery/pkg/util/wait"
)

const (
	// nodeID is the parent of every registration entry: an alias of the agent.
	nodeID = "/testbed/node"

	joinTokenLife = 10 * time.Minute

	// agentPatience is how long an agent may take to renew its own SVID.
	agentPatience = time.Minute
)

// SPIREServer administers the SPIRE server of a testbed over its local socket.
type SPIREServer struct {
	// Socket is what its administrator may open.
	Socket string
	// Address is open to everybody; an administrator's SVID is needed there.
	// Program is the server's own, which has commands too. Both are empty after Open.
	Address, Program string

	connection *grpc.ClientConn
	bundleFile string
	port       int          // where agents reach it; 0 after Open
	close      func() error // may be called twice
}

// Entry gives a SPIFFE ID to every process of one uid, or of certain containers.
type Entry struct {
	ID  spiffeid.ID
	UID uint32
	// Container, such as ns:agents, sa:web and container-name:taskgate, has to hold
	// as a whole. It is for pods of the real node, and makes UID meaningless.
	Container []string
	TTL       time.Duration // of the X509-SVID; zero: as the options say
}

// selectors answers what SPIRE knows the workload by, and whose agent sees it.
func (e Entry) selectors() (parent string, selectors []*types.Selector) {
	if len(e.Container) == 0 {
		return nodeID, []*types.Selector{{Type: "unix", Value: fmt.Sprintf("uid:%d", e.UID)}}
	}
	for _, value := range e.Container {
		selectors = append(selectors, &types.Selector{Type: "k8s", Value: value})
	}
	return podsID, selectors
}

// connectSPIRE makes the client; it dials when it is first used.
func (t *Testbed) connectSPIRE() error {
	connection, err := grpc.NewClient("unix://"+t.spireSocket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return fmt.Errorf("connecting to the SPIRE server: %w", err)
	}
	t.spire = &SPIREServer{
		Socket:     t.spireSocket(),
		connection: connection, bundleFile: t.path("bundle.json"), close: sync.OnceValue(connection.Close),
	}
	return nil
}

// CreateEntry registers a workload and answers the entry's id. Workloads see it
// within two seconds or so.
func (s *SPIREServer) CreateEntry(ctx context.Context, entry Entry) (string, error) {
	parent, selectors := entry.selectors()
	answer, err := entryv1.NewEntryClient(s.connection).BatchCreateEntry(ctx, &entryv1.BatchCreateEntryRequest{
		Entries: []*types.Entry{{
			SpiffeId:    &types.SPIFFEID{TrustDomain: entry.ID.TrustDomain().Name(), Path: entry.ID.Path()},
			ParentId:    &types.SPIFFEID{TrustDomain: TrustDomain, Path: parent},
			Selectors:   selectors,
			X509SvidTtl: int32(entry.TTL.Seconds()),
		}},
	})
	if err != nil {
		return "", fmt.Errorf("registering %s with SPIRE: %w", entry.ID, err)
	}
	result := answer.Results[0]
	if err := check(result.Status); err != nil {
		return "", fmt.Errorf("registering %s with SPIRE: %w", entry.ID, err)
	}
	return result.Entry.Id, nil
}

// DeleteEntry takes a registration back. Running workloads lose their SVID
// within two seconds or so.
func (s *SPIREServer) DeleteEntry(ctx context.Context, id string) error {
	answer, err := entryv1.NewEntryClient(s.connection).BatchDeleteEntry(ctx, &entryv1.BatchDeleteEntryRequest{Ids: []string{id}})
	if err != nil {
		return fmt.Errorf("deleting the SPIRE entry %s: %w", id, err)
	}
	if err := check(answer.Results[0].Status); err != nil {
		return fmt.Errorf("deleting the SPIRE entry %s: %w", id, err)
	}
	return nil
}

// Entries answers the ids of the entries for one SPIFFE ID.
func (s *SPIREServer) Entries(ctx context.Context, id spiffeid.ID) ([]string, error) {
	answer, err := entryv1.NewEntryClient(s.connection).ListEntries(ctx, &entryv1.ListEntriesRequest{
		Filter: &entryv1.ListEntriesRequest_Filter{BySpiffeId: &types.SPIFFEID{TrustDomain: id.TrustDomain().Name(), Path: id.Path()}},
	})
	if err != nil {
		return nil, fmt.Errorf("listing the SPIRE entries of %s: %w", id, err)
	}
	var ids []string
	for _, entry := range answer.Entries {
		ids = append(ids, entry.Id)
	}
	return ids, nil
}

// Bundle is the trust bundle as it is now.
func (s *SPIREServer) Bundle(ctx context.Context) (*spiffebundle.Bundle, error) {
	answer, err := bundlev1.NewBundleClient(s.connection).GetBundle(ctx, &bundlev1.GetBundleRequest{})
	if err != nil {
		return nil, fmt.Errorf("asking SPIRE for its trust bundle: %w", err)
	}
	bundle := spiffebundle.New(spiffeid.RequireTrustDomainFromString(TrustDomain))
	for _, authority := range answer.X509Authorities {
		certificate, err := x509.ParseCertificate(authority.Asn1)
		if err != nil {
			return nil, fmt.Errorf("reading an authority of SPIRE's trust bundle: %w", err)
		}
		bundle.AddX509Authority(certificate) // a tainted one is trusted until it is revoked
	}
	bundle.SetRefreshHint(time.Duration(answer.RefreshHint) * time.Second)
	bundle.SetSequenceNumber(answer.SequenceNumber)
	return bundle, nil
}

// WriteBundle writes the trust bundle as it is now to the file that the
// environment names.
func (s *SPIREServer) WriteBundle(ctx context.Context) error {
	bundle, err := s.Bundle(ctx)
	if err != nil {
		return err
	}
	content, err := bundle.Marshal()
	if err != nil {
		return fmt.Errorf("encoding the trust bundle: %w", err)
	}
	if err := os.WriteFile(s.bundleFile, content, 0o644); err != nil {
		return fmt.Errorf("writing the trust bundle: %w", err)
	}
	return nil
}

// RotateX509Authority makes a new authority and signs with it from now on. It
// answers the id of the old one, which stays trusted until it is tainted and
// revoked. Give the agent a few seconds to hear of the new one before that.
func (s *SPIREServer) RotateX509Authority(ctx context.Context) (string, error) {
	client := localauthorityv1.NewLocalAuthorityClient(s.connection)
	before, err := client.GetX509AuthorityState(ctx, &localauthorityv1.GetX509AuthorityStateRequest{})
	if err != nil {
		return "", fmt.Errorf("asking SPIRE for its authorities: %w", err)
	}
	prepared, err := client.PrepareX509Authority(ctx, &localauthorityv1.PrepareX509AuthorityRequest{})
	if err != nil {
		return "", fmt.Errorf("preparing a new SPIRE authority: %w", err)
	}
	id := prepared.PreparedAuthority.AuthorityId
	if _, err := client.ActivateX509Authority(ctx, &localauthorityv1.ActivateX509AuthorityRequest{AuthorityId: id}); err != nil {
		return "", fmt.Errorf("activating a new SPIRE authority: %w", err)
	}
	return before.Active.AuthorityId, nil
}

// TaintX509Authority has everybody renew what the authority signed, and returns
// when the agent has: with an SVID of a revoked authority it could never reach
// its server again. Workloads follow within a few seconds.
func (s *SPIREServer) TaintX509Authority(ctx context.Context, id string) error {
	before, err := s.agentSerial(ctx)
	if err != nil {
		return err
	}
	request := &localauthorityv1.TaintX509AuthorityRequest{AuthorityId: id}
	if _, err := localauthorityv1.NewLocalAuthorityClient(s.connection).TaintX509Authority(ctx, request); err != nil {
		return fmt.Errorf("tainting the SPIRE authority %s: %w", id, err)
	}
	err = wait.PollUntilContextTimeout(ctx, 200*time.Millisecond, agentPatience, true, func(ctx context.Context) (bool, error) {
		now, err := s.agentSerial(ctx)
		return now != before, err
	})
	if err != nil {
		return fmt.Errorf("waiting until the SPIRE agent has an SVID that is not tainted: %w", err)
	}
	return nil
}

// agentSerial is the serial number of the one agent's own SVID.
func (s *SPIREServer) agentSerial(ctx context.Context) (string, error) {
	answer, err := agentv1.NewAgentClient(s.connection).ListAgents(ctx, &agentv1.ListAgentsRequest{})
	if err != nil {
		return "", fmt.Errorf("asking SPIRE for its agent: %w", err)
	}
	if len(answer.Agents) != 1 {
		return "", fmt.Errorf("SPIRE has %d agents, not 1", len(answer.Agents))
	}
	return answer.Agents[0].X509SvidSerialNumber, nil
}

// RevokeX509Authority takes a tainted authority out of the trust bundle.
func (s *SPIREServer) RevokeX509Authority(ctx context.Context, id string) error {
	request := &localauthorityv1.RevokeX509AuthorityRequest{AuthorityId: id}
	if _, err := localauthorityv1.NewLocalAuthorityClient(s.connection).RevokeX509Authority(ctx, request); err != nil {
		return fmt.Errorf("revoking the SPIRE authority %s: %w", id, err)
	}
	return nil
}

// writeJoinToken makes a token for one agent and the alias its entries hang on.
func (s *SPIREServer) writeJoinToken(ctx context.Context, alias, path string) error {
	answer, err := agentv1.NewAgentClient(s.connection).CreateJoinToken(ctx, &agentv1.CreateJoinTokenRequest{
		Ttl:     int32(joinTokenLife.Seconds()),
		AgentId: &types.SPIFFEID{TrustDomain: TrustDomain, Path: alias},
	})
	if err != nil {
		return fmt.Errorf("asking SPIRE for a join token: %w", err)
	}
	if err := os.WriteFile(path, []byte(answer.Value), 0o600); err != nil {
		return fmt.Errorf("writing the join token: %w", err)
	}
	return nil
}

func check(status *types.Status) error {
	if code := codes.Code(status.GetCode()); code != codes.OK {
		return fmt.Errorf("%s: %s", code, status.GetMessage())
	}
	return nil
}
