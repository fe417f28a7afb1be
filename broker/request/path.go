package request

import (
	"net/http"
	"net/url"
	"strings"

	apirequest "k8s.io/apiserver/pkg/endpoints/request"

	"github.com/taskgate/taskgate/authz"
)

// maxSegments is the longest path the API server routes:
// /apis/group/version/namespaces/ns/resource/name/subresource.
const maxSegments = 8

// canonicalPath returns the decoded path of a request target, or refuses every
// spelling but the one net/url and with it client-go writes.
func canonicalPath(target string) (string, *Refusal) {
	raw, _, _ := strings.Cut(target, "?")
	if !strings.HasPrefix(raw, "/") {
		return "", refuse(authz.BadPath, "Form", "the request target has to be a path that begins with /")
	}
	path, err := url.PathUnescape(raw)
	if err != nil {
		return "", refuse(authz.BadPath, "Encoding", "the path is not a valid percent-encoding")
	}
	if (&url.URL{Path: path}).EscapedPath() != raw {
		return "", refuse(authz.BadPath, "Encoding", "the path is not in canonical form; encode only what has to be encoded")
	}
	for _, char := range []byte(path) {
		if char < ' ' || char > '~' || strings.IndexByte(`%\;?#`, char) >= 0 {
			return "", refuse(authz.BadPath, "Character", "the path holds the character %q, which no path of the Kubernetes API needs", rune(char))
		}
	}
	if path == "/" {
		return path, nil
	}
	for segment := range strings.SplitSeq(path[1:], "/") {
		if segment == "" || segment == "." || segment == ".." {
			return "", refuse(authz.BadPath, "Segment", "the path holds an empty segment, . or .., or ends in /")
		}
	}
	return path, nil
}

// resolve reads a canonical path and its query as the API server does.
func (p *Parser) resolve(method, path string, query url.Values) (*apirequest.RequestInfo, *Refusal) {
	if legacyVerb(path) {
		return nil, refuse(authz.PolicyDenied, "LegacyPath", "/watch/ and /proxy/ paths are not served; use ?watch=true").as(http.StatusForbidden)
	}
	info, err := p.resolver.NewRequestInfo(&http.Request{Method: method, URL: &url.URL{Path: path, RawQuery: query.Encode()}})
	if err != nil {
		return nil, refuse(authz.BadPath, "Unresolved", "the path cannot be resolved")
	}
	var buffer [128]byte
	beyond := info.IsResourceRequest && string(appendPath(buffer[:0], info)) != path
	if beyond && info.Subresource == "proxy" { // the rest of the path is for the proxied server
		return nil, refuse(authz.PolicyDenied, "Proxy", "what nodes, pods and services serve themselves is never reached through taskgate, whatever a grant says. Next: do without it. Retrying changes nothing").as(http.StatusForbidden)
	}
	if strings.Count(path, "/") > maxSegments {
		return nil, refuse(authz.BadPath, "Length", "the path has more than %d segments", maxSegments)
	}
	if beyond {
		return nil, refuse(authz.BadPath, "Unresolved", "the path goes on behind what it names")
	}
	return info, nil
}

// legacyVerb finds the deprecated spelling of watch and proxy as path prefixes
// (requestinfo.go, specialVerbs).
func legacyVerb(path string) bool {
	root, rest, _ := strings.Cut(path[1:], "/")
	switch root {
	case "apis":
		_, rest, _ = strings.Cut(rest, "/") // the group
		fallthrough
	case "api":
		_, rest, _ = strings.Cut(rest, "/") // the version
		verb, _, _ := strings.Cut(rest, "/")
		return verb == "watch" || verb == "proxy"
	}
	return false
}

// appendPath writes the one path that names what info names. Comparing it with
// the path that was read proves that no part of the path was ignored.
func appendPath(to []byte, info *apirequest.RequestInfo) []byte {
	namespace, name := "", ""
	if info.Namespace != "" && info.Resource != "namespaces" {
		namespace = info.Namespace
	}
	if len(info.Parts) > 1 { // info.Name may come from a field selector
		name = info.Parts[1]
	}
	to = appendSegment(to, info.APIPrefix, true)
	to = appendSegment(to, info.APIGroup, info.APIGroup != "")
	to = appendSegment(to, info.APIVersion, true)
	to = appendSegment(to, "namespaces/"+namespace, namespace != "")
	to = appendSegment(to, info.Resource, true)
	to = appendSegment(to, name, len(info.Parts) > 1)
	return appendSegment(to, info.Subresource, info.Subresource != "")
}

func appendSegment(to []byte, segment string, there bool) []byte {
	if !there {
		return to
	}
	return append(append(to, '/'), segment...)
}
