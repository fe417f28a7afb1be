package control

import (
	"context"
	"crypto/rand"
	"fmt"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"

	"github.com/taskgate/taskgate/api/v1alpha1"
	"github.com/taskgate/taskgate/authz"
	"github.com/taskgate/taskgate/broker/condition"
	"github.com/taskgate/taskgate/manifests"
)

// HeartbeatObject is the name of the two inert objects, one AgentPolicy and one
// TaskGrant, through which freshness is proven. They come with the manifests.
const HeartbeatObject = "taskgate-heartbeat"

// Config says what a Controller works with. All fields must be set, but for
// those with a default.
type Config struct {
	Broker  string       // this replica's name
	Index   *authz.Index // is filled
	Control *rest.Config // cluster with the objects of taskgate.dev
	Guarded *rest.Config // cluster the agents' calls go to
	Log     zerolog.Logger
	Now     func() time.Time
	// StaleAfter is how long decisions may rest on what was last proven fresh.
	// Default 30 seconds.
	StaleAfter time.Duration
	// Beat is the time between two heartbeats. Default a sixth of StaleAfter.
	Beat time.Duration
	// KeepEnded is how long ended grants stay, with their approvals and decisions.
	// Default 168 hours.
	KeepEnded time.Duration
	// Tell is called with what this replica has written down. It must not wait, and
	// may be called by several goroutines. Nil for nobody.
	Tell func(Happening)
}

// Controller is one replica's side of the control cluster. See the package
// comment. Its methods are safe for concurrent use.
type Controller struct {
	config Config
	client *client
	guards *guards // of the guarded cluster
	// deciding are the guards of the control cluster that make Decisions true.
	deciding *guards
	queue    workqueue.TypedRateLimitingInterface[item]

	policies  cache.SharedIndexInformer
	grants    *seenGrants
	approvals cache.SharedIndexInformer // these two only say when to look
	decisions cache.SharedIndexInformer

	beats      beats
	budgets    budgets
	conditions condition.Compiler
	events     events

	mu         sync.Mutex
	tombstones map[string]tombstone // UID → deleted grant
}

// item is one object to look at.
type item struct{ resource, name string }

// New makes a controller; Run starts it.
func New(config Config) (*Controller, error) {
	if config.StaleAfter == 0 {
		config.StaleAfter = 30 * time.Second
	}
	if config.Beat == 0 {
		config.Beat = config.StaleAfter / 6
	}
	if config.KeepEnded == 0 {
		config.KeepEnded = 7 * 24 * time.Hour
	}
	client, err := newClient(config.Control)
	if err != nil {
		return nil, err
	}
	guards, err := newGuards(config.Guarded, "guarded", manifests.AdmissionPods)
	if err != nil {
		return nil, err
	}
	deciding, err := newGuards(config.Control, "control", manifests.AdmissionDecisions, manifests.AdmissionApprovals, manifests.AdmissionTaskGrants)
	if err != nil {
		return nil, err
	}
	c := &Controller{
		config: config, client: client, guards: guards, deciding: deciding,
		queue:      workqueue.NewTypedRateLimitingQueue(workqueue.DefaultTypedControllerRateLimiter[item]()),
		tombstones: map[string]tombstone{}, events: newEvents(),
	}
	c.beats = beats{nonce: rand.Text(), proven: map[string]time.Time{}}
	c.budgets = budgets{controller: c, meters: map[string]*Meter{}, days: map[day]*account{}}
	c.policies = cache.NewSharedIndexInformer(listWatch[v1alpha1.AgentPolicyList](client, policies), &v1alpha1.AgentPolicy{}, 0, cache.Indexers{})
	c.grants = newSeenGrants(c)
	c.approvals = cache.NewSharedIndexInformer(listWatch[v1alpha1.ApprovalList](client, approvals), &v1alpha1.Approval{}, 0, cache.Indexers{byGrant: approvalsByGrant})
	c.decisions = cache.NewSharedIndexInformer(listWatch[v1alpha1.DecisionList](client, decisions), &v1alpha1.Decision{}, 0, cache.Indexers{byTarget: decisionsByTarget})
	for _, informer := range []cache.SharedIndexInformer{c.policies, c.approvals, c.decisions} {
		if err := informer.SetTransform(slim); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// slim drops what a broker does not work with and there may be a lot of: who
// manages which field, and the diffs, which are for people. A write of the rest
// leaves both as they are.
func slim(object any) (any, error) {
	if approval, ok := object.(*v1alpha1.Approval); ok {
		approval.Spec.Diff = ""
	}
	if m, err := meta.Accessor(object); err == nil { // not so what stands for a deleted object
		m.SetManagedFields(nil)
	}
	return object, nil
}

// Indexes of the informers.
const (
	byGrant  = "grant"
	byTarget = "target"
)

func approvalsByGrant(object any) ([]string, error) {
	return []string{object.(*v1alpha1.Approval).Spec.GrantUID}, nil
}

func decisionsByTarget(object any) ([]string, error) {
	return []string{object.(*v1alpha1.Decision).Spec.Target.UID}, nil
}

// Run works until ctx ends and returns when all its goroutines have. What was
// reserved of budgets and not spent is given back, as far as the cluster answers.
func (c *Controller) Run(ctx context.Context) error {
	onPolicies := handler(c.policyChanged, c.policyDeleted)
	onPolicies.UpdateFunc = func(before, after any) {
		c.policyUpdated(before.(*v1alpha1.AgentPolicy), after.(*v1alpha1.AgentPolicy))
	}
	if _, err := c.policies.AddEventHandler(onPolicies); err != nil {
		return err
	}
	if _, err := c.approvals.AddEventHandler(handler(c.approvalChanged, func(*v1alpha1.Approval) {})); err != nil {
		return err
	}
	if _, err := c.decisions.AddEventHandler(handler(c.decisionChanged, func(*v1alpha1.Decision) {})); err != nil {
		return err
	}
	listWatchGrants := listWatch[v1alpha1.TaskGrantList](c.client, grants)
	listWatchGrants.WatchFuncWithContext = c.client.watchGrants
	watchGrants := cache.NewReflectorWithOptions(listWatchGrants, &v1alpha1.TaskGrant{}, c.grants, cache.ReflectorOptions{Name: grants})
	var wait sync.WaitGroup
	for _, run := range []func(context.Context){
		c.policies.RunWithContext, watchGrants.RunWithContext, c.approvals.RunWithContext, c.decisions.RunWithContext,
		c.guards.run, c.deciding.run, c.frugal, c.beat, c.buryTombstones, c.recheckPolicies, c.writeEvents, c.clean,
	} {
		wait.Go(func() { run(ctx) })
	}
	for range 4 {
		wait.Go(func() { c.work(ctx) })
	}
	<-ctx.Done()
	c.queue.ShutDown()
	wait.Wait()
	return c.budgets.giveBack(context.WithoutCancel(ctx))
}

// Ready says why decisions cannot be made yet, nil if they can.
func (c *Controller) Ready() error {
	if !c.config.Now().Before(c.config.Index.FreshUntil()) {
		return fmt.Errorf("policies and grants are not proven fresh: %w", c.beats.problem())
	}
	return nil
}

// GuardsReady says which admission policy of the guarded cluster is missing or
// changed, nil if all hold.
func (c *Controller) GuardsReady() error { return c.guards.ready(c.config.Now()) }

// DecisionsCount says why no Decision of anybody counts at the moment, nil if
// they do: an admission policy of the control cluster that makes Decisions true is
// absent or changed. It is as old as the last look, a few seconds; [VerdictOn]
// looks for itself.
func (c *Controller) DecisionsCount() error { return c.deciding.ready(c.config.Now()) }

// handler wires typed callbacks into an informer. A panic in a callback would
// be a defect; it is not recovered, because an index that missed an event lies.
func handler[T any](changed func(*T), deleted func(*T)) cache.ResourceEventHandlerFuncs {
	return cache.ResourceEventHandlerFuncs{
		AddFunc:    func(object any) { changed(object.(*T)) },
		UpdateFunc: func(_, object any) { changed(object.(*T)) },
		DeleteFunc: func(object any) {
			if unknown, ok := object.(cache.DeletedFinalStateUnknown); ok {
				object = unknown.Obj
			}
			deleted(object.(*T))
		},
	}
}

func (c *Controller) policyChanged(policy *v1alpha1.AgentPolicy) {
	if policy.Name == HeartbeatObject {
		c.sawBeat(policies, policy.Status.Heartbeats)
		return
	}
	c.must(c.config.Index.PutPolicy(c.understand(policy)))
	c.queue.Add(item{policies, policy.Name})
	c.requeueGrants(policy.Name)
}

// policyUpdated leaves the index alone if nothing but the status changed, as it
// does each time that a part of a day's budget is reserved.
func (c *Controller) policyUpdated(before, policy *v1alpha1.AgentPolicy) {
	sameSpec := before.UID == policy.UID && before.Generation == policy.Generation && policy.Generation != 0
	if policy.Name == HeartbeatObject || !sameSpec {
		c.policyChanged(policy)
		return
	}
	c.queue.Add(item{policies, policy.Name})
}

func (c *Controller) policyDeleted(policy *v1alpha1.AgentPolicy) {
	if policy.Name == HeartbeatObject {
		return
	}
	c.must(c.config.Index.DeletePolicy(policy.Name))
	c.requeueGrants(policy.Name)
}

// grantsChanged takes over what the watch brought, all at once, into the index.
func (c *Controller) grantsChanged(changed, gone []*seenGrant) {
	rows := make([]*authz.Grant, 0, len(changed)+len(gone))
	for _, grant := range changed {
		rows = append(rows, &grant.Grant)
	}
	for _, grant := range gone {
		rows = append(rows, grant.tombstone())
	}
	if len(rows) == 0 {
		return
	}
	c.must(c.config.Index.PutGrants(rows))
	for _, grant := range changed {
		if !grant.over {
			c.queue.Add(item{grants, grant.Name})
		}
		c.requeueHeld(grant)
	}
	for i, grant := range gone {
		c.budgets.forget(grant.UID)
		c.requeueHeld(grant)
		c.remember(rows[len(changed)+i])
	}
}

// remember keeps the tombstone of a grant for a while.
func (c *Controller) remember(gone *authz.Grant) {
	c.mu.Lock()
	defer c.mu.Unlock()
	until := c.config.Now().Add(keepTombstones)
	if !gone.EndedAt.IsZero() {
		until = gone.EndedAt.Add(keepTombstones) // cleaned up long after it ended: nobody remembers
	}
	c.tombstones[gone.UID] = tombstone{gone, until}
}

// A Decision and an Approval are only a reason to look at what they are about.
func (c *Controller) decisionChanged(d *v1alpha1.Decision) {
	switch d.Spec.Target.Kind {
	case v1alpha1.TargetTaskGrant:
		c.queue.Add(item{grants, d.Spec.Target.Name})
	case v1alpha1.TargetApproval:
		c.queue.Add(item{approvals, d.Spec.Target.Name})
	}
}

func (c *Controller) approvalChanged(approval *v1alpha1.Approval) {
	c.queue.Add(item{approvals, approval.Name})
}

// must ends the process if the index cannot be written: it is in memory, so this
// is a defect, and an index that misses an object would go on deciding.
func (c *Controller) must(err error) {
	if err != nil {
		panic(fmt.Sprintf("writing the index: %v", err))
	}
}

func (c *Controller) requeueGrants(policy string) {
	for _, grant := range c.grants.all() {
		if grant.Policy == policy && !grant.over {
			c.queue.Add(item{grants, grant.Name})
		}
	}
}

// tombstone is a deleted grant that is remembered for a while, so that the agent
// is told GrantRevoked.
type tombstone struct {
	grant *authz.Grant
	until time.Time
}

const keepTombstones = 24 * time.Hour

func (c *Controller) buryTombstones(ctx context.Context) {
	every(ctx, time.Minute, func() {
		now := c.config.Now()
		c.mu.Lock()
		defer c.mu.Unlock()
		for uid, stone := range c.tombstones {
			if now.After(stone.until) {
				c.must(c.config.Index.ForgetGrant(stone.grant))
				delete(c.tombstones, uid)
			}
		}
	})
}

// recheckPolicies looks at every policy anew from time to time: whether the
// broker may act for it upstream changes without the policy changing.
func (c *Controller) recheckPolicies(ctx context.Context) {
	every(ctx, 30*time.Second, func() {
		for _, name := range c.policies.GetStore().ListKeys() {
			c.queue.Add(item{policies, name})
		}
	})
}

func every(ctx context.Context, period time.Duration, do func()) {
	ticker := time.NewTicker(period)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			do()
		}
	}
}
