package e2e_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	authorizationv1 "k8s.io/api/authorization/v1"

	"github.com/taskgate/taskgate/recorder"
)

var (
	asMerge     = map[string]string{"Content-Type": "application/merge-patch+json"}
	asApply     = map[string]string{"Content-Type": "application/apply-patch+yaml"}
	asWebSocket = map[string]string{"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Protocol": "v5.channel.k8s.io, SPDY/3.1+portforward.k8s.io"}
	asSPDY      = map[string]string{"Connection": "Upgrade", "Upgrade": "SPDY/3.1", "X-Stream-Protocol-Version": "v4.channel.k8s.io, portforward.k8s.io"}
	asBearer    = map[string]string{"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Protocol": "v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.dG9rZW4"}
)

// TestNever: no grant gives what is never allowed, not even one of everything.
func TestNever(t *testing.T) {
	rig := newCasesRig(t)
	never := func(id, method, target, cause string) row {
		r := row{id: id, name: method + " " + target, who: rig.all, method: method, target: target, code: 403, reason: "PolicyDenied/" + cause}
		switch method {
		case "POST", "PUT":
			r.header, r.body = asJSON, `{}`
		case "PATCH":
			r.header, r.body = asMerge, `{}`
		}
		return r
	}
	rows := []row{
		never("T043", "POST", "/api/v1/namespaces/case-a/serviceaccounts/default/token", "TokenRequest"),
		never("T046", "PUT", "/apis/certificates.k8s.io/v1/certificatesigningrequests/x/approval", "CertificateApproval"),
		never("T046", "PATCH", "/apis/certificates.k8s.io/v1/certificatesigningrequests/x/approval", "CertificateApproval"),
		never("T090", "POST", "/apis/authentication.k8s.io/v1/tokenreviews", "Review"),
		never("T090", "POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", "Review"),
		never("T090", "POST", "/apis/authorization.k8s.io/v1/namespaces/case-a/localsubjectaccessreviews", "Review"),
	}
	for _, object := range []string{"nodes/kwok-0", "namespaces/case-a/pods/web-0", "namespaces/case-a/services/web"} {
		for _, method := range []string{"GET", "POST", "PUT", "PATCH", "DELETE"} {
			rows = append(rows, never("T042", method, "/api/v1/"+object+"/proxy", "Proxy"))
		}
	}
	every := []struct{ method, suffix string }{{"GET", ""}, {"GET", "/x"}, {"POST", ""}, {"PUT", "/x"}, {"PATCH", "/x"}, {"DELETE", "/x"}, {"DELETE", ""}}
	for collection, cause := range map[string]string{
		"/apis/taskgate.dev/v1alpha1/agentpolicies":                                        "OwnObjects",
		"/apis/taskgate.dev/v1alpha1/decisions":                                            "OwnObjects",
		"/api/v1/namespaces/taskgate-system/pods":                                          "ProtectedNamespace",
		"/api/v1/namespaces/taskgate-system/configmaps":                                    "ProtectedNamespace",
		"/apis/apps/v1/namespaces/spire/deployments":                                       "ProtectedNamespace",
		"/apis/spire.spiffe.io/v1alpha1/clusterspiffeids":                                  "SPIRERegistration",
		"/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies":                "AdmissionConfiguration",
		"/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings":          "AdmissionConfiguration",
		"/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations":              "AdmissionConfiguration",
		"/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations":            "AdmissionConfiguration",
		"/apis/admissionregistration.k8s.io/v1beta1/mutatingadmissionpolicies":             "AdmissionConfiguration",
		"/apis/apiregistration.k8s.io/v1/apiservices":                                      "APIService",
		"/apis/authentication.k8s.io/v1/tokenreviews":                                      "Review",
		"/apis/authorization.k8s.io/v1/namespaces/case-a/localsubjectaccessreviews":        "Review",
		"/apis/authentication.k8s.io/v1/namespaces/taskgate-system/serviceaccounts/x/else": "",
	} {
		if cause == "" {
			continue
		}
		for _, way := range every {
			rows = append(rows, never("T046", way.method, collection+way.suffix, cause))
		}
	}
	for _, status := range []string{"taskgrants/x/status", "agentpolicies/x/status", "approvals/x/status"} {
		rows = append(rows, never("T046", "PUT", "/apis/taskgate.dev/v1alpha1/"+status, "OwnObjects"), never("T109", "PATCH", "/apis/taskgate.dev/v1alpha1/"+status, "OwnObjects"))
	}
	for _, way := range every[2:] {
		rows = append(rows, never("T046", way.method, "/apis/networking.k8s.io/v1/namespaces/agents/networkpolicies"+way.suffix, "NetworkPolicy"))
	}
	for _, way := range []struct{ method, suffix string }{{"GET", ""}, {"PUT", ""}, {"DELETE", ""}, {"PUT", "/finalize"}, {"PATCH", "/status"}} {
		rows = append(rows, never("T046", way.method, "/api/v1/namespaces/taskgate-system"+way.suffix, "ProtectedNamespace"))
	}
	rig.play(t, rows)
}

// TestProxyWithPath: kubectl get --raw writes it like this.
func TestProxyWithPath(t *testing.T) {
	rig := newCasesRig(t)
	var rows []row
	for _, object := range []string{"nodes/kwok-0", "namespaces/case-a/pods/web-0", "namespaces/case-a/services/web"} {
		rows = append(rows, row{id: "T042", name: object, who: rig.all, method: "GET", target: "/api/v1/" + object + "/proxy/metrics", code: 403, reason: "PolicyDenied/Proxy"})
	}
	rig.play(t, rows)
}

// TestNeverByBody: what the body asks for counts too.
func TestNeverByBody(t *testing.T) {
	rig := newCasesRig(t)
	post := func(id, name, target, body, reason string) row {
		return row{id: id, name: name, who: rig.all, method: "POST", target: target, header: asJSON, body: body, code: 403, reason: reason}
	}
	pod := func(spec string) string {
		return `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p"},"spec":{"containers":[{"name":"c","image":"nginx"}],` + spec + `}}`
	}
	const secrets = "/api/v1/namespaces/case-a/secrets"
	rig.play(t, []row{
		post("T047", "another account", casePods, pod(`"serviceAccountName":"broker"`), "PolicyDenied/PodPolicy"),
		post("T047", "hostPath", casePods, pod(`"volumes":[{"name":"v","hostPath":{"path":"/"}}]`), "PolicyDenied/PodPolicy"),
		post("T047", "hostNetwork", casePods, pod(`"hostNetwork":true`), "PolicyDenied/PodPolicy"),
		post("T047", "privileged", casePods, `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p"},"spec":{"containers":[{"name":"c","image":"n","securityContext":{"privileged":true}}]}}`, "PolicyDenied/PodPolicy"),
		post("never", "token secret", secrets, `{"apiVersion":"v1","kind":"Secret","metadata":{"name":"t","annotations":{"kubernetes.io/service-account.name":"default"}},"type":"kubernetes.io/service-account-token"}`, "PolicyDenied/TokenSecret"),
		{id: "never", name: "token secret by apply", who: rig.all, method: "PATCH", target: secrets + "/t?fieldManager=x&force=true", header: asApply,
			body: "apiVersion: v1\nkind: Secret\ntype: kubernetes.io/service-account-token\nmetadata: {name: t, annotations: {kubernetes.io/service-account.name: default}}\n", code: 403, reason: "PolicyDenied/TokenSecret"},
		{id: "never", name: "token secret by update", who: rig.all, method: "PUT", target: secrets + "/db", header: asJSON,
			body: `{"apiVersion":"v1","kind":"Secret","metadata":{"name":"db"},"type":"kubernetes.io/service-account-token"}`, code: 403, reason: "PolicyDenied/TokenSecret"},
	})
}

// TestGates: no wildcard gives a gated call away. What the bodies ask for would be
// done by the cluster, or nobody would be asked about it.
func TestGates(t *testing.T) {
	rig := newCasesRig(t)
	gated := func(method, target string) row {
		r := row{id: "T101", name: "gate", who: rig.all, method: method, target: target, code: 403, reason: "ApprovalRequired"}
		switch method {
		case "POST", "PUT":
			r.header, r.body = asJSON, `{}`
		case "PATCH":
			r.header, r.body = asMerge, `{}`
		}
		return r
	}
	with := func(body string, r row) row {
		r.body = body
		return r
	}
	rig.play(t, []row{
		gated("DELETE", "/api/v1/namespaces/case-b"), with(`{"metadata":{"name":"case-b"},"spec":{"finalizers":["kubernetes"]}}`, gated("PUT", "/api/v1/namespaces/case-b/finalize")), gated("DELETE", casePods),
		gated("PATCH", casePod+"/ephemeralcontainers"), with(`{"metadata":{"name":"web-0"}}`, gated("PUT", casePod+"/ephemeralcontainers")),
		gated("GET", "/api/v1/namespaces/case-a/secrets/db"), gated("GET", "/api/v1/namespaces/case-a/secrets"), gated("GET", "/api/v1/secrets"),
		gated("GET", "/api/v1/secrets?watch=true"), gated("PATCH", "/api/v1/namespaces/case-a/secrets/db"),
		gated("DELETE", "/api/v1/namespaces/case-a/secrets/db"), gated("GET", "/api/v1/namespaces/case-a/secrets/db?includeObject=None"),
		with(`{"metadata":{"name":"gated"},"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":"view"}}`, gated("POST", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings")),
		with(`{"metadata":{"name":"gated"}}`, gated("POST", "/apis/rbac.authorization.k8s.io/v1/namespaces/case-a/roles")),
		with(`{"metadata":{"name":"gates.case.example.org"},"spec":{"group":"case.example.org","scope":"Cluster","names":{"plural":"gates","kind":"Gate"},"versions":[{"name":"v1","served":true,"storage":true,"schema":{"openAPIV3Schema":{"type":"object"}}}]}}`,
			gated("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions")), gated("DELETE", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/globes.case.example.org"),
		with(`{"metadata":{"name":"gated"},"spec":{"capacity":{"storage":"1Gi"},"accessModes":["ReadWriteOnce"],"nfs":{"server":"nfs","path":"/"}}}`, gated("POST", "/api/v1/persistentvolumes")), gated("PATCH", "/api/v1/nodes/kwok-0"), gated("PATCH", "/api/v1/nodes/kwok-0/status"), gated("DELETE", "/api/v1/nodes/kwok-0"),
	})
	stream := func(method, subresource string, header map[string]string) row {
		return row{id: "T101", name: "gate", who: rig.all, method: method, target: casePod + "/" + subresource, header: header, code: 403, reason: "ApprovalRequired"}
	}
	rig.playHTTP1(t, []row{
		stream("POST", "exec?command=ls&stdout=true", asSPDY), stream("GET", "exec?command=ls&stdout=true", asWebSocket),
		stream("POST", "attach?stdout=true", asSPDY), stream("GET", "attach?stdout=true", asWebSocket), stream("POST", "portforward", asSPDY), stream("GET", "portforward", asWebSocket),
	})
	if phase := rig.admin(t, "get", "namespace", "case-b", "-o=jsonpath={.status.phase}"); phase != "Active" {
		t.Errorf("T101: the namespace is %s", phase)
	}
}

// TestUpgrades: exec, attach and port-forward are upgraded to what can be recorded,
// and nothing else is forwarded.
func TestUpgrades(t *testing.T) {
	rig := newCasesRig(t)
	var rows []row
	for _, token := range []string{"websocket", "SPDY/3.1", "h2c", "TLS/1.0", "WebSocket"} {
		header := map[string]string{"Connection": "Upgrade", "Upgrade": token}
		if token == "h2c" {
			header["Connection"], header["HTTP2-Settings"] = "Upgrade, HTTP2-Settings", "AAMAAABkAARAAAAAAAIAAAAA"
		}
		for _, target := range []string{"/version", casePod, casePods + "?watch=true", casePod + "/log", casePod + "/exec?command=ls", "/api/v1/nodes/kwok-0/proxy", casePod + "/proxy"} {
			rows = append(rows, row{id: "T079", name: token + " " + target, who: rig.all, method: "GET", target: target, header: header, code: 403, reason: "BadUpgrade"})
		}
	}
	rows = append(rows, row{id: "T042", name: "websocket with a bearer", who: rig.all, method: "GET", target: casePod + "/exec?command=ls&stdout=true", header: asBearer, code: 403, reason: "BadUpgrade"},
		row{id: "T042", name: "exec without an upgrade", who: rig.all, method: "POST", target: casePod + "/exec?command=ls&stdout=true", code: 403, reason: "BadUpgrade"})
	rig.playHTTP1(t, rows)
}

// TestSeveralGrants: of two grants that cover a call, the strictest gate counts.
func TestSeveralGrants(t *testing.T) {
	rig := newCasesRig(t)
	a := rig.newAgent(t, "case-two")
	maps := `{namespaces: [case-a], apiGroups: [""], resources: [configmaps], verbs: [get, list]}`
	rig.policy(t, "case-open", a, "", maps)
	rig.grant(t, "case-open", "case-open", a, "1h", maps)
	rig.play(t, []row{{id: "T089", name: "one policy", who: a, method: "GET", target: caseMaps + "/settings", code: 200}})
	rig.policy(t, "case-gated", a, "grant: {maxTTL: 4h, approval: None}\ngates: [{name: look, resources: [configmaps], verbs: [get], groups: [sre], approvers: 2}]", maps)
	rig.grant(t, "case-gated", "case-gated", a, "2h", maps)
	rig.play(t, []row{
		{id: "T089", name: "a gate of either policy", who: a, method: "GET", target: caseMaps + "/settings", code: 403, reason: "ApprovalRequired"},
		{id: "T089", name: "what no gate is about", who: a, method: "GET", target: caseMaps, code: 200},
	})
	got := a.do(t, "GET", caseMaps, nil, "")
	record := rig.journal.of(t, got.auditID())[got.auditID()][0]
	if record.Annotations[recorder.AnnotationGrant] != "case-open" || record.Annotations[recorder.AnnotationCandidates] != "case-open,case-gated" {
		t.Errorf("T089: charged %s of %s", record.Annotations[recorder.AnnotationGrant], record.Annotations[recorder.AnnotationCandidates])
	}
}

// TestUpstreamsOwnNo is told apart from ours.
func TestUpstreamsOwnNo(t *testing.T) {
	rig := newCasesRig(t)
	a := rig.newAgent(t, "case-bind")
	waived := "grant: {maxTTL: 4h, approval: None}\nwaive: [rbac]"
	rig.policy(t, "case-bind", a, waived, everything)
	rig.grant(t, "case-bind", "case-bind", a, "1h", everything)
	body := `{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"RoleBinding","metadata":{"name":"root"},"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":"cluster-admin"},"subjects":[{"apiGroup":"rbac.authorization.k8s.io","kind":"User","name":"taskgate:agent"}]}`
	for _, target := range []string{"/apis/rbac.authorization.k8s.io/v1/namespaces/case-a/rolebindings"} {
		got := a.do(t, "POST", target, asJSON, body)
		if got.code != 403 || got.reason() != "UpstreamDenied" || !strings.Contains(got.body, "taskgate policy rbac case-bind") {
			t.Errorf("T045: %d %s: %s", got.code, got.reason(), got.body)
		}
		records := rig.journal.of(t, got.auditID())[got.auditID()]
		last := records[len(records)-1]
		if last.Annotations[recorder.AnnotationOutcome] != "upstream_403" || len(rig.upstream(t)[got.auditID()]) == 0 || last.Annotations[recorder.AnnotationWaived] != "rbac" {
			t.Errorf("T045: the record says %v", last.Annotations)
		}
	}
	if out := rig.admin(t, "-n", "case-a", "get", "rolebindings", "-o=name"); strings.Contains(out, "root") {
		t.Error("T045: the binding exists")
	}
	bindings := "/apis/rbac.authorization.k8s.io/v1/clusterroles"
	got := a.do(t, "POST", bindings, asJSON, `{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"ClusterRole","metadata":{"name":"case-escalate"},"rules":[{"apiGroups":["*"],"resources":["*"],"verbs":["*"]}]}`)
	if got.reason() != "UpstreamDenied" {
		t.Errorf("T045: making a role of everything: %d %s", got.code, got.body)
	}
}

// TestCanI: what the reviews answer is what the call then meets.
func TestCanI(t *testing.T) {
	rig := newCasesRig(t)
	type question struct{ verb, group, resource, subresource, namespace, name, method, target, body string }
	questions := []question{
		{"get", "", "pods", "", "case-a", "web-0", "GET", casePod, ""},
		{"list", "", "pods", "", "case-a", "", "GET", casePods, ""},
		{"list", "", "pods", "", "", "", "GET", "/api/v1/pods", ""},
		{"list", "", "pods", "", "case-b", "", "GET", "/api/v1/namespaces/case-b/pods", ""},
		{"get", "", "pods", "log", "case-a", "web-0", "GET", casePod + "/log", ""},
		{"create", "", "pods", "exec", "case-a", "web-0", "POST", casePod + "/exec?command=ls&stdout=true", ""},
		{"delete", "", "pods", "", "case-a", "nobody", "DELETE", casePods + "/nobody", ""},
		{"get", "", "configmaps", "", "case-a", "settings", "GET", caseMaps + "/settings", ""},
		{"create", "", "configmaps", "", "case-a", "", "POST", caseMaps + "?dryRun=All", `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"dry"}}`},
		{"list", "", "configmaps", "", "case-a", "", "GET", caseMaps, ""},
		{"get", "", "secrets", "", "case-a", "db", "GET", "/api/v1/namespaces/case-a/secrets/db", ""},
		{"get", "", "namespaces", "", "case-a", "case-a", "GET", "/api/v1/namespaces/case-a", ""},
		{"get", "", "namespaces", "", "", "case-a", "GET", "/api/v1/namespaces/case-a", ""},
		{"delete", "", "namespaces", "", "", "case-b", "DELETE", "/api/v1/namespaces/case-b", ""},
		{"get", "", "namespaces", "", "", "taskgate-system", "GET", "/api/v1/namespaces/taskgate-system", ""},
		{"list", "", "nodes", "", "", "", "GET", "/api/v1/nodes", ""},
		{"get", "", "nodes", "proxy", "", "kwok-0", "GET", "/api/v1/nodes/kwok-0/proxy", ""},
		{"list", "taskgate.dev", "taskgrants", "", "", "", "GET", "/apis/taskgate.dev/v1alpha1/taskgrants", ""},
		{"list", "taskgate.dev", "taskgrants", "", "default", "", "GET", "/apis/taskgate.dev/v1alpha1/taskgrants", ""}, // as kubectl asks
		{"watch", "taskgate.dev", "approvals", "", "", "", "GET", "/apis/taskgate.dev/v1alpha1/approvals?watch=true&timeoutSeconds=1", ""},
		{"create", "taskgate.dev", "taskgrants", "", "", "", "POST", "/apis/taskgate.dev/v1alpha1/taskgrants?dryRun=All", tasksJSON("case-can-i")},
		{"delete", "taskgate.dev", "taskgrants", "", "", "absent", "DELETE", "/apis/taskgate.dev/v1alpha1/taskgrants/absent", ""},
		{"update", "taskgate.dev", "taskgrants", "", "", "absent", "PUT", "/apis/taskgate.dev/v1alpha1/taskgrants/absent", ""},
		{"create", "taskgate.dev", "decisions", "", "", "", "POST", "/apis/taskgate.dev/v1alpha1/decisions", ""},
		{"get", "taskgate.dev", "approvals", "status", "", "absent", "GET", "/apis/taskgate.dev/v1alpha1/approvals/absent/status", ""},
		{"list", "apps", "deployments", "", "case-a", "", "GET", "/apis/apps/v1/namespaces/case-a/deployments", ""},
		{"create", "authorization.k8s.io", "subjectaccessreviews", "", "", "", "POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", `{"kind":"SubjectAccessReview","apiVersion":"authorization.k8s.io/v1","spec":{"user":"x","resourceAttributes":{"verb":"get","resource":"pods"}}}`},
	}
	nobody := rig.newAgent(t, "case-nobody")
	for _, who := range []*agent{rig.reader, rig.all, nobody} {
		for _, q := range questions {
			review := authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &authorizationv1.ResourceAttributes{
				Verb: q.verb, Group: q.group, Resource: q.resource, Subresource: q.subresource, Namespace: q.namespace, Name: q.name,
			}}}
			encoded, err := json.Marshal(review)
			if err != nil {
				t.Fatal(err)
			}
			asked := who.do(t, "POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", asJSON, string(encoded))
			if err := json.Unmarshal([]byte(asked.body), &review); err != nil || asked.code != 201 {
				t.Fatalf("T090: %d %s", asked.code, asked.body)
			}
			header := map[string]string{}
			if q.body != "" {
				header = asJSON
			}
			met := who.do(t, q.method, q.target, header, q.body)
			if q.subresource == "exec" {
				met = who.ways(t)[2].do(t, q.method, q.target, asSPDY, q.body) // HTTP/1.1
			}
			if met.reason() == "ApprovalRequired" {
				if !review.Status.Allowed || !strings.Contains(review.Status.Reason, "once people agree: every such call needs 1 approval") {
					t.Errorf("T090 %s: can-i %s %s/%s says %t (%s) of a gated call", who.name, q.verb, q.resource, q.subresource, review.Status.Allowed, review.Status.Reason)
				}
				continue
			}
			if passed := met.reason() == ""; passed != review.Status.Allowed || !passed && !strings.Contains(review.Status.Reason, "[taskgate:"+strings.Split(met.reason(), "/")[0]+"]") {
				t.Errorf("T090 %s: can-i %s %s/%s in %q says %t (%s), the call met %d %q", who.name, q.verb, q.resource, q.subresource, q.namespace, review.Status.Allowed, review.Status.Reason, met.code, met.reason())
			}
		}
	}
	whoami := rig.reader.kubectl(t, "auth", "whoami", "-o=json")
	if !strings.Contains(whoami.stdout, rig.reader.id) || !strings.Contains(whoami.stdout, "task case-reader") {
		t.Errorf("T090: kubectl auth whoami: %s", whoami)
	}
	list := rig.reader.kubectl(t, "auth", "can-i", "--list", "-n", "case-a")
	for _, want := range []string{"pods", "configmaps", "[get list watch]", "selfsubjectaccessreviews", "/openapi/v3"} {
		if !strings.Contains(list.stdout, want) {
			t.Errorf("T090: kubectl auth can-i --list does not show %s: %s", want, list)
		}
	}
	for _, row := range []struct {
		words string
		code  int
	}{{"get pods -n case-a", 0}, {"delete pods -n case-a", 1}, {"get pods -n case-b", 1}, {"get /version", 0}, {"get /metrics", 1}} {
		if got := rig.reader.kubectl(t, append([]string{"auth", "can-i"}, strings.Fields(row.words)...)...); got.code != row.code {
			t.Errorf("T090: kubectl auth can-i %s: %s", row.words, got)
		}
	}
}

// TestCreateByUpdate: an update does not become a creation.
func TestCreateByUpdate(t *testing.T) {
	rig := newCasesRig(t)
	a := rig.newAgent(t, "case-update")
	rule := `{namespaces: [case-a], apiGroups: ["", coordination.k8s.io], resources: [configmaps, leases], verbs: [get, update, patch]}`
	rig.policy(t, "case-update", a, "", rule)
	rig.grant(t, "case-update", "case-update", a, "1h", rule)
	const leases = "/apis/coordination.k8s.io/v1/namespaces/case-a/leases/absent"
	lease := `{"apiVersion":"coordination.k8s.io/v1","kind":"Lease","metadata":{"name":"absent"%s},"spec":{"holderIdentity":"x"}}`
	rig.play(t, []row{
		{id: "T061", name: "PUT of what is missing", who: a, method: "PUT", target: leases, header: asJSON, body: fmt.Sprintf(lease, ""), code: 403, reason: "OutsideGrant"},
		{id: "T061", name: "apply of what is missing", who: a, method: "PATCH", target: leases + "?fieldManager=x", header: asApply, body: fmt.Sprintf(lease, ""), code: 403, reason: "OutsideGrant"},
		{id: "T061", name: "PUT with somebody's uid", who: a, method: "PUT", target: leases, header: asJSON, body: fmt.Sprintf(lease, `,"uid":"8f1f2b0e-0000-4000-8000-000000000000"`), code: 409},
		{id: "T061", name: "patch of what is missing", who: a, method: "PATCH", target: leases, header: asMerge, body: `{"spec":{"holderIdentity":"x"}}`, code: 404},
	})
	if got := rig.admin(t, "-n", "case-a", "get", "leases", "-o=name"); strings.Contains(got, "absent") {
		t.Errorf("T061: it exists: %s", got)
	}
}
