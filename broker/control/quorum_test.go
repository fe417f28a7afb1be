package control

import (
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/taskgate/taskgate/api/v1alpha1"
)

const aDigest = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

// vote makes a Decision about the Approval ap, some seconds after noon.
func vote(by, verdict string, second int, changes ...func(*v1alpha1.Decision)) v1alpha1.Decision {
	d := v1alpha1.Decision{
		ObjectMeta: metav1.ObjectMeta{Name: by, UID: types.UID(by), CreationTimestamp: metav1.NewTime(noon.Add(time.Duration(second) * time.Second))},
		Spec: v1alpha1.DecisionSpec{
			Target: v1alpha1.DecisionTarget{Kind: "Approval", Name: "ap", UID: "uid", Digest: aDigest}, Verdict: verdict, By: by, Groups: []string{"sre"}, Reason: "because",
		},
	}
	for _, change := range changes {
		change(&d)
	}
	return d
}

func yes(by string, second int, changes ...func(*v1alpha1.Decision)) v1alpha1.Decision {
	return vote(by, v1alpha1.VerdictApprove, second, changes...)
}

func no(by string, second int, changes ...func(*v1alpha1.Decision)) v1alpha1.Decision {
	return vote(by, v1alpha1.VerdictDeny, second, changes...)
}

func groups(names ...string) func(*v1alpha1.Decision) {
	return func(d *v1alpha1.Decision) { d.Spec.Groups = names }
}

func target(change func(*v1alpha1.DecisionTarget)) func(*v1alpha1.Decision) {
	return func(d *v1alpha1.Decision) { change(&d.Spec.Target) }
}

func required(approvers int, changes ...func(*Requirement)) Requirement {
	r := Requirement{Kind: "Approval", Name: "ap", UID: "uid", Digest: aDigest, Approvers: approvers, Groups: []string{"sre", "oncall"}, Excluded: []string{"alpha", "olga"}}
	for _, change := range changes {
		change(&r)
	}
	return r
}

func TestJudge(t *testing.T) {
	all := func(votes ...v1alpha1.Decision) []v1alpha1.Decision { return votes }
	anybody := func(r *Requirement) { r.Groups = nil }
	rows := []struct {
		name  string
		need  Requirement
		votes []v1alpha1.Decision
		want  State
		at    int // seconds after noon, of what is not Undecided
		by    string
	}{
		{"nobody", required(1), nil, Undecided, 0, ""},
		{"one of one", required(1), all(yes("alice", 1)), Approved, 1, "alice"},
		{"one of two", required(2), all(yes("alice", 1)), Undecided, 0, "alice"},
		{"two of two", required(2), all(yes("alice", 1), yes("bob", 5)), Approved, 5, "alice bob"},
		{"two of two, listed the other way round", required(2), all(yes("bob", 5), yes("alice", 1)), Approved, 5, "alice bob"},
		{"three of two: the second settles it", required(2), all(yes("alice", 1), yes("bob", 5), yes("carol", 9)), Approved, 5, "alice bob carol"},
		{"one person twice", required(2), all(yes("alice", 1), yes("alice", 2)), Undecided, 0, "alice"},
		{"one person twice, by two groups", required(2), all(yes("alice", 1), yes("alice", 2, groups("oncall"))), Undecided, 0, "alice"},
		{"another of the groups", required(1), all(yes("alice", 1, groups("devs", "oncall"))), Approved, 1, "alice"},
		{"none of the groups", required(1), all(yes("alice", 1, groups("devs"))), Undecided, 0, ""},
		{"no group at all", required(1), all(yes("alice", 1, groups())), Undecided, 0, ""},
		{"a group that begins alike", required(1), all(yes("alice", 1, groups("sre-interns", "SRE", ""))), Undecided, 0, ""},
		{"anybody", required(1, anybody), all(yes("alice", 1, groups())), Approved, 1, "alice"},
		{"the agent", required(1), all(yes("alpha", 1)), Undecided, 0, ""},
		{"who asked", required(1), all(yes("olga", 1)), Undecided, 0, ""},
		{"who asked, where anybody may", required(1, anybody), all(yes("olga", 1)), Undecided, 0, ""},
		{"who asked and one more", required(2), all(yes("olga", 1), yes("alice", 2)), Undecided, 0, "alice"},
		{"nobody's name is excluded", required(1, func(r *Requirement) { r.Excluded = []string{""} }), all(yes("", 1)), Undecided, 0, ""},
		{"another kind", required(1), all(yes("alice", 1, target(func(x *v1alpha1.DecisionTarget) { x.Kind = "TaskGrant" }))), Undecided, 0, ""},
		{"another name", required(1), all(yes("alice", 1, target(func(x *v1alpha1.DecisionTarget) { x.Name = "ap2" }))), Undecided, 0, ""},
		{"another UID", required(1), all(yes("alice", 1, target(func(x *v1alpha1.DecisionTarget) { x.UID = "uid2" }))), Undecided, 0, ""},
		{"another digest", required(1), all(yes("alice", 1, target(func(x *v1alpha1.DecisionTarget) { x.Digest = strings.Repeat("b", 64) }))), Undecided, 0, ""},
		{"no digest", required(1), all(yes("alice", 1, target(func(x *v1alpha1.DecisionTarget) { x.Digest = "" }))), Undecided, 0, ""},
		{"never stored", required(1), all(yes("alice", 1, func(d *v1alpha1.Decision) { d.CreationTimestamp = metav1.Time{} })), Undecided, 0, ""},
		{"neither yes nor no", required(1), all(vote("alice", "Maybe", 1), vote("bob", "", 1), vote("carol", "approve", 1)), Undecided, 0, ""},
		{"from the future counts from now", required(1), all(yes("alice", 3600)), Approved, 60, "alice"},

		{"a no", required(1), all(no("alice", 1)), Denied, 1, "alice"},
		{"a no after the quorum", required(1), all(yes("alice", 1), no("bob", 2)), Denied, 2, "bob"},
		{"a yes after the no", required(1), all(no("bob", 1), yes("alice", 2)), Denied, 1, "bob"},
		{"the first no", required(1), all(no("bob", 3), no("alice", 2)), Denied, 2, "alice"},
		{"a no at the same second as the quorum", required(1), all(yes("alice", 1), no("bob", 1)), Denied, 1, "bob"},
		{"one person yes, then no", required(1), all(yes("alice", 1), no("alice", 2)), Denied, 2, "alice"},
		{"a no of who asked", required(1), all(yes("alice", 1), no("olga", 2)), Denied, 2, "olga"},
		{"a no of somebody who has no say", required(1), all(yes("alice", 1), no("mallory", 2, groups("devs"))), Approved, 1, "alice"},
		{"a no about something else", required(1), all(yes("alice", 1), no("bob", 2, target(func(x *v1alpha1.DecisionTarget) { x.UID = "uid2" }))), Approved, 1, "alice"},

		{"nothing is required", Requirement{}, all(yes("alice", 1)), Undecided, 0, ""},
		{"zero approvers", required(0), all(yes("alice", 1)), Undecided, 0, ""},
		{"fewer than zero", required(-1), all(yes("alice", 1)), Undecided, 0, ""},
		{"without a kind", required(1, func(r *Requirement) { r.Kind = "" }), all(yes("alice", 1, target(func(x *v1alpha1.DecisionTarget) { x.Kind = "" }))), Undecided, 0, ""},
		{"without a name", required(1, func(r *Requirement) { r.Name = "" }), all(yes("alice", 1, target(func(x *v1alpha1.DecisionTarget) { x.Name = "" }))), Undecided, 0, ""},
		{"without a UID", required(1, func(r *Requirement) { r.UID = "" }), all(yes("alice", 1, target(func(x *v1alpha1.DecisionTarget) { x.UID = "" }))), Undecided, 0, ""},
		{"without a digest", required(1, func(r *Requirement) { r.Digest = "" }), all(yes("alice", 1, target(func(x *v1alpha1.DecisionTarget) { x.Digest = "" }))), Undecided, 0, ""},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			before := slices.Clone(row.votes)
			got := Judge(row.need, row.votes, noon.Add(time.Minute))
			if got.State != row.want || strings.Join(got.By, " ") != row.by {
				t.Errorf("got %+v", got)
			}
			if at := noon.Add(time.Duration(row.at) * time.Second); row.want != Undecided && !got.At.Equal(at) || row.want == Undecided && !got.At.IsZero() {
				t.Errorf("at %v", got.At)
			}
			if row.want == Denied && got.Reason != "because" {
				t.Errorf("the person's reason is %q", got.Reason)
			}
			slices.Reverse(row.votes)
			if again := Judge(row.need, row.votes, noon.Add(time.Minute)); again.State != got.State || !again.At.Equal(got.At) || !slices.Equal(again.By, got.By) {
				t.Errorf("the order they are listed in matters: %+v, then %+v", got, again)
			}
			slices.Reverse(row.votes)
			for i := range before {
				if before[i].Name != row.votes[i].Name {
					t.Error("the list of the caller was changed")
				}
			}
		})
	}
}

func TestProgress(t *testing.T) {
	for want, need := range map[string]Requirement{
		"1 of 2 approvals of sre or oncall": required(2),
		"1 of 1 approvals of sre or oncall": required(1),
		"1 of 3 approvals":                  required(3, func(r *Requirement) { r.Groups = nil }),
	} {
		if got := Judge(need, []v1alpha1.Decision{yes("alice", 1)}, noon).Reason; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
