package broker

import (
	"context"
	"errors"
	"fmt"
	stdlog "log"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/rs/zerolog"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sync/errgroup"

	"github.com/taskgate/taskgate/authz"
	"github.com/taskgate/taskgate/broker/control"
	"github.com/taskgate/taskgate/broker/request"
	"github.com/taskgate/taskgate/broker/tasks"
	"github.com/taskgate/taskgate/identity"
	"github.com/taskgate/taskgate/recorder"
)

// Run is the broker. It serves until ctx ends, then lets calls under way end,
// ends those that go on with a reason, seals every record and closes the
// journal. It returns nil only if all of that was done; records that could not
// be sealed stay in the spool, and the error says so.
func Run(ctx context.Context, config *Configuration, log zerolog.Logger) error {
	source, err := identity.Open(ctx, identity.Config{Address: config.Identity.WorkloadAPI, Hint: config.Identity.Hint})
	if err != nil {
		return err
	}
	defer source.Close()
	if err := waitForIdentity(ctx, source, log); err != nil {
		return err
	}
	records, err := openRecorder(ctx, config, source)
	if err != nil {
		return err
	}
	p, err := assemble(config, source, records, log)
	if err != nil {
		return errors.Join(err, closeRecorder(ctx, config, records))
	}
	defer p.upstream.close()
	served := p.serve(ctx, config)
	return errors.Join(served, closeRecorder(ctx, config, records))
}

// Drain seals what earlier starts of the broker left in the spool.
func Drain(ctx context.Context, config *Configuration, log zerolog.Logger) error {
	source, err := identity.Open(ctx, identity.Config{Address: config.Identity.WorkloadAPI, Hint: config.Identity.Hint})
	if err != nil {
		return err
	}
	defer source.Close()
	if err := waitForIdentity(ctx, source, log); err != nil {
		return err
	}
	settings, err := recorderConfig(config, source)
	if err != nil {
		return err
	}
	log.Info().Str("spool", config.Recorder.Spool).Msg("sealing what is left in the spool")
	return recorder.Drain(ctx, settings)
}

// waitForIdentity says every few seconds what is being waited for.
func waitForIdentity(ctx context.Context, source *identity.Source, log zerolog.Logger) error {
	for {
		attempt, cancel := context.WithTimeout(ctx, 5*time.Second)
		err := source.Wait(attempt)
		cancel()
		if err == nil {
			id, _ := source.ID()
			log.Info().Stringer("id", id).Msg("holding an X509-SVID")
			return nil
		}
		if ctx.Err() != nil {
			return err
		}
		log.Warn().Err(err).Msg("no identity yet; is the broker registered with SPIRE, and the socket mounted?")
	}
}

func recorderConfig(config *Configuration, source *identity.Source) (recorder.Config, error) {
	store, err := recorder.NewS3(recorder.S3Config{
		Endpoint: config.Recorder.Store.Endpoint, Bucket: config.Recorder.Store.Bucket, Region: config.Recorder.Store.Region,
	})
	return recorder.Config{
		Cluster: config.Cluster, Broker: config.Name, Spool: config.Recorder.Spool, Store: store, Identity: source,
		Retention: config.Recorder.Retention.Duration, SpoolLimit: config.Recorder.SpoolLimit, AgeLimit: config.Recorder.AgeLimit.Duration,
	}, err
}

func openRecorder(ctx context.Context, config *Configuration, source *identity.Source) (*recorder.Recorder, error) {
	settings, err := recorderConfig(config, source)
	if err != nil {
		return nil, err
	}
	// The recorder outlives ctx: the last records are sealed after it ended.
	return recorder.Open(context.WithoutCancel(ctx), settings)
}

func closeRecorder(ctx context.Context, config *Configuration, records *recorder.Recorder) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), config.ShutdownGrace.Duration)
	defer cancel()
	return records.Close(ctx)
}

// assemble puts the parts together; nothing runs yet.
func assemble(config *Configuration, source *identity.Source, records *recorder.Recorder, log zerolog.Logger) (*parts, error) {
	clusters, err := openClusters(config)
	if err != nil {
		return nil, err
	}
	clock := new(steadyClock)
	never := authz.Boundary{Namespaces: *config.Never.Namespaces, AgentNamespaces: config.Never.AgentNamespaces}
	index, err := authz.NewIndex(never)
	if err != nil {
		return nil, err
	}
	notifier, err := openNotifier(config, log)
	if err != nil {
		return nil, err
	}
	var b *boundary
	controller, err := control.New(control.Config{
		Broker: config.Name, Index: index, Control: clusters.control, Guarded: clusters.guarded, Log: log, Now: clock.Now,
		StaleAfter: config.StaleAfter.Duration, KeepEnded: config.KeepEnded.Duration,
		Tell: func(h control.Happening) { b.happened(h) }, // it runs only when b is there
	})
	if err != nil {
		return nil, err
	}
	kinds, err := newCatalog(clusters.guarded, clock.Now)
	if err != nil {
		return nil, err
	}
	upstream, err := newUpstream(clusters.agents)
	if err != nil {
		return nil, err
	}
	own, err := tasks.New(tasks.Config{Control: clusters.control, Index: index, Release: controller.Release, Now: clock.Now})
	if err != nil {
		return nil, err
	}
	b = &boundary{
		identity: source, index: index, never: never, recorder: records, upstream: upstream, tasks: own, parser: request.NewParser(),
		live: newLiveCalls(), metrics: newMetrics(), log: log, now: clock.Now, charge: controller.Charge, kindOf: kinds.lookup,
		cluster: config.Cluster, approvals: controller, asking: config.Approvals, streams: newStreams(&config.Streams), notify: notifier,
	}
	checks := &health{
		checks: []check{
			{"svid", source.Ready}, {"policies", controller.Ready}, {"admission-policies", controller.GuardsReady},
			{"decision-policies", controller.DecisionsCount}, {"cluster", kinds.ready}, {"recorder", records.Ready},
		},
		gate: []string{"admission-policies", "cluster"},
		warning: func() string {
			if warning := records.Status().Warning; warning != nil {
				return warning.Error()
			}
			return ""
		},
	}
	b.ready = checks.serving
	b.registerGauges()
	return &parts{boundary: b, health: checks, controller: controller, catalog: kinds}, nil
}

// parts are what runs together.
type parts struct {
	*boundary
	health     *health
	controller *control.Controller
	catalog    *catalog
}

func (b *boundary) registerGauges() {
	b.metrics.gauge("taskgate_live_calls", "Watches, followed logs and streams that are open.", func() float64 { return float64(b.live.count()) })
	b.metrics.gauge("taskgate_recorder_spool_bytes", "Size of the spool.", func() float64 { return float64(b.recorder.Status().SpoolBytes) })
	b.metrics.gauge("taskgate_recorder_oldest_unshipped_seconds", "Age of the oldest record that is not in the bucket.", func() float64 {
		if oldest := b.recorder.Status().OldestUnsealed; !oldest.IsZero() {
			return b.now().Sub(oldest).Seconds()
		}
		return 0
	})
	b.metrics.gauge("taskgate_recorder_lock_check_failures", "Checks that found the bucket unsafe.", func() float64 { return float64(b.recorder.Status().UnsafeVerdicts) })
	b.metrics.gauge("taskgate_svid_expiry_timestamp_seconds", "End of the broker's own SVID.", func() float64 {
		if svid, err := b.identity.GetX509SVID(); err == nil {
			return float64(svid.Certificates[0].NotAfter.Unix())
		}
		return 0
	})
	b.metrics.gauge("taskgate_policies_stale_timestamp_seconds", "When decisions become PolicyStale unless the policies are proven fresh again.", func() float64 {
		return float64(b.index.FreshUntil().Unix())
	})
}

// serve runs everything until ctx ends or something fails, in the order that
// loses nothing: no more connections, calls end, then the rest.
func (p *parts) serve(ctx context.Context, config *Configuration) error {
	agents, err := p.listenForAgents(ctx, config)
	if err != nil {
		return err
	}
	probes, err := listen(ctx, "listen.health", config.Listen.Health)
	if err != nil {
		return errors.Join(err, agents.Close())
	}
	// background keeps working while the last calls end.
	background, stopBackground := context.WithCancel(context.WithoutCancel(ctx))
	defer stopBackground()
	group, ctx := errgroup.WithContext(ctx)
	agentServer, probeServer := p.agentServer(), p.probeServer(p.health)
	group.Go(func() error { return ignoreClosed(agentServer.Serve(agents)) })
	group.Go(func() error { return ignoreClosed(probeServer.Serve(probes)) })
	for _, run := range []func(context.Context) error{
		p.controller.Run,
		asError(p.catalog.run),
		asError(p.notify.Run),
		asError(p.health.run),
		asError(func(ctx context.Context) { p.live.run(ctx, p.index.Changed(), p.now) }),
		asError(p.live.tidy),
		asError(func(ctx context.Context) { p.report(ctx, p.health) }),
	} {
		group.Go(func() error { return run(background) })
	}
	group.Go(func() error {
		select {
		case <-ctx.Done():
			return nil
		case <-p.recorder.Dead():
			return fmt.Errorf("the recorder is dead, so the broker ends: %w", p.recorder.Err())
		}
	})
	p.log.Info().Str("agents", agents.Addr().String()).Str("health", probes.Addr().String()).Str("cluster", config.Cluster).Msg("serving")
	<-ctx.Done()
	p.log.Info().Msg("shutting down: calls under way may end, records are sealed")
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), config.ShutdownGrace.Duration)
	defer cancel()
	stopped := p.shutdown(grace, agentServer)
	if stopped != nil {
		stopped = fmt.Errorf("calls were cut that did not end in time: %w", errors.Join(stopped, agentServer.Close()))
	}
	stopBackground()
	return errors.Join(stopped, probeServer.Shutdown(grace), group.Wait())
}

func asError(run func(context.Context)) func(context.Context) error {
	return func(ctx context.Context) error { run(ctx); return nil }
}

func ignoreClosed(err error) error {
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

func listen(ctx context.Context, what, address string) (net.Listener, error) {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listening on %s (%s): %w; is another broker running?", address, what, err)
	}
	return listener, nil
}

func (b *boundary) listenForAgents(ctx context.Context, config *Configuration) (net.Listener, error) {
	own, err := b.identity.ID()
	if err != nil {
		return nil, err
	}
	accepted := []spiffeid.TrustDomain{own.TrustDomain()}
	if len(config.Identity.TrustDomains) > 0 {
		accepted = nil
		for _, name := range config.Identity.TrustDomains {
			accepted = append(accepted, spiffeid.RequireTrustDomainFromString(name)) // validated with the configuration
		}
	}
	raw, err := listen(ctx, "listen.agents", config.Listen.Agents)
	if err != nil {
		return nil, err
	}
	return identity.NewListener(raw, b.identity.ServerTLS(accepted), identity.Limits{}, b.metrics.rejected), nil
}

// agentServer serves sidecars. There is no limit to the time an answer takes:
// watches go on; bodies have a deadline of their own.
func (b *boundary) agentServer() *http.Server {
	return &http.Server{
		Handler:                      b,
		ConnContext:                  b.connContext,
		ConnState:                    b.connState,
		ReadHeaderTimeout:            10 * time.Second,
		MaxHeaderBytes:               64 << 10,
		DisableGeneralOptionsHandler: true, // OPTIONS * is for the boundary to refuse
		ErrorLog:                     stdlog.New(debugWriter{b.log}, "", 0),
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: 250, MaxReadFrameSize: 64 << 10,
			MaxReceiveBufferPerStream: 256 << 10, MaxReceiveBufferPerConnection: 3 << 20,
			SendPingTimeout: 15 * time.Second, PingTimeout: 10 * time.Second, WriteByteTimeout: 30 * time.Second,
		},
	}
}

func (b *boundary) probeServer(checks *health) *http.Server {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		if err := b.recorder.Err(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /readyz", checks.readyz)
	mux.Handle("GET /metrics", b.metrics.handler())
	return &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, ErrorLog: stdlog.New(debugWriter{b.log}, "", 0)}
}

// report logs when the broker becomes ready and why it is not.
func (b *boundary) report(ctx context.Context, checks *health) {
	last, warned := "?", ""
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		if now := strings.Join(checks.problems(), "; "); now != last {
			last = now
			if now == "" {
				b.log.Info().Msg("ready")
			} else {
				b.log.Warn().Str("waiting for", now).Msg("not ready")
			}
		}
		if warning := checks.warning(); warning != warned {
			if warned = warning; warning != "" {
				b.log.Warn().Msg(warning)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// debugWriter takes the HTTP server's own complaints about connections, which
// anybody can cause.
type debugWriter struct{ log zerolog.Logger }

func (w debugWriter) Write(line []byte) (int, error) {
	w.log.Debug().Str("from", "net/http").Msg(strings.TrimSpace(string(line)))
	return len(line), nil
}
