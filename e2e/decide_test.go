package e2e_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/taskgate/taskgate/api/v1alpha1"
	"github.com/taskgate/taskgate/broker/control"
)

// waitForAdmission is how long an API server may take to see that an admission
// policy has changed.
const waitForAdmission = 20 * time.Second

// TestDeciding: who decides, what it is worth, and what becomes of it, with two
// brokers and a real API server. The parts that take something away come last.
func TestDeciding(t *testing.T) {
	t.Parallel()
	r := newDecideRig(t)
	for _, part := range []struct {
		name string
		test func(*testing.T)
	}{
		{"decisions are true", r.decisionsAreTrue},
		{"approvals are the broker's", r.approvalsAreTheBrokers},
		{"grants are whose", r.grantsAreWhose},
		{"a status that comes with a grant", r.statusAtCreation},
		{"granting by quorum", r.grantingByQuorum},
		{"a no is final", r.denialIsFinal},
		{"hold and resume", r.holdAndResume},
		{"release", r.release},
		{"an approval", r.approvalIsDecided},
		{"the right is lost", r.rightLost},
		{"one winner", r.oneWinner},
		{"cleaning up", r.cleaningUp},
		{"without guards", r.withoutGuards},
	} {
		t.Run(part.name, part.test)
	}
}

func (r *decideRig) agent(name string) string { return strings.TrimSuffix(decideAgents, "*") + name }

const (
	decideWaits  = "Approved=Unknown Active=False Ended=False "
	decideActive = "Approved=True Active=True Ended=False Active"
	decideDenied = "Approved=False Active=False Ended=True Denied"
	twoPeople    = "grant: {maxTTL: 4h, approval: {approvers: 2, groups: [sre]}}"
	onePerson    = "grant: {maxTTL: 4h, approval: {approvers: 1, groups: [sre]}}"
)

// statusAtCreation: what somebody writes there is not even stored.
func (r *decideRig) statusAtCreation(t *testing.T) {
	r.allow(t, "decide-status", decideAgents, twoPeople, mapRule("x"))
	manifest := grantManifest("decide-status", "grants-decide-status", r.agent("status"), "30m", mapRule("x")) + `status:
  digest: "` + strings.Repeat("0", 64) + `"
  activeFrom: "2026-01-01T00:00:00.000000Z"
  expiresAt: "2036-01-01T00:00:00.000000Z"
  conditions:
  - {type: Approved, status: "True", reason: ApprovedByPeople, message: "", lastTransitionTime: "2026-01-01T00:00:00Z"}
  - {type: Active, status: "True", reason: Active, message: "", lastTransitionTime: "2026-01-01T00:00:00Z"}
`
	created := r.createGrant(t, r.as(t, "olga", "operators"), manifest)
	if len(created.Status.Conditions) > 0 || created.Status.ActiveFrom != nil || created.Status.Digest != "" {
		t.Errorf("stored with the status %+v", created.Status)
	}
	grant := r.until(t, "decide-status", decideWaits+"ApprovalPending")
	if grant.Status.ActiveFrom != nil || grant.Status.Digest != control.Digest(&grant.Spec) {
		t.Errorf("got %+v", grant.Status)
	}
}

// grantingByQuorum: two different people of the group, neither of them who asked.
func (r *decideRig) grantingByQuorum(t *testing.T) {
	r.allow(t, "decide-quorum", decideAgents, twoPeople, mapRule("x"))
	created := r.createGrant(t, r.as(t, "olga", "operators"), grantManifest("decide-quorum", "grants-decide-quorum", r.agent("quorum"), "30m", mapRule("x")))
	if created.Spec.RequestedBy != "olga" {
		t.Fatalf("asked for by %q", created.Spec.RequestedBy)
	}
	grant := r.until(t, "decide-quorum", decideWaits+"ApprovalPending")
	says := func(want string) {
		t.Helper()
		eventually(t, 20*time.Second, "it says "+want, func() error {
			if grant = r.read(t, "decide-quorum"); !strings.Contains(grant.Status.Conditions[0].Message, want) {
				return errors.New(grant.Status.Conditions[0].Message)
			}
			return nil
		})
	}
	says("has 0 of 2 approvals of sre; to decide: taskgate approve taskgrant/decide-quorum")
	r.decides(t, targetOf(&grant), "Approve", "olga")  // who asked
	r.decides(t, targetOf(&grant), "Approve", "alice") // counts
	r.decides(t, targetOf(&grant), "Approve", "alice") // the same person once more
	for change, target := range map[string]v1alpha1.DecisionTarget{
		"digest": {Kind: "TaskGrant", Name: grant.Name, UID: string(grant.UID), Digest: strings.Repeat("0", 64)},
		"kind":   {Kind: "Approval", Name: grant.Name, UID: string(grant.UID), Digest: grant.Status.Digest},
		"name":   {Kind: "TaskGrant", Name: "other", UID: string(grant.UID), Digest: grant.Status.Digest},
		"uid":    {Kind: "TaskGrant", Name: grant.Name, UID: "other", Digest: grant.Status.Digest},
	} {
		r.decides(t, target, "Approve", "wrong-"+change)
	}
	says("has 1 of 2 approvals of sre")
	if got := conditionsOf(&grant); got != decideWaits+"ApprovalPending" {
		t.Fatalf("it is %s", got)
	}
	before := time.Now()
	r.decides(t, targetOf(&grant), "Approve", "bob")
	grant = r.until(t, "decide-quorum", decideActive)
	if grant.Status.ActiveFrom.Time.Before(before.Add(-time.Second)) || grant.Status.Conditions[0].Reason != "ApprovedByPeople" {
		t.Errorf("active from %v, asked at %v: %+v", grant.Status.ActiveFrom, before, grant.Status.Conditions[0])
	}
	eventually(t, 10*time.Second, "an Event tells of it", func() error {
		list, err := r.kube.CoreV1().Events("default").List(t.Context(), metav1.ListOptions{FieldSelector: "involvedObject.uid=" + string(grant.UID)})
		var reasons []string
		for _, event := range list.Items {
			reasons = append(reasons, event.Reason)
		}
		slices.Sort(reasons)
		if err != nil || !slices.Equal(reasons, []string{"TaskGrantRequested", "TaskGranted"}) {
			return fmt.Errorf("%v: %v", list, err)
		}
		return nil
	})
}

// denialIsFinal: the first no ends it, whoever agrees later.
func (r *decideRig) denialIsFinal(t *testing.T) {
	r.allow(t, "decide-denied", decideAgents, onePerson, mapRule("x"))
	r.createGrant(t, r.as(t, "olga", "operators"), grantManifest("decide-denied", "grants-decide-denied", r.agent("denied"), "30m", mapRule("x")))
	grant := r.until(t, "decide-denied", decideWaits+"ApprovalPending")
	r.decides(t, targetOf(&grant), "Deny", "bob")
	grant = r.until(t, "decide-denied", decideDenied)
	if got := grant.Status.Conditions[0]; got.Reason != "Denied" || got.Message != "denied by bob: a test" {
		t.Errorf("it says %+v", got)
	}
	r.decides(t, targetOf(&grant), "Approve", "alice")
	r.decides(t, targetOf(&grant), "Approve", "carol")
	stays(t, 2*time.Second, func() error {
		if grant := r.read(t, "decide-denied"); conditionsOf(&grant) != decideDenied {
			return errors.New(conditionsOf(&grant))
		}
		return nil
	})
}

// stays asks again and again; every answer has to be nil.
func stays(t testing.TB, period time.Duration, ask func() error) {
	t.Helper()
	for deadline := time.Now().Add(period); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if err := ask(); err != nil {
			t.Fatal(err)
		}
	}
}

// holdAndResume: after a revocation the policy alone gives nothing any more.
func (r *decideRig) holdAndResume(t *testing.T) {
	r.allow(t, "decide-hold", decideAgents, openPolicy, mapRule("x"))
	ask := func(name, agent string) {
		t.Helper()
		r.createGrant(t, r.as(t, "olga", "operators"), grantManifest(name, "grants-decide-hold", r.agent(agent), "30m", mapRule("x")))
	}
	ask("decide-hold", "hold")
	r.until(t, "decide-hold", decideActive)
	r.patch(t, grantsResource, "decide-hold", `{"spec":{"revoked":true}}`)
	ask("decide-again", "hold") // at once: the end of the other need not be written down yet
	again := r.until(t, "decide-again", decideWaits+"OnHold")
	if want := "the grant decide-hold was revoked, so the agent waits until a person lets it go on: taskgate resume"; again.Status.Conditions[0].Message != want {
		t.Errorf("it says %q", again.Status.Conditions[0].Message)
	}
	ask("decide-other", "not-hold")
	r.until(t, "decide-other", decideActive)
	r.patch(t, grantsResource, "decide-hold", `{"metadata":{"annotations":{"taskgate.dev/resumed":"true"}}}`)
	r.until(t, "decide-again", decideActive)
}

// release: what the agent gives back is over, and nobody is on hold for it.
func (r *decideRig) release(t *testing.T) {
	r.allow(t, "decide-release", decideAgents, openPolicy, mapRule("x"))
	ask := func(name string) {
		t.Helper()
		r.createGrant(t, r.as(t, "olga", "operators"), grantManifest(name, "grants-decide-release", r.agent("release"), "30m", mapRule("x")))
	}
	ask("decide-release")
	given := r.until(t, "decide-release", decideActive)
	for _, uid := range []string{"another", ""} {
		if err := r.controller.Release(t.Context(), "decide-release", uid, ""); !apierrors.IsConflict(err) {
			t.Errorf("another grant of the name: %v", err)
		}
	}
	if err := r.controller.Release(t.Context(), "decide-release", string(given.UID), "1"); !apierrors.IsConflict(err) {
		t.Errorf("the grant as it was: %v", err)
	}
	for range 2 {
		if err := r.controller.Release(t.Context(), "decide-release", string(given.UID), ""); err != nil {
			t.Fatal(err)
		}
	}
	if grant := r.read(t, "decide-release"); conditionsOf(&grant) != "Approved=True Active=False Ended=True Released" || grant.Status.EndReason != "Released" {
		t.Errorf("got %+v", grant.Status)
	}
	ask("decide-after")
	r.until(t, "decide-after", decideActive)
}

// approvalIsDecided: yes, use, and that a second use loses; no; nobody; and that
// two of a name or of a digest are told apart.
func (r *decideRig) approvalIsDecided(t *testing.T) {
	grant := r.ownerOf(t, "decide-decided")
	approval := r.newApproval(t, "ap-yes", "1", grant)
	if _, err := r.controller.CreateApproval(t.Context(), &v1alpha1.Approval{ObjectMeta: metav1.ObjectMeta{Name: "ap-yes"}, Spec: approval.Spec}); !apierrors.IsAlreadyExists(err) {
		t.Errorf("a second one of the name: %v", err)
	}
	if list, err := r.controller.ApprovalsFor(t.Context(), approval.Spec.Digest); err != nil || len(list) != 1 || list[0].UID != approval.UID {
		t.Errorf("of the digest: %v, %v", list, err)
	}
	if list, err := r.controller.ApprovalsFor(t.Context(), strings.Repeat("e", 64)); err != nil || len(list) != 0 {
		t.Errorf("of another digest: %v, %v", list, err)
	}
	r.decides(t, approvalTarget(approval), "Approve", "olga") // who made the grant
	if verdict, err := r.verdictOn(t, approval); err != nil || verdict.State != control.Undecided {
		t.Errorf("by who made the grant: %+v, %v", verdict, err)
	}
	r.decides(t, approvalTarget(approval), "Approve", "alice")
	if verdict, err := r.verdictOn(t, approval); err != nil || verdict.State != control.Approved || strings.Join(verdict.By, " ") != "alice" {
		t.Errorf("by alice: %+v, %v", verdict, err)
	}
	decided := r.untilApproval(t, "ap-yes", v1alpha1.DecidedApproved)
	var conflict *control.ConflictError
	if err := r.controller.Consume(t.Context(), approval, "stale", time.Now()); !errors.As(err, &conflict) {
		t.Errorf("as it was read before: %v", err)
	}
	if err := r.controller.Consume(t.Context(), decided, "first", time.Now()); err != nil {
		t.Fatal(err)
	}
	for _, read := range []*v1alpha1.Approval{decided, r.readApproval(t, "ap-yes")} {
		if err := r.controller.Consume(t.Context(), read, "second", time.Now()); !errors.As(err, &conflict) {
			t.Errorf("used twice: %v", err)
		}
	}
	if got := r.readApproval(t, "ap-yes").Status; got.ConsumedBy != "first" {
		t.Errorf("used by %q", got.ConsumedBy)
	}

	denied := r.newApproval(t, "ap-no", "2", grant)
	r.decides(t, approvalTarget(denied), "Deny", "bob")
	r.untilApproval(t, "ap-no", v1alpha1.DecidedDenied)
	r.decides(t, approvalTarget(denied), "Approve", "alice")
	if verdict, err := r.verdictOn(t, denied); err != nil || verdict.State != control.Denied || verdict.Reason != "a test" {
		t.Errorf("a yes after the no: %+v, %v", verdict, err)
	}
	r.newApproval(t, "ap-late", "3", grant, func(s *v1alpha1.ApprovalSpec) { s.ExpiresAt = metav1.NewMicroTime(time.Now().Add(2 * time.Second)) })
	r.untilApproval(t, "ap-late", v1alpha1.DecidedExpired)
}

// ownerOf makes a grant that approvals can be under; olga asked for it.
func (r *decideRig) ownerOf(t *testing.T, name string) *v1alpha1.TaskGrant {
	t.Helper()
	return r.createGrant(t, r.as(t, "olga", "operators"), grantManifest(name, "grants-nobody", r.agent(name), "30m", mapRule("x")))
}

// rightLost is T110: whoever lost the right before the use does not count, and a
// no stays a no.
func (r *decideRig) rightLost(t *testing.T) {
	grant := r.ownerOf(t, "decide-lost")
	approval, denied := r.newApproval(t, "ap-lost", "4", grant), r.newApproval(t, "ap-lost-no", "5", grant)
	r.decides(t, approvalTarget(approval), "Approve", "alice")
	r.decides(t, approvalTarget(denied), "Deny", "alice")
	if verdict, err := r.verdictOn(t, approval); err != nil || verdict.State != control.Approved {
		t.Fatalf("with the right: %+v, %v", verdict, err)
	}
	r.admin(t, "delete", "clusterrolebinding/decide-sre")
	defer r.admin(t, "create", "clusterrolebinding", "decide-sre", "--clusterrole=taskgate-approver", "--group=sre")
	eventually(t, 10*time.Second, "the yes counts no more", func() error {
		verdict, err := r.verdictOn(t, approval)
		if err == nil && verdict.State == control.Undecided && strings.Contains(verdict.Reason, "alice") {
			return nil
		}
		return fmt.Errorf("%+v, %v", verdict, err)
	})
	if verdict, err := r.verdictOn(t, denied); err != nil || verdict.State != control.Denied {
		t.Errorf("the no: %+v, %v", verdict, err)
	}
}

// oneWinner: of many that use one Approval at the same moment one is let through.
func (r *decideRig) oneWinner(t *testing.T) {
	grant := r.ownerOf(t, "decide-race")
	replicas := []*control.Controller{r.controller, r.newController(t), r.newController(t)}
	for round := range 10 {
		approval := r.newApproval(t, fmt.Sprintf("ap-race-%d", round), "6", grant)
		var won, lost atomic.Int32
		var wait sync.WaitGroup
		for i := range 12 {
			wait.Go(func() {
				err := replicas[i%len(replicas)].Consume(t.Context(), approval, fmt.Sprintf("call-%d", i), time.Now())
				var conflict *control.ConflictError
				switch {
				case err == nil:
					won.Add(1)
				case errors.As(err, &conflict):
					lost.Add(1)
				default:
					t.Error(err)
				}
			})
		}
		wait.Wait()
		if won.Load() != 1 || lost.Load() != 11 {
			t.Errorf("round %d: %d won, %d lost", round, won.Load(), lost.Load())
		}
	}
}

// cleaningUp: what is over goes with what belongs to it, and what holds stays.
func (r *decideRig) cleaningUp(t *testing.T) {
	grant := r.ownerOf(t, "decide-clean")
	approval := r.newApproval(t, "ap-clean", "7", grant)
	kept := r.newApproval(t, "ap-kept", "8", r.ownerOf(t, "decide-kept"))
	r.decides(t, approvalTarget(approval), "Approve", "alice")
	r.decides(t, approvalTarget(kept), "Approve", "alice")
	r.untilApproval(t, "ap-clean", v1alpha1.DecidedApproved)
	if err := r.controller.Release(t.Context(), "decide-clean", string(grant.UID), ""); err != nil {
		t.Fatal(err)
	}
	r.ownerOf(t, "decide-revoked")
	r.patch(t, grantsResource, "decide-revoked", `{"spec":{"revoked":true}}`)
	r.until(t, "decide-revoked", "Approved=False Active=False Ended=True Revoked")
	broker := r.broker(t)
	eventually(t, 3*decideKeep, "the grant and all that belongs to it is gone", func() error {
		_, grantErr := broker.Resource(grantsResource).Get(t.Context(), "decide-clean", metav1.GetOptions{})
		_, approvalErr := broker.Resource(decideApprovals).Get(t.Context(), "ap-clean", metav1.GetOptions{})
		list, err := broker.Resource(decideDecisions).List(t.Context(), metav1.ListOptions{FieldSelector: "spec.target.uid=" + string(approval.UID)})
		if !apierrors.IsNotFound(grantErr) || !apierrors.IsNotFound(approvalErr) || err != nil || len(list.Items) > 0 {
			return fmt.Errorf("%v, %v, %v, %v", grantErr, approvalErr, list, err)
		}
		return nil
	})
	r.read(t, "decide-revoked")
	if verdict, err := r.verdictOn(t, kept); err != nil || verdict.State != control.Approved {
		t.Errorf("one that is not over: %+v, %v", verdict, err)
	}
	// An approval whose grant somebody deleted goes too.
	r.remove(t, grantsResource, "decide-kept")
	eventually(t, 3*decideKeep, "the approval of a deleted grant is gone", func() error {
		if _, err := r.controller.ReadApproval(t.Context(), "ap-kept"); !apierrors.IsNotFound(err) {
			return fmt.Errorf("%v", err)
		}
		return nil
	})
}

// withoutGuards: while a policy or a binding is absent or changed no Decision
// counts, the broker is not ready and says why; when it is back, all goes on.
func (r *decideRig) withoutGuards(t *testing.T) {
	grant := r.ownerOf(t, "decide-guards")
	approval := r.newApproval(t, "ap-guards", "9", grant)
	r.decides(t, approvalTarget(approval), "Approve", "alice")
	r.allow(t, "decide-guarded", decideAgents, onePerson, mapRule("x"))
	r.createGrant(t, r.as(t, "olga", "operators"), grantManifest("decide-guarded", "grants-decide-guarded", r.agent("guarded"), "30m", mapRule("x")))
	waiting := r.until(t, "decide-guarded", decideWaits+"ApprovalPending")
	for i, change := range []struct{ kind, name, patch, says string }{
		{"validatingadmissionpolicybindings", "taskgate-decisions", `{"spec":{"validationActions":["Audit"]}}`, `the ValidatingAdmissionPolicyBinding "taskgate-decisions" differs`},
		{"validatingadmissionpolicies", "taskgate-approvals", `{"spec":{"failurePolicy":"Ignore"}}`, `the ValidatingAdmissionPolicy "taskgate-approvals" differs`},
		{"validatingadmissionpolicybindings", "taskgate-taskgrants", "", `the ValidatingAdmissionPolicyBinding "taskgate-taskgrants" is absent`},
		{"validatingadmissionpolicies", "taskgate-decisions", "", `the ValidatingAdmissionPolicy "taskgate-decisions" is absent`},
	} {
		resource := schema.GroupVersionResource{Group: "admissionregistration.k8s.io", Version: "v1", Resource: change.kind}
		if change.patch == "" {
			r.remove(t, resource, change.name)
		} else {
			r.patch(t, resource, change.name, change.patch)
		}
		if verdict, err := r.verdictOn(t, approval); err == nil || verdict.State != control.Undecided || !strings.Contains(err.Error(), change.says) {
			t.Errorf("%s %s: %+v, %v", change.kind, change.name, verdict, err)
		}
		if i == 0 {
			r.decides(t, targetOf(&waiting), "Approve", "alice")
			eventually(t, 20*time.Second, "the grant says that nothing counts", func() error {
				if grant := r.read(t, "decide-guarded"); conditionsOf(&grant) != decideWaits+"ApprovalPending" || !strings.Contains(grant.Status.Conditions[0].Message, "no Decision counts at the moment: "+change.says) {
					return fmt.Errorf("%s: %v", conditionsOf(&grant), grant.Status.Conditions)
				}
				return nil
			})
			r.untilReady(t, "[-]decision-policies: "+change.says)
			if got := r.alpha(t).do(t, "GET", "/version", nil, ""); got.code != 200 {
				t.Errorf("a call that nobody has to approve: %d %s", got.code, got.body)
			}
		}
		// To apply the file again would merge its actions with what was patched in.
		r.admin(t, "replace", "--force", "-f", "../manifests/admission/"+strings.TrimPrefix(change.name, "taskgate-")+".yaml")
	}
	if verdict, err := r.verdictOn(t, approval); err != nil || verdict.State != control.Approved {
		t.Errorf("when they are back: %+v, %v", verdict, err)
	}
	r.untilReady(t, "[+]decision-policies ok")
	eventually(t, time.Minute, "the grant is active when the policies are back", func() error {
		if grant := r.read(t, "decide-guarded"); conditionsOf(&grant) != decideActive {
			return fmt.Errorf("%s: %v", conditionsOf(&grant), grant.Status.Conditions)
		}
		return nil
	})
}

// untilReady waits for a line of what the broker says about being ready.
func (r *decideRig) untilReady(t *testing.T, line string) {
	t.Helper()
	url := strings.TrimSuffix(r.Environment().BrokerMetrics, "/metrics") + "/readyz?verbose"
	eventually(t, 20*time.Second, line, func() error {
		if got := r.command(t, "", "curl", "-s", url); !strings.Contains(got.stdout, line) {
			return errors.New(got.stdout)
		}
		return nil
	})
}
