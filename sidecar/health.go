package sidecar

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// health answers the probes: /livez, /readyz, /startupz, in the form of the API
// server's (?verbose lists each check).
type health struct {
	guard *guard
	ready []check
}

// check is one condition of readiness; nil means it holds.
type check struct {
	name string
	test func() error
}

// handler serves liveness without any check: that it answers is the proof.
// Startup and readiness are the same, since the agent must not start before an
// SVID is held.
func (h health) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, r *http.Request) { answerProbe(w, r, "livez", nil) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) { answerProbe(w, r, "readyz", h.ready) })
	mux.HandleFunc("GET /startupz", func(w http.ResponseWriter, r *http.Request) { answerProbe(w, r, "startupz", h.ready) })
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !h.guard.hostAllowed(r.Host) || browserHeader(r.Header) != "" {
			http.Error(w, "not served to web pages", http.StatusMisdirectedRequest)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

func answerProbe(w http.ResponseWriter, r *http.Request, name string, checks []check) {
	var report strings.Builder
	failed := false
	for _, check := range checks {
		if err := check.test(); err != nil {
			failed = true
			fmt.Fprintf(&report, "[-]%s failed: %v\n", check.name, err)
		} else {
			fmt.Fprintf(&report, "[+]%s ok\n", check.name)
		}
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	switch {
	case failed:
		w.WriteHeader(http.StatusServiceUnavailable)
		fmt.Fprintf(w, "%s%s check failed\n", report.String(), name)
	case r.URL.Query().Has("verbose"):
		fmt.Fprintf(w, "%s%s check passed\n", report.String(), name)
	default:
		io.WriteString(w, "ok\n")
	}
}

// Probe asks a running sidecar about its "startup", "ready" or "live" state, for
// exec probes: the kubelet cannot reach loopback in the pod. health is the address
// of the health endpoint. It returns one line for people; an error means no.
func Probe(ctx context.Context, health, state string) (string, error) {
	path, known := map[string]string{"startup": "/startupz", "ready": "/readyz", "live": "/livez"}[state]
	if !known {
		return "", fmt.Errorf("there is no probe %q; use startup, ready or live", state)
	}
	if err := checkLoopback("health", health); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+health+path+"?verbose", nil)
	if err != nil {
		return "", err
	}
	transport := &http.Transport{DisableKeepAlives: true} // no proxy, whatever the environment says
	answer, err := transport.RoundTrip(request)
	if err != nil {
		var refused *net.OpError
		if errors.As(err, &refused) && refused.Op == "dial" {
			return "", fmt.Errorf("no sidecar answers at %s: %w", health, err)
		}
		return "", fmt.Errorf("asking the sidecar at %s: %w", health, err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(io.LimitReader(answer.Body, 8<<10))
	if err != nil {
		return "", fmt.Errorf("asking the sidecar at %s: %w", health, err)
	}
	line := strings.ReplaceAll(strings.TrimSpace(string(body)), "\n", ", ")
	if answer.StatusCode != http.StatusOK {
		return "", errors.New(line)
	}
	return line, nil
}
