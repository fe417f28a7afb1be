package broker

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/taskgate/taskgate/api/v1alpha1"
	"github.com/taskgate/taskgate/authz"
	"github.com/taskgate/taskgate/recorder"
)

// ask asks people about a call that nobody was asked about yet, unless there is no
// point in it: the agent holds a yes for something else, people have enough to
// decide, or the cluster would refuse the call anyway.
func (x *exchange) ask(number int) (approvalState, *refusal) {
	if r := x.worthAsking(); r != nil {
		return unasked, r
	}
	effect, r := x.effect()
	if r != nil {
		return unasked, r
	}
	wanted := x.newApproval(effect)
	ctx, cancel := x.forControl()
	defer cancel()
	const attempts = 8 // a name can be taken by another digest with the same beginning
	for range attempts {
		wanted.Name = nameOf(x.gated.digest, number)
		made, err := x.b.approvals.CreateApproval(ctx, wanted)
		if err == nil {
			return x.asked(made)
		}
		if !apierrors.IsAlreadyExists(err) {
			return unasked, x.unknown(err)
		}
		// Another replica was first: then that one is waited for.
		s, err := x.standing()
		if err != nil {
			return unasked, x.unknown(err)
		}
		if s.state != unasked {
			return s.state, x.tell(&s)
		}
		number = max(number+1, s.number)
	}
	return unasked, x.unknown(fmt.Errorf("no name is free for an approval of the digest %s", x.gated.digest))
}

// asked puts on record that people were asked, and what they see.
func (x *exchange) asked(made *v1alpha1.Approval) (approvalState, *refusal) {
	x.gated.approval = made
	x.b.log.Info().Str("approval", made.Name).Str("gate", made.Spec.Gate).Str("agent", x.conn.agent).Msg("a call waits for approval")
	if err := x.record(x.askedEvent(made)); err != nil {
		return unasked, x.unrecorded(err)
	}
	return waiting, x.required(made)
}

// askedEvent is the record of an Approval that was made. The diff is not part of
// it, only its hash: it can be as large as the objects.
func (x *exchange) askedEvent(made *v1alpha1.Approval) *recorder.Event {
	e := x.event(recorder.StageResponseComplete)
	e.AuditID, e.Verb, e.RequestURI = uuid.NewString(), authz.Create.String(), "/apis/taskgate.dev/v1alpha1/approvals"
	e.ObjectRef = &recorder.ObjectReference{
		APIGroup: v1alpha1.GroupVersion.Group, APIVersion: v1alpha1.GroupVersion.Version, Resource: "approvals",
		Name: made.Name, UID: string(made.UID),
	}
	e.ResponseStatus = &recorder.ResponseStatus{Code: http.StatusCreated}
	e.Annotations[recorder.AnnotationPurpose] = "approval"
	e.Annotations[recorder.AnnotationParent] = x.auditID
	e.Annotations[recorder.AnnotationDecision] = "allow"
	shown := sha256.Sum256([]byte(made.Spec.Diff))
	e.Annotations[annotationDiffSHA256] = hex.EncodeToString(shown[:])
	delete(e.Annotations, recorder.AnnotationRequestBytes)
	delete(e.Annotations, recorder.AnnotationRequestSHA256)
	spec := made.Spec
	spec.Diff = ""
	if object, err := json.Marshal(map[string]any{"spec": &spec}); err == nil { // plain values always encode
		e.RequestObject = object
	}
	return e
}

// annotationDiffSHA256 is the hash of the diff that people are shown.
const annotationDiffSHA256 = "taskgate.dev/diff-sha256"

// nameOf is the name of the Approval of a digest with that number; all replicas
// make the same one.
func nameOf(digest string, number int) string { return fmt.Sprintf("ap-%.10s-%d", digest, number) }

// numberOf is the inverse of nameOf for the digest.
func numberOf(name, digest string) (int, bool) {
	text, found := strings.CutPrefix(name, fmt.Sprintf("ap-%.10s-", digest))
	number, err := strconv.Atoi(text)
	return number, found && err == nil && nameOf(digest, number) == name
}

// worthAsking looks at the agent's other requests, of which it may have so many
// and no more. Each replica may overrun that by the one it makes at that moment.
//
// Fails closed: if they cannot be read, nothing is asked.
func (x *exchange) worthAsking() *refusal {
	ctx, cancel := x.forControl()
	defer cancel()
	all, err := x.b.approvals.ApprovalsOf(ctx, x.conn.agent)
	if err != nil {
		return x.unknown(err)
	}
	if r := x.settledBefore(ctx, all); r != nil {
		return r
	}
	open, today := 0, 0
	for i := range all {
		if x.waits(&all[i]) {
			open++
		}
		if x.b.now().Sub(all[i].CreationTimestamp.Time) < 24*time.Hour {
			today++
		}
	}
	switch {
	case x.gated.target.missing != nil:
		return x.denied(x.gated.target.missing)
	case open >= x.b.asking.MaxOpen:
		return refuse(authz.BudgetSpent, "ApprovalQuota", http.StatusForbidden,
			"%d of your requests wait for approval already, as many as may at a time. Next: wait until one is decided (kubectl get approvals), then repeat the same command", open)
	case today >= x.b.asking.MaxPerDay:
		return refuse(authz.BudgetSpent, "ApprovalQuota", http.StatusForbidden,
			"you have asked for %d approvals in 24 hours, as many as may be. Next: tell whoever gave you the task; retrying changes nothing before tomorrow", today)
	}
	return nil
}

// settledBefore looks for what people said to another form of the same call: a yes
// that still holds, and the same call that was made a moment ago and whose target
// it changed.
func (x *exchange) settledBefore(ctx context.Context, all []v1alpha1.Approval) *refusal {
	for i := range all {
		a := &all[i]
		_, used := consumedAt(a)
		usable := x.b.now().Before(a.Spec.ExpiresAt.Add(a.Spec.UseWithin.Duration))
		if !x.similar(a) || !used && !usable {
			continue // and nobody has to be asked about it
		}
		s, err := x.judge(ctx, a)
		switch {
		case err != nil:
			return x.unknown(err)
		case s.state == consumed && x.b.now().Before(s.since.Add(s.gone)) && x.sameButTarget(a):
			return x.tell(&s)
		case s.state == approved:
			return x.mismatch(&s)
		}
	}
	return nil
}

// waits reports whether people still have to decide about an Approval, as far as
// its status says: only a number depends on it.
func (x *exchange) waits(a *v1alpha1.Approval) bool {
	_, used := consumedAt(a)
	return !used && x.b.now().Before(a.Spec.ExpiresAt.Time) && !meta.IsStatusConditionTrue(a.Status.Conditions, v1alpha1.ApprovalDecided)
}

// similar reports whether an Approval is about another form of this call: the
// same verb on the same object, under the same grant and gate.
func (x *exchange) similar(a *v1alpha1.Approval) bool {
	c, other := &x.request.Call, &a.Spec.Call
	return a.Spec.GrantUID == x.decision.Grant.UID && a.Spec.Gate == x.decision.Gate.Name && a.Spec.Digest != x.gated.digest &&
		other.Verb == c.Verb.String() && other.Group == c.Group && other.Resource == c.Resource && other.Subresource == c.Subresource &&
		other.Namespace == c.Namespace && other.Name == x.request.ObjectName()
}

// sameButTarget reports whether the Approval is for exactly this call on what its
// target was then.
func (x *exchange) sameButTarget(a *v1alpha1.Approval) bool {
	then := x.gated.elements
	then.targetUID = a.Spec.Call.UID
	if x.decision.Gate.PinVersion {
		then.targetVersion = a.Spec.Call.ResourceVersion
	}
	return then.digest() == a.Spec.Digest
}

// mismatch refuses a call that people did not say yes to, while they said yes to
// one that is like it: to ask once more would be to pass one off as the other.
func (x *exchange) mismatch(s *standing) *refusal {
	x.gated.approval, x.gated.deciders = s.approval, s.deciders
	c, given := &x.request.Call, &s.approval.Spec.Call
	until := clockSeconds(s.useBy)
	if x.sameButTarget(s.approval) {
		cause, what := "ApprovalStale", "it has changed since"
		switch {
		case c.Verb == authz.DeleteCollection:
			what = "it would delete other objects now"
		case given.UID != x.gated.target.uid:
			cause, what = "TargetChanged", fmt.Sprintf("the object was replaced since (UID %s then, %s now)", given.UID, orNone(x.gated.target.uid))
		}
		return refuse(authz.ApprovalMismatch, cause, http.StatusForbidden,
			"the approval %s to %s does not hold: %s. Next: look at what it is about; to ask anew, repeat the command after %s", s.approval.Name, does(c), what, until)
	}
	return refuse(authz.ApprovalMismatch, "", http.StatusForbidden,
		"the approval %s is for another command than this one (%s differs). Next: run exactly the command that was approved; to ask for this one, repeat it after %s", s.approval.Name, x.differing(given), until)
}

func orNone(uid string) string {
	if uid == "" {
		return "none"
	}
	return uid
}

// differing says in words what of the call is not as it was approved.
func (x *exchange) differing(given *v1alpha1.ApprovalCall) string {
	now := x.describeForPeople()
	var parts []string
	for _, part := range []struct{ name, given, now string }{
		{"the API version", given.Version, now.Version},
		{"the query", given.Query, now.Query},
		{"the command", fmt.Sprintf("%q", given.Command), fmt.Sprintf("%q", now.Command)},
		{"the media type", given.MediaType, now.MediaType},
		{"the body", fmt.Sprint(given.BodySHA256, given.BodyBytes), fmt.Sprint(now.BodySHA256, now.BodyBytes)},
		{"the object", given.UID, now.UID},
	} {
		if part.given != part.now {
			parts = append(parts, part.name)
		}
	}
	if len(parts) == 0 {
		return "the body" // of a Secret, of which nothing is kept to compare
	}
	return strings.Join(parts, ", ")
}

// newApproval is what people are asked. Everything that the agent wrote is in it
// as data.
func (x *exchange) newApproval(shown *effect) *v1alpha1.Approval {
	grant, gate := x.decision.Grant, x.decision.Gate
	// The time of a Decision is known to the second, so the end is a whole one: a
	// yes in the second of the end is too late.
	end := x.b.now().Add(gate.TTL + time.Second - 1).Truncate(time.Second)
	return &v1alpha1.Approval{
		TypeMeta: metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: "Approval"},
		Spec: v1alpha1.ApprovalSpec{
			Agent: x.conn.agent, Task: grant.Task, Grant: grant.Name, GrantUID: grant.UID, Policy: grant.Policy,
			Gate: gate.Name, Approvers: int32(gate.Approvers), Groups: gate.Groups,
			Call: x.describeForPeople(), Summary: cut(x.summary(), 1024), Diff: shown.diff, DiffNote: cut(shown.note, 1024),
			Digest: x.gated.digest, UseWithin: metav1.Duration{Duration: gate.UseWithin},
			ExpiresAt: metav1.NewMicroTime(end),
		},
	}
}

func (x *exchange) describeForPeople() v1alpha1.ApprovalCall {
	c, r := &x.request.Call, x.request
	call := v1alpha1.ApprovalCall{
		Verb: c.Verb.String(), Group: c.Group, Version: c.Version, Resource: c.Resource, Subresource: c.Subresource,
		Namespace: c.Namespace, Name: r.ObjectName(), UID: x.gated.target.uid, ResourceVersion: x.gated.target.version,
		Query: cut(x.gated.elements.query, 8192), MediaType: x.gated.elements.mediaType, BodyBytes: int64(len(x.gated.elements.body)),
	}
	call.Command = x.gated.elements.exec
	if objects := x.gated.target.objects; objects != nil {
		count := int64(len(objects))
		call.Objects = &count
	}
	if len(x.gated.elements.body) > 0 && !concernsSecrets(r) {
		sum := sha256.Sum256(x.gated.elements.body)
		call.BodySHA256 = hex.EncodeToString(sum[:])
	}
	return call
}

// summary says in words what the call would do.
func (x *exchange) summary() string {
	text := does(&x.request.Call)
	if name := x.request.ObjectName(); name != "" && x.request.Call.Name == "" {
		text += " named " + strconv.Quote(name)
	}
	if objects := x.gated.target.objects; objects != nil {
		text += fmt.Sprintf(": %d objects", len(objects))
	}
	if x.request.DryRun {
		text += " (a dry run: nothing is kept)"
	}
	return text
}

// cut shortens a text to at most so many bytes, and shows that it did.
func cut(text string, most int) string {
	if len(text) <= most {
		return text
	}
	const mark = "…"
	end := most - len(mark)
	for end > 0 && !utf8.RuneStart(text[end]) {
		end--
	}
	return text[:end] + mark
}
