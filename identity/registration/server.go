package registration

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/taskgate/taskgate/identity"
)

// What is asked of a server at a time. A page and a batch stay far below the 4 MiB
// that gRPC takes in one message.
const (
	pageSize  = 200
	batchSize = 50
)

// Server is the registration API of a SPIRE server. Safe for concurrent use.
type Server struct {
	connection *grpc.ClientConn
	entries    entryv1.EntryClient
	page       int32
	batch      int
}

// ConnectSocket makes a client for the server's administration socket, such as
// /run/spire/server/private/api.sock. Whoever may open it is the administrator: SPIRE asks
// for nothing else. It dials when it is first used.
func ConnectSocket(path string) (*Server, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	return connect("unix://"+path, insecure.NewCredentials())
}

// ConnectTCP makes a client for the server's TCP address with the SVID of source,
// which must be an administrator's (admin of its entry, or admin_ids of the
// server's configuration). It talks to nobody but spiffe://<domain>/spire/server.
func ConnectTCP(address string, domain spiffeid.TrustDomain, source *identity.Source) (*Server, error) {
	if domain.IsZero() {
		return nil, errors.New("the trust domain of the SPIRE server is missing")
	}
	id := spiffeid.RequireFromSegments(domain, "spire", "server")
	return connect("dns:///"+address, credentials.NewTLS(source.ClientTLS(id, "h2")))
}

func connect(target string, transport credentials.TransportCredentials) (*Server, error) {
	connection, err := grpc.NewClient(target, grpc.WithTransportCredentials(transport))
	if err != nil {
		return nil, fmt.Errorf("connecting to the SPIRE server: %w", err)
	}
	return &Server{connection: connection, entries: entryv1.NewEntryClient(connection), page: pageSize, batch: batchSize}, nil
}

// Close ends the connection.
func (s *Server) Close() error { return s.connection.Close() }

// Entries lists all entries of the server, of whomever they are: the ID of an
// agent may be given by another entry too.
func (s *Server) Entries(ctx context.Context) ([]Entry, error) {
	var entries []Entry
	token := ""
	for {
		answer, err := s.entries.ListEntries(ctx, &entryv1.ListEntriesRequest{PageSize: s.page, PageToken: token})
		if err != nil {
			return nil, fmt.Errorf("listing the entries of the SPIRE server: %w", explain(err))
		}
		for _, listed := range answer.GetEntries() {
			entry, err := fromProto(listed)
			if err != nil {
				return nil, fmt.Errorf("listing the entries of the SPIRE server: %w", err)
			}
			entries = append(entries, entry)
		}
		// A server may answer fewer than asked for; only the token tells the end.
		switch next := answer.GetNextPageToken(); next {
		case "":
			return entries, nil
		case token:
			return nil, errors.New("listing the entries of the SPIRE server: it answers the same page again")
		default:
			token = next
		}
	}
}

// explain says what to do about an error of the server.
func explain(err error) error {
	switch status.Code(err) {
	case codes.Unavailable:
		return fmt.Errorf("%w; is the server running there, and is the socket or address right?", err)
	case codes.PermissionDenied, codes.Unauthenticated:
		return fmt.Errorf("%w; over TCP an SVID with admin rights is needed (admin_ids in the server's configuration), or use the server's socket", err)
	}
	return err
}

// result is what the server says about one entry.
type result struct {
	status *types.Status
	entry  *types.Entry // nil where the server sends none
}

func (s *Server) create(ctx context.Context, entries []Entry) ([]result, error) {
	request := &entryv1.BatchCreateEntryRequest{}
	for i := range entries {
		request.Entries = append(request.Entries, toProto(&entries[i]))
	}
	answer, err := s.entries.BatchCreateEntry(ctx, request)
	var results []result
	for _, r := range answer.GetResults() {
		results = append(results, result{r.GetStatus(), r.GetEntry()})
	}
	return results, err
}

func (s *Server) update(ctx context.Context, entries []Entry) ([]result, error) {
	request := &entryv1.BatchUpdateEntryRequest{InputMask: mask()}
	for i := range entries {
		request.Entries = append(request.Entries, toProto(&entries[i]))
	}
	answer, err := s.entries.BatchUpdateEntry(ctx, request)
	var results []result
	for _, r := range answer.GetResults() {
		results = append(results, result{r.GetStatus(), r.GetEntry()})
	}
	return results, err
}

func (s *Server) remove(ctx context.Context, entries []Entry) ([]result, error) {
	request := &entryv1.BatchDeleteEntryRequest{}
	for i := range entries {
		request.Ids = append(request.Ids, entries[i].ID)
	}
	answer, err := s.entries.BatchDeleteEntry(ctx, request)
	var results []result
	for _, r := range answer.GetResults() {
		results = append(results, result{r.GetStatus(), nil})
	}
	return results, err
}
