package bench

import (
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// Names of the contenders.
const (
	Direct     = "direct"
	Twin       = "twin"
	Taskgate   = "taskgate"
	Unrecorded = "unrecorded"
)

// contender is one way to the API server.
type contender struct {
	name   string
	url    string
	header http.Header // what every request carries
	tls    *tls.Config
	// lag is how long work for a call may go on after its answer, and so how long
	// it takes until all work is in full swing.
	lag time.Duration
	// hops are the processes of this contender alone, the client's side first.
	hops []component
}

// component is a process that costs something. Its pid changes with a restart.
type component struct {
	name string
	pid  func() int
}

// call is a kind of request. Its want is the only answer that counts.
type call struct {
	method, path, body string
	want               int
}

// send makes one call and reads the whole answer. Whatever is not the wanted
// answer is an error: a benchmark of refusals is worth nothing.
func (c *contender) send(transport http.RoundTripper, what call, buffer []byte) (int64, error) {
	answer, err := c.open(transport, what)
	if err != nil {
		return 0, err
	}
	defer func() { _ = answer.Body.Close() }() // read to its end below
	bytes, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{answer.Body}, buffer)
	if err != nil {
		return bytes, fmt.Errorf("%s %s through %s: reading the answer: %w", what.method, what.path, c.name, err)
	}
	return bytes, nil
}

// open makes one call and returns when the wanted answer begins.
func (c *contender) open(transport http.RoundTripper, what call) (*http.Response, error) {
	var body io.Reader
	if what.body != "" {
		body = strings.NewReader(what.body)
	}
	request, err := http.NewRequest(what.method, c.url+what.path, body)
	if err != nil {
		return nil, fmt.Errorf("making a request: %w", err)
	}
	for name, values := range c.header {
		request.Header[name] = values
	}
	if body != nil {
		request.Header["Content-Type"] = []string{"application/json"}
	}
	answer, err := transport.RoundTrip(request)
	if err != nil {
		return nil, fmt.Errorf("%s %s through %s: %w", what.method, what.path, c.name, err)
	}
	if answer.StatusCode != what.want {
		defer func() { _ = answer.Body.Close() }() // of no use
		text, _ := io.ReadAll(io.LimitReader(answer.Body, 1<<10))
		return nil, fmt.Errorf("%s %s through %s: %s: %s", what.method, what.path, c.name, answer.Status, text)
	}
	return answer, nil
}
