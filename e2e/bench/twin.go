package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"k8s.io/client-go/tools/clientcmd"

	"github.com/taskgate/taskgate/e2e/internal/pki"
	"github.com/taskgate/taskgate/e2e/internal/ports"
	"github.com/taskgate/taskgate/e2e/internal/process"
)

// twin is the two plain reverse proxies taskgate is compared with.
type twin struct {
	folder string
	url    string // of the first hop
	ca     string // file; signs the first hop's certificate
	local  *process.Process
	remote *process.Process
}

// newTwin writes certificates and configurations of both hops. brokerConfig is
// the broker's own kubeconfig, impersonate what the broker sends for a call.
func newTwin(folder, brokerConfig string, impersonate http.Header) (*twin, error) {
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return nil, fmt.Errorf("making the twin's folder: %w", err)
	}
	cluster, err := clientcmd.BuildConfigFromFlags("", brokerConfig)
	if err != nil {
		return nil, fmt.Errorf("reading the broker's kubeconfig: %w", err)
	}
	t := &twin{folder: folder}
	if err := os.WriteFile(t.path("cluster.crt"), cluster.CAData, 0o644); err != nil {
		return nil, fmt.Errorf("writing the cluster's authority: %w", err)
	}
	if err := t.writeCertificates(); err != nil {
		return nil, err
	}
	var claims ports.Claims
	localPort, localErr := claims.Claim()
	remotePort, remoteErr := claims.Claim()
	if err := errors.Join(localErr, remoteErr, claims.ReleaseAll()); err != nil {
		return nil, err
	}
	set := impersonate.Clone()
	set.Set("Authorization", "Bearer "+cluster.BearerToken)
	remote := HopConfig{
		Listen: fmt.Sprintf("127.0.0.1:%d", remotePort), Certificate: t.path("remote.crt"), Key: t.path("remote.key"), ClientCA: t.path("ca.crt"),
		Target: cluster.Host, TargetCA: t.path("cluster.crt"), Mutual: MutualDown, Set: set,
	}
	local := HopConfig{
		Listen: fmt.Sprintf("127.0.0.1:%d", localPort), Certificate: t.path("local.crt"), Key: t.path("local.key"),
		Target: "https://" + remote.Listen, TargetCA: t.path("ca.crt"), TargetCertificate: t.path("client.crt"), TargetKey: t.path("client.key"),
		Mutual: MutualUp, Remove: []string{"Authorization"},
	}
	t.url, t.ca = "https://"+local.Listen, t.path("ca.crt")
	if t.remote, err = t.hop("remote", remote, process.Probe{}); err != nil {
		return nil, err
	}
	t.local, err = t.hop("local", local, process.Probe{URL: t.url + "/readyz", CA: t.ca}) // through both
	return t, err
}

func (t *twin) path(name string) string { return filepath.Join(t.folder, name) }

func (t *twin) writeCertificates() error {
	authority, err := pki.NewAuthority("taskgate bench")
	if err != nil {
		return err
	}
	if err := os.WriteFile(t.path("ca.crt"), authority.Certificate(), 0o644); err != nil {
		return fmt.Errorf("writing the twin's authority: %w", err)
	}
	for name, hosts := range map[string][]string{"local": {"127.0.0.1"}, "remote": {"127.0.0.1"}, "client": nil} {
		pair, err := authority.Issue(pki.Leaf{CommonName: "taskgate bench " + name, Hosts: hosts})
		if err != nil {
			return err
		}
		if err := pair.Write(t.path(name+".crt"), t.path(name+".key")); err != nil {
			return err
		}
	}
	return nil
}

// hop describes a process that runs this very program as a hop.
func (t *twin) hop(name string, config HopConfig, ready process.Probe) (*process.Process, error) {
	content, err := json.Marshal(config)
	if err != nil {
		return nil, fmt.Errorf("encoding what the hop is to do: %w", err)
	}
	file := t.path(name + ".json")
	if err := os.WriteFile(file, content, 0o600); err != nil {
		return nil, fmt.Errorf("writing what the hop is to do: %w", err)
	}
	program, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("finding this program: %w", err)
	}
	return process.New(process.Spec{
		Name: "twin-" + name, Path: program, Arguments: []string{"hop", file}, Directory: t.folder,
		Environment: []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.folder},
		Log:         t.path(name + ".log"), Ready: ready, Grace: time.Second,
		Advice: "this is a bug in e2e/bench",
	}, process.Attached), nil
}

// start returns when a call gets through both hops.
func (t *twin) start(ctx context.Context) error {
	for _, hop := range []*process.Process{t.remote, t.local} {
		if err := hop.Launch(); err != nil {
			return err
		}
	}
	return t.local.WaitReady(ctx)
}

func (t *twin) stop(ctx context.Context) error {
	return errors.Join(t.local.Stop(ctx), t.remote.Stop(ctx))
}

func pidOf(p *process.Process) func() int {
	return func() int {
		if !p.Alive() {
			return 0
		}
		return p.Identity().PID
	}
}
