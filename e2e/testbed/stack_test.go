package testbed_test

import (
	"bufio"
	"context"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/taskgate/taskgate/e2e/testbed"
	"github.com/taskgate/taskgate/e2e/testbed/testbedtest"
)

const brokerUser = "system:serviceaccount:taskgate-system:taskgate-broker"

// TestStacks starts two testbeds side by side, which together are made of every
// component there is, and leaves nothing of them.
func TestStacks(t *testing.T) {
	t.Run("spire versitygw kwok", func(t *testing.T) {
		t.Parallel()
		bed := start(t, testbed.Options{SPIFFE: testbed.SPIRE, S3: testbed.VersityGW, Node: testbed.Kwok})
		t.Run("pods", func(t *testing.T) { testPods(t, bed) })
		t.Run("audit log", func(t *testing.T) { testAuditLog(t, bed) })
		t.Run("store", func(t *testing.T) { testStore(t, bed.Store()) })
		t.Run("identities", func(t *testing.T) { testSPIRE(t, bed) })
		t.Run("authorities", func(t *testing.T) { testAuthorities(t, bed) })
		t.Run("namespace ends", func(t *testing.T) { kubectl(t, bed, "wait", "--for=delete", "--timeout=30s", "namespace/shop") })
		t.Run("faults", func(t *testing.T) { testFaults(t, bed) })
	})
	t.Run("dev minio", func(t *testing.T) {
		t.Parallel()
		bed := start(t, testbed.Options{SPIFFE: testbed.Dev, S3: testbed.MinIO, Node: testbed.NoNode, WithoutControllers: true})
		t.Run("store", func(t *testing.T) { testStore(t, bed.Store()) })
		t.Run("identities", func(t *testing.T) { testDevIdentities(t, bed) })
		t.Run("existing cluster", func(t *testing.T) { testExistingCluster(t, bed) })
		t.Run("control plane", func(t *testing.T) {
			answer := kubectl(t, bed, "version")
			if !strings.Contains(answer, "Server Version: v1.37.") || !strings.Contains(answer, "Client Version: v1.37.") {
				t.Errorf("kubectl version answered %s", answer)
			}
		})
	})
}

func start(t *testing.T, options testbed.Options) *testbed.Testbed {
	t.Helper()
	options.WithoutTaskgate = true
	options.Directory = testbedtest.Directory(t)
	t.Cleanup(func() { // runs after the testbed was stopped
		if left := marked(t, options.Directory); len(left) > 0 {
			t.Errorf("these processes are left: %q", left)
		}
	})
	return testbedtest.Start(t, options)
}

func kubectl(t *testing.T, bed *testbed.Testbed, arguments ...string) string {
	t.Helper()
	output, err := kubectlCommand(t.Context(), bed, arguments...).CombinedOutput()
	if err != nil {
		t.Fatalf("kubectl %v: %v\n%s", arguments, err, output)
	}
	return string(output)
}

func kubectlCommand(ctx context.Context, bed *testbed.Testbed, arguments ...string) *exec.Cmd {
	command := exec.CommandContext(ctx, bed.Environment().Programs+"/kubectl", arguments...)
	command.Env = append(bed.Environment().Lines(), "KUBECONFIG="+bed.Environment().AdminKubeconfig, "HOME="+bed.Directory())
	return command
}

// testPods does what needs a scheduler, controllers and a kubelet.
func testPods(t *testing.T, bed *testbed.Testbed) {
	kubectl(t, bed, "create", "namespace", "shop")
	kubectl(t, bed, "--namespace=shop", "create", "deployment", "web", "--image=nginx", "--replicas=2")
	kubectl(t, bed, "--namespace=shop", "rollout", "status", "deployment/web", "--timeout=30s")
	if answer := kubectl(t, bed, "--namespace=shop", "exec", "deployment/web", "--", "id", "-u"); !strings.HasPrefix(answer, "65534") {
		t.Errorf("exec ran as %q, not as nobody", answer)
	}
	if answer := kubectl(t, bed, "--namespace=shop", "logs", "deployment/web"); !strings.Contains(answer, "hello") {
		t.Errorf("logs answered %q", answer)
	}
	testFollow(t, bed)
	kubectl(t, bed, "delete", "namespace", "shop", "--wait=false")
}

func testFollow(t *testing.T, bed *testbed.Testbed) {
	ctx, cancel := context.WithCancel(t.Context())
	command := kubectlCommand(ctx, bed, "--namespace=shop", "logs", "--follow", "deployment/web")
	output, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(output)
	for _, wanted := range []string{"hello from the testbed's fake node", "one more line"} {
		if !lines.Scan() || lines.Text() != wanted {
			t.Fatalf("logs --follow printed %q instead of %q (%v)", lines.Text(), wanted, lines.Err())
		}
		if err := bed.AppendPodLog("one more line"); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	_ = command.Wait() // it was killed
}

// testAuditLog makes calls as the broker's service account and as others, and
// finds the former, joined by Audit-ID, and only those.
func testAuditLog(t *testing.T, bed *testbed.Testbed) {
	const asItself, asAgent, asOther = "11111111-aaaa-4aaa-8aaa-000000000001", "11111111-aaaa-4aaa-8aaa-000000000002", "11111111-aaaa-4aaa-8aaa-000000000003"
	token := strings.TrimSpace(kubectl(t, bed, "--namespace=taskgate-system", "create", "token", "taskgate-broker"))
	broker := rest.AnonymousClientConfig(bed.Admin())
	broker.BearerToken = token
	get(t, broker, asItself, "")
	get(t, broker, asAgent, "taskgate:agent")
	get(t, bed.Admin(), asOther, "")

	events, err := bed.AuditEvents()
	if err != nil {
		t.Fatal(err)
	}
	seen := map[types.UID]auditv1.Event{}
	for _, event := range events {
		if event.User.Username != brokerUser {
			t.Errorf("the audit log holds a call of %s", event.User.Username)
		}
		if event.Stage == auditv1.StageResponseComplete {
			seen[event.AuditID] = event
		}
	}
	if len(seen) != 2 {
		t.Errorf("the audit log holds %d calls, not 2", len(seen))
	}
	if user := seen[asAgent].ImpersonatedUser; user == nil || user.Username != "taskgate:agent" {
		t.Errorf("the impersonated user is %v", user)
	}
	if seen[asItself].Level != auditv1.LevelRequestResponse {
		t.Errorf("the level is %q", seen[asItself].Level)
	}
}

// get asks for the pods of a namespace; whether it may does not matter here.
func get(t *testing.T, configuration *rest.Config, auditID, as string) {
	t.Helper()
	client, err := rest.HTTPClientFor(configuration)
	if err != nil {
		t.Fatal(err)
	}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, configuration.Host+"/api/v1/namespaces/default/pods", nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Audit-ID", auditID)
	if as != "" {
		request.Header.Set("Impersonate-User", as)
	}
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	if err := response.Body.Close(); err != nil {
		t.Fatal(err)
	}
}

// testSPIRE asks for identities as each uid, then registers and deletes one.
func testSPIRE(t *testing.T, bed *testbed.Testbed) {
	socket := bed.Directory() + "/identity/agent.sock"
	wanted := map[uint32]string{
		64001: "spiffe://example.org/ns/taskgate-system/sa/taskgate-broker",
		64002: "spiffe://example.org/ns/agents/sa/alpha",
		64003: "spiffe://example.org/ns/agents/sa/beta",
	}
	for uid, id := range wanted {
		if got := identityOf(t, bed.Directory(), socket, uid); got != id {
			t.Errorf("uid %d got %q instead of %s", uid, got, id)
		}
	}
	for _, uid := range []uint32{0, 64099} {
		if got := identityOf(t, bed.Directory(), socket, uid); !strings.Contains(got, "PermissionDenied") {
			t.Errorf("uid %d got %q instead of a refusal", uid, got)
		}
	}
	gamma := testbed.Entry{ID: spiffeid.RequireFromString("spiffe://example.org/ns/agents/sa/gamma"), UID: 64099}
	entry, err := bed.SPIRE().CreateEntry(t.Context(), gamma)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "a registered uid gets its identity", func() bool {
		return identityOf(t, bed.Directory(), socket, gamma.UID) == gamma.ID.String()
	})
	if err := bed.SPIRE().DeleteEntry(t.Context(), entry); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a deleted entry gives no identity", func() bool {
		return strings.Contains(identityOf(t, bed.Directory(), socket, gamma.UID), "PermissionDenied")
	})
}

// testAuthorities replaces SPIRE's authority and takes the old one out of trust,
// each step after the workloads have followed the one before: an agent that is
// overtaken cannot reach its server any more.
func testAuthorities(t *testing.T, bed *testbed.Testbed) {
	alpha := func() (issuer, authorities string) {
		answer := strings.Fields(fetch(t, bed.Directory(), bed.Directory()+"/identity/agent.sock", 64002))
		if len(answer) != 3 {
			t.Fatalf("alpha got %q", answer)
		}
		return answer[1], answer[2]
	}
	before, _ := alpha()
	old, err := bed.SPIRE().RotateX509Authority(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "workloads trust both authorities", func() bool { _, count := alpha(); return count == "2" })
	if count := len(trusted(t, bed).X509Authorities()); count != 2 {
		t.Errorf("the trust bundle holds %d authorities after rotation, not 2", count)
	}
	if err := bed.SPIRE().TaintX509Authority(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	eventually(t, "workloads get SVIDs of the new authority", func() bool { issuer, _ := alpha(); return issuer != before })
	if err := bed.SPIRE().RevokeX509Authority(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	eventually(t, "workloads trust the new authority only", func() bool { _, count := alpha(); return count == "1" })
	if count := len(trusted(t, bed).X509Authorities()); count != 1 {
		t.Errorf("the trust bundle holds %d authorities after revocation, not 1", count)
	}
}

// trusted reads the trust bundle from the file that the environment names.
func trusted(t *testing.T, bed *testbed.Testbed) *spiffebundle.Bundle {
	t.Helper()
	if err := bed.SPIRE().WriteBundle(t.Context()); err != nil {
		t.Fatal(err)
	}
	bundle, err := spiffebundle.Load(spiffeid.RequireTrustDomainFromString(testbed.TrustDomain), bed.Environment().TrustBundle)
	if err != nil {
		t.Fatal(err)
	}
	return bundle
}

// testExistingCluster puts a testbed onto the cluster of another one.
func testExistingCluster(t *testing.T, other *testbed.Testbed) {
	bed := start(t, testbed.Options{Kubeconfig: other.Environment().AdminKubeconfig})
	for _, component := range bed.Components() {
		if name := component.Name(); name != testbed.ComponentStore && name != testbed.ComponentDevIdentities {
			t.Errorf("%s was started", name)
		}
	}
	if log := bed.Environment().AuditLog; log != "" {
		t.Errorf("it says that the audit log is %s", log)
	}
	if bed.Admin().Host != other.Admin().Host {
		t.Errorf("its cluster is %s", bed.Admin().Host)
	}
}

func testDevIdentities(t *testing.T, bed *testbed.Testbed) {
	for name, id := range map[string]string{
		"broker": "spiffe://example.org/ns/taskgate-system/sa/taskgate-broker",
		"alpha":  "spiffe://example.org/ns/agents/sa/alpha",
		"beta":   "spiffe://example.org/ns/agents/sa/beta",
	} {
		if got := identityOf(t, bed.Directory(), bed.Directory()+"/identity/"+name+".sock", 0); got != id {
			t.Errorf("the socket of %s gave %q instead of %s", name, got, id)
		}
	}
	log, err := os.ReadFile(bed.Component(testbed.ComponentDevIdentities).Log())
	if err != nil || !strings.Contains(string(log), "attests nothing") {
		t.Errorf("the stand-in for SPIRE does not say that it attests nothing: %q %v", log, err)
	}
}

// testFaults takes each component away and back, on the same port and data.
func testFaults(t *testing.T, bed *testbed.Testbed) {
	for _, component := range bed.Components() {
		t.Run(component.Name(), func(t *testing.T) {
			before := component.PID()
			if err := component.Kill(); err != nil {
				t.Fatal(err)
			}
			if component.PID() != 0 {
				t.Error("it runs although it was killed")
			}
			if err := component.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			if after := component.PID(); after == 0 || after == before {
				t.Errorf("its process was %d and is %d after a restart", before, after)
			}
			if err := component.Restart(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	if err := bed.Component("nobody").Kill(); err == nil || !strings.Contains(err.Error(), testbed.ComponentEtcd) {
		t.Errorf("an unknown component was answered with %v", err)
	}
	if err := bed.Component(testbed.ComponentStore).Signal(syscall.SIGSTOP); err != nil {
		t.Error(err)
	}
	client, err := kubernetes.NewForConfig(bed.Admin())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.CoreV1().Namespaces().Get(t.Context(), "taskgate-system", metav1.GetOptions{}); err != nil {
		t.Errorf("the cluster has forgotten what it knew: %v", err)
	}
}
