package cli

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/taskgate/taskgate/api/v1alpha1"
)

// decided is the one Decision a command has made.
func decided(t *testing.T, f *fakeCluster) v1alpha1.DecisionSpec {
	t.Helper()
	all := written[v1alpha1.Decision](t, f, decisions)
	if len(all) != 1 || !strings.HasPrefix(all[0].Name, "dec-") {
		t.Fatalf("%d Decisions: %v", len(all), all)
	}
	return all[0].Spec
}

func TestApprove(t *testing.T) {
	f := newFakeCluster(t, approval(), grant(isActive()), policyNamed("shop", nil))
	f.run(t, "approve", "ap-1", "--reason", "seen", "--yes").check(t, 0, "Approved approval/ap-1. The agent may make exactly this call once, within 5m0s.\n", "")
	want := v1alpha1.DecisionSpec{
		Target:  v1alpha1.DecisionTarget{Kind: "Approval", Name: "ap-1", UID: "uid-ap-1", Digest: digestOne},
		Verdict: "Approve", By: "alice@example.org", Groups: []string{"sre"}, Reason: "seen",
	}
	if got := decided(t, f); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	f.run(t, "approve", "ap-1", "--yes").check(t, 1, "", "you have approved approval/ap-1 already; it needs 1 of 1 from sre, platform")
	f.run(t, "deny", "ap-1", "--yes").check(t, 0, "Denied approval/ap-1. That is final.\n", "")
}

func TestApproveGrant(t *testing.T) {
	f := newFakeCluster(t, grant(waits()), policyNamed("shop", nil))
	f.run(t, "approve", "inc", "--yes").check(t, 0, "Approved taskgrant/inc. One more person has to agree.\n", "")
	want := v1alpha1.DecisionTarget{Kind: "TaskGrant", Name: "inc", UID: "uid-inc", Digest: strings.Repeat("2", 64)}
	if got := decided(t, f); got.Target != want || !slices.Equal(got.Groups, []string{"sre"}) {
		t.Errorf("%+v", got)
	}
	f.user.Username = "bob"
	f.run(t, "approve", "taskgrant/inc", "--yes").check(t, 0, "Approved taskgrant/inc. It is active for 30m0s from now.\n", "")
}

func TestApproveAsks(t *testing.T) {
	f := newFakeCluster(t, approval(), grant(isActive()), policyNamed("shop", nil))
	t.Setenv("NO_COLOR", "1")
	got := f.typed(t, "no\n", "approve", "ap-1")
	before, _, _ := strings.Cut(shownApproval, "State")
	if got.code != 1 || got.problem != "nothing was decided" || !strings.HasPrefix(got.out, before) || !strings.HasSuffix(got.out, "\nApprove? Type yes: ") {
		t.Errorf("%s", got)
	}
	if got := f.typed(t, "", "approve", "ap-1"); got.code != 2 || got.problem != "nothing was decided: EOF" {
		t.Errorf("%s", got)
	}
	f.run(t, "approve", "ap-1").check(t, 2, "", "nobody sits at a terminal to be asked: give --yes")
	if all := written[v1alpha1.Decision](t, f, decisions); len(all) != 0 {
		t.Errorf("decided all the same: %v", all)
	}
	if got := f.typed(t, "Yes\n", "approve", "ap-1"); got.code != 0 || !strings.HasSuffix(got.out, "Approved approval/ap-1. The agent may make exactly this call once, within 5m0s.\n") {
		t.Errorf("%s", got)
	}
}

// TestRefusedToDecide: every refusal says why, and nothing is decided.
func TestRefusedToDecide(t *testing.T) {
	forbidden := failure(403, metav1.StatusReasonForbidden, `decisions.taskgate.dev is forbidden: User "alice@example.org" cannot create`)
	admission := failure(422, metav1.StatusReasonInvalid, `ValidatingAdmissionPolicy 'taskgate-decisions' denied request: by must be you`)
	long := func(a *v1alpha1.Approval) { a.Spec.Call.Command = []string{strings.Repeat("x", 100<<10+1)} }
	cutByBroker := func(a *v1alpha1.Approval) { a.Spec.DiffNote = "cut: 131072 of 2097152 bytes" }
	for _, test := range []struct {
		name    string
		stored  []metav1.Object
		change  func(f *fakeCluster)
		more    []string
		code    int
		problem string
	}{
		{"no such", nil, nil, nil, 2, `there is no Approval and no TaskGrant "ap-1"; see what waits with taskgate pending`},
		{"denied", []metav1.Object{approval(settledAs(v1alpha1.ApprovalDecided, "Denied"))}, nil, nil, 1, "approval/ap-1 is settled (Denied): it was denied"},
		{"denied, status is late", []metav1.Object{approval(), said("d0", "Deny", "carol", "nobody-asked"), said("d1", "Deny", "bob", "sre")}, nil, nil, 1, "approval/ap-1 was denied by bob at 2026-11-23 12:00:00Z: looks fine"},
		{"approved", []metav1.Object{approval(settledAs(v1alpha1.ApprovalDecided, "Approved"))}, nil, nil, 1, "approval/ap-1 is settled (Approved): approved"},
		{"used", []metav1.Object{approval(settledAs(v1alpha1.ApprovalConsumed, "Consumed"))}, nil, nil, 1, "approval/ap-1 is settled (Used): it was approved, and the call was let through"},
		{"expired", []metav1.Object{approval(func(a *v1alpha1.Approval) { a.Spec.ExpiresAt = metav1.NewMicroTime(time.Unix(0, 0)) })}, nil, nil, 1,
			"approval/ap-1 is settled (Expired): nobody decided before 1970-01-01 00:00:00Z"},
		{"not asked", []metav1.Object{grant(waits(), func(g *v1alpha1.TaskGrant) { g.Name = "ap-1" }), policyNamed("shop", func(s *v1alpha1.AgentPolicySpec) {
			s.Grant.Approval = v1alpha1.GrantApproval{None: true}
		})}, nil, nil, 1, "taskgrant/ap-1 is not for people to decide now: waits for 2 people of sre"},
		{"asked for the grant", []metav1.Object{approval(), grant(isActive(), func(g *v1alpha1.TaskGrant) { g.Spec.RequestedBy = "alice@example.org" })}, nil, nil, 1,
			"you (alice@example.org) asked for approval/ap-1: somebody else has to approve it"},
		{"in none of the groups", []metav1.Object{approval()}, func(f *fakeCluster) { f.user.Groups = []string{"dev"} }, nil, 1,
			"you (alice@example.org) are in none of the groups that are asked, sre, platform; your groups are dev"},
		{"not in that group", []metav1.Object{approval()}, nil, []string{"--group", "platform"}, 1, "you (alice@example.org) are not in the group platform"},
		{"no right", []metav1.Object{approval()}, func(f *fakeCluster) { f.deny["create decisions"] = forbidden }, nil, 1,
			`creating the Decision (create decisions.taskgate.dev): you may not do that; the ClusterRole taskgate-approver allows it: decisions.taskgate.dev is forbidden: User "alice@example.org" cannot create`},
		{"admission", []metav1.Object{approval()}, func(f *fakeCluster) { f.deny["create decisions"] = admission }, nil, 1,
			"the cluster does not take your Decision: ValidatingAdmissionPolicy 'taskgate-decisions' denied request: by must be you"},
		{"Decisions cannot be read", []metav1.Object{approval()}, func(f *fakeCluster) {
			f.deny["get decisions"] = failure(500, metav1.StatusReasonInternalError, "broken")
		}, nil, 2,
			"listing the Decisions: broken"},
		{"nobody knows who", []metav1.Object{approval()}, func(f *fakeCluster) { f.user.Username = "" }, nil, 2, "the cluster does not say who you are"},
		{"another digest", []metav1.Object{approval()}, nil, []string{"--digest", "2222"}, 1,
			"approval/ap-1 has the digest " + digestOne + ", not the one you gave: it is not what you have seen"},
		{"too long", []metav1.Object{approval(long)}, nil, nil, 1,
			"approval/ap-1 is too long to be shown at once: read it with taskgate show approval/ap-1 --full, then give --digest"},
		{"long diff", []metav1.Object{approval(func(a *v1alpha1.Approval) { a.Spec.Diff = strings.Repeat("+", 100<<10+1) })}, nil, []string{"--full"}, 1,
			"approval/ap-1 is too long to be shown at once: read it with taskgate show approval/ap-1 --full, then give --digest"},
		{"cut by the broker", []metav1.Object{approval(cutByBroker)}, nil, []string{"--full"}, 1,
			"the diff of approval/ap-1 is not whole (cut: 131072 of 2097152 bytes): look at the change elsewhere, then give --digest " + digestOne},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newFakeCluster(t, test.stored...)
			if test.change != nil {
				test.change(f)
			}
			before := len(written[v1alpha1.Decision](t, f, decisions))
			f.run(t, append([]string{"approve", "ap-1", "--yes"}, test.more...)...).check(t, test.code, "", test.problem)
			if after := len(written[v1alpha1.Decision](t, f, decisions)); after != before {
				t.Error("decided all the same")
			}
		})
	}
}

// TestApproveLong: T121. What was read whole, or is named by its digest, can be
// approved.
func TestApproveLong(t *testing.T) {
	long := approval(func(a *v1alpha1.Approval) { a.Spec.Call.Command = []string{strings.Repeat("x", 1<<20)} })
	for _, test := range []struct {
		name, typed string
		more        []string
		code        int
	}{
		{"shown in part", "yes\n", nil, 1},
		{"shown whole", "yes\n", []string{"--full"}, 0},
		{"named", "", []string{"--yes", "--digest", digestOne}, 0},
	} {
		f := newFakeCluster(t, long)
		if got := f.typed(t, test.typed, append([]string{"approve", "ap-1"}, test.more...)...); got.code != test.code {
			t.Errorf("%s: exit %d, %s", test.name, got.code, got.problem)
		}
	}
	f := newFakeCluster(t, long)
	f.run(t, "deny", "ap-1", "--yes").check(t, 0, "Denied approval/ap-1. That is final.\n", "")
}

// TestGroupsOfADecision are no more than it needs, where that is known.
func TestGroupsOfADecision(t *testing.T) {
	anybody := approval(func(a *v1alpha1.Approval) { a.Spec.Groups = nil })
	for _, test := range []struct {
		name   string
		stored metav1.Object
		more   []string
		want   []string
	}{
		{"ap-1", anybody, nil, nil},
		{"ap-1", anybody, []string{"--group", "dev"}, []string{"dev"}},
		{"ap-1", approval(func(a *v1alpha1.Approval) { a.Spec.Groups = []string{"dev", "sre"} }), nil, []string{"sre", "dev"}},
		{"ap-1", approval(func(a *v1alpha1.Approval) { a.Spec.Groups = []string{"dev", "sre"} }), []string{"--group", "dev"}, []string{"dev"}},
		{"inc", grant(waits()), nil, []string{"sre", "dev", "system:authenticated"}}, // its policy is gone
	} {
		f := newFakeCluster(t, test.stored)
		if got := f.run(t, append([]string{"approve", test.name, "--yes"}, test.more...)...); got.code != 0 {
			t.Errorf("%s", got)
			continue
		}
		if got := decided(t, f).Groups; !slices.Equal(got, test.want) {
			t.Errorf("%s %v: groups %v, want %v", test.name, test.more, got, test.want)
		}
	}
}

func TestWait(t *testing.T) {
	ago := metav1.NewMicroTime(time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC))
	for _, test := range []struct {
		name   string
		object metav1.Object
		code   int
		out    string
	}{
		{"ap-1", approval(settledAs(v1alpha1.ApprovalDecided, "Approved")), 0, "approval/ap-1: approved\n"},
		{"ap-1", approval(settledAs(v1alpha1.ApprovalDecided, "Approved"), func(a *v1alpha1.Approval) { a.Status.DecidedAt = &ago }), 1,
			"approval/ap-1: it was approved at 2026-11-23 12:00:00Z and not used within 5m0s\n"},
		{"ap-1", approval(settledAs(v1alpha1.ApprovalDecided, "Denied")), 1, "approval/ap-1: it was denied\n"},
		{"ap-1", approval(settledAs(v1alpha1.ApprovalDecided, "Expired")), 1, "approval/ap-1: it was expired\n"},
		{"ap-1", approval(settledAs(v1alpha1.ApprovalDecided, "Approved"), settledAs(v1alpha1.ApprovalConsumed, "Consumed")), 1,
			"approval/ap-1: it was approved, and the call was let through\n"},
		{"inc", grant(isActive()), 0, "taskgrant/inc: active until later\n"},
		{"inc", grant(conditions("False", "False", "True", "OutsidePolicy", "the policy does not allow: get secrets")), 1, "taskgrant/inc: the policy does not allow: get secrets\n"},
		{"inc", grant(conditions("True", "False", "True", "Expired", "it was active until then")), 1, "taskgrant/inc: it was active until then\n"},
	} {
		newFakeCluster(t, test.object).run(t, "wait", test.name).check(t, test.code, test.out, "")
	}
	f := newFakeCluster(t, approval(), grant(waits()))
	f.run(t, "wait", "ap-1", "--timeout", "50ms").check(t, 2, "", "approval/ap-1 is not settled after 50ms: waits for people")
	f.run(t, "wait", "inc", "--timeout", "50ms").check(t, 2, "", "taskgrant/inc is not settled after 50ms: waits for 2 people of sre")
	f.run(t, "wait", "nothing").check(t, 2, "", `there is no Approval and no TaskGrant "nothing"; see what waits with taskgate pending`)
}

// TestWaitWatches: what happens while it waits ends it.
func TestWaitWatches(t *testing.T) {
	for _, test := range []struct {
		name, out string
		code      int
		happens   func(t *testing.T, f *fakeCluster)
	}{
		{"ap-1", "approval/ap-1: approved\n", 0, func(t *testing.T, f *fakeCluster) {
			f.put(t, approval(settledAs(v1alpha1.ApprovalDecided, "Approved")))
		}},
		{"ap-1", "approval/ap-1: it was denied\n", 1, func(t *testing.T, f *fakeCluster) { f.put(t, approval(settledAs(v1alpha1.ApprovalDecided, "Denied"))) }},
		{"ap-1", "approval/ap-1: it is gone\n", 1, func(t *testing.T, f *fakeCluster) {
			f.put(t, approval(func(a *v1alpha1.Approval) { a.UID = "another" }))
		}},
		{"inc", "taskgrant/inc: active until later\n", 0, func(t *testing.T, f *fakeCluster) { f.put(t, grant(isActive())) }},
		{"inc", "taskgrant/inc: it is gone\n", 1, func(t *testing.T, f *fakeCluster) {
			f.mu.Lock()
			defer f.mu.Unlock()
			object := f.objects["taskgrants/inc"]
			delete(f.objects, "taskgrants/inc")
			f.tellLocked("DELETED", "taskgrants/inc", object)
		}},
	} {
		f := newFakeCluster(t, approval(), grant(waits()))
		go func() {
			for !f.watched() {
				time.Sleep(time.Millisecond)
			}
			test.happens(t, f)
		}()
		f.run(t, "wait", test.name, "--timeout", "10s").check(t, test.code, test.out, "")
	}
}

func (f *fakeCluster) watched() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.watchers) > 0
}
