package mask

import (
	"encoding/json"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Text stands where a value was; Data is the same where values are base64, as in
// the data of a Secret.
const (
	Text = "[redacted]"
	Data = "W3JlZGFjdGVkXQ=="
)

// newField makes the place a field is decoded into, and nil for every field that
// is left out. Nothing is copied but through one of these, so what their types
// cannot hold cannot be shown. The names are those of Secret, SecretList, Table
// and its rows, PartialObjectMetadata, WatchEvent and Status at once: none of
// them means a value in one kind and something harmless in another.
func newField(name string) any {
	switch name {
	case "kind", "apiVersion", "type", "status", "reason":
		return new(string)
	case "metadata":
		return new(metadata)
	case "immutable":
		return new(*bool)
	case "data":
		return new(map[string]hiddenData)
	case "stringData":
		return new(map[string]hiddenText)
	case "code":
		return new(int32)
	case "columnDefinitions":
		return new([]metav1.TableColumnDefinition)
	case "cells":
		return new([]any)
	}
	return nil
}

// hiddenText and hiddenData are values that were there. They remember nothing.
type (
	hiddenText struct{}
	hiddenData struct{}
	ignored    struct{}
)

func (*hiddenText) UnmarshalJSON([]byte) error  { return nil }
func (*hiddenData) UnmarshalJSON([]byte) error  { return nil }
func (*ignored) UnmarshalJSON([]byte) error     { return nil }
func (hiddenText) MarshalJSON() ([]byte, error) { return json.Marshal(Text) }
func (hiddenData) MarshalJSON() ([]byte, error) { return json.Marshal(Data) }

// metadata is what is shown of the metadata of an object or a list.
type metadata struct {
	Name                       string                  `json:"name,omitempty"`
	GenerateName               string                  `json:"generateName,omitempty"`
	Namespace                  string                  `json:"namespace,omitempty"`
	UID                        string                  `json:"uid,omitempty"`
	ResourceVersion            string                  `json:"resourceVersion,omitempty"`
	Generation                 int64                   `json:"generation,omitempty"`
	CreationTimestamp          *metav1.Time            `json:"creationTimestamp,omitempty"`
	DeletionTimestamp          *metav1.Time            `json:"deletionTimestamp,omitempty"`
	DeletionGracePeriodSeconds *int64                  `json:"deletionGracePeriodSeconds,omitempty"`
	Labels                     map[string]string       `json:"labels,omitempty"`
	Annotations                annotations             `json:"annotations,omitempty"`
	OwnerReferences            []metav1.OwnerReference `json:"ownerReferences,omitempty"`
	Finalizers                 []string                `json:"finalizers,omitempty"`

	// Of a list.
	Continue           string `json:"continue,omitempty"`
	RemainingItemCount *int64 `json:"remainingItemCount,omitempty"`
}

// annotations keep their keys only. The two exceptions are words clients depend
// on: the mark behind the last of the initial events of a watch, which has no
// other value, and what kubectl apply last applied, which is masked as the Secret
// it is.
type annotations map[string]string

// lastApplied is where kubectl apply keeps the whole object.
const lastApplied = "kubectl.kubernetes.io/last-applied-configuration"

// UnmarshalJSON masks what it reads.
func (a *annotations) UnmarshalJSON(from []byte) error {
	var given map[string]string
	if err := json.Unmarshal(from, &given); err != nil {
		return err
	}
	for key, value := range given {
		switch {
		case key == metav1.InitialEventsAnnotationKey && value == "true":
		case key == lastApplied:
			given[key] = maskedText(value)
		default:
			given[key] = Text
		}
	}
	*a = given
	return nil
}

// maskedText masks an object in a text; what cannot be read as one becomes the
// mask itself.
func maskedText(text string) string {
	var masked strings.Builder
	err := Copy(strings.NewReader(text), false, func(piece []byte) error { masked.Write(piece); return nil })
	if err != nil {
		return Text
	}
	return masked.String()
}

// maskCells keeps the cells of the columns the API server has for Secrets: name,
// type, number of keys, age. Cells of unknown columns are masked, and all are
// while the columns are not known.
func (m *masker) maskCells(cells []any) {
	for i := range cells {
		if i >= len(m.columns) || !harmless(m.columns[i]) {
			cells[i] = Text
		}
	}
}

func harmless(column string) bool {
	switch column {
	case "Name", "Type", "Data", "Age":
		return true
	}
	return false
}
