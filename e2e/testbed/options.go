package testbed

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"
)

// The values of Options.SPIFFE.
const (
	// SPIRE runs a real SPIRE server and agent. Workloads are told apart by
	// their uid, so it needs root.
	SPIRE = "spire"
	// Dev runs a stand-in that gives an identity to whoever opens its socket.
	// It attests nothing.
	Dev = "dev"
)

// The values of Options.S3.
const (
	VersityGW = "versitygw"
	MinIO     = "minio"
)

// The values of Options.Node.
const (
	Kwok     = "kwok" // one fake node whose pods run at once
	RealNode = "real" // one real node: containerd and a kubelet; needs root
	NoNode   = "none"
)

// Options says what to start. The zero value of every field but Directory is a
// good choice.
type Options struct {
	// Directory holds everything the testbed writes. It must be absent, or hold
	// the remains of a testbed that runs no more; they are removed.
	Directory string

	// Repository is the root of the taskgate repository; empty: found from the
	// working directory upwards.
	Repository string

	SPIFFE string // SPIRE or Dev; empty: Dev
	S3     string // VersityGW or MinIO; empty: VersityGW
	Node   string // Kwok, RealNode or NoNode; empty: Kwok

	// Kubeconfig names an existing cluster to use instead of starting one. There
	// is then no audit log, and no node of ours.
	Kubeconfig string

	// Progress gets a line for everything that takes time; nil: nobody.
	Progress io.Writer

	// Detached components live on when this program ends; Open finds them again.
	// Otherwise they die with it, even when it is killed.
	Detached bool

	// WithoutTaskgate starts everything but broker and sidecars.
	WithoutTaskgate bool
	// WithoutControllers leaves out the controller manager and the scheduler:
	// quicker, but no Deployment makes a pod and no namespace ends.
	WithoutControllers bool

	// Programs is a folder with sidecar, broker and taskgate (see
	// BuildTaskgate); empty: they are built.
	Programs string
	// Race builds them with the race detector.
	Race bool

	// SVIDTTL is the life of an X509-SVID; zero: 10 minutes.
	SVIDTTL time.Duration
	// Brokers is the number of broker replicas; zero: 1.
	Brokers int
	// BrokerConfiguration may change the configuration of a replica (counted
	// from 0) before it is written.
	BrokerConfiguration func(replica int, configuration map[string]any)
	// BrokerEnvironment and SidecarEnvironment are more KEY=value for these programs.
	BrokerEnvironment  []string
	SidecarEnvironment []string
	// SidecarArguments are more arguments for every sidecar.
	SidecarArguments []string

	// AuditLevel is how much the API server's audit log holds about each call
	// of the broker; empty: RequestResponse. Other users' calls are never in it.
	AuditLevel auditv1.Level
	// APIServerArguments are more arguments for kube-apiserver.
	APIServerArguments []string
}

const defaultSVIDTTL = 10 * time.Minute

// complete fills in the defaults and checks the rest.
func (o Options) complete() (Options, error) {
	o.SPIFFE = fallback(o.SPIFFE, Dev)
	o.S3 = fallback(o.S3, VersityGW)
	o.Node = fallback(o.Node, Kwok)
	o.AuditLevel = fallback(o.AuditLevel, auditv1.LevelRequestResponse)
	o.SVIDTTL = fallback(o.SVIDTTL, defaultSVIDTTL)
	o.Brokers = fallback(o.Brokers, 1)
	if o.Progress == nil {
		o.Progress = io.Discard
	}
	if o.Kubeconfig != "" {
		o.Node = NoNode
	}
	if err := o.check(); err != nil {
		return Options{}, err
	}
	return o.resolve()
}

func (o Options) check() error {
	return errors.Join(
		oneOf("SPIFFE", o.SPIFFE, Dev, SPIRE),
		oneOf("S3", o.S3, VersityGW, MinIO),
		oneOf("NODE", o.Node, Kwok, RealNode, NoNode),
		o.checkNode(),
		o.checkRest(),
	)
}

func (o Options) checkNode() error {
	if o.Node != RealNode {
		return nil
	}
	if o.WithoutControllers {
		return errors.New("NODE=real needs the controllers: no pod runs without a scheduler")
	}
	return checkRealNode()
}

func (o Options) checkRest() error {
	switch {
	case o.Directory == "":
		return errors.New("a testbed needs a directory of its own")
	case o.Brokers < 1:
		return fmt.Errorf("a testbed has at least 1 broker, not %d", o.Brokers)
	case o.SPIFFE == SPIRE && os.Geteuid() != 0:
		return errors.New("SPIFFE=spire tells workloads apart by their uid, and starting them under several needs root: use SPIFFE=dev or become root")
	}
	return nil
}

// resolve makes the paths absolute, because components run in other folders.
func (o Options) resolve() (Options, error) {
	var err error
	if o.Directory, err = filepath.Abs(o.Directory); err != nil {
		return Options{}, fmt.Errorf("finding the testbed's directory: %w", err)
	}
	if o.Kubeconfig != "" {
		if o.Kubeconfig, err = filepath.Abs(o.Kubeconfig); err != nil {
			return Options{}, fmt.Errorf("finding the kubeconfig: %w", err)
		}
	}
	if o.Repository == "" {
		o.Repository, err = FindRepository()
	}
	return o, err
}

// FindRepository looks for the root of the taskgate repository, from the working
// directory upwards.
func FindRepository() (string, error) {
	begin, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("finding the repository: %w", err)
	}
	for folder := begin; ; folder = filepath.Dir(folder) {
		if _, err := os.Stat(filepath.Join(toolModules(folder), "kubernetes", "go.mod")); err == nil {
			return folder, nil
		}
		if folder == filepath.Dir(folder) {
			return "", fmt.Errorf("%s is not inside the taskgate repository: change into it", begin)
		}
	}
}

// toolModules is where the modules of the programs are that are built from
// source.
func toolModules(repository string) string {
	return filepath.Join(repository, "e2e", "tools")
}

func oneOf(name, value string, allowed ...string) error {
	if slices.Contains(allowed, value) {
		return nil
	}
	return fmt.Errorf("%s=%s is not known; it can be %s", name, value, strings.Join(allowed, " or "))
}

func fallback[T comparable](value, otherwise T) T {
	var zero T
	if value == zero {
		return otherwise
	}
	return value
}
