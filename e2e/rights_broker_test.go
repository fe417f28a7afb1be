package e2e_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// broker is a way to the API server with the broker's own credential.
func (s *stack) asBroker(t testing.TB) way {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", s.Directory()+"/broker/kubeconfig")
	if err != nil {
		t.Fatal(err)
	}
	config.QPS = -1
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		t.Fatal(err)
	}
	return way{"broker", client, config.Host, ""}
}

// may asks the API server whether the broker's account may do something.
func (w way) may(t testing.TB, spec authorizationv1.SelfSubjectAccessReviewSpec) bool {
	t.Helper()
	encoded, err := json.Marshal(authorizationv1.SelfSubjectAccessReview{Spec: spec})
	if err != nil {
		t.Fatal(err)
	}
	got := w.do(t, "POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", asJSON, string(encoded))
	var review authorizationv1.SelfSubjectAccessReview
	if err := json.Unmarshal([]byte(got.body), &review); err != nil || got.code != 201 {
		t.Fatalf("%d %s", got.code, got.body)
	}
	return review.Status.Allowed
}

// allowedToBroker is all that design.md, section 8, gives the broker, and what
// Kubernetes gives everybody who is known to it.
func allowedToBroker(s served, verb string) bool {
	group, name := s.groupVersion.Group, s.Name
	switch {
	case group == "taskgate.dev" && name == "agentpolicies":
		return slices.Contains([]string{"get", "list", "watch"}, verb)
	case group == "taskgate.dev" && slices.Contains([]string{"taskgrants", "approvals"}, name):
		return slices.Contains([]string{"get", "list", "watch", "create", "delete"}, verb)
	case group == "taskgate.dev" && name == "decisions":
		return slices.Contains([]string{"get", "list", "watch", "delete"}, verb)
	case group == "taskgate.dev" && name == "approvals/status":
		return verb == "update"
	case group == "authorization.k8s.io" && name == "subjectaccessreviews":
		return verb == "create"
	case group == "taskgate.dev" && slices.Contains([]string{"agentpolicies/status", "taskgrants/status"}, name):
		return slices.Contains([]string{"update", "patch"}, verb)
	case group == "authorization.k8s.io" && slices.Contains([]string{"selfsubjectaccessreviews", "selfsubjectrulesreviews"}, name):
		return verb == "create"
	case group == "authentication.k8s.io" && name == "selfsubjectreviews":
		return verb == "create"
	}
	return false
}

// TestBrokerRights asks, for everything the cluster serves and every verb,
// whether the broker's own account may do it.
func TestBrokerRights(t *testing.T) {
	s := sharedStack(t)
	broker := s.asBroker(t)
	asked, allowed := 0, 0
	for _, resource := range s.discover(t) {
		for _, verb := range []string{"get", "list", "watch", "create", "update", "patch", "delete", "deletecollection", "bind", "escalate", "approve", "sign", "use", "impersonate", "*"} {
			for _, namespace := range []string{"", "case-a", "kube-system", "taskgate-system"} {
				if namespace != "" && !resource.Namespaced {
					continue
				}
				spec := authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &authorizationv1.ResourceAttributes{
					Verb: verb, Group: resource.groupVersion.Group, Resource: resource.resource, Subresource: resource.subresource, Namespace: namespace,
				}}
				asked++
				got := broker.may(t, spec)
				if got {
					allowed++
				}
				if want := allowedToBroker(resource, verb); got != want && (want || !s.allowedToAll(t, spec)) {
					t.Errorf("%s %s in %q: allowed %t", verb, resource, namespace, got)
				}
			}
		}
	}
	t.Logf("%d questions, %d allowed", asked, allowed)
}

// allowedToAll reports whether the cluster allows it to every service account.
func (s *stack) allowedToAll(t testing.TB, spec authorizationv1.SelfSubjectAccessReviewSpec) bool {
	t.Helper()
	review, err := s.kube.AuthorizationV1().SubjectAccessReviews().Create(t.Context(), &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User: "system:serviceaccount:default:default", Groups: []string{"system:serviceaccounts", "system:authenticated"}, ResourceAttributes: spec.ResourceAttributes,
	}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return review.Status.Allowed
}

// TestBrokerImpersonation: the broker becomes the one user with the groups and
// extras of its policies, and nobody else.
func TestBrokerImpersonation(t *testing.T) {
	rig := newCasesRig(t)
	broker := rig.asBroker(t)
	agent := map[string]string{"Impersonate-User": "taskgate:agent"}
	and := func(more ...string) map[string]string {
		header := map[string]string{"Impersonate-User": "taskgate:agent"}
		for i := 0; i < len(more); i += 2 {
			header[more[i]] = more[i+1]
		}
		return header
	}
	for _, row := range []struct {
		name   string
		header map[string]string
		code   int // of /version, which everybody may read who is let in
	}{
		{"as itself", nil, 200},
		{"as the agent", agent, 200},
		{"with the group of all", and("Impersonate-Group", "taskgate:agents"), 200},
		{"with a policy's group", and("Impersonate-Group", "taskgate:policy:case-reader"), 200},
		{"with the extra agent", and("Impersonate-Extra-agent.taskgate.dev", "x"), 200},
		{"with the extra task", and("Impersonate-Extra-task.taskgate.dev", "x"), 200},
		{"with the extra grant", and("Impersonate-Extra-grant.taskgate.dev", "x"), 200},
		{"group of no policy", and("Impersonate-Group", "taskgate:policy:nobody"), 403},
		{"group that looks like one", and("Impersonate-Group", "taskgate:policy:*"), 403},
		{"masters", and("Impersonate-Group", "system:masters"), 403},
		{"nodes", and("Impersonate-Group", "system:nodes"), 403},
		{"authenticated", and("Impersonate-Group", "system:authenticated"), 403},
		{"service accounts", and("Impersonate-Group", "system:serviceaccounts"), 403},
		{"monitoring", and("Impersonate-Group", "system:monitoring"), 403},
		{"another extra", and("Impersonate-Extra-scopes.authorization.openshift.io", "user:full"), 403},
		{"extra of ours that is none", and("Impersonate-Extra-admin.taskgate.dev", "x"), 403},
		{"a uid", and("Impersonate-Uid", "0"), 403},
		{"admin", map[string]string{"Impersonate-User": "admin"}, 403},
		{"testbed-admin", map[string]string{"Impersonate-User": "testbed-admin", "Impersonate-Group": "system:masters"}, 403},
		{"anonymous", map[string]string{"Impersonate-User": "system:anonymous"}, 403},
		{"another agent's name", map[string]string{"Impersonate-User": "taskgate:agent2"}, 403},
		{"a service account", map[string]string{"Impersonate-User": "system:serviceaccount:kube-system:namespace-controller"}, 403},
		{"its own account", map[string]string{"Impersonate-User": brokerAccount}, 403},
		{"a node", map[string]string{"Impersonate-User": "system:node:kwok-0", "Impersonate-Group": "system:nodes"}, 403},
		{"the scheduler", map[string]string{"Impersonate-User": "system:kube-scheduler"}, 403},
		{"groups without a user", map[string]string{"Impersonate-Group": "system:masters"}, 400},
	} {
		got := broker.do(t, "GET", "/version", row.header, "")
		if got.code != row.code {
			t.Errorf("%s: %d, want %d: %.200s", row.name, got.code, row.code, got.body)
		}
	}
	// The agent by itself, without the group of a policy, may do nothing.
	for _, header := range []map[string]string{agent, and("Impersonate-Group", "taskgate:agents")} {
		for _, target := range []string{"/api/v1/namespaces", casePods, "/api/v1/nodes", "/api/v1/namespaces/case-a/secrets", "/apis/taskgate.dev/v1alpha1/taskgrants"} {
			if got := broker.do(t, "GET", target, header, ""); got.code != 403 {
				t.Errorf("%s as %v: %d", target, header, got.code)
			}
		}
	}
}

// TestBrokerAlone tries, with the broker's own token, what a thief would.
func TestBrokerAlone(t *testing.T) {
	rig := newCasesRig(t)
	broker := rig.asBroker(t)
	type attempt struct{ method, target, body string }
	attempts := []attempt{
		{"GET", "/api/v1/secrets", ""}, {"GET", "/api/v1/namespaces/case-a/secrets/db", ""}, {"GET", "/api/v1/pods", ""}, {"GET", "/api/v1/nodes", ""},
		{"GET", "/api/v1/namespaces/kube-system/configmaps", ""}, {"GET", "/api/v1/namespaces/taskgate-system/secrets", ""}, {"GET", "/api/v1/namespaces/taskgate-system/serviceaccounts", ""},
		{"POST", "/api/v1/namespaces/taskgate-system/serviceaccounts/taskgate-broker/token", `{"apiVersion":"authentication.k8s.io/v1","kind":"TokenRequest"}`},
		{"POST", "/api/v1/namespaces/kube-system/serviceaccounts/default/token", `{"apiVersion":"authentication.k8s.io/v1","kind":"TokenRequest"}`},
		{"POST", "/api/v1/namespaces/case-a/configmaps", `{"metadata":{"name":"x"}}`}, {"POST", "/api/v1/namespaces", `{"metadata":{"name":"x"}}`},
		{"POST", "/api/v1/namespaces/case-a/pods", `{"metadata":{"name":"x"},"spec":{"containers":[{"name":"c","image":"i"}]}}`},
		{"POST", casePod + "/exec?command=id", ""}, {"GET", "/api/v1/nodes/kwok-0/proxy/pods", ""}, {"DELETE", "/api/v1/namespaces/case-b", ""},
		{"GET", "/apis/rbac.authorization.k8s.io/v1/clusterroles", ""}, {"POST", "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", `{"metadata":{"name":"x"},"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":"cluster-admin"}}`},
		{"PATCH", "/apis/rbac.authorization.k8s.io/v1/clusterroles/taskgate-broker-guarded", `{"rules":[]}`},
		{"GET", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", ""}, {"DELETE", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/taskgrants.taskgate.dev", ""},
		{"GET", "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies", ""}, {"DELETE", "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/taskgate-pods", ""},
		{"PATCH", "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings/taskgate-pods", `{"spec":{"validationActions":["Audit"]}}`},
		{"POST", "/apis/taskgate.dev/v1alpha1/taskgrants", grantAsJSON(`"requestedBy":"alice"`)}, {"POST", "/apis/taskgate.dev/v1alpha1/taskgrants", grantAsJSON(`"reason":"none"`)},
		{"POST", "/apis/taskgate.dev/v1alpha1/decisions", `{"metadata":{"name":"x"}}`}, {"PATCH", "/apis/taskgate.dev/v1alpha1/approvals/x", `{"metadata":{"labels":{"a":"b"}}}`},
		{"POST", "/api/v1/namespaces/case-a/events", `{"metadata":{"name":"x"}}`}, {"POST", "/apis/taskgate.dev/v1alpha1/agentpolicies", `{"metadata":{"name":"x"}}`},
		{"PATCH", "/apis/taskgate.dev/v1alpha1/agentpolicies/case-reader", `{"spec":{"suspended":true}}`}, {"PATCH", "/apis/taskgate.dev/v1alpha1/taskgrants/case-reader", `{"spec":{"revoked":true}}`},
		{"DELETE", "/apis/taskgate.dev/v1alpha1/taskgrants/case-reader", ""}, {"DELETE", "/apis/taskgate.dev/v1alpha1/agentpolicies/case-reader", ""},
		{"GET", "/apis/certificates.k8s.io/v1/certificatesigningrequests", ""}, {"POST", "/apis/authentication.k8s.io/v1/tokenreviews", `{"spec":{"token":"x"}}`},
		{"GET", "/metrics", ""}, {"GET", "/logs", ""}, {"GET", "/debug/pprof/cmdline", ""}, {"GET", "/apis/coordination.k8s.io/v1/leases", ""},
	}
	for _, a := range attempts {
		header := map[string]string{}
		switch {
		case a.method == "PATCH":
			header = asMerge
		case a.body != "":
			header = asJSON
		}
		got := broker.do(t, a.method, a.target, header, a.body)
		if got.code != http.StatusForbidden && !(a.target == "/logs" && got.code == http.StatusNotFound) {
			t.Errorf("%s %s: %d: %.200s", a.method, a.target, got.code, got.body)
		}
	}
	for _, target := range []string{"/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/taskgate-pods", "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings/taskgate-pods", "/apis/taskgate.dev/v1alpha1/taskgrants"} {
		if got := broker.do(t, "GET", target, nil, ""); got.code != 200 {
			t.Errorf("what it needs: GET %s: %d", target, got.code)
		}
	}
	t.Logf("%d attempts, each refused", len(attempts))
}

// grantAsJSON is a TaskGrant with one more field.
func grantAsJSON(field string) string {
	return `{"apiVersion":"taskgate.dev/v1alpha1","kind":"TaskGrant","metadata":{"name":"x"},"spec":{"agent":"spiffe://example.org/ns/agents/sa/alpha","task":"t","ttl":"1m","policy":"p",` +
		`"rules":[{"namespaces":["x"],"apiGroups":[""],"resources":["pods"],"verbs":["get"]}],` + field + `}}`
}

// ownCalls are the calls the broker makes as itself, but for discovery.
var ownCalls = regexp.MustCompile(`^((get|list|watch) (agentpolicies|taskgrants|approvals|decisions)\.taskgate\.dev/ ` +
	`|(update|patch) (agentpolicies|taskgrants)\.taskgate\.dev/status |update approvals\.taskgate\.dev/status ` +
	`|(create|delete) (taskgrants|approvals)\.taskgate\.dev/ |delete decisions\.taskgate\.dev/ |create events\./ ` +
	`|create (selfsubjectaccessreviews|subjectaccessreviews)\.authorization\.k8s\.io/ ` +
	`|get validatingadmissionpolic(ies|ybindings)\.admissionregistration\.k8s\.io/ taskgate-(pods|decisions|approvals|taskgrants)$)`)

// TestBrokerOwnCalls: what the broker does as itself is what it needs to, and all
// else it does is as the agent.
func TestBrokerOwnCalls(t *testing.T) {
	rig := newCasesRig(t)
	rig.reader.do(t, "GET", casePod, nil, "")
	own := map[string]int{}
	for _, events := range rig.upstream(t) {
		last := events[len(events)-1]
		if last.Stage == auditv1.StageRequestReceived || last.ImpersonatedUser != nil || last.User.Username != brokerAccount {
			continue
		}
		if strings.HasPrefix(last.UserAgent, "Go-http-client") {
			continue // the tests above, with its token
		}
		what := "GET " + strings.Split(last.RequestURI, "?")[0]
		if ref := last.ObjectRef; ref != nil {
			what = fmt.Sprintf("%s %s.%s/%s %s", last.Verb, ref.Resource, ref.APIGroup, ref.Subresource, ref.Name)
		}
		own[what]++
	}
	for what, count := range own {
		fine := strings.HasPrefix(what, "GET /api") || ownCalls.MatchString(what)
		if !fine {
			t.Errorf("the broker did %s by itself, %d times", what, count)
		}
	}
	t.Logf("%d kinds of calls of its own", len(own))
}

// TestAgentCredentials are worth nothing anywhere but at the sidecar.
func TestAgentCredentials(t *testing.T) {
	rig := newCasesRig(t)
	config := rig.anonymous()
	config.BearerToken = rig.reader.Token
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		t.Fatal(err)
	}
	direct := way{"API server", client, config.Host, rig.reader.Token}
	for _, target := range []string{"/version", "/api/v1/namespaces", casePod} {
		if got := direct.do(t, "GET", target, nil, ""); got.code != 401 {
			t.Errorf("the local token at the API server, %s: %d", target, got.code)
		}
	}
	// The agent's SVID is a client certificate of an authority the API server does
	// not know.
	svid, _ := rig.svid(t, "sidecar-case-reader")
	chain, key, err := svid.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	config = rig.anonymous()
	config.CertData, config.KeyData = chain, key
	if client, err = rest.HTTPClientFor(config); err != nil {
		t.Fatal(err)
	}
	request, err := newRequest(t.Context(), "GET", config.Host+"/api/v1/namespaces", "")
	if err != nil {
		t.Fatal(err)
	}
	if response, err := client.Do(request); err == nil {
		_ = response.Body.Close() // the status is enough
		if response.StatusCode == 200 {
			t.Error("the SVID is good at the API server")
		}
	}
	// At the broker the token without an SVID does not get through the handshake
	// (T263, TestStrangers); with an SVID it changes nothing.
	broker := rig.all.ways(t)[1]
	got := broker.do(t, "POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", map[string]string{"Content-Type": "application/json", "Authorization": "Bearer " + rig.reader.Token}, `{}`)
	var review authenticationv1.SelfSubjectReview
	if err := json.Unmarshal([]byte(got.body), &review); err != nil || review.Status.UserInfo.Username != rig.all.id {
		t.Errorf("another agent's token at the broker: %d %s", got.code, got.body)
	}
	// Neither does it open another agent's sidecar.
	if got := rig.all.do(t, "GET", "/version", map[string]string{"Authorization": "Bearer " + rig.reader.Token}, ""); got.code != 401 {
		t.Errorf("another agent's token at a sidecar: %d", got.code)
	}
}
