package e2e_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/taskgate/taskgate/e2e/testbed"
	"github.com/taskgate/taskgate/e2e/testbed/testbedtest"
)

// brokerAccount is who the broker is at the API server.
const brokerAccount = "system:serviceaccount:taskgate-system:taskgate-broker"

// brokerID is the SPIFFE ID of every broker of a testbed.
const brokerID = "spiffe://" + testbed.TrustDomain + "/ns/taskgate-system/sa/taskgate-broker"

func TestMain(m *testing.M) {
	if socket := os.Getenv(fetchFrom); socket != "" {
		os.Exit(printIdentity(socket))
	}
	code := m.Run()
	if err := endShared(code != 0); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// stack is a running testbed with the clients every test needs.
type stack struct {
	*testbed.Testbed
	kube    kubernetes.Interface // as the administrator
	dynamic dynamic.Interface    // as the administrator
	journal *journal             // what is in the bucket
	audit   *auditTail           // what the API server saw
}

func newStack(bed *testbed.Testbed) (*stack, error) {
	kube, kubeErr := kubernetes.NewForConfig(bed.Admin())
	dynamic, dynamicErr := dynamic.NewForConfig(bed.Admin())
	journal, journalErr := openJournal(bed.Store())
	return &stack{Testbed: bed, kube: kube, dynamic: dynamic, journal: journal, audit: &auditTail{byID: map[string][]auditv1.Event{}}}, errors.Join(kubeErr, dynamicErr, journalErr)
}

// shared is the one testbed of the tests that take nothing away.
var shared struct {
	once  sync.Once
	stack *stack
	err   error
}

// sharedStack is a testbed with real SPIRE, versitygw and a fake node. It starts
// with the first test that asks. Tests that stop or change parts of it start
// their own with startStack.
func sharedStack(t testing.TB) *stack {
	t.Helper()
	shared.once.Do(func() {
		folder, err := os.MkdirTemp("", "taskgate-e2e-")
		if err == nil {
			err = os.Chmod(folder, 0o755) // agents have uids of their own
		}
		if err != nil {
			shared.err = err
			return
		}
		bed, err := testbed.Start(context.Background(), usual(testbed.Options{
			Directory: folder, Progress: os.Stderr, Programs: programs(t), BrokerConfiguration: sharedBroker, SidecarArguments: []string{"--log-level", "debug"},
		}))
		if err != nil {
			shared.err = err
			return
		}
		shared.stack, shared.err = newStack(bed)
	})
	if shared.err != nil {
		t.Fatalf("starting the shared testbed: %v", shared.err)
	}
	return shared.stack
}

// otherDomain is a trust domain that the shared testbed's broker accepts, once
// SPIRE knows its bundle.
const otherDomain = "td-b.example"

func sharedBroker(_ int, configuration map[string]any) {
	configuration["logLevel"] = "debug" // no level may show a secret
	configuration["approvals"] = map[string]int{"maxOpen": 1000, "maxPerDay": 1000}
	configuration["identity"].(map[string]any)["trustDomains"] = []string{testbed.TrustDomain, otherDomain}
}

// startStack starts a testbed of the test's own, which ends with it.
func startStack(t testing.TB, options testbed.Options) *stack {
	t.Helper()
	options.Programs = programs(t)
	s, err := newStack(testbedtest.Start(t, usual(options)))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func usual(options testbed.Options) testbed.Options {
	if options.SPIFFE == "" {
		options.SPIFFE = testbed.SPIRE
	}
	return options
}

var built struct {
	once   sync.Once
	folder string
	err    error
}

// programs builds broker, sidecar and taskgate once for all testbeds.
func programs(t testing.TB) string {
	t.Helper()
	built.once.Do(func() {
		var repository string
		if repository, built.err = testbed.FindRepository(); built.err != nil {
			return
		}
		if built.folder, built.err = os.MkdirTemp("", "taskgate-bin-"); built.err != nil {
			return
		}
		built.err = testbed.BuildTaskgate(context.Background(), repository, built.folder, false)
	})
	if built.err != nil {
		t.Fatal(built.err)
	}
	return built.folder
}

// endShared stops what tests share. After a failure the logs stay.
func endShared(failed bool) error {
	errs := []error{os.RemoveAll(built.folder)}
	if shared.stack != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		if failed {
			errs = append(errs, shared.stack.Stop(ctx))
			fmt.Fprintln(os.Stderr, "the shared testbed's files stay in", shared.stack.Directory())
		} else {
			errs = append(errs, shared.stack.Remove(ctx))
		}
	}
	return errors.Join(errs...)
}

// result is what a command printed and how it ended.
type result struct {
	stdout, stderr string
	code           int
}

func (r result) String() string {
	return fmt.Sprintf("exit %d\nstdout: %s\nstderr: %s", r.code, r.stdout, r.stderr)
}

// kubectl runs kubectl with a kubeconfig.
func (s *stack) kubectl(t testing.TB, kubeconfig string, arguments ...string) result {
	t.Helper()
	return s.command(t, "", s.Environment().Programs+"/kubectl", append([]string{"--kubeconfig", kubeconfig}, arguments...)...)
}

// admin runs kubectl as the administrator; it has to succeed.
func (s *stack) admin(t testing.TB, arguments ...string) string {
	t.Helper()
	got := s.kubectl(t, s.Environment().AdminKubeconfig, arguments...)
	if got.code != 0 {
		t.Fatalf("kubectl %s: %s", strings.Join(arguments, " "), got)
	}
	return got.stdout
}

// apply has the administrator apply manifests; it has to succeed.
func (s *stack) apply(t testing.TB, manifests string) {
	t.Helper()
	got := s.command(t, manifests, s.Environment().Programs+"/kubectl", "--kubeconfig", s.Environment().AdminKubeconfig, "apply", "-f", "-")
	if got.code != 0 {
		t.Fatalf("applying %s: %s", manifests, got)
	}
}

// command runs a program with the testbed's environment and nothing of ours.
func (s *stack) command(t testing.TB, stdin, program string, arguments ...string) result {
	t.Helper()
	command := exec.CommandContext(t.Context(), program, arguments...)
	command.Env = append(s.Environment().Lines(), "PATH="+os.Getenv("PATH"), "HOME="+s.Directory())
	command.Stdin = strings.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	command.Stdout, command.Stderr = &stdout, &stderr
	err := command.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("running %s: %v", program, err)
	}
	return result{stdout.String(), stderr.String(), command.ProcessState.ExitCode()}
}

// eventually asks until the answer is nil.
func eventually(t testing.TB, patience time.Duration, what string, ask func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := ask()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s did not happen within %s: %v", what, patience, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// anonymous is the cluster without a credential.
func (s *stack) anonymous() *rest.Config { return rest.AnonymousClientConfig(s.Admin()) }

// agent is a workload with a SPIFFE identity of its own and a sidecar.
type agent struct {
	testbed.Access
	stack *stack
	name  string
	id    string // SPIFFE ID
	http  *http.Client
}

// alpha is the agent of that name that every testbed has.
func (s *stack) alpha(t testing.TB) *agent {
	return s.agentAt(t, testbed.Alpha, s.Environment().Alpha)
}

// newAgent starts a sidecar for an agent nobody else uses, so that grants of
// other tests do not reach it.
func (s *stack) newAgent(t testing.TB, name string, arguments ...string) *agent {
	t.Helper()
	access, err := s.AddSidecar(t.Context(), testbed.SidecarOptions{Name: name, Arguments: arguments})
	if err != nil {
		t.Fatal(err)
	}
	return s.agentAt(t, name, access)
}

func (s *stack) agentAt(t testing.TB, name string, access testbed.Access) *agent {
	t.Helper()
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: poolOf(t, access.CA)}, ForceAttemptHTTP2: true, DisableCompression: true, MaxIdleConnsPerHost: 64}
	t.Cleanup(transport.CloseIdleConnections)
	id := "spiffe://" + testbed.TrustDomain + "/ns/" + testbed.AgentNamespace + "/sa/" + name
	return &agent{Access: access, stack: s, name: name, id: id, http: &http.Client{Transport: transport}}
}

func poolOf(t testing.TB, file string) *x509.CertPool {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(content) {
		t.Fatalf("%s holds no certificate", file)
	}
	return pool
}

// kubectl runs kubectl as the agent.
func (a *agent) kubectl(t testing.TB, arguments ...string) result {
	t.Helper()
	return a.stack.kubectl(t, a.Kubeconfig, arguments...)
}

// reply is an answer to a plain HTTP request.
type reply struct {
	code   int
	header http.Header
	body   string
	proto  string
}

// auditID joins the answer with records and the API server's audit log.
func (r reply) auditID() string { return r.header.Get("Audit-Id") }

func (r reply) status() metav1.Status {
	var status metav1.Status
	_ = json.Unmarshal([]byte(r.body), &status) // stays zero where the body is none
	return status
}

// reason is why taskgate refused, as Reason or Reason/Cause; empty if it did not.
func (r reply) reason() string {
	status := r.status()
	if status.Kind != "Status" || status.Details == nil || !strings.Contains(status.Message, "[taskgate:") {
		return ""
	}
	var words []string
	for _, cause := range status.Details.Causes {
		words = append(words, string(cause.Type))
	}
	return strings.Join(words, "/")
}

// do sends one request with the agent's token. A header with the value "-" is
// taken away.
func (a *agent) do(t testing.TB, method, target string, header map[string]string, body string) reply {
	t.Helper()
	all := map[string]string{"Authorization": "Bearer " + a.Token}
	maps.Copy(all, header)
	return send(t, a.http, method, a.URL+target, all, body)
}

// send sends one request and reads the whole answer.
func send(t testing.TB, client *http.Client, method, url string, header map[string]string, body string) reply {
	t.Helper()
	request, err := newRequest(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range header {
		if value != "-" {
			request.Header.Set(name, value)
		}
	}
	response, err := client.Do(request)
	if err != nil {
		t.Fatalf("%s %s: %v", method, url, err)
	}
	defer func() { _ = response.Body.Close() }() // only read
	content, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatalf("%s %s: reading the answer: %v", method, url, err)
	}
	return reply{response.StatusCode, response.Header, string(content), response.Proto}
}

// newRequest makes a request whose target is exactly what the URL says, however
// it is spelled.
func newRequest(ctx context.Context, method, address, body string) (*http.Request, error) {
	host, target, _ := strings.Cut(strings.TrimPrefix(address, "https://"), "/")
	request, err := http.NewRequestWithContext(ctx, "GET", "https://"+host, http.NoBody)
	if err != nil {
		return nil, err
	}
	request.Method, request.URL.Opaque = method, "/"+target
	if strings.HasPrefix(target, "/") { // net/http would take it for a host
		request.URL.Opaque, request.URL.Path = "", "/"+target
	}
	if body != "" {
		request.Body, request.ContentLength = io.NopCloser(strings.NewReader(body)), int64(len(body))
		request.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(body)), nil }
	}
	return request, nil
}

// fetchFrom makes this test program print what the Workload API at that socket
// gives it, and end. Tests run it under the uid of a workload.
const fetchFrom = "TASKGATE_E2E_FETCH_FROM"

// printed is an identity on its way from that program to a test.
type printed struct{ Chain, Key, Bundle []byte }

func printIdentity(socket string) int {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	answer, err := workloadapi.FetchX509Context(ctx, workloadapi.WithAddr("unix://"+socket))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	var out printed
	svid := answer.DefaultSVID()
	out.Chain, out.Key, err = svid.Marshal()
	if err == nil {
		var bundle *x509bundle.Bundle
		if bundle, err = answer.Bundles.GetX509BundleForTrustDomain(svid.ID.TrustDomain()); err == nil {
			out.Bundle, err = bundle.Marshal()
		}
	}
	if err := errors.Join(err, json.NewEncoder(os.Stdout).Encode(out)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// svid fetches the SVID of a component as its own user would, and the bundle.
func (s *stack) svid(t testing.TB, component string) (*x509svid.SVID, *x509bundle.Bundle) {
	t.Helper()
	info, err := os.Stat(fmt.Sprintf("/proc/%d", s.Component(component).PID()))
	if err != nil {
		t.Fatal(err)
	}
	owner := info.Sys().(*syscall.Stat_t)
	program := filepath.Join(s.Directory(), "bin", "e2e.test") // where every uid can reach it
	if _, err := os.Stat(program); err != nil {
		self, err := os.ReadFile("/proc/self/exe")
		if err := errors.Join(err, os.WriteFile(program, self, 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	command := exec.CommandContext(t.Context(), program)
	command.Dir, command.Stderr = "/", os.Stderr
	command.Env = []string{fetchFrom + "=" + filepath.Join(s.Directory(), "identity/agent.sock")}
	command.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: owner.Uid, Gid: owner.Gid}}
	output, err := command.Output()
	var got printed
	if err := errors.Join(err, json.Unmarshal(output, &got)); err != nil {
		t.Fatalf("fetching the SVID of %s: %v", component, err)
	}
	svid, svidErr := x509svid.Parse(got.Chain, got.Key)
	bundle, bundleErr := x509bundle.Parse(spiffeid.RequireTrustDomainFromString(testbed.TrustDomain), got.Bundle)
	if err := errors.Join(svidErr, bundleErr); err != nil {
		t.Fatal(err)
	}
	return svid, bundle
}
