package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"

	"github.com/taskgate/taskgate/e2e/testbed"
	"github.com/taskgate/taskgate/recorder"
)

// grantsPair is a testbed with two brokers and one agent that has a sidecar to
// each of them. The second broker reaches the API server through a wire.
type grantsPair struct {
	*grantsRig
	agents [2]*faultAgent
	wire   *faultWire
}

// TestGrantsOverTwoBrokers: what holds over all replicas, or for each.
func TestGrantsOverTwoBrokers(t *testing.T) {
	t.Parallel()
	p := &grantsPair{wire: newFaultWire(t)}
	p.grantsRig = &grantsRig{startStack(t, testbed.Options{
		Brokers: 2, Node: testbed.NoNode, WithoutControllers: true, AuditLevel: auditv1.LevelMetadata,
		BrokerConfiguration: func(replica int, configuration map[string]any) {
			if replica == 1 {
				p.wire.toCluster(configuration)
				configuration["staleAfter"] = faultStale.String()
			}
		},
	})}
	second, err := p.AddSidecar(t.Context(), testbed.SidecarOptions{Name: "alpha-1", Agent: testbed.Alpha, Replica: 1})
	if err != nil {
		t.Fatal(err)
	}
	p.agents = [2]*faultAgent{asFault(p.alpha(t)), asFault(p.agentAt(t, testbed.Alpha, second))}
	parts := []struct {
		name string
		test func(*testing.T, *grantsPair)
	}{
		{"mutations", testMutationsBudget},
		{"requests", testRequestsBudget},
		{"bytes", testBytesBudget},
		{"ended", testEndedOnBoth},
		{"stale", testOneStale},
		{"days", testDayBudget},
		{"killed", testBudgetAfterKill},
		{"returned", testBudgetReturned},
	}
	var names []string
	for _, part := range parts {
		names = append(names, part.name)
	}
	p.allowUpstream(t, names...)
	for _, part := range parts {
		t.Run(part.name, func(t *testing.T) { part.test(t, p) })
		p.wire.open()
	}
}

// open gives the agent everything about config maps in a namespace of the name of
// the policy, under a budget, and waits until both brokers serve it. The first
// calls come out of the budget of requests and bytes.
func (p *grantsPair) open(t *testing.T, name, budget string) (maps string) {
	t.Helper()
	namespace := "grants-" + name
	p.apply(t, "{apiVersion: v1, kind: Namespace, metadata: {name: "+namespace+"}}")
	rule := fmt.Sprintf(`{namespaces: [%s], apiGroups: [""], resources: [configmaps], verbs: [get, list, watch, create]}`, namespace)
	p.allow(t, name, p.agents[0].id, openPolicy+"\nbudget: "+budget, rule)
	p.give(t, namespace, name, p.agents[0].id, "1h", rule)
	maps = "/api/v1/namespaces/" + namespace + "/configmaps"
	for _, agent := range p.agents {
		p.served(t, agent.agent, maps)
	}
	return maps
}

// created counts, in the API server's own audit log, the config maps that were
// created in a namespace.
func (p *grantsPair) created(t *testing.T, namespace string) int {
	t.Helper()
	count := 0
	for _, events := range p.upstream(t) {
		for _, e := range events {
			if e.Verb == "create" && e.Stage == auditv1.StageResponseComplete && e.ObjectRef != nil && e.ObjectRef.Namespace == namespace && e.ResponseStatus.Code == http.StatusCreated {
				count++
			}
		}
	}
	return count
}

// spend creates config maps through both brokers, four callers each, until each
// caller is refused for the budget. What a broker that is away answers is not
// counted as anything.
func (p *grantsPair) spend(t *testing.T, maps string, accepted func(total int)) (answers []faultAnswer, refused []faultAnswer) {
	t.Helper()
	var mu sync.Mutex
	var callers sync.WaitGroup
	ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
	defer cancel()
	for i := range 8 {
		callers.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				answer := p.agents[i%2].call(ctx, "POST", maps, faultMap(fmt.Sprintf("map-%d-%d-%d", i, n, time.Now().UnixNano())))
				mu.Lock()
				switch {
				case answer.ok():
					answers = append(answers, answer)
					accepted(len(answers))
				case strings.HasPrefix(answer.reason, "BudgetSpent"):
					refused = append(refused, answer)
				}
				mu.Unlock()
				if strings.HasPrefix(answer.reason, "BudgetSpent") {
					return
				}
				if !answer.ok() { // a conflict over the status, or a broker that is away
					time.Sleep(20 * time.Millisecond)
				}
			}
		})
	}
	callers.Wait()
	return answers, refused
}

// testMutationsBudget: the budget of mutations is used up to the last one and not
// overrun, whatever the load.
func testMutationsBudget(t *testing.T, p *grantsPair) {
	maps := p.open(t, "mutations", "{mutations: 50}")
	answers, refused := p.spend(t, maps, func(int) {})
	if seen := p.created(t, "grants-mutations"); seen != 50 || len(answers) != 50 || len(refused) != 8 {
		t.Errorf("of a budget of 50 mutations %d were accepted, %d reached the API server, and %d of 8 callers were told that it is spent", len(answers), seen, len(refused))
	}
	if used := p.read(t, "grants-mutations").Status.Used; used == nil || used.Mutations != 50 {
		t.Errorf("status.used is %+v", used)
	}
	p.judgeRefusals(t, p.agents[0].agent, refused...)
	for i, agent := range p.agents {
		if answer := agent.call(t.Context(), "POST", maps+"?dryRun=All", faultMap("dry")); !answer.ok() {
			t.Errorf("broker %d: a dry run changes nothing and needs no budget: %s", i, answer)
		}
	}
	eventually(t, 15*time.Second, "the grant ends", func() error {
		if grant := p.read(t, "grants-mutations"); grant.Status.EndReason != "BudgetSpent" {
			return errors.New(conditionsOf(&grant))
		}
		return nil
	})
	for i, agent := range p.agents {
		if answer := agent.call(t.Context(), "GET", maps, ""); answer.reason != "BudgetSpent" {
			t.Errorf("broker %d: after the grant has ended: %s", i, answer)
		}
	}
}

// testRequestsBudget: requests are counted by each broker.
func testRequestsBudget(t *testing.T, p *grantsPair) {
	maps := p.open(t, "requests", "{requests: 6}")
	for i, agent := range p.agents {
		accepted := 1 // open has called once
		var refusal faultAnswer
		for range 10 {
			if answer := agent.call(t.Context(), "GET", maps, ""); answer.ok() {
				accepted++
			} else {
				refusal = answer
			}
		}
		if accepted != 6 || refusal.reason != "BudgetSpent/requests" || !strings.Contains(refusal.body, "the budget of the grant grants-requests is spent (requests). Next: ") {
			t.Errorf("broker %d: of a budget of 6 requests %d were accepted, then %s", i, accepted, refusal)
		}
		p.judgeRefusals(t, agent.agent, refusal)
	}
}

// testBytesBudget: not one byte more than the budget leaves a broker. The answer
// that would go beyond breaks off, and so does a watch, with a word.
func testBytesBudget(t *testing.T, p *grantsPair) {
	const budget, size = 256 << 10, 150_000
	maps := p.open(t, "bytes", "{bytesOut: 256Ki}")
	large := grantsObject(t, fmt.Sprintf("{apiVersion: v1, kind: ConfigMap, metadata: {name: large, namespace: grants-bytes}, data: {k: %q}}", strings.Repeat("x", size)))
	if _, err := p.client(grantsMaps).Namespace("grants-bytes").Create(t.Context(), large, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for i, agent := range p.agents {
		noise := fmt.Sprintf("noise-%d", i)
		watch := agent.open(t, maps+"?watch=true&fieldSelector=metadata.name%3D"+noise)
		whole := agent.call(t.Context(), "GET", maps+"/large", "")
		broken := agent.call(t.Context(), "GET", maps+"/large", "")
		refusal := agent.call(t.Context(), "GET", maps+"/large", "")
		if !whole.ok() || broken.code != http.StatusOK || broken.err == nil || len(whole.body)+len(broken.body) > budget {
			t.Errorf("broker %d: of a budget of %d bytes %d were read, and then %d: %v", i, budget, len(whole.body), len(broken.body), broken.err)
		}
		if last := p.lastOf(t, broken.auditID); last[recorder.AnnotationOutcome] != "cut" || last[recorder.AnnotationReason] != "BudgetSpent" || last[recorder.AnnotationCause] != "bytesOut" {
			t.Errorf("broker %d: the record of the answer that broke off ends with %v", i, last)
		}
		if refusal.reason != "BudgetSpent/bytesOut" {
			t.Errorf("broker %d: once the budget is spent: %s", i, refusal)
		}
		p.judgeRefusals(t, agent.agent, refusal)
		p.apply(t, fmt.Sprintf("{apiVersion: v1, kind: ConfigMap, metadata: {name: %s, namespace: grants-bytes}, data: {k: v}}", noise))
		if line := watch.last(t, 5*time.Second); faultEvent(t, line) != "BudgetSpent/bytesOut" {
			t.Errorf("broker %d: the watch ended with %s", i, line)
		}
	}
}

func (p *grantsPair) lastOf(t *testing.T, auditID string) map[string]string {
	t.Helper()
	records := p.journal.of(t, auditID)[auditID]
	return records[len(records)-1].Annotations
}

// testEndedOnBoth: T093. Both brokers hear of the end of a grant.
func testEndedOnBoth(t *testing.T, p *grantsPair) {
	maps := p.open(t, "ended", "{requests: 100000}")
	watches := [2]*faultWatch{p.agents[0].open(t, maps+"?watch=true"), p.agents[1].open(t, maps+"?watch=true")}
	p.patch(t, grantsResource, "grants-ended", revokeAndResume)
	began := time.Now()
	for i, agent := range p.agents {
		got := callUntilRefused(t, agent.agent, maps, 5*time.Second)
		last := watches[i].last(t, 5*time.Second)
		if got.refused.reason != "GrantRevoked" || faultEvent(t, last) != "GrantRevoked" || got.lastSent.Sub(began) > time.Second {
			t.Errorf("broker %d: refused with %s, the watch ended with %s", i, got.refused, last)
		}
		p.judgeRefusals(t, agent.agent, got.refused)
		p.judgeCut(t, watches[i].auditID, "GrantRevoked", "grants-ended")
	}
}

// testOneStale: T095. A broker whose watch is held refuses everything, the other
// goes on, and what was revoked meanwhile is never served again by either.
// TestFaultCluster has the other ways to lose the API server.
func testOneStale(t *testing.T, p *grantsPair) {
	maps := p.open(t, "stale", "{requests: 100000}")
	p.wire.hold(true)
	began := time.Now()
	ask := func(agent *faultAgent) faultAnswer {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		return agent.call(ctx, "GET", maps, "")
	}
	p.patch(t, grantsResource, "grants-stale", revokeAndResume)
	if got := callUntilRefused(t, p.agents[0].agent, maps, 5*time.Second); got.refused.reason != "GrantRevoked" {
		t.Errorf("the broker that hears: %s", got.refused)
	}
	eventually(t, faultStale+5*time.Second, "the other broker is stale", func() error {
		answer := ask(p.agents[1])
		if answer.ok() {
			t.Errorf("the broker that hears nothing served a call: %s", answer)
		}
		if answer.reason != "PolicyStale" {
			return fmt.Errorf("%s", answer)
		}
		return nil
	})
	stale := faultSince(began)
	p.wire.open()
	eventually(t, 60*time.Second, "the other broker heals", func() error {
		answer := ask(p.agents[1])
		if answer.ok() {
			t.Errorf("a grant that was revoked meanwhile was served: %s", answer)
		}
		if answer.reason != "GrantRevoked" {
			return fmt.Errorf("%s", answer)
		}
		return nil
	})
	t.Logf("T095: PolicyStale %s after the watch was held, healed after %s", stale, faultSince(began))
}

// testBudgetAfterKill: a share that a killed broker had reserved is lost, and
// never spent twice.
func testBudgetAfterKill(t *testing.T, p *grantsPair) {
	// Lost with the broker are what it had reserved and the calls it was making.
	const budget, mayBeLost = 80, 8 + 8
	maps := p.open(t, "killed", fmt.Sprintf("{mutations: %d}", budget))
	var kill sync.Once
	restarted := make(chan error, 1)
	answers, refused := p.spend(t, maps, func(total int) {
		if total < 20 {
			return
		}
		kill.Do(func() {
			err := p.Broker(0).Kill()
			go func() {
				if err == nil {
					err = p.Broker(0).Start(context.WithoutCancel(t.Context()))
				}
				restarted <- err
			}()
		})
	})
	if err := <-restarted; err != nil {
		t.Fatal(err)
	}
	seen := p.created(t, "grants-killed")
	if seen > budget || seen < budget-mayBeLost || len(answers) > seen || len(refused) != 8 {
		t.Errorf("of a budget of %d mutations, with one broker killed, %d were accepted, %d reached the API server, and %d of 8 callers were told that it is spent", budget, len(answers), seen, len(refused))
	}
	if used := p.read(t, "grants-killed").Status.Used; used == nil || used.Mutations != budget {
		t.Errorf("status.used is %+v", used)
	}
	p.judgeRefusals(t, p.agents[0].agent, refused...)
	t.Logf("%d accepted, %d reached the API server, %d of the budget lost with the broker", len(answers), seen, budget-seen)
}

// testBudgetReturned: a broker that ends in order gives back what it had reserved.
func testBudgetReturned(t *testing.T, p *grantsPair) {
	maps := p.open(t, "returned", "{mutations: 50}")
	used := func() int64 { return p.read(t, "grants-returned").Status.Used.Mutations }
	if answer := p.agents[0].call(t.Context(), "POST", maps, faultMap("one")); !answer.ok() {
		t.Fatal(answer)
	}
	if reserved := used(); reserved <= 1 {
		t.Errorf("after one mutation %d are reserved", reserved)
	}
	if err := p.Broker(0).Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := used(); left != 1 {
		t.Errorf("after one mutation and the end of the broker status.used says %d", left)
	}
}
