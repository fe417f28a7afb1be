package spiffetest_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/taskgate/taskgate/internal/spiffetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must[T any](value T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

func socket(t *testing.T) string {
	t.Helper()
	dir := must(os.MkdirTemp("", "tg"))(t) // t.TempDir is too long for a socket
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "api.sock")
}

var id = spiffeid.RequireFromString("spiffe://td-a/ns/a/sa/b")

// TestServe lets the library fetch what the server issues, twice: it renews.
func TestServe(t *testing.T) {
	ca, other := must(spiffetest.NewCA("td-a"))(t), must(spiffetest.NewCA("td-a"))(t)
	path := socket(t)
	server := must(ca.ServeTTL(t.Context(), path, 2*time.Second, id, spiffeid.RequireFromString("spiffe://td-a/second")))(t)
	defer server.Close()
	source := must(workloadapi.NewX509Source(t.Context(), workloadapi.WithClientOptions(workloadapi.WithAddr("unix://"+path))))(t)
	defer source.Close()
	first := must(source.GetX509SVID())(t)
	if first.ID != id {
		t.Errorf("%s", first.ID)
	}
	if got, _, err := x509svid.Verify(first.Certificates, ca.Bundle()); err != nil || got != id {
		t.Errorf("%s %v", got, err)
	}
	if _, _, err := x509svid.Verify(first.Certificates, other.Bundle()); err == nil {
		t.Error("another authority of the same name vouches for it")
	}
	select {
	case <-source.Updated():
	case <-time.After(10 * time.Second):
		t.Fatal("not renewed")
	}
	if second := must(source.GetX509SVID())(t); second.Certificates[0].Equal(first.Certificates[0]) {
		t.Error("the same SVID again")
	}
}

func TestFederated(t *testing.T) {
	ca, foreign := must(spiffetest.NewCA("td-a"))(t), must(spiffetest.NewCA("td-b"))(t)
	path := socket(t)
	update := spiffetest.Update{SVIDs: []*x509svid.SVID{must(ca.Issue(spiffetest.Leaf{ID: id}))(t)}, Bundle: ca.Bundle()}
	update.Federated = append(update.Federated, foreign.Bundle())
	server := must(spiffetest.Listen(path, update))(t)
	defer server.Close()
	held := must(workloadapi.FetchX509Context(t.Context(), workloadapi.WithAddr("unix://"+path)))(t)
	if held.Bundles.Len() != 2 || !held.Bundles.Has(foreign.Bundle().TrustDomain()) {
		t.Errorf("%d bundles", held.Bundles.Len())
	}
	document := must(ca.BundleJSON())(t)
	if bundle := must(spiffebundle.Parse(ca.Bundle().TrustDomain(), document))(t); !bundle.X509Bundle().Equal(ca.Bundle()) {
		t.Error("the bundle as JSON is another")
	}
}

// TestRefusals shows the two answers of SPIRE that programs meet.
func TestRefusals(t *testing.T) {
	path := socket(t)
	server := must(spiffetest.Listen(path, spiffetest.Update{}))(t)
	defer server.Close()
	conn := must(grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials())))(t)
	defer conn.Close()
	client := workload.NewSpiffeWorkloadAPIClient(conn)
	withHeader := metadata.AppendToOutgoingContext(t.Context(), "workload.spiffe.io", "true")
	for want, ctx := range map[codes.Code]context.Context{codes.InvalidArgument: t.Context(), codes.PermissionDenied: withHeader} {
		stream := must(client.FetchX509SVID(ctx, &workload.X509SVIDRequest{}))(t)
		if _, err := stream.Recv(); status.Code(err) != want {
			t.Errorf("%v, not %s", err, want)
		}
	}
}
