package recorder_test

import (
	"context"
	"testing"
	"time"

	"github.com/taskgate/taskgate/internal/recordertest"
	"github.com/taskgate/taskgate/internal/spiffetest"
	"github.com/taskgate/taskgate/recorder"
)

// days is a bucket with one record per day for four days, in one stream.
func days(t *testing.T) (*fixture, time.Time) {
	f := newFixture(t)
	now := &clock{}
	f.config.Now, f.store.Now = now.Now, now.Now
	f.identity.Issue(t, f.ca, spiffetest.Leaf{ID: recordertest.BrokerID(), TTL: 200 * time.Hour})
	start := now.Now()
	r := f.open()
	for day := range 4 {
		event := recordertest.Outcome(recordertest.Call("a"), 200)
		event.Verb = []string{"get", "list", "get", "delete"}[day]
		if day == 3 {
			event.User.Username = "spiffe://example.org/ns/agents/sa/beta"
			event.Annotations[recorder.AnnotationDecision] = "deny"
			event.Annotations[recorder.AnnotationTask] = "INC-1"
			event.Annotations[recorder.AnnotationGrant] = "inc-1"
		}
		recordertest.Record(t, r, event)
		f.sealed(r)
		now.advance(24 * time.Hour)
	}
	f.close(r)
	return f, start
}

func TestScanFilters(t *testing.T) {
	f, start := days(t)
	day := 24 * time.Hour
	for name, test := range map[string]struct {
		filter recorder.Filter
		want   int
	}{
		"all":            {recorder.Filter{}, 4},
		"cluster":        {recorder.Filter{Cluster: "test"}, 4},
		"other cluster":  {recorder.Filter{Cluster: "other"}, 0},
		"agent":          {recorder.Filter{Agent: "spiffe://example.org/ns/agents/sa/beta"}, 1},
		"task":           {recorder.Filter{Task: "INC-4711"}, 3},
		"grant":          {recorder.Filter{Grant: "inc-1"}, 1},
		"verb":           {recorder.Filter{Verb: "get"}, 2},
		"decision":       {recorder.Filter{Decision: "deny"}, 1},
		"verb and agent": {recorder.Filter{Verb: "get", Agent: "spiffe://example.org/ns/agents/sa/beta"}, 0},
		"from":           {recorder.Filter{From: start.Add(day)}, 3},
		"to":             {recorder.Filter{To: start.Add(day)}, 1},
		"from and to":    {recorder.Filter{From: start.Add(day), To: start.Add(2*day + time.Minute)}, 2},
		"long before":    {recorder.Filter{To: start.Add(-day)}, 0},
		"long after":     {recorder.Filter{From: start.Add(10 * day)}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			got := 0
			for _, err := range recorder.Scan(context.Background(), f.store, test.filter) {
				if err != nil {
					t.Fatal(err)
				}
				got++
			}
			if got != test.want {
				t.Errorf("got %d records, want %d", got, test.want)
			}
		})
	}
}

func TestScanStopsAndFails(t *testing.T) {
	f, _ := days(t)
	for range recorder.Scan(context.Background(), f.store, recorder.Filter{}) {
		break
	}
	f.store.Replace(f.store.Keys("v1/journal/")[1], func(data []byte) []byte { return data[:20] })
	var failed error
	for _, err := range recorder.Scan(context.Background(), f.store, recorder.Filter{}) {
		failed = err
	}
	if failed == nil {
		t.Error("a broken segment was read without a word")
	}
}
