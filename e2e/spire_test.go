package e2e_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/taskgate/taskgate/e2e/testbed"
)

const (
	spireImageOld = "registry.example.org/sidecar@sha256:1111111111111111111111111111111111111111111111111111111111111111"
	spireImageNew = "registry.example.org/sidecar@sha256:2222222222222222222222222222222222222222222222222222222222222222"

	spireAdminUID  uint32 = 64060
	spireNobodyUID uint32 = 64061
	spirePlainUID  uint32 = 64062
)

// spireRig is the SPIRE server of the shared testbed. What is registered here has
// parents that no node has, so that no agent ever hears of it.
type spireRig struct {
	*stack
	entries entryv1.EntryClient
}

func newSPIRERig(t *testing.T) *spireRig {
	t.Helper()
	s := sharedStack(t)
	connection, err := grpc.NewClient("unix://"+s.SPIRE().Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = connection.Close() })
	return &spireRig{s, entryv1.NewEntryClient(connection)}
}

// agents describes n agents with the images; the set is named after the test.
func (r *spireRig) agents(set string, n int, images ...string) string {
	text := fmt.Sprintf("apiVersion: config.taskgate.dev/v1alpha1\nkind: SPIRERegistration\nname: %s\ntrustDomain: %s\ncluster: %s\nsidecar: {images: [%s]}\nagents:%s\n",
		set, testbed.TrustDomain, set, strings.Join(images, ", "), map[bool]string{true: " []"}[n == 0])
	for i := range n {
		text += fmt.Sprintf("- {namespace: %s, serviceAccount: agent-%03d}\n", set, i)
	}
	return text
}

// spire runs taskgate spire as the administrator.
func (r *spireRig) spire(t *testing.T, description, verb string, arguments ...string) result {
	t.Helper()
	return r.command(t, description, r.Environment().Programs+"/taskgate", append([]string{"spire", verb, "-f", "-", "--server-socket", r.SPIRE().Socket}, arguments...)...)
}

// expect runs it and wants an exit code and a line. Warnings about what other
// tests do may follow.
func (r *spireRig) expect(t *testing.T, code int, line, description, verb string, arguments ...string) {
	t.Helper()
	got := r.spire(t, description, verb, arguments...)
	if got.code != code || !slices.Contains(strings.Split(got.stdout, "\n"), line) {
		t.Fatalf("taskgate spire %s %v: want exit %d and %q, got %s", verb, arguments, code, line, got)
	}
}

// held is every entry whose ID or SPIFFE ID has the text.
func (r *spireRig) held(t *testing.T, text string) []*types.Entry {
	t.Helper()
	answer, err := r.entries.ListEntries(t.Context(), &entryv1.ListEntriesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(answer.Entries, func(e *types.Entry) bool {
		return !strings.Contains(e.Id, text) && !strings.Contains(e.SpiffeId.Path, text)
	})
}

// create makes an entry that is not taskgate's and answers its ID.
func (r *spireRig) create(t *testing.T, e *types.Entry) string {
	t.Helper()
	answer, err := r.entries.BatchCreateEntry(t.Context(), &entryv1.BatchCreateEntryRequest{Entries: []*types.Entry{e}})
	if err != nil || answer.Results[0].Status.Code != 0 {
		t.Fatalf("%v, %v", answer, err)
	}
	return answer.Results[0].Entry.Id
}

func spireEntry(id, parent string, selectors ...string) *types.Entry {
	e := &types.Entry{SpiffeId: &types.SPIFFEID{TrustDomain: testbed.TrustDomain, Path: id}, ParentId: &types.SPIFFEID{TrustDomain: testbed.TrustDomain, Path: parent}}
	for _, selector := range selectors {
		kind, value, _ := strings.Cut(selector, ":")
		e.Selectors = append(e.Selectors, &types.Selector{Type: kind, Value: value})
	}
	return e
}

// TestSPIRERegistration goes the way of an administrator, a rollout included, at a
// real server.
func TestSPIRERegistration(t *testing.T) {
	t.Parallel()
	r := newSPIRERig(t)
	const set = "reg-way"
	foreign := r.create(t, spireEntry("/"+set+"/foreign", "/"+set, "k8s:ns:elsewhere"))
	old := r.agents(set, 2, spireImageOld)
	both := r.agents(set, 2, spireImageOld, spireImageNew)
	fresh := r.agents(set, 2, spireImageNew)

	r.expect(t, 1, "3 entries to make or change, 0 stale, 0 as described.", old, "plan")
	if held := r.held(t, "taskgate."+set); len(held) > 0 {
		t.Fatalf("plan made %v", held)
	}
	r.expect(t, 0, "3 done, 0 not done, 0 were as described.", old, "apply")
	r.expect(t, 0, `Nothing is to be done: 3 entries of "reg-way" as described.`, old, "plan")
	r.expect(t, 0, "0 done, 0 not done, 3 were as described.", old, "apply", "--prune")
	r.expect(t, 1, "2 entries to make or change, 0 stale, 3 as described.", both, "plan")
	r.expect(t, 0, "2 done, 0 not done, 3 were as described.", both, "apply", "--prune")
	r.expect(t, 1, "0 entries to make or change, 2 stale, 3 as described.", fresh, "plan")
	r.expect(t, 0, "0 done, 0 not done, 3 were as described.", fresh, "apply")
	r.expect(t, 1, "0 entries to make or change, 2 stale, 3 as described.", fresh, "plan")
	r.expect(t, 0, "2 done, 0 not done, 3 were as described.", fresh, "apply", "--prune")
	r.expect(t, 0, "2 done, 0 not done, 1 were as described.", strings.Replace(fresh, "agents:", "ttl: 5m\nagents:", 1), "apply")
	for _, e := range r.held(t, "taskgate."+set) {
		if e.Admin || e.Downstream || e.StoreSvid || e.Hint != "taskgate" || e.ParentId.Path != "/spire/server" && e.X509SvidTtl != 300 {
			t.Errorf("made %v", e)
		}
	}
	r.expect(t, 0, "3 done, 0 not done, 0 were as described.", strings.Replace(r.agents(set, 0, spireImageNew), "cluster: "+set, "parentID: spiffe://example.org/"+set, 1), "apply", "--prune")
	if held := r.held(t, set); len(held) != 1 || held[0].Id != foreign {
		t.Errorf("left: %v", held)
	}
}

// TestSPIREOthers puts entries of others in the way.
func TestSPIREOthers(t *testing.T) {
	t.Parallel()
	r := newSPIRERig(t)
	const set = "reg-others"
	description := r.agents(set, 2, spireImageOld)
	r.expect(t, 0, "3 done, 0 not done, 0 were as described.", description, "apply")

	t.Run("an entry of ours made an administrator is set back", func(t *testing.T) {
		ours := r.held(t, "taskgate."+set)
		for _, e := range ours {
			e.Admin, e.Downstream = true, true
		}
		if answer, err := r.entries.BatchUpdateEntry(t.Context(), &entryv1.BatchUpdateEntryRequest{Entries: ours}); err != nil || answer.Results[0].Status.Code != 0 {
			t.Fatalf("%v, %v", answer, err)
		}
		r.expect(t, 1, "3 entries to make or change, 0 stale, 0 as described.", description, "plan")
		r.expect(t, 0, "3 done, 0 not done, 0 were as described.", description, "apply")
		for _, e := range r.held(t, "taskgate."+set) {
			if e.Admin || e.Downstream {
				t.Errorf("left: %v", e)
			}
		}
	})
	t.Run("the ID of an agent given away", func(t *testing.T) {
		id := r.create(t, spireEntry("/ns/"+set+"/sa/agent-000", "/elsewhere", "k8s:ns:"+set, "k8s:sa:agent-000"))
		got := r.spire(t, description, "plan")
		if got.code != 1 || !strings.Contains(got.stdout, "EXPOSED: spiffe://example.org/ns/reg-others/sa/agent-000: the entry "+id) ||
			!strings.Contains(got.stdout, "they do not name the container (k8s:container-name), the image by its digest") {
			t.Error(got)
		}
		if err := r.SPIRE().DeleteEntry(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("a reconciler that would delete ours", func(t *testing.T) {
		id := r.create(t, spireEntry("/"+set+"/pod", "/elsewhere", "k8s:pod-uid:1"))
		got := r.spire(t, description, "plan")
		if got.code != 0 || !strings.Contains(got.stdout, `warning: a spire-controller-manager works here, responsible for entries whose ID begins with ""`) {
			t.Error(got)
		}
		if err := r.SPIRE().DeleteEntry(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("somebody was first", func(t *testing.T) {
		like := r.held(t, set+"/sa/agent-001")[0]
		if err := r.SPIRE().DeleteEntry(t.Context(), like.Id); err != nil {
			t.Fatal(err)
		}
		like.Id = ""
		id := r.create(t, like)
		if got := r.spire(t, description, "apply", "--prune", "-o", "json"); got.code != 1 || !strings.Contains(got.stdout, id) {
			t.Error(got)
		}
		if held := r.held(t, set+"/sa/agent-001"); len(held) != 1 || held[0].Id != id {
			t.Errorf("an entry of somebody else was touched: %v", held)
		}
	})
}

// TestSPIREMany needs several pages, loses the server half way, and heals.
func TestSPIREMany(t *testing.T) {
	t.Parallel()
	r := newSPIRERig(t)
	const set = "reg-many"
	description := r.agents(set, 300, spireImageOld)
	socket := cutOff(t, r.SPIRE().Socket, 50_000)
	got := r.spire(t, description, "apply", "-o", "json", "--server-socket", socket)
	var report struct{ Results []struct{ Error string } }
	if err := json.Unmarshal([]byte(got.stdout), &report); err != nil {
		t.Fatalf("%v: %s", err, got)
	}
	told := map[string]int{}
	for _, result := range report.Results {
		told[result.Error]++
	}
	if got.code != 2 || told[""] == 0 || told["not known whether it was done"] != 50 || told["not tried"] == 0 || len(report.Results) != 301 || !strings.Contains(got.stderr, "Repeat the command") {
		t.Fatalf("%v: exit %d, %s", told, got.code, got.stderr)
	}
	if got := r.spire(t, description, "apply"); got.code != 0 || strings.Contains(got.stdout, "NOT DONE") {
		t.Fatal(got)
	}
	r.expect(t, 0, `Nothing is to be done: 301 entries of "reg-many" as described.`, description, "plan")
	r.expect(t, 0, "300 done, 0 not done, 1 were as described.", r.agents(set, 0, spireImageOld), "apply", "--prune")
}

// cutOff is a socket that leads to another one until so many bytes went there, and
// nowhere after that.
func cutOff(t *testing.T, target string, limit int64) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var wait sync.WaitGroup
	wait.Go(func() {
		here, err := listener.Accept()
		if err != nil {
			return // the test is over
		}
		defer here.Close()
		defer listener.Close()
		there, err := net.Dial("unix", target)
		if err != nil {
			t.Error(err)
			return
		}
		wait.Go(func() { _, _ = io.Copy(here, there) }) // ends when either is closed
		defer there.Close()
		if n, _ := io.CopyN(there, here, limit); n != limit {
			t.Errorf("only %d bytes came before the end", n)
		}
	})
	t.Cleanup(func() { _ = listener.Close(); wait.Wait() })
	return socket
}

// TestSPIRERender has the server's own program read what render writes.
func TestSPIRERender(t *testing.T) {
	t.Parallel()
	r := newSPIRERig(t)
	const set = "reg-render"
	description := r.agents(set, 3, spireImageOld, spireImageNew)
	rendered := r.command(t, description, r.Environment().Programs+"/taskgate", "spire", "render", "-f", "-", "--format", "json")
	if rendered.code != 0 {
		t.Fatal(rendered)
	}
	if created := r.command(t, rendered.stdout, r.SPIRE().Program, "entry", "create", "-socketPath", r.SPIRE().Socket, "-data", "-"); created.code != 0 {
		t.Fatal(created)
	}
	r.expect(t, 0, `Nothing is to be done: 7 entries of "reg-render" as described.`, description, "plan")
}

// as runs taskgate as a user with a uid of its own, which is what SPIRE knows it
// by here.
func (r *spireRig) as(t *testing.T, uid uint32, stdin string, arguments ...string) result {
	t.Helper()
	command := exec.CommandContext(t.Context(), r.Environment().Programs+"/taskgate", arguments...)
	command.Env = []string{"SPIFFE_ENDPOINT_SOCKET=unix://" + filepath.Join(r.Directory(), "identity/agent.sock")}
	command.Stdin = strings.NewReader(stdin)
	command.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	var stdout, stderr strings.Builder
	command.Stdout, command.Stderr = &stdout, &stderr
	err := command.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return result{stdout.String(), stderr.String(), command.ProcessState.ExitCode()}
}

// plain registers a workload that is told by its uid and has no rights, and waits
// until it has its identity.
func (r *spireRig) plain(t *testing.T, name string, uid uint32) spiffeid.ID {
	t.Helper()
	id := spiffeid.RequireFromSegments(spiffeid.RequireTrustDomainFromString(testbed.TrustDomain), "plain", name)
	if _, err := r.SPIRE().CreateEntry(t.Context(), testbed.Entry{ID: id, UID: uid}); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, "the identity of "+name, func() error {
		if got := r.as(t, uid, "", "spire", "verify", "--expect", id.String()); got.code != 0 {
			return errors.New(got.String())
		}
		return nil
	})
	return id
}

// TestSPIRETCP uses an administrator's SVID over TCP, and that of somebody who is
// none.
func TestSPIRETCP(t *testing.T) {
	t.Parallel()
	r := newSPIRERig(t)
	admin := spireEntry("/admin", "/testbed/node", fmt.Sprintf("unix:uid:%d", spireAdminUID))
	admin.Admin = true
	r.create(t, admin)
	r.plain(t, "no-administrator", spirePlainUID+1)
	const set = "reg-tcp"
	description := r.agents(set, 1, spireImageOld)
	eventually(t, 20*time.Second, "the administrator's identity", func() error {
		if got := r.as(t, spireAdminUID, "", "spire", "verify"); got.code != 0 {
			return errors.New(got.String())
		}
		return nil
	})
	arguments := []string{"spire", "apply", "-f", "-", "--server", r.SPIRE().Address, "--timeout", "20s"}
	if got := r.as(t, spireAdminUID, description, arguments...); got.code != 0 || !strings.Contains(got.stdout, "2 done, 0 not done, 0 were as described.\n") {
		t.Error(got)
	}
	if got := r.as(t, spirePlainUID+1, description, arguments...); got.code != 2 || !strings.Contains(got.stderr, "an SVID with admin rights is needed") {
		t.Error(got)
	}
}

// TestSPIREVerify tells what a workload gets.
func TestSPIREVerify(t *testing.T) {
	t.Parallel()
	r := newSPIRERig(t)
	id := r.plain(t, "verified", spirePlainUID).String()
	for _, test := range []struct {
		name string
		uid  uint32
		args []string
		code int
		want string
	}{
		{"as expected", spirePlainUID, []string{"--expect", id}, 0, id + ", no hint, good for "},
		{"what is not proven", spirePlainUID, nil, 0, "not proven: that no other container gets the same identity"},
		{"another ID", spirePlainUID, []string{"--expect", "spiffe://example.org/else"}, 1, "WRONG: the identity is " + id + ", not spiffe://example.org/else"},
		{"another hint", spirePlainUID, []string{"--hint", "taskgate"}, 1, `WRONG: none of the SVIDs has the hint "taskgate"`},
		{"none, as it should be", spireNobodyUID, []string{"--none"}, 0, "no identity"},
		{"none, as it should not be", spireNobodyUID, nil, 1, "There is no entry for this container"},
		{"one too many", spirePlainUID, []string{"--none"}, 1, "this container gets an identity and should not"},
		{"no Workload API", spireNobodyUID, []string{"--none", "--workload-api", "unix:///nowhere", "--timeout", "2s"}, 2, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			began := time.Now()
			got := r.as(t, test.uid, "", append([]string{"spire", "verify"}, test.args...)...)
			if got.code != test.code || !strings.Contains(got.stdout, test.want) {
				t.Errorf("after %s: want exit %d and %q, got %s", time.Since(began), test.code, test.want, got)
			}
		})
	}
}
