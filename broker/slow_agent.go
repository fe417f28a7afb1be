package broker

import (
	"net/http"
	"time"
)

// patientWriter is the writer of an answer. A write for which the agent makes no room
// within limit fails: an agent that stops reading would otherwise hold up a call of
// the cluster for as long as its grant lasts. An answer on which nothing happens
// waits for nobody and is left alone.
type patientWriter struct {
	http.ResponseWriter
	limit time.Duration

	timer *time.Timer   // runs while a write does; nil before the first
	fired chan struct{} // closed when the timer has done its work
	over  bool          // it has: every further write fails at once
}

func (p *patientWriter) Write(piece []byte) (int, error) {
	p.begin()
	defer p.end()
	return p.ResponseWriter.Write(piece)
}

// FlushError is what http.ResponseController calls.
func (p *patientWriter) FlushError() error {
	p.begin()
	defer p.end()
	return http.NewResponseController(p.ResponseWriter).Flush()
}

// Unwrap is for http.ResponseController.
func (p *patientWriter) Unwrap() http.ResponseWriter { return p.ResponseWriter }

func (p *patientWriter) begin() {
	switch {
	case p.over:
	case p.timer != nil:
		p.timer.Reset(p.limit)
	default:
		p.fired = make(chan struct{})
		p.timer = time.AfterFunc(p.limit, func() {
			defer close(p.fired)
			_ = http.NewResponseController(p.ResponseWriter).SetWriteDeadline(time.Now()) // cannot fail on the server's own writers
		})
	}
}

// end waits for a timer that is at work: the writer must not be touched after the
// handler has ended.
func (p *patientWriter) end() {
	if !p.over && !p.timer.Stop() {
		<-p.fired
		p.over = true
	}
}
