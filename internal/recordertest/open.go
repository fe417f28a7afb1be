package recordertest

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/taskgate/taskgate/internal/spiffetest"
	"github.com/taskgate/taskgate/recorder"
)

// TrustDomain and BrokerID are those of the brokers in tests.
const TrustDomain = "example.org"

// BrokerID returns the SPIFFE ID of the brokers in tests.
func BrokerID() spiffeid.ID {
	return spiffeid.RequireFromString("spiffe://" + TrustDomain + "/taskgate/broker")
}

// Identity is a recorder.Identity whose SVID and bundle a test replaces.
type Identity struct {
	mu     sync.Mutex
	svid   *x509svid.SVID
	bundle *x509bundle.Bundle
}

// NewIdentity issues the broker an SVID from a new authority.
func NewIdentity(test testing.TB) (*Identity, *spiffetest.CA) {
	test.Helper()
	ca, err := spiffetest.NewCA(TrustDomain)
	if err != nil {
		test.Fatal(err)
	}
	identity := new(Identity)
	identity.Issue(test, ca, spiffetest.Leaf{ID: BrokerID()})
	identity.Trust(ca.Bundle())
	return identity, ca
}

// Issue replaces the SVID.
func (i *Identity) Issue(test testing.TB, ca *spiffetest.CA, leaf spiffetest.Leaf) {
	test.Helper()
	i.mu.Lock()
	defer i.mu.Unlock()
	i.issue(test, ca, leaf)
}

// Rotate replaces SVID and trust bundle at the same time.
func (i *Identity) Rotate(test testing.TB, ca *spiffetest.CA, leaf spiffetest.Leaf, bundle *x509bundle.Bundle) {
	test.Helper()
	i.mu.Lock()
	defer i.mu.Unlock()
	i.issue(test, ca, leaf)
	i.bundle = bundle
}

func (i *Identity) issue(test testing.TB, ca *spiffetest.CA, leaf spiffetest.Leaf) {
	test.Helper()
	svid, err := ca.Issue(leaf)
	if err != nil {
		test.Fatal(err)
	}
	i.svid = svid
}

// Trust replaces the trust bundle.
func (i *Identity) Trust(bundle *x509bundle.Bundle) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.bundle = bundle
}

// GetX509SVID implements x509svid.Source.
func (i *Identity) GetX509SVID() (*x509svid.SVID, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.svid, nil
}

// GetX509BundleForTrustDomain implements x509bundle.Source.
func (i *Identity) GetX509BundleForTrustDomain(domain spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.bundle.GetX509BundleForTrustDomain(domain)
}

// Config is a configuration whose pauses are short enough for tests.
func Config(test testing.TB, store recorder.Store, identity recorder.Identity) recorder.Config {
	test.Helper()
	return recorder.Config{
		Cluster: "test", Broker: "broker-0", Spool: test.TempDir(), Store: store, Identity: identity,
		Retention: time.Hour, FileSize: 256 << 10, SegmentEvery: 5 * time.Millisecond, RetryMax: 5 * time.Millisecond,
	}
}

// Open opens a recorder and waits until it is ready. The caller closes it.
func Open(test testing.TB, config recorder.Config) *recorder.Recorder {
	test.Helper()
	r, err := recorder.Open(context.Background(), config)
	if err != nil {
		test.Fatal(err)
	}
	Eventually(test, "the recorder becomes ready", func() error { return r.Ready() })
	return r
}

// Eventually polls until check returns nil; after half a minute the test fails
// with the error.
func Eventually(test testing.TB, what string, check func() error) {
	test.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			test.Fatalf("waiting until %s: %v", what, err)
		}
		time.Sleep(time.Millisecond)
	}
}

// Call is the intent of one call of an agent; Outcome is its end.
func Call(id string) *recorder.Event {
	return &recorder.Event{
		AuditID: id, Stage: recorder.StageRequestReceived, RequestURI: "/api/v1/namespaces/shop/pods/" + id, Verb: "get",
		User:             recorder.UserInfo{Username: "spiffe://" + TrustDomain + "/ns/agents/sa/alpha"},
		ImpersonatedUser: &recorder.UserInfo{Username: "taskgate:agent", Groups: []string{"taskgate:agents", "taskgate:policy:shop"}},
		SourceIPs:        []string{"10.0.0.7"}, UserAgent: "kubectl/v1.37.2",
		ObjectRef:                &recorder.ObjectReference{Resource: "pods", Namespace: "shop", Name: id, APIVersion: "v1"},
		RequestReceivedTimestamp: recorder.MicroTime{Time: time.Now()},
		Annotations: map[string]string{
			recorder.AnnotationTask: "INC-4711", recorder.AnnotationGrant: "inc-4711", recorder.AnnotationPolicy: "shop",
			recorder.AnnotationDecision: "allow", recorder.AnnotationSession: "2f0c6b0e-5f2c-4c39-8c6e-0f4a7a9d2c11",
			recorder.AnnotationSVID: "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
		},
	}
}

// Outcome is the end of the call with this intent.
func Outcome(intent *recorder.Event, code int32) *recorder.Event {
	outcome := *intent
	outcome.Stage = recorder.StageResponseComplete
	outcome.ResponseStatus = &recorder.ResponseStatus{Code: code}
	return &outcome
}

// Record appends an event and waits until it is durable.
func Record(test testing.TB, r *recorder.Recorder, event *recorder.Event) uint64 {
	test.Helper()
	receipt, err := r.Append(event)
	if err == nil {
		err = receipt.Wait(context.Background())
	}
	if err != nil {
		test.Fatal(err)
	}
	return receipt.Seq()
}

// FixedIdentity is an Identity that begins with an SVID made elsewhere.
func FixedIdentity(svid *x509svid.SVID, bundle *x509bundle.Bundle) *Identity {
	return &Identity{svid: svid, bundle: bundle}
}
