package request

import "github.com/taskgate/taskgate/authz"

// podSpecs are the places of pod specs in the built-in kinds. What custom
// controllers make of their own templates is judged by the admission policies of
// the cluster, as is the result of every patch.
func podSpecPath(group, resource string) []string {
	switch group + "/" + resource {
	case "/pods":
		return []string{"spec"}
	case "/podtemplates":
		return []string{"template", "spec"}
	case "/replicationcontrollers", "apps/deployments", "apps/replicasets", "apps/statefulsets", "apps/daemonsets", "batch/jobs":
		return []string{"spec", "template", "spec"}
	case "batch/cronjobs":
		return []string{"spec", "jobTemplate", "spec", "template", "spec"}
	}
	return nil
}

// judgePod notes in the call what a pod, or the template of one, in the body
// would be allowed to do to its node, and whom it would run as. Whom an existing
// object runs as is not known here, so that is noted for creations only.
func judgePod(call *authz.Call, object map[string]any) {
	path := podSpecPath(call.Group, call.Resource)
	if path == nil || (call.Subresource != "" && call.Subresource != "ephemeralcontainers") {
		return
	}
	spec := object
	for _, field := range path {
		spec, _ = spec[field].(map[string]any)
	}
	call.HostAccess = hostAccess(spec)
	if call.Verb == authz.Create {
		call.ServiceAccount, _ = spec["serviceAccountName"].(string)
		if old, _ := spec["serviceAccount"].(string); call.ServiceAccount == "" { // the deprecated name of the field
			call.ServiceAccount = old
		}
	}
}

func hostAccess(spec map[string]any) string {
	for _, field := range []string{"hostNetwork", "hostPID", "hostIPC"} {
		if spec[field] == true {
			return field
		}
	}
	for _, volume := range objects(spec["volumes"]) {
		if volume["hostPath"] != nil {
			return "hostPath"
		}
	}
	if security, _ := spec["securityContext"].(map[string]any); windowsHost(security) {
		return "hostProcess"
	}
	for _, list := range []string{"containers", "initContainers", "ephemeralContainers"} {
		for _, container := range objects(spec[list]) {
			security, _ := container["securityContext"].(map[string]any)
			if security["privileged"] == true {
				return "privileged"
			}
			if windowsHost(security) {
				return "hostProcess"
			}
		}
	}
	return ""
}

func windowsHost(security map[string]any) bool {
	windows, _ := security["windowsOptions"].(map[string]any)
	return windows["hostProcess"] == true
}

// objects are the elements of a list that are objects.
func objects(value any) []map[string]any {
	list, _ := value.([]any)
	found := make([]map[string]any, 0, len(list))
	for _, element := range list {
		if object, ok := element.(map[string]any); ok {
			found = append(found, object)
		}
	}
	return found
}
