package broker

import (
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

// TestPatientWriter: an agent that stops reading is let go; one that reads, however
// late, and one that is told nothing for a while, are not.
func TestPatientWriter(t *testing.T) {
	const limit = 300 * time.Millisecond
	for name, two := range map[string]bool{"HTTP/1.1": false, "HTTP/2": true} {
		t.Run(name, func(t *testing.T) {
			ended := make(chan error, 1)
			server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				p := &patientWriter{ResponseWriter: w, limit: limit}
				if r.URL.Path == "/stalls" {
					var err error
					for piece := make([]byte, 64<<10); err == nil; {
						_, err = p.Write(piece)
					}
					_, again := p.Write([]byte("x"))
					if again == nil {
						err = nil
					}
					ended <- err
					panic(http.ErrAbortHandler)
				}
				for range 2 {
					_, _ = p.Write([]byte("a line\n")) // shows in what arrives
					_ = p.FlushError()
					time.Sleep(2 * limit)
				}
			}))
			server.EnableHTTP2 = two
			server.StartTLS()
			defer server.Close()

			answer, err := server.Client().Get(server.URL + "/waits")
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(answer.Body)
			_ = answer.Body.Close() // was read
			if err != nil || string(body) != "a line\na line\n" {
				t.Errorf("of an answer with pauses %q arrived: %v", body, err)
			}
			stalled, err := server.Client().Get(server.URL + "/stalls")
			if err != nil {
				t.Fatal(err)
			}
			defer stalled.Body.Close()
			if two != (stalled.ProtoMajor == 2) {
				t.Fatalf("this is %s", stalled.Proto)
			}
			select {
			case err := <-ended:
				if err == nil {
					t.Error("a write after the end passed")
				}
			case <-time.After(time.Minute):
				t.Error("nobody reads, and the answer goes on")
			}
		})
	}
}
