package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/taskgate/taskgate/e2e/testbed"
)

// ManyGrants is a broker that starts before an API server with many grants.
type ManyGrants struct {
	Grants int `json:"grants"`
	// Granted is the seconds from the first request for one to the last one's being
	// active, with one broker, the creation included.
	Granted Interval `json:"grantedSeconds"`
	// Ready is the seconds from the start of a broker to its being ready.
	Ready Interval `json:"readySeconds"`
	// Peak is the most resident memory of the broker from then until shortly after,
	// in megabytes.
	Peak Interval `json:"peakMB"`
}

const (
	manyGrantsRepeats  = 3
	manyGrantsAgents   = 1000
	manyGrantsClients  = 8
	manyGrantsPatience = 15 * time.Minute
	manyGrantsSettle   = 5 * time.Second
)

// measureGrants comes last: what it makes stays.
func (w *world) measureGrants(ctx context.Context, count int) (*ManyGrants, error) {
	ctx, cancel := context.WithTimeout(ctx, manyGrantsPatience)
	defer cancel()
	admin := rest.CopyConfig(w.bed.Admin())
	admin.QPS = -1 // as fast as the API server answers
	client, err := kubernetes.NewForConfig(admin)
	if err != nil {
		return nil, fmt.Errorf("making a client of the cluster: %w", err)
	}
	began := time.Now()
	if err := createGrants(ctx, client.RESTClient(), count); err != nil {
		return nil, err
	}
	if err := awaitGrants(ctx, client.RESTClient(), count); err != nil {
		return nil, err
	}
	result := &ManyGrants{Grants: count, Granted: intervalOf([]float64{time.Since(began).Seconds()})}
	var ready, peak []float64
	for range manyGrantsRepeats {
		broker := w.bed.Broker(0)
		if err := broker.Stop(ctx); err != nil {
			return nil, err
		}
		started := time.Now()
		if err := broker.Start(ctx); err != nil {
			return nil, err
		}
		ready = append(ready, time.Since(started).Seconds())
		if err := pause(ctx, manyGrantsSettle); err != nil {
			return nil, err
		}
		most, err := peakMemory(broker.PID())
		if err != nil {
			return nil, err
		}
		peak = append(peak, float64(most)/(1<<20))
	}
	result.Ready, result.Peak = intervalOf(ready), intervalOf(peak)
	return result, nil
}

const grantsPath = "/apis/taskgate.dev/v1alpha1/taskgrants"

func grantNumber(i int) string { return fmt.Sprintf("bench-many-%06d", i) }

// createGrants makes grants of many agents, all under the policy of the benchmark.
func createGrants(ctx context.Context, client rest.Interface, count int) error {
	return createMany(ctx, manyGrantsClients, func(ctx context.Context, worker int) error {
		for i := worker; i < count; i += manyGrantsClients {
			body := fmt.Sprintf(`{"apiVersion":"taskgate.dev/v1alpha1","kind":"TaskGrant","metadata":{"name":%q},"spec":{"agent":"spiffe://%s/ns/%s/sa/many-%d",`+
				`"task":"task-%d","policy":%q,"ttl":"12h","rules":[{"namespaces":[%q],"apiGroups":[""],"resources":["pods"],"verbs":["get"]}]}}`,
				grantNumber(i), testbed.TrustDomain, testbed.AgentNamespace, i%manyGrantsAgents, i, policyName, podsNamespace)
			if err := client.Post().AbsPath(grantsPath).Body([]byte(body)).SetHeader("Content-Type", "application/json").Do(ctx).Error(); err != nil {
				return err
			}
		}
		return nil
	})
}

// awaitGrants waits until each grant is active. They become so about in their
// order.
func awaitGrants(ctx context.Context, client rest.Interface, count int) error {
	for i := count - 1; i >= 0; i -= 97 {
		for {
			active, err := isActive(ctx, client, grantNumber(i))
			if err != nil {
				return err
			}
			if active {
				break
			}
			if err := pause(ctx, 200*time.Millisecond); err != nil {
				return fmt.Errorf("waiting for the grant %s to be active: %w", grantNumber(i), err)
			}
		}
	}
	return nil
}

func isActive(ctx context.Context, client rest.Interface, name string) (bool, error) {
	raw, err := client.Get().AbsPath(grantsPath, name).DoRaw(ctx)
	if err != nil {
		return false, fmt.Errorf("reading a grant: %w", err)
	}
	var grant struct {
		Status struct {
			ActiveFrom *time.Time `json:"activeFrom"`
		} `json:"status"`
	}
	if err := json.Unmarshal(raw, &grant); err != nil {
		return false, fmt.Errorf("reading a grant: %w", err)
	}
	return grant.Status.ActiveFrom != nil, nil
}
