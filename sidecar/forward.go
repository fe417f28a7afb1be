package sidecar

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"github.com/taskgate/taskgate/identity"
	"github.com/taskgate/taskgate/internal/relay"
)

// grantHeader carries the pinned grant to the broker.
const grantHeader = "Taskgate-Grant"

// forwarder carries calls the guard let pass to the broker and the answers back.
type forwarder struct {
	source *identity.Source
	dialer *dialer
	broker string // host:port
	server string // the broker's SPIFFE ID
	grant  string
	calls  calls
	log    zerolog.Logger

	uplink atomic.Pointer[uplink]
	down   atomic.Bool // whether the broker could not be reached last time
}

// renew makes new calls use new connections, unless somebody else already saw to
// that. A nil old one stands for whichever is in use.
func (f *forwarder) renew(old *uplink) {
	if old == nil {
		old = f.uplink.Load()
	}
	if f.uplink.CompareAndSwap(old, newUplink(f.dialer)) && old != nil {
		old.retire()
	}
}

// ServeHTTP answers every call: with the broker's answer, with a refusal of its
// own, or by breaking off an answer that broke off.
func (f *forwarder) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// The transport may still be reading the body after an early answer.
	defer r.Body.Close()
	if err := f.source.Ready(); err != nil {
		noIdentity(err).write(w, r.URL.Path)
		return
	}
	live, upgrade := longRunning(r.URL.RawQuery), upgrades(r)
	parent := r.Context()
	if upgrade { // net/http ends it when one direction of a tunnel ends
		parent = context.WithoutCancel(parent)
	}
	ctx, leave, ok := f.calls.enter(parent, live || upgrade)
	if !ok {
		shuttingDown().write(w, r.URL.Path)
		return
	}
	defer leave()
	if upgrade {
		f.tunnel(ctx, w, r)
		return
	}
	body := &watchedBody{ReadCloser: r.Body}
	answer, err := f.send(ctx, r, body, live)
	if err != nil {
		f.unanswered(ctx, w, r, body, err)
		return
	}
	defer answer.Body.Close()
	f.reached()
	if answer.StatusCode == http.StatusSwitchingProtocols {
		w.Header().Set("Connection", "close")
		refusal{code: http.StatusBadGateway, reason: reasonBadUpgrade, what: "the broker switched protocols without being asked", next: "tell the operator"}.write(w, r.URL.Path)
		return
	}
	relay.Headers(w.Header(), answer.Header)
	w.WriteHeader(answer.StatusCode)
	if _, err := relay.Body(w, answer.Body, live, nil); err != nil {
		panic(http.ErrAbortHandler) // the agent must see that the answer is not whole
	}
}

// unanswered says why there is no answer of the broker.
func (f *forwarder) unanswered(ctx context.Context, w http.ResponseWriter, r *http.Request, body *watchedBody, err error) {
	switch {
	case r.Context().Err() != nil: // the agent is gone
		panic(http.ErrAbortHandler)
	case ctx.Err() != nil:
		cutShort(r.Method).write(w, r.URL.Path)
	case body.broke.Load():
		w.Header().Set("Connection", "close")
		brokenBody().write(w, r.URL.Path)
	default:
		f.unavailable(r.Method, err).write(w, r.URL.Path)
	}
}

// send passes a call on and returns when the broker's answer begins.
func (f *forwarder) send(ctx context.Context, r *http.Request, body io.ReadCloser, live bool) (*http.Response, error) {
	uplink := f.uplink.Load()
	if uplink.stale(time.Now()) {
		f.renew(uplink)
		uplink = f.uplink.Load()
	}
	headers, connection := f.headers(r.Header)
	out := (&http.Request{
		Method:        r.Method,
		URL:           target(r, f.broker),
		Header:        headers,
		ContentLength: r.ContentLength,
	}).WithContext(ctx)
	if r.ContentLength != 0 {
		out.Body = body
	}
	var via http.RoundTripper = uplink.short
	if live && !connection && r.Method == http.MethodGet && out.Body == nil {
		via = uplink.long
	}
	answer, err := via.RoundTrip(out)
	if err == nil && answer.StatusCode == http.StatusUnauthorized {
		// The broker no longer takes the SVID this connection was opened with.
		f.renew(uplink)
	}
	return answer, err
}

// target addresses the broker with the request target the agent wrote, byte for
// byte. Only a target that begins with // cannot be opaque (net/url would make an
// absolute-form of it): there net/url keeps the spelling too, except that it
// escapes what must be escaped. The broker refuses a // in any case.
func target(r *http.Request, broker string) *url.URL {
	if !strings.HasPrefix(r.RequestURI, "//") {
		return &url.URL{Scheme: "https", Host: broker, Opaque: r.RequestURI}
	}
	to := *r.URL
	to.Scheme, to.Host = "https", broker
	return &to
}

// longRunning reports whether the broker would take the call for a watch or a
// followed log. A spelling this misses is one the broker refuses.
func longRunning(query string) bool {
	for pair := range strings.SplitSeq(query, "&") {
		name, value, _ := strings.Cut(pair, "=")
		if (name == "watch" || name == "follow") && value != "false" && value != "0" {
			return true
		}
	}
	return false
}

// headers returns what goes to the broker, and whether it holds connection
// headers, which only HTTP/1.1 carries. Whatever is not named here passes: the
// broker judges it, and builds its own request from an allow-list.
func (f *forwarder) headers(in http.Header) (out http.Header, connection bool) {
	out = make(http.Header, len(in)+2)
	for name, values := range in {
		switch {
		case name == "Connection":
			if values = connectionTokens(values); len(values) > 0 {
				out[name], connection = values, true
			}
		case name == "Upgrade":
			out[name], connection = values, true
		case !droppedHeader(name):
			out[name] = values
		}
	}
	if _, ok := out["User-Agent"]; !ok {
		out["User-Agent"] = nil // keeps net/http from making one up
	}
	if f.grant != "" {
		out[grantHeader] = []string{f.grant}
	}
	return out, connection
}

// connectionTokens leaves out what concerns only the agent's own connection. Any
// other token stays: one that names a header is an attempt to have it removed.
func connectionTokens(values []string) []string {
	var kept []string
	for _, value := range values {
		var tokens []string
		for token := range strings.SplitSeq(value, ",") {
			token = strings.TrimSpace(token)
			if token != "" && !strings.EqualFold(token, "close") && !strings.EqualFold(token, "keep-alive") {
				tokens = append(tokens, token)
			}
		}
		if len(tokens) > 0 {
			kept = append(kept, strings.Join(tokens, ", "))
		}
	}
	return kept
}

// droppedHeader reports whether a header ends here.
func droppedHeader(name string) bool {
	switch name {
	case "Accept", "Accept-Encoding", "Content-Type", "User-Agent": // on nearly every call
		return false
	}
	// Credentials and claims about who is calling, which only the mutual TLS
	// connection may make; our own names, which the agent must not use.
	for _, prefix := range [...]string{"x-remote-", "x-forwarded-", "x-spiffe-", "taskgate-"} {
		if foldedPrefix(name, prefix) {
			return true
		}
	}
	for _, whole := range [...]string{
		"authorization", "proxy-authorization", "cookie", "forwarded", "x-real-ip", "audit-id",
		// About the agent's own connection.
		"content-length", "expect", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding",
		// net/http would send a write again that carries one of these.
		"idempotency-key", "x-idempotency-key",
	} {
		if folded(name, whole) {
			return true
		}
	}
	return false
}

// watchedBody tells a request body the agent did not finish from a broker that
// does not take it.
type watchedBody struct {
	io.ReadCloser
	broke atomic.Bool
}

func (b *watchedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && err != io.EOF && !errors.Is(err, http.ErrBodyReadAfterClose) {
		b.broke.Store(true)
	}
	return n, err
}

// unavailable says why there is no answer from the broker, and whether the call
// may have been made.
func (f *forwarder) unavailable(method string, err error) refusal {
	if errors.Is(err, identity.ErrNoSVID) {
		return noIdentity(err)
	}
	if !f.down.Swap(true) {
		f.log.Warn().Err(err).Str("broker", f.broker).Msg("broker unavailable")
	}
	answer := refusal{
		code: http.StatusServiceUnavailable, reason: reasonBrokerUnavailable,
		what: "the broker at " + f.broker + " cannot be reached, so the call was not made: " + brief(err),
		next: "repeat it in a few seconds; if this goes on, ask the operator whether the broker runs",
	}
	var remote *net.OpError
	switch {
	case errors.Is(err, identity.ErrUntrusted), errors.Is(err, identity.ErrExpired):
		answer.what = "what answers at " + f.broker + " could not prove that it is " + f.server + "; the call was not made"
		answer.next = "ask the operator to compare the sidecar's --broker-id with the broker's SPIFFE ID"
	case errors.As(err, &remote) && remote.Op == "remote error": // a TLS alert: nothing was read
		answer.what = "the broker at " + f.broker + " does not accept this pod's identity; the call was not made"
		answer.next = "ask the operator whether the broker accepts this pod's trust domain"
	case errors.As(err, new(*dialError)):
	case isRead(method):
		answer.what = "the connection to the broker at " + f.broker + " broke before it answered"
	default:
		answer.what = "the connection to the broker at " + f.broker + " broke before it answered; the call may or may not have been made"
		answer.next = "look at the object before repeating the call"
		answer.cause = causeOutcomeUnknown
	}
	return answer
}

func (f *forwarder) reached() {
	if f.down.Load() && f.down.Swap(false) {
		f.log.Info().Str("broker", f.broker).Msg("broker answers again")
	}
}

func noIdentity(err error) refusal {
	return refusal{
		code: http.StatusServiceUnavailable, reason: reasonNoIdentity,
		what: "this pod has no identity at the moment, so nothing was sent: " + brief(err),
		next: "repeat the call in a few seconds; if this goes on, ask the operator to check the SPIRE agent and this pod's entry",
	}
}

func brokenBody() refusal {
	return refusal{
		code: http.StatusBadRequest, reason: reasonBadBody,
		what: "the body of the request broke off or is not what its headers announced; the call was not made",
		next: "send the whole body",
	}
}

// shuttingDown is for calls that come while drain ends those before them.
func shuttingDown() refusal {
	return refusal{
		code: http.StatusServiceUnavailable, reason: reasonNotReady,
		what: "this pod's sidecar is shutting down; the call was not made",
		next: "look whether the pod is being deleted",
	}
}

// cutShort is for calls that drain ended.
func cutShort(method string) refusal {
	answer := shuttingDown()
	if !isRead(method) {
		answer.what = "this pod's sidecar is shutting down and could not wait for the answer; the call may or may not have been made"
		answer.cause = causeOutcomeUnknown
	}
	return answer
}

func isRead(method string) bool { return method == http.MethodGet || method == http.MethodHead }
