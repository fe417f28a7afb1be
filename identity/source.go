package identity

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
)

// ErrNoSVID says that there is no usable X509-SVID at the moment.
var ErrNoSVID = errors.New("no usable X509-SVID")

// Config says where the identity comes from.
type Config struct {
	// Address of the Workload API, such as unix:///run/spire/agent.sock.
	// Empty means the environment variable SPIFFE_ENDPOINT_SOCKET.
	Address string
	// Hint picks one of several X509-SVIDs by the hint its registration entry
	// carries (SPIFFE Workload API, section 5.2.1). Empty takes the first, which
	// the specification calls the default identity.
	Hint string
	// Now is the clock. Nil means time.Now.
	Now func() time.Time
}

// Source holds the newest X509-SVID and trust bundles the Workload API sent.
// It implements x509svid.Source and x509bundle.Source. All methods are safe
// for concurrent use.
type Source struct {
	config Config
	client *workloadapi.Client
	cancel context.CancelFunc
	done   chan struct{} // closed when the watch has ended

	// current is nil until the first update and is replaced as a whole, so that
	// an SVID is never seen with the bundles of another update.
	current atomic.Pointer[material]

	mu      sync.Mutex
	lastErr error         // why the watch failed last; nil while it runs
	updated chan struct{} // closed and replaced at each update
}

// material is one update of the Workload API.
type material struct {
	svid    *x509svid.SVID
	bundles *x509bundle.Set
	// generation counts updates; a Peer verified under an older one is verified
	// again.
	generation uint64
}

// Open starts to watch the Workload API and returns at once: use [Source.Wait]
// to wait for the first SVID. It fails only if the address is malformed.
// The watch reconnects by itself until Close; the end of ctx does not end it,
// because the last calls and the last signatures still need the SVID.
func Open(ctx context.Context, config Config) (*Source, error) {
	if config.Now == nil {
		config.Now = time.Now
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	options := []workloadapi.ClientOption{
		workloadapi.WithBackoffStrategy(reconnect{}),
		// gRPC pauses between attempts too, by default up to two minutes.
		workloadapi.WithDialOptions(grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: minReconnectPause, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
			MinConnectTimeout: time.Second,
		})),
	}
	if config.Address != "" {
		options = append(options, workloadapi.WithAddr(config.Address))
	}
	client, err := workloadapi.New(ctx, options...)
	if err != nil {
		cancel()
		return nil, fmt.Errorf("opening the Workload API: %w; give its address, such as unix:///run/spire/agent.sock", err)
	}
	s := &Source{
		config:  config,
		client:  client,
		cancel:  cancel,
		done:    make(chan struct{}),
		updated: make(chan struct{}),
		lastErr: errors.New("the Workload API has not answered yet"),
	}
	go s.watch(ctx)
	return s, nil
}

// watch runs until ctx ends. The library returns early only for an error the
// specification calls final (InvalidArgument); an agent that is replaced may
// answer differently, so watch begins anew after a pause.
func (s *Source) watch(ctx context.Context) {
	defer close(s.done)
	for {
		err := s.client.WatchX509Context(ctx, (*watcher)(s))
		if ctx.Err() != nil {
			return
		}
		s.fail(err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(maxReconnectPause):
		}
	}
}

// Close ends the watch, waits for it, and makes every later use fail.
func (s *Source) Close() error {
	s.cancel()
	<-s.done
	s.current.Store(nil)
	s.fail(errors.New("the source is closed"))
	return s.client.Close()
}

// Wait blocks until a usable SVID is held or ctx ends; then the error says why
// there is none.
func (s *Source) Wait(ctx context.Context) error {
	for {
		updated := s.Updated()
		if s.Ready() == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			if err := s.Ready(); err != nil { // the reason may be another by now
				return fmt.Errorf("waiting for an X509-SVID: %w", err)
			}
			return nil
		case <-updated:
		}
	}
}

// Updated returns a channel that is closed at the next update.
func (s *Source) Updated() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.updated
}

// Ready returns nil while an unexpired SVID is held, and otherwise an error
// that wraps ErrNoSVID and names the cause.
func (s *Source) Ready() error {
	_, err := s.GetX509SVID()
	return err
}

// ID returns the SPIFFE ID of the SVID held.
func (s *Source) ID() (spiffeid.ID, error) {
	svid, err := s.GetX509SVID()
	if err != nil {
		return spiffeid.ID{}, err
	}
	return svid.ID, nil
}

// GetX509SVID returns the SVID held. An expired one is an error: it must not be
// presented, and nothing must be signed with it.
func (s *Source) GetX509SVID() (*x509svid.SVID, error) {
	held := s.current.Load()
	if held == nil {
		return nil, fmt.Errorf("%w: %w", ErrNoSVID, s.cause())
	}
	if end := held.svid.Certificates[0].NotAfter; !s.config.Now().Before(end) {
		return nil, fmt.Errorf("%w: the one held ended at %s and was not renewed: %w", ErrNoSVID, end.UTC().Format(time.RFC3339), s.cause())
	}
	return held.svid, nil
}

// GetX509BundleForTrustDomain returns the bundle of one trust domain, or an
// error if the Workload API did not send one.
func (s *Source) GetX509BundleForTrustDomain(domain spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	held := s.current.Load()
	if held == nil {
		return nil, fmt.Errorf("%w: %w", ErrNoSVID, s.cause())
	}
	return held.bundles.GetX509BundleForTrustDomain(domain)
}

func (s *Source) cause() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lastErr == nil {
		return errors.New("the Workload API sent no newer one")
	}
	return s.lastErr
}

func (s *Source) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lastErr = err
}

// watcher keeps the callbacks of the Workload API client out of the method set
// of Source.
type watcher Source

// OnX509ContextUpdate takes over an update. If none of its SVIDs carries the
// wanted hint, the SVID held is kept until it ends: the entry may be on its way.
func (w *watcher) OnX509ContextUpdate(update *workloadapi.X509Context) {
	s := (*Source)(w)
	svid := pick(update.SVIDs, s.config.Hint)
	if svid == nil {
		s.fail(fmt.Errorf("none of the %d X509-SVIDs offered has the hint %q", len(update.SVIDs), s.config.Hint))
		return
	}
	next := &material{svid: svid, bundles: update.Bundles, generation: 1}
	if held := s.current.Load(); held != nil {
		next.generation = held.generation + 1
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.current.Store(next)
	s.lastErr = nil
	close(s.updated)
	s.updated = make(chan struct{})
}

// OnX509ContextWatchError keeps the reason for whoever asks next; what was
// received before stays in force until it ends.
func (w *watcher) OnX509ContextWatchError(err error) { (*Source)(w).fail(err) }

func pick(svids []*x509svid.SVID, hint string) *x509svid.SVID {
	for _, svid := range svids {
		if hint == "" || svid.Hint == hint {
			return svid
		}
	}
	return nil
}

const (
	minReconnectPause = 100 * time.Millisecond
	maxReconnectPause = 5 * time.Second
)

// reconnect is the pause between attempts to reach the Workload API. It is
// short because a pod without an SVID can do nothing, and the socket is local.
type reconnect struct{}

func (reconnect) NewBackoff() workloadapi.Backoff { return &pause{next: minReconnectPause} }

type pause struct{ next time.Duration }

func (p *pause) Next() time.Duration {
	current := p.next
	p.next = min(2*p.next, maxReconnectPause)
	return current
}

func (p *pause) Reset() { p.next = minReconnectPause }
