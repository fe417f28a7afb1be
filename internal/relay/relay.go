// Package relay moves one HTTP response from the next hop to the caller.
//
// Both hops (sidecar and broker) do exactly this with every answer, and the
// rules must not drift apart: which headers pass, when bytes are flushed, how
// much memory an idle watch may hold. It decides nothing and knows no identity.
// It is used in place of httputil.ReverseProxy, which clones the request and
// holds 32 KiB for each idle watch; net/http keeps the parsing.
package relay

import (
	"io"
	"net/http"
	"sync"
)

// passed are the response headers that mean something to a Kubernetes client.
// All others (hop-by-hop ones, cookies, Alt-Svc, …) end here.
var passed = []string{
	"Audit-Id", "Cache-Control", "Content-Encoding", "Content-Length", "Content-Type", "Date",
	"Etag", "Last-Modified", "Retry-After", "Vary", "Warning",
	"X-Kubernetes-Pf-Flowschema-Uid", "X-Kubernetes-Pf-Prioritylevel-Uid",
}

// Headers copies the headers of an answer that may pass. It shares the value
// slices: from must not be changed afterwards.
func Headers(to, from http.Header) {
	for _, name := range passed {
		if values := from[name]; len(values) > 0 {
			to[name] = values
		}
	}
}

const (
	// idleSize is what a stream holds while nothing happens on it.
	idleSize = 2 << 10
	bulkSize = 64 << 10
)

var bulk = sync.Pool{New: func() any { return new([bulkSize]byte) }}

// Body copies from until its end. With live set each piece is flushed as it
// comes (watch, follow); otherwise the server's own buffering decides. tap, if
// not nil, sees each piece before it is written, and an error of tap ends the
// copy before the piece goes out. The count is of bytes written.
func Body(to http.ResponseWriter, from io.Reader, live bool, tap func([]byte) error) (int64, error) {
	if live {
		return liveBody(to, from, tap)
	}
	buffer := bulk.Get().(*[bulkSize]byte)
	defer bulk.Put(buffer)
	return copyWith(to, from, buffer[:], nil, tap)
}

// liveBody reads with a small buffer, so that a thousand idle watches are cheap.
// What a busy stream loses in larger system calls it has in HTTP/2 framing anyway.
func liveBody(to http.ResponseWriter, from io.Reader, tap func([]byte) error) (int64, error) {
	control := http.NewResponseController(to)
	if err := control.Flush(); err != nil {
		return 0, err
	}
	return copyWith(to, from, make([]byte, idleSize), control.Flush, tap)
}

func copyWith(to io.Writer, from io.Reader, buffer []byte, flush func() error, tap func([]byte) error) (int64, error) {
	var total int64
	for {
		n, readErr := from.Read(buffer)
		if n > 0 {
			piece := buffer[:n]
			if tap != nil {
				if err := tap(piece); err != nil {
					return total, err
				}
			}
			written, err := to.Write(piece)
			total += int64(written)
			if err != nil {
				return total, err
			}
			if flush != nil {
				if err := flush(); err != nil {
					return total, err
				}
			}
		}
		if readErr == io.EOF {
			return total, nil
		}
		if readErr != nil {
			return total, readErr
		}
	}
}
