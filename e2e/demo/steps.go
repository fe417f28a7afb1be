package demo

import (
	"path/filepath"
	"slices"
	"time"

	"github.com/taskgate/taskgate/e2e/testbed"
)

// steps is the whole play. Without a node there is no pod to open a stream to.
func steps(node string) []step {
	play := []step{
		theTask(),
		inside(),
		outside(),
		someoneElse(),
		people(),
	}
	if node != testbed.NoNode {
		play = append(play, inPod())
	}
	return append(play,
		theEnd(),
		outOfReach(),
		theProof(),
	)
}

const title = "taskgate: give an AI agent a Kubernetes task, not a Kubernetes credential"

func opening() []string {
	return []string{
		"A line after a prompt such as alpha$ is a real command of whoever the prompt names, with its real answer.",
		"All of it is real but for the node, which only pretends to run pods, and, unless --spiffe=spire, the platform that says who is who.",
	}
}

func closing() []string {
	return []string{
		"Alpha never held a credential for the cluster. Each call was tied to its certificate, measured against its task and put on record before the answer; when the task ended, so did the access; and the record stood up to the agent, a thief and an administrator.",
		"Next: make dev leaves all this running, for you to try. README.md says how to go on from there. The YAML is in e2e/demo/example.",
	}
}

// values are what the command lines of the steps may name from the start.
func values(bed *testbed.Testbed) map[string]string {
	e := bed.Environment()
	return map[string]string{
		"api":   bed.Admin().Host,
		"token": filepath.Join(filepath.Dir(e.Alpha.Kubeconfig), "serviceaccount", "token"),
		"store": e.Store.Endpoint,
	}
}

// patience is how long the play waits for what comes by itself, on a machine
// that may be busy.
const patience = 30 * time.Second

// setScene makes the shop, before the play begins. Without a node its pods never
// run.
func setScene(node string) []act {
	state := "condition=Ready"
	if node == testbed.NoNode {
		state = "create"
	}
	return []act{
		{who: operator, types: "kubectl apply -f shop.yaml", wants: works("namespace/shop")},
		{who: operator, types: "kubectl -n shop wait --for=create pod/web-0 pod/web-1 --timeout=30s", wants: works("web-0 condition met", "web-1 condition met")},
		{who: operator, types: "kubectl -n shop wait --for=" + state + " pod/web-0 pod/web-1 --timeout=30s", wants: works("web-0 condition met", "web-1 condition met")},
	}
}

// giveTask is what an operator does so that an agent can begin.
func giveTask() []act {
	return []act{
		{
			why:   "An operator lets Kubernetes serve calls under the policy \"shop\": exactly what the policy allows, no more.",
			who:   operator,
			types: "taskgate policy rbac shop -f policy.yaml | kubectl apply -f -",
			wants: works("role.rbac.authorization.k8s.io/taskgate-policy-shop", "clusterrole.rbac.authorization.k8s.io/taskgate-policy-shop-impersonate"),
			shows: nothing,
		},
		{
			why:   "Then the policy, which is a ceiling, and under it a grant: one agent, one task, half an hour.",
			who:   operator,
			types: "kubectl apply -f policy.yaml -f grant.yaml && kubectl wait --for=condition=Active tg/inc-4711",
			wants: works("agentpolicy.taskgate.dev/shop", "taskgrant.taskgate.dev/inc-4711 condition met"),
			shows: only("taskgrant"), patience: patience, // a cluster takes seconds to know new kinds everywhere
		},
	}
}

func theTask() step {
	return step{"An agent without a credential is given a task", slices.Concat(
		[]act{
			{
				why:   "A program named alpha, say an AI agent, has kubectl. Its kubeconfig leads to:",
				who:   alpha,
				types: `kubectl config view -o jsonpath='{.clusters[0].cluster.server}{"\n"}{.users[0].user}{"\n"}'`,
				wants: []want{exits(0), matches(`^https://127\.0\.0\.1:\d+\n\{"tokenFile":"[^"]*"\}\n$`)},
				holds: "an address on its own machine, where its sidecar listens, and a local token",
			},
			{
				why:   "It takes the token to the real API server, around the sidecar.",
				who:   alpha,
				types: `kubectl --kubeconfig=/dev/null --server={api} --insecure-skip-tls-verify --token="$(cat {token})" get --raw=/api/v1/pods`,
				wants: []want{fails(), says("Unauthorized")},
				holds: "there the token is worth nothing",
			},
		},
		giveTask(),
		[]act{{
			who:   operator,
			types: "taskgate grants",
			wants: []want{exits(0), matches(`(?m)^inc-4711 .*/sa/alpha .*Active.* get,list,watch `)},
			shows: table,
			holds: "the task INC-4711 is open for alpha, to read in the namespace shop",
		}},
	)}
}

func inside() step {
	return step{"Inside the task, plain kubectl works", []act{{
		why: "kubectl talks to the sidecar. The sidecar shows the broker alpha's certificate, which the platform hands out (this is " +
			"what SPIFFE does) and no program can choose. The broker asks the cluster.",
		who:      alpha,
		types:    "kubectl -n shop get pods",
		wants:    []want{exits(0), matches(`(?m)^web-0 `), matches(`(?m)^web-1 `)},
		patience: patience, // the API server may need a second to know the new roles
		holds:    "alpha reads what its task lets it read",
	}}}
}

func outside() step {
	return step{"Outside the task, alpha is refused and told why", []act{
		{
			who:   alpha,
			types: "kubectl -n shop delete pod web-0",
			wants: append(refused("OutsideGrant"), says("delete pods \"web-0\""), says("Next: ")),
			holds: "the answer names what was missing, and what to do next",
		},
		{
			who:   alpha,
			types: "kubectl -n shop get secret database",
			wants: append(refused("OutsideGrant"), says("get secrets \"database\"")),
			shows: what,
			holds: "secrets are not part of the task",
		},
		{
			why:   "The API server keeps a log of its own. Has it seen the delete, or the secret?",
			who:   operator,
			types: `grep -cE '"requestURI":"/api/v1/namespaces/shop/(pods/web-0|secrets)' "$TASKGATE_AUDIT_LOG"`,
			wants: []want{exits(1), matches(`^0\n$`)},
			holds: "no: what is refused never reaches the cluster",
		},
	}}
}

func someoneElse() step {
	return step{"Another agent has no part in it", []act{{
		why:   "beta has a sidecar and a certificate of its own. The policy covers it too, but nobody gave it a task.",
		who:   beta,
		types: "kubectl -n shop get pods",
		wants: append(refused("NoGrant"), says("list pods")),
		shows: what,
		holds: "a grant is for one agent, by its certificate",
	}}}
}
