package broker

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/taskgate/taskgate/authz"
	"github.com/taskgate/taskgate/broker/control"
	"github.com/taskgate/taskgate/recorder"
)

// TestApprovalFailsClosed: whatever of the control cluster does not answer, the
// call is not made, and the approval is as it was.
func TestApprovalFailsClosed(t *testing.T) {
	for _, method := range []string{"ApprovalsFor", "ApprovalsOf", "CreateApproval"} {
		t.Run(method+" while asking", func(t *testing.T) {
			p := newPeople(t)
			r := newGatedRig(t, p)
			p.fail[method] = errFault
			r.deletes("NotReady/ApprovalUnknown")
			delete(p.fail, method)
			r.deletes("ApprovalRequired")
		})
	}
	for _, method := range []string{"ApprovalsFor", "RequirementOf", "VerdictOn", "Consume"} {
		t.Run(method+" after a yes", func(t *testing.T) {
			p := newPeople(t)
			r := newGatedRig(t, p)
			r.deletes("ApprovalRequired")
			r.approve()
			p.fail[method] = errFault
			r.deletes("NotReady/ApprovalUnknown")
			delete(p.fail, method)
			r.deletes("")
		})
	}
	t.Run("nowhere to ask", func(t *testing.T) {
		r := newGatedRig(t, newPeople(t), func(b *boundary) {})
		r.boundary.approvals = nil
		r.deletes("ApprovalRequired")
	})
}

// TestApprovalLosesRaces: what happens between the last look and the use.
func TestApprovalLosesRaces(t *testing.T) {
	for _, row := range []struct {
		name, reason string
		meanwhile    func(r *gatedRig)
	}{
		{"somebody says no", "ApprovalDenied", func(r *gatedRig) { r.people.decide(r.people.one().Name, control.Denied, r.boundary.now()) }},
		{"a replica writes the status", "", func(r *gatedRig) { r.people.decide(r.people.one().Name, control.Approved, r.boundary.now()) }},
		{"the grant is revoked", "GrantRevoked", func(r *gatedRig) {
			ended := &authz.Grant{Name: "inc-1", UID: "uid-1", Agent: alphaID, Task: "INC-1", Policy: "shop", Revoked: true, TTL: 1, Rules: []authz.Rule{allow("*", "*")}}
			if err := r.boundary.index.PutGrant(ended); err != nil {
				r.Error(err)
			}
			r.people.decide(r.people.one().Name, control.Approved, r.boundary.now()) // the version changes, so all is asked again
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := newPeople(t)
			r := newGatedRig(t, p)
			r.deletes("ApprovalRequired")
			r.approve()
			var once atomic.Bool
			p.onUse = func() {
				if !once.Swap(true) {
					row.meanwhile(r)
				}
			}
			got := r.deletes(row.reason)
			records := of(r.recorded(), got.header.Get("Audit-Id"))
			if last := records[len(records)-1]; row.reason != "" && (len(records) != 2 || last.Annotations[recorder.AnnotationOutcome] != outcomeNotSent ||
				last.Annotations[recorder.AnnotationReason] != row.reason || last.Annotations[recorder.AnnotationDecision] != "deny") {
				t.Errorf("records: %+v", records)
			}
		})
	}
}

// TestApprovalCrash is T105: at each point between the use of an approval and the
// outcome, the call is made at most once, and the approval stays used.
func TestApprovalCrash(t *testing.T) {
	for _, row := range []struct {
		name     string
		crash    func(r *gatedRig)
		executed int
		consumed int
		next     string // reason of the repeat
	}{
		{"before the use", func(r *gatedRig) { r.people.onUse = crash }, 0, 0, ""},
		{"after the use", func(r *gatedRig) { r.people.onUsed = crash }, 0, 1, "ApprovalConsumed"},
		{"the use is not acknowledged", func(r *gatedRig) { r.people.applied["Consume"] = errFault }, 0, 1, "ApprovalConsumed"},
		{"the answer of the cluster is lost", func(r *gatedRig) {
			r.stub.set(func(w http.ResponseWriter, q *http.Request) {
				if q.Method == "DELETE" {
					r.world.change(func(w *world) { w.done = append(w.done, "lost") })
					panic(http.ErrAbortHandler)
				}
				r.world.serve(w, q)
			})
		}, 1, 1, "ApprovalConsumed"},
	} {
		t.Run(row.name, func(t *testing.T) {
			r := newGatedRig(t, newPeople(t))
			r.deletes("ApprovalRequired")
			a := r.approve()
			row.crash(r)
			q, err := http.NewRequest("DELETE", "https://"+r.address+theNamespace, http.NoBody)
			if err != nil {
				t.Fatal(err)
			}
			if response, err := r.client("h2").Do(q); err == nil {
				_ = response.Body.Close()
			}
			r.people.onUse, r.people.onUsed = nil, nil
			clear(r.people.applied)
			r.stub.set(r.world.serve)
			if r.world.executed() != row.executed || r.people.consumed != row.consumed {
				t.Errorf("%d calls were made, %d approvals used", r.world.executed(), r.people.consumed)
			}
			r.deletes(row.next)
			unfinished := 0
			for _, e := range r.recorded() {
				if e.Annotations[recorder.AnnotationApproval] != a.Name || e.Stage != recorder.StageResponseComplete {
					continue
				}
				if outcome := e.Annotations[recorder.AnnotationOutcome]; outcome == recorder.OutcomeUnknown || outcome == outcomeNotSent {
					unfinished++
				}
			}
			if unfinished != 1 {
				t.Errorf("%d records say that the call did not end", unfinished)
			}
		})
	}
}

// crash is the end of a handler at that point, as when the process is killed: no
// code of ours runs after it.
func crash() { panic(http.ErrAbortHandler) }

// TestApprovalUnrecorded: an approval is not used for a call that cannot be put on
// record.
func TestApprovalUnrecorded(t *testing.T) {
	r := newGatedRig(t, newPeople(t))
	r.deletes("ApprovalRequired")
	r.approve()
	r.close()
	r.deletes("RecorderUnavailable")
	if r.people.consumed != 0 {
		t.Error("an approval was used")
	}
}

// TestApprovalDurable: when an approval is used, the intent of the call is on disk,
// also of a call that only reads.
func TestApprovalDurable(t *testing.T) {
	p := newPeople(t)
	r := newGatedRig(t, p)
	const secret = "/api/v1/namespaces/shop/secrets/db"
	r.call("GET", secret, "", "ApprovalRequired")
	a := r.approve()
	used := false
	p.onUse = func() {
		used = true
		var onDisk strings.Builder
		err := filepath.WalkDir(r.spool, func(path string, entry fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if err != nil || entry.IsDir() {
				return err
			}
			content, err := os.ReadFile(path)
			onDisk.Write(content)
			if errors.Is(err, fs.ErrNotExist) {
				return nil // the recorder replaces its state meanwhile
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
		const intent = `"stage":"RequestReceived","requestURI":"` + secret + `"`
		found := false
		for line := range strings.Lines(onDisk.String()) {
			found = found || strings.Contains(line, intent) && strings.Contains(line, `"taskgate.dev/approval":"`+a.Name+`"`)
		}
		if !found {
			t.Error("the approval was used before the intent was durable")
		}
	}
	r.call("GET", secret, "", "")
	if !used {
		t.Error("the approval was not used")
	}
}

// TestApprovalBudget: an approval is not used for a call that the budget does not
// allow.
func TestApprovalBudget(t *testing.T) {
	r := newGatedRig(t, newPeople(t))
	r.deletes("ApprovalRequired")
	r.approve()
	charge := r.boundary.charge
	r.boundary.charge = func(context.Context, *authz.Grant, *authz.Policy, control.Use) (*control.Meter, error) {
		return nil, &control.SpentError{Budget: "mutations"}
	}
	r.deletes("BudgetSpent/mutations")
	r.boundary.charge = charge
	r.deletes("")
}

// TestUngatedCallsAskNobody: nothing of this runs for calls without a gate.
func TestUngatedCallsAskNobody(t *testing.T) {
	p := newPeople(t)
	r := newGatedRig(t, p)
	for _, method := range []string{"ApprovalsFor", "ApprovalsOf", "CreateApproval", "RequirementOf", "VerdictOn", "Consume"} {
		p.fail[method] = errors.New("asked")
	}
	r.call("GET", "/api/v1/namespaces/shop/configmaps/settings", "", "")
	r.call("PATCH", "/api/v1/namespaces/shop/configmaps/settings", `{"data":{"a":"b"}}`, "")
	if requests := r.stub.requests(); len(requests) != 2 {
		t.Errorf("%d requests went to the cluster", len(requests))
	}
	for _, e := range r.recorded() {
		if e.Annotations[recorder.AnnotationDigest] != "" || strings.Contains(e.Annotations[recorder.AnnotationPurpose], "preview") {
			t.Errorf("record %+v", e)
		}
	}
}
