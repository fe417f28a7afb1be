package v1alpha1

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// GrantApproval says who has to agree to a TaskGrant. In YAML it is the word
// None or an object. The zero value is neither and lets nothing through.
type GrantApproval struct {
	// None: what is inside the ceiling is granted at once.
	None bool `json:"-"`
	// Approvers is the number of people who have to agree.
	Approvers int32 `json:"approvers,omitempty"`
	// Groups the people have to belong to.
	Groups []string `json:"groups,omitempty"`
}

const approvalNone = "None"

type approvalFields GrantApproval

// MarshalJSON writes the word None or the object.
func (a GrantApproval) MarshalJSON() ([]byte, error) {
	if a.None {
		return json.Marshal(approvalNone)
	}
	return json.Marshal(approvalFields(a))
}

// UnmarshalJSON reads what MarshalJSON writes. Anything else, an object without
// approvers included, becomes the zero value and is found by validation: one
// malformed object must not stop a broker from reading the others.
func (a *GrantApproval) UnmarshalJSON(data []byte) error {
	*a = GrantApproval{}
	var word string
	if json.Unmarshal(data, &word) == nil {
		a.None = word == approvalNone
		return nil
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	var fields approvalFields
	if decoder.Decode(&fields) == nil {
		*a = GrantApproval(fields)
	}
	return nil
}

// Validate says what is wrong with the value, or nil.
func (a GrantApproval) Validate() error {
	if a.None || a.Approvers > 0 {
		return nil
	}
	return fmt.Errorf("spec.grant.approval: write None, or {approvers: 1, groups: [sre]}")
}
