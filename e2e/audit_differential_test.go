package e2e_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"

	"github.com/taskgate/taskgate/recorder"
)

const waivesAll = "grant: {maxTTL: 4h, approval: None}\nwaive: [namespace-delete, deletecollection, exec, port-forward, debug, secret-values, rbac, crd, pv, node]"

// auditRig is an agent that may do all that is not never, without any gate.
type auditRig struct {
	*casesRig
	agent *agent
	uid   string // of its grant
}

var audited struct {
	once sync.Once
	rig  *auditRig
}

func newAuditRig(t testing.TB) *auditRig {
	t.Helper()
	rig := newCasesRig(t)
	audited.once.Do(func() {
		keep := &keeper{TB: t}
		a := rig.newAgent(t, "audit")
		rig.apply(t, "apiVersion: v1\nkind: Namespace\nmetadata: {name: audit-a}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: audit-b}\n")
		rig.policy(keep, "audit", a, waivesAll, everything)
		rig.grant(keep, "audit", "audit", a, "2h", everything)
		uid := rig.admin(t, "get", "taskgrant", "audit", "-o=jsonpath={.metadata.uid}")
		audited.rig = &auditRig{rig, a, uid}
	})
	if audited.rig == nil {
		t.Fatal("the rig of the audit could not be made")
	}
	return audited.rig
}

// answered is a request with what came back.
type answered struct {
	call
	got reply
}

// TestDifferential sends thousands of well-formed requests and compares, for each
// that is forwarded, what the broker decided on with what the API server saw.
func TestDifferential(t *testing.T) {
	rig := newAuditRig(t)
	seed, count := uint64(time.Now().UnixNano()), 4000
	if given := os.Getenv("TASKGATE_E2E_SEED"); given != "" {
		parsed, err := strconv.ParseUint(given, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		seed = parsed
	}
	t.Logf("TASKGATE_E2E_SEED=%d", seed)
	served := rig.discover(t)
	const workers = 4
	var work sync.WaitGroup
	parts := make([][]answered, workers)
	for worker := range workers {
		work.Go(func() {
			r := &requests{rand.New(rand.NewPCG(seed, uint64(worker))), served}
			for range count / workers {
				q := r.next()
				parts[worker] = append(parts[worker], answered{q, rig.agent.do(t, q.method, q.target, q.header(), q.body)})
			}
		})
	}
	work.Wait()
	rig.compare(t, slices.Concat(parts...))
}

func (q call) header() map[string]string {
	if q.mediaType == "" {
		return nil
	}
	return map[string]string{"Content-Type": q.mediaType}
}

// compare joins each answer with its records and the API server's entry.
func (rig *auditRig) compare(t *testing.T, all []answered) {
	t.Helper()
	var ids []string
	reasons := map[string]int{}
	for _, a := range all {
		if a.got.auditID() == "" {
			t.Fatalf("%s %s: %d without an audit ID: %.300s", a.method, a.target, a.got.code, a.body)
		}
		ids = append(ids, a.got.auditID())
		reasons[orDefault(a.got.reason(), "forwarded")]++
	}
	records, upstream := rig.journal.of(t, ids...), rig.upstream(t)
	verbs, kinds, wrong := map[string]int{}, map[string]bool{}, 0
	complain := func(format string, args ...any) {
		t.Helper()
		if wrong++; wrong <= 20 {
			t.Errorf(format, args...)
		}
	}
	for _, a := range all {
		id := a.got.auditID()
		forwarded := a.got.reason() == "" || a.got.reason() == "UpstreamDenied"
		if !forwarded {
			if len(upstream[id]) != 0 {
				complain("%s %s was refused (%s) and the API server saw it", a.method, a.target, a.got.reason())
			}
			if word := strings.Split(a.got.reason(), "/")[0]; word != "PolicyDenied" && word != "OutsideGrant" && !(word == "BadUpgrade" && opensStream(a.target)) {
				complain("%s %s (%s %.200s) is well-formed and was refused: %d %s: %.300s", a.method, a.target, a.mediaType, a.body, a.got.code, a.got.reason(), a.got.body)
			}
			continue
		}
		if selfReview(a.target) || strings.HasPrefix(a.target, "/apis/taskgate.dev/") {
			continue // the broker answers these, the latter with calls of its own
		}
		if err := rig.sameCall(records[id][0], upstream[id]); err != nil {
			complain("%s %s (%s %.200s), audit ID %s: %v", a.method, a.target, a.mediaType, a.body, id, err)
		}
		verbs[records[id][0].Verb]++
		kinds[a.what] = true
	}
	if wrong > 20 {
		t.Errorf("%d more", wrong-20)
	}
	t.Logf("%d requests about %d kinds; outcomes %v; verbs forwarded %v", len(all), len(kinds), reasons, verbs)
}

// opensStream holds for calls that need an upgrade; streams_test.go makes them.
func opensStream(target string) bool {
	path, _, _ := strings.Cut(target, "?")
	return strings.HasSuffix(path, "/exec") || strings.HasSuffix(path, "/attach") || strings.HasSuffix(path, "/portforward")
}

func selfReview(target string) bool { return strings.Contains(target, "/selfsubject") }

// sameCall compares the intent of a call with what the API server saw.
func (rig *auditRig) sameCall(intent *recorder.Event, seen []auditv1.Event) error {
	if len(seen) == 0 {
		return fmt.Errorf("the API server has not seen it")
	}
	last := seen[len(seen)-1]
	received := 0
	for _, event := range seen {
		if event.Stage == auditv1.StageRequestReceived {
			received++
		}
	}
	if received != 1 {
		return fmt.Errorf("the API server has received it %d times", received)
	}
	if !intent.StageTimestamp.Before(last.RequestReceivedTimestamp.Time) {
		return fmt.Errorf("the intent is of %s, the API server got it at %s", intent.StageTimestamp, last.RequestReceivedTimestamp)
	}
	verb := last.Verb
	if ref := last.ObjectRef; ref != nil && slices.Contains([]string{"exec", "attach", "portforward"}, ref.Subresource) {
		verb = "create" // whatever the method says (design, section 3)
	}
	if ref := intent.ObjectRef; ref != nil && intent.Verb != verb || ref == nil && !strings.EqualFold(intent.Verb, verb) {
		return fmt.Errorf("the verb is %s here and %s there", intent.Verb, last.Verb)
	}
	if err := sameObject(intent, last.ObjectRef); err != nil {
		return err
	}
	return rig.samePrincipal(intent, last)
}

func sameObject(intent *recorder.Event, seen *auditv1.ObjectReference) error {
	here := intent.ObjectRef
	switch {
	case here == nil && seen == nil:
		return nil
	case here == nil || seen == nil:
		return fmt.Errorf("the object is %+v here and %+v there", here, seen)
	}
	// The API server fills in the name of what is created from the body.
	name := here.Name
	if intent.Verb == "create" && name == "" {
		name = seen.Name
	}
	if here.APIGroup != seen.APIGroup || here.APIVersion != seen.APIVersion || here.Resource != seen.Resource || here.Subresource != seen.Subresource ||
		here.Namespace != seen.Namespace || name != seen.Name {
		return fmt.Errorf("the object is %+v here and %+v there", here, seen)
	}
	return nil
}

// samePrincipal compares who the broker says it was with whom the API server saw.
func (rig *auditRig) samePrincipal(intent *recorder.Event, seen auditv1.Event) error {
	there, here := seen.ImpersonatedUser, intent.ImpersonatedUser
	if seen.User.Username != brokerAccount || there == nil || here == nil || there.Username != "taskgate:agent" || here.Username != "taskgate:agent" {
		return fmt.Errorf("the user is %+v here, and %s as %+v there", here, seen.User.Username, there)
	}
	groups := append(slices.Clone(here.Groups), "system:authenticated")
	if !slices.Equal(groups, there.Groups) {
		return fmt.Errorf("the groups are %v here and %v there", here.Groups, there.Groups)
	}
	want := map[string]string{"agent.taskgate.dev": rig.agent.id}
	if intent.ObjectRef != nil {
		want["task.taskgate.dev"], want["grant.taskgate.dev"] = "task audit", rig.uid
		if !slices.Contains(there.Groups, "taskgate:policy:audit") {
			return fmt.Errorf("the policy's group is not among %v", there.Groups)
		}
	}
	hereExtra, thereExtra := map[string]string{}, map[string]string{}
	for key, values := range here.Extra {
		hereExtra[key] = strings.Join(values, ",")
	}
	for key, values := range there.Extra {
		thereExtra[key] = strings.Join(values, ",")
	}
	if !maps.Equal(want, hereExtra) || !maps.Equal(want, thereExtra) {
		return fmt.Errorf("the extras are %v here and %v there, want %v", hereExtra, thereExtra, want)
	}
	return nil
}

// TestEverySubresource: a rule about a resource gives none of its subresources,
// for every resource the cluster serves, and nothing of another.
func TestEverySubresource(t *testing.T) {
	rig := newAuditRig(t)
	served := rig.discover(t)
	resources := map[string][]string{} // group → resources
	for _, s := range served {
		if s.subresource == "" && !slices.Contains(resources[s.groupVersion.Group], s.resource) {
			resources[s.groupVersion.Group] = append(resources[s.groupVersion.Group], s.resource)
		}
	}
	var rules []string
	for _, group := range slices.Sorted(maps.Keys(resources)) {
		rules = append(rules, fmt.Sprintf(`{namespaces: ["*"], apiGroups: [%q], resources: [%s], verbs: ["*"]}`, group, strings.Join(resources[group], ", ")))
	}
	a := rig.newAgent(t, "audit-plain")
	rig.policy(t, "audit-plain", a, waivesAll, rules...)
	rig.grant(t, "audit-plain", "audit-plain", a, "1h", rules...)
	var all []sent
	subresources := 0
	for _, s := range served {
		namespace := ""
		if s.Namespaced {
			namespace = "audit-a"
		}
		if s.subresource == "" {
			if !slices.Contains(s.Verbs, "list") {
				continue
			}
			got := a.do(t, "GET", s.path(namespace, "")+"?limit=1", nil, "")
			if reason := got.reason(); reason != "" && !strings.HasPrefix(reason, "PolicyDenied/") {
				t.Errorf("list %s: %d %s", s, got.code, reason)
			}
			continue
		}
		subresources++
		for _, method := range []string{"GET", "POST", "PUT", "PATCH", "DELETE"} {
			r := row{id: "subresource", name: s.String(), who: a, method: method, target: s.path(namespace, "x"), code: 403}
			switch method {
			case "POST", "PUT":
				r.header, r.body = asJSON, `{}`
			case "PATCH":
				r.header, r.body = asMerge, `{}`
			}
			got := a.do(t, r.method, r.target, r.header, r.body)
			r.reason = got.reason()
			noStream := r.reason == "BadUpgrade" && slices.Contains([]string{"exec", "attach", "portforward"}, s.subresource)
			if got.code != http.StatusForbidden || !noStream && r.reason != "OutsideGrant" && !strings.HasPrefix(r.reason, "PolicyDenied/") {
				t.Errorf("%s %s: %d %q", method, r.target, got.code, got.reason())
				continue
			}
			all = append(all, sent{r, "sidecar", got})
		}
	}
	rig.judgeRecords(t, all)
	t.Logf("%d subresources of %d kinds in %d groups, each refused with 5 methods", subresources, len(served)-subresources, len(resources))
}
