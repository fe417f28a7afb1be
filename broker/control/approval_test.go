package control

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/taskgate/taskgate/api/v1alpha1"
)

func anApproval(status v1alpha1.ApprovalStatus) *v1alpha1.Approval {
	return &v1alpha1.Approval{
		ObjectMeta: metav1.ObjectMeta{Name: "ap", UID: "uid", ResourceVersion: "7"},
		Spec: v1alpha1.ApprovalSpec{
			Agent: "alpha", Digest: aDigest, Approvers: 1, UseWithin: metav1.Duration{Duration: 5 * time.Minute},
			ExpiresAt: metav1.NewMicroTime(noon.Add(15 * time.Minute)),
		},
		Status: status,
	}
}

// TestApprovalStatus writes down what people said, step by step: each row goes on
// from the status of the one before.
func TestApprovalStatus(t *testing.T) {
	at := func(minutes int) time.Time { return noon.Add(time.Duration(minutes) * time.Minute) }
	agreed, refused := Verdict{State: Approved, At: at(1), By: []string{"alice"}}, Verdict{State: Denied, At: at(2), By: []string{"bob"}, Reason: "not now"}
	type step struct {
		minute  int
		verdict Verdict
		use     bool
		want    string
	}
	for name, steps := range map[string][]step{
		"approved and used":       {{0, Verdict{}, false, ""}, {1, agreed, false, "True Approved"}, {2, agreed, true, "True Approved"}, {20, refused, false, "True Approved"}},
		"used before it is seen":  {{1, Verdict{}, true, ""}, {1, Verdict{}, false, ""}, {30, agreed, false, "True Approved"}},
		"used, and nobody agreed": {{1, Verdict{}, true, ""}, {30, Verdict{}, false, ""}, {30, refused, false, ""}},
		"denied":                  {{1, Verdict{State: Denied, At: at(1), By: []string{"bob"}, Reason: "not now"}, false, "True Denied"}, {2, agreed, false, "True Denied"}},
		"denied after the yes":    {{1, agreed, false, "True Approved"}, {2, refused, false, "True Denied"}, {3, agreed, false, "True Denied"}},
		"nobody decided":          {{14, Verdict{}, false, ""}, {15, Verdict{}, false, "True Expired"}, {16, agreed, false, "True Expired"}},
		"not used in time":        {{1, agreed, false, "True Approved"}, {5, agreed, false, "True Approved"}, {6, agreed, false, "True Expired"}, {7, refused, false, "True Expired"}},
		"used at the last moment": {{5, agreed, true, ""}, {6, agreed, false, "True Approved"}},
		"the yes came too late":   {{17, Verdict{State: Approved, At: at(16), By: []string{"alice"}}, false, "True Expired"}},
		"the right was lost":      {{1, agreed, false, "True Approved"}, {2, Verdict{Reason: "0 of 1 approvals"}, false, "False Pending"}, {15, Verdict{}, false, "True Expired"}},
		"lost and given again":    {{1, agreed, false, "True Approved"}, {2, Verdict{}, false, "False Pending"}, {3, agreed, false, "True Approved"}},
	} {
		t.Run(name, func(t *testing.T) {
			approval := anApproval(v1alpha1.ApprovalStatus{})
			for i, s := range steps {
				if s.use {
					now := metav1.NewMicroTime(at(s.minute))
					approval.Status.ConsumedBy, approval.Status.ConsumedAt = "id", &now
					if s.want == "" {
						continue
					}
				}
				approval.Status = approvalStatus(approval, s.verdict, at(s.minute))
				got := ""
				if c := meta.FindStatusCondition(approval.Status.Conditions, v1alpha1.ApprovalDecided); c != nil {
					got = string(c.Status) + " " + c.Reason
				}
				if got != s.want {
					t.Fatalf("step %d: got %q, want %q", i, got, s.want)
				}
				if diff := cmp.Diff(approval.Status, approvalStatus(approval, s.verdict, at(s.minute))); diff != "" {
					t.Errorf("step %d, judging it again changes it:\n%s", i, diff)
				}
			}
		})
	}
}

func TestApprovalMessage(t *testing.T) {
	status := approvalStatus(anApproval(v1alpha1.ApprovalStatus{}), Verdict{State: Denied, At: noon, By: []string{"bob"}, Reason: "not now"}, noon)
	if got := status.Conditions[0].Message; got != "denied by bob: not now" || !status.DecidedAt.Time.Equal(noon) {
		t.Errorf("got %q at %v", got, status.DecidedAt)
	}
	status = approvalStatus(anApproval(v1alpha1.ApprovalStatus{}), Verdict{State: Approved, At: noon, By: []string{"alice", "bob"}}, noon)
	if got := status.Conditions[0].Message; got != "approved by alice, bob; the call may be made until 2026-11-23T12:05:00Z" {
		t.Errorf("got %q", got)
	}
}

// TestConsumeNeedsWhatWasRead: without a resource version the API server would let
// anybody win, and one that is used is not even sent.
func TestConsumeNeedsWhatWasRead(t *testing.T) {
	c := new(Controller) // it must not get as far as its client
	now := metav1.NewMicroTime(noon)
	for name, approval := range map[string]*v1alpha1.Approval{
		"never read": {},
		"without version": func() *v1alpha1.Approval {
			a := anApproval(v1alpha1.ApprovalStatus{})
			a.ResourceVersion = ""
			return a
		}(),
		"used":                   anApproval(v1alpha1.ApprovalStatus{ConsumedBy: "other"}),
		"used at a time":         anApproval(v1alpha1.ApprovalStatus{ConsumedAt: &now}),
		"used, by its condition": anApproval(v1alpha1.ApprovalStatus{Conditions: []metav1.Condition{{Type: v1alpha1.ApprovalConsumed, Status: metav1.ConditionTrue}}}),
	} {
		err := c.Consume(t.Context(), approval, "id", noon)
		if err == nil {
			t.Fatalf("%s: consumed", name)
		}
		if _, conflict := err.(*ConflictError); conflict != strings.HasPrefix(name, "used") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := c.Consume(t.Context(), anApproval(v1alpha1.ApprovalStatus{}), "", noon); err == nil {
		t.Error("consumed without an audit ID")
	}
}
