package registration

import (
	"context"
	"fmt"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

const (
	digestOne = "registry.example.org/taskgate/sidecar@sha256:1111111111111111111111111111111111111111111111111111111111111111"
	digestTwo = "registry.example.org/taskgate/sidecar@sha256:2222222222222222222222222222222222222222222222222222222222222222"
)

const description = `
apiVersion: config.taskgate.dev/v1alpha1
kind: SPIRERegistration
name: prod
trustDomain: example.org
cluster: prod-eu
sidecar: {images: ["` + digestTwo + `", "` + digestOne + `"]}
federatesWith: [partner.example]
agents:
- {namespace: agents, serviceAccount: fixer}
- {namespace: agents, serviceAccount: builder, spiffeID: "spiffe://{trustDomain}/agent/builder"}
`

func parse(t *testing.T, text string) *Spec {
	t.Helper()
	spec, err := Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return spec
}

func entriesOf(t *testing.T, text string) []Entry {
	t.Helper()
	entries, err := parse(t, text).Entries()
	if err != nil {
		t.Fatal(err)
	}
	return entries
}

// fakeSPIRE is the entry API of a server. The real one is used end to end; this one
// fails when it is told to.
type fakeSPIRE struct {
	entryv1.UnimplementedEntryServer
	mu      sync.Mutex
	entries map[string]*types.Entry
	calls   []string
	// fail may end a call, having done it or not; nil never does.
	fail func(call string) (after bool, err error)
	// change may alter what is stored; nil does not.
	change func(*types.Entry)
	short  bool // answers about one entry less than it was asked for
}

// server starts the fake and connects to it, with pages and batches of two.
func (f *fakeSPIRE) server(t *testing.T) *Server {
	t.Helper()
	if f.entries == nil {
		f.entries = map[string]*types.Entry{}
	}
	socket := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	entryv1.RegisterEntryServer(server, f)
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(listener) }()
	t.Cleanup(func() { server.Stop(); <-done })
	client, err := ConnectSocket(socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	client.page, client.batch = 2, 2
	return client
}

// around runs a call unless it is to fail before; it may also fail after.
func (f *fakeSPIRE) around(call string, do func()) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, call)
	if f.fail == nil {
		do()
		return nil
	}
	after, err := f.fail(call)
	if err == nil || after {
		do()
	}
	return err
}

func (f *fakeSPIRE) ListEntries(_ context.Context, request *entryv1.ListEntriesRequest) (answer *entryv1.ListEntriesResponse, err error) {
	answer = &entryv1.ListEntriesResponse{}
	err = f.around("list", func() {
		ids := slices.Sorted(maps.Keys(f.entries))
		start, _ := strconv.Atoi(request.PageToken) // "" is the first page
		end := min(len(ids), start+int(request.PageSize))
		for _, id := range ids[start:end] {
			answer.Entries = append(answer.Entries, f.entries[id])
		}
		if end < len(ids) {
			answer.NextPageToken = strconv.Itoa(end)
		}
	})
	return answer, err
}

func (f *fakeSPIRE) BatchCreateEntry(_ context.Context, request *entryv1.BatchCreateEntryRequest) (answer *entryv1.BatchCreateEntryResponse, err error) {
	answer = &entryv1.BatchCreateEntryResponse{}
	err = f.around("create", func() {
		for _, e := range request.Entries {
			if strings.Contains(e.SpiffeId.Path, "refused") {
				answer.Results = append(answer.Results, &entryv1.BatchCreateEntryResponse_Result{Status: &types.Status{Code: int32(codes.InvalidArgument), Message: "no"}})
				continue
			}
			answer.Results = append(answer.Results, &entryv1.BatchCreateEntryResponse_Result{Status: &types.Status{}, Entry: f.store(e)})
		}
		if f.short {
			answer.Results = answer.Results[1:]
		}
	})
	return answer, err
}

func (f *fakeSPIRE) store(e *types.Entry) *types.Entry {
	stored := proto.Clone(e).(*types.Entry)
	if f.change != nil {
		f.change(stored)
	}
	f.entries[stored.Id] = stored
	return stored
}

func (f *fakeSPIRE) BatchUpdateEntry(_ context.Context, request *entryv1.BatchUpdateEntryRequest) (answer *entryv1.BatchUpdateEntryResponse, err error) {
	answer = &entryv1.BatchUpdateEntryResponse{}
	if !request.InputMask.Admin || !request.InputMask.Downstream || !request.InputMask.Selectors {
		return nil, status.Error(codes.InvalidArgument, "the mask leaves something as it was")
	}
	err = f.around("update", func() {
		for _, e := range request.Entries {
			answer.Results = append(answer.Results, &entryv1.BatchUpdateEntryResponse_Result{Status: &types.Status{}, Entry: f.store(e)})
		}
	})
	return answer, err
}

func (f *fakeSPIRE) BatchDeleteEntry(_ context.Context, request *entryv1.BatchDeleteEntryRequest) (answer *entryv1.BatchDeleteEntryResponse, err error) {
	answer = &entryv1.BatchDeleteEntryResponse{}
	err = f.around("delete", func() {
		for _, id := range request.Ids {
			code := codes.OK
			if f.entries[id] == nil {
				code = codes.NotFound
			}
			delete(f.entries, id)
			answer.Results = append(answer.Results, &entryv1.BatchDeleteEntryResponse_Result{Id: id, Status: &types.Status{Code: int32(code)}})
		}
	})
	return answer, err
}

// planned lists and compares.
func planned(t *testing.T, s *Server, wanted []Entry) *Plan {
	t.Helper()
	held, err := s.Entries(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return NewPlan("prod", wanted, held)
}

// brief is a plan in one line.
func brief(p *Plan) string {
	return fmt.Sprintf("create %d, update %d, stale %d, unchanged %d, conflicts %d, exposed %d, warnings %d",
		len(p.Create), len(p.Update), len(p.Stale), p.Unchanged, len(p.Conflicts), len(p.Exposed), len(p.Warnings))
}
