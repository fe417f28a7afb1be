package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Approval is one gated call of an agent that waits for, or holds, the yes of
// people. Brokers make it, one for each digest; it is good for exactly that call,
// once. Nothing in its spec ever changes.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=ap,categories=taskgate
// +kubebuilder:selectablefield:JSONPath=`.spec.agent`
// +kubebuilder:selectablefield:JSONPath=`.spec.digest`
// +kubebuilder:printcolumn:name="Decided",type=string,JSONPath=`.status.conditions[?(@.type=="Decided")].reason`
// +kubebuilder:printcolumn:name="Consumed",type=string,JSONPath=`.status.conditions[?(@.type=="Consumed")].status`
// +kubebuilder:printcolumn:name="Gate",type=string,JSONPath=`.spec.gate`
// +kubebuilder:printcolumn:name="Task",type=string,JSONPath=`.spec.task`
// +kubebuilder:printcolumn:name="Summary",type=string,JSONPath=`.spec.summary`
// +kubebuilder:printcolumn:name="Expires",type=string,JSONPath=`.spec.expiresAt`
// +kubebuilder:printcolumn:name="Agent",type=string,JSONPath=`.spec.agent`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type Approval struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec ApprovalSpec `json:"spec"`
	// +optional
	Status ApprovalStatus `json:"status,omitempty"`
}

// ApprovalSpec is what is asked. All text that came from the agent is data, to be
// shown escaped.
//
// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="an Approval cannot be changed"
type ApprovalSpec struct {
	// agent is the SPIFFE ID of who asks.
	// +kubebuilder:validation:MaxLength=2048
	// +kubebuilder:validation:MinLength=1
	Agent string `json:"agent"`
	// task, grant and policy the call is made under; grantUID tells grants of one
	// name apart.
	// +kubebuilder:validation:MaxLength=128
	Task string `json:"task"`
	// +kubebuilder:validation:MaxLength=253
	Grant string `json:"grant"`
	// +kubebuilder:validation:MaxLength=64
	GrantUID string `json:"grantUID"`
	// +kubebuilder:validation:MaxLength=63
	Policy string `json:"policy"`
	// gate is the name of what the call waits at.
	// +kubebuilder:validation:MaxLength=63
	Gate string `json:"gate"`
	// approvers is the number of people who have to agree.
	// +kubebuilder:validation:Minimum=1
	Approvers int32 `json:"approvers"`
	// groups the people have to belong to; empty means that whoever may create
	// Decisions may decide.
	// +optional
	// +kubebuilder:validation:MaxItems=32
	// +listType=set
	Groups []string `json:"groups,omitempty"`
	// call is what was parsed of the request.
	Call ApprovalCall `json:"call"`
	// summary says in words what the call would do.
	// +kubebuilder:validation:MaxLength=1024
	Summary string `json:"summary"`
	// diff is what a dry run of the very request changes, as a unified diff of
	// YAML; values of Secrets are masked. Agents do not see it.
	// +optional
	// +kubebuilder:validation:MaxLength=131072
	Diff string `json:"diff,omitempty"`
	// diffNote says why there is no diff, or that it is cut and how long it is.
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	DiffNote string `json:"diffNote,omitempty"`
	// digest is the SHA-256 over everything that makes the call what it is, in
	// hexadecimal. A Decision names it.
	// +kubebuilder:validation:Pattern=`^[0-9a-f]{64}$`
	Digest string `json:"digest"`
	// useWithin is how long the call may be made after the last yes.
	// +kubebuilder:validation:XValidation:rule="duration(self) > duration('0s')",message="use a duration such as 5m"
	UseWithin metav1.Duration `json:"useWithin"`
	// expiresAt is when the request is too old to be decided.
	ExpiresAt metav1.MicroTime `json:"expiresAt"`
}

// ApprovalCall is a call as the broker understood it.
type ApprovalCall struct {
	Verb string `json:"verb"`
	// +optional
	Group string `json:"group,omitempty"`
	// +optional
	Version string `json:"version,omitempty"`
	// +optional
	Resource string `json:"resource,omitempty"`
	// +optional
	Subresource string `json:"subresource,omitempty"`
	// +optional
	Namespace string `json:"namespace,omitempty"`
	// +optional
	Name string `json:"name,omitempty"`
	// uid and resourceVersion of the object as it was when the Approval was made;
	// empty if there was none. For a deletecollection, uid is the SHA-256 over the
	// UIDs of all objects it would delete, and objects their number.
	// +optional
	UID string `json:"uid,omitempty"`
	// +optional
	ResourceVersion string `json:"resourceVersion,omitempty"`
	// +optional
	Objects *int64 `json:"objects,omitempty"`
	// query in canonical order.
	// +optional
	// +kubebuilder:validation:MaxLength=8192
	Query string `json:"query,omitempty"`
	// +optional
	// +kubebuilder:validation:MaxLength=256
	MediaType string `json:"mediaType,omitempty"`
	// command of an exec, behind what else a stream wants in the pod: container=NAME,
	// stdin=true or false, tty=true or false, --, and then the arguments.
	// +optional
	// +listType=atomic
	Command []string `json:"command,omitempty"`
	// bodySHA256 of the request, in hexadecimal; left out where a hash would let
	// values be guessed.
	// +optional
	BodySHA256 string `json:"bodySHA256,omitempty"`
	// +optional
	BodyBytes int64 `json:"bodyBytes,omitempty"`
}

// Condition types of an Approval, and the reasons of Decided.
const (
	// ApprovalDecided is True once the request is over for the people, whatever
	// the answer; its reason says which.
	ApprovalDecided = "Decided"
	// ApprovalConsumed is True once the call was let through.
	ApprovalConsumed = "Consumed"

	DecidedApproved = "Approved"
	DecidedDenied   = "Denied"
	DecidedExpired  = "Expired"
)

// ApprovalStatus is what became of it. Only brokers write it; what counts are the
// Decisions.
type ApprovalStatus struct {
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// decidedAt is the time of the Decision that settled it.
	// +optional
	DecidedAt *metav1.MicroTime `json:"decidedAt,omitempty"`
	// consumedBy is the audit ID of the call that was let through.
	// +optional
	ConsumedBy string `json:"consumedBy,omitempty"`
	// +optional
	ConsumedAt *metav1.MicroTime `json:"consumedAt,omitempty"`
}

// ApprovalList is a list of Approvals.
//
// +kubebuilder:object:root=true
type ApprovalList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Approval `json:"items"`
}
