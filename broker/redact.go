package broker

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"

	"github.com/taskgate/taskgate/broker/mask"
	"github.com/taskgate/taskgate/broker/request"
)

// masked stands in records where a value was.
const masked = mask.Text

// concernsSecrets reports whether a call is about Secrets, so that neither
// bodies nor hashes of them may be kept: a hash of a short value gives it away.
func concernsSecrets(r *request.Request) bool {
	return r.Call.Secrets() || holdsSecret(r.Object)
}

// holdsSecret finds Secrets at any depth: in lists, and in whatever is sent under
// the name of something else.
func holdsSecret(value any) bool {
	switch value := value.(type) {
	case map[string]any:
		if isSecret(value) {
			return true
		}
		for _, below := range value {
			if holdsSecret(below) {
				return true
			}
		}
	case []any:
		return slices.ContainsFunc(value, holdsSecret)
	}
	return false
}

func isSecret(fields map[string]any) bool {
	return fields["kind"] == "Secret" || fields["kind"] == "SecretList"
}

// requestObject is the body of a mutation as it is recorded: whole, but without
// the values of Secrets. It returns nil if there is nothing to keep.
func requestObject(r *request.Request) (json.RawMessage, error) {
	if r.Object == nil {
		return nil, nil
	}
	if r.Call.Secrets() {
		return json.Marshal(redactSecret(r.Object))
	}
	return json.Marshal(redactWithin(r.Object))
}

// redactWithin redacts the Secrets in a value, and leaves the value itself alone.
func redactWithin(value any) any {
	if !holdsSecret(value) {
		return value
	}
	switch value := value.(type) {
	case map[string]any:
		if isSecret(value) {
			return redactSecret(value)
		}
		kept := make(map[string]any, len(value))
		for field, below := range value {
			kept[field] = redactWithin(below)
		}
		return kept
	case []any:
		kept := make([]any, 0, len(value))
		for _, below := range value {
			kept = append(kept, redactWithin(below))
		}
		return kept
	}
	return masked
}

// redactSecret keeps of a Secret, or of a patch of one, only what cannot hold a
// value: it is a list of what stays, so a field nobody thought of goes.
func redactSecret(object any) any {
	switch body := object.(type) {
	case map[string]any:
		kept := map[string]any{}
		for field, value := range body {
			switch field {
			case "kind", "apiVersion", "type", "immutable":
				kept[field] = value
			case "metadata":
				kept[field] = redactMetadata(value)
			default:
				kept[field] = maskValues(value)
			}
		}
		return kept
	case []any: // JSON patch
		kept := make([]any, 0, len(body))
		for _, operation := range body {
			kept = append(kept, redactOperation(operation))
		}
		return kept
	}
	return masked
}

// redactMetadata masks annotations: kubectl keeps the whole object in one.
func redactMetadata(value any) any {
	metadata, ok := value.(map[string]any)
	if !ok {
		return masked
	}
	kept := maps.Clone(metadata)
	if annotations, found := kept["annotations"]; found {
		kept["annotations"] = maskValues(annotations)
	}
	delete(kept, "managedFields")
	return kept
}

func redactOperation(value any) any {
	operation, ok := value.(map[string]any)
	if !ok {
		return masked
	}
	kept := map[string]any{}
	for field, value := range operation {
		switch field {
		case "op", "path", "from":
			kept[field] = value
		default:
			kept[field] = masked
		}
	}
	return kept
}

// maskValues keeps the keys of an object and hides everything below them.
func maskValues(value any) any {
	fields, ok := value.(map[string]any)
	if !ok {
		return masked
	}
	kept := make(map[string]any, len(fields))
	for field := range fields {
		kept[field] = masked
	}
	return kept
}

func joinNames(names []string) string { return strings.Join(names, ",") }
