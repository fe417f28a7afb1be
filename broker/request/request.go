package request

import (
	"net/http"
	"net/url"
	"strings"

	"k8s.io/apimachinery/pkg/util/sets"
	apirequest "k8s.io/apiserver/pkg/endpoints/request"

	"github.com/taskgate/taskgate/authz"
)

// Request is what a request means, and all that is forwarded of it.
type Request struct {
	Call   authz.Call
	Method string

	path  string     // canonical, decoded
	query url.Values // known parameters, each once

	// Body is what is forwarded: the bytes that were judged, nil if there are
	// none.
	Body []byte
	// MediaType is that of Body, without parameters.
	MediaType string
	// Object is the decoded body, for the record and for judging; a map, a list
	// (JSON patch) or nil.
	Object any

	// DryRun is set if nothing is to be persisted.
	DryRun bool
	// Stream is what an exec, attach or port-forward wants to open; nil for any
	// other call.
	Stream *Stream
	// Live is set for answers that go on for as long as the client wants: a
	// watch, a followed log.
	Live bool
}

// Path is the canonical path, decoded.
func (r *Request) Path() string { return r.path }

// Query is the canonical query, encoded.
func (r *Request) Query() string { return r.query.Encode() }

// URI is the canonical request target, as it is recorded and forwarded.
func (r *Request) URI() string {
	return (&url.URL{Path: r.path, RawQuery: r.query.Encode()}).RequestURI()
}

// Narrow adds a field selector to a list or watch, on top of the agent's own.
// Selectors are conjunctions, so this can only take objects away.
func (r *Request) Narrow(selector string) {
	if own := r.query.Get("fieldSelector"); own != "" {
		selector = own + "," + selector
	}
	r.query.Set("fieldSelector", selector)
}

// Sent drops what nobody needs once the request was sent to the cluster.
func (r *Request) Sent() { r.query = nil }

// Parser understands requests. It never changes and is safe for concurrent use.
type Parser struct {
	resolver   *apirequest.RequestInfoFactory
	parameters map[kind]parameters
}

// NewParser makes a parser for the API server's own URL layout.
func NewParser() *Parser {
	return &Parser{
		resolver: &apirequest.RequestInfoFactory{
			APIPrefixes:          sets.NewString("api", "apis"),
			GrouplessAPIPrefixes: sets.NewString("api"),
		},
		parameters: tables(),
	}
}

// Parse understands a request or refuses it. The Request is never nil: a refused
// one holds as much of the call as was understood, for the record. Parse reads
// the body and returns when it is complete, refused or timed out.
func (p *Parser) Parse(r *http.Request) (*Request, *Refusal) {
	parsed := &Request{Method: r.Method, path: "/", query: url.Values{}}
	path, pathRefusal := canonicalPath(r.RequestURI)
	_, rawQuery, _ := strings.Cut(r.RequestURI, "?")
	query, queryRefusal := parseQuery(rawQuery)
	if pathRefusal == nil && queryRefusal == nil {
		parsed.path, parsed.query = path, query
	}
	for _, refusal := range []*Refusal{judgeHead(r), pathRefusal, queryRefusal} {
		if refusal != nil {
			return parsed, refusal
		}
	}
	info, refusal := p.resolve(r.Method, path, query)
	if refusal != nil {
		return parsed, refusal
	}
	parsed.Call = callOf(info)
	if refusal := judgeUpgrade(r, &parsed.Call); refusal != nil {
		return parsed, refusal
	}
	if refusal := p.judgeQuery(&parsed.Call, query); refusal != nil {
		return parsed, refusal
	}
	if opensStream(&parsed.Call) {
		return parsed, parsed.takeStream(r)
	}
	parsed.Live = parsed.Call.Verb == authz.Watch || (parsed.Call.Subresource == "log" && isTrue(query, "follow"))
	if refusal := parsed.takeBody(r); refusal != nil {
		return parsed, refusal
	}
	parsed.DryRun = parsed.DryRun || query.Get("dryRun") != ""
	return parsed, nil
}

func isTrue(query url.Values, name string) bool {
	value := strings.ToLower(query.Get(name))
	return query.Has(name) && value != "false" && value != "0"
}

// callOf translates the API server's reading. Streams are create whatever the
// method says: WebSocket clients open them with GET (KEP-4006).
func callOf(info *apirequest.RequestInfo) authz.Call {
	if !info.IsResourceRequest {
		call := authz.Call{Path: info.Path}
		if info.Verb == "get" {
			call.Verb = authz.Get
		} else {
			call.Verb = authz.Create // any other method on such a path: not a read
		}
		return call
	}
	call := authz.Call{
		Verb: authz.ParseVerb(info.Verb), Group: info.APIGroup, Version: info.APIVersion,
		Resource: info.Resource, Subresource: info.Subresource, Namespace: info.Namespace, Name: info.Name,
	}
	switch info.Subresource {
	case "exec", "attach", "portforward", "proxy":
		call.Verb = authz.Create
	}
	return call
}

// takeBody reads and judges the body, if the call has one.
func (p *Request) takeBody(r *http.Request) *Refusal {
	body, refusal := readBody(r)
	if refusal != nil {
		return refusal
	}
	if len(body) == 0 {
		return nil
	}
	if !p.Call.Verb.Mutates() || r.Method == http.MethodGet {
		return refuse(authz.BadBody, "Unexpected", "a %s has no body", p.Call.Verb)
	}
	media, refusal := mediaType(r.Header)
	if refusal != nil {
		return refusal
	}
	if media == "" && r.Method != http.MethodPatch {
		media = typeJSON // what the API server assumes, too
	}
	if !accepts(r.Method, media) {
		return unsupported("a body of the type %q cannot be judged for %s; send %s", truncate(media), r.Method, typeJSON)
	}
	object, refusal := decode(media, body)
	if refusal != nil {
		return refusal
	}
	p.Body, p.MediaType, p.Object = body, media, object
	if p.Call.Verb == authz.Delete || p.Call.Verb == authz.DeleteCollection {
		return p.judgeDelete()
	}
	return p.judgeObject()
}

func accepts(method, media string) bool {
	switch media {
	case typeJSON, typeYAML, typeProtobuf:
		return method != http.MethodPatch
	case typeJSONPatch, typeMergePatch, typeStrategicPatch, typeApplyPatch:
		return method == http.MethodPatch
	}
	return false
}

func (p *Request) judgeDelete() *Refusal {
	options, ok := p.Object.(map[string]any)
	if !ok {
		return refuse(authz.BadBody, "DeleteOptions", "the body of a delete has to be one DeleteOptions object")
	}
	if refusal := mergeDeleteOptions(options, p.query); refusal != nil {
		return refusal
	}
	list, _ := options["dryRun"].([]any)
	p.DryRun = len(list) > 0
	return nil
}

// judgeObject notes in the call what the decision has to know of the body, and
// refuses a body that names another object than the path.
func (p *Request) judgeObject() *Refusal {
	object, ok := p.Object.(map[string]any)
	if !ok {
		if p.MediaType == typeJSONPatch {
			if _, list := p.Object.([]any); list {
				return nil
			}
		}
		return refuse(authz.BadBody, "Shape", "the body has to be one object")
	}
	whole := p.MediaType != typeMergePatch && p.MediaType != typeStrategicPatch
	metadata, _ := object["metadata"].(map[string]any)
	if whole {
		if refusal := p.judgeNames(metadata); refusal != nil {
			return refusal
		}
	}
	uid, _ := metadata["uid"].(string)
	p.Call.Creates = p.Call.Subresource == "" && (p.MediaType == typeApplyPatch || p.Call.Verb == authz.Update && uid == "")
	p.Call.ServiceAccountToken = p.Call.Group == "" && p.Call.Resource == "secrets" &&
		object["type"] == "kubernetes.io/service-account-token"
	judgePod(&p.Call, object)
	return nil
}

// judgeNames compares path and body. The API server does so too; refusing here
// keeps what is recorded and what was meant from differing.
func (p *Request) judgeNames(metadata map[string]any) *Refusal {
	pairs := []struct{ what, path, body string }{
		{"namespace", p.Call.Namespace, text(metadata["namespace"])},
		{"name", p.Call.Name, text(metadata["name"])},
	}
	for _, pair := range pairs {
		if pair.what == "namespace" && p.Call.Resource == "namespaces" && p.Call.Group == "" {
			continue // its own name stands where others have their namespace
		}
		if pair.body != "" && pair.path != "" && pair.body != pair.path {
			return refuse(authz.BadBody, "PathBodyMismatch", "the %s is %q in the path and %q in the body", pair.what, pair.path, truncate(pair.body))
		}
	}
	if p.Call.Namespace == "" && text(metadata["namespace"]) != "" {
		return refuse(authz.BadBody, "PathBodyMismatch", "the path names no namespace and the body names %q", truncate(text(metadata["namespace"])))
	}
	return nil
}

func text(value any) string {
	s, _ := value.(string)
	return s
}
