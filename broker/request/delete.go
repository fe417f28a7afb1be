package request

import (
	"net/url"
	"slices"
	"strconv"

	"github.com/taskgate/taskgate/authz"
)

// deleteOptions are the fields of meta/v1 DeleteOptions a query can carry too,
// each written as the query would write it.
func deleteOptions(body map[string]any) (url.Values, *Refusal) {
	options := url.Values{}
	for field, value := range body {
		switch field {
		case "kind", "apiVersion", "preconditions":
			continue // of no meaning for the query
		case "gracePeriodSeconds":
			if seconds, ok := value.(int64); ok {
				options.Set(field, strconv.FormatInt(seconds, 10))
				continue
			}
		case "orphanDependents":
			if orphan, ok := value.(bool); ok {
				options.Set(field, strconv.FormatBool(orphan))
				continue
			}
		case "propagationPolicy":
			if policy, ok := value.(string); ok {
				options.Set(field, policy)
				continue
			}
		case "dryRun":
			if list, ok := value.([]any); ok && slices.Equal(list, []any{"All"}) {
				options.Set(field, "All")
				continue
			}
			if list, ok := value.([]any); ok && len(list) == 0 {
				continue
			}
		}
		if value == nil {
			continue
		}
		return nil, refuse(authz.BadBody, "DeleteOptions", "the field %q of the delete options is not understood", field)
	}
	return options, nil
}

// mergeDeleteOptions makes one set of options out of body and query. The API
// server ignores the query if there is a body (handlers/delete.go), so options
// that are given in only one of the two places, or differently, would mean
// something else than they say.
func mergeDeleteOptions(body map[string]any, query url.Values) *Refusal {
	if body == nil {
		return nil
	}
	inBody, refusal := deleteOptions(body)
	if refusal != nil {
		return refusal
	}
	for _, name := range []string{"gracePeriodSeconds", "orphanDependents", "propagationPolicy", "dryRun"} {
		if query.Has(name) && query.Get(name) != inBody.Get(name) {
			return refuse(authz.BadQuery, "DeleteOptions", "query and body disagree about %s; give the delete options in the body only", name)
		}
		query.Del(name)
	}
	return nil
}

// moveDeleteOptions takes the options out of a query that was judged and writes
// them as a body does.
func moveDeleteOptions(query url.Values, into map[string]any) {
	for _, name := range []string{"gracePeriodSeconds", "orphanDependents", "propagationPolicy", "dryRun"} {
		value := query.Get(name)
		if !query.Has(name) {
			continue
		}
		query.Del(name)
		switch name {
		case "gracePeriodSeconds":
			into[name], _ = strconv.ParseInt(value, 10, 64) // was judged to be a number
		case "orphanDependents":
			into[name] = isTrue(url.Values{name: {value}}, name)
		case "dryRun":
			into[name] = []any{value}
		default:
			into[name] = value
		}
	}
}
