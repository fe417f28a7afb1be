package e2e_test

import (
	"encoding/json"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"github.com/taskgate/taskgate/api/v1alpha1"
)

// grantWith is a good TaskGrant of which fields of the spec are replaced; a field
// that is null is left out.
func grantWith(t testing.TB, name string, fields map[string]any) *unstructured.Unstructured {
	t.Helper()
	object := grantsObject(t, grantManifest(name, "grants-schema", grantsSomeone, "1h", grantsCeiling))
	spec := object.Object["spec"].(map[string]any)
	for field, value := range fields {
		if value == nil {
			delete(spec, field)
		} else {
			spec[field] = value
		}
	}
	return object
}

// TestGrantsSchema: T086. What cannot be meant is refused when it is written; the
// message names the field and what to write.
func TestGrantsSchema(t *testing.T) {
	g := newGrantsRig(t)
	rule := func(field string, value any) map[string]any {
		rule := map[string]any{"namespaces": []any{"grants"}, "apiGroups": []any{""}, "resources": []any{"pods"}, "verbs": []any{"get"}}
		rule[field] = value
		if value == nil {
			delete(rule, field)
		}
		return map[string]any{"rules": []any{rule}}
	}
	long := strings.Repeat("x", 129)
	for _, r := range []struct {
		name   string
		fields map[string]any
		says   []string
	}{
		{"no agent", map[string]any{"agent": nil}, []string{"spec.agent: Required value"}},
		{"an empty agent", map[string]any{"agent": ""}, []string{"spec.agent", "spiffe://"}},
		{"a blank agent", map[string]any{"agent": "  "}, []string{"spec.agent", "spiffe://"}},
		{"an agent with a pattern", map[string]any{"agent": "spiffe://example.org/ns/*"}, []string{"spec.agent", "spiffe://"}},
		{"an agent with a line end", map[string]any{"agent": "spiffe://example.org/a\n"}, []string{"spec.agent", "spiffe://"}},
		{"a trust domain alone", map[string]any{"agent": "spiffe://example.org"}, []string{"spec.agent", "spiffe://"}},
		{"no task", map[string]any{"task": nil}, []string{"spec.task: Required value"}},
		{"an empty task", map[string]any{"task": ""}, []string{"spec.task"}},
		{"a blank task", map[string]any{"task": " "}, []string{"spec.task"}},
		{"a task that begins blank", map[string]any{"task": " x"}, []string{"spec.task"}},
		{"a task of two lines", map[string]any{"task": "a\nb"}, []string{"spec.task"}},
		{"a task that is not ASCII", map[string]any{"task": "fé"}, []string{"spec.task"}},
		{"a task that is too long", map[string]any{"task": long}, []string{"spec.task", "128"}},
		{"no rules", map[string]any{"rules": nil}, []string{"spec.rules: Required value"}},
		{"an empty list of rules", map[string]any{"rules": []any{}}, []string{"spec.rules", "at least 1 items"}},
		{"a rule without namespaces", rule("namespaces", nil), []string{"spec.rules[0].namespaces: Required value"}},
		{"a rule for an empty list of namespaces", rule("namespaces", []any{}), []string{"spec.rules[0].namespaces", "at least 1 items"}},
		{"a rule without groups", rule("apiGroups", []any{}), []string{"spec.rules[0].apiGroups", "at least 1 items"}},
		{"a rule without resources", rule("resources", []any{}), []string{"spec.rules[0].resources", "at least 1 items"}},
		{"a rule without verbs", rule("verbs", []any{}), []string{"spec.rules[0].verbs", "at least 1 items"}},
		{"a rule for no names", rule("resourceNames", []any{}), []string{"spec.rules[0].resourceNames", "at least 1 items"}},
		{"a rule for no commands", rule("commands", []any{}), []string{"spec.rules[0].commands", "at least 1 items"}},
		{"an unknown treatment of values", rule("values", "Shown"), []string{"spec.rules[0].values", `"Redacted"`}},
		{"a field that does not exist", rule("verb", []any{"get"}), []string{`unknown field "spec.rules[0].verb"`}},
		{"no ttl", map[string]any{"ttl": nil}, []string{"spec.ttl: Required value"}},
		{"no time", map[string]any{"ttl": "0s"}, []string{"spec.ttl", "use a duration such as 30m"}},
		{"a negative time", map[string]any{"ttl": "-1h"}, []string{"spec.ttl", "use a duration such as 30m"}},
		{"a time without a unit", map[string]any{"ttl": "30"}, []string{"spec.ttl"}},
		{"days", map[string]any{"ttl": "1d"}, []string{"spec.ttl"}},
		{"a time in words", map[string]any{"ttl": "1 hour"}, []string{"spec.ttl"}},
		{"a time as a number", map[string]any{"ttl": int64(30)}, []string{"spec.ttl"}},
		{"no policy", map[string]any{"policy": nil}, []string{"spec.policy: Required value"}},
		{"an empty policy", map[string]any{"policy": ""}, []string{"spec.policy", "at least 1 chars"}},
	} {
		object := grantWith(t, "grants-schema", r.fields)
		_, err := g.client(grantsResource).Create(t.Context(), object, metav1.CreateOptions{DryRun: []string{"All"}, FieldValidation: "Strict"})
		if err == nil {
			t.Errorf("%s: accepted", r.name)
			continue
		}
		for _, text := range r.says {
			if !strings.Contains(err.Error(), text) {
				t.Errorf("%s: %q is not in %v", r.name, text, err)
			}
		}
	}
}

// TestGrantsReadable: a ttl that the API server takes is one that brokers can
// read. One that they cannot would blind them to all grants.
func TestGrantsReadable(t *testing.T) {
	g := newGrantsRig(t)
	accepted := 0
	for _, ttl := range []string{"30m", "1h30m", "1.5h", "+1h", ".5h", "90s", "1500ms", "1us", "1µs", "1μs", "1ns", "1h0.5m", "00001h", "2540400h", "2562048h", "1e3s", "1w", "1 h", "1h ", "PT1H", "3600.0s", "inf"} {
		object := grantWith(t, "grants-readable", map[string]any{"ttl": ttl})
		_, err := g.client(grantsResource).Create(t.Context(), object, metav1.CreateOptions{DryRun: []string{"All"}})
		encoded, marshalErr := json.Marshal(object.Object)
		if marshalErr != nil {
			t.Fatal(marshalErr)
		}
		var read v1alpha1.TaskGrant
		unreadable := json.Unmarshal(encoded, &read)
		if err != nil {
			continue
		}
		accepted++
		if unreadable != nil || read.Spec.TTL.Duration <= 0 {
			t.Errorf("ttl %q is accepted and read as %s: %v", ttl, read.Spec.TTL.Duration, unreadable)
		}
	}
	if accepted < 10 { // otherwise it is something else that is refused
		t.Errorf("only %d are accepted", accepted)
	}
}

// TestGrantsImmutable: nothing of a grant's spec changes but revoked, and that
// once.
func TestGrantsImmutable(t *testing.T) {
	g := newGrantsRig(t)
	g.allow(t, "immutable", grantsAnybody, openPolicy, grantsCeiling)
	g.give(t, "grants-immutable", "immutable", grantsSomeone, "1h", grantsCeiling)
	patch := func(kind types.PatchType, change string) error {
		_, err := g.client(grantsResource).Patch(t.Context(), "grants-immutable", kind, []byte(change), metav1.PatchOptions{})
		return err
	}
	const fixed = "a TaskGrant cannot be changed; create another one. Only spec.revoked can be set"
	for _, change := range []string{
		`{"spec":{"agent":"spiffe://example.org/ns/grants/sa/other"}}`, `{"spec":{"task":"another"}}`, `{"spec":{"reason":"another"}}`, `{"spec":{"reason":null}}`,
		`{"spec":{"reason":""}}`, `{"spec":{"ttl":"2h"}}`, `{"spec":{"ttl":"60m"}}`, `{"spec":{"policy":"other"}}`, `{"spec":{"requestedBy":"somebody"}}`,
		`{"spec":{"rules":[{"namespaces":["*"],"apiGroups":["*"],"resources":["*"],"verbs":["*"]}]}}`, `{"spec":{"revoked":true,"ttl":"2h"}}`,
	} {
		if err := patch(types.MergePatchType, change); err == nil || !strings.Contains(err.Error(), fixed) {
			t.Errorf("%s: %v", change, err)
		}
	}
	for _, change := range []string{
		`[{"op":"add","path":"/spec/rules/0/verbs/-","value":"delete"}]`,
		`[{"op":"add","path":"/spec/rules/0/resourceNames","value":["web"]}]`,
		`[{"op":"add","path":"/spec/rules/-","value":{"namespaces":["*"],"apiGroups":["*"],"resources":["*"],"verbs":["*"]}}]`,
	} {
		if err := patch(types.JSONPatchType, change); err == nil || !strings.Contains(err.Error(), fixed) {
			t.Errorf("%s: %v", change, err)
		}
	}
	if err := patch(types.MergePatchType, `{"metadata":{"labels":{"team":"shop"}},"spec":{"revoked":false}}`); err != nil {
		t.Errorf("labels may change: %v", err)
	}
	if err := patch(types.MergePatchType, `{"spec":{"revoked":true}}`); err != nil {
		t.Error(err)
	}
	const stays = "a revoked TaskGrant stays revoked; create another one"
	for _, change := range []string{`{"spec":{"revoked":false}}`, `{"spec":{"revoked":null}}`} {
		if err := patch(types.MergePatchType, change); err == nil || !strings.Contains(err.Error(), stays) {
			t.Errorf("%s: %v", change, err)
		}
	}
}

// TestGrantsExplain: kubectl explain says what a field means.
func TestGrantsExplain(t *testing.T) {
	g := newGrantsRig(t)
	for field, says := range map[string][]string{
		"taskgrant":            {"TaskGrant gives one agent a set of rules for one task until an end."},
		"taskgrant.spec":       {"<string> -required-", "agent is the exact SPIFFE ID", "ttl is the life of the grant", "revoked: true ends the grant at once", "rules the agent may use"},
		"taskgrant.spec.rules": {`"*" must be written; an empty list`, "verbs are get, list, watch"},
		"taskgrant.status":     {"activeFrom is when the grant became active", "expiresAt is when it ends at the latest", "endReason says why the grant is over"},
		"agentpolicy.spec":     {"suspended: true stops everything", "allow is the ceiling"},
		// The reasons that a status can have are those that are documented.
		"taskgrant.status.endReason": {"Expired", "Revoked", "BudgetSpent", "PolicyChanged", "Suspended"},
	} {
		text := strings.Join(strings.Fields(g.admin(t, "explain", field)), " ")
		for _, want := range says {
			if !strings.Contains(text, want) {
				t.Errorf("kubectl explain %s does not say %q: %s", field, want, text)
			}
		}
	}
}
