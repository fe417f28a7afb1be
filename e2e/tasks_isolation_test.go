package e2e_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const tasksApprovals = "/apis/taskgate.dev/v1alpha1/approvals"

// asTable and asPartial are how kubectl get and metadata clients ask.
var (
	asTable   = map[string]string{"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"}
	asPartial = map[string]string{"Accept": "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"}
)

// approval makes an Approval as a broker does, for an agent.
func (rig *tasksRig) approval(t testing.TB, name string, a *agent) {
	t.Helper()
	body := fmt.Sprintf(`{"apiVersion":"taskgate.dev/v1alpha1","kind":"Approval","metadata":{"name":%q,"labels":{"of":%q},"annotations":{"kubectl.kubernetes.io/last-applied-configuration":"sealed-note"}},
		"spec":{"agent":%q,"task":"task of %s","grant":"g","grantUID":"u","policy":"p","gate":"namespace-delete","approvers":1,"call":{"verb":"delete","resource":"namespaces","name":"shop"},
		"summary":"delete the namespace shop","diff":"-sealed-diff","diffNote":"sealed-note","digest":"%064d","useWithin":"5m","expiresAt":%q}}`,
		name, a.name, a.id, a.name, 7, time.Now().Add(time.Hour).UTC().Format(metav1.RFC3339Micro))
	broker := rig.asBroker(t)
	if got := broker.do(t, "POST", tasksApprovals, asJSON, body); got.code != 201 {
		t.Fatalf("making the approval %s: %d %s", name, got.code, got.body)
	}
	t.Cleanup(func() {
		request, err := newRequest(t.Context(), "DELETE", broker.base+tasksApprovals+"/"+name, "")
		if err == nil {
			request = request.WithContext(contextOf(t))
			if response, err := broker.client.Do(request); err == nil {
				_ = response.Body.Close() // only its having been sent counts
			}
		}
	})
}

// TestTasksIsolation: two agents never see each other's objects, however they ask.
func TestTasksIsolation(t *testing.T) {
	rig := newTasksRig(t)
	rig.ask(t, rig.one, "tasks-iso-a-of-one")
	rig.ask(t, rig.two, "tasks-iso-b-of-two")
	rig.ask(t, rig.one, "tasks-iso-c-of-one")
	rig.ask(t, rig.two, "tasks-iso-d-of-two")
	rig.admin(t, "label", "taskgrant", "tasks-iso-a-of-one", "tasks-iso-b-of-two", "shared=label")
	rig.approval(t, "ap-of-one", rig.one)
	rig.approval(t, "ap-of-two", rig.two)
	of := func(a *agent) string { return url.QueryEscape("spec.agent=" + a.id) }
	for _, who := range []struct {
		a, other     *agent
		own, others  string
		ap, othersAp string
	}{
		{rig.one, rig.two, "tasks-iso-a-of-one", "tasks-iso-b-of-two", "ap-of-one", "ap-of-two"},
		{rig.two, rig.one, "tasks-iso-b-of-two", "tasks-iso-a-of-one", "ap-of-two", "ap-of-one"},
	} {
		var group sync.WaitGroup
		secrets := []string{who.others, who.othersAp, who.other.id, who.other.name, "sealed"}
		// A list and a watch, in every form, with every selector that could help.
		for _, query := range []string{
			"", "fieldSelector=" + of(who.other), "fieldSelector=" + url.QueryEscape("spec.agent!="+who.a.id), "labelSelector=shared%3Dlabel", "limit=1", "resourceVersion=0",
			"fieldSelector=metadata.name%3D" + who.others, "fieldSelector=metadata.name%3D" + who.othersAp, "fieldSelector=" + url.QueryEscape("spec.agent="+who.other.id+",spec.agent="+who.other.id),
			"includeObject=Object", "includeObject=Metadata", "includeObject=None", "labelSelector=of%3D" + who.other.name,
		} {
			for form, header := range map[string]map[string]string{"object": nil, "table": asTable, "metadata": asPartial} {
				for _, collection := range []string{tasksGrants, tasksApprovals} {
					group.Go(func() {
						got := who.a.do(t, "GET", collection+"?"+query, header, "")
						if got.code != 200 {
							t.Errorf("%s lists %s?%s as %s: %d %s", who.a.name, collection, query, form, got.code, got.body)
						}
						mentions(t, fmt.Sprintf("a list of %s?%s as %s", collection, query, form), got.body, secrets...)
						watched := who.a.do(t, "GET", collection+"?watch=true&timeoutSeconds=1&"+strings.ReplaceAll(query, "limit=1", "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"), header, "")
						if watched.code != 200 {
							t.Errorf("%s watches %s?%s as %s: %d %s", who.a.name, collection, query, form, watched.code, watched.body)
						}
						mentions(t, fmt.Sprintf("a watch of %s?%s as %s", collection, query, form), watched.body, secrets...)
						if query == "includeObject=Metadata" && (!strings.Contains(got.body, who.own) && !strings.Contains(got.body, who.ap) || !strings.Contains(watched.body, who.own) && !strings.Contains(watched.body, who.ap)) {
							t.Errorf("%s does not see its own in %s as %s: %s\n%s", who.a.name, collection, form, got.body, watched.body)
						}
					})
				}
			}
		}
		group.Wait()
		// Somebody else's object is not there, in the words in which none is.
		for collection, name := range map[string]string{tasksGrants: who.others, tasksApprovals: who.othersAp} {
			for _, header := range []map[string]string{nil, asTable, asPartial} {
				theirs, none := who.a.do(t, "GET", collection+"/"+name, header, ""), who.a.do(t, "GET", collection+"/absent", header, "")
				if theirs.code != 404 || strings.ReplaceAll(theirs.body, name, "absent") != none.body {
					t.Errorf("theirs: %d %s\nnone: %d %s", theirs.code, theirs.body, none.code, none.body)
				}
			}
		}
		for _, body := range []string{"", `{"kind":"DeleteOptions","apiVersion":"v1","dryRun":["All"]}`} {
			if got := who.a.do(t, "DELETE", tasksGrants+"/"+who.others, asJSON, body); got.code != 404 {
				t.Errorf("deleting theirs: %d %s", got.code, got.body)
			}
		}
	}
	for _, name := range []string{"tasks-iso-a-of-one", "tasks-iso-b-of-two"} {
		if grant := rig.read(t, name); conditionsOf(&grant) != "Approved=True Active=True Ended=False Active" {
			t.Errorf("%s is %s", name, conditionsOf(&grant))
		}
	}
}

// TestTasksPaging: a list in pages is the list, and the token of one agent shows
// another one only its own.
func TestTasksPaging(t *testing.T) {
	rig := newTasksRig(t)
	for _, name := range []string{"tasks-page-1", "tasks-page-3", "tasks-page-5"} {
		rig.ask(t, rig.one, name)
	}
	for _, name := range []string{"tasks-page-2", "tasks-page-4"} {
		rig.ask(t, rig.two, name)
	}
	page := func(a *agent, token string) (names []string, next, body string) {
		t.Helper()
		got := a.do(t, "GET", tasksGrants+"?limit=1&continue="+url.QueryEscape(token), nil, "")
		var list struct {
			Metadata metav1.ListMeta
			Items    []metav1.PartialObjectMetadata
		}
		if err := json.Unmarshal([]byte(got.body), &list); err != nil || got.code != 200 {
			t.Fatalf("%d %s", got.code, got.body)
		}
		if list.Metadata.RemainingItemCount != nil {
			t.Errorf("it says how many more there are: %s", got.body)
		}
		for _, item := range list.Items {
			names = append(names, item.Name)
		}
		return names, list.Metadata.Continue, got.body
	}
	var all []string
	token, tokens := "", []string{}
	for {
		names, next, body := page(rig.one, token)
		mentions(t, "a page", body, rig.two.id, "tasks-page-2", "tasks-page-4")
		all = append(all, names...)
		if token = next; token == "" {
			break
		}
		tokens = append(tokens, token)
	}
	if got := strings.Join(all, " "); !strings.Contains(got, "tasks-page-1 tasks-page-3 tasks-page-5") {
		t.Errorf("all pages: %s", got)
	}
	for _, token := range tokens {
		for token != "" {
			var body string
			_, token, body = page(rig.two, token)
			mentions(t, "a page of the other's token", body, rig.one.id, "tasks-page-1", "tasks-page-3", "tasks-page-5")
		}
	}
	forged := base64.RawURLEncoding.EncodeToString([]byte(`{"v":"meta.k8s.io/v1","rv":-1,"start":"tasks-page-1\u0000"}`))
	for token := forged; token != ""; {
		var body string
		_, token, body = page(rig.two, token)
		mentions(t, "a page of a forged token", body, rig.one.id, "tasks-page-3")
	}
	if got := rig.two.kubectl(t, "get", "taskgrants", "--chunk-size=1"); !strings.Contains(got.stdout, "tasks-page-4") || strings.Contains(got.stdout, "tasks-page-3") {
		t.Errorf("kubectl get: %s", got)
	}
}

// TestTasksNever: what is not an agent's own business stays closed.
func TestTasksNever(t *testing.T) {
	rig := newCasesRig(t)
	var rows []row
	for _, r := range []struct{ method, path string }{
		{"PUT", "taskgrants/case-all"}, {"PATCH", "taskgrants/case-all"}, {"DELETE", "taskgrants"}, {"POST", "taskgrants/case-all"}, {"GET", "taskgrants/case-all/status"}, {"PUT", "taskgrants/case-all/status"},
		{"POST", "approvals"}, {"PUT", "approvals/x"}, {"PATCH", "approvals/x"}, {"DELETE", "approvals/x"}, {"DELETE", "approvals"}, {"GET", "approvals/x/status"}, {"PATCH", "approvals/x/status"},
		{"GET", "decisions"}, {"GET", "decisions/x"}, {"POST", "decisions"}, {"DELETE", "decisions/x"}, {"GET", "agentpolicies"}, {"GET", "agentpolicies/case-all"}, {"POST", "agentpolicies"},
		{"GET", "namespaces/x/taskgrants"}, {"POST", "namespaces/x/taskgrants"},
	} {
		one := row{id: "T046", name: r.method + " " + r.path, who: rig.all, method: r.method, target: "/apis/taskgate.dev/v1alpha1/" + r.path, code: 403, reason: "PolicyDenied/OwnObjects"}
		if r.method == "PATCH" {
			one.header, one.body = asMerge, "{}"
		}
		rows = append(rows, one)
	}
	rig.play(t, rows)
}
