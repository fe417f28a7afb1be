package broker

import (
	"net/http"
	"net/url"
	"slices"
	"strings"

	kjson "sigs.k8s.io/json"

	"github.com/taskgate/taskgate/authz"
)

// settle evaluates the conditions of the gates that the call may wait at. Those
// that only look at the request cost nothing; for the others the broker makes a
// dry run and reads the object, at most once each.
//
// Fails toward the gate: without a dry run, without the object, and with whatever
// cannot be evaluated, the gate holds. The object may change between the dry run
// and the call: a condition is about what a call would do now, and an agent with
// two hands can make that something else a moment later.
func (x *exchange) settle() {
	if len(x.decision.Conditional) == 0 {
		return
	}
	facts, looked, found := x.facts(), false, false
	x.decision.Settle(func(gate *authz.Gate) bool {
		if gate.Condition.NeedsObjects() {
			if !looked {
				looked, found = true, x.objects(&facts)
			}
			if !found {
				return true
			}
		}
		holds := gate.Condition.Holds(facts)
		if !holds && gate.Condition.NeedsObjects() {
			x.cleared = append(x.cleared, gate)
		}
		return holds
	})
}

// stillHolds reports whether a conditional gate is in the way of the call later
// on. The objects are not looked at again: what they were when the call came is
// what was decided on, and a gate that they were not asked about then holds.
func (x *exchange) stillHolds(gate *authz.Gate) bool {
	if gate.Condition.NeedsObjects() {
		return !slices.ContainsFunc(x.cleared, func(g *authz.Gate) bool { return sameGate(g, gate) && g.When == gate.When })
	}
	return gate.Condition.Holds(x.facts())
}

// facts are what is known of the call without asking the cluster. The query is the
// agent's own: that of the request is narrowed, and gone once it was sent.
func (x *exchange) facts() authz.Facts {
	c := &x.request.Call
	query := map[string]any{}
	_, raw, _ := strings.Cut(x.r.RequestURI, "?")
	given, _ := url.ParseQuery(raw) // the parser has read it in the same way
	for name := range given {
		query[name] = given.Get(name)
	}
	facts := authz.Facts{Request: map[string]any{
		"verb": c.Verb.String(), "group": c.Group, "version": c.Version, "resource": c.Resource, "subresource": c.Subresource,
		"namespace": c.Namespace, "name": c.Name, "dryRun": x.request.DryRun, "query": query,
	}}
	if g := x.decision.Grant; g != nil {
		facts.Params = map[string]any{"agent": g.Agent, "task": g.Task, "grant": g.Name, "policy": g.Policy}
	}
	return facts
}

// objects looks at what the call is about, and reports whether it could. A call
// that has no object, such as a list, has nothing to look at.
func (x *exchange) objects(facts *authz.Facts) bool {
	var found bool
	switch x.request.Call.Verb {
	case authz.Create:
		facts.Object, found = x.objectAfter()
	case authz.Update, authz.Patch:
		if facts.OldObject, found = x.liveObject(); found {
			facts.Object, found = x.objectAfter()
		}
	case authz.Delete:
		facts.OldObject, found = x.liveObject()
	}
	return found
}

func (x *exchange) liveObject() (map[string]any, bool) {
	if x.request.Call.Name == "" {
		return nil, false
	}
	return decodeObject(x.look(x.request.Path(), nil, typeJSON))
}

// objectAfter is the object as a dry run of this very call leaves it. Calls that
// open streams have no dry run.
func (x *exchange) objectAfter() (map[string]any, bool) {
	if x.request.Body == nil || !keepsDryRuns(x.request.Call.Group) {
		return nil, false
	}
	dry, err := x.request.AsDryRun()
	if err != nil {
		return nil, false
	}
	return decodeObject(x.preview(dry, http.Header{"Accept": {typeJSON}}))
}

// decodeObject reads what a preview saw; whole numbers stay whole.
func decodeObject(seen *sight, refused *refusal) (map[string]any, bool) {
	if refused != nil || seen.status != http.StatusOK && seen.status != http.StatusCreated {
		return nil, false
	}
	var object map[string]any
	err := kjson.UnmarshalCaseSensitivePreserveInts(seen.body, &object)
	return object, err == nil && object != nil
}
