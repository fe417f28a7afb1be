package broker

import (
	"encoding/json"
	"fmt"
	"net/http"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/taskgate/taskgate/authz"
	"github.com/taskgate/taskgate/recorder"
)

// review answers a call in which the agent asks about itself from the grants, so
// that kubectl auth can-i tells the truth about calls through the boundary. It is
// decided and recorded like any other: intent, then outcome, then the answer.
func (x *exchange) review() *refusal {
	if refused := x.decide(); refused != nil {
		return refused
	}
	e := x.event(recorder.StageRequestReceived)
	var err error
	if e.RequestObject, err = requestObject(x.request); err != nil {
		return x.invariant("a body that was decoded cannot be encoded")
	}
	if _, err := x.b.recorder.Append(e); err != nil {
		return x.unrecorded(err)
	}
	var answer any
	switch x.request.Call.Resource {
	case "selfsubjectaccessreviews":
		answer, err = reviewAs(x, x.accessReview)
	case "selfsubjectrulesreviews":
		answer, err = reviewAs(x, x.rulesReview)
	default:
		answer, err = reviewAs(x, x.subjectReview)
	}
	if err != nil {
		return x.denied(refuse(authz.BadBody, "Review", http.StatusBadRequest, "the review cannot be read: %v", err))
	}
	e = x.event(recorder.StageResponseComplete)
	e.ResponseStatus = &recorder.ResponseStatus{Code: http.StatusCreated}
	if err := x.record(e); err != nil {
		return x.unrecorded(err)
	}
	header := x.w.Header()
	header.Set("Content-Type", "application/json")
	header.Set("Cache-Control", "no-store")
	header.Set(headerAuditID, x.auditID)
	x.w.WriteHeader(http.StatusCreated)
	_ = json.NewEncoder(x.w).Encode(answer) // an agent that is gone need not be told
	return nil
}

// reviewAs reads the body as one kind of review and has it answered.
func reviewAs[T any](x *exchange, answer func(*T)) (*T, error) {
	review := new(T)
	body, err := json.Marshal(x.request.Object) // whatever it was encoded as
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(body, review); err != nil {
		return nil, err
	}
	answer(review)
	return review, nil
}

func (x *exchange) accessReview(review *authorizationv1.SelfSubjectAccessReview) {
	review.TypeMeta = metav1.TypeMeta{APIVersion: "authorization.k8s.io/v1", Kind: "SelfSubjectAccessReview"}
	question := x.question
	question.Call = asked(&review.Spec)
	d := authz.Decide(question)
	shown := ""
	if question.Call.Secrets() && !d.Values {
		shown = "; values are masked"
	}
	if d.Verdict == authz.Allow {
		review.Status = authorizationv1.SubjectAccessReviewStatus{Allowed: true, Reason: "allowed by " + basis(&d) + shown}
		return
	}
	if d.Verdict == authz.NeedsApproval {
		which := "every such call"
		if len(d.Conditional) > 0 { // what the call would be about is not known
			which = "a call that meets the condition"
		}
		review.Status = authorizationv1.SubjectAccessReviewStatus{Allowed: true, Reason: fmt.Sprintf(
			"allowed by %s once people agree: %s needs %s (gate %s)%s", basis(&d), which, approvalsNeeded(d.Gate.Approvers, d.Gate.Groups), d.Gate.Name, shown)}
		return
	}
	review.Status = authorizationv1.SubjectAccessReviewStatus{Denied: true, Reason: undecided(&d, &question).Error()}
}

func basis(d *authz.Decision) string {
	if d.Grant == nil {
		return "taskgate for every agent"
	}
	return fmt.Sprintf("the grant %s (task %s)", d.Grant.Name, d.Grant.Task)
}

// asked translates what a review asks for. Words the broker does not know become
// the zero verb, which is never allowed.
func asked(spec *authorizationv1.SelfSubjectAccessReviewSpec) *authz.Call {
	if a := spec.NonResourceAttributes; a != nil {
		return &authz.Call{Verb: authz.ParseVerb(a.Verb), Path: a.Path}
	}
	a := spec.ResourceAttributes
	if a == nil {
		return &authz.Call{}
	}
	call := &authz.Call{
		Verb: authz.ParseVerb(a.Verb), Group: a.Group, Version: a.Version, Resource: a.Resource,
		Subresource: a.Subresource, Namespace: a.Namespace, Name: a.Name,
	}
	if call.Group == "" && call.Resource == "namespaces" && call.Namespace == "" {
		call.Namespace = call.Name // as in the path of such a call
	}
	if call.Group == authz.OwnGroup {
		call.Namespace = "" // kubectl sends one; these objects are in none
	}
	return call
}

// rulesReview lists the rules of the active grants in a namespace.
func (x *exchange) rulesReview(review *authorizationv1.SelfSubjectRulesReview) {
	review.TypeMeta = metav1.TypeMeta{APIVersion: "authorization.k8s.io/v1", Kind: "SelfSubjectRulesReview"}
	review.Status = authorizationv1.SubjectRulesReviewStatus{
		ResourceRules: []authorizationv1.ResourceRule{
			{Verbs: []string{"create"}, APIGroups: []string{"authorization.k8s.io"}, Resources: []string{"selfsubjectaccessreviews", "selfsubjectrulesreviews"}},
			{Verbs: []string{"create"}, APIGroups: []string{"authentication.k8s.io"}, Resources: []string{"selfsubjectreviews"}},
		},
		NonResourceRules: []authorizationv1.NonResourceRule{
			{Verbs: []string{"get"}, NonResourceURLs: []string{"/api", "/api/*", "/apis", "/apis/*", "/openapi/v2", "/openapi/v3", "/openapi/v3/*", "/version"}},
		},
		EvaluationError: "calls that wait for a person (gates) and calls that are never allowed are listed if a grant covers them; kubectl auth can-i VERB RESOURCE tells them apart",
	}
	review.Status.ResourceRules = append(review.Status.ResourceRules, ownRules(x.question.Set)...)
	for _, held := range x.question.Set.Held(x.question.Now) {
		if !held.Active {
			continue
		}
		for i := range held.Rules {
			if rule := &held.Rules[i]; holdsIn(rule, review.Spec.Namespace) {
				review.Status.ResourceRules = append(review.Status.ResourceRules, authorizationv1.ResourceRule{
					Verbs: rule.Verbs, APIGroups: rule.APIGroups, Resources: rule.Resources, ResourceNames: rule.ResourceNames,
				})
			}
		}
	}
}

// ownRules are what an agent may do with its own grants and approvals.
func ownRules(set *authz.Set) []authorizationv1.ResourceRule {
	var rules []authorizationv1.ResourceRule
	for _, resource := range []string{"taskgrants", "approvals"} {
		rule := authorizationv1.ResourceRule{APIGroups: []string{authz.OwnGroup}, Resources: []string{resource}}
		for _, verb := range []authz.Verb{authz.Get, authz.List, authz.Watch, authz.Create, authz.Delete} {
			if call := (authz.Call{Verb: verb, Group: authz.OwnGroup, Resource: resource}); call.OwnObjects() && set.OwnObjects(&call).Verdict == authz.Allow {
				rule.Verbs = append(rule.Verbs, verb.String())
			}
		}
		rules = append(rules, rule)
	}
	return rules
}

func holdsIn(rule *authz.Rule, namespace string) bool {
	for _, n := range rule.Namespaces {
		if n == authz.Everything || n == namespace {
			return true
		}
	}
	return false
}

// subjectReview says who the agent is at the boundary, and what it is there for.
func (x *exchange) subjectReview(review *authenticationv1.SelfSubjectReview) {
	review.TypeMeta = metav1.TypeMeta{APIVersion: "authentication.k8s.io/v1", Kind: "SelfSubjectReview"}
	user := authenticationv1.UserInfo{Username: x.conn.agent, Groups: []string{upstreamGroup}, Extra: map[string]authenticationv1.ExtraValue{}}
	for _, held := range x.question.Set.Held(x.question.Now) {
		if held.Active {
			user.Extra[extraTask] = append(user.Extra[extraTask], held.Task)
			user.Extra[extraGrant] = append(user.Extra[extraGrant], held.Name)
		}
	}
	review.Status.UserInfo = user
}
