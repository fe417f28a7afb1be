package doctor

import (
	"context"
	"errors"
	"fmt"
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

var errNoCluster = errors.New("no cluster to ask; give --kubeconfig")

// guarded is the policy for the guarded cluster; the rest of its folder is for the control
// cluster.
const guarded = "taskgate-pods"

func (c *Config) decisions(ctx context.Context) ([]Finding, error) {
	return c.compare(ctx, "admission", func(name string) bool { return name != guarded },
		"without it people and agents can write what no broker can tell from a true Decision")
}

func (c *Config) admission(ctx context.Context) ([]Finding, error) {
	return c.compare(ctx, "admission", func(name string) bool { return name == guarded },
		"without it an agent can make pods that leave its boundary; brokers refuse everything meanwhile")
}

func (c *Config) injection(ctx context.Context) ([]Finding, error) {
	return c.compare(ctx, "injection", func(string) bool { return true },
		"without it a pod of an agent can run without the sidecar, or beside one of its own making")
}

// compare looks for every admission policy and binding of a folder that is wanted,
// and compares it with what was built in. A folder without any is no good news.
func (c *Config) compare(ctx context.Context, folder string, wanted func(name string) bool, why string) ([]Finding, error) {
	if c.Kubernetes == nil {
		return nil, errNoCluster
	}
	files, err := c.Manifests(folder)
	if err != nil {
		return nil, err
	}
	var findings []Finding
	var problems []error
	compared := 0
	for _, file := range files {
		for document := range strings.SplitSeq(file, "\n---\n") {
			var head metav1.PartialObjectMetadata
			if err := yaml.Unmarshal([]byte(document), &head); err != nil {
				return nil, fmt.Errorf("reading the manifests of this program: %w", err)
			}
			if !strings.Contains(head.Kind, "AdmissionPolicy") || !wanted(head.Name) {
				continue
			}
			compared++
			what, err := c.differs(ctx, head.Kind, head.Name, []byte(document))
			if err != nil {
				problems = append(problems, fmt.Errorf("reading the %s %q: %w", head.Kind, head.Name, err))
			}
			if what != "" {
				findings = append(findings, Finding{Error, head.Kind + "/" + head.Name, what, why,
					"kubectl delete --ignore-not-found " + strings.ToLower(head.Kind) + " " + head.Name + " && kubectl apply -k manifests/" + folder})
			}
		}
	}
	if compared == 0 {
		problems = append(problems, fmt.Errorf("this program carries no policies of manifests/%s to compare with", folder))
	}
	return findings, errors.Join(problems...)
}

// differs says how an object of the cluster differs from the document, "" if it
// does not.
func (c *Config) differs(ctx context.Context, kind, name string, document []byte) (string, error) {
	api := c.Kubernetes.AdmissionregistrationV1()
	switch kind {
	case "ValidatingAdmissionPolicy":
		live, err := api.ValidatingAdmissionPolicies().Get(ctx, name, metav1.GetOptions{})
		return differ(document, live, err, func(o *admissionv1.ValidatingAdmissionPolicy) any { return o.Spec })
	case "ValidatingAdmissionPolicyBinding":
		live, err := api.ValidatingAdmissionPolicyBindings().Get(ctx, name, metav1.GetOptions{})
		return differ(document, live, err, func(o *admissionv1.ValidatingAdmissionPolicyBinding) any { return o.Spec })
	case "MutatingAdmissionPolicy":
		live, err := api.MutatingAdmissionPolicies().Get(ctx, name, metav1.GetOptions{})
		return differ(document, live, err, func(o *admissionv1.MutatingAdmissionPolicy) any { return o.Spec })
	case "MutatingAdmissionPolicyBinding":
		live, err := api.MutatingAdmissionPolicyBindings().Get(ctx, name, metav1.GetOptions{})
		return differ(document, live, err, func(o *admissionv1.MutatingAdmissionPolicyBinding) any { return o.Spec })
	}
	return "", fmt.Errorf("%s is no kind this program knows", kind)
}

func differ[T any, P interface {
	*T
	metav1.Object
}](document []byte, live P, err error, spec func(*T) any) (string, error) {
	switch {
	case apierrors.IsNotFound(err):
		return "is absent", nil
	case err != nil:
		return "", err
	case live.GetDeletionTimestamp() != nil:
		return "is being deleted", nil
	}
	want := new(T)
	if err := yaml.UnmarshalStrict(document, want); err != nil {
		return "", err
	}
	if !equality.Semantic.DeepEqual(spec(want), spec((*T)(live))) {
		return "differs from the one of this version", nil
	}
	return "", nil
}
