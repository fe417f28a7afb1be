package e2e_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

const redactSpace = "redact"

// redactRule lets an agent do everything with Secrets but see their values.
const redactRule = `{namespaces: [redact], apiGroups: [""], resources: [secrets], verbs: ["*"], values: Redacted}`

// redactMany is the number of Secrets in a list that is longer than any page.
const redactMany = 1200

// redactRig is an agent who may not see values, and all that it was shown.
type redactRig struct {
	*stack
	agent  *agent
	config *rest.Config

	mu       sync.Mutex
	shown    map[string]string // by what was asked
	canaries []string
}

func newRedactRig(t *testing.T) *redactRig {
	t.Helper()
	s := sharedStack(t)
	rig := &redactRig{stack: s, agent: s.newAgent(t, "redact"), shown: map[string]string{}}
	s.admin(t, "create", "namespace", redactSpace)
	t.Cleanup(func() { s.kubectlAfter(t, "delete", "namespace", redactSpace, "--wait=false") })
	s.policy(t, "redact", rig.agent, "grant: {maxTTL: 4h, approval: None}\nwaive: [deletecollection]", redactRule)
	s.grant(t, "redact", "redact", rig.agent, "4h", redactRule)
	config, err := clientcmd.BuildConfigFromFlags("", rig.agent.Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	config.QPS, config.WarningHandler = -1, rest.NoWarnings{}
	rig.config = config
	return rig
}

// canary makes up a value that must not be seen.
func (r *redactRig) canary(what string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	value := fmt.Sprintf("Canary%s%04d.of.a.Secret", what, len(r.canaries))
	r.canaries = append(r.canaries, value)
	return value
}

// tell keeps what the agent was shown.
func (r *redactRig) tell(what string, shown any, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.shown[what] += fmt.Sprintf("%+v %v\n", shown, err)
}

// kubectl runs kubectl as the agent, and keeps what it prints.
func (r *redactRig) kubectl(t *testing.T, stdin string, arguments ...string) result {
	t.Helper()
	got := r.command(t, stdin, r.Environment().Programs+"/kubectl", append([]string{"--kubeconfig", r.agent.Kubeconfig, "--namespace", redactSpace}, arguments...)...)
	r.tell("kubectl "+strings.Join(arguments, " "), got, nil)
	return got
}

// seed has the administrator apply a Secret, so that kubectl keeps a copy of it
// in an annotation.
func (r *redactRig) seed(t *testing.T, name string) {
	t.Helper()
	r.apply(t, fmt.Sprintf("apiVersion: v1\nkind: Secret\nmetadata: {name: %s, namespace: %s, labels: {app: shop}, annotations: {note: %s}}\nstringData: {password: %s, other: %s}\n",
		name, redactSpace, r.canary("note"), r.canary("pass"), r.canary("other")))
}

// many makes a large list.
func (r *redactRig) many(t *testing.T) {
	t.Helper()
	value := bytes.Repeat([]byte(r.canary("many")+" "), 100)
	var group sync.WaitGroup
	for worker := range 8 {
		group.Go(func() {
			for i := worker; i < redactMany; i += 8 {
				object := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("many-%04d", i), Labels: map[string]string{"many": "true"}}, Data: map[string][]byte{"k": value}}
				if _, err := r.kube.CoreV1().Secrets(redactSpace).Create(t.Context(), object, metav1.CreateOptions{}); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	group.Wait()
}

// really is what the administrator sees.
func (r *redactRig) really(t *testing.T, name string) *corev1.Secret {
	t.Helper()
	secret, err := r.kube.CoreV1().Secrets(redactSpace).Get(context.WithoutCancel(t.Context()), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return secret
}

// client is a typed client with a codec.
func (r *redactRig) client(t *testing.T, contentType string) kubernetes.Interface {
	t.Helper()
	config := rest.CopyConfig(r.config)
	config.ContentType, config.AcceptContentTypes = contentType, contentType
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// noCanary looks for the values in a text, as they are and as data spells them.
func (r *redactRig) noCanary(t *testing.T, where, text string) {
	t.Helper()
	for _, canary := range r.canaries {
		for _, form := range []string{canary, base64.StdEncoding.EncodeToString([]byte(canary)), fmt.Sprint([]byte(canary))} {
			form = strings.TrimRight(form, "=[]")
			if at := strings.Index(text, form); at >= 0 {
				t.Errorf("%s shows %s: …%.200q", where, canary, text[max(0, at-100):])
			}
		}
	}
}
