package broker

import (
	"net/http"
	"time"
)

// patientWriter is the writer of an answer. A write for which the agent makes no
// room within limit fails, and all after it: an agent that stops reading would
// otherwise hold up a call of the cluster for as long as its grant lasts. An answer
// on which nothing happens waits for nobody and is left alone.
type patientWriter struct {
	http.ResponseWriter
	limit time.Duration
}

func (p *patientWriter) Write(piece []byte) (int, error) {
	defer p.hurry()()
	return p.ResponseWriter.Write(piece)
}

// FlushError is what http.ResponseController calls.
func (p *patientWriter) FlushError() error {
	defer p.hurry()()
	return http.NewResponseController(p.ResponseWriter).Flush()
}

// Unwrap is for http.ResponseController.
func (p *patientWriter) Unwrap() http.ResponseWriter { return p.ResponseWriter }

// hurry has what is written until done is called fail after the limit. done waits
// for a deadline that is being set: the writer must not be touched after the handler
// has ended.
func (p *patientWriter) hurry() (done func()) {
	fired := make(chan struct{})
	timer := time.AfterFunc(p.limit, func() {
		defer close(fired)
		_ = http.NewResponseController(p.ResponseWriter).SetWriteDeadline(time.Now()) // cannot fail on the server's own writers
	})
	return func() {
		if !timer.Stop() {
			<-fired
		}
	}
}
