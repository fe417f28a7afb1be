package sidecar

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	stdlog "log"
	"net"
	"net/http"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"github.com/taskgate/taskgate/identity"
)

// Bounds on what a caller may use up before it has shown the local token.
const (
	headerTimeout  = 10 * time.Second
	maxHeaderBytes = 64 << 10
	agentIdle      = 5 * time.Minute
)

// healthGrace is the time probes under way have to end.
const healthGrace = time.Second

// Run serves until ctx ends and then returns nil: calls under way have had
// Config.Grace to end, and everything Run started has ended. Any other error means
// that the sidecar could not start or go on, and says what to do.
//
// It serves before it has an SVID: calls are answered NoIdentity until then.
func Run(ctx context.Context, config Config) error {
	if err := config.Validate(); err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	config = config.withDefaults()
	log := config.Log

	authority, err := identity.OpenLocalAuthority(config.StateDir, nil)
	if err != nil {
		return err
	}
	if why := authority.Made(); why != "" {
		log.Info().Str("why", why).Msg("made a new local authority and token")
	}
	source, err := identity.Open(ctx, identity.Config{Address: config.WorkloadAPI, Hint: config.Hint})
	if err != nil {
		return err
	}
	defer source.Close()
	dialer, err := newDialer(source, config.Broker, config.BrokerID)
	if err != nil {
		return err
	}
	defer dialer.close()

	agents, err := listenAll(ctx, "listen", config.Listen)
	if err != nil {
		return err
	}
	defer closeAll(agents)
	probes, err := listenAll(ctx, "health", []string{config.Health})
	if err != nil {
		return err
	}
	defer closeAll(probes)

	dir, err := filepath.Abs(config.AgentDir)
	if err != nil {
		return err
	}
	files := agentFiles{dir: dir, mode: config.AgentFileMode, namespace: config.Namespace}
	if err := files.write(authority, agents[0].Addr().String()); err != nil {
		return fmt.Errorf("writing the agent's files to %s: %w; the folder must be writable for the sidecar", dir, err)
	}

	s := &server{
		config: config, source: source, dialer: dialer, log: log,
		forwarder: &forwarder{
			source: source, dialer: dialer, broker: config.Broker, server: config.BrokerID.String(),
			grant: config.Grant, log: log,
		},
	}
	s.forwarder.renew(nil)
	return s.serve(ctx, agents, probes, authority, files)
}

// server is a running sidecar.
type server struct {
	config    Config
	source    *identity.Source
	dialer    *dialer
	forwarder *forwarder
	log       zerolog.Logger
	draining  atomic.Bool
}

func (s *server) serve(ctx context.Context, agents, probes []net.Listener, authority *identity.LocalAuthority, files agentFiles) error {
	guard := newGuard(authority)
	agent := s.httpServer(s.agentHandler(guard), authority.ServerTLS())
	probe := s.httpServer(health{guard: guard, ready: []check{
		{"shutdown", s.notDraining},
		{"files", files.present},
		{"svid", s.source.Ready},
	}}.handler(), nil)

	group, ctx := errgroup.WithContext(ctx)
	for _, listener := range agents {
		s.log.Info().Stringer("address", listener.Addr()).Msg("serving the agent")
		group.Go(func() error { return unlessClosed(agent.ServeTLS(listener, "", "")) })
	}
	for _, listener := range probes {
		s.log.Info().Stringer("address", listener.Addr()).Msg("serving health")
		group.Go(func() error { return unlessClosed(probe.Serve(listener)) })
	}
	group.Go(func() error {
		s.follow(ctx)
		return nil
	})
	group.Go(func() error {
		<-ctx.Done()
		s.drain(context.WithoutCancel(ctx), agent, probe)
		return nil
	})
	return group.Wait()
}

func (s *server) httpServer(handler http.Handler, config *tls.Config) *http.Server {
	return &http.Server{
		Handler:           handler,
		TLSConfig:         config,
		ReadHeaderTimeout: headerTimeout, // bounds the TLS handshake too
		IdleTimeout:       agentIdle,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          stdlog.New(serverLog{s.log}, "", 0),
		// OPTIONS * is for the guard to refuse.
		DisableGeneralOptionsHandler: true,
	}
}

func (s *server) agentHandler(guard *guard) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if no := guard.check(r); no != nil {
			no.write(w, r.URL.Path)
			return
		}
		if r.ProtoMajor == 1 && len(r.TransferEncoding) > 0 {
			// net/http does not tell whether there was a Content-Length too. Then the
			// connection must not go on (RFC 9112, section 6.3).
			w.Header().Set("Connection", "close")
		}
		s.forwarder.ServeHTTP(w, r)
	})
}

func (s *server) notDraining() error {
	if s.draining.Load() {
		return errors.New("the sidecar is shutting down")
	}
	return nil
}

// drain ends everything in order: no new calls, those under way, the connections
// to the broker, the probes.
func (s *server) drain(ctx context.Context, agent, probe *http.Server) {
	s.log.Info().Dur("grace", s.config.Grace).Msg("shutting down")
	s.draining.Store(true)
	agent.SetKeepAlivesEnabled(false)
	if cut := s.forwarder.calls.drain(s.config.Grace); cut > 0 {
		s.log.Warn().Int("calls", cut).Msg("cut calls that did not end in time")
	}
	// Answers that are written may still be on their way to the agent.
	flush, cancel := context.WithTimeout(ctx, healthGrace)
	defer cancel()
	_ = agent.Shutdown(flush) // Close does what is left
	agent.Close()
	s.forwarder.calls.wait()
	s.dialer.close()
	_ = probe.Shutdown(flush)
	probe.Close()
	s.log.Info().Msg("stopped")
}

// follow replaces the uplink when the SVID or a bundle changed, and logs when the
// identity comes and goes.
func (s *server) follow(ctx context.Context) {
	const recheck = 5 * time.Second // while there is no SVID: has the reason changed?
	var said string
	for {
		updated := s.source.Updated()
		wait := recheck
		svid, err := s.source.GetX509SVID()
		switch {
		case err == nil:
			said = ""
			end := svid.Certificates[0].NotAfter
			wait = time.Until(end)
			s.dialer.recheck(time.Now())
			s.forwarder.renew(nil)
			s.log.Info().Stringer("id", svid.ID).Time("until", end).Msg("holding an identity")
		case err.Error() != said:
			said = err.Error()
			s.log.Warn().Err(err).Msg("no identity; calls are refused until there is one")
		}
		timer := time.NewTimer(max(wait, time.Millisecond))
		select {
		case <-ctx.Done():
		case <-updated:
		case <-timer.C:
		}
		timer.Stop()
		if ctx.Err() != nil {
			return
		}
	}
}

// listenAll opens all addresses or none.
func listenAll(ctx context.Context, field string, addresses []string) ([]net.Listener, error) {
	var listeners []net.Listener
	for _, address := range addresses {
		listener, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
		if err != nil {
			closeAll(listeners)
			return nil, fmt.Errorf("%w; is another sidecar running in this pod? --%s takes another address", err, field)
		}
		listeners = append(listeners, listener)
	}
	return listeners, nil
}

func closeAll(listeners []net.Listener) {
	for _, listener := range listeners {
		listener.Close()
	}
}

func unlessClosed(err error) error {
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// serverLog takes what net/http has to say. Most of it is about callers, who must
// not be able to fill the log.
type serverLog struct{ log zerolog.Logger }

func (l serverLog) Write(line []byte) (int, error) {
	level := zerolog.DebugLevel
	if bytes.HasPrefix(line, []byte("http: panic")) {
		level = zerolog.ErrorLevel
	}
	l.log.WithLevel(level).Msg(string(bytes.TrimSpace(line)))
	return len(line), nil
}
