// Package manifests holds what is applied to the clusters. The broker carries
// the admission policies it leans on, to compare them with what is there.
package manifests

import _ "embed"

// AdmissionPods is the policy about pods and its binding, in YAML.
//
//go:embed admission/pods.yaml
var AdmissionPods string
