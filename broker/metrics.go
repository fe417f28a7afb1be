package broker

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/taskgate/taskgate/authz"
)

// metrics are the broker's own, in a registry of its own. No label holds
// anything an agent can choose.
type metrics struct {
	registry   *prometheus.Registry
	requests   *prometheus.CounterVec
	refusals   *prometheus.CounterVec
	handshakes *prometheus.CounterVec
	invariants prometheus.Counter
	duration   *prometheus.HistogramVec
}

func newMetrics() *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "taskgate_request_total", Help: "Calls of agents by verb and decision.",
		}, []string{"verb", "decision"}),
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "taskgate_refusal_total", Help: "Calls refused, by reason.",
		}, []string{"reason"}),
		handshakes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "taskgate_handshake_rejected_total", Help: "Connections whose TLS handshake failed, by reason.",
		}, []string{"reason"}),
		invariants: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "taskgate_invariant_violation_total", Help: "Calls refused because of a defect of the broker. Must be zero.",
		}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "taskgate_request_duration_seconds", Help: "Time from the first byte of a call to the end of its answer; calls that go on are left out.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 16),
		}, []string{"verb"}),
	}
	m.registry.MustRegister(m.requests, m.refusals, m.handshakes, m.invariants, m.duration)
	return m
}

func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}

func (m *metrics) refused(reason authz.Reason) { m.refusals.WithLabelValues(string(reason)).Inc() }

func (m *metrics) rejected(reason string) { m.handshakes.WithLabelValues(reason).Inc() }

func (m *metrics) served(x *exchange) {
	verb, decision := x.request.Call.Verb.String(), "deny"
	if x.decision.Verdict == authz.Allow {
		decision = "allow"
	}
	m.requests.WithLabelValues(verb, decision).Inc()
	if !x.request.Live && x.request.Stream == nil {
		m.duration.WithLabelValues(verb).Observe(x.b.now().Sub(x.started).Seconds())
	}
}

// gauge registers a number that is read when somebody asks.
func (m *metrics) gauge(name, help string, value func() float64) {
	m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value))
}
