package broker

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/taskgate/taskgate/authz"
)

// wantedGrant is the TaskGrant an agent is told to ask for: the smallest that
// would have let its call pass. The broker only ever prints it.
type wantedGrant struct {
	APIVersion string     `json:"apiVersion"`
	Kind       string     `json:"kind"`
	Metadata   wantedName `json:"metadata"`
	Spec       wantedSpec `json:"spec"`
}

type wantedName struct {
	GenerateName string `json:"generateName"`
}

type wantedSpec struct {
	Task   string       `json:"task"`
	TTL    string       `json:"ttl"`
	Policy string       `json:"policy"`
	Rules  []wantedRule `json:"rules"`
}

type wantedRule struct {
	Namespaces      []string   `json:"namespaces"`
	APIGroups       []string   `json:"apiGroups"`
	Resources       []string   `json:"resources"`
	ResourceNames   []string   `json:"resourceNames,omitempty"`
	Verbs           []string   `json:"verbs"`
	Values          string     `json:"values,omitempty"`
	Commands        [][]string `json:"commands,omitempty"`
	Containers      []string   `json:"containers,omitempty"`
	Stdin           *bool      `json:"stdin,omitempty"`
	TTY             *bool      `json:"tty,omitempty"`
	ServiceAccounts []string   `json:"serviceAccounts,omitempty"`
}

// nextAsk tells an agent whose call no active grant covers what to do: the
// command that asks for one, or who else has to act.
func nextAsk(q *authz.Question) string {
	if q.Set == nil || q.Call == nil {
		return "Next: tell an operator. Retrying changes nothing"
	}
	if len(q.Set.Policies()) == 0 {
		return "No AgentPolicy is about you. Next: tell an operator who you are (kubectl auth whoami) and what your task needs. Retrying before that changes nothing"
	}
	offer, found := q.Set.Offer(q.Call)
	if !found {
		return fmt.Sprintf("Your AgentPolicies (%s) allow no TaskGrant for it. Next: do without it, or ask an operator to allow it in one of them. Retrying before that changes nothing", policyNames(q.Set))
	}
	command, safe := askingCommand(offer)
	if !safe {
		return fmt.Sprintf("Next: ask for it with a TaskGrant under the policy %s (kubectl explain taskgrant.spec). Retrying before that changes nothing", offer.Policy.Name)
	}
	return fmt.Sprintf("Next: %s%s; write your task for TASK, and all else it needs into rules. Then repeat the same command", freeFirst(q, offer.Policy), command)
}

func policyNames(set *authz.Set) string {
	const most = 5
	var names []string
	for _, policy := range set.Policies() {
		names = append(names, policy.Name)
	}
	if len(names) > most {
		names = append(names[:most], "…")
	}
	return strings.Join(names, ", ")
}

// freeFirst says that a grant has to be given back before there is room for
// another.
func freeFirst(q *authz.Question, policy *authz.Policy) string {
	if policy.Limits.MaxActive == 0 {
		return ""
	}
	var held []string
	for _, grant := range q.Set.Held(q.Now) {
		if grant.Active && grant.Policy == policy.Name {
			held = append(held, grant.Name)
		}
	}
	if len(held) < policy.Limits.MaxActive {
		return ""
	}
	return fmt.Sprintf("first kubectl delete taskgrant %s (%d at a time), then ", held[0], policy.Limits.MaxActive)
}

// usualTTL is what an agent is told to ask for, if the policy allows that much.
const usualTTL = 30 * time.Minute

// askingCommand is a line for the shell. It is not safe, and not shown, if any
// word of it could mean something to the shell: names come from a call, and who
// made the agent make it is not known.
func askingCommand(offer authz.Offer) (string, bool) {
	rule, ttl := &offer.Rule, usualTTL
	if offer.Policy.MaxTTL > 0 {
		ttl = min(ttl, offer.Policy.MaxTTL)
	}
	wanted := wantedRule{
		Namespaces: rule.Namespaces, APIGroups: rule.APIGroups, Resources: rule.Resources, ResourceNames: rule.ResourceNames,
		Verbs: rule.Verbs, Commands: rule.Commands, Containers: rule.Containers, ServiceAccounts: rule.ServiceAccounts,
	}
	no := false
	if rule.Redacted {
		wanted.Values = "Redacted"
	}
	if rule.NoStdin {
		wanted.Stdin = &no
	}
	if rule.NoTTY {
		wanted.TTY = &no
	}
	encoded, err := json.Marshal(wantedGrant{
		APIVersion: authz.OwnGroup + "/v1alpha1", Kind: "TaskGrant", Metadata: wantedName{"task-"},
		Spec: wantedSpec{Task: "TASK", TTL: short(ttl), Policy: offer.Policy.Name, Rules: []wantedRule{wanted}},
	})
	words := slices.Concat(rule.Namespaces, rule.APIGroups, rule.Resources, rule.ResourceNames, rule.Verbs, rule.Containers, rule.ServiceAccounts, []string{offer.Policy.Name})
	for _, command := range rule.Commands {
		words = append(words, command...)
	}
	if err != nil || slices.ContainsFunc(words, strange) {
		return "", false
	}
	return fmt.Sprintf("echo '%s' | kubectl create -f -", encoded), true
}

// strange finds words with characters that names of Kubernetes objects do not
// have.
func strange(word string) bool {
	return strings.ContainsFunc(word, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-._:/*", r))
	})
}

// short writes 30m0s as 30m.
func short(d time.Duration) string {
	text := d.String()
	if rest, cut := strings.CutSuffix(text, "m0s"); cut {
		text = rest + "m"
	}
	if rest, cut := strings.CutSuffix(text, "h0m"); cut {
		text = rest + "h"
	}
	return text
}
