package tasks

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"github.com/taskgate/taskgate/api/v1alpha1"
	"github.com/taskgate/taskgate/authz"
	"github.com/taskgate/taskgate/broker/request"
)

const (
	alpha = "spiffe://example.org/ns/agents/sa/alpha"
	beta  = "spiffe://example.org/ns/agents/sa/beta"
)

// rig is a server before a control cluster that answers what a test wants: also
// what no API server would, to show that nothing rests on its selectors alone.
type rig struct {
	*testing.T
	server *Server
	index  *authz.Index
	now    time.Time

	mu       sync.Mutex
	seen     []string // method, path and query
	bodies   []string
	released []string
	code     int
	answer   string
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{T: t, now: time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC), code: 200}
	control := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		body, _ := io.ReadAll(q.Body)
		r.mu.Lock()
		defer r.mu.Unlock()
		r.seen, r.bodies = append(r.seen, q.Method+" "+q.URL.String()), append(r.bodies, string(body))
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Warning", `299 - "deprecated"`)
		w.WriteHeader(r.code)
		io.WriteString(w, r.answer)
	}))
	t.Cleanup(control.Close)
	var err error
	if r.index, err = authz.NewIndex(authz.Boundary{}); err != nil {
		t.Fatal(err)
	}
	r.server, err = New(Config{
		Control: &rest.Config{Host: control.URL}, Index: r.index, Now: func() time.Time { return r.now },
		Release: func(_ context.Context, name, uid, version string) error {
			r.released = append(r.released, name+" "+uid+" "+version)
			return nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// ask reads a request as the broker does.
func (r *rig) ask(method, target, accept, body string) Ask {
	r.Helper()
	q := httptest.NewRequest(method, target, strings.NewReader(body))
	q.RequestURI = target
	if body != "" {
		q.Header.Set("Content-Type", "application/json")
	}
	parsed, refused := request.NewParser().Parse(q)
	if refused != nil {
		r.Fatalf("%s %s: %v", method, target, refused)
	}
	return Ask{Agent: alpha, Policies: []string{"shop"}, Request: parsed, Accept: accept, AuditID: "a"}
}

// do makes a call and returns its status and body.
func (r *rig) do(ask Ask) (int, string) {
	r.Helper()
	call, refused := r.server.Prepare(ask)
	if refused != nil {
		return refused.Status, refused.Error()
	}
	defer call.Close()
	response, err := call.Do(context.Background())
	if err != nil {
		return 0, err.Error()
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return 0, string(body) + err.Error()
	}
	return response.StatusCode, string(body)
}

const (
	grants    = "/apis/taskgate.dev/v1alpha1/taskgrants"
	approvals = "/apis/taskgate.dev/v1alpha1/approvals"
	tables    = "application/json;as=Table;v=v1;g=meta.k8s.io"
	partials  = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
)

func grant(name, agent string, more ...string) string {
	return fmt.Sprintf(`{"kind":"TaskGrant","metadata":{"name":%q,"resourceVersion":"7","uid":"uid-%s"},"spec":{"agent":%q}%s}`, name, name, agent, strings.Join(more, ""))
}

const isReleased = `,"status":{"conditions":[{"type":"Ended","status":"True"},{"type":"Released","status":"True"}]}`

// TestNothingOfOthers: objects that are not provably the agent's own are left out,
// even if the control cluster ignores the selector.
func TestNothingOfOthers(t *testing.T) {
	items := []string{
		grant("theirs", beta), grant("mine", alpha), grant("given-back", alpha, isReleased), `{"metadata":{"name":"agentless"},"spec":{}}`,
		`{"metadata":{"name":"specless"}}`, `{"spec":{"agent":["` + alpha + `"]},"metadata":{"name":"odd"}}`, `{}`, grant("mine-too", alpha),
	}
	list := `{"apiVersion":"taskgate.dev/v1alpha1","items":[` + strings.Join(items, ",") + `],"kind":"TaskGrantList","metadata":{"continue":"c","remainingItemCount":9,"resourceVersion":"1"}}`
	var rows, events, tableEvents []string
	for i, item := range items {
		rows = append(rows, `{"cells":["cell"],"object":`+item+`}`)
		events = append(events, `{"type":"ADDED","object":`+item+`}`)
		columns := "null"
		if i == 0 {
			columns = `[{"name":"Name"}]`
		}
		tableEvents = append(tableEvents, `{"type":"ADDED","object":{"kind":"Table","apiVersion":"meta.k8s.io/v1","columnDefinitions":`+columns+`,"rows":[{"cells":["cell"],"object":`+item+`}]}}`)
	}
	table := `{"kind":"Table","apiVersion":"meta.k8s.io/v1","metadata":{"resourceVersion":"1"},"columnDefinitions":[{"name":"Name"}],"rows":[` + strings.Join(append(rows, `{"cells":["theirs"]}`, `{"cells":["theirs"],"object":null}`), ",") + `]}`
	for _, row := range []struct{ name, target, accept, answer, want string }{
		{"list", grants, "", list, `{"apiVersion":"taskgate.dev/v1alpha1","items":[` + items[1] + "," + items[7] + `],"kind":"TaskGrantList","metadata":{"continue":"c","resourceVersion":"1"}}`},
		{"metadata", grants, partials, list, `{"apiVersion":"meta.k8s.io/v1","items":[{"apiVersion":"meta.k8s.io/v1","kind":"PartialObjectMetadata","metadata":{"name":"mine","resourceVersion":"7","uid":"uid-mine"}},` +
			`{"apiVersion":"meta.k8s.io/v1","kind":"PartialObjectMetadata","metadata":{"name":"mine-too","resourceVersion":"7","uid":"uid-mine-too"}}],"kind":"PartialObjectMetadataList","metadata":{"continue":"c","resourceVersion":"1"}}`},
		{"table", grants + "?includeObject=None", tables, table, `{"kind":"Table","apiVersion":"meta.k8s.io/v1","metadata":{"resourceVersion":"1"},"columnDefinitions":[{"name":"Name"}],"rows":[{"cells":["cell"],"object":null},{"cells":["cell"],"object":null}]}`},
		{"empty", grants, "", `{"kind":"TaskGrantList","items":null}`, `{"kind":"TaskGrantList","items":[]}`},
		{"watch", grants + "?watch=true", "", strings.Join(events, "\n"), `{"type":"ADDED","object":` + items[1] + "}\n" + `{"type":"ADDED","object":` + items[7] + `}`},
		{"table watch", grants + "?watch=true&includeObject=None", tables, strings.Join(tableEvents, "\n"),
			`{"type":"ADDED","object":{"apiVersion":"meta.k8s.io/v1","columnDefinitions":[{"name":"Name"}],"kind":"Table","rows":[{"cells":["cell"],"object":null}]}}` + "\n" +
				`{"type":"ADDED","object":{"apiVersion":"meta.k8s.io/v1","columnDefinitions":null,"kind":"Table","rows":[{"cells":["cell"],"object":null}]}}`},
	} {
		r := newRig(t)
		r.answer = row.answer
		code, body := r.do(r.ask("GET", row.target, row.accept, ""))
		if code != 200 || strings.TrimSpace(body) != strings.TrimSpace(row.want) {
			t.Errorf("%s:\n got %d %s\nwant %s", row.name, code, body, row.want)
		}
		if !strings.Contains(r.seen[0], "fieldSelector=spec.agent%3Dspiffe") {
			t.Errorf("%s asked for %s", row.name, r.seen[0])
		}
		// Cut anywhere, it is an error or whole events, never a whole list.
		if row.name == "list" || row.name == "table" {
			for cut := range len(row.answer) - 1 {
				r.answer = row.answer[:cut]
				if code, body := r.do(r.ask("GET", row.target, row.accept, "")); code != 0 {
					t.Fatalf("%s cut at %d: %d %s", row.name, cut, code, body)
				}
			}
		}
	}
	for _, item := range append(items[:1:1], items[2:7]...) {
		r := newRig(t)
		r.answer = item
		code, body := r.do(r.ask("GET", grants+"/x", "", ""))
		r.code, r.answer = 404, `{"kind":"Status","message":"another text"}`
		if none, said := r.do(r.ask("GET", grants+"/x", "", "")); code != 404 || none != 404 || body != said {
			t.Errorf("get %s: %d %s, and none: %d %s", item, code, body, none, said)
		}
		r.code, r.answer = 200, item
		if code, _ := r.do(r.ask("DELETE", grants+"/x", "", "")); code != 404 || len(r.released) != 0 {
			t.Errorf("delete %s: %d, released %v", item, code, r.released)
		}
	}
}

// TestSelectors: what the agent selects is added to, never replaced.
func TestSelectors(t *testing.T) {
	r := newRig(t)
	r.answer = `{"items":[]}`
	r.do(r.ask("GET", grants+"?fieldSelector=spec.agent%3D"+beta+"&labelSelector=a%3Db&limit=5&continue=c&resourceVersion=3&pretty=true&timeout=3s", tables, ""))
	q := httptest.NewRequest("GET", strings.TrimPrefix(r.seen[0], "GET "), nil).URL.Query()
	if q.Get("fieldSelector") != "spec.agent="+beta+",spec.agent="+alpha || q.Get("labelSelector") != "a=b" || q.Get("limit") != "5" || q.Get("continue") != "c" || q.Get("includeObject") != "Object" || q.Has("pretty") || q.Has("timeout") {
		t.Errorf("asked for %s", r.seen[0])
	}
}

// TestWatchOfReleased: a grant that is given back is deleted, once.
func TestWatchOfReleased(t *testing.T) {
	r := newRig(t)
	event := func(kind, object string) string { return fmt.Sprintf(`{"type":%q,"object":%s}`, kind, object) + "\n" }
	mark := `{"kind":"TaskGrant","apiVersion":"v","metadata":{"resourceVersion":"9","name":"theirs","annotations":{"k8s.io/initial-events-end":"true","x":"y"}},"spec":{"agent":"` + beta + `"}}`
	r.answer = event("ADDED", grant("a", alpha)) + event("ADDED", grant("old", alpha, isReleased)) + event("BOOKMARK", mark) + event("MODIFIED", grant("old", alpha, isReleased)) +
		event("MODIFIED", grant("a", alpha, isReleased)) + event("MODIFIED", grant("a", alpha, isReleased)) + event("DELETED", grant("a", alpha, isReleased)) +
		event("DELETED", grant("b", alpha)) + event("ERROR", `{"kind":"Status","code":410}`)
	_, body := r.do(r.ask("GET", grants+"?watch=1", "", ""))
	var got []string
	for line := range strings.Lines(body) {
		var e decodedEvent
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatal(err)
		}
		got = append(got, e.Type+" "+e.Object.Metadata.Name)
	}
	if want := "ADDED a|BOOKMARK |DELETED a|DELETED b|ERROR "; strings.Join(got, "|") != want {
		t.Errorf("got %v", got)
	}
	if !strings.Contains(body, `"annotations":{"k8s.io/initial-events-end":"true"}`) || strings.Contains(body, beta) || strings.Contains(body, `"x":"y"`) {
		t.Error(body)
	}
}

type decodedEvent struct {
	Type   string
	Object struct{ Metadata struct{ Name string } }
}

// TestApprovalFields: of an Approval an agent sees what it needs, and each field
// of the type is one or the other on purpose.
func TestApprovalFields(t *testing.T) {
	hidden := []string{"diff", "diffNote"}
	var all []string
	kind := reflect.TypeFor[v1alpha1.ApprovalSpec]()
	for i := range kind.NumField() {
		name, _, _ := strings.Cut(kind.Field(i).Tag.Get("json"), ",")
		all = append(all, name)
		if slices.Contains(hidden, name) == slices.Contains(shownOfApproval, name) {
			t.Errorf("%s: is it shown to agents or not? Nothing an agent may not read may be shown", name)
		}
	}
	for _, name := range shownOfApproval {
		if !slices.Contains(all, name) {
			t.Errorf("%s is shown and does not exist", name)
		}
	}
	r := newRig(t)
	object := `{"kind":"Approval","metadata":{"name":"ap","annotations":{"a":"sealed"},"managedFields":[{"manager":"sealed"}]},"spec":{"agent":"` + alpha + `","summary":"s","diff":"sealed","diffNote":"sealed","later":"sealed"},"status":{"conditions":[]},"other":"sealed"}`
	for _, row := range []struct{ target, accept, answer string }{
		{approvals + "/ap", "", object}, {approvals, "", `{"items":[` + object + `]}`}, {approvals + "?watch=true", "", `{"type":"ADDED","object":` + object + `}`},
		{approvals + "/ap", partials, object}, {approvals + "?includeObject=Object", tables, `{"rows":[{"cells":["c"],"object":` + object + `}]}`},
	} {
		r.answer = row.answer
		if code, body := r.do(r.ask("GET", row.target, row.accept, "")); code != 200 || strings.Contains(body, "sealed") || !strings.Contains(body, `"name":"ap"`) {
			t.Errorf("%s: %d %s", row.target, code, body)
		}
	}
}

// TestCreateTakesOverOnly what may be asked for.
func TestCreateTakesOverOnly(t *testing.T) {
	r := newRig(t)
	r.code, r.answer = 201, grant("x", alpha)
	body := `{"kind":"TaskGrant","apiVersion":"taskgate.dev/v1alpha1","metadata":{"name":"x","generateName":"x-","labels":{"l":"claim"},"annotations":{"a":"claim"},"finalizers":["claim"],"ownerReferences":[{"name":"claim","uid":"c","kind":"k","apiVersion":"v"}],"uid":"claim"},
		"spec":{"agent":"claim","requestedBy":"claim","revoked":true,"task":"T","reason":"R","ttl":"1m","rules":[{"verbs":["get"]}]},"status":{"endReason":"claim"}}`
	if code, said := r.do(r.ask("POST", grants+"?dryRun=All&fieldManager=claim&fieldValidation=Ignore", "", body)); code != 201 {
		t.Fatalf("%d %s", code, said)
	}
	want := `{"apiVersion":"taskgate.dev/v1alpha1","kind":"TaskGrant","metadata":{"generateName":"x-","name":"x"},"spec":{"agent":"` + alpha + `","policy":"shop","reason":"R","requestedBy":"` + alpha + `","rules":[{"verbs":["get"]}],"task":"T","ttl":"1m"}}`
	if r.bodies[0] != want || r.seen[0] != "POST "+grants+"?dryRun=All&fieldValidation=Strict" {
		t.Errorf("sent %s %s", r.seen[0], r.bodies[0])
	}
	// What is wrong is said without asking the control cluster.
	r.seen = nil
	for _, row := range []struct{ change, into, says string }{
		{`"kind":"TaskGrant"`, `"kind":"Decision"`, "kind and apiVersion"},
		{`v1alpha1"`, `v9"`, "kind and apiVersion"},
		{`"task"`, `"tsk"`, `unknown field \"spec.tsk\"`},
		{`"status"`, `"stat"`, `unknown field \"stat\"`},
		{`"uid":"claim"`, `"uidd":"claim"`, `unknown field \"uidd\"`},
		{`"finalizers":["claim"]`, `"finalizers":"claim"`, "metadata: "},
		{`"task":"T"`, `"policy":"other"`, "write one of shop"},
		{`"task":"T"`, `"policy":7`, "spec.policy"},
		{`"name":"x"`, `"name":"taskgate-heartbeat"`, "choose another name"},
	} {
		if code, said := r.do(r.ask("POST", grants, "", strings.Replace(body, row.change, row.into, 1))); code != 400 && code != 422 || !strings.Contains(said, row.says) {
			t.Errorf("%s: %d %s", row.into, code, said)
		}
	}
	ask := r.ask("POST", grants, "", body)
	ask.Policies = []string{"shop", "bank"}
	if code, said := r.do(ask); code != 422 || !strings.Contains(said, "spec.policy: Required value: several AgentPolicies are about you; write one of shop, bank") {
		t.Errorf("%d %s", code, said)
	}
	if r.seen != nil {
		t.Errorf("asked %v", r.seen)
	}
}

// TestAnotherObject: an answer that is not the agent's own is not passed on.
func TestAnotherObject(t *testing.T) {
	r := newRig(t)
	r.code, r.answer = 201, grant("x", beta)
	if code, body := r.do(r.ask("POST", grants, "", minimal)); code != 0 || strings.Contains(body, beta) {
		t.Errorf("%d %s", code, body)
	}
}

const minimal = `{"kind":"TaskGrant","apiVersion":"taskgate.dev/v1alpha1","metadata":{"name":"x"},"spec":{"task":"T","ttl":"1m","rules":[]}}`

func TestQuota(t *testing.T) {
	r := newRig(t)
	r.code = 201
	create := func(name string) (int, string) {
		r.answer = grant(name, alpha)
		return r.do(r.ask("POST", grants, "", minimal))
	}
	// Grants that were created and that the index does not show yet count.
	for i := range maxWaiting {
		if code, body := create(fmt.Sprint("g", i)); code != 201 {
			t.Fatalf("%d: %d %s", i, code, body)
		}
	}
	code, body := create("more")
	if code != 403 || !strings.Contains(body, "[taskgate:BudgetSpent] 8 of your TaskGrants are waiting") {
		t.Errorf("%d %s", code, body)
	}
	// Another agent is not concerned.
	other := r.ask("POST", grants, "", minimal)
	r.answer, other.Agent = grant("x", beta), beta
	if code, body := r.do(other); code != 201 {
		t.Errorf("another agent: %d %s", code, body)
	}
	// The index shows them: one is active, one is over.
	for i := range maxWaiting {
		g := &authz.Grant{Name: fmt.Sprint("g", i), UID: fmt.Sprint("uid-g", i), Agent: alpha, Active: i == 0}
		if i == 1 {
			g.EndReason = authz.EndReleased
		}
		if err := r.index.PutGrant(g); err != nil {
			t.Fatal(err)
		}
	}
	for i, want := range []int{201, 201, 403} {
		if code, body := create(fmt.Sprint("later", i)); code != want {
			t.Errorf("with room for two, the %d. is %d %s", i+1, code, body)
		}
	}
	// Creations are counted whatever became of them, until a minute has passed.
	r.now = r.now.Add(59 * time.Second)
	for code != 429 {
		if code, body = create("fast"); code != 403 && code != 429 {
			t.Fatalf("%d %s", code, body)
		}
	}
	if !strings.Contains(body, "[taskgate:RateLimited]") || !strings.Contains(body, "repeat the same command in 1s") {
		t.Error(body)
	}
	r.now = r.now.Add(time.Second)
	if code, body = create("slow"); code == 429 {
		t.Error(body)
	}
	if len(r.server.quota.accounts) > 2 {
		t.Errorf("%d accounts", len(r.server.quota.accounts))
	}
}

func TestKeptQuota(t *testing.T) {
	r := newRig(t)
	for i := range maxKept {
		if err := r.index.PutGrant(&authz.Grant{Name: "g", UID: fmt.Sprint(i), Agent: alpha, EndReason: authz.EndExpired}); err != nil {
			t.Fatal(err)
		}
	}
	if code, body := r.do(r.ask("POST", grants, "", minimal)); code != 403 || !strings.Contains(body, "kept for the record") {
		t.Errorf("%d %s", code, body)
	}
}

// TestRelease answers as a deletion does, under its conditions.
func TestRelease(t *testing.T) {
	for _, row := range []struct {
		body, want string
		code       int
		released   string
	}{
		{"", `"status":"Success"`, 200, "a uid-a "},
		{`{"preconditions":{"uid":"uid-a","resourceVersion":"7"}}`, `"uid":"uid-a"`, 200, "a uid-a 7"},
		{`{"preconditions":{"uid":"uid-b"}}`, "the UID in the precondition (uid-b) does not match the UID in record (uid-a)", 409, ""},
		{`{"preconditions":{"resourceVersion":"8"}}`, "the ResourceVersion in the precondition (8)", 409, ""},
		{`{"dryRun":["All"]}`, `"status":"Success"`, 200, ""},
	} {
		r := newRig(t)
		r.answer = grant("a", alpha)
		code, body := r.do(r.ask("DELETE", grants+"/a", "", row.body))
		if code != row.code || !strings.Contains(body, row.want) || strings.Join(r.released, "|") != row.released {
			t.Errorf("%s: %d %s, released %q", row.body, code, body, r.released)
		}
	}
}

func TestAccept(t *testing.T) {
	for accept, want := range map[string]string{
		"": "0", "*/*": "0", "application/json": "0", "application/json, */*": "0", "application/vnd.kubernetes.protobuf,application/json": "0", "application/cbor,application/json;q=0.9": "0",
		tables: "1", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json": "1", partials: "2",
		"application/json;as=Table;v=v9;g=meta.k8s.io,application/json": "0", "application/json;as=Other;v=v1;g=meta.k8s.io": "none", "application/vnd.kubernetes.protobuf": "none", "text/plain": "none", "application/json;stream=watch": "0",
	} {
		got := "none"
		if form, ok := formOf(accept); ok {
			got = fmt.Sprint(form)
		}
		if got != want {
			t.Errorf("%q: %s, want %s", accept, got, want)
		}
	}
}

// TestErrorsPass in the control cluster's own words, but for who has a name.
func TestErrorsPass(t *testing.T) {
	r := newRig(t)
	r.code, r.answer = 410, `{"kind":"Status","message":"too old"}`
	for _, target := range []string{grants, grants + "?watch=true", grants + "/x"} {
		if code, body := r.do(r.ask("GET", target, "", "")); code != 410 || body != r.answer {
			t.Errorf("%s: %d %s", target, code, body)
		}
	}
	r.code, r.answer = 409, `{"kind":"Status","message":"theirs"}`
	if code, body := r.do(r.ask("POST", grants, "", minimal)); code != 409 || !strings.Contains(body, `taskgrants.taskgate.dev \"x\" already exists`) || strings.Contains(body, "theirs") {
		t.Errorf("%d %s", code, body)
	}
	if code, _ := r.do(r.ask("GET", "/apis/taskgate.dev/v9/taskgrants", "", "")); code != 404 {
		t.Errorf("another version: %d", code)
	}
	r.code, r.answer = 200, `{"broken`
	if code, body := r.do(r.ask("GET", grants+"/x", "", "")); code != 0 {
		t.Errorf("%d %s", code, body)
	}
}

// FuzzListing: whatever the control cluster answers, nothing without the agent's
// own ID is passed on.
func FuzzListing(f *testing.F) {
	f.Add([]byte(`{"items":[` + grant("a", alpha) + "," + grant("b", beta) + `],"metadata":{}}`))
	f.Add([]byte(`{"items":null}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		answer, err := io.ReadAll(newListing(io.NopCloser(bytes.NewReader(body)), &view{agent: alpha, resource: "taskgrants"}))
		if err != nil {
			return
		}
		var list struct {
			Items []struct{ Spec struct{ Agent string } } `json:"items"`
		}
		if err := json.Unmarshal(answer, &list); err != nil {
			return // not the shape of a list, as the answer was not
		}
		for _, item := range list.Items {
			if item.Spec.Agent != alpha {
				t.Errorf("shows an object of %q: %s", item.Spec.Agent, answer)
			}
		}
	})
}
