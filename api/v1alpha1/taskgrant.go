package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TaskGrant gives one agent a set of rules for one task until an end. Only
// spec.revoked can change after creation.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=tg,categories=taskgate
// +kubebuilder:selectablefield:JSONPath=`.spec.agent`
// +kubebuilder:printcolumn:name="Task",type=string,JSONPath=`.spec.task`
// +kubebuilder:printcolumn:name="Agent",type=string,JSONPath=`.spec.agent`
// +kubebuilder:printcolumn:name="Active",type=string,JSONPath=`.status.conditions[?(@.type=="Active")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Active")].reason`
// +kubebuilder:printcolumn:name="Expires",type=string,JSONPath=`.status.expiresAt`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:printcolumn:name="Policy",type=string,JSONPath=`.spec.policy`,priority=1
// +kubebuilder:printcolumn:name="Requested-By",type=string,JSONPath=`.spec.requestedBy`,priority=1
type TaskGrant struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec TaskGrantSpec `json:"spec"`
	// +optional
	Status TaskGrantStatus `json:"status,omitempty"`
}

// TaskGrantSpec is what was asked for.
//
// +kubebuilder:validation:XValidation:rule="self.agent == oldSelf.agent && self.task == oldSelf.task && self.rules == oldSelf.rules && self.ttl == oldSelf.ttl && self.policy == oldSelf.policy && has(self.reason) == has(oldSelf.reason) && (!has(self.reason) || self.reason == oldSelf.reason) && has(self.requestedBy) == has(oldSelf.requestedBy) && (!has(self.requestedBy) || self.requestedBy == oldSelf.requestedBy)",message="a TaskGrant cannot be changed; create another one. Only spec.revoked can be set"
// +kubebuilder:validation:XValidation:rule="!(has(oldSelf.revoked) && oldSelf.revoked) || (has(self.revoked) && self.revoked)",message="a revoked TaskGrant stays revoked; create another one"
type TaskGrantSpec struct {
	// agent is the exact SPIFFE ID the grant is for.
	// +kubebuilder:validation:MaxLength=2048
	// +kubebuilder:validation:Pattern=`^spiffe://[a-z0-9._-]{1,255}(/[a-zA-Z0-9._-]+)+$`
	Agent string `json:"agent"`
	// task is what the agent is asked to do: a ticket, a run, a link. 1 to 128
	// printable ASCII characters.
	// +kubebuilder:validation:MaxLength=128
	// +kubebuilder:validation:Pattern=`^[!-~]([ -~]*[!-~])?$`
	Task string `json:"task"`
	// reason in the words of whoever asks.
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	Reason string `json:"reason,omitempty"`
	// rules the agent may use. They have to lie within the policy's allow.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	// +listType=atomic
	Rules []Rule `json:"rules"`
	// ttl is the life of the grant from the moment it becomes active, such as 30m.
	// +kubebuilder:validation:XValidation:rule="duration(self) > duration('0s')",message="use a duration such as 30m"
	TTL metav1.Duration `json:"ttl"`
	// policy is the name of the AgentPolicy the grant is under.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	Policy string `json:"policy"`
	// requestedBy is who created the object. It is set by the cluster.
	// +optional
	// +kubebuilder:validation:MaxLength=2048
	RequestedBy string `json:"requestedBy,omitempty"`
	// revoked: true ends the grant at once and for good.
	// +optional
	Revoked bool `json:"revoked,omitempty"`
}

// Condition types of a TaskGrant, and the reasons they carry.
const (
	// GrantApproved is True once the request lies inside the policy and everybody
	// who had to agree has.
	GrantApproved = "Approved"
	// GrantActive is True while the agent may use the grant.
	GrantActive = "Active"
	// GrantEnded is True once and for all when the grant is over.
	GrantEnded = "Ended"
	// GrantReleased is True once the agent gave the grant back. It sees it no more.
	GrantReleased = "Released"
)

// ResumedAnnotation on a revoked TaskGrant, with the value "true", says that a
// person lets the agent go on under the policy.
const ResumedAnnotation = "taskgate.dev/resumed"

// TaskGrantStatus is what became of it. Only brokers write it.
type TaskGrantStatus struct {
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// digest is the SHA-256 of the canonical spec, in hexadecimal.
	// +optional
	Digest string `json:"digest,omitempty"`
	// activeFrom is when the grant became active.
	// +optional
	ActiveFrom *metav1.MicroTime `json:"activeFrom,omitempty"`
	// expiresAt is when it ends at the latest.
	// +optional
	ExpiresAt *metav1.MicroTime `json:"expiresAt,omitempty"`
	// used is what the brokers have reserved of the budget.
	// +optional
	Used *Usage `json:"used,omitempty"`
	// endReason says why the grant is over: Expired, Revoked, BudgetSpent (of
	// mutations or streams), PolicyChanged, Suspended, LimitReached or Released (by
	// the agent).
	// +optional
	EndReason string `json:"endReason,omitempty"`
	// heartbeats of the brokers, by name; used only in the object
	// taskgate-heartbeat.
	// +optional
	Heartbeats map[string]string `json:"heartbeats,omitempty"`
}

// Usage counts against a Budget. A broker reserves a share before it spends it,
// so the numbers run ahead of what was really done.
type Usage struct {
	// +optional
	Mutations int64 `json:"mutations,omitempty"`
	// +optional
	Streams int64 `json:"streams,omitempty"`
}

// TaskGrantList is a list of TaskGrants.
//
// +kubebuilder:object:root=true
type TaskGrantList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []TaskGrant `json:"items"`
}
