package v1alpha1

import (
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// AgentPolicy says what the agents it names may ever be granted, which of their
// calls wait for a human, and how much they may use.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=agp,categories=taskgate
// +kubebuilder:printcolumn:name="Valid",type=string,JSONPath=`.status.conditions[?(@.type=="Valid")].status`
// +kubebuilder:printcolumn:name="Upstream",type=string,JSONPath=`.status.conditions[?(@.type=="UpstreamReady")].status`
// +kubebuilder:printcolumn:name="Suspended",type=boolean,JSONPath=`.spec.suspended`
// +kubebuilder:printcolumn:name="Waives",type=string,JSONPath=`.spec.waive`,priority=1
// +kubebuilder:printcolumn:name="Agents",type=string,JSONPath=`.spec.agents`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="size(self.metadata.name) <= 63",message="the name becomes part of the group taskgate:policy:<name>; use at most 63 characters"
type AgentPolicy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec AgentPolicySpec `json:"spec"`
	// +optional
	Status AgentPolicyStatus `json:"status,omitempty"`
}

// AgentPolicySpec is the wish.
type AgentPolicySpec struct {
	// agents are SPIFFE ID patterns. Each path segment is exact or *, a trailing
	// /** stands for any deeper path. The trust domain is always exact.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	// +kubebuilder:validation:items:MaxLength=2048
	// +kubebuilder:validation:items:Pattern=`^spiffe://[a-z0-9._-]{1,255}(/(\*|[a-zA-Z0-9._-]+))*(/\*\*)?$`
	// +listType=set
	Agents []string `json:"agents"`
	// suspended: true stops everything the agents do, at once, streams included.
	// +optional
	Suspended bool `json:"suspended,omitempty"`
	// allow is the ceiling: a TaskGrant under this policy may hold no more.
	// +optional
	// +kubebuilder:validation:MaxItems=64
	// +listType=atomic
	Allow []Rule `json:"allow,omitempty"`
	// grant bounds the TaskGrants under this policy.
	Grant GrantLimits `json:"grant"`
	// waive switches built-in gates off, by name, for the agents of this policy.
	// It counts only if every policy that matches the agent waives the gate. The
	// names are namespace-delete, deletecollection, exec, port-forward, debug,
	// secret-values, rbac, crd, pv and node.
	// +optional
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:Enum=namespace-delete;deletecollection;exec;port-forward;debug;secret-values;rbac;crd;pv;node
	// +listType=set
	Waive []string `json:"waive,omitempty"`
	// gates are calls that wait for a human, besides the built-in ones.
	// +optional
	// +kubebuilder:validation:MaxItems=32
	// +listType=map
	// +listMapKey=name
	Gates []Gate `json:"gates,omitempty"`
	// budget is what one TaskGrant may use up. Left out, there is no limit.
	// +optional
	Budget *Budget `json:"budget,omitempty"`
	// perDay is what one agent may use up under this policy in a day (UTC).
	// +optional
	PerDay *Budget `json:"perDay,omitempty"`
}

// GrantLimits bounds what may be asked for.
type GrantLimits struct {
	// maxTTL is the longest life of a grant, such as 4h.
	// +kubebuilder:validation:XValidation:rule="duration(self) > duration('0s') && duration(self) <= duration('744h')",message="use a duration of at most 31 days, such as 4h"
	MaxTTL metav1.Duration `json:"maxTTL"`
	// maxActive is the number of grants an agent may hold at once. Left out, there
	// is no limit.
	// +optional
	// +kubebuilder:validation:Minimum=1
	MaxActive *int32 `json:"maxActive,omitempty"`
	// perDay is the number of grants an agent may be given in a day (UTC). Left
	// out, there is no limit.
	// +optional
	// +kubebuilder:validation:Minimum=1
	PerDay *int32 `json:"perDay,omitempty"`
	// approval: None gives what is inside the ceiling at once. Otherwise it says
	// how many people of which groups have to agree, as in
	// {approvers: 1, groups: [sre]}.
	// +kubebuilder:validation:Schemaless
	// +kubebuilder:pruning:PreserveUnknownFields
	Approval GrantApproval `json:"approval"`
}

// Gate names calls that wait for a human. Here, unlike in a rule, a list that is
// left out matches everything: a gate only takes power away.
type Gate struct {
	// name is shown to the agent and to the approvers.
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`
	Name string `json:"name"`
	// namespaces the gate stands in.
	// +optional
	// +kubebuilder:validation:MaxItems=64
	// +listType=set
	Namespaces []string `json:"namespaces,omitempty"`
	// apiGroups the gate stands for.
	// +optional
	// +kubebuilder:validation:MaxItems=64
	// +listType=set
	APIGroups []string `json:"apiGroups,omitempty"`
	// resources the gate stands for, with subresources written out.
	// +optional
	// +kubebuilder:validation:MaxItems=64
	// +listType=set
	Resources []string `json:"resources,omitempty"`
	// verbs the gate stands for.
	// +optional
	// +kubebuilder:validation:MaxItems=16
	// +listType=set
	Verbs []string `json:"verbs,omitempty"`
	// resourceNames the gate stands for. A call that names no object is gated.
	// +optional
	// +kubebuilder:validation:MaxItems=64
	// +listType=set
	ResourceNames []string `json:"resourceNames,omitempty"`
	// when is a CEL expression, in the environment of the admission policies of
	// Kubernetes; the gate holds where it is true and where it cannot be evaluated.
	// request has verb, group, version, resource, subresource, namespace, name,
	// dryRun and query (a map); params has agent, task, grant and policy. object is
	// what a create, update or patch would make of the object, by a dry run, and
	// oldObject what an update, patch or delete finds; otherwise they are null. A
	// policy with an expression that cannot be compiled grants nothing.
	// +optional
	// +kubebuilder:validation:MaxLength=4096
	When string `json:"when,omitempty"`
	// approvers is the number of people who have to agree. Left out, one.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=10
	// +kubebuilder:default=1
	Approvers int32 `json:"approvers,omitempty"`
	// groups the people have to belong to.
	// +optional
	// +kubebuilder:validation:MaxItems=32
	// +listType=set
	Groups []string `json:"groups,omitempty"`
	// ttl is how long a request for approval stays open, 15m if left out.
	// +optional
	// +kubebuilder:validation:XValidation:rule="duration(self) > duration('0s')",message="use a duration such as 15m"
	TTL *metav1.Duration `json:"ttl,omitempty"`
	// useWithin is how long an approval may wait for its use, 5m if left out.
	// +optional
	// +kubebuilder:validation:XValidation:rule="duration(self) > duration('0s')",message="use a duration such as 5m"
	UseWithin *metav1.Duration `json:"useWithin,omitempty"`
	// pinVersion: true binds an approval to the version of the object that the
	// people were shown: after any change of the object it is of no use. Left out,
	// an approval is bound to the object (its UID) only.
	// +optional
	PinVersion bool `json:"pinVersion,omitempty"`
	// mode: Deny answers at once and says how to go on; Hold keeps the call open
	// for a while first.
	// +optional
	// +kubebuilder:validation:Enum=Deny;Hold
	// +kubebuilder:default=Deny
	Mode string `json:"mode,omitempty"`
}

// Budget is an amount of use. A field left out does not limit.
type Budget struct {
	// requests of any kind. Counted per broker replica.
	// +optional
	// +kubebuilder:validation:Minimum=0
	Requests *int64 `json:"requests,omitempty"`
	// mutations are create, update, patch, delete and deletecollection, dry runs
	// left out. Never overrun, over all replicas.
	// +optional
	// +kubebuilder:validation:Minimum=0
	Mutations *int64 `json:"mutations,omitempty"`
	// streams are exec, attach and port-forward. Never overrun, over all replicas.
	// +optional
	// +kubebuilder:validation:Minimum=0
	Streams *int64 `json:"streams,omitempty"`
	// bytesOut is the size of the answers. Counted per broker replica.
	// +optional
	BytesOut *resource.Quantity `json:"bytesOut,omitempty"`
}

// Condition types of an AgentPolicy.
const (
	// PolicyValid is False if the policy cannot be understood; then it grants
	// nothing.
	PolicyValid = "Valid"
	// PolicyUpstreamReady is False if the broker may not act upstream for this
	// policy; the message holds the missing RBAC line.
	PolicyUpstreamReady = "UpstreamReady"
	// PolicyWaived is True if built-in gates are switched off.
	PolicyWaived = "GatesWaived"
)

// AgentPolicyStatus is what the brokers found.
type AgentPolicyStatus struct {
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// days is what agents used of spec.perDay, today and the day before.
	// +optional
	// +listType=map
	// +listMapKey=agent
	// +listMapKey=day
	Days []DayUsage `json:"days,omitempty"`
	// heartbeats of the brokers, by name; used only in the object
	// taskgate-heartbeat.
	// +optional
	Heartbeats map[string]string `json:"heartbeats,omitempty"`
}

// DayUsage is what one agent used on one day.
type DayUsage struct {
	Agent string `json:"agent"`
	// day is a UTC date such as 2026-11-23.
	Day   string `json:"day"`
	Usage `json:",inline"`
}

// AgentPolicyList is a list of AgentPolicies.
//
// +kubebuilder:object:root=true
type AgentPolicyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []AgentPolicy `json:"items"`
}
