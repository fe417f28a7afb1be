package e2e_test

import (
	"fmt"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"testing"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Parity: what is granted works through the boundary as it does against the API
// server itself. Every test does the same thing twice, as the administrator and
// as an agent who is granted everything, each in a namespace of its own, and
// compares all there is to see.

// side is one of the two ways to the cluster.
type side struct {
	*stack
	name       string // direct or agent
	kubeconfig string
	namespace  string
	config     *rest.Config
}

var parityAgent struct {
	once  sync.Once
	agent *agent
}

// granted is an agent who may do all that the never-list leaves.
func granted(t testing.TB, s *stack) *agent {
	t.Helper()
	parityAgent.once.Do(func() {
		a, keep := s.newAgent(t, "parity"), &keeper{TB: t}
		s.policy(keep, "parity", a, "grant: {maxTTL: 4h, approval: None}\nwaive: [namespace-delete, deletecollection, secret-values, rbac]", everything)
		s.grant(keep, "parity", "parity", a, "4h", everything)
		parityAgent.agent = a
	})
	if parityAgent.agent == nil {
		t.Fatal("the agent of the parity tests could not be made")
	}
	return parityAgent.agent
}

// sides makes both ways, and a namespace for each. The names of the namespaces
// are equally long, so that columns of tables are equally wide.
func sides(t testing.TB, name string) [2]*side {
	t.Helper()
	s := sharedStack(t)
	a := granted(t, s)
	return [2]*side{
		s.side(t, "direct", s.Environment().AdminKubeconfig, "par-d-"+name),
		s.side(t, "agent", a.Kubeconfig, "par-a-"+name),
	}
}

func (s *stack) side(t testing.TB, name, kubeconfig, namespace string) *side {
	t.Helper()
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	config.QPS = -1 // the client's own limit would only make the test slow
	s.admin(t, "create", "namespace", namespace)
	t.Cleanup(func() { s.kubectlAfter(t, "delete", "namespace", namespace, "--wait=false") })
	return &side{s, name, kubeconfig, namespace, config}
}

// shell lets a line of shell use kubectl as a person on this side would.
const shell = `
kubeconfig=$1 ns=$2
kubectl() { "$TASKGATE_BIN/kubectl" --kubeconfig "$kubeconfig" -n "$ns" "$@"; }
`

// shell makes a line of shell a command of this side, in an empty folder.
func (s *side) shell(t testing.TB, line string) *exec.Cmd {
	command := exec.CommandContext(t.Context(), "bash", "-c", "TASKGATE_BIN="+s.Environment().Programs+shell+line, "parity", s.kubeconfig, s.namespace)
	command.Dir = t.TempDir()
	command.Env = append(command.Environ(), "HOME="+s.Directory(), "KUBECONFIG=", "KUBE_EDITOR=true")
	return command
}

// step is a line of shell with kubectl in it, and what both sides have to make
// of it, so that two failures or two silences are no parity.
type step struct {
	run  string
	says string // a part of what is printed, or of the error
	code int
}

// play runs the steps one after the other and compares the sides at each.
func play(t *testing.T, pair [2]*side, steps []step) {
	t.Helper()
	for _, step := range steps {
		results := both(pair, func(s *side) result { return s.runStep(t, step.run) })
		var seen [2]string
		for i, side := range pair {
			got := results[i]
			if got.code != step.code || !strings.Contains(got.stdout+got.stderr, step.says) {
				t.Errorf("%s: %s\nwant exit %d and %q, got %s", side.name, step.run, step.code, step.says, got)
			}
			seen[i] = normal(got.String())
		}
		same(t, step.run, seen)
	}
}

// both does something on both sides at the same time.
func both[T any](pair [2]*side, do func(*side) T) [2]T {
	var got [2]T
	var group sync.WaitGroup
	for i, side := range pair {
		group.Go(func() { got[i] = do(side) })
	}
	group.Wait()
	return got
}

// runStep does not end the test, so that it can be used in a goroutine. What
// could not be started is an exit code no program has.
func (s *side) runStep(t testing.TB, line string) result {
	t.Helper()
	command := s.shell(t, line)
	var stdout, stderr strings.Builder
	command.Stdout, command.Stderr = &stdout, &stderr
	if err := command.Run(); err != nil && command.ProcessState == nil {
		return result{"", err.Error(), -2}
	}
	return result{s.anyNamespace(stdout.String()), s.anyNamespace(stderr.String()), command.ProcessState.ExitCode()}
}

// anyNamespace takes out of a text on which side it was printed.
func (s *side) anyNamespace(text string) string {
	text = strings.ReplaceAll(text, s.namespace, "NAMESPACE")
	return strings.ReplaceAll(text, s.config.Host, "SERVER")
}

// differing are the things that differ between any two runs, and nothing else.
var differing = []struct {
	pattern *regexp.Regexp
	instead string
}{
	{regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`), "UID"},
	{regexp.MustCompile(`(?i)(resource ?version"?[:=] *"?)[0-9]+`), "${1}VERSION"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z`), "TIME"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+ \+\d{4}`), "TIME"}, // kubectl diff
	{regexp.MustCompile(`\b([IWE])\d{4} \d\d:\d\d:\d\d\.\d+ +\d+`), "$1 TIME"},  // klog
	{regexp.MustCompile(`[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} [\d:]{8} [+-]\d{4}`), "TIME"},
	{regexp.MustCompile(`("?continue"?: ?)"?[A-Za-z0-9_-]{20,}"?`), "${1}TOKEN"},
	{regexp.MustCompile(`\b10\.\d+\.\d+\.\d+\b`), "ADDRESS"},
	{regexp.MustCompile(`<invalid>|\b(\d+[smhd])+\b( ago)?`), "AGE"},
	{regexp.MustCompile(`(LIVE|MERGED)-\d+`), "$1"}, // folders of kubectl diff
	{regexp.MustCompile(`(kube-api-access-)[a-z0-9]{5}`), "${1}MOUNT"},
	{regexp.MustCompile(`(web-[0-9a-f]{7,10}-)[bcdfghjklmnpqrstvwxz2456789]{5}\b`), "${1}POD"}, // pods of a deployment
	{regexp.MustCompile(`(\S) {2,}`), "$1 "},                                                   // an age has made a column wider
	{regexp.MustCompile(`(?m) +$`), ""},
	{regexp.MustCompile(`-{3,}`), "---"},
}

// normal takes out of a text what differs between any two runs.
func normal(text string) string {
	for _, d := range differing {
		text = d.pattern.ReplaceAllString(text, d.instead)
	}
	return text
}

// same fails the test at the first line in which the sides differ.
func same(t *testing.T, what string, seen [2]string) {
	t.Helper()
	if seen[0] == seen[1] {
		return
	}
	direct, agent := strings.Split(seen[0], "\n"), strings.Split(seen[1], "\n")
	for i := range max(len(direct), len(agent)) {
		if lineAt(direct, i) != lineAt(agent, i) {
			t.Errorf("%s\ndiffers in line %d:\ndirect: %s\nagent:  %s\n(%d and %d lines in all)", what, i+1, lineAt(direct, i), lineAt(agent, i), len(direct), len(agent))
			return
		}
	}
}

func lineAt(lines []string, i int) string {
	if i < len(lines) {
		return fmt.Sprintf("%.600q", lines[i])
	}
	return "(nothing)"
}
