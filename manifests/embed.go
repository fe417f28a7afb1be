// Package manifests holds what is applied to the clusters. The broker carries
// the admission policies it leans on, to compare them with what is there.
package manifests

import (
	"embed"
	"io/fs"
)

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

//go:embed admission injection
var policies embed.FS

// Folder is every YAML file of one of the folders of admission policies, admission
// (what brokers lean on) or injection (about the pods of agents), in the order of
// their names. A folder that is not there has none.
func Folder(name string) ([]string, error) {
	paths, err := fs.Glob(policies, name+"/*.yaml")
	if err != nil {
		return nil, err
	}
	var files []string
	for _, path := range paths {
		content, err := policies.ReadFile(path)
		if err != nil {
			return nil, err
		}
		files = append(files, string(content))
	}
	return files, nil
}
