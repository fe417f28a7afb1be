package control

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/taskgate/taskgate/api/v1alpha1"
)

// Requirement says who has to agree to what.
type Requirement struct {
	Kind   string // TaskGrant or Approval
	Name   string
	UID    string
	Digest string
	// Approvers is the number of different people who have to agree.
	Approvers int
	// Groups the people have to belong to; empty means that whoever may create
	// Decisions may decide.
	Groups []string
	// Excluded people never count for a yes: the agent, who asked in its name, and
	// who created the grant.
	Excluded []string
}

// State is what people have made of a request. The zero State is Undecided.
type State uint8

// The states. Denied is final; Approved lasts for as long as the Decisions do and
// nobody adds a no.
const (
	Undecided State = iota
	Approved
	Denied
)

// Verdict is what Decisions are worth for one Requirement. The zero Verdict lets
// nothing through.
type Verdict struct {
	State State
	// At is the time of the Decision that settled it, never later than now: of the
	// yes that completed the quorum, or of the first no.
	At time.Time
	// By are the people who count: those who agreed, or the one who said no.
	By []string
	// Reason is, of a denial, what the person wrote; otherwise how far it is.
	Reason string
}

// Judge says what Decisions are worth. It is pure, and fails closed: a
// Requirement without UID, digest or approvers is never approved, and a Decision
// counts only if kind, name, UID and digest of its target are the ones required,
// if it was stored by an API server, and if one of its groups is required (or
// none is). One person counts once. The first no of anybody who could count
// settles it for good, also if enough people have agreed before, and also if the
// person is excluded from agreeing.
func Judge(r Requirement, decisions []v1alpha1.Decision, now time.Time) Verdict {
	if !r.complete() {
		return Verdict{Reason: "nothing can satisfy what is required"}
	}
	var yes []v1alpha1.Decision
	for _, d := range inOrder(decisions) {
		if !r.concerns(&d) {
			continue
		}
		switch {
		case d.Spec.Verdict == v1alpha1.VerdictDeny:
			return Verdict{State: Denied, At: notAfter(d.CreationTimestamp.Time, now), By: []string{d.Spec.By}, Reason: d.Spec.Reason}
		case r.agrees(&d) && !slices.ContainsFunc(yes, func(other v1alpha1.Decision) bool { return other.Spec.By == d.Spec.By }):
			yes = append(yes, d)
		}
	}
	verdict := Verdict{Reason: r.progress(len(yes))}
	for _, d := range yes {
		verdict.By = append(verdict.By, d.Spec.By)
	}
	if len(yes) >= r.Approvers {
		verdict.State, verdict.At = Approved, notAfter(yes[r.Approvers-1].CreationTimestamp.Time, now)
	}
	return verdict
}

// complete reports whether the Requirement can be satisfied at all.
func (r Requirement) complete() bool {
	return r.Kind != "" && r.Name != "" && r.UID != "" && r.Digest != "" && r.Approvers > 0
}

// concerns reports whether a Decision is about exactly this, by somebody who may
// say no to it.
func (r Requirement) concerns(d *v1alpha1.Decision) bool {
	target := d.Spec.Target
	return target.Kind == r.Kind && target.Name == r.Name && target.UID == r.UID && target.Digest == r.Digest &&
		d.Spec.By != "" && !d.CreationTimestamp.IsZero() &&
		(len(r.Groups) == 0 || slices.ContainsFunc(d.Spec.Groups, func(group string) bool { return slices.Contains(r.Groups, group) }))
}

// agrees reports whether a Decision that concerns this is a yes that may count.
func (r Requirement) agrees(d *v1alpha1.Decision) bool {
	return d.Spec.Verdict == v1alpha1.VerdictApprove && !slices.Contains(r.Excluded, d.Spec.By)
}

func (r Requirement) progress(yes int) string {
	return fmt.Sprintf("%d of %d approvals%s", min(yes, r.Approvers), r.Approvers, ofGroups(r.Groups))
}

func ofGroups(groups []string) string {
	if len(groups) == 0 {
		return ""
	}
	return " of " + strings.Join(groups, " or ")
}

// inOrder sorts by time; within one second, which is as exact as the API server
// writes it, all replicas have to agree, so the UID breaks the tie.
func inOrder(decisions []v1alpha1.Decision) []v1alpha1.Decision {
	sorted := slices.Clone(decisions)
	slices.SortFunc(sorted, func(a, b v1alpha1.Decision) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.UID, b.UID))
	})
	return sorted
}

// notAfter keeps an API server whose clock is ahead from lengthening the time a
// yes may be used.
func notAfter(t, now time.Time) time.Time {
	if t.After(now) {
		return now
	}
	return t
}
