package request

import (
	"mime"
	"net"
	"net/http"
	"slices"
	"strings"

	"github.com/taskgate/taskgate/authz"
)

// judgeHead refuses methods and headers the broker does not forward and that a
// client only sends to be somebody else or to open a tunnel. Headers that are
// merely useless are not refused: the request to the cluster is built without
// them.
func judgeHead(r *http.Request) *Refusal {
	if !slices.Contains([]string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete}, r.Method) {
		return refuse(authz.BadHeader, "Method", "the method %q is not served", truncate(r.Method)).as(http.StatusMethodNotAllowed)
	}
	if r.TLS != nil && r.TLS.ServerName != "" && hostname(r.Host) != r.TLS.ServerName {
		return refuse(authz.BadHeader, "Host", "the Host header differs from the TLS server name").as(http.StatusMisdirectedRequest)
	}
	for name := range r.Header {
		if strings.HasPrefix(fold(name), "impersonate-") {
			return refuse(authz.BadHeader, "Impersonate", "impersonation is not for agents: drop --as and the header %s", truncate(name))
		}
	}
	if len(r.Header.Values("Content-Length")) > 1 { // net/http refuses it in HTTP/1.1 only
		return refuse(authz.BadHeader, "ContentLength", "the body has more than one length")
	}
	if refusal := judgeConnection(r); refusal != nil {
		return refusal
	}
	if refusal := judgeProtocols(r.Header); refusal != nil {
		return refusal
	}
	if encoding := r.Header.Get("Content-Encoding"); encoding != "" && encoding != "identity" {
		return refuse(authz.BadBody, "ContentEncoding", "send the body without Content-Encoding").as(http.StatusUnsupportedMediaType)
	}
	return nil
}

// judgeConnection refuses connection options that would make the next hop drop or
// reinterpret headers (RFC 9110, section 7.6.1).
func judgeConnection(r *http.Request) *Refusal {
	for _, token := range connectionTokens(r.Header) {
		switch token {
		case "", "close", "keep-alive", "upgrade", "http2-settings":
		default:
			return refuse(authz.BadHeader, "Connection", "the connection option %q is not understood", truncate(token))
		}
	}
	return nil
}

func connectionTokens(header http.Header) []string {
	var tokens []string
	for _, line := range header.Values("Connection") {
		for token := range strings.SplitSeq(line, ",") {
			tokens = append(tokens, strings.ToLower(strings.TrimSpace(token)))
		}
	}
	return tokens
}

// fold makes spellings of a header name equal that some server somewhere takes
// for the same.
func fold(name string) string {
	return strings.ReplaceAll(strings.ToLower(name), "_", "-")
}

func hostname(hostport string) string {
	if host, _, err := net.SplitHostPort(hostport); err == nil {
		return host
	}
	return hostport
}

func truncate(s string) string {
	const most = 64
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}

// mediaType returns the one media type of a body without its parameters.
func mediaType(header http.Header) (string, *Refusal) {
	switch given := header.Values("Content-Type"); len(given) {
	case 0:
		return "", nil
	case 1:
		name, parameters, err := mime.ParseMediaType(given[0])
		charset := parameters["charset"]
		delete(parameters, "charset")
		if err == nil && len(parameters) == 0 && (charset == "" || strings.EqualFold(charset, "utf-8")) {
			return name, nil
		}
	}
	return "", unsupported("the Content-Type is not understood")
}

func unsupported(format string, args ...any) *Refusal {
	return refuse(authz.BadBody, "MediaType", format, args...).as(http.StatusUnsupportedMediaType)
}
