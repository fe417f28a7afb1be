package spiffetest

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// Update is what the Workload API tells its clients at one moment. With no SVIDs
// the server answers PermissionDenied, as SPIRE does for a workload without an
// entry.
type Update struct {
	SVIDs     []*x509svid.SVID
	Bundle    *x509bundle.Bundle   // of the SVIDs' own trust domain
	Federated []*x509bundle.Bundle // of other trust domains
}

// Server is a Workload API endpoint (SPIFFE Workload API, X.509-SVID profile).
type Server struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
	grpc   *grpc.Server
	cancel context.CancelFunc
	wait   sync.WaitGroup

	mu      sync.Mutex
	current Update
	changed chan struct{} // closed and replaced when current changes
}

// Listen serves what Set says at a unix socket, which any local user may open.
// Close it when done.
func Listen(socket string, first Update) (*Server, error) {
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return nil, fmt.Errorf("listening for Workload API clients: %w", err)
	}
	if err := os.Chmod(socket, 0o777); err != nil {
		listener.Close()
		return nil, err
	}
	s := &Server{grpc: grpc.NewServer(), cancel: func() {}, current: first, changed: make(chan struct{})}
	workload.RegisterSpiffeWorkloadAPIServer(s.grpc, s)
	s.wait.Go(func() { _ = s.grpc.Serve(listener) }) // ends with Close; there is nobody to tell
	return s, nil
}

// Serve runs a Workload API that issues an SVID for each of ids and renews them
// at half their life (an hour), until Close or the end of ctx.
func (ca *CA) Serve(ctx context.Context, socket string, ids ...spiffeid.ID) (*Server, error) {
	return ca.ServeTTL(ctx, socket, time.Hour, ids...)
}

// ServeTTL is Serve with a life of ttl for each SVID.
func (ca *CA) ServeTTL(ctx context.Context, socket string, ttl time.Duration, ids ...spiffeid.ID) (*Server, error) {
	first, err := ca.issueAll(ttl, ids)
	if err != nil {
		return nil, err
	}
	s, err := Listen(socket, first)
	if err != nil {
		return nil, err
	}
	ctx, s.cancel = context.WithCancel(ctx)
	s.wait.Go(func() {
		ticker := time.NewTicker(ttl / 2)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
			if next, err := ca.issueAll(ttl, ids); err == nil {
				s.Set(next)
			}
		}
	})
	return s, nil
}

func (ca *CA) issueAll(ttl time.Duration, ids []spiffeid.ID) (Update, error) {
	update := Update{Bundle: ca.Bundle()}
	for _, id := range ids {
		svid, err := ca.Issue(Leaf{ID: id, TTL: ttl})
		if err != nil {
			return Update{}, err
		}
		update.SVIDs = append(update.SVIDs, svid)
	}
	return update, nil
}

// Set sends an update to every client.
func (s *Server) Set(update Update) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.current = update
	close(s.changed)
	s.changed = make(chan struct{})
}

// Close cuts all clients off and waits until the server has ended.
func (s *Server) Close() {
	s.cancel()
	s.grpc.Stop()
	s.wait.Wait()
}

// FetchX509SVID implements the stream a client watches.
func (s *Server) FetchX509SVID(_ *workload.X509SVIDRequest, stream grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
	if err := requireHeader(stream.Context()); err != nil {
		return err
	}
	for {
		s.mu.Lock()
		update, changed := s.current, s.changed
		s.mu.Unlock()
		response, err := update.response()
		if err != nil {
			return err
		}
		if err := stream.Send(response); err != nil {
			return err
		}
		select {
		case <-stream.Context().Done():
			return nil
		case <-changed:
		}
	}
}

// requireHeader refuses callers that could be tricked into the call by a web
// page (SPIFFE Workload Endpoint, section 6.4).
func requireHeader(ctx context.Context) error {
	if header, _ := metadata.FromIncomingContext(ctx); len(header["workload.spiffe.io"]) != 1 || header["workload.spiffe.io"][0] != "true" {
		return status.Error(codes.InvalidArgument, "security header missing from request")
	}
	return nil
}

func (u Update) response() (*workload.X509SVIDResponse, error) {
	if len(u.SVIDs) == 0 {
		return nil, status.Error(codes.PermissionDenied, "no identity issued")
	}
	response := &workload.X509SVIDResponse{FederatedBundles: map[string][]byte{}}
	for _, svid := range u.SVIDs {
		key, err := x509.MarshalPKCS8PrivateKey(svid.PrivateKey)
		if err != nil {
			return nil, status.Error(codes.Internal, err.Error())
		}
		response.Svids = append(response.Svids, &workload.X509SVID{
			SpiffeId: svid.ID.String(), X509Svid: concatenate(svid.Certificates), X509SvidKey: key,
			Bundle: concatenate(u.Bundle.X509Authorities()), Hint: svid.Hint,
		})
	}
	for _, bundle := range u.Federated {
		response.FederatedBundles[bundle.TrustDomain().IDString()] = concatenate(bundle.X509Authorities())
	}
	return response, nil
}

func concatenate(certificates []*x509.Certificate) []byte {
	var der strings.Builder
	for _, certificate := range certificates {
		der.Write(certificate.Raw)
	}
	return []byte(der.String())
}
