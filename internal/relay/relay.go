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
	idleSize = 512
	bulkSize = 64 << 10
)

var bulk = sync.Pool{New: func() any { return new([bulkSize]byte) }}

// Body copies from until its end. With live set each piece is flushed as it
// comes (watch, follow); otherwise the server's own buffering decides. tap, if
// not nil, sees each piece before it is written, and an error of tap ends the
// copy before the piece goes out. The count is of bytes written.
func Body(to http.ResponseWriter, from io.Reader, live bool, tap func([]byte) error) (int64, error) {
	c := copier{to: to, from: from, tap: tap}
	if !live {
		for {
			if _, err := c.burst(); err != nil {
				return c.ended(err)
			}
		}
	}
	c.flush = http.NewResponseController(to).Flush
	if err := c.flush(); err != nil {
		return 0, err
	}
	// It waits with a small buffer, so that a thousand idle watches are cheap, and
	// borrows a large one for what comes at once.
	idle := make([]byte, idleSize)
	for {
		n, err := c.piece(idle)
		for full := n == len(idle); full && err == nil; full = n == bulkSize {
			n, err = c.burst()
		}
		if err != nil {
			return c.ended(err)
		}
	}
}

// copier moves the pieces of one body.
type copier struct {
	to    io.Writer
	from  io.Reader
	tap   func([]byte) error
	flush func() error // nil: not after each piece
	total int64
}

// burst moves what can be read with a borrowed buffer.
func (c *copier) burst() (int, error) {
	buffer := bulk.Get().(*[bulkSize]byte)
	defer bulk.Put(buffer)
	return c.piece(buffer[:])
}

// piece moves what one read returns, and reports how much that was. io.EOF is
// the end of the body.
func (c *copier) piece(buffer []byte) (int, error) {
	n, err := c.from.Read(buffer)
	if n == 0 {
		return 0, err
	}
	if c.tap != nil {
		if err := c.tap(buffer[:n]); err != nil {
			return n, err
		}
	}
	written, writeErr := c.to.Write(buffer[:n])
	c.total += int64(written)
	if writeErr == nil && c.flush != nil {
		writeErr = c.flush()
	}
	if writeErr != nil {
		return n, writeErr
	}
	return n, err
}

// ended is what Body returns.
func (c *copier) ended(err error) (int64, error) {
	if err == io.EOF {
		return c.total, nil
	}
	return c.total, err
}
