package notify

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/rs/zerolog"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

// Event types.
const (
	ApprovalRequested = "dev.taskgate.approval.requested"
	ApprovalDecided   = "dev.taskgate.approval.decided"
	GrantRequested    = "dev.taskgate.taskgrant.requested"
	GrantDecided      = "dev.taskgate.taskgrant.decided"
)

// Event is what is told. ID has to be the same for the same happening, whoever
// tells it: the UID of the object and what became of it.
type Event struct {
	ID, Type, Subject string
	Time              time.Time
	Data              Data
}

// Data is the payload of an event. Text that an agent wrote is data: a receiver
// has to escape it for wherever it shows it.
type Data struct {
	Name      string     `json:"name"`
	Agent     string     `json:"agent"`
	Task      string     `json:"task"`
	Summary   string     `json:"summary,omitempty"`
	Gate      string     `json:"gate,omitempty"`
	Approvers int32      `json:"approvers,omitempty"`
	Groups    []string   `json:"groups,omitempty"`
	Verdict   string     `json:"verdict,omitempty"`
	By        []string   `json:"by,omitempty"`
	ExpiresAt *time.Time `json:"expiresAt,omitempty"`
}

// cloudEvent is the structured JSON form (CloudEvents 1.0.2, JSON format, 3).
type cloudEvent struct {
	SpecVersion     string    `json:"specversion"`
	ID              string    `json:"id"`
	Source          string    `json:"source"`
	Type            string    `json:"type"`
	Subject         string    `json:"subject"`
	Time            time.Time `json:"time"`
	DataContentType string    `json:"datacontenttype"`
	Data            Data      `json:"data"`
}

// Receiver is one place that is told.
type Receiver struct {
	URL string
	// Secret is the signing secret, in the form whsec_<base64>.
	Secret string
}

// Config says whom to tell. Cluster, Receivers and Log must be set.
type Config struct {
	Cluster   string
	Receivers []Receiver
	Log       zerolog.Logger
	// Pauses before each further attempt. Default: 5s, 30s, 2m, 5m.
	Pauses []time.Duration
}

const (
	queueLength    = 256
	attemptTimeout = 10 * time.Second
)

// Notifier tells receivers of events. Safe for concurrent use.
type Notifier struct {
	config    Config
	client    *http.Client
	receivers []receiver
}

type receiver struct {
	url     string
	webhook *standardwebhooks.Webhook
	queue   chan Event
}

// New checks the receivers; Run starts the work.
func New(config Config) (*Notifier, error) {
	if config.Pauses == nil {
		config.Pauses = []time.Duration{5 * time.Second, 30 * time.Second, 2 * time.Minute, 5 * time.Minute}
	}
	n := &Notifier{config: config, client: &http.Client{
		Timeout:       attemptTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	for _, r := range config.Receivers {
		if err := checkURL(r.URL); err != nil {
			return nil, err
		}
		webhook, err := standardwebhooks.NewWebhook(r.Secret)
		if err != nil || len(r.Secret) < 24 {
			return nil, errors.New("notify: the signing secret has to be whsec_ and at least 24 bytes in base64") // without what it is
		}
		n.receivers = append(n.receivers, receiver{r.URL, webhook, make(chan Event, queueLength)})
	}
	return n, nil
}

// checkURL wants HTTPS, except toward this machine.
func checkURL(text string) error {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.User != nil {
		return errors.New("notify: write a URL such as https://hooks.example.org/taskgate, without a password in it")
	}
	ip := net.ParseIP(u.Hostname())
	local := u.Hostname() == "localhost" || ip != nil && ip.IsLoopback()
	if u.Scheme != "https" && !(u.Scheme == "http" && local) {
		return fmt.Errorf("notify: %s://%s is not https", u.Scheme, u.Host)
	}
	return nil
}

// Send takes an event on; it never waits. A nil Notifier tells nobody, and of an
// event without a type nobody is told.
func (n *Notifier) Send(event Event) {
	if n == nil || event.Type == "" {
		return
	}
	for _, r := range n.receivers {
		select {
		case r.queue <- event:
		default:
			n.config.Log.Warn().Str("id", event.ID).Str("receiver", hostOf(r.url)).Msg("notifications wait for a receiver; dropping this one")
		}
	}
}

// Run delivers until ctx ends, and returns when all its goroutines have.
func (n *Notifier) Run(ctx context.Context) {
	if n == nil {
		return
	}
	var wait sync.WaitGroup
	for _, r := range n.receivers {
		wait.Go(func() {
			for {
				select {
				case <-ctx.Done():
					return
				case event := <-r.queue:
					n.deliver(ctx, r, event)
				}
			}
		})
	}
	wait.Wait()
}

// deliver tries until the receiver takes the event, refuses it for good, or the
// attempts are used up.
func (n *Notifier) deliver(ctx context.Context, r receiver, event Event) {
	for attempt := 0; ; attempt++ {
		again, err := n.attempt(ctx, r, event)
		if err == nil || ctx.Err() != nil {
			return
		}
		if !again || attempt == len(n.config.Pauses) {
			n.config.Log.Warn().Err(err).Str("id", event.ID).Str("receiver", hostOf(r.url)).Msg("a notification was not delivered")
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(n.config.Pauses[attempt]):
		}
	}
}

// attempt sends the event once. It reports whether to send it again; a receiver
// that says it is gone (410), or that the message is wrong, is not asked again.
func (n *Notifier) attempt(ctx context.Context, r receiver, event Event) (again bool, err error) {
	body, err := json.Marshal(cloudEvent{
		SpecVersion: "1.0", ID: event.ID, Source: "taskgate/" + n.config.Cluster, Type: event.Type, Subject: event.Subject,
		Time: event.Time.UTC(), DataContentType: "application/json", Data: event.Data,
	})
	if err != nil {
		return false, err
	}
	now := time.Now()
	signature, err := r.webhook.Sign(event.ID, now, body)
	if err != nil {
		return false, errors.New("the event cannot be signed")
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, r.url, bytes.NewReader(body))
	if err != nil {
		return false, errors.New("the URL cannot be used")
	}
	request.Header.Set("Content-Type", "application/cloudevents+json")
	request.Header.Set(standardwebhooks.HeaderWebhookID, event.ID)
	request.Header.Set(standardwebhooks.HeaderWebhookTimestamp, strconv.FormatInt(now.Unix(), 10))
	request.Header.Set(standardwebhooks.HeaderWebhookSignature, signature)
	response, err := n.client.Do(request)
	if err != nil {
		var failed *url.Error
		if errors.As(err, &failed) {
			err = failed.Err // the URL may hold a token in its path
		}
		return true, err
	}
	response.Body.Close()
	switch status := response.StatusCode; {
	case status >= 200 && status < 300:
		return false, nil
	case status == http.StatusTooManyRequests || status == http.StatusRequestTimeout || status >= 500:
		return true, fmt.Errorf("the receiver answered %d", status)
	default:
		return false, fmt.Errorf("the receiver answered %d", status)
	}
}

// hostOf is as much of a URL as may be logged.
func hostOf(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return ""
	}
	return u.Host
}
