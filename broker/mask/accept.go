package mask

import (
	"mime"
	"strings"
)

// mediaJSON is the one codec that is asked for and answered.
const mediaJSON = "application/json"

// Accept turns what an agent accepts into what the cluster is asked for: the same
// forms (object, Table, PartialObjectMetadata), always as JSON. Clients of
// protobuf, CBOR and YAML read an answer that says it is JSON. An empty or
// unreadable wish is a wish for JSON.
func Accept(wish []string) string {
	var clauses []string
	for clause := range strings.SplitSeq(strings.Join(wish, ","), ",") {
		name, parameters, err := mime.ParseMediaType(clause)
		if err != nil || !readable(name) {
			continue
		}
		kept := map[string]string{}
		for _, parameter := range []string{"as", "g", "v", "q"} {
			if value, found := parameters[parameter]; found {
				kept[parameter] = value
			}
		}
		if formatted := mime.FormatMediaType(mediaJSON, kept); formatted != "" {
			clauses = append(clauses, formatted)
		}
	}
	if len(clauses) == 0 {
		return mediaJSON
	}
	return strings.Join(clauses, ", ")
}

// readable are the codecs of the API server, and the words for any.
func readable(media string) bool {
	switch media {
	case mediaJSON, "application/yaml", "application/cbor", "application/cbor-seq", "application/vnd.kubernetes.protobuf", "application/*", "*/*":
		return true
	}
	return false
}

// Readable reports whether Copy can read an answer with that Content-Type and
// Content-Encoding. No type at all is not readable.
func Readable(contentType, contentEncoding string) bool {
	name, _, err := mime.ParseMediaType(contentType)
	return err == nil && name == mediaJSON && (contentEncoding == "" || contentEncoding == "identity")
}
