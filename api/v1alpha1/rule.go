package v1alpha1

// Rule is an RBAC rule (rbac.authorization.k8s.io/v1 PolicyRule) with the
// namespaces it holds in. It matches like RBAC: the group exactly, the version
// not at all, a resource without its subresources. "*" must be written; an
// empty list matches nothing.
type Rule struct {
	// namespaces the rule holds in. "*" means every namespace and objects that
	// have none.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	// +listType=set
	Namespaces []string `json:"namespaces"`
	// apiGroups the resources belong to; "" is the core group.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	// +listType=set
	APIGroups []string `json:"apiGroups"`
	// resources in the plural, with a subresource as in pods/log. "*" means all
	// resources and subresources, "*/scale" that subresource of all.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	// +listType=set
	Resources []string `json:"resources"`
	// verbs are get, list, watch, create, update, patch, delete and
	// deletecollection. exec, attach and port-forward are create of their
	// subresource, whatever the client sends.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +listType=set
	Verbs []string `json:"verbs"`
	// resourceNames narrows the rule to objects of these names. Left out, the
	// rule holds for every name. As in RBAC, a call that names no object (create,
	// list without a metadata.name field selector) matches no such rule.
	// +optional
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	// +listType=set
	ResourceNames []string `json:"resourceNames,omitempty"`
	// values: Redacted shows the keys of Secrets, never their values.
	// +optional
	// +kubebuilder:validation:Enum=Redacted
	Values string `json:"values,omitempty"`
	// commands that exec may run, each as its list of arguments: exactly this list
	// or, if its last element is "*", every list that begins with the elements
	// before it ([sh, "*"] is anything sh can do). Left out, any. A rule with
	// commands gives neither attach nor port-forward.
	// +optional
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	// +listType=atomic
	Commands [][]string `json:"commands,omitempty"`
	// containers that exec and attach may enter; the call has to name one. Left
	// out, any. A rule with containers gives no port-forward.
	// +optional
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	// +listType=set
	Containers []string `json:"containers,omitempty"`
	// stdin: false refuses streams that can send input; a port-forward always can.
	// +optional
	Stdin *bool `json:"stdin,omitempty"`
	// tty: false refuses streams with a terminal.
	// +optional
	TTY *bool `json:"tty,omitempty"`
	// serviceAccounts that pods (and pod templates) created under this rule may
	// run as, besides default.
	// +optional
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	// +listType=set
	ServiceAccounts []string `json:"serviceAccounts,omitempty"`
}
