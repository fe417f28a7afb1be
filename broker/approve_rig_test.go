package broker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/taskgate/taskgate/api/v1alpha1"
	"github.com/taskgate/taskgate/authz"
	"github.com/taskgate/taskgate/broker/control"
)

// people is the control cluster: Approvals and what people said of them. It
// behaves as the API server does, and asserts what must never happen: that an
// Approval is used twice, without a yes, without the question whether there is
// one, or without having been read after the last change.
type people struct {
	*testing.T
	mu       sync.Mutex
	items    map[string]*v1alpha1.Approval
	answers  map[types.UID]control.Verdict
	asked    map[types.UID]string // resourceVersion at which the verdict was asked for last
	version  int
	creates  int
	consumed int
	// Faults: what is returned instead, or after it was done.
	fail    map[string]error // by method
	applied map[string]error // by method, after it was done
	onUse   func()           // before an Approval is consumed
	onUsed  func()           // after it was
}

func newPeople(t *testing.T) *people {
	return &people{T: t, items: map[string]*v1alpha1.Approval{}, answers: map[types.UID]control.Verdict{}, asked: map[types.UID]string{}, fail: map[string]error{}, applied: map[string]error{}}
}

func (p *people) list(method string, keep func(*v1alpha1.Approval) bool) ([]v1alpha1.Approval, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var found []v1alpha1.Approval
	for _, a := range p.items {
		if keep(a) {
			found = append(found, *a.DeepCopy())
		}
	}
	return found, p.fail[method]
}

func (p *people) ApprovalsFor(_ context.Context, digest string) ([]v1alpha1.Approval, error) {
	return p.list("ApprovalsFor", func(a *v1alpha1.Approval) bool { return a.Spec.Digest == digest })
}

func (p *people) ApprovalsOf(_ context.Context, agent string) ([]v1alpha1.Approval, error) {
	return p.list("ApprovalsOf", func(a *v1alpha1.Approval) bool { return a.Spec.Agent == agent })
}

func (p *people) CreateApproval(_ context.Context, a *v1alpha1.Approval) (*v1alpha1.Approval, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.fail["CreateApproval"]; err != nil {
		return nil, err
	}
	if p.items[a.Name] != nil {
		return nil, fmt.Errorf("creating: %w", apierrors.NewAlreadyExists(schema.GroupResource{Resource: "approvals"}, a.Name))
	}
	p.creates++
	made := a.DeepCopy()
	made.CreationTimestamp = metav1.NewTime(a.Spec.ExpiresAt.Add(-authz.DefaultTTL)) // by the rig's clock
	made.UID = types.UID(fmt.Sprintf("ap-uid-%d", p.creates))
	p.store(made)
	return made.DeepCopy(), nil
}

func (p *people) store(a *v1alpha1.Approval) {
	p.version++
	a.ResourceVersion = strconv.Itoa(p.version)
	p.items[a.Name] = a
}

func (p *people) RequirementOf(_ context.Context, a *v1alpha1.Approval) (control.Requirement, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return control.Requirement{Kind: "Approval", Name: a.Name, UID: string(a.UID), Digest: a.Spec.Digest, Approvers: int(a.Spec.Approvers), Groups: a.Spec.Groups}, p.fail["RequirementOf"]
}

func (p *people) VerdictOn(_ context.Context, r control.Requirement) (control.Verdict, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if a := p.items[r.Name]; a == nil || a.Spec.Digest != r.Digest || string(a.UID) != r.UID {
		p.Errorf("a verdict was asked for that is about no Approval: %+v", r)
	} else {
		p.asked[a.UID] = a.ResourceVersion
	}
	return p.answers[types.UID(r.UID)], p.fail["VerdictOn"]
}

func (p *people) Consume(_ context.Context, a *v1alpha1.Approval, auditID string, now time.Time) error {
	if p.onUse != nil {
		p.onUse()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.fail["Consume"]; err != nil {
		return err
	}
	stored := p.items[a.Name]
	if stored == nil || stored.UID != a.UID || stored.ResourceVersion != a.ResourceVersion {
		return fmt.Errorf("consuming: %w", &control.ConflictError{Name: a.Name})
	}
	if _, used := consumedAt(stored); used {
		p.Errorf("%s was consumed a second time", a.Name)
	}
	if p.answers[a.UID].State != control.Approved {
		p.Errorf("%s was consumed without a yes", a.Name)
	}
	if p.asked[a.UID] != a.ResourceVersion {
		p.Errorf("%s was consumed without asking what people said after it was read", a.Name)
	}
	used := stored.DeepCopy()
	at := metav1.NewMicroTime(now)
	used.Status.ConsumedBy, used.Status.ConsumedAt = auditID, &at
	p.store(used)
	p.consumed++
	if p.onUsed != nil {
		p.onUsed()
	}
	return p.applied["Consume"]
}

// decide gives people's answer to an Approval, and writes the status down, as a
// replica does a moment later.
func (p *people) decide(name string, state control.State, at time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	a := p.items[name].DeepCopy()
	p.answers[a.UID] = control.Verdict{State: state, At: at.Truncate(time.Second), By: []string{"alice"}, Reason: "not today"}
	a.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ApprovalDecided, Status: "True", Reason: "Approved"}}
	p.store(a)
}

func (p *people) one() *v1alpha1.Approval {
	p.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.items) != 1 {
		p.Fatalf("%d approvals, want one", len(p.items))
	}
	for _, a := range p.items {
		return a.DeepCopy()
	}
	return nil
}

func (p *people) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.items)
}

// gatedRig is a rig whose agent may do everything, with people to ask and a
// cluster that holds one namespace and one Secret.
type gatedRig struct {
	*rig
	people *people
	world  *world
}

func newGatedRig(t *testing.T, p *people, changes ...func(*boundary)) *gatedRig {
	t.Helper()
	r := &gatedRig{people: p, world: &world{uid: "ns-uid-1", version: "7", members: []string{"web-0", "web-1"}}}
	r.rig = newRig(t, append(changes, func(b *boundary) { b.approvals, b.cluster, b.asking = p, "test", Approvals{MaxOpen: 16, MaxPerDay: 20} })...)
	r.stub.set(r.world.serve)
	r.grant(time.Hour, authz.Rule{Namespaces: []string{"*"}, APIGroups: []string{"*"}, Resources: []string{"*"}, Verbs: []string{"*"}})
	return r
}

// world answers like an API server, as far as the tests look.
type world struct {
	mu           sync.Mutex
	uid, version string // of every object
	members      []string
	gone         bool
	dryRun       func(w http.ResponseWriter, r *http.Request) bool // answers instead
	done         []string                                          // what was really changed
	bodies       []string
}

func (w *world) change(change func(*world)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change(w)
}

func (w *world) executed() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.done)
}

func (w *world) serve(out http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	w.mu.Lock()
	defer w.mu.Unlock()
	out.Header().Set("Content-Type", "application/json")
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	name := parts[len(parts)-1]
	meta := fmt.Sprintf(`{"name":%q,"uid":%q,"resourceVersion":%q,"managedFields":[{"manager":"noise"}],"finalizers":["example.org/keep"]}`, name, w.uid, w.version)
	dry := r.URL.Query().Has("dryRun") || strings.Contains(string(body), `"dryRun"`)
	switch {
	case r.Method != "GET" && dry:
		if w.dryRun == nil || !w.dryRun(out, r) {
			fmt.Fprintf(out, `{"kind":"ConfigMap","metadata":%s,"data":{"colour":"red"}}`, meta)
		}
	case r.Method != "GET":
		w.done, w.bodies = append(w.done, r.Method+" "+r.URL.RequestURI()), append(w.bodies, string(body))
		fmt.Fprint(out, `{"kind":"Status","apiVersion":"v1","status":"Success"}`)
	case w.gone:
		out.WriteHeader(404)
		fmt.Fprintf(out, `{"kind":"Status","apiVersion":"v1","status":"Failure","code":404,"reason":"NotFound","message":"%s not found"}`, name)
	case name == "pods" || name == "configmaps":
		var items []string
		for _, member := range w.members {
			items = append(items, fmt.Sprintf(`{"metadata":{"name":%q,"namespace":"shop","uid":"uid-%s"}}`, member, member))
		}
		fmt.Fprintf(out, `{"kind":"PartialObjectMetadataList","items":[%s]}`, strings.Join(items, ","))
	default:
		fmt.Fprintf(out, `{"kind":"ConfigMap","metadata":%s,"data":{"colour":"blue"},"status":{"phase":"noise"}}`, meta)
	}
}

const theNamespace = "/api/v1/namespaces/shop"

// deletes asks for the namespace to be deleted, and wants that reason ("" for done).
func (r *gatedRig) deletes(wantReason string) reply {
	r.Helper()
	return r.call("DELETE", theNamespace, "", wantReason)
}

func (r *gatedRig) call(method, target, body, wantReason string) reply {
	r.Helper()
	header := http.Header{}
	if body != "" {
		header.Set("Content-Type", "application/json")
	}
	if method == "PATCH" {
		header.Set("Content-Type", "application/merge-patch+json")
	}
	before := r.world.executed()
	got := r.do(method, target, header, body)
	if got.reason() != wantReason {
		r.Fatalf("%s %s: got %d %s, want %q", method, target, got.code, got.body, wantReason)
	}
	if executed := r.world.executed() - before; executed > 0 != (wantReason == "" && method != "GET") || executed > 1 {
		r.Errorf("%s %s: %d calls were made in the cluster", method, target, executed)
	}
	return got
}

func (r *gatedRig) approve() *v1alpha1.Approval {
	r.Helper()
	a := r.people.one()
	r.people.decide(a.Name, control.Approved, r.boundary.now())
	return a
}

func (r *gatedRig) later(d time.Duration) { r.shift.Add(int64(d)) }

var errFault = errors.New("fault")

func decoded(t *testing.T, text string) map[string]any {
	t.Helper()
	var object map[string]any
	if err := json.Unmarshal([]byte(text), &object); err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	return object
}
