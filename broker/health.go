package broker

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// check is one condition of being ready.
type check struct {
	name string
	ask  func() error
}

// health keeps the answers to the checks, asked once a second, so that a probe
// and every call read them without waiting.
type health struct {
	checks []check
	// warning is what operators should know although the broker is ready; "" if
	// there is nothing.
	warning func() string
	state   atomic.Pointer[[]finding]
	// gate names the checks without which calls are refused at once. The others
	// refuse by themselves, with reasons of their own.
	gate []string
}

type finding struct {
	name string
	err  error
}

// run asks the checks until ctx ends.
func (h *health) run(ctx context.Context) {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		h.ask()
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

func (h *health) ask() {
	findings := make([]finding, 0, len(h.checks))
	for _, c := range h.checks {
		findings = append(findings, finding{c.name, c.ask()})
	}
	h.state.Store(&findings)
}

// serving says why calls cannot be served at all, nil if they can.
func (h *health) serving() error {
	findings := h.state.Load()
	if findings == nil {
		return fmt.Errorf("it is starting")
	}
	for _, f := range *findings {
		if f.err != nil && slices.Contains(h.gate, f.name) {
			return fmt.Errorf("%s: %w", f.name, f.err)
		}
	}
	return nil
}

// problems lists what keeps the broker from being ready.
func (h *health) problems() []string {
	findings := h.state.Load()
	if findings == nil {
		return []string{"starting"}
	}
	var problems []string
	for _, f := range *findings {
		if f.err != nil {
			problems = append(problems, fmt.Sprintf("%s: %v", f.name, f.err))
		}
	}
	return problems
}

// readyz answers 200 or 503; with ?verbose it lists every check.
func (h *health) readyz(w http.ResponseWriter, r *http.Request) {
	var text strings.Builder
	if findings := h.state.Load(); findings != nil {
		for _, f := range *findings {
			if f.err != nil {
				fmt.Fprintf(&text, "[-]%s: %v\n", f.name, f.err)
			} else {
				fmt.Fprintf(&text, "[+]%s ok\n", f.name)
			}
		}
	}
	if problems := h.problems(); len(problems) > 0 {
		http.Error(w, text.String()+"not ready", http.StatusServiceUnavailable)
		return
	}
	if r.URL.Query().Has("verbose") {
		if warning := h.warning(); warning != "" {
			fmt.Fprintf(&text, "[!]%s\n", warning)
		}
		fmt.Fprint(w, text.String())
	}
	fmt.Fprintln(w, "ok")
}
