// Package v1alpha1 holds the objects people and agents write: what an agent may
// ever be granted (AgentPolicy), what it was granted for one task (TaskGrant),
// which of its calls wait for people (Approval), and what people said (Decision).
//
// The objects are cluster-scoped and are the only state the brokers share. The
// types say what the fields mean; package authz says what they decide. Whatever
// the schema cannot refuse, authz reads in the direction of less power: an
// empty list in a rule matches nothing, an empty list in a gate matches
// everything.
//
// +kubebuilder:object:generate=true
// +groupName=taskgate.dev
package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// GroupVersion is the API group and version of all kinds here.
var GroupVersion = schema.GroupVersion{Group: "taskgate.dev", Version: "v1alpha1"}

// AddToScheme registers the kinds with a scheme.
func AddToScheme(scheme *runtime.Scheme) error {
	scheme.AddKnownTypes(GroupVersion, &AgentPolicy{}, &AgentPolicyList{}, &TaskGrant{}, &TaskGrantList{},
		&Approval{}, &ApprovalList{}, &Decision{}, &DecisionList{})
	metav1.AddToGroupVersion(scheme, GroupVersion)
	return nil
}
