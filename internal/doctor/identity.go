package doctor

import (
	"context"
	"errors"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/taskgate/taskgate/identity/registration"
)

func (c *Config) identity(ctx context.Context) ([]Finding, error) {
	if c.WorkloadAPI == "" {
		return nil, errors.New("no Workload API here; give --workload-api where there is one, run taskgate spire verify in a pod, or leave this out with --skip identity")
	}
	seen, err := registration.Look(ctx, c.WorkloadAPI, c.Hint)
	if errors.Is(err, registration.ErrNoIdentity) {
		return []Finding{{Error, c.WorkloadAPI, "gives no identity here: " + err.Error(), "without an SVID a sidecar or broker can do nothing", "taskgate spire plan -f agents.yaml"}}, nil
	}
	if err != nil {
		return nil, err
	}
	var findings []Finding
	for _, problem := range registration.Judge(seen, spiffeid.ID{}, c.Hint, c.Now()) {
		findings = append(findings, Finding{Error, c.WorkloadAPI, problem, "a sidecar might speak with the wrong identity, or with none", "taskgate spire plan -f agents.yaml"})
	}
	for _, s := range seen {
		findings = append(findings, Finding{Severity: Note, Object: c.WorkloadAPI, What: fmt.Sprintf("gives %s, until %s", s.ID, s.Until.Format("15:04:05Z07:00"))})
	}
	return findings, nil
}
