package cli

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/spf13/cobra"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"

	"github.com/taskgate/taskgate/api/v1alpha1"
)

func policyCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "policy", Short: "Work with AgentPolicies"}
	cmd.AddCommand(rbacCommand())
	return cmd
}

type rbacOptions struct {
	cluster
	file, account, namespace string
}

func rbacCommand() *cobra.Command {
	var o rbacOptions
	cmd := &cobra.Command{
		Use:   "rbac NAME",
		Short: "Print the RBAC an AgentPolicy needs in the guarded cluster",
		Long: `Rbac prints what Kubernetes itself has to allow so that grants under a policy can
be used: the right of the broker to act as the policy's group, and roles for
exactly what the policy allows, bound to that group. Review it, then apply it to
the guarded cluster:

  taskgate policy rbac shop | kubectl apply -f -

So Kubernetes RBAC stays a second fence: should the broker ever allow more, the
API server does not. With -f the policy is read from a file, before it is applied.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return o.run(cmd, args) },
	}
	o.cluster.flags(cmd)
	cmd.Flags().StringVarP(&o.file, "filename", "f", "", "`file` with the policy (- for standard input) instead of the cluster")
	cmd.Flags().StringVar(&o.account, "broker-account", "taskgate-broker", "service account of the broker")
	cmd.Flags().StringVar(&o.namespace, "broker-namespace", "taskgate-system", "namespace of the broker")
	return cmd
}

func (o *rbacOptions) run(cmd *cobra.Command, args []string) error {
	policy, err := o.policy(cmd, args)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	fmt.Fprintf(&out, "# RBAC for the AgentPolicy %q, generated from spec.allow. Review before applying.\n", policy.Name)
	for _, object := range o.objects(policy) {
		document, err := yaml.Marshal(object)
		if err != nil {
			return err
		}
		fmt.Fprintf(&out, "---\n%s", document)
	}
	_, err = out.WriteTo(cmd.OutOrStdout())
	return err
}

func (o *rbacOptions) policy(cmd *cobra.Command, args []string) (*v1alpha1.AgentPolicy, error) {
	name := ""
	if len(args) > 0 {
		name = args[0]
	}
	if o.file != "" {
		return policyFromFile(o.file, name, cmd.InOrStdin())
	}
	if name == "" {
		return nil, errors.New("which policy? Give its name, or -f FILE")
	}
	client, err := o.client()
	if err != nil {
		return nil, err
	}
	policy, err := get[v1alpha1.AgentPolicy](cmd.Context(), client, policies, name)
	return policy, explain(err, fmt.Sprintf("reading the AgentPolicy %q", name), roleOperator)
}

// policyFromFile finds the one AgentPolicy of a file, or the one of that name.
func policyFromFile(path, name string, stdin io.Reader) (*v1alpha1.AgentPolicy, error) {
	input := stdin
	if path != "-" {
		file, err := os.Open(path)
		if err != nil {
			return nil, fmt.Errorf("reading the policy: %w", err)
		}
		defer file.Close()
		input = file
	}
	var found *v1alpha1.AgentPolicy
	documents := utilyaml.NewYAMLReader(bufio.NewReader(input))
	for {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("reading the policy: %w", err)
		}
		policy := new(v1alpha1.AgentPolicy)
		if err := yaml.Unmarshal(document, policy); err != nil {
			return nil, fmt.Errorf("reading the policy: %w", err)
		}
		if policy.Kind != "AgentPolicy" || name != "" && policy.Name != name {
			continue
		}
		if found != nil {
			return nil, fmt.Errorf("%s holds several policies; name one of them", path)
		}
		found = policy
	}
	if found == nil {
		return nil, fmt.Errorf("%s holds no AgentPolicy %q", path, name)
	}
	return found, nil
}

const rbacVersion = "rbac.authorization.k8s.io/v1"

// objects are the roles and bindings of a policy, in a fixed order.
func (o *rbacOptions) objects(policy *v1alpha1.AgentPolicy) []any {
	name, group := "taskgate-policy-"+policy.Name, "taskgate:policy:"+policy.Name
	labels := map[string]string{"app.kubernetes.io/part-of": "taskgate", "taskgate.dev/policy": policy.Name}
	meta := func(name, namespace string) metav1.ObjectMeta {
		return metav1.ObjectMeta{Name: name, Namespace: namespace, Labels: labels}
	}
	broker := []rbacv1.Subject{{Kind: "ServiceAccount", Name: o.account, Namespace: o.namespace}}
	agents := []rbacv1.Subject{{Kind: "Group", APIGroup: rbacv1.GroupName, Name: group}}
	clusterRole := func(name string, rules []rbacv1.PolicyRule, to []rbacv1.Subject) []any {
		return []any{
			&rbacv1.ClusterRole{TypeMeta: metav1.TypeMeta{APIVersion: rbacVersion, Kind: "ClusterRole"}, ObjectMeta: meta(name, ""), Rules: rules},
			&rbacv1.ClusterRoleBinding{
				TypeMeta: metav1.TypeMeta{APIVersion: rbacVersion, Kind: "ClusterRoleBinding"}, ObjectMeta: meta(name, ""),
				RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: name}, Subjects: to,
			},
		}
	}
	objects := clusterRole(name+"-impersonate", []rbacv1.PolicyRule{
		{APIGroups: []string{""}, Resources: []string{"groups"}, ResourceNames: []string{group}, Verbs: []string{"impersonate"}},
	}, broker)
	for _, namespace := range namespacesOf(policy) {
		rules := upstreamRules(policy, namespace)
		if namespace == "*" {
			objects = append(objects, clusterRole(name, rules, agents)...)
			continue
		}
		objects = append(objects,
			&rbacv1.Role{TypeMeta: metav1.TypeMeta{APIVersion: rbacVersion, Kind: "Role"}, ObjectMeta: meta(name, namespace), Rules: rules},
			&rbacv1.RoleBinding{
				TypeMeta: metav1.TypeMeta{APIVersion: rbacVersion, Kind: "RoleBinding"}, ObjectMeta: meta(name, namespace),
				RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: name}, Subjects: agents,
			})
	}
	return objects
}

func namespacesOf(policy *v1alpha1.AgentPolicy) []string {
	var namespaces []string
	for _, rule := range policy.Spec.Allow {
		namespaces = append(namespaces, rule.Namespaces...)
	}
	slices.Sort(namespaces)
	return slices.DeleteFunc(slices.Compact(namespaces), func(n string) bool { return n == "" })
}

// upstreamRules are the policy's rules for one namespace as RBAC writes them.
// The wildcard of verbs is written out: RBAC's own would include bind, escalate
// and impersonate.
func upstreamRules(policy *v1alpha1.AgentPolicy, namespace string) []rbacv1.PolicyRule {
	var rules []rbacv1.PolicyRule
	looks := false
	for _, rule := range policy.Spec.Allow {
		if !slices.Contains(rule.Namespaces, namespace) {
			continue
		}
		verbs := rule.Verbs
		if slices.Contains(verbs, "*") {
			verbs = []string{"get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"}
		}
		rules = append(rules, rbacv1.PolicyRule{APIGroups: rule.APIGroups, Resources: rule.Resources, ResourceNames: rule.ResourceNames, Verbs: verbs})
		if len(rule.ServiceAccounts) > 0 {
			rules = append(rules, rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"serviceaccounts"}, ResourceNames: rule.ServiceAccounts, Verbs: []string{"use"}})
		}
		if streams := streamsOf(rule.Resources); len(streams) > 0 && slices.Contains(verbs, "create") {
			// Over WebSocket the API server takes the opening of a stream for a get
			// (KEP-4006), and since 1.35 asks for create too.
			rules = append(rules, rbacv1.PolicyRule{APIGroups: []string{""}, Resources: streams, ResourceNames: rule.ResourceNames, Verbs: []string{"get"}})
		}
		looks = looks || slices.ContainsFunc(rule.Resources, opensPod)
	}
	if looks {
		// The broker reads a pod before it opens it, to see whether it carries the
		// sidecar.
		rules = append(rules, rbacv1.PolicyRule{APIGroups: []string{""}, Resources: []string{"pods"}, Verbs: []string{"get"}})
	}
	return rules
}

func opensPod(resource string) bool {
	return slices.Contains([]string{"*", "pods/log", "*/log", "pods/ephemeralcontainers", "*/ephemeralcontainers"}, resource) || len(streamsOf([]string{resource})) > 0
}

// streamsOf are the streams that resources of a rule stand for.
func streamsOf(resources []string) []string {
	var streams []string
	for _, name := range []string{"exec", "attach", "portforward"} {
		if slices.Contains(resources, "*") || slices.Contains(resources, "pods/"+name) || slices.Contains(resources, "*/"+name) {
			streams = append(streams, "pods/"+name)
		}
	}
	return streams
}
