package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Decision is one person's yes or no about one TaskGrant or one Approval. It is
// made with the person's own Kubernetes credential, and never changes; only
// brokers delete it, long after. ValidatingAdmissionPolicies see to it that by and
// groups are true.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:scope=Cluster,shortName=dec,categories=taskgate
// +kubebuilder:selectablefield:JSONPath=`.spec.target.uid`
// +kubebuilder:printcolumn:name="Target",type=string,JSONPath=`.spec.target.name`
// +kubebuilder:printcolumn:name="Verdict",type=string,JSONPath=`.spec.verdict`
// +kubebuilder:printcolumn:name="By",type=string,JSONPath=`.spec.by`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.spec.reason`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type Decision struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec DecisionSpec `json:"spec"`
}

// DecisionSpec is what the person said.
//
// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="a Decision cannot be changed"
type DecisionSpec struct {
	Target DecisionTarget `json:"target"`
	// verdict: Approve or Deny. The first Deny settles it.
	// +kubebuilder:validation:Enum=Approve;Deny
	Verdict string `json:"verdict"`
	// by is the user name of the person, as the API server authenticated it.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=1024
	By string `json:"by"`
	// groups of the person that the decision rests on.
	// +optional
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MaxLength=256
	// +listType=set
	Groups []string `json:"groups,omitempty"`
	// reason in the person's own words.
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	Reason string `json:"reason,omitempty"`
}

// DecisionTarget names exactly what was decided about.
type DecisionTarget struct {
	// +kubebuilder:validation:Enum=TaskGrant;Approval
	Kind string `json:"kind"`
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Name string `json:"name"`
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=64
	UID string `json:"uid"`
	// digest of the target: of an Approval its spec.digest, of a TaskGrant its
	// status.digest.
	// +kubebuilder:validation:Pattern=`^[0-9a-f]{64}$`
	Digest string `json:"digest"`
}

// The kinds of target.
const (
	TargetTaskGrant = "TaskGrant"
	TargetApproval  = "Approval"
)

// The verdicts.
const (
	VerdictApprove = "Approve"
	VerdictDeny    = "Deny"
)

// DecisionList is a list of Decisions.
//
// +kubebuilder:object:root=true
type DecisionList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Decision `json:"items"`
}
