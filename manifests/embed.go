// Package manifests holds what is applied to the clusters. The broker carries
// the admission policies it leans on, to compare them with what is there.
package manifests

import _ "embed"

// AdmissionPods is the policy about pods and its binding, in YAML.
//
//go:embed admission/pods.yaml
var AdmissionPods string

// AdmissionDecisions, AdmissionApprovals and AdmissionTaskGrants make true, in the
// control cluster, what Decisions say and who wrote what.
//
//go:embed admission/decisions.yaml
var AdmissionDecisions string

//go:embed admission/approvals.yaml
var AdmissionApprovals string

//go:embed admission/taskgrants.yaml
var AdmissionTaskGrants string

// Inject, Verify and Keep are the policies about the pods of agents, each with its
// binding: who gets a sidecar, what such a pod has to look like, and that it stays so.
// They are the same in every installation; what differs is in a ConfigMap.
//
//go:embed injection/inject.yaml
var Inject string

//go:embed injection/verify.yaml
var Verify string

//go:embed injection/keep.yaml
var Keep string
