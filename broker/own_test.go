package broker

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/taskgate/taskgate/authz"
	"github.com/taskgate/taskgate/recorder"
)

const (
	ownGrants = "/apis/taskgate.dev/v1alpha1/taskgrants"
	ownGrant  = `{"kind":"TaskGrant","metadata":{"name":"g","uid":"uid-g"},"spec":{"agent":"` + alphaID + `","task":"INC-1","policy":"shop"}}`
	ownAsk    = `{"kind":"TaskGrant","apiVersion":"taskgate.dev/v1alpha1","metadata":{"name":"g"},"spec":{"task":"INC-1","ttl":"1m","rules":[]}}`
)

// answerGrants answers as a control cluster that knows one grant.
func answerGrants(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	if r.Method == "POST" {
		w.WriteHeader(http.StatusCreated)
	}
	if strings.HasSuffix(r.URL.Path, "/taskgrants") && r.Method == "GET" {
		fmt.Fprintf(w, `{"kind":"TaskGrantList","items":[%s]}`, ownGrant)
		return
	}
	io.WriteString(w, ownGrant)
}

// TestOwnObjects: calls about an agent's own objects go to the control cluster
// under the broker's own account, and on record like any other.
func TestOwnObjects(t *testing.T) {
	r := newRig(t)
	r.stub.set(answerGrants)
	r.policy(func(*authz.Policy) {})
	var ids []string
	for _, call := range []struct {
		method, target, body string
		code                 int
	}{
		{"POST", ownGrants, ownAsk, 201}, {"GET", ownGrants, "", 200}, {"GET", ownGrants + "/g", "", 200}, {"DELETE", ownGrants + "/g", "", 200},
	} {
		header := http.Header{"Content-Type": {"application/json"}}
		got := r.do(call.method, call.target, header, call.body)
		if got.code != call.code {
			t.Fatalf("%s %s: %d %s", call.method, call.target, got.code, got.body)
		}
		ids = append(ids, got.header.Get(headerAuditID))
	}
	for _, q := range r.stub.requests() {
		for name := range q.Header {
			if strings.HasPrefix(name, "Impersonate-") {
				t.Errorf("%s %s carries %s", q.Method, q.URL, name)
			}
		}
		if q.Header.Get(headerAuthorization) != "Bearer brokers-own-token" || q.Header.Get(headerAuditID) == "" {
			t.Errorf("%s %s: %v", q.Method, q.URL, q.Header)
		}
	}
	all := r.recorded()
	for i, id := range ids {
		records := of(all, id)
		if len(records) != 2 || records[0].Stage != recorder.StageRequestReceived || records[1].Stage != recorder.StageResponseComplete {
			t.Fatalf("call %d has the records %+v", i, records)
		}
		if records[0].ImpersonatedUser != nil || records[0].Annotations[recorder.AnnotationDecision] != "allow" {
			t.Errorf("call %d: %+v", i, records[0])
		}
		grant := records[1].Annotations[recorder.AnnotationGrant]
		if mutation := i == 0 || i == 3; (grant == "g") != mutation {
			t.Errorf("the outcome of call %d names the grant %q", i, grant)
		}
	}
}

// TestOwnObjectsUnrecorded: nothing is asked of the control cluster before the
// intent of a mutation is durable, and nothing is shown before that of a read.
func TestOwnObjectsUnrecorded(t *testing.T) {
	r := newRig(t)
	r.stub.set(answerGrants)
	r.policy(func(*authz.Policy) {})
	r.close()
	for _, row := range []struct{ method, target, body string }{{"POST", ownGrants, ownAsk}, {"DELETE", ownGrants + "/g", ""}, {"GET", ownGrants, ""}} {
		got := r.do(row.method, row.target, http.Header{"Content-Type": {"application/json"}}, row.body)
		if got.code != 503 || got.reason() != "RecorderUnavailable" || strings.Contains(got.body, "uid-g") {
			t.Errorf("%s: %d %s", row.method, got.code, got.body)
		}
	}
	if seen := r.stub.requests(); len(seen) != 0 {
		t.Errorf("the control cluster was asked %d times", len(seen))
	}
}

// TestOwnWatchEnds with what allows it.
func TestOwnWatchEnds(t *testing.T) {
	for _, row := range []struct {
		name   string
		end    func(*rig)
		reason string
	}{
		{"suspended", func(r *rig) { r.policy(func(p *authz.Policy) { p.Suspended = true }) }, "PolicyDenied"},
		{"policy gone", func(r *rig) {
			if err := r.boundary.index.DeletePolicy("shop"); err != nil {
				r.Error(err)
			}
		}, "NoGrant"},
		{"stale", func(r *rig) { r.shift.Store(int64(25 * time.Hour)) }, "IdentityExpired"}, // both are over; who it is comes first
		{"shut down", func(r *rig) { r.boundary.live.close(unavailable(authz.NotReady, "ShuttingDown", "over")) }, "NotReady"},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := newRig(t)
			r.policy(func(*authz.Policy) {})
			r.stub.set(endless(`{"type":"ADDED","object":` + ownGrant + "}\n"))
			_, reader := r.open(ownGrants + "?watch=true")
			row.end(r)
			line, err := reader.ReadString('\n')
			if err != nil || !strings.Contains(line, `"type":"ERROR"`) || !strings.Contains(line, "[taskgate:"+row.reason+"]") {
				t.Errorf("it ends with %q %v", line, err)
			}
		})
	}
}

// TestOwnWatchStreams: an event is passed on when it comes, and the answer says
// what the broker was told to say.
func TestOwnWatchStreams(t *testing.T) {
	r := newRig(t)
	r.policy(func(*authz.Policy) {})
	next := make(chan string)
	r.stub.set(func(w http.ResponseWriter, q *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = http.NewResponseController(w).Flush()
		for {
			select {
			case line := <-next:
				io.WriteString(w, line)
				_ = http.NewResponseController(w).Flush()
			case <-q.Context().Done():
				return
			}
		}
	})
	response, err := r.client("h2").Get("https://" + r.address + ownGrants + "?watch=true")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	lines := bufio.NewReader(response.Body)
	for i := range 3 {
		next <- `{"type":"ADDED","object":{"metadata":{"name":"theirs"},"spec":{"agent":"spiffe://example.org/else"}}}` + "\n"
		next <- strings.Replace(`{"type":"ADDED","object":`+ownGrant+"}\n", "uid-g", fmt.Sprint("uid-", i), 1)
		line, err := lines.ReadString('\n')
		var event struct{ Object json.RawMessage }
		if err != nil || json.Unmarshal([]byte(line), &event) != nil || !strings.Contains(line, fmt.Sprint("uid-", i)) {
			t.Fatalf("%d: %q %v", i, line, err)
		}
	}
}
