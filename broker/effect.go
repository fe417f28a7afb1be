package broker

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strings"

	"github.com/rogpeppe/go-internal/diff"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"

	"github.com/taskgate/taskgate/authz"
)

// effect is what people are shown of what a call would do.
type effect struct{ diff, note string }

// maxDiff is the size of the diff in bytes from which it is cut.
const maxDiff = 128 << 10

// effect finds out what the call would do, by a dry run of this very request
// under the agent's own principal.
//
// A call that the cluster would refuse is refused with the cluster's answer at
// once: nobody has to decide about it. What keeps a diff from being made is said
// to the people and keeps nobody from deciding.
func (x *exchange) effect() (*effect, *refusal) {
	c := &x.request.Call
	switch c.Subresource {
	case "exec", "attach", "portforward":
		return &effect{note: "There is no dry run of this call: it opens a stream into what is running."}, nil
	}
	if !c.Verb.Mutates() {
		return &effect{note: "The call only reads."}, nil
	}
	after, note, r := x.dryRun()
	if r != nil || note != "" {
		return &effect{note: note}, r
	}
	switch c.Verb {
	case authz.Delete:
		return identityOf(x.gated.target), nil
	case authz.DeleteCollection:
		return unified([]byte(strings.Join(x.gated.target.objects, "\n")+"\n"), nil), nil
	}
	before, note, r := x.present()
	if r != nil {
		return nil, r
	}
	shown := compare(c, before, after)
	shown.note = strings.TrimSpace(note + " " + shown.note)
	return shown, nil
}

// dryRun returns the object as the call would leave it, or a note why that is not
// known.
func (x *exchange) dryRun() (after map[string]any, note string, _ *refusal) {
	if !keepsDryRuns(x.request.Call.Group) {
		return nil, "There is no dry run of this call: whoever serves the group " + x.request.Call.Group + " may not know dry runs, and would carry it out.", nil
	}
	dry, err := x.request.AsDryRun()
	if err != nil {
		return nil, "", x.invariant("a body that was decoded cannot be encoded")
	}
	seen, r := x.preview(dry, http.Header{"Accept": {typeJSON}})
	if r != nil {
		return nil, "", r
	}
	said := clusterStatus(seen.body).Message
	if concernsSecrets(x.request) {
		said = "what it said is not shown, as the call is about a Secret"
	}
	switch {
	case seen.status >= 200 && seen.status < 300:
		if err := json.Unmarshal(seen.body, &after); err != nil {
			return nil, "The answer to a dry run could not be read.", nil
		}
		return after, "", nil
	case seen.status == http.StatusForbidden:
		return nil, "", x.denied(deniedByCluster(seen.body, x.decision.Grant))
	case seen.status == http.StatusBadRequest && strings.Contains(said, "dry run"), seen.status >= 500:
		return nil, fmt.Sprintf("The cluster could not do a dry run (HTTP %d): %s", seen.status, said), nil
	case concernsSecrets(x.request):
		// Whether a test of a JSON patch holds would give values away, one guess
		// at a time.
		return nil, fmt.Sprintf("The cluster refused a dry run of this call (HTTP %d), and would refuse the call itself.", seen.status), nil
	case seen.status >= 400 && seen.status != http.StatusUnauthorized:
		return nil, "", x.denied(clusterRefused(seen))
	}
	return nil, "", x.unbindable()
}

// keepsDryRuns reports whether the API server itself serves a group, so that a dry
// run changes nothing. A server behind an APIService may ignore dryRun and carry
// the call out before anybody has agreed; a group that is not known may be such a
// one.
func keepsDryRuns(group string) bool {
	return group == "apiextensions.k8s.io" || scheme.Scheme.IsGroupRegistered(group)
}

// present returns what the call would change, as it is; nil if there is nothing.
func (x *exchange) present() (before map[string]any, note string, _ *refusal) {
	if x.request.ObjectPath() == "" {
		return nil, "", nil
	}
	seen, r := x.look(x.request.Path(), nil, typeJSON)
	switch {
	case r != nil:
		return nil, "", r
	case seen.status == http.StatusNotFound && x.request.Call.Creates:
		return nil, "", nil
	case seen.status != http.StatusOK:
		return nil, fmt.Sprintf("What it is now could not be read (HTTP %d); this is what it would be.", seen.status), nil
	}
	if err := json.Unmarshal(seen.body, &before); err != nil {
		return nil, "What it is now could not be read; this is what it would be.", nil
	}
	return before, "", nil
}

// compare makes the diff of an object before and after a call.
func compare(c *authz.Call, before, after map[string]any) *effect {
	before, after = hideValues(c, before, after)
	var texts [2][]byte
	for i, object := range []map[string]any{before, after} {
		if object == nil {
			continue
		}
		clean(object, c.Subresource == "status", before == nil)
		text, err := yaml.Marshal(object)
		if err != nil {
			return &effect{note: "The objects could not be written down."}
		}
		texts[i] = text
	}
	if bytes.Equal(texts[0], texts[1]) {
		return &effect{note: "A dry run changes nothing."}
	}
	return unified(texts[0], texts[1])
}

// unified is the diff itself, cut to what an Approval holds.
func unified(before, after []byte) *effect {
	text := diff.Diff("now", before, "after the call", after)
	if _, rest, found := bytes.Cut(text, []byte("\n")); found {
		text = rest // the first line repeats the names
	}
	if len(text) <= maxDiff {
		return &effect{diff: string(text)}
	}
	shown := strings.ToValidUTF8(string(text[:maxDiff]), "")
	if end := strings.LastIndexByte(shown, '\n'); end > 0 {
		shown = shown[:end+1]
	}
	return &effect{diff: shown, note: fmt.Sprintf("The diff is cut: these are the first %d of its %d bytes.", len(shown), len(text))}
}

// clean takes out what every write changes, and what the cluster alone writes.
func clean(object map[string]any, keepStatus, created bool) {
	if !keepStatus {
		delete(object, "status")
	}
	metadata, _ := object["metadata"].(map[string]any)
	for _, field := range []string{"managedFields", "resourceVersion", "generation", "selfLink"} {
		delete(metadata, field)
	}
	if created {
		delete(metadata, "uid")
		delete(metadata, "creationTimestamp")
	}
}

// identityOf shows what a delete takes away: which object, and what hangs on it.
func identityOf(t target) *effect {
	if t.object == nil {
		return &effect{note: "What would be deleted is not known."}
	}
	m := t.object
	shown := map[string]any{"name": m.Name, "uid": m.UID, "creationTimestamp": m.CreationTimestamp}
	if m.Namespace != "" {
		shown["namespace"] = m.Namespace
	}
	if len(m.Labels) > 0 {
		shown["labels"] = m.Labels
	}
	if len(m.OwnerReferences) > 0 {
		shown["ownerReferences"] = m.OwnerReferences
	}
	if len(m.Finalizers) > 0 {
		shown["finalizers"] = m.Finalizers
	}
	text, err := yaml.Marshal(shown)
	if err != nil {
		return &effect{note: "What would be deleted could not be written down."}
	}
	return unified(text, nil)
}

// maskedChanged stands where a value was that the call changes.
const maskedChanged = "[redacted, changed]"

// hideValues masks the values of Secrets in both objects, and keeps visible which
// of them change.
func hideValues(c *authz.Call, before, after map[string]any) (map[string]any, map[string]any) {
	secret := c.Group == "" && c.Resource == "secrets" || isSecret(before) || isSecret(after)
	hidden := func(object map[string]any) map[string]any {
		switch {
		case object == nil:
			return nil
		case secret:
			kept, _ := redactSecret(object).(map[string]any)
			return kept
		}
		kept, _ := redactWithin(object).(map[string]any)
		return kept
	}
	shownBefore, shownAfter := hidden(before), hidden(after)
	if secret {
		for _, path := range [][]string{{"data"}, {"stringData"}, {"metadata", "annotations"}} {
			markChanged(at(before, path), at(after, path), at(shownAfter, path))
		}
	}
	return shownBefore, shownAfter
}

func at(object map[string]any, path []string) map[string]any {
	for _, field := range path {
		object, _ = object[field].(map[string]any)
	}
	return object
}

func markChanged(before, after, shown map[string]any) {
	for _, key := range slices.Collect(maps.Keys(shown)) {
		if was, found := before[key]; found && !reflect.DeepEqual(was, after[key]) {
			shown[key] = maskedChanged
		}
	}
}
