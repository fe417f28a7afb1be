package cli

import (
	"context"
	"encoding/json"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/taskgate/taskgate/api/v1alpha1"
)

func TestPending(t *testing.T) {
	f := newFakeCluster(t)
	f.run(t, "pending").check(t, 0, "Nothing waits for people.\n", "")
	f.put(t, approval(func(a *v1alpha1.Approval) { a.Spec.Approvers = 2 }))
	f.put(t, approval(settledAs(v1alpha1.ApprovalDecided, v1alpha1.DecidedDenied), func(a *v1alpha1.Approval) { a.Name, a.UID = "ap-denied", "d" }))
	f.put(t, approval(func(a *v1alpha1.Approval) {
		a.Name, a.UID, a.Spec.ExpiresAt = "ap-late", "l", metav1.NewMicroTime(time.Now().Add(-time.Second))
	}))
	f.put(t, said("d1", "Approve", "bob", "sre"))
	f.put(t, said("d2", "Approve", "bob", "sre"))             // twice is one person
	f.put(t, said("d3", "Approve", agentOne, "sre"))          // who asks does not count
	f.put(t, said("d4", "Approve", "carol", "somebody-else")) // of a group nobody asked
	f.put(t, grant(isActive()))
	f.put(t, grant(waits(), func(g *v1alpha1.TaskGrant) { g.Name, g.UID = "wants", "w" }))
	f.put(t, grant(waits(), func(g *v1alpha1.TaskGrant) { g.Name, g.UID, g.Spec.Policy = "held", "h", "open" }))
	f.put(t, policyNamed("shop", nil))
	f.put(t, policyNamed("open", func(s *v1alpha1.AgentPolicySpec) { s.Grant.Approval = v1alpha1.GrantApproval{None: true} }))
	f.run(t, "pending").check(t, 0, `NAME   KIND       AGENT                                  TASK      SUMMARY                                 GATE              NEEDS                      AGE  EXPIRES IN
held   TaskGrant  spiffe://example.org/ns/agents/sa/one  INC-4711  get,list pods in shop                   grant             waits for 2 people of sre  20m  -
wants  TaskGrant  spiffe://example.org/ns/agents/sa/one  INC-4711  get,list pods in shop                   grant             0 of 2 from sre            20m  -
ap-1   Approval   spiffe://example.org/ns/agents/sa/one  INC-4711  delete the namespace shop with 12 pods  namespace-delete  1 of 2 from sre, platform  15m  10m
`, "")
	got := f.run(t, "pending", "-o", "json")
	var items []pendingItem
	if err := json.Unmarshal([]byte(got.out), &items); err != nil || len(items) != 3 || items[2].Name != "ap-1" || items[2].Approved != 1 || items[2].Approvers != 2 || items[2].Gate != "namespace-delete" {
		t.Errorf("%v: %s", err, got)
	}
	f.run(t, "pending", "-o", "yaml").check(t, 2, "", `--output is table or json, not "yaml"`)
	f.deny["get approvals"] = failure(403, metav1.StatusReasonForbidden, "approvals is forbidden")
	f.run(t, "pending").check(t, 1, "", "listing what waits: you may not do that; the ClusterRole taskgate-approver allows it: approvals is forbidden")
}

// lines is where a command that goes on prints, for a test to wait for.
type lines struct {
	mu      sync.Mutex
	text    string
	changed chan struct{}
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text += string(p)
	select {
	case l.changed <- struct{}{}:
	default:
	}
	return len(p), nil
}

func (l *lines) until(t *testing.T, pattern string) {
	t.Helper()
	timeout := time.After(10 * time.Second)
	for {
		l.mu.Lock()
		text := l.text
		l.mu.Unlock()
		if regexp.MustCompile("(?m)" + pattern).MatchString(text) {
			return
		}
		select {
		case <-l.changed:
		case <-timeout:
			t.Fatalf("nothing like %q in:\n%s", pattern, text)
		}
	}
}

func TestPendingWatches(t *testing.T) {
	f := newFakeCluster(t, approval(func(a *v1alpha1.Approval) { a.Spec.Approvers = 2 }), policyNamed("shop", nil))
	ctx, interrupt := context.WithCancel(t.Context())
	out := &lines{changed: make(chan struct{}, 1)}
	root := Command()
	root.SetArgs([]string{"pending", "-w", "--kubeconfig", f.kubeconfig(t)})
	root.SetOut(out)
	ended := make(chan error)
	go func() { ended <- root.ExecuteContext(ctx) }()
	out.until(t, `Z  waiting   approval/ap-1  needs 0 of 2 from sre, platform, expires in 10m  spiffe://\S+, task INC-4711, gate namespace-delete: delete the namespace shop`)
	f.put(t, said("d1", "Approve", "bob", "sre"))
	out.until(t, `Z  waiting   approval/ap-1  needs 1 of 2`)
	f.put(t, grant(waits()))
	out.until(t, `Z  waiting   taskgrant/inc  needs 0 of 2 from sre`)
	f.put(t, grant(isActive()))
	out.until(t, `Z  active    taskgrant/inc  active until later$`)
	f.put(t, approval(settledAs(v1alpha1.ApprovalDecided, v1alpha1.DecidedApproved)))
	out.until(t, `Z  approved  approval/ap-1  approved$`)
	interrupt()
	if err := <-ended; err != nil {
		t.Errorf("interrupted: %v", err)
	}
}

const shownApproval = `Delete namespaces shop
delete the namespace shop with 12 pods

Risk       gate namespace-delete (built in): everything in the namespace goes with it
Object     UID uid-ns

Change     what a dry run of this very request changes (36 bytes)
  │ --- live
  │ +++ after
  │ -kind: Namespace

Asked by   spiffe://example.org/ns/agents/sa/one
           task INC-4711
           grant inc under the AgentPolicy shop
           the grant was asked for by spiffe://example.org/ns/agents/sa/one
Says       in its own words, which nobody has checked:
  │ restart loop in web

State      Waiting: waits for people; 10m left, until 2026-01-01 00:00:00Z
Needs      1 of 1 from sre, platform
Decided    Approve by bob (sre) at 2026-11-23 12:00:00Z: looks fine
A yes      lets exactly this call through, once, within 5m0s after the last person agreed; a changed call asks anew
Digest     1111111111111111111111111111111111111111111111111111111111111111

  taskgate approve approval/ap-1 --digest 1111111111111111111111111111111111111111111111111111111111111111 --reason "..."
  taskgate deny approval/ap-1 --reason "..."
`

// timeless takes the time of the test's run out of an output.
func timeless(out string) string {
	return regexp.MustCompile(`until \d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ`).ReplaceAllString(out, "until 2026-01-01 00:00:00Z")
}

func TestShowApproval(t *testing.T) {
	f := newFakeCluster(t, approval(), grant(isActive()), policyNamed("shop", nil), said("d1", "Approve", "bob", "sre"))
	for _, name := range []string{"ap-1", "approval/ap-1", "approvals.taskgate.dev/ap-1", "ap/ap-1"} {
		got := f.run(t, "show", name)
		got.out = timeless(got.out)
		got.check(t, 0, shownApproval, "")
	}
	t.Setenv("NO_COLOR", "")
	if got := f.typed(t, "", "show", "ap-1"); !strings.Contains(got.out, "  │ \x1b[31m-kind: Namespace\x1b[0m\n") {
		t.Errorf("no colour on a terminal: %s", got)
	}
	t.Setenv("NO_COLOR", "1")
	if got := f.typed(t, "", "show", "ap-1"); strings.Contains(got.out, "\x1b") {
		t.Errorf("colour nobody wants: %s", got)
	}
	var all shown
	if got := f.run(t, "show", "ap-1", "-o", "json"); json.Unmarshal([]byte(got.out), &all) != nil || all.Approval.Spec.Digest != digestOne || len(all.Decisions) != 1 || all.TaskGrant.Name != "inc" {
		t.Errorf("%s", got)
	}
	f.run(t, "show", "nothing").check(t, 2, "", `there is no Approval and no TaskGrant "nothing"; see what waits with taskgate pending`)
	f.put(t, grant(func(g *v1alpha1.TaskGrant) { g.Name = "ap-1" }))
	f.run(t, "show", "ap-1").check(t, 2, "", `there is an Approval and a TaskGrant "ap-1": write approval/ap-1 or taskgrant/ap-1`)
}

// TestShowGrantOfSameName: a grant of the same name made later is not the one the
// call was made under.
func TestShowGrantOfSameName(t *testing.T) {
	f := newFakeCluster(t, approval(), grant(isActive(), func(g *v1alpha1.TaskGrant) { g.UID, g.Spec.Reason = "another", "another reason" }))
	got := f.run(t, "show", "ap-1")
	if strings.Contains(got.out, "another reason") || !strings.Contains(got.out, "grant inc (gone, or hidden from you)") || !strings.Contains(got.out, "Says       its reason is gone, or hidden from you\n") {
		t.Errorf("%s", got)
	}
}

func TestShowGrant(t *testing.T) {
	f := newFakeCluster(t, policyNamed("shop", nil), grant(waits(), func(g *v1alpha1.TaskGrant) {
		no := false
		g.Spec.Rules = append(g.Spec.Rules, v1alpha1.Rule{Namespaces: []string{"*"}, APIGroups: []string{"apps"}, Resources: []string{"deployments"}, ResourceNames: []string{"web"},
			Verbs: []string{"patch"}, Commands: [][]string{{"nginx", "-t"}, {"it's\n'"}}, Values: "Redacted", Stdin: &no, TTY: &no, ServiceAccounts: []string{"web"}})
		g.Spec.RequestedBy, g.Spec.Reason = "bob", ""
	}))
	f.run(t, "show", "inc").check(t, 0, `Let spiffe://example.org/ns/agents/sa/one do this for 30m0s:
  │ get, list pods in namespace shop
  │ patch deployments (API groups apps) in every namespace and the whole cluster, named web, command nginx -t, command 'it'\''s\x0a'\''', without the values of Secrets, without input, without a terminal, pods as service account web

Risk       everything above may be done without asking again, but for calls that stop at a gate

Asked by   spiffe://example.org/ns/agents/sa/one
           task INC-4711
           under the AgentPolicy shop
           the grant was asked for by bob
Says       nothing about why

State      Waiting: waits for 2 people of sre
Needs      0 of 2 from sre
Decided    nobody yet
A yes      starts this grant for 30m0s; it ends by itself, or with taskgate revoke inc
Digest     2222222222222222222222222222222222222222222222222222222222222222

  taskgate approve taskgrant/inc --digest 2222222222222222222222222222222222222222222222222222222222222222 --reason "..."
  taskgate deny taskgrant/inc --reason "..."
`, "")
}

// hostile is everything an agent can send to be misread: T119, T122.
const hostile = "\x1b[2J\x1b]52;c;aGk=\x07\r\u202etxt\u2066\u200b\ufeff\u009b2J\x7f\u2028<b>[ok](https://x)</b> p\u0430yments"

func TestShowIsInert(t *testing.T) {
	f := newFakeCluster(t, grant(isActive(), func(g *v1alpha1.TaskGrant) { g.Spec.Reason = hostile + "\nDigest     0000\n" }), approval(func(a *v1alpha1.Approval) {
		s := &a.Spec
		s.Agent, s.Task, s.Summary, s.Diff, s.DiffNote, s.Gate = hostile, hostile, hostile, "+"+hostile+"\n", hostile, hostile
		s.Call = v1alpha1.ApprovalCall{Verb: hostile, Group: hostile, Resource: hostile, Subresource: hostile, Namespace: hostile, Name: hostile, UID: hostile,
			Query: hostile, MediaType: hostile, Command: []string{hostile, "a\nb"}, BodySHA256: hostile, BodyBytes: 2 << 20}
	}))
	for _, arguments := range [][]string{{"show", "ap-1"}, {"show", "ap-1", "-o", "json"}, {"pending"}, {"pending", "-o", "json"}, {"grants"}, {"wait", "ap-1", "--timeout", "100ms"}, {"approve", "ap-1"}, {"approve", "ap-1", "--group", hostile}} {
		got := f.run(t, arguments...)
		checkInert(t, got.out+got.problem)
	}
	got := f.run(t, "show", "ap-1")
	for _, want := range []string{
		`  │ \x1b[2J\x1b]52;c;aGk=\x07\x0d\u202etxt\u2066\u200b\ufeff\u009b2J\x7f\u2028<b>[ok](https://x)</b> pаyments` + "\n  │ Digest     0000\n",
		`Careful    "pаyments" mixes Cyrillic and Latin letters (p\u0430yments)`, "\n  │ a\\x0ab\n", "Command    2 arguments, 75 bytes, one a line", "Body       2097152 bytes",
	} {
		if !strings.Contains(got.out, want) {
			t.Errorf("%q is not in %s", want, got)
		}
	}
	if strings.Count(got.out, "\nDigest ") != 1 {
		t.Errorf("the agent wrote a line of ours: %s", got)
	}
}

// TestWords: a name cannot say what only we say.
func TestWords(t *testing.T) {
	call := v1alpha1.ApprovalCall{Verb: "delete", Group: "apps", Resource: "deployments", Subresource: "scale", Namespace: "shop", Name: "web in namespace prod"}
	if got, want := callWords(&call), "Delete deployments.apps/scale 'web in namespace prod' in namespace shop"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	call = v1alpha1.ApprovalCall{Verb: "create", Resource: "pods", Subresource: "exec", Namespace: "shop", Name: "it's"}
	if got, want := callWords(&call), `Run a command in pods/exec 'it'\''s' in namespace shop`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if got, want := callWords(&v1alpha1.ApprovalCall{Verb: "deletecollection", Resource: "pods"}), "Delete all matching pods"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	rule := v1alpha1.Rule{Namespaces: []string{"shop"}, Resources: []string{"secrets"}, Verbs: []string{"get"}, ResourceNames: []string{"db", "x, without the values of Secrets"}}
	if got, want := ruleWords(&rule), "get secrets in namespace shop, named db, 'x, without the values of Secrets'"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// TestShowCuts: T121.
func TestShowCuts(t *testing.T) {
	f := newFakeCluster(t, approval(func(a *v1alpha1.Approval) {
		a.Spec.Call.Command = []string{"sh", strings.Repeat("x", 2<<20), "hidden"}
	}))
	got := f.run(t, "show", "ap-1")
	if !strings.Contains(got.out, "\n  cut: 102400 of 2097160 bytes are shown; see all with --full\n") || len(got.out) > 110<<10 || strings.Contains(got.out, "hidden\n") {
		t.Errorf("%d bytes: %.300s", len(got.out), got.out)
	}
	if got := f.run(t, "show", "ap-1", "--full"); strings.Contains(got.out, "cut:") || !strings.Contains(got.out, "hidden\n") {
		t.Errorf("--full is %d bytes", len(got.out))
	}
}

func TestGrants(t *testing.T) {
	f := newFakeCluster(t)
	f.run(t, "grants").check(t, 0, "No agent may do anything at the moment.\n", "")
	f.put(t, grant(waits()))
	f.put(t, grant(isActive(), func(g *v1alpha1.TaskGrant) { g.Name = "other" }))
	f.put(t, grant(conditions("True", "False", "True", "Revoked", "revoked"), func(g *v1alpha1.TaskGrant) { g.Name = "over" }))
	f.run(t, "grants").check(t, 0, `NAME   AGENT                                  TASK      STATE    ENDS IN  POLICY  MAY
inc    spiffe://example.org/ns/agents/sa/one  INC-4711  Waiting  -        shop    get,list pods in shop
other  spiffe://example.org/ns/agents/sa/one  INC-4711  Active   20m      shop    get,list pods in shop

Waiting (see taskgate show NAME):
  inc: waits for 2 people of sre
`, "")
	if got := f.run(t, "grants", "--all"); !strings.Contains(got.out, "over   spiffe://example.org/ns/agents/sa/one  INC-4711  Revoked  -") {
		t.Errorf("%s", got)
	}
}

func TestHelp(t *testing.T) {
	for _, c := range Command().Commands() {
		if c.Name() != "version" && (c.GroupID == "" || c.Long == "" && !c.HasSubCommands()) {
			t.Errorf("%s helps nobody", c.Name())
		}
	}
}
