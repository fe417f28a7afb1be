package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// profileEndpoint is the socket of a program built with profiles (variant.go).
type profileEndpoint struct{ client *http.Client }

func newProfileEndpoint(socket string) profileEndpoint {
	return profileEndpoint{&http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}}
}

func (e profileEndpoint) get(ctx context.Context, path string) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://profiles"+path, nil)
	if err != nil {
		return nil, fmt.Errorf("asking for a profile: %w", err)
	}
	answer, err := e.client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("asking for a profile: %w", err)
	}
	defer func() { _ = answer.Body.Close() }() // read to its end below
	content, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", answer.Status, content)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the profile %s: %w", path, err)
	}
	return content, nil
}

// runtimeMemory is what Go's runtime says about itself, see runtime.MemStats.
type runtimeMemory struct {
	Mallocs      float64 `json:"mallocs"`
	TotalAlloc   float64 `json:"totalAlloc"`
	HeapAlloc    float64 `json:"heapAlloc"`
	HeapInuse    float64 `json:"heapInuse"`
	HeapIdle     float64 `json:"heapIdle"`
	HeapReleased float64 `json:"heapReleased"`
	StackInuse   float64 `json:"stackInuse"`
	Sys          float64 `json:"sys"`
	NumGC        float64 `json:"numGC"`
	Goroutines   float64 `json:"goroutines"`
}

func (m runtimeMemory) minus(o runtimeMemory) runtimeMemory {
	return runtimeMemory{
		Mallocs: m.Mallocs - o.Mallocs, TotalAlloc: m.TotalAlloc - o.TotalAlloc, HeapAlloc: m.HeapAlloc - o.HeapAlloc,
		HeapInuse: m.HeapInuse - o.HeapInuse, HeapIdle: m.HeapIdle - o.HeapIdle, HeapReleased: m.HeapReleased - o.HeapReleased,
		StackInuse: m.StackInuse - o.StackInuse, Sys: m.Sys - o.Sys, NumGC: m.NumGC - o.NumGC, Goroutines: m.Goroutines - o.Goroutines,
	}
}

// memory asks for it; collect has everything thrown away first that can be.
func (e profileEndpoint) memory(ctx context.Context, collect bool) (runtimeMemory, error) {
	path := "/memory"
	if collect {
		path += "?collect=1"
	}
	content, err := e.get(ctx, path)
	if err != nil {
		return runtimeMemory{}, err
	}
	var found runtimeMemory
	if err := json.Unmarshal(content, &found); err != nil {
		return runtimeMemory{}, fmt.Errorf("reading the memory of the runtime: %w", err)
	}
	return found, nil
}

// underLoad watches a process for a while.
func (e profileEndpoint) underLoad(ctx context.Context, duration time.Duration) (hopProfile, error) {
	var found hopProfile
	var err error
	if found.before, err = e.memory(ctx, false); err != nil {
		return found, err
	}
	if found.cpu, err = e.get(ctx, fmt.Sprintf("/debug/pprof/profile?seconds=%d", int(duration.Seconds()))); err != nil {
		return found, err
	}
	found.after, err = e.memory(ctx, false)
	return found, err
}

// idleProfile is a process at rest.
type idleProfile struct {
	heap, goroutines []byte // pprof
	memory           runtimeMemory
	resident         int64
}

func (e profileEndpoint) idle(ctx context.Context, pid int) (idleProfile, error) {
	var found idleProfile
	var err error
	if found.memory, err = e.memory(ctx, true); err != nil {
		return found, err
	}
	held, err := memoryOf(pid)
	if err != nil {
		return found, err
	}
	found.resident = held.resident
	if found.heap, err = e.get(ctx, "/debug/pprof/heap?gc=1"); err != nil {
		return found, err
	}
	found.goroutines, err = e.get(ctx, "/debug/pprof/goroutine")
	return found, err
}
