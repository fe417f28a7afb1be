package tasks

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	kjson "sigs.k8s.io/json"

	"github.com/taskgate/taskgate/api/v1alpha1"
	"github.com/taskgate/taskgate/authz"
	"github.com/taskgate/taskgate/broker/control"
)

// The fields of a TaskGrant: what an agent may ask for, and what it may write
// down without effect, as in an object it has read.
var (
	askedFields   = []string{"task", "reason", "rules", "ttl", "policy"}
	claimedFields = []string{"agent", "requestedBy", "revoked"}
)

// create makes the object that is created from what the agent sent: a new one,
// into which only what may be asked for is taken over. Unknown fields are errors,
// as with fieldValidation=Strict; what is inside of the fields taken over is
// judged by the API server in the same way.
func create(ask *Ask) ([]byte, *metav1.Status) {
	sent, ok := ask.Request.Object.(map[string]any)
	if !ok {
		return nil, badRequest("send a TaskGrant in the body")
	}
	if sent["kind"] != "TaskGrant" || sent["apiVersion"] != v1alpha1.GroupVersion.String() {
		return nil, badRequest(fmt.Sprintf("kind and apiVersion of the body have to be TaskGrant and %s", v1alpha1.GroupVersion))
	}
	meta, spec, problem := parts(sent)
	if problem != "" {
		return nil, badRequest(`TaskGrant in version "v1alpha1" cannot be handled as a TaskGrant: ` + problem)
	}
	name, _ := meta["name"].(string)
	policy, wrong := policyOf(ask.Policies, spec)
	if name == control.HeartbeatObject { // brokers do not take it for a grant
		wrong = field.Invalid(field.NewPath("metadata", "name"), name, "the brokers use it themselves; choose another name")
	}
	if wrong != nil {
		return nil, status(apierrors.NewInvalid(v1alpha1.GroupVersion.WithKind("TaskGrant").GroupKind(), name, field.ErrorList{wrong}))
	}
	wanted := only(spec, askedFields)
	wanted["agent"], wanted["requestedBy"], wanted["policy"] = ask.Agent, ask.Agent, policy
	body, err := json.Marshal(map[string]any{
		"kind": "TaskGrant", "apiVersion": v1alpha1.GroupVersion.String(),
		"metadata": only(meta, []string{"name", "generateName"}), "spec": wanted,
	})
	if err != nil {
		return nil, status(err)
	}
	return body, nil
}

// parts returns metadata and spec, or what is wrong with the fields.
func parts(sent map[string]any) (meta, spec map[string]any, problem string) {
	if unknown := unknownOf(sent, "", []string{"kind", "apiVersion", "metadata", "spec", "status"}); unknown != "" {
		return nil, nil, unknown
	}
	meta, isMeta := sent["metadata"].(map[string]any)
	spec, isSpec := sent["spec"].(map[string]any)
	switch {
	case !isMeta:
		return nil, nil, "metadata: write {name: …} or {generateName: …}"
	case !isSpec:
		return nil, nil, "spec: write at least task, rules and ttl"
	}
	if unknown := unknownOf(spec, "spec.", slices.Concat(askedFields, claimedFields)); unknown != "" {
		return nil, nil, unknown
	}
	return meta, spec, metadataProblem(meta)
}

func unknownOf(object map[string]any, path string, known []string) string {
	var unknown []string
	for name := range object {
		if !slices.Contains(known, name) {
			unknown = append(unknown, fmt.Sprintf("unknown field %q", path+name))
		}
	}
	if len(unknown) == 0 {
		return ""
	}
	slices.Sort(unknown)
	return "strict decoding error: " + strings.Join(unknown, ", ")
}

// metadataProblem reads the metadata into Kubernetes' own type.
func metadataProblem(meta map[string]any) string {
	encoded, err := json.Marshal(meta)
	if err != nil {
		return err.Error()
	}
	strict, err := kjson.UnmarshalStrict(encoded, new(metav1.ObjectMeta))
	switch {
	case err != nil:
		return "metadata: " + err.Error()
	case len(strict) > 0:
		return "strict decoding error in metadata: " + strict[0].Error()
	}
	return ""
}

// policyOf is the policy the grant is asked under. It may be left out where there
// is only one; a policy that is not about the agent is as unknown as one that
// does not exist.
func policyOf(policies []string, spec map[string]any) (string, *field.Error) {
	path := field.NewPath("spec", "policy")
	asked, isText := spec["policy"].(string)
	if spec["policy"] != nil && !isText {
		return "", field.TypeInvalid(path, spec["policy"], "write the name of an AgentPolicy")
	}
	switch {
	case asked == "" && len(policies) == 1:
		return policies[0], nil
	case asked == "":
		return "", field.Required(path, "several AgentPolicies are about you; write one of "+strings.Join(policies, ", "))
	case !slices.Contains(policies, asked):
		return "", field.Invalid(path, asked, "no AgentPolicy of that name is about you; write one of "+strings.Join(policies, ", "))
	}
	return asked, nil
}

func badRequest(text string) *metav1.Status { return status(apierrors.NewBadRequest(text)) }

// create asks the control cluster for the grant.
func (c *Call) create(ctx context.Context) (*http.Response, error) {
	c.keep("dryRun")
	c.query.Set("fieldValidation", "Strict")
	response, err := c.send(ctx, http.MethodPost, "", c.view.accept(), c.body)
	if err != nil {
		return nil, err
	}
	if response.StatusCode == http.StatusConflict {
		response.Body.Close()
		return say(c.nameTaken()), nil
	}
	if response.StatusCode != http.StatusCreated {
		return response, nil
	}
	return c.created(response)
}

// created notes which grant it was, and passes the answer on.
func (c *Call) created(response *http.Response) (*http.Response, error) {
	defer response.Body.Close()
	object, err := readObject(response.Body)
	if err != nil {
		return nil, err
	}
	grant := object
	if c.view.form == table {
		if rows, _ := object["rows"].([]any); len(rows) == 1 {
			row, _ := rows[0].(map[string]any)
			grant, _ = row["object"].(map[string]any)
		}
	}
	if !c.ask.Request.DryRun {
		c.Grant = aboutGrant(grant)
		c.slot.created(c.Grant.UID)
	}
	shown, ok := c.view.answer(object)
	if !ok {
		return nil, fmt.Errorf("the control cluster answered with another object than was created")
	}
	encoded, err := encode(shown)
	return answer(response, bodyOf(encoded)), err
}

// nameTaken is said of a name that is in use, by whomever: names are not asked
// for, or everybody's could be found by trying.
func (c *Call) nameTaken() *metav1.Status {
	var sent struct{ Metadata metav1.ObjectMeta }
	_ = json.Unmarshal(c.body, &sent) // was encoded here
	said := status(apierrors.NewAlreadyExists(c.resource(), sent.Metadata.Name))
	said.Message += "; all agents share the names, and none is used twice. Next: write another metadata.name, or metadata.generateName: task-"
	return said
}

// aboutGrant is what records say about a grant.
func aboutGrant(object map[string]any) *authz.Grant {
	meta, _ := object["metadata"].(map[string]any)
	spec, _ := object["spec"].(map[string]any)
	text := func(from map[string]any, name string) string { s, _ := from[name].(string); return s }
	return &authz.Grant{
		Name: text(meta, "name"), UID: text(meta, "uid"),
		Agent: text(spec, "agent"), Task: text(spec, "task"), Policy: text(spec, "policy"),
	}
}
