package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/dynamic"
	"sigs.k8s.io/yaml"

	"github.com/taskgate/taskgate/api/v1alpha1"
	"github.com/taskgate/taskgate/e2e/testbed"
)

// crowdRig is three brokers, an agent with a sidecar to each, and a person.
type crowdRig struct {
	*approveRig
	crowd   [3]*faultAgent
	alice   dynamic.Interface
	cleaner dynamic.Interface // has a broker's credential
	callers int               // for one approval
	kills   atomic.Int32
}

// crowdTrial is what became of one approval.
type crowdTrial struct {
	number   int
	approval string // its name
	accepted int    // how often callers were told so
	answered string // the audit ID of the call that was accepted
	consumer string // the audit ID that the approval says it was used by
	err      error
}

// TestApprovalsRaced is T127 over three replicas that are killed meanwhile: however
// many callers want to use an approval, the cluster sees the call at most once; and
// an approval that is used up has the record of the call that used it.
// TASKGATE_E2E_APPROVALS says how many are raced for; 10,000 are asked for.
func TestApprovalsRaced(t *testing.T) {
	t.Parallel()
	r := newCrowdRig(t)
	trials := make([]crowdTrial, numberFrom(t, "TASKGATE_E2E_APPROVALS", 90))
	stop, killed := make(chan struct{}), make(chan error, 1)
	every := 2500 * time.Millisecond
	if len(trials) > 1000 { // most of the time all three are there, and race alone
		every, r.callers = 10*time.Second, 3
	}
	go func() { killed <- r.kill(t.Context(), every, stop) }()
	var workers sync.WaitGroup
	var next atomic.Int32
	for range 10 {
		workers.Go(func() {
			for n := int(next.Add(1)); n <= len(trials); n = int(next.Add(1)) {
				trials[n-1] = r.try(t.Context(), n)
			}
		})
	}
	workers.Wait()
	close(stop)
	if err := <-killed; err != nil {
		t.Fatal(err)
	}
	r.judgeCrowd(t, trials)
}

func newCrowdRig(t *testing.T) *crowdRig {
	r := &crowdRig{callers: 6, approveRig: &approveRig{decideRig: newDecideRigWith(t, testbed.Options{
		SPIFFE: testbed.Dev, Node: testbed.NoNode, WithoutControllers: true, Brokers: 3,
		BrokerConfiguration: func(_ int, configuration map[string]any) {
			configuration["approvals"] = map[string]any{"maxOpen": 1000, "maxPerDay": 1000000}
		},
	})}}
	r.crowd[0] = asFault(r.alpha(t))
	for replica := 1; replica < len(r.crowd); replica++ {
		sidecar, err := r.AddSidecar(t.Context(), testbed.SidecarOptions{Name: fmt.Sprintf("alpha-%d", replica), Agent: testbed.Alpha, Replica: replica})
		if err != nil {
			t.Fatal(err)
		}
		r.crowd[replica] = asFault(r.agentAt(t, testbed.Alpha, sidecar))
	}
	r.apply(t, "{apiVersion: v1, kind: Namespace, metadata: {name: crowd}}")
	r.allowUpstream(t, "crowd")
	r.allow(t, "crowd", r.crowd[0].id, openPolicy+`
gates:
- {name: maps, resources: [configmaps], verbs: [create], groups: [sre], ttl: 10m, useWithin: 10m}`, everything)
	r.give(t, "grants-crowd", "crowd", r.crowd[0].id, "4h", everything)
	for _, agent := range r.crowd {
		r.served(t, agent.agent, "/api/v1/namespaces/crowd/pods")
	}
	r.alice, r.cleaner = r.as(t, "alice", "sre"), r.broker(t)
	return r
}

// kill kills one replica after the other, and starts each again, until stop.
func (r *crowdRig) kill(ctx context.Context, every time.Duration, stop <-chan struct{}) error {
	for replica := 0; ; replica = (replica + 1) % len(r.crowd) {
		select {
		case <-stop:
			return nil
		case <-time.After(every):
		}
		if err := r.Broker(replica).Kill(); err != nil {
			return err
		}
		if err := r.Broker(replica).Start(ctx); err != nil {
			return err
		}
		r.kills.Add(1)
	}
}

// crowdMap has a name made by the API server, so that a call that is made twice
// makes two.
func crowdMap(n int) string {
	return fmt.Sprintf(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"generateName":"trial-%d-"}}`, n)
}

const crowdMaps = "/api/v1/namespaces/crowd/configmaps"

// try asks for an approval, has alice say yes, and has callers at three brokers
// race to use it.
func (r *crowdRig) try(ctx context.Context, n int) crowdTrial {
	trial := crowdTrial{number: n}
	ctx, cancel := context.WithTimeout(ctx, 90*time.Second)
	defer cancel()
	if trial.approval, trial.err = r.asked(ctx, n); trial.err != nil {
		return trial
	}
	if trial.err = r.agreed(ctx, trial.approval); trial.err != nil {
		return trial
	}
	var mu sync.Mutex
	var callers sync.WaitGroup
	for i := range r.callers {
		callers.Go(func() {
			answer, err := r.used(ctx, i%len(r.crowd), n)
			mu.Lock()
			defer mu.Unlock()
			trial.err = errors.Join(trial.err, err)
			if answer.code == http.StatusCreated {
				trial.accepted++
				trial.answered = answer.auditID
			}
		})
	}
	callers.Wait()
	if trial.err == nil {
		trial.consumer, trial.err = r.settled(ctx, trial.approval)
	}
	return trial
}

// settled returns what used an approval, and takes the approval away as a broker
// does after a week: a day of one agent never has thousands.
func (r *crowdRig) settled(ctx context.Context, name string) (consumer string, err error) {
	object, err := r.alice.Resource(decideApprovals).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return "", err
	}
	consumer, _, err = unstructured.NestedString(object.Object, "status", "consumedBy")
	return consumer, errors.Join(err,
		r.cleaner.Resource(decideApprovals).Delete(ctx, name, metav1.DeleteOptions{}),
		r.cleaner.Resource(decideDecisions).Delete(ctx, name+"-alice", metav1.DeleteOptions{}))
}

// asked makes the gated call until a broker answers with the name of an approval.
func (r *crowdRig) asked(ctx context.Context, n int) (string, error) {
	for i := n; ; i++ {
		answer := r.crowd[i%len(r.crowd)].call(ctx, http.MethodPost, crowdMaps, crowdMap(n))
		if _, rest, found := strings.Cut(answer.body, "request ap-"); found && answer.reason == "ApprovalRequired" {
			name, _, _ := strings.Cut(rest, " ")
			return "ap-" + name, nil
		}
		if err := crowdPause(ctx, answer); err != nil {
			return "", fmt.Errorf("trial %d: asking: %w", n, err)
		}
	}
}

// agreed is alice's yes.
func (r *crowdRig) agreed(ctx context.Context, name string) error {
	object, err := r.alice.Resource(decideApprovals).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	var approval v1alpha1.Approval
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, &approval); err != nil {
		return err
	}
	var yes unstructured.Unstructured
	manifest := decision(name+"-alice", approvalTarget(&approval), v1alpha1.VerdictApprove, "alice", "sre")
	if err := yaml.Unmarshal([]byte(manifest), &yes.Object); err != nil {
		return err
	}
	_, err = r.alice.Resource(decideDecisions).Create(ctx, &yes, metav1.CreateOptions{})
	return err
}

// used makes the gated call until it is accepted, or refused as used already. What
// a broker that is away answers is not counted as anything.
func (r *crowdRig) used(ctx context.Context, broker, n int) (faultAnswer, error) {
	for {
		answer := r.crowd[broker].call(ctx, http.MethodPost, crowdMaps, crowdMap(n))
		if answer.code == http.StatusCreated || answer.reason == "ApprovalConsumed" {
			return answer, nil
		}
		if err := crowdPause(ctx, answer); err != nil {
			return answer, fmt.Errorf("trial %d: using: %w", n, err)
		}
	}
}

func crowdPause(ctx context.Context, last faultAnswer) error {
	select {
	case <-ctx.Done():
		return fmt.Errorf("%w; the last answer was %s", ctx.Err(), last)
	case <-time.After(30 * time.Millisecond):
		return nil
	}
}

// judgeCrowd compares what the callers were told, what the cluster holds and what
// the records say.
func (r *crowdRig) judgeCrowd(t *testing.T, trials []crowdTrial) {
	t.Helper()
	made := map[string]int{}
	list, err := r.kube.CoreV1().ConfigMaps("crowd").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range list.Items {
		made[list.Items[i].GenerateName]++
	}
	users := map[string]crowdTrial{}
	unknown := 0
	for _, trial := range trials {
		count := made[fmt.Sprintf("trial-%d-", trial.number)]
		if trial.err != nil || trial.accepted > 1 || count > 1 || trial.accepted > count {
			t.Errorf("trial %d: accepted %d times, made %d times: %v", trial.number, trial.accepted, count, trial.err)
			continue
		}
		if trial.consumer == "" || trial.answered != "" && trial.answered != trial.consumer {
			t.Errorf("trial %d: %s was used by %q, and the call that was accepted is %q", trial.number, trial.approval, trial.consumer, trial.answered)
			continue
		}
		if users[trial.consumer] = trial; count == 0 {
			unknown++
		}
	}
	for consumer, records := range r.journal.of(t, slices.Collect(maps.Keys(users))...) {
		trial := users[consumer]
		outcome := records[len(records)-1].Annotations["taskgate.dev/outcome"]
		if made[fmt.Sprintf("trial-%d-", trial.number)] == 0 && outcome != "unknown" && outcome != "not-sent" {
			t.Errorf("trial %d: %s was used up by %s, nothing was made, and the record says %q", trial.number, trial.approval, consumer, outcome)
		}
	}
	t.Logf("T127: %d approvals raced for by %d callers at 3 brokers, with %d kills: none used twice, none lost; %d used up by a call that a kill kept from the cluster", len(trials), r.callers, r.kills.Load(), unknown)
}
