package bench

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/taskgate/taskgate/e2e/testbed"
)

// sealLag is how long taskgate works for a call after its answer: records are
// sealed every second.
const sealLag = 1300 * time.Millisecond

// plainLag is that of contenders that do nothing afterwards.
const plainLag = 200 * time.Millisecond

// world is a testbed with contenders in it.
type world struct {
	bed    *testbed.Testbed
	kube   kubernetes.Interface // as the administrator
	twin   *twin
	shared []component // what every call costs something

	direct, plain, taskgate *contender
	unrecorded              *contender // nil where it was not asked for or cannot be built
	unrecordedProblem       error      // why it cannot be built
}

// worldOptions says what to start.
type worldOptions struct {
	spiffe     string
	progress   func(format string, arguments ...any)
	unrecorded bool
	node       string   // testbed.Kwok, or empty for none
	programs   string   // folder with broker, sidecar and taskgate; empty: built here
	broker     []string // environment of brokers
	sidecar    []string // environment of sidecars
}

// startWorld starts everything and answers when each contender has answered a
// call.
func startWorld(ctx context.Context, options worldOptions) (*world, error) {
	folder, err := os.MkdirTemp("", "taskgate-bench-")
	if err != nil {
		return nil, fmt.Errorf("making a folder: %w", err)
	}
	if err := os.Chmod(folder, 0o755); err != nil { // workloads of SPIRE have uids of their own
		return nil, fmt.Errorf("opening a folder to others: %w", err)
	}
	w := &world{}
	if options.programs == "" {
		options.programs = filepath.Join(folder, "programs")
		if err := w.buildPrograms(ctx, options); err != nil {
			return nil, errors.Join(err, os.RemoveAll(folder))
		}
	}
	brokers := 1
	if options.unrecorded && w.unrecordedProblem == nil {
		brokers = 2
	}
	options.progress("starting the testbed")
	w.bed, err = testbed.Start(ctx, testbed.Options{
		Directory: filepath.Join(folder, "bed"), SPIFFE: options.spiffe, S3: testbed.VersityGW, Node: cmp.Or(options.node, testbed.NoNode), WithoutControllers: options.node == "",
		Programs: options.programs, Brokers: brokers, BrokerEnvironment: options.broker, SidecarEnvironment: options.sidecar,
		SVIDTTL: 12 * time.Hour, AuditLevel: auditv1.LevelNone,
	})
	if err != nil {
		return nil, fmt.Errorf("%w (logs are in %s)", err, folder)
	}
	if err := w.furnish(ctx, folder, brokers > 1); err != nil {
		return nil, errors.Join(err, w.stop(context.WithoutCancel(ctx)))
	}
	return w, nil
}

// stop ends everything and removes its files.
func (w *world) stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	var err error
	if w.twin != nil {
		err = w.twin.stop(ctx)
	}
	return errors.Join(err, w.bed.Remove(ctx), os.RemoveAll(filepath.Dir(w.bed.Directory())))
}

// furnish puts objects, grant and contenders into a testbed that runs.
func (w *world) furnish(ctx context.Context, folder string, withUnrecorded bool) error {
	var err error
	if w.kube, err = kubernetes.NewForConfig(w.bed.Admin()); err != nil {
		return fmt.Errorf("making a client of the cluster: %w", err)
	}
	if err := w.createObjects(ctx); err != nil {
		return err
	}
	impersonate, err := w.grant(ctx)
	if err != nil {
		return err
	}
	if w.twin, err = newTwin(filepath.Join(folder, "twin"), filepath.Join(w.bed.Directory(), "broker", "kubeconfig"), impersonate); err != nil {
		return err
	}
	if err := w.twin.start(ctx); err != nil {
		return err
	}
	if err := w.makeContenders(ctx, withUnrecorded); err != nil {
		return err
	}
	return w.awaitAll(ctx)
}

func (w *world) makeContenders(ctx context.Context, withUnrecorded bool) error {
	for _, name := range []string{testbed.ComponentAPIServer, testbed.ComponentEtcd, testbed.ComponentStore} {
		w.shared = append(w.shared, component{name, w.bed.Component(name).PID})
	}
	admin, err := rest.TLSConfigFor(w.bed.Admin())
	if err != nil {
		return fmt.Errorf("reading the administrator's certificate: %w", err)
	}
	admin.MinVersion = tls.VersionTLS13
	w.direct = &contender{name: Direct, url: w.bed.Admin().Host, tls: admin, lag: plainLag, header: header("")}
	roots, err := readPool(w.twin.ca)
	if err != nil {
		return err
	}
	w.plain = &contender{
		name: Twin, url: w.twin.url, tls: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots}, lag: plainLag,
		// As long as taskgate's token is; the first hop takes it away.
		header: header(strings.Repeat("x", 43)),
		hops:   []component{{"hop 1", pidOf(w.twin.local)}, {"hop 2", pidOf(w.twin.remote)}},
	}
	if w.taskgate, err = w.behindSidecar(Taskgate, w.bed.Environment().Alpha, testbed.Alpha, 0); err != nil {
		return err
	}
	if !withUnrecorded {
		return nil
	}
	access, err := w.bed.AddSidecar(ctx, testbed.SidecarOptions{Name: Unrecorded, Agent: testbed.Alpha, Replica: 1})
	if err != nil {
		return err
	}
	w.unrecorded, err = w.behindSidecar(Unrecorded, access, Unrecorded, 1)
	return err
}

func (w *world) behindSidecar(name string, access testbed.Access, sidecar string, replica int) (*contender, error) {
	roots, err := readPool(access.CA)
	if err != nil {
		return nil, err
	}
	return &contender{
		name: name, url: access.URL, tls: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots}, lag: sealLag,
		header: header(access.Token),
		hops:   []component{{"sidecar", w.bed.Sidecar(sidecar).PID}, {"broker", w.bed.Broker(replica).PID}},
	}, nil
}

// header is what every request carries, much as kubectl's do. The token is
// empty where a certificate speaks.
func header(token string) http.Header {
	h := http.Header{"Accept": {"application/json"}, "User-Agent": {"kubectl/v1.37.2 (linux/amd64) kubernetes/bench"}}
	if token != "" {
		h.Set("Authorization", "Bearer "+token)
	}
	return h
}

func (w *world) contenders() []*contender {
	all := []*contender{w.direct, w.plain, w.taskgate}
	if w.unrecorded != nil {
		all = append(all, w.unrecorded)
	}
	return all
}

// awaitAll waits until each contender answers: a grant takes a moment to be in
// force, and the broker looks for its rights in the cluster only now and then.
func (w *world) awaitAll(ctx context.Context) error {
	const patience = time.Minute
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for _, c := range w.contenders() {
		transport := newTransport(c.tls, false)
		defer transport.CloseIdleConnections()
		for {
			_, err := c.send(transport, getPod(), nil)
			if err == nil {
				break
			}
			if pause(ctx, 100*time.Millisecond) != nil {
				return fmt.Errorf("%s did not answer within %s: %w", c.name, patience, err)
			}
		}
	}
	return nil
}

// restart gives taskgate and the twin fresh processes.
func (w *world) restart(ctx context.Context) error {
	err := w.bed.Sidecar(testbed.Alpha).Stop(ctx)
	if err == nil {
		err = w.bed.Broker(0).Restart(ctx)
	}
	if err == nil {
		err = w.bed.Sidecar(testbed.Alpha).Start(ctx)
	}
	if err == nil {
		err = w.twin.stop(ctx)
	}
	if err == nil {
		err = w.twin.start(ctx)
	}
	if err != nil {
		return fmt.Errorf("restarting the contenders: %w", err)
	}
	return w.awaitAll(ctx)
}

// run executes one of the testbed's programs as the administrator.
func (w *world) run(ctx context.Context, stdin, program string, arguments ...string) (string, error) {
	environment := w.bed.Environment()
	command := exec.CommandContext(ctx, filepath.Join(environment.Programs, program), arguments...)
	command.Env = []string{"KUBECONFIG=" + environment.AdminKubeconfig, "HOME=" + w.bed.Directory(), "PATH=" + os.Getenv("PATH")}
	command.Stdin = strings.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	command.Stdout, command.Stderr = &stdout, &stderr
	if err := command.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", program, strings.Join(arguments, " "), err, stderr.String())
	}
	return stdout.String(), nil
}
