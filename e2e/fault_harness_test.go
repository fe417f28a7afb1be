package e2e_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/taskgate/taskgate/e2e/testbed"
	"github.com/taskgate/taskgate/recorder"
)

// The fault tests take parts of a testbed away. Each has a testbed of its own;
// t.Parallel keeps as many of them running at once as there are cores.

const (
	faultNamespace = "shop"
	faultSeed      = "/api/v1/namespaces/" + faultNamespace + "/configmaps/seed"
	faultMaps      = "/api/v1/namespaces/" + faultNamespace + "/configmaps"
	faultBrokerUID = 64001 // what SPIRE knows the broker by
)

// faultSetup is one policy for both agents and a grant each, and something to
// look at. Nothing of it is removed: the testbed goes as a whole.
const faultSetup = `apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: seed, namespace: shop}
data: {k: v}
---
apiVersion: taskgate.dev/v1alpha1
kind: TaskGrant
metadata: {name: fault-alpha}
spec: {agent: "spiffe://example.org/ns/agents/sa/alpha", task: fault, reason: a test, ttl: 2h, policy: fault, rules: [RULE]}
---
apiVersion: taskgate.dev/v1alpha1
kind: TaskGrant
metadata: {name: fault-beta}
spec: {agent: "spiffe://example.org/ns/agents/sa/beta", task: fault, reason: a test, ttl: 2h, policy: fault, rules: [RULE]}
---
`

const faultPolicy = `apiVersion: taskgate.dev/v1alpha1
kind: AgentPolicy
metadata: {name: fault}
spec:
  agents: ["spiffe://example.org/ns/agents/sa/*"]
  allow: [RULE]
  grant: {maxTTL: 4h, approval: None}
  waive: [secret-values]
`

const faultRule = `{namespaces: [shop], apiGroups: [""], resources: [configmaps, secrets, pods, pods/log], verbs: [get, list, watch, create, update, patch, delete]}`

// faultBed is a testbed with the policy and grants of faultSetup.
type faultBed struct {
	*stack
	alpha, beta *faultAgent
	trust       *x509bundle.Bundle // as it was in the beginning
}

// faultStarting keeps testbeds from starting at the same time, which only makes
// both late.
var faultStarting sync.Mutex

// startFault starts a testbed and waits until alpha and beta can use their grants.
func startFault(t *testing.T, options testbed.Options) *faultBed {
	t.Helper()
	began := time.Now()
	if options.BrokerConfiguration == nil {
		options.BrokerConfiguration = func(int, map[string]any) {}
	}
	b := &faultBed{}
	func() {
		faultStarting.Lock()
		defer faultStarting.Unlock() // t.Fatal passes here too
		b.stack = startStack(t, options)
	}()
	b.install(t)
	b.trust = b.bundle(t)
	b.alpha = b.agentOf(t, testbed.Alpha, b.Environment().Alpha)
	b.beta = b.agentOf(t, testbed.Beta, b.Environment().Beta)
	for _, a := range []*faultAgent{b.alpha, b.beta} {
		a.untilOK(t, 20*time.Second)
	}
	t.Logf("the testbed is ready after %s", faultSince(began))
	return b
}

func (b *faultBed) install(t *testing.T) {
	t.Helper()
	policy := strings.ReplaceAll(faultPolicy, "RULE", faultRule)
	roles := b.command(t, policy, b.Environment().Programs+"/taskgate", "policy", "rbac", "-f", "-")
	if roles.code != 0 {
		t.Fatalf("taskgate policy rbac: %s", roles)
	}
	setup, grants, _ := strings.Cut(strings.ReplaceAll(faultSetup, "RULE", faultRule), "---\napiVersion: taskgate.dev")
	b.apply(t, setup+"---\n"+roles.stdout+"---\n"+policy+"---\napiVersion: taskgate.dev"+grants)
}

// bundle is the trust bundle as it is now.
func (b *faultBed) bundle(t testing.TB) *x509bundle.Bundle {
	t.Helper()
	bundle, err := b.SPIRE().Bundle(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return bundle.X509Bundle()
}

// verify proves the journal from the bundle the testbed began with.
func (b *faultBed) verify(ctx context.Context, bundles ...*x509bundle.Bundle) (*recorder.Report, error) {
	if len(bundles) == 0 {
		bundles = []*x509bundle.Bundle{b.trust}
	}
	return recorder.Verify(ctx, b.auditor(), recorder.VerifyConfig{
		TrustBundles: bundles, BrokerIDs: []spiffeid.ID{spiffeid.RequireFromString(brokerID)}, Cluster: "testbed", MinRetention: time.Hour,
	})
}

func (b *faultBed) auditor() recorder.Bucket {
	store := b.Store()
	bucket, err := recorder.NewS3(recorder.S3Config{
		Endpoint: store.Endpoint, Bucket: store.Bucket, Region: store.Region, AccessKey: store.Auditor.Key, SecretKey: store.Auditor.Secret,
	})
	if err != nil {
		panic(err) // only a malformed URL is one
	}
	return bucket
}

// mustVerify fails the test unless everything is proven.
func (b *faultBed) mustVerify(t testing.TB) *recorder.Report {
	t.Helper()
	report, err := b.verify(t.Context())
	if err != nil {
		t.Fatalf("verify: %v", err)
	}
	for _, finding := range report.Findings[:min(len(report.Findings), 10)] {
		t.Errorf("verify found: %s", finding)
	}
	return report
}

// records reads the whole journal, by audit ID.
func (b *faultBed) records(t testing.TB) map[string][]*recorder.Event {
	t.Helper()
	all := map[string][]*recorder.Event{}
	for event, err := range recorder.Scan(t.Context(), b.auditor(), recorder.Filter{Cluster: "testbed"}) {
		if err != nil {
			t.Fatalf("scan: %v", err)
		}
		all[event.AuditID] = append(all[event.AuditID], event)
	}
	return all
}

// sealed waits until the records of these answers are in the bucket. It reads
// each segment once.
func (b *faultBed) sealed(t testing.TB, patience time.Duration, answers ...faultAnswer) map[string][]*recorder.Event {
	t.Helper()
	found := map[string][]*recorder.Event{}
	eventually(t, patience, "that the records are in the bucket", func() error {
		if err := b.journal.refresh(t.Context()); err != nil {
			return err
		}
		b.journal.mu.Lock()
		defer b.journal.mu.Unlock()
		for _, answer := range answers {
			records := b.journal.byID[answer.auditID]
			if len(records) == 0 || records[len(records)-1].Stage != recorder.StageResponseComplete {
				return fmt.Errorf("%s (%d %s) has %d records", answer.auditID, answer.code, answer.reason, len(records))
			}
			found[answer.auditID] = records
		}
		return nil
	})
	return found
}

// faultAgent calls the cluster through a sidecar. Its methods take no testing.TB
// where goroutines use them.
type faultAgent struct {
	*agent
}

func (b *faultBed) agentOf(t testing.TB, name string, access testbed.Access) *faultAgent {
	return &faultAgent{agent: b.agentAt(t, name, access)}
}

// faultAnswer is what became of one call.
type faultAnswer struct {
	code    int
	auditID string
	reason  string // Reason or Reason/Cause of taskgate
	body    string
	err     error // of the connection
	took    time.Duration
}

func (a faultAnswer) String() string {
	if a.err != nil {
		return fmt.Sprintf("error after %s: %v", a.took, a.err)
	}
	return fmt.Sprintf("%d %s %s after %s: %.300s", a.code, a.reason, a.auditID, a.took, a.body)
}

// is reports whether the call was refused for this reason (a cause may follow).
func (a faultAnswer) is(reason string) bool {
	return a.err == nil && (a.reason == reason || strings.HasPrefix(a.reason, reason+"/"))
}

// ok reports whether the cluster answered and agreed.
func (a faultAnswer) ok() bool { return a.err == nil && a.code >= 200 && a.code < 300 }

func (a *faultAgent) request(ctx context.Context, method, target, body string) (*http.Request, error) {
	request, err := http.NewRequestWithContext(ctx, method, a.URL+target, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	if body == "" {
		request.Body, request.ContentLength = http.NoBody, 0
	} else {
		request.Header.Set("Content-Type", "application/json")
	}
	request.Header.Set("Authorization", "Bearer "+a.Token)
	return request, nil
}

// call makes one call and reads the whole answer. What the header said counts
// even if the body broke off.
func (a *faultAgent) call(ctx context.Context, method, target, body string) (answer faultAnswer) {
	began := time.Now()
	defer func() { answer.took = time.Since(began) }()
	request, err := a.request(ctx, method, target, body)
	if err != nil {
		return faultAnswer{err: err}
	}
	response, err := a.http.Do(request)
	if err != nil {
		return faultAnswer{err: err}
	}
	defer func() { _ = response.Body.Close() }() // only read
	content, err := io.ReadAll(response.Body)
	got := reply{response.StatusCode, response.Header, string(content), response.Proto}
	return faultAnswer{code: got.code, auditID: got.auditID(), reason: got.reason(), body: got.body, err: err}
}

// get reads the seed.
func (a *faultAgent) get(ctx context.Context) faultAnswer { return a.getWithin(ctx, 10*time.Second) }

func (a *faultAgent) getWithin(ctx context.Context, patience time.Duration) faultAnswer {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return a.call(ctx, http.MethodGet, faultSeed, "")
}

// create makes a config map of that name.
func (a *faultAgent) create(ctx context.Context, name string) faultAnswer {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return a.call(ctx, http.MethodPost, faultMaps, faultMap(name))
}

func faultMap(name string) string {
	return fmt.Sprintf(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":%q},"data":{"k":"v"}}`, name)
}

// untilOK reads until that works, and answers how long it took.
func (a *faultAgent) untilOK(t testing.TB, patience time.Duration) time.Duration {
	t.Helper()
	began := time.Now()
	eventually(t, patience, a.name+" can read", func() error {
		if answer := a.get(t.Context()); !answer.ok() {
			return errors.New(answer.String())
		}
		return nil
	})
	return faultSince(began)
}

// until reads until it is refused for this reason, and answers how long it took.
func (a *faultAgent) until(t testing.TB, patience time.Duration, reason string) time.Duration {
	t.Helper()
	began := time.Now()
	eventually(t, patience, a.name+" is refused "+reason, func() error {
		if answer := a.get(t.Context()); !answer.is(reason) {
			return errors.New(answer.String())
		}
		return nil
	})
	return faultSince(began)
}

func faultSince(began time.Time) time.Duration { return time.Since(began).Round(time.Millisecond) }

// faultWatch is a watch, or a followed log, that is read line by line.
type faultWatch struct {
	auditID string
	lines   chan string // closed at the end
	err     error       // how it ended; set before lines is closed
	end     context.CancelFunc
}

// open starts a watch or followed log and returns when its header is there.
func (a *faultAgent) open(t testing.TB, target string) *faultWatch {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	t.Cleanup(cancel)
	request, err := a.request(ctx, http.MethodGet, target, "")
	if err != nil {
		t.Fatal(err)
	}
	response, err := a.http.Do(request)
	if err != nil {
		t.Fatalf("opening %s: %v", target, err)
	}
	if response.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(response.Body) // only explains
		t.Fatalf("opening %s: %d %s", target, response.StatusCode, body)
	}
	w := &faultWatch{auditID: response.Header.Get("Audit-Id"), lines: make(chan string, 1000), end: cancel}
	go func() {
		defer close(w.lines)
		defer func() { _ = response.Body.Close() }() // only read
		scanner := bufio.NewScanner(response.Body)
		scanner.Buffer(nil, 1<<20)
		for scanner.Scan() {
			w.lines <- scanner.Text()
		}
		w.err = scanner.Err()
	}()
	return w
}

// last waits until the answer ends and returns its last line.
func (w *faultWatch) last(t testing.TB, patience time.Duration) string {
	t.Helper()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	last := ""
	for {
		select {
		case line, more := <-w.lines:
			if !more {
				return last
			}
			last = line
		case <-timer.C:
			t.Fatalf("it had not ended after %s; the last line was %q", patience, last)
		}
	}
}

// faultEvent reads the last line of a watch as an ERROR event, and returns the
// reasons in it.
func faultEvent(t testing.TB, line string) string {
	t.Helper()
	var event struct {
		Type   string
		Object metav1.Status
	}
	if err := json.Unmarshal([]byte(line), &event); err != nil || event.Type != "ERROR" || event.Object.Details == nil {
		t.Errorf("the last line of the watch is no ERROR event with a reason: %q", line)
		return ""
	}
	var words []string
	for _, cause := range event.Object.Details.Causes {
		words = append(words, string(cause.Type))
	}
	return strings.Join(words, "/")
}

// readyz asks a broker's readiness, with every check.
func (b *faultBed) readyz(t testing.TB) (int, string) {
	t.Helper()
	return faultFetch(strings.TrimSuffix(b.Environment().BrokerMetrics, "/metrics") + "/readyz?verbose")
}

// faultFetch gets a page of a broker's health port; code 0 if nobody listens.
func faultFetch(url string) (int, string) {
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Get(url)
	if err != nil {
		return 0, err.Error()
	}
	defer func() { _ = response.Body.Close() }() // only read
	body, _ := io.ReadAll(response.Body)         // what could be read will do
	return response.StatusCode, string(body)
}

// faultUntil waits until readiness of a broker names the check with this text.
func faultUntil(t testing.TB, patience time.Duration, health, check, text string) time.Duration {
	t.Helper()
	began := time.Now()
	eventually(t, patience, fmt.Sprintf("the broker is not ready: %s: %s", check, text), func() error {
		code, page := faultFetch(health + "/readyz?verbose")
		for line := range strings.Lines(page) {
			if code == http.StatusServiceUnavailable && strings.HasPrefix(line, "[-]"+check+":") && strings.Contains(line, text) {
				return nil
			}
		}
		return fmt.Errorf("%d %s", code, page)
	})
	return faultSince(began)
}

// untilReady waits until the first broker says that it is ready.
func (b *faultBed) untilReady(t testing.TB, patience time.Duration) time.Duration {
	t.Helper()
	began := time.Now()
	eventually(t, patience, "the broker is ready", func() error {
		if code, text := b.readyz(t); code != http.StatusOK {
			return errors.New(text)
		}
		return nil
	})
	return faultSince(began)
}

// untilNotReady waits until readiness names this check and text.
func (b *faultBed) untilNotReady(t testing.TB, patience time.Duration, check, text string) time.Duration {
	t.Helper()
	return faultUntil(t, patience, strings.TrimSuffix(b.Environment().BrokerMetrics, "/metrics"), check, text)
}

// metric reads one number of the first broker; 0 if it is not there.
func (b *faultBed) metric(t testing.TB, name string) float64 {
	t.Helper()
	code, page := faultFetch(b.Environment().BrokerMetrics)
	if code != http.StatusOK {
		t.Fatalf("the broker's metrics: %d %s", code, page)
	}
	for line := range strings.Lines(page) {
		if value, found := strings.CutPrefix(line, name+" "); found {
			number, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil {
				t.Fatal(err)
			}
			return number
		}
	}
	return 0
}

// log is all that a component printed.
func (b *faultBed) log(t testing.TB, component string) string {
	t.Helper()
	content, err := os.ReadFile(b.Component(component).Log())
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// faultSpooled lists the streams that lie in a spool.
func faultSpooled(t testing.TB, spool string) []string {
	t.Helper()
	entries, err := os.ReadDir(spool)
	if err != nil {
		t.Fatal(err)
	}
	var streams []string
	for _, entry := range entries {
		if entry.IsDir() {
			streams = append(streams, entry.Name())
		}
	}
	return streams
}

// terminate sends SIGTERM to the first broker and waits for its end.
func (b *faultBed) terminate(t testing.TB) (code int, took time.Duration) {
	t.Helper()
	began := time.Now()
	if err := b.Broker(0).Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	code, known := b.Broker(0).ExitCode()
	if !known {
		t.Fatal("how the broker ended is not known")
	}
	return code, faultSince(began)
}

// faultBroker is a broker that the test runs itself, with another configuration
// or another command than the testbed's.
type faultBroker struct {
	command *exec.Cmd
	output  string // file
	ended   chan struct{}
	health  string // URL
}

// runBroker runs the broker program as the broker's user, with the testbed's
// configuration as changed, while the testbed's own broker is stopped.
func (b *faultBed) runBroker(t testing.TB, change func(map[string]any), environment []string, arguments ...string) *faultBroker {
	t.Helper()
	folder := filepath.Join(b.Directory(), "broker")
	content, err := os.ReadFile(filepath.Join(folder, "config.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var config map[string]any
	if err := yaml.Unmarshal(content, &config); err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(config)
	}
	if content, err = yaml.Marshal(config); err != nil {
		t.Fatal(err)
	}
	file, err := os.CreateTemp(folder, "config-*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	_, err = file.Write(content)
	if err := errors.Join(err, file.Chown(faultBrokerUID, faultBrokerUID), file.Close()); err != nil {
		t.Fatal(err)
	}
	output, err := os.CreateTemp(filepath.Join(b.Directory(), "log"), "own-broker-*.log")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = output.Close() }() // the child has its own
	store := b.Store()
	command := exec.Command(b.Environment().Programs+"/broker", append([]string{"--config", file.Name()}, arguments...)...)
	command.Dir, command.Stdout, command.Stderr = folder, output, output
	command.Env = append([]string{"AWS_ACCESS_KEY_ID=" + store.Broker.Key, "AWS_SECRET_ACCESS_KEY=" + store.Broker.Secret, "HOME=" + folder}, environment...)
	command.SysProcAttr = &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: faultBrokerUID, Gid: faultBrokerUID}, Pdeathsig: syscall.SIGKILL, Setpgid: true,
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	listen := config["listen"].(map[string]any)
	own := &faultBroker{command: command, output: output.Name(), ended: make(chan struct{}), health: fmt.Sprintf("http://%s", listen["health"])}
	go func() {
		_ = command.Wait() // the exit code is in the process state
		close(own.ended)
	}()
	t.Cleanup(func() {
		_ = command.Process.Kill()
		<-own.ended
	})
	return own
}

// wait answers the exit code and all that was printed.
func (o *faultBroker) wait(t testing.TB, patience time.Duration) (int, string) {
	t.Helper()
	select {
	case <-o.ended:
	case <-time.After(patience):
		t.Fatalf("the broker did not end within %s: %s", patience, o.printed(t))
	}
	return o.command.ProcessState.ExitCode(), o.printed(t)
}

func (o *faultBroker) stop(t testing.TB) (int, string) {
	t.Helper()
	_ = o.command.Process.Signal(syscall.SIGTERM) // it may have ended
	return o.wait(t, time.Minute)
}

func (o *faultBroker) printed(t testing.TB) string {
	t.Helper()
	content, err := os.ReadFile(o.output)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// faultUsage is what a process holds.
type faultUsage struct {
	descriptors, threads, rss int // rss in bytes
}

func (u faultUsage) String() string {
	return fmt.Sprintf("%d descriptors, %d threads, %d MiB", u.descriptors, u.threads, u.rss>>20)
}

func faultUsageOf(t testing.TB, pid int) faultUsage {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	usage := faultUsage{descriptors: len(entries)}
	for line := range strings.Lines(string(content)) {
		fields := strings.Fields(line)
		switch {
		case strings.HasPrefix(line, "Threads:"):
			usage.threads, err = strconv.Atoi(fields[1])
		case strings.HasPrefix(line, "VmRSS:"):
			usage.rss, err = strconv.Atoi(fields[1])
			usage.rss <<= 10
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return usage
}

// faultEnds counts the streams of a report by how they ended.
func faultEnds(report *recorder.Report) map[string]int {
	ends := map[string]int{}
	for _, stream := range report.Streams {
		ends[stream.End]++
	}
	return ends
}

// faultPercentile of durations; p is 0 to 100.
func faultPercentile(took []time.Duration, p int) time.Duration {
	if len(took) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(took))
	return sorted[min(len(sorted)-1, len(sorted)*p/100)].Round(time.Millisecond)
}
