package control

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/taskgate/taskgate/api/v1alpha1"
	"github.com/taskgate/taskgate/authz"
)

// The reasons a grant's conditions carry.
const (
	reasonWithinPolicy    = "WithinPolicy"
	reasonPeople          = "ApprovedByPeople"
	reasonActive          = "Active"
	reasonPolicyMissing   = "PolicyMissing"
	reasonApproval        = "ApprovalPending"
	reasonApprovalExpired = "ApprovalExpired"
	reasonDenied          = "Denied"
	reasonOnHold          = "OnHold"
	reasonOutsidePolicy   = "OutsidePolicy"
)

// Policy turns an AgentPolicy into what package authz decides on. A policy that
// asks for something this version cannot keep is Invalid: to ignore the wish
// would be to allow more than was meant.
func Policy(object *v1alpha1.AgentPolicy) *authz.Policy {
	spec := &object.Spec
	policy := &authz.Policy{
		Name: object.Name, UID: string(object.UID), Agents: spec.Agents, Suspended: spec.Suspended,
		Allow: rules(spec.Allow), Waive: spec.Waive, Budget: budget(spec.Budget), PerDay: budget(spec.PerDay), MaxTTL: spec.Grant.MaxTTL.Duration,
	}
	for i := range spec.Gates {
		policy.Gates = append(policy.Gates, gate(object.Name, &spec.Gates[i]))
	}
	if spec.Grant.MaxActive != nil {
		policy.Limits.MaxActive = int(*spec.Grant.MaxActive)
	}
	if spec.Grant.PerDay != nil {
		policy.Limits.PerDay = int(*spec.Grant.PerDay)
	}
	switch err := spec.Grant.Approval.Validate(); {
	case err != nil:
		policy.Invalid = err.Error()
	case spec.Grant.MaxTTL.Duration <= 0:
		policy.Invalid = "spec.grant.maxTTL: write a duration such as 4h"
	}
	return policy
}

// gate turns a gate of a policy into what package authz decides on. A time that
// is not positive is left as it is: nothing can be approved in it.
func gate(policy string, object *v1alpha1.Gate) authz.Gate {
	converted := authz.Gate{
		Name: object.Name, Policy: policy, Namespaces: object.Namespaces, APIGroups: object.APIGroups,
		Resources: object.Resources, Verbs: object.Verbs, ResourceNames: object.ResourceNames, When: object.When,
		Approvers: max(1, int(object.Approvers)), Groups: object.Groups, Hold: object.Mode == "Hold", PinVersion: object.PinVersion,
		TTL: authz.DefaultTTL, UseWithin: authz.DefaultUseWithin,
	}
	if object.TTL != nil {
		converted.TTL = object.TTL.Duration
	}
	if object.UseWithin != nil {
		converted.UseWithin = object.UseWithin.Duration
	}
	return converted
}

// understand is Policy with the conditions of the gates compiled. One that cannot
// be makes the policy Invalid; its gate then holds without a condition.
func (c *Controller) understand(object *v1alpha1.AgentPolicy) *authz.Policy {
	policy := Policy(object)
	for i := range policy.Gates {
		gate := &policy.Gates[i]
		if gate.When == "" {
			continue
		}
		compiled, err := c.conditions.Compile(gate.When)
		if err == nil {
			gate.Condition = compiled
		} else if policy.Invalid == "" {
			policy.Invalid = fmt.Sprintf("spec.gates[%d].when (gate %s): %v", i, gate.Name, err)
		}
	}
	return policy
}

func rules(objects []v1alpha1.Rule) []authz.Rule {
	converted := make([]authz.Rule, 0, len(objects))
	for _, rule := range objects {
		converted = append(converted, authz.Rule{
			Namespaces: rule.Namespaces, APIGroups: rule.APIGroups, Resources: rule.Resources, Verbs: rule.Verbs,
			ResourceNames: rule.ResourceNames, Redacted: rule.Values != "", Commands: rule.Commands, Containers: rule.Containers,
			NoStdin: rule.Stdin != nil && !*rule.Stdin, NoTTY: rule.TTY != nil && !*rule.TTY, ServiceAccounts: rule.ServiceAccounts,
		})
	}
	return converted
}

func budget(object *v1alpha1.Budget) authz.Budget {
	if object == nil {
		return authz.Budget{}
	}
	converted := authz.Budget{Requests: object.Requests, Mutations: object.Mutations, Streams: object.Streams}
	if object.BytesOut != nil {
		bytes := object.BytesOut.Value()
		converted.BytesOut = &bytes
	}
	return converted
}

// Grant turns a TaskGrant into what package authz decides on.
func Grant(object *v1alpha1.TaskGrant) *authz.Grant {
	status := &object.Status
	grant := &authz.Grant{
		Name: object.Name, UID: string(object.UID), Agent: object.Spec.Agent, Task: object.Spec.Task, Policy: object.Spec.Policy,
		Rules: rules(object.Spec.Rules), TTL: object.Spec.TTL.Duration,
		Revoked:   object.Spec.Revoked || object.DeletionTimestamp != nil,
		Pending:   meta.IsStatusConditionPresentAndEqual(status.Conditions, v1alpha1.GrantApproved, metav1.ConditionUnknown),
		EndReason: status.EndReason,
	}
	if over := meta.FindStatusCondition(status.Conditions, v1alpha1.GrantEnded); over != nil && over.Status == metav1.ConditionTrue {
		grant.EndedAt = over.LastTransitionTime.Time
	}
	if status.ActiveFrom != nil && status.ExpiresAt != nil {
		grant.ActiveFrom, grant.ExpiresAt = status.ActiveFrom.Time, status.ExpiresAt.Time
		// The digest ties the status to the spec it was given for.
		grant.Active = meta.IsStatusConditionTrue(status.Conditions, v1alpha1.GrantActive) && status.Digest == Digest(&object.Spec)
	}
	return grant
}

// Digest is the SHA-256 of the canonical spec in hexadecimal: its JSON form with
// the fields in the order of the type, but for revoked, which may change.
func Digest(spec *v1alpha1.TaskGrantSpec) string {
	canonical := *spec
	canonical.Revoked = false
	encoded, err := json.Marshal(&canonical)
	if err != nil {
		return fmt.Sprintf("unencodable: %v", err) // equal to no digest of another spec
	}
	sum := sha256.Sum256(encoded)
	return hex.EncodeToString(sum[:])
}
