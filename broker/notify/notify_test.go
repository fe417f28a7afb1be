package notify

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

const secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

// inbox is a receiver that checks every signature and answers as told.
type inbox struct {
	mu      sync.Mutex
	answers []int
	got     []cloudEvent
	ids     []string
	arrived chan struct{}
}

func (i *inbox) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	defer i.mu.Unlock()
	body, _ := io.ReadAll(r.Body)
	webhook, _ := standardwebhooks.NewWebhook(secret)
	var event cloudEvent
	if webhook.Verify(body, r.Header) != nil || json.Unmarshal(body, &event) != nil {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	i.got, i.ids = append(i.got, event), append(i.ids, r.Header.Get("Webhook-Id"))
	status := http.StatusNoContent
	if len(i.answers) > 0 {
		status, i.answers = i.answers[0], i.answers[1:]
	}
	if status == http.StatusFound {
		w.Header().Set("Location", "/elsewhere")
	}
	w.WriteHeader(status)
	i.arrived <- struct{}{}
}

func start(t *testing.T, i *inbox) (*Notifier, *strings.Builder) {
	t.Helper()
	i.arrived = make(chan struct{}, 64)
	server := httptest.NewServer(i)
	var log strings.Builder
	n, err := New(Config{Cluster: "test", Receivers: []Receiver{{server.URL + "/token-in-path", secret}}, Log: zerolog.New(&log), Pauses: []time.Duration{time.Millisecond, time.Millisecond}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); n.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done; server.Close() })
	return n, &log
}

func event(id string) Event {
	return Event{ID: id, Type: ApprovalRequested, Subject: "approval/ap-1", Time: time.Unix(1_800_000_000, 0),
		Data: Data{Name: "ap-1", Agent: "spiffe://example.org/a", Task: "INC-1", Summary: "delete\n\x1b[2J", Gate: "namespace-delete"}}
}

// TestDelivery: a receiver that stumbles gets the same event again, and one that
// refuses does not.
func TestDelivery(t *testing.T) {
	for name, row := range map[string]struct {
		answers []int
		want    int
	}{
		"taken":               {nil, 1},
		"stumbles":            {[]int{500, 429}, 3},
		"stumbles too often":  {[]int{500, 500, 500, 500}, 3},
		"gone":                {[]int{410}, 1},
		"redirects elsewhere": {[]int{302}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			i := &inbox{answers: row.answers}
			n, _ := start(t, i)
			n.Send(event("uid-1.requested"))
			for range row.want {
				<-i.arrived
			}
			i.mu.Lock()
			i.answers = nil
			i.mu.Unlock()
			n.Send(event("uid-2.requested")) // what comes next proves that no attempt is left
			<-i.arrived
			i.mu.Lock()
			defer i.mu.Unlock()
			for at, got := range i.got[:row.want] {
				if got.ID != "uid-1.requested" || i.ids[at] != got.ID || got.SpecVersion != "1.0" || got.Source != "taskgate/test" || got.Data.Gate != "namespace-delete" {
					t.Errorf("attempt %d: %+v as %s", at, got, i.ids[at])
				}
			}
			if len(i.got) != row.want+1 || i.got[row.want].ID != "uid-2.requested" {
				t.Errorf("got %+v", i.got)
			}
		})
	}
}

// TestSendNeverWaits for a receiver that hangs; what does not fit is dropped.
func TestSendNeverWaits(t *testing.T) {
	n, err := New(Config{Cluster: "test", Receivers: []Receiver{{"http://127.0.0.1:1", secret}}, Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	for range queueLength + 10 { // nobody takes anything out: Run was not called
		n.Send(event("x"))
	}
	(*Notifier)(nil).Send(event("x"))
}

func TestReceivers(t *testing.T) {
	for _, r := range []Receiver{
		{"http://hooks.example.org", secret}, {"ftp://localhost/x", secret}, {"", secret}, {"https://user:password@example.org", secret},
		{"https://example.org", ""}, {"https://example.org", "whsec_!"}, {"https://example.org", "whsec_YQ=="},
	} {
		if _, err := New(Config{Receivers: []Receiver{r}}); err == nil {
			t.Errorf("%+v is accepted", r)
		} else if strings.Contains(err.Error(), "password") && strings.Contains(err.Error(), "user") {
			t.Errorf("the error holds the URL's password: %v", err)
		}
	}
}

// TestLogs hold neither the path of a URL, which may be a token, nor the secret.
func TestLogs(t *testing.T) {
	i := &inbox{answers: []int{410}}
	n, log := start(t, i)
	n.Send(event("uid-1"))
	<-i.arrived
	n.Send(event("uid-2"))
	<-i.arrived
	if text := log.String(); !strings.Contains(text, "was not delivered") || strings.Contains(text, "token-in-path") || strings.Contains(text, secret) {
		t.Errorf("the log says %s", text)
	}
}
