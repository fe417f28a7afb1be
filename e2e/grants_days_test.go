package e2e_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/taskgate/taskgate/api/v1alpha1"
)

// testDayBudget: what an agent may use up in a day under a policy is used up to the
// last one over both brokers and both of its grants, and asking anew does not help.
func testDayBudget(t *testing.T, p *grantsPair) {
	const budget = 30
	waitPastMidnight(t)
	maps := p.open(t, "days", "{mutations: 20}\nperDay: {mutations: 30}")
	answers, _ := p.spend(t, maps, func(int) {})
	eventually(t, 20*time.Second, "the first grant ends", func() error {
		if reason := p.read(t, "grants-days").Status.EndReason; reason != "BudgetSpent" {
			return fmt.Errorf("its end reason is %q", reason)
		}
		return nil
	})
	rule := `{namespaces: [grants-days], apiGroups: [""], resources: [configmaps], verbs: [get, list, watch, create]}`
	p.give(t, "grants-days-again", "days", p.agents[0].id, "1h", rule)
	for _, agent := range p.agents {
		p.served(t, agent.agent, maps)
	}
	more, refused := p.spend(t, maps, func(int) {})
	seen := p.created(t, "grants-days")
	if seen != budget || len(answers) != 20 || len(more) != budget-20 {
		t.Errorf("of 20 mutations for each grant and %d a day, %d and %d were accepted, and %d reached the API server", budget, len(answers), len(more), seen)
	}
	for _, answer := range refused {
		if answer.reason != "BudgetSpent/perDay.mutations" || answer.code != http.StatusForbidden {
			t.Errorf("with the day's budget spent: %s", answer)
		}
	}
	if got := p.agents[0].call(t.Context(), "GET", maps, ""); !got.ok() {
		t.Errorf("a read, of which there is no budget: %s", got)
	}
	if used := p.usedToday(t, "grants-days", p.agents[0].id); used != budget {
		t.Errorf("the policy's status says that %d were used", used)
	}
}

// waitPastMidnight keeps a test of one day out of the last minute of another.
func waitPastMidnight(t *testing.T) {
	t.Helper()
	now := time.Now().UTC()
	if left := now.Truncate(24 * time.Hour).Add(24 * time.Hour).Sub(now); left < time.Minute {
		time.Sleep(left + time.Second)
	}
}

// usedToday is what the status of a policy says about an agent's mutations.
func (p *grantsPair) usedToday(t *testing.T, policy, agent string) int64 {
	t.Helper()
	raw, err := p.kube.Discovery().RESTClient().Get().AbsPath("/apis/taskgate.dev/v1alpha1/agentpolicies", policy).DoRaw(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var object v1alpha1.AgentPolicy
	if err := json.Unmarshal(raw, &object); err != nil {
		t.Fatal(err)
	}
	today := time.Now().UTC().Format(time.DateOnly)
	i := slices.IndexFunc(object.Status.Days, func(u v1alpha1.DayUsage) bool { return u.Agent == agent && u.Day == today })
	if i < 0 {
		t.Fatalf("nothing about today in %+v", object.Status.Days)
	}
	return object.Status.Days[i].Mutations
}
