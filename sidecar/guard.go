package sidecar

import (
	"net"
	"net/http"
	"strings"

	"github.com/taskgate/taskgate/identity"
)

// guard decides whether a call comes from somebody who may read the agent's
// files in this pod. Everything it is not sure about it refuses.
type guard struct {
	authority *identity.LocalAuthority
	hosts     map[string]bool
}

func newGuard(authority *identity.LocalAuthority) *guard {
	g := &guard{authority: authority, hosts: map[string]bool{}}
	for _, name := range authority.Names() {
		g.hosts[name] = true
	}
	return g
}

// check returns nil or the refusal. The form of the request comes first, because
// net/http takes r.Host from the target of CONNECT and of absolute-form requests.
func (g *guard) check(r *http.Request) *refusal {
	const askPlainly = "send the request straight to this endpoint, as kubectl does with the kubeconfig in $KUBECONFIG"
	if r.Method == http.MethodConnect {
		return &refusal{code: http.StatusMethodNotAllowed, reason: reasonBadUpgrade, what: "this is not a proxy: CONNECT is not served", next: askPlainly}
	}
	if !strings.HasPrefix(r.RequestURI, "/") {
		return &refusal{code: http.StatusBadRequest, reason: reasonBadPath, what: "the request target must be a path (origin-form, RFC 9112 section 3.2.1)", next: askPlainly}
	}
	if !g.hostAllowed(r.Host) {
		return &refusal{code: http.StatusMisdirectedRequest, reason: reasonBadHeader, what: "the Host of this request is not a name of this endpoint", next: "use the server address in $KUBECONFIG"}
	}
	if len(r.Header.Values("Content-Length")) > 1 { // net/http refuses it in HTTP/1.1 only
		return &refusal{code: http.StatusBadRequest, reason: reasonBadHeader, what: "the body has more than one length", next: askPlainly}
	}
	if name := browserHeader(r.Header); name != "" {
		return &refusal{code: http.StatusForbidden, reason: reasonBadHeader, what: "requests of web pages are not served (header " + name + ")", next: askPlainly}
	}
	if !g.authority.CheckToken(bearerToken(r.Header)) {
		return &refusal{code: http.StatusUnauthorized, reason: reasonIdentityUnknown, what: "the local token is missing or wrong", next: "use $KUBECONFIG, or send the content of the token file beside it as Authorization: Bearer"}
	}
	return nil
}

// hostAllowed stops DNS rebinding: a page that made its own name resolve to
// 127.0.0.1 still says that name. The port does not matter, because it is not
// something a page could choose differently.
func (g *guard) hostAllowed(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	} else {
		host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	}
	return g.hosts[host] || g.hosts[strings.ToLower(host)]
}

// browserHeader names a header only browsers send. An absent Origin proves
// nothing, a present one says enough.
func browserHeader(headers http.Header) string {
	for name := range headers {
		switch {
		case folded(name, "origin"):
			return "Origin"
		case foldedPrefix(name, "sec-fetch-"):
			return "Sec-Fetch"
		}
	}
	return ""
}

// bearerToken is empty unless there is exactly one Authorization header and it
// carries a bearer token (RFC 6750).
func bearerToken(headers http.Header) string {
	values := headers["Authorization"]
	if len(values) != 1 {
		return ""
	}
	scheme, token, _ := strings.Cut(values[0], " ")
	if !strings.EqualFold(scheme, "bearer") {
		return ""
	}
	return token
}

// folded reports whether name is pattern, which is in lower case, when case does
// not count and _ is read as -. Servers behind CGI-like interfaces read it so.
func folded(name, pattern string) bool {
	return len(name) == len(pattern) && foldedPrefix(name, pattern)
}

// foldedPrefix is folded for the beginning of name.
func foldedPrefix(name, pattern string) bool {
	if len(name) < len(pattern) {
		return false
	}
	for i := range len(pattern) {
		c := name[i]
		switch {
		case c == '_':
			c = '-'
		case 'A' <= c && c <= 'Z':
			c += 'a' - 'A'
		}
		if c != pattern[i] {
			return false
		}
	}
	return true
}
