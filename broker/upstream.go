package broker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"k8s.io/client-go/rest"

	"github.com/taskgate/taskgate/broker/stream"
)

// upstream is the way to the guarded cluster. It has two transports: HTTP/1.1
// for calls that come and go, which costs less CPU per call and byte, and HTTP/2
// for those that stay, which costs less memory.
type upstream struct {
	base  *url.URL
	short http.RoundTripper
	live  http.RoundTripper
	// streams makes a connection of its own for every upgrade.
	streams http.RoundTripper
	close   func() // the connections that wait; calls under way go on
}

func newUpstream(config *rest.Config) (*upstream, error) {
	base, _, err := rest.DefaultServerUrlFor(config)
	if err != nil {
		return nil, fmt.Errorf("reading the address of the cluster: %w", err)
	}
	base.Path = strings.TrimSuffix(base.Path, "/")
	short, closeShort, err := newTransport(config, false)
	if err != nil {
		return nil, err
	}
	live, closeLive, err := newTransport(config, true)
	if err != nil {
		return nil, err
	}
	streams, err := newStreamTransport(config)
	if err != nil {
		return nil, err
	}
	return &upstream{base: base, short: short, live: live, streams: streams, close: func() { closeShort(); closeLive() }}, nil
}

// answerTimeout is how long the cluster may take to begin an answer, before its
// connection is taken for lost. The API server itself gives up after a minute
// (--request-timeout), except on calls that go on, which have pings instead.
const answerTimeout = 70 * time.Second

// newTransport makes a transport of one protocol. The credential is put on by
// client-go (which reads a rotated token file again); behind it, as the last
// thing before the wire, stands the hop.
func newTransport(config *rest.Config, http2 bool) (http.RoundTripper, func(), error) {
	tlsConfig, err := rest.TLSConfigFor(config)
	if err != nil {
		return nil, nil, fmt.Errorf("reading the TLS settings of the cluster: %w", err)
	}
	dialer := newDialer()
	transport := &http.Transport{
		TLSClientConfig:     tlsConfig,
		DialContext:         dialer.DialContext,
		TLSHandshakeTimeout: 5 * time.Second,
		DisableCompression:  true, // the agent's Accept-Encoding goes through
		MaxIdleConnsPerHost: 256,
		IdleConnTimeout:     80 * time.Second, // the API server closes after 90
		ReadBufferSize:      32 << 10,
		WriteBufferSize:     32 << 10,
		Protocols:           new(http.Protocols),
		// A connection whose other end is gone is found within half a minute.
		HTTP2: &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 10 * time.Second},
	}
	if !http2 {
		transport.ResponseHeaderTimeout = answerTimeout
	}
	transport.Protocols.SetHTTP1(!http2)
	transport.Protocols.SetHTTP2(http2)
	wrapped, err := rest.HTTPWrappersForConfig(config, &hop{next: transport})
	if err != nil {
		return nil, nil, fmt.Errorf("reading the credential of the cluster: %w", err)
	}
	return wrapped, transport.CloseIdleConnections, nil
}

// newDialer finds out within half a minute that the other end of a quiet
// connection is gone.
func newDialer() *net.Dialer {
	return &net.Dialer{Timeout: 5 * time.Second, KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3}}
}

// newStreamTransport makes the transport of upgrades, behind the same credential
// and the same hop as all others.
func newStreamTransport(config *rest.Config) (http.RoundTripper, error) {
	tlsConfig, err := rest.TLSConfigFor(config)
	if err != nil {
		return nil, fmt.Errorf("reading the TLS settings of the cluster: %w", err)
	}
	transport := &stream.Transport{TLS: tlsConfig, Dialer: newDialer(), Patience: answerTimeout}
	wrapped, err := rest.HTTPWrappersForConfig(config, &hop{next: transport})
	if err != nil {
		return nil, fmt.Errorf("reading the credential of the cluster: %w", err)
	}
	return wrapped, nil
}

// errInvariant says that a request was about to leave that must not exist. It is
// a defect, and it is told to operators, not to agents.
var errInvariant = errors.New("InvariantViolation")

// boundKey carries the principal and audit ID of a request to the hop.
type boundKey struct{}

type bound struct {
	principal principal
	auditID   string
}

// hop is the last thing before the wire: it lets a request pass only if its
// identity is exactly the bound one. What forward builds it proves again, so
// that a change there cannot make the broker act as itself.
type hop struct{ next http.RoundTripper }

// forwarded are the headers a request to the cluster may carry besides the
// principal's and the broker's credential.
var forwarded = []string{"Accept", "Accept-Encoding", "Content-Type", "If-None-Match", "User-Agent", headerAuditID, headerAuthorization, stream.HeaderProtocol, stream.HeaderWebSocketProtocol}

// RoundTrip sends the request, or returns errInvariant and sends nothing.
func (h *hop) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := assertBound(r); err != nil {
		if r.Body != nil {
			r.Body.Close()
		}
		return nil, fmt.Errorf("%w: %w", errInvariant, err)
	}
	return h.next.RoundTrip(r)
}

func assertBound(r *http.Request) error {
	who, ok := r.Context().Value(boundKey{}).(bound)
	if !ok || !who.principal.valid() || who.auditID == "" {
		return errors.New("a request without a principal")
	}
	if !slices.Equal(r.Header[headerAuditID], []string{who.auditID}) {
		return errors.New("the audit ID is not the bound one")
	}
	for _, name := range impersonation {
		if want, count := who.principal.claim(name); !slices.Equal(r.Header[name], want[:count]) {
			return fmt.Errorf("the header %s is not the bound one", name)
		}
	}
	for name, values := range r.Header {
		if !slices.Contains(impersonation[:], name) && !slices.Contains(forwarded, name) {
			return fmt.Errorf("the header %s must not leave", name)
		}
		if len(values) != 1 && name != impersonateGroup && name != stream.HeaderProtocol && name != stream.HeaderWebSocketProtocol {
			return fmt.Errorf("the header %s has %d values", name, len(values))
		}
	}
	return nil
}

// buildHeader makes the headers of a request to the cluster from nothing.
func buildHeader(from http.Header, media string, who bound) http.Header {
	header := make(http.Header, 12)
	for _, name := range [...]string{"Accept", "Accept-Encoding", "If-None-Match"} {
		switch values := from[name]; len(values) {
		case 0:
		case 1:
			header[name] = values
		default:
			header[name] = []string{strings.Join(values, ", ")}
		}
	}
	own := [...]string{who.auditID, printable(from.Get("User-Agent")), media}
	header[headerAuditID], header["User-Agent"] = own[0:1:1], own[1:2:2]
	if media != "" {
		header["Content-Type"] = own[2:]
	}
	who.principal.impersonate(header)
	return header
}

// printable keeps the agent's own name for itself short and harmless for the
// logs it ends up in.
func printable(userAgent string) string {
	const most = 256
	cleaned := strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return -1
		}
		return r
	}, userAgent)
	return cleaned[:min(len(cleaned), most)]
}

// send forwards an admitted call. The admission's zero value is refused: only
// admit makes others.
func (u *upstream) send(ctx context.Context, a *admission, from http.Header) (*http.Response, error) {
	if a == nil || !a.granted {
		return nil, fmt.Errorf("%w: a call without an admission", errInvariant)
	}
	if !a.verbatim {
		from = maskedHeader(from)
	}
	transport := u.short
	if a.request.Live {
		transport = u.live
	}
	response, err := transport.RoundTrip(u.request(ctx, a, from))
	if err != nil && !errors.Is(err, context.Canceled) {
		// A lost connection is seldom alone: each of those that wait in the pool
		// would cost one more call its time.
		u.close()
	}
	return response, err
}

// open sends the upgrade of an admitted call. The body of an answer that switched
// is a *stream.Pod.
func (u *upstream) open(ctx context.Context, a *admission, from http.Header) (*http.Response, error) {
	if a == nil || !a.granted || a.request.Stream == nil || a.request.Call.Stream == nil {
		return nil, fmt.Errorf("%w: a stream without an admission", errInvariant)
	}
	outgoing := u.request(stream.For(ctx, streamRequest(a.request)), a, from)
	name := stream.HeaderProtocol
	if a.request.Stream.WebSocket {
		name = stream.HeaderWebSocketProtocol
	}
	outgoing.Header[name] = a.request.Stream.Protocols
	return u.streams.RoundTrip(outgoing)
}

// request is what leaves: built from what was understood of the agent's, and from
// nothing else.
func (u *upstream) request(ctx context.Context, a *admission, from http.Header) *http.Request {
	target := *u.base
	target.Path += a.request.Path()
	target.RawQuery = a.request.Query()
	who := bound{a.principal, a.auditID}
	outgoing := new(http.Request).WithContext(context.WithValue(ctx, boundKey{}, who))
	outgoing.Method, outgoing.URL, outgoing.Host = a.request.Method, &target, target.Host
	outgoing.Header, outgoing.Body = buildHeader(from, a.request.MediaType, who), http.NoBody
	outgoing.Proto, outgoing.ProtoMajor, outgoing.ProtoMinor = "HTTP/1.1", 1, 1
	if a.request.Body != nil {
		outgoing.Body, outgoing.ContentLength = io.NopCloser(bytes.NewReader(a.request.Body)), int64(len(a.request.Body))
	}
	return outgoing
}
