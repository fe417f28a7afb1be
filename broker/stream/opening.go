package stream

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// maxAnswer bounds what is kept of an answer that is no switch, in bytes; readers
// of it have bounds of their own.
const maxAnswer = 64 << 10

// opening is a connection while the WebSocket library shakes hands on it. The
// library keeps the first kilobyte of a refusal and closes; here the answer is
// kept as it came, for net/http to read it whole.
type opening struct {
	*link

	mu        sync.Mutex
	shaken    bool // nothing is kept any more, and Close closes
	abandoned bool
	seen      bytes.Buffer
}

// take begins with a connection that was dialed.
func (o *opening) take(conn net.Conn) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.link = newLink(conn)
	if o.abandoned {
		o.link.Close()
	}
}

// abandon ends the shaking of hands.
func (o *opening) abandon() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.abandoned = true
	if o.link != nil {
		o.link.Close()
	}
}

// Read implements io.Reader.
func (o *opening) Read(p []byte) (int, error) {
	n, err := o.link.Read(p)
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.shaken && o.seen.Len()+n <= maxAnswer {
		o.seen.Write(p[:n])
	}
	return n, err
}

// Close leaves the connection open as long as its answer may still be read.
func (o *opening) Close() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.shaken {
		return nil
	}
	return o.link.Close()
}

// done says that the library has the connection.
func (o *opening) done() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.shaken, o.seen = true, bytes.Buffer{}
}

// close ends a connection, if there is one.
func (o *opening) close() error {
	o.done()
	if o.link == nil {
		return nil
	}
	return o.link.Close()
}

// answer reads what the server said instead of switching.
func (o *opening) answer(r *http.Request) (*http.Response, error) {
	const patience = 10 * time.Second
	_ = o.link.SetDeadline(time.Now().Add(patience)) // a connection that takes none fails to be read
	answer, err := http.ReadResponse(bufio.NewReader(io.MultiReader(&o.seen, o.link)), r)
	if err != nil {
		return nil, errors.Join(err, o.close())
	}
	answer.Body = &lastBody{answer.Body, o}
	return answer, nil
}

// lastBody is the body of an answer that ends its connection.
type lastBody struct {
	io.ReadCloser
	of *opening
}

// Close implements io.Closer.
func (b *lastBody) Close() error { return b.of.close() }
