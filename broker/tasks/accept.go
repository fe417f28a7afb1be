package tasks

import (
	"strings"

	"github.com/munnerz/goautoneg"
)

// form is how the agent wants to see objects.
type form uint8

const (
	whole    form = iota
	table         // meta.k8s.io Table: what kubectl get prints
	metadata      // meta.k8s.io PartialObjectMetadata
)

// formOf reads an Accept header as the API server does for custom resources,
// which know JSON (and YAML, which no client here asks for) and no protobuf or
// CBOR. It is false if nothing that is served is accepted.
func formOf(accept string) (form, bool) {
	if strings.TrimSpace(accept) == "" {
		return whole, true
	}
	for _, clause := range goautoneg.ParseAccept(accept) {
		if clause.Type != "*" && clause.Type != "application" || clause.SubType != "*" && clause.SubType != "json" {
			continue
		}
		as := clause.Params["as"]
		if as == "" {
			return whole, true
		}
		if clause.Params["g"] != "meta.k8s.io" || clause.Params["v"] != "v1" {
			continue
		}
		switch as {
		case "Table":
			return table, true
		case "PartialObjectMetadata", "PartialObjectMetadataList":
			return metadata, true
		}
	}
	return 0, false
}

// accept is what the control cluster is asked for.
func (v *view) accept() string {
	if v.form == table {
		return "application/json;as=Table;v=v1;g=meta.k8s.io"
	}
	return "application/json"
}
