package testbed

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"
	"sigs.k8s.io/yaml"
)

// writeAuditPolicy has the API server log the broker's calls and nobody else's.
// Rules look at who authenticated, so the calls in which the broker
// impersonates an agent count as the broker's.
func (t *Testbed) writeAuditPolicy() error {
	content, err := yaml.Marshal(auditv1.Policy{
		TypeMeta: metav1.TypeMeta{APIVersion: auditv1.SchemeGroupVersion.String(), Kind: "Policy"},
		Rules: []auditv1.PolicyRule{
			{Level: t.options.AuditLevel, Users: []string{brokerUser}},
			{Level: auditv1.LevelNone},
		},
	})
	if err != nil {
		return fmt.Errorf("encoding the audit policy: %w", err)
	}
	if err := os.WriteFile(t.path("kubernetes/audit-policy.yaml"), content, 0o644); err != nil {
		return fmt.Errorf("writing the audit policy: %w", err)
	}
	return nil
}

// AuditEvents is what the API server itself recorded about the broker's calls,
// in order. The API server writes an event before it answers, so a call that was
// answered is in it.
func (t *Testbed) AuditEvents() ([]auditv1.Event, error) {
	file, err := os.Open(t.path("audit.log"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // no call of the broker yet
	}
	if err != nil {
		return nil, fmt.Errorf("opening the audit log: %w", err)
	}
	defer func() { _ = file.Close() }() // only read
	return readEvents(file)
}

// readEvents drops a last line without an end: the API server is writing it.
func readEvents(log io.Reader) ([]auditv1.Event, error) {
	var events []auditv1.Event
	lines := bufio.NewReader(log)
	for number := 1; ; number++ {
		line, err := lines.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return events, nil
		}
		if err != nil {
			return nil, fmt.Errorf("reading the audit log: %w", err)
		}
		var event auditv1.Event
		if err := json.Unmarshal(line, &event); err != nil {
			return nil, fmt.Errorf("reading line %d of the audit log: %w", number, err)
		}
		events = append(events, event)
	}
}
