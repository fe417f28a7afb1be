package registration

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// jsonEntry is an entry as spire-server entry create -data reads it (SPIRE,
// proto/spire/common RegistrationEntries).
type jsonEntry struct {
	EntryID       string         `json:"entry_id"`
	SPIFFEID      string         `json:"spiffe_id"`
	ParentID      string         `json:"parent_id"`
	Selectors     []jsonSelector `json:"selectors"`
	TTL           int            `json:"x509_svid_ttl,omitempty"` // seconds
	Hint          string         `json:"hint"`
	FederatesWith []string       `json:"federates_with,omitempty"`
}

type jsonSelector struct {
	Type  string `json:"type"`
	Value string `json:"value"`
}

// JSON writes the entries for spire-server entry create -data -.
func (s *Spec) JSON() ([]byte, error) {
	entries, err := s.Entries()
	if err != nil {
		return nil, err
	}
	document := struct {
		Entries []jsonEntry `json:"entries"`
	}{[]jsonEntry{}}
	for _, e := range entries {
		out := jsonEntry{
			EntryID: e.ID, SPIFFEID: e.SPIFFEID.String(), ParentID: e.ParentID.String(), TTL: int(e.TTL.Seconds()), Hint: e.Hint,
			FederatesWith: trustDomainIDs(e.FederatesWith),
		}
		for _, selector := range e.Selectors {
			kind, value, _ := strings.Cut(selector, ":")
			out.Selectors = append(out.Selectors, jsonSelector{kind, value})
		}
		document.Entries = append(document.Entries, out)
	}
	encoded, err := json.MarshalIndent(document, "", "  ")
	return append(encoded, '\n'), err
}

// trustDomainIDs writes trust domains as the file of spire-server has them.
func trustDomainIDs(names []string) []string {
	var ids []string
	for _, name := range names {
		ids = append(ids, "spiffe://"+name)
	}
	return ids
}

// document is a Kubernetes object of spire-controller-manager. Keys are sorted when
// it is written.
type document map[string]any

const crdVersion = "spire.spiffe.io/v1alpha1"

// StaticEntries writes a ClusterStaticEntry for each entry, in YAML
// (spire-controller-manager, docs/clusterstaticentry-crd.md).
func (s *Spec) StaticEntries() ([]byte, error) {
	entries, err := s.Entries()
	if err != nil {
		return nil, err
	}
	var documents []document
	for _, e := range entries {
		spec := document{"spiffeID": e.SPIFFEID.String(), "parentID": e.ParentID.String(), "selectors": e.Selectors, "hint": e.Hint}
		if e.TTL > 0 {
			spec["x509SVIDTTL"] = e.TTL.String()
		}
		s.finish(spec, e.FederatesWith)
		documents = append(documents, s.object("ClusterStaticEntry", e.ID, spec))
	}
	return writeYAML(documents)
}

// ClusterSPIFFEIDs writes a ClusterSPIFFEID for each agent and image, in YAML
// (spire-controller-manager, docs/clusterspiffeid-crd.md). The controller makes an
// entry for each pod from it, and adds the pod's UID to the selectors. The parent
// is its business. It is the one format for IDs per pod and for every service
// account of a namespace.
func (s *Spec) ClusterSPIFFEIDs() ([]byte, error) {
	templates := map[string]string{"podUID": "{{ .PodMeta.UID }}", "serviceAccount": "{{ .PodSpec.ServiceAccountName }}"}
	late := func(name string) string { return templates[name] }
	var documents []document
	for _, a := range s.Agents {
		id, err := s.text(a, late)
		if err != nil {
			return nil, err
		}
		account := a.ServiceAccount
		if account == AnyServiceAccount {
			account = late("serviceAccount")
		}
		for _, image := range s.Sidecar.Images {
			selectors := s.selectors(a.Namespace, account, image)
			if err := CheckSelectors(selectors); err != nil {
				return nil, fmt.Errorf("%s: %w", id, err)
			}
			spec := document{
				"spiffeIDTemplate": id, "ttl": s.TTL, "hint": Hint, "workloadSelectorTemplates": selectors,
				"podSelector":       document{"matchLabels": document{"taskgate.dev/agent": "true"}},
				"namespaceSelector": document{"matchLabels": document{"kubernetes.io/metadata.name": a.Namespace}},
			}
			s.finish(spec, s.FederatesWith)
			documents = append(documents, s.object("ClusterSPIFFEID", id+"\n"+strings.Join(selectors, "\n"), spec))
		}
	}
	return writeYAML(documents)
}

func (s *Spec) finish(spec document, federatesWith []string) {
	if len(federatesWith) > 0 {
		spec["federatesWith"] = federatesWith
	}
	if s.ClassName != "" {
		spec["className"] = s.ClassName
	}
}

// object names an object after what it says, so that a change of image makes a new
// one beside the old one.
func (s *Spec) object(kind, content string, spec document) document {
	hash := sha256.Sum256([]byte(content))
	return document{
		"apiVersion": crdVersion, "kind": kind, "spec": spec,
		"metadata": document{
			"name":   "taskgate-" + s.Name + "-" + hex.EncodeToString(hash[:6]),
			"labels": document{"app.kubernetes.io/part-of": "taskgate", "taskgate.dev/registration": s.Name},
		},
	}
}

func writeYAML(documents []document) ([]byte, error) {
	var out bytes.Buffer
	for i, d := range documents {
		encoded, err := yaml.Marshal(d)
		if err != nil {
			return nil, err
		}
		if i > 0 {
			out.WriteString("---\n")
		}
		out.Write(encoded)
	}
	return slices.Clip(out.Bytes()), nil
}
