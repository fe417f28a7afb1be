package tasks

import (
	"bytes"
	"encoding/json"
	"io"
	"maps"

	"github.com/taskgate/taskgate/api/v1alpha1"
)

// view is what one agent may see of objects of one kind.
type view struct {
	agent    string
	resource string
	form     form
	rows     string // includeObject of a Table: None, Metadata (also "") or Object
}

// mayShow reports whether the object is the agent's own. One without an agent is
// nobody's.
func (v *view) mayShow(object map[string]any) bool {
	spec, _ := object["spec"].(map[string]any)
	agent, _ := spec["agent"].(string)
	return agent != "" && agent == v.agent
}

// released reports whether the agent has given the grant back: then it is gone,
// for the agent.
func released(object map[string]any) bool {
	status, _ := object["status"].(map[string]any)
	conditions, _ := status["conditions"].([]any)
	for _, condition := range conditions {
		if c, _ := condition.(map[string]any); c["type"] == v1alpha1.GrantReleased && c["status"] == "True" {
			return true
		}
	}
	return false
}

// show is what the agent sees of an object, in the form it asked for; false if
// it sees nothing.
func (v *view) show(object map[string]any) (map[string]any, bool) {
	if !v.mayShow(object) || released(object) {
		return nil, false
	}
	return v.shape(object), true
}

// shape leaves out what is not for the agent.
func (v *view) shape(object map[string]any) map[string]any {
	if v.resource == "approvals" {
		object = approval(object)
	}
	if v.form == metadata {
		return partial(object)
	}
	return object
}

func partial(object map[string]any) map[string]any {
	return map[string]any{"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]}
}

// shownOfApproval are the fields of an Approval's spec that an agent sees: a list
// of what stays, so a field nobody thought of goes. The diff is for approvers.
var shownOfApproval = []string{
	"agent", "task", "grant", "grantUID", "policy", "gate", "approvers", "groups", "call", "summary", "digest", "useWithin", "expiresAt",
}

// shownOfMetadata leaves out annotations and managed fields, in which clients
// keep whole objects.
var shownOfMetadata = []string{"name", "uid", "resourceVersion", "generation", "creationTimestamp", "deletionTimestamp", "labels"}

func approval(object map[string]any) map[string]any {
	shown := map[string]any{
		"metadata": only(object["metadata"], shownOfMetadata),
		"spec":     only(object["spec"], shownOfApproval),
	}
	for _, field := range []string{"kind", "apiVersion", "status"} {
		if value, found := object[field]; found {
			shown[field] = value
		}
	}
	return shown
}

func only(value any, names []string) map[string]any {
	object, _ := value.(map[string]any)
	kept := map[string]any{}
	for _, name := range names {
		if value, found := object[name]; found {
			kept[name] = value
		}
	}
	return kept
}

// answer is the answer about one object: the object or a Table of one row.
func (v *view) answer(object map[string]any) (map[string]any, bool) {
	if v.form != table {
		return v.show(object)
	}
	rows, _ := object["rows"].([]any)
	if len(rows) != 1 {
		return nil, false
	}
	row, ok := v.row(rows[0])
	if !ok {
		return nil, false
	}
	shown := maps.Clone(object)
	shown["rows"] = []any{row}
	return shown, true
}

// row is a row of a Table as the agent sees it. The cells are the columns the
// CustomResourceDefinition has; a row that does not bring its object cannot be
// judged and is left out.
func (v *view) row(value any) (map[string]any, bool) {
	row, _ := value.(map[string]any)
	object, _ := row["object"].(map[string]any)
	if !v.mayShow(object) || released(object) {
		return nil, false
	}
	return v.shapeRow(row, object), true
}

func (v *view) shapeRow(row, object map[string]any) map[string]any {
	shown := map[string]any{"cells": row["cells"]}
	switch v.rows {
	case "None":
		shown["object"] = nil
	case "Object":
		shown["object"] = v.shape(object)
	default:
		shown["object"] = partial(v.shape(object))
	}
	return shown
}

// newDecoder keeps numbers as they are written.
func newDecoder(from io.Reader) *json.Decoder {
	decoder := json.NewDecoder(from)
	decoder.UseNumber()
	return decoder
}

// encode writes a value as the API server does, without escaping for HTML.
func encode(value any) ([]byte, error) {
	var buffer bytes.Buffer
	encoder := json.NewEncoder(&buffer)
	encoder.SetEscapeHTML(false)
	err := encoder.Encode(value)
	return buffer.Bytes(), err
}
