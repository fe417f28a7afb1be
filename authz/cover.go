package authz

import (
	"fmt"
	"slices"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/component-helpers/auth/rbac/validation"
)

// Missing says what of the wanted rules the allowed ones do not cover, one line
// each, fit to be shown to a person. Nil means that all is covered.
//
// Namespaces are compared one by one; within a namespace RBAC's own comparison
// decides. A constraint (values, commands, containers, stdin, tty, service accounts) of an
// allowed rule has to be in the wanted rule too.
func Missing(allowed, wanted []Rule) []string {
	var missing []string
	for i := range wanted {
		for _, namespace := range wanted[i].Namespaces {
			_, uncovered := validation.Covers(usable(allowed, &wanted[i], namespace), []rbacv1.PolicyRule{toRBAC(&wanted[i])})
			for _, rule := range uncovered {
				missing = append(missing, describe(namespace, rule))
			}
		}
	}
	return missing
}

// usable are the allowed rules that hold in the namespace and constrain no more
// than the wanted rule does itself.
func usable(allowed []Rule, wanted *Rule, namespace string) []rbacv1.PolicyRule {
	var rules []rbacv1.PolicyRule
	for i := range allowed {
		a := &allowed[i]
		if (slices.Contains(a.Namespaces, namespace) || slices.Contains(a.Namespaces, Everything)) && a.admits(wanted) {
			rules = append(rules, toRBAC(a))
		}
	}
	return rules
}

// admits reports whether the constraints of w are at least those of r.
func (r *Rule) admits(w *Rule) bool {
	if (r.Redacted && !w.Redacted) || (r.NoStdin && !w.NoStdin) || (r.NoTTY && !w.NoTTY) {
		return false
	}
	for _, account := range w.ServiceAccounts {
		if !slices.Contains(r.ServiceAccounts, account) {
			return false
		}
	}
	if r.Containers != nil && (w.Containers == nil || slices.ContainsFunc(w.Containers, func(name string) bool { return !slices.Contains(r.Containers, name) })) {
		return false
	}
	if r.Commands == nil {
		return true
	}
	if w.Commands == nil {
		return false
	}
	for _, command := range w.Commands {
		nothing := len(command) == 0
		if !nothing && !slices.ContainsFunc(r.Commands, func(allowed []string) bool { return runs(allowed, command) }) {
			return false
		}
	}
	return true
}

func toRBAC(r *Rule) rbacv1.PolicyRule {
	return rbacv1.PolicyRule{Verbs: r.Verbs, APIGroups: r.APIGroups, Resources: r.Resources, ResourceNames: r.ResourceNames}
}

func describe(namespace string, rule rbacv1.PolicyRule) string {
	resource := strings.Join(rule.Resources, ",")
	if group := strings.Join(rule.APIGroups, ","); group != "" {
		resource += "." + group
	}
	text := fmt.Sprintf("%s %s in namespace %s", strings.Join(rule.Verbs, ","), resource, namespace)
	if len(rule.ResourceNames) > 0 {
		text += " named " + strings.Join(rule.ResourceNames, ",")
	}
	return text
}
