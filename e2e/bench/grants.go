package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/taskgate/taskgate/api/v1alpha1"
	"github.com/taskgate/taskgate/broker/control"
	"github.com/taskgate/taskgate/e2e/testbed"
)

// ManyGrants is a broker that starts before an API server with many active grants.
type ManyGrants struct {
	Grants int `json:"grants"`
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

// measureGrants comes last: what it makes stays. The grants are made active with
// the broker's own credential while no broker runs: one by one would take it long.
func (w *world) measureGrants(ctx context.Context, count int) (*ManyGrants, error) {
	ctx, cancel := context.WithTimeout(ctx, manyGrantsPatience)
	defer cancel()
	broker := w.bed.Broker(0)
	if err := broker.Stop(ctx); err != nil {
		return nil, err
	}
	if w.unrecorded != nil { // it judges grants, too
		if err := w.bed.Broker(1).Stop(ctx); err != nil {
			return nil, err
		}
	}
	if err := w.createGrants(ctx, count); err != nil {
		return nil, err
	}
	var ready, peak []float64
	for range manyGrantsRepeats {
		began := time.Now()
		if err := broker.Start(ctx); err != nil {
			return nil, err
		}
		ready = append(ready, time.Since(began).Seconds())
		if err := pause(ctx, manyGrantsSettle); err != nil {
			return nil, err
		}
		most, err := peakMemory(broker.PID())
		if err != nil {
			return nil, err
		}
		peak = append(peak, float64(most)/(1<<20))
		if err := broker.Stop(ctx); err != nil {
			return nil, err
		}
	}
	return &ManyGrants{Grants: count, Ready: intervalOf(ready), Peak: intervalOf(peak)}, broker.Start(ctx)
}

const grantsPath = "/apis/taskgate.dev/v1alpha1/taskgrants"

// createGrants makes active grants of many agents, all under the policy of the
// benchmark.
func (w *world) createGrants(ctx context.Context, count int) error {
	admin, err := fastClient(w.bed.Admin())
	if err != nil {
		return err
	}
	own, err := clientcmd.BuildConfigFromFlags("", filepath.Join(w.bed.Directory(), "broker", "kubeconfig"))
	if err != nil {
		return fmt.Errorf("reading the broker's kubeconfig: %w", err)
	}
	broker, err := fastClient(own)
	if err != nil {
		return err
	}
	return createMany(ctx, manyGrantsClients, func(ctx context.Context, worker int) error {
		for i := worker; i < count; i += manyGrantsClients {
			if err := createGrant(ctx, admin, broker, i); err != nil {
				return err
			}
		}
		return nil
	})
}

func fastClient(config *rest.Config) (rest.Interface, error) {
	own := rest.CopyConfig(config)
	own.QPS = -1 // as fast as the API server answers
	client, err := kubernetes.NewForConfig(own)
	if err != nil {
		return nil, fmt.Errorf("making a client of the cluster: %w", err)
	}
	return client.RESTClient(), nil
}

func createGrant(ctx context.Context, admin, broker rest.Interface, i int) error {
	body := fmt.Sprintf(`{"apiVersion":"taskgate.dev/v1alpha1","kind":"TaskGrant","metadata":{"name":"bench-many-%06d"},"spec":{"agent":"spiffe://%s/ns/%s/sa/many-%d",`+
		`"task":"task-%d","policy":%q,"ttl":"12h","rules":[{"namespaces":[%q],"apiGroups":[""],"resources":["pods"],"verbs":["get"]}]}}`,
		i, testbed.TrustDomain, testbed.AgentNamespace, i%manyGrantsAgents, i, policyName, podsNamespace)
	made, err := admin.Post().AbsPath(grantsPath).Body([]byte(body)).SetHeader("Content-Type", "application/json").Do(ctx).Raw()
	if err != nil {
		return err
	}
	var grant v1alpha1.TaskGrant
	if err := json.Unmarshal(made, &grant); err != nil {
		return err
	}
	now := metav1.NowMicro()
	ends := metav1.NewMicroTime(now.Add(grant.Spec.TTL.Duration))
	grant.Status = v1alpha1.TaskGrantStatus{Digest: control.Digest(&grant.Spec), ActiveFrom: &now, ExpiresAt: &ends}
	for _, kind := range []string{v1alpha1.GrantApproved, v1alpha1.GrantActive} {
		grant.Status.Conditions = append(grant.Status.Conditions, metav1.Condition{
			Type: kind, Status: metav1.ConditionTrue, Reason: "WithinPolicy", LastTransitionTime: metav1.NewTime(now.Time),
		})
	}
	active, err := json.Marshal(&grant)
	if err != nil {
		return err
	}
	return broker.Put().AbsPath(grantsPath, grant.Name, "status").Body(active).SetHeader("Content-Type", "application/json").Do(ctx).Error()
}
