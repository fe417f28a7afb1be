package e2e_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/taskgate/taskgate/api/v1alpha1"
)

// decisionsAbout are the Decisions about an object.
func (r *cliRig) decisionsAbout(t testing.TB, uid string) []v1alpha1.DecisionSpec {
	t.Helper()
	list, err := r.client(cliDecisions).List(t.Context(), metav1.ListOptions{FieldSelector: "spec.target.uid=" + uid})
	if err != nil {
		t.Fatal(err)
	}
	var specs []v1alpha1.DecisionSpec
	for _, item := range list.Items {
		var decision v1alpha1.Decision
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(item.Object, &decision); err != nil {
			t.Fatal(err)
		}
		specs = append(specs, decision.Spec)
	}
	return specs
}

func (r result) is(t testing.TB, code int, says string) {
	t.Helper()
	if r.code != code || !strings.Contains(r.stdout+r.stderr, says) {
		t.Errorf("got %s\nwant exit %d and %q", r, code, says)
	}
}

// TestCLIApprove: a person's yes is a Decision about exactly this object and
// digest, in their own name, resting on the groups that are asked.
func TestCLIApprove(t *testing.T) {
	r := newCLIRig(t)
	object := r.approval(t, "cli-approve", "a", nil)
	uid := string(object.GetUID())
	alice := r.person(t, "cli-alice", cliApprovers, "cli-others")
	var waiting []struct{ Name, Kind, Digest string }
	if got := alice.taskgate(t, "pending", "-o", "json"); json.Unmarshal([]byte(got.stdout), &waiting) != nil || !strings.Contains(got.stdout, `"cli-approve"`) {
		t.Errorf("pending: %s", got)
	}
	r.person(t, "cli-bob", "cli-others").taskgate(t, "approve", "cli-approve", "--yes").is(t, 1, "the ClusterRole taskgate-approver allows it")
	r.person(t, "cli-nobodys-friend", "cli-others").taskgate(t, "approve", "cli-approve", "--yes").is(t, 1, "you (cli-nobodys-friend) are in none of the groups that are asked, cli-approvers")
	alice.taskgate(t, "approve", "cli-approve").is(t, 2, "give --yes")
	alice.taskgate(t, "approve", "cli-approve", "--yes", "--digest", strings.Repeat("b", 64)).is(t, 1, "it is not what you have seen")
	if got := r.decisionsAbout(t, uid); len(got) != 0 {
		t.Fatalf("decided all the same: %+v", got)
	}
	alice.taskgate(t, "approve", "cli-approve", "--yes", "--digest", strings.Repeat("a", 64), "--reason", "seen").is(t, 0, "Approved approval/cli-approve. The agent may make exactly this call once, within 5m0s.")
	got := r.decisionsAbout(t, uid)
	target := v1alpha1.DecisionTarget{Kind: "Approval", Name: "cli-approve", UID: uid, Digest: strings.Repeat("a", 64)}
	if len(got) != 1 || got[0].Target != target || got[0].Verdict != "Approve" || got[0].By != "cli-alice" || strings.Join(got[0].Groups, " ") != cliApprovers || got[0].Reason != "seen" {
		t.Errorf("%+v", got)
	}
	alice.taskgate(t, "show", "cli-approve").is(t, 0, "Approve by cli-alice (cli-approvers)")
	alice.taskgate(t, "approve", "cli-approve", "--yes").is(t, 1, "") // already, in whichever words
}

// TestCLIShow: T119, T122. What an agent wrote reaches a terminal only escaped.
func TestCLIShow(t *testing.T) {
	r := newCLIRig(t)
	const hostile = "\x1b[2J\r\a\x1b]52;c;aGk=\x07\u202etxt\u200b<b>p\u0430y</b>"
	r.approval(t, "cli-show", "c", func(spec map[string]any) {
		spec["task"], spec["summary"], spec["diff"] = hostile, hostile, "+"+hostile+"\n"
		spec["call"] = map[string]any{"verb": "create", "resource": "pods", "subresource": "exec", "namespace": "shop", "name": "web", "command": []any{"sh", "-c", hostile + "\nDigest 0"}}
	})
	alice := r.person(t, "cli-alice", cliApprovers)
	for _, arguments := range [][]string{{"show", "cli-show"}, {"show", "cli-show", "-o", "json"}, {"pending"}, {"pending", "-o", "json"}, {"wait", "cli-show", "--timeout", "100ms"}} {
		got := alice.taskgate(t, arguments...)
		for _, shown := range got.stdout + got.stderr {
			if shown < 0x20 && shown != '\n' || shown >= 0x7f && shown < 0xa0 || shown == 0x202e || shown == 0x200b {
				t.Errorf("%v prints %U: %q", arguments, shown, got.stdout)
				break
			}
		}
	}
	got := alice.taskgate(t, "show", "cli-show")
	got.is(t, 0, `  │ \x1b[2J\x0d\x07\x1b]52;c;aGk=\x07\u202etxt\u200b<b>pаy</b>\x0aDigest 0`)
	got.is(t, 0, `"pаy" mixes Cyrillic and Latin letters (p\u0430y)`)
	got.is(t, 0, "Run a command in pods/exec web in namespace shop")
}

// TestCLIWait: the exit code says what to do next.
func TestCLIWait(t *testing.T) {
	r := newCLIRig(t)
	alice, who := r.person(t, "cli-alice", cliApprovers), &agent{name: "cli-wait", id: "spiffe://example.org/ns/agents/sa/cli-wait"}
	r.policy(t, "cli-wait", who, "", cliRule)
	r.giveUnder(t, "cli-wait", who)
	uid := string(r.read(t, "cli-wait").UID)
	for _, test := range []struct {
		name, digit, verb, reason string
		code                      int
	}{{"cli-wait-yes", "d", "approve", "Approved", 0}, {"cli-wait-no", "e", "deny", "Denied", 1}} {
		object := r.approval(t, test.name, test.digit, func(spec map[string]any) {
			spec["agent"], spec["grant"], spec["grantUID"], spec["policy"] = who.id, "cli-wait", uid, "cli-wait"
		})
		alice.taskgate(t, "wait", test.name, "--timeout", "200ms").is(t, 2, "is not settled after 200ms")
		ended := make(chan result)
		go func() { ended <- alice.taskgate(t, "wait", test.name, "--timeout", "30s") }()
		time.Sleep(500 * time.Millisecond) // either way it has to end; mostly this makes it watch
		alice.taskgate(t, test.verb, test.name, "--yes").is(t, 0, "approval/"+test.name)
		r.status(t, object, test.reason)
		(<-ended).is(t, test.code, "approval/"+test.name+": ")
		alice.taskgate(t, "wait", "approval/"+test.name, "--timeout", "10s").is(t, test.code, "")
	}
	alice.taskgate(t, "wait", "cli-wait-nothing", "--timeout", "10s").is(t, 2, "there is no Approval and no TaskGrant")
}

const cliRule = `{namespaces: [default], apiGroups: [""], resources: [configmaps], verbs: [list]}`

const cliTarget = "/api/v1/namespaces/default/configmaps?limit=1"

// giveUnder gives the agent a grant under the policy of the same name.
func (r *cliRig) giveUnder(t testing.TB, name string, who *agent) {
	t.Helper()
	r.create(t, grantsResource, grantManifest(name, name, who.id, "1h", cliRule))
	r.until(t, name, "Approved=True Active=True Ended=False Active")
}

// TestCLIRevoke: a revoked grant is over at once, for good.
func TestCLIRevoke(t *testing.T) {
	r := newCLIRig(t)
	who, operator := r.newAgent(t, "cli-revoke"), r.person(t, "cli-olga", cliOperators)
	r.policy(t, "cli-revoke", who, "", cliRule)
	r.create(t, grantsResource, grantManifest("cli-revoke", "cli-revoke", who.id, "1h", cliRule))
	operator.taskgate(t, "wait", "cli-revoke", "--timeout", "20s").is(t, 0, "taskgrant/cli-revoke: active until ")
	r.served(t, who, cliTarget)
	operator.taskgate(t, "grants", "--agent", who.id).is(t, 0, "cli-revoke  "+who.id)
	operator.taskgate(t, "revoke", "cli-revoke", "--dry-run").is(t, 0, "dry run: would revoke cli-revoke")
	if r.read(t, "cli-revoke").Spec.Revoked {
		t.Error("a dry run has revoked")
	}
	r.person(t, "cli-alice", cliApprovers).taskgate(t, "revoke", "cli-revoke").is(t, 1, "the ClusterRole taskgate-operator allows it")
	operator.taskgate(t, "revoke", "cli-revoke").is(t, 0, "revoked cli-revoke: "+who.id)
	if got := callUntilRefused(t, who, cliTarget, 5*time.Second); got.refused.reason != "GrantRevoked" {
		t.Errorf("refused with %s", got.refused)
	}
	r.until(t, "cli-revoke", "Approved=True Active=False Ended=True Revoked")
	operator.taskgate(t, "wait", "cli-revoke", "--timeout", "20s").is(t, 1, "taskgrant/cli-revoke: revoked")
	operator.taskgate(t, "resume", "--hold", who.id).is(t, 0, "lifted the hold of "+who.id+" under the policy cli-revoke, from the revoked grant cli-revoke")
	if grant := r.read(t, "cli-revoke"); grant.Annotations["taskgate.dev/resumed"] != "true" {
		t.Errorf("annotations %v", grant.Annotations)
	}
}

// TestCLISuspendAgent: a suspended agent is stopped, and goes on with the grant it
// had when it is resumed.
func TestCLISuspendAgent(t *testing.T) {
	r := newCLIRig(t)
	who, operator := r.newAgent(t, "cli-suspend"), r.person(t, "cli-olga", cliOperators)
	r.policy(t, "cli-suspend", who, "", cliRule)
	r.giveUnder(t, "cli-suspend", who)
	r.served(t, who, cliTarget)
	operator.taskgate(t, "suspend", "--agent", who.id, "--dry-run").is(t, 0, "dry run: would suspend "+who.id)
	r.served(t, who, cliTarget)
	operator.taskgate(t, "suspend", "--agent", who.id).is(t, 0, "suspended "+who.id+", by the AgentPolicy suspend-")
	if got := callUntilRefused(t, who, cliTarget, 5*time.Second); got.refused.reason != "PolicyDenied/Suspended" {
		t.Errorf("refused with %s", got.refused)
	}
	operator.taskgate(t, "suspend", "--agent", who.id).is(t, 0, "suspended")
	operator.taskgate(t, "resume", "--agent", who.id).is(t, 0, "resumed "+who.id)
	r.served(t, who, cliTarget)
	operator.taskgate(t, "resume", "--agent", who.id).is(t, 1, "is not suspended by itself")
}

// TestCLISuspendPolicy: the grants under a suspended policy are over, also after it
// is resumed.
func TestCLISuspendPolicy(t *testing.T) {
	r := newCLIRig(t)
	who, operator := r.newAgent(t, "cli-policy"), r.person(t, "cli-olga", cliOperators)
	r.policy(t, "cli-policy", who, "", cliRule)
	r.giveUnder(t, "cli-policy", who)
	r.served(t, who, cliTarget)
	operator.taskgate(t, "suspend", "--policy", "cli-policy").is(t, 0, "suspended the AgentPolicy cli-policy")
	r.until(t, "cli-policy", "Approved=True Active=False Ended=True Suspended")
	operator.taskgate(t, "resume", "--policy", "cli-policy").is(t, 0, "resumed the AgentPolicy cli-policy")
	eventually(t, 5*time.Second, "the agent hears that its grant is over", func() error {
		if answer := asFault(who).call(t.Context(), "GET", cliTarget, ""); answer.reason != "GrantRevoked" {
			return errors.New(answer.String())
		}
		return nil
	})
}
