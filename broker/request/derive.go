package request

import (
	"encoding/json"
	"maps"
	"net/url"
	"strings"

	"github.com/taskgate/taskgate/authz"
)

// ObjectPath is the path of the object a call names, without its subresource;
// empty if the call names none.
func (r *Request) ObjectPath() string {
	if r.Call.Name == "" || r.Call.Verb == authz.List || r.Call.Verb == authz.Watch {
		return ""
	}
	path := r.path
	if r.Call.Subresource != "" {
		path = strings.TrimSuffix(path, "/"+r.Call.Subresource)
	}
	return path
}

// ObjectName is the name of the object the call is about, also where a create
// says it in the body; empty if there is none yet.
func (r *Request) ObjectName() string {
	if r.Call.Name != "" || r.Call.Verb != authz.Create {
		return r.Call.Name
	}
	object, _ := r.Object.(map[string]any)
	metadata, _ := object["metadata"].(map[string]any)
	return text(metadata["name"])
}

// Selection is the part of the query that says which objects of a collection a
// deletecollection is about.
func (r *Request) Selection() url.Values {
	selection := url.Values{}
	for _, name := range []string{"labelSelector", "fieldSelector", "limit", "continue", "resourceVersion", "resourceVersionMatch"} {
		if r.query.Has(name) {
			selection.Set(name, r.query.Get(name))
		}
	}
	return selection
}

// AsDryRun is the same request with nothing to be persisted.
func (r *Request) AsDryRun() (*Request, error) {
	dry := *r
	dry.query, dry.DryRun = maps.Clone(r.query), true
	if deletes(r) && r.Body != nil {
		return &dry, dry.setDeleteOptions(func(options map[string]any) { options["dryRun"] = []any{"All"} })
	}
	dry.query.Set("dryRun", "All")
	return &dry, nil
}

// BindTarget makes a delete fail in the cluster unless the object is still the
// one with that UID and, if it is given, that resource version. What the request
// itself demands of the object stays.
func (r *Request) BindTarget(uid, resourceVersion string) error {
	if r.Call.Verb != authz.Delete || r.Call.Subresource != "" || uid == "" {
		return nil
	}
	return r.setDeleteOptions(func(options map[string]any) {
		given, _ := options["preconditions"].(map[string]any)
		preconditions := map[string]any{"uid": uid}
		if resourceVersion != "" {
			preconditions["resourceVersion"] = resourceVersion
		}
		maps.Copy(preconditions, given)
		options["preconditions"] = preconditions
	})
}

func deletes(r *Request) bool {
	return r.Call.Verb == authz.Delete || r.Call.Verb == authz.DeleteCollection
}

// setDeleteOptions changes the body of a delete. The API server reads the query
// only if there is no body, so what it says moves along.
func (r *Request) setDeleteOptions(change func(map[string]any)) error {
	given, _ := r.Object.(map[string]any)
	options := maps.Clone(given)
	if options == nil {
		options = map[string]any{}
		r.query = maps.Clone(r.query)
		moveDeleteOptions(r.query, options)
	}
	change(options)
	body, err := json.Marshal(options)
	if err != nil {
		return err
	}
	r.Body, r.MediaType, r.Object = body, typeJSON, options
	return nil
}
