package control

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"
)

// guards watches over admission policies of one cluster. In the guarded cluster
// they judge what the broker cannot: the result of a patch, and templates it does
// not know. In the control cluster they make Decisions true.
type guards struct {
	cluster  string // guarded or control
	client   kubernetes.Interface
	policies []admissionv1.ValidatingAdmissionPolicy
	bindings []admissionv1.ValidatingAdmissionPolicyBinding

	flight singleflight.Group

	mu      sync.Mutex
	good    time.Time // when all were last seen as they should be
	problem error
}

const (
	guardEvery = 5 * time.Second
	// guardGrace is how long the guards may be out of sight, as during a restart
	// of the API server, before they count as absent.
	guardGrace = 30 * time.Second
)

// newGuards reads what should be there from manifests.
func newGuards(config *rest.Config, cluster string, sources ...string) (*guards, error) {
	own := rest.CopyConfig(config)
	own.QPS, own.Burst = 200, 400 // as newClient
	client, err := kubernetes.NewForConfig(own)
	if err != nil {
		return nil, fmt.Errorf("making a client for the %s cluster: %w", cluster, err)
	}
	g := &guards{cluster: cluster, client: client, problem: errors.New("the admission policies have not been looked at yet")}
	for _, source := range sources {
		for document := range strings.SplitSeq(source, "\n---\n") {
			if err := g.add([]byte(document)); err != nil {
				return nil, fmt.Errorf("reading the built-in admission policies: %w", err)
			}
		}
	}
	if len(g.policies) != len(sources) || len(g.bindings) != len(sources) {
		return nil, errors.New("the built-in admission policies are incomplete")
	}
	return g, nil
}

// add takes one document over. Kinds it does not know are none to watch over.
func (g *guards) add(document []byte) error {
	var kind metav1.TypeMeta
	if err := yaml.Unmarshal(document, &kind); err != nil {
		return err
	}
	switch kind.Kind {
	case "ValidatingAdmissionPolicy":
		var policy admissionv1.ValidatingAdmissionPolicy
		err := yaml.UnmarshalStrict(document, &policy)
		g.policies = append(g.policies, policy)
		return err
	case "ValidatingAdmissionPolicyBinding":
		var binding admissionv1.ValidatingAdmissionPolicyBinding
		err := yaml.UnmarshalStrict(document, &binding)
		g.bindings = append(g.bindings, binding)
		return err
	}
	return nil
}

func (g *guards) run(ctx context.Context) {
	g.look(ctx)
	every(ctx, guardEvery, func() { g.look(ctx) })
}

// look compares every policy and binding with what it should be. An API server
// that does not answer leaves the last finding in force for guardGrace.
func (g *guards) look(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, guardEvery)
	defer cancel()
	seen := time.Now()
	err := g.compare(ctx)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.problem = err
	var wrong *guardError
	switch {
	case err == nil:
		g.good = seen
	case errors.As(err, &wrong):
		g.good = time.Time{}
	}
}

// atOnce compares now. Callers at the same moment share one look, which may have
// begun a moment before some of them asked; an API server takes longer than that to
// notice a change itself.
func (g *guards) atOnce(ctx context.Context) error {
	_, err, _ := g.flight.Do("", func() (any, error) {
		// One caller's end must not be the others' error.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), guardEvery)
		defer cancel()
		return nil, g.compare(ctx)
	})
	return err
}

// guardError is a guard that is known to be absent or changed.
type guardError struct{ cluster, text string }

func (e *guardError) Error() string {
	return fmt.Sprintf("%s; in the %s cluster, delete it if it is there and apply manifests/base of this version (kubectl apply alone keeps what was added to a list)", e.text, e.cluster)
}

func (g *guards) wrong(format string, args ...any) error {
	return &guardError{g.cluster, fmt.Sprintf(format, args...)}
}

// compare returns what is absent or changed, a *guardError, or any other error if
// that cannot be found out.
func (g *guards) compare(ctx context.Context) error {
	registration := g.client.AdmissionregistrationV1()
	for i := range g.policies {
		want := &g.policies[i]
		live, err := registration.ValidatingAdmissionPolicies().Get(ctx, want.Name, metav1.GetOptions{})
		if err != nil {
			return g.absent("ValidatingAdmissionPolicy", want.Name, err)
		}
		if live.DeletionTimestamp != nil || !equality.Semantic.DeepEqual(live.Spec, want.Spec) {
			return g.wrong("the ValidatingAdmissionPolicy %q differs from the one of this version", want.Name)
		}
	}
	for i := range g.bindings {
		want := &g.bindings[i]
		live, err := registration.ValidatingAdmissionPolicyBindings().Get(ctx, want.Name, metav1.GetOptions{})
		if err != nil {
			return g.absent("ValidatingAdmissionPolicyBinding", want.Name, err)
		}
		if live.DeletionTimestamp != nil || !equality.Semantic.DeepEqual(live.Spec, want.Spec) {
			return g.wrong("the ValidatingAdmissionPolicyBinding %q differs from the one of this version", want.Name)
		}
	}
	return nil
}

func (g *guards) absent(kind, name string, err error) error {
	if apierrors.IsNotFound(err) {
		return g.wrong("the %s %q is absent", kind, name)
	}
	return fmt.Errorf("reading the %s %q: %w", kind, name, err)
}

func (g *guards) ready(now time.Time) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if now.Sub(g.good) < guardGrace {
		return nil
	}
	return g.problem
}

// missingImpersonation asks the guarded cluster whether the broker may act for a
// policy there, and returns what is missing, "" if nothing is.
func (g *guards) missingImpersonation(ctx context.Context, policy string) (string, error) {
	group := "taskgate:policy:" + policy
	review, err := g.client.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, &authorizationv1.SelfSubjectAccessReview{
		Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &authorizationv1.ResourceAttributes{
			Verb: "impersonate", Resource: "groups", Name: group,
		}},
	}, metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("asking whether the broker may impersonate %s: %w", group, err)
	}
	if review.Status.Allowed {
		return "", nil
	}
	return fmt.Sprintf("the broker may not impersonate the group %s; review and apply the output of: taskgate policy rbac %s; "+
		`the missing rule is {apiGroups: [""], resources: [groups], resourceNames: [%q], verbs: [impersonate]}`, group, policy, group), nil
}
