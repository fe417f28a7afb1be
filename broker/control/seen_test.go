package control

import (
	"context"
	"slices"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/taskgate/taskgate/api/v1alpha1"
	"github.com/taskgate/taskgate/authz"
)

// newController makes a controller that talks to nobody.
func newController(t *testing.T) *Controller {
	t.Helper()
	index, err := authz.NewIndex(authz.Boundary{})
	if err != nil {
		t.Fatal(err)
	}
	nowhere := &rest.Config{Host: "https://127.0.0.1:1"}
	c, err := New(Config{Broker: "b", Index: index, Control: nowhere, Guarded: nowhere, Now: func() time.Time { return noon }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.queue.ShutDown)
	return c
}

func named(name, uid, version string, changes ...func(*v1alpha1.TaskGrant)) *v1alpha1.TaskGrant {
	g := taskGrant(append(changes, func(g *v1alpha1.TaskGrant) {
		g.Name, g.UID, g.ResourceVersion = name, types.UID(uid), version
	})...)
	return g
}

// queued empties the queue.
func queued(c *Controller) []string {
	names := []string{}
	for c.queue.Len() > 0 {
		next, _ := c.queue.Get()
		names = append(names, next.name)
		c.queue.Done(next)
	}
	slices.Sort(names)
	return names
}

// inIndex are the grants the index knows, tombstones with a cross.
func inIndex(t *testing.T, c *Controller) []string {
	t.Helper()
	grants, err := c.config.Index.Grants(taskGrant().Spec.Agent)
	if err != nil {
		t.Fatal(err)
	}
	known := []string{}
	for _, g := range grants {
		if g.Deleted {
			known = append(known, g.UID+"†")
		} else {
			known = append(known, g.UID)
		}
	}
	slices.Sort(known)
	return known
}

// TestSeenGrants: whatever the reflector brings, the index knows every grant there
// is and the tombstone of every one that was, and what may change is looked at.
func TestSeenGrants(t *testing.T) {
	active := activeSince(noon)
	over := func(g *v1alpha1.TaskGrant) { g.Status = overAt(authz.EndExpired, noon).Status }
	c := newController(t)
	steps := []struct {
		name          string
		do            func() error
		index, queued []string
	}{
		{"the first look", func() error {
			return c.grants.Replace([]any{named("a", "a1", "1"), seeGrant(named("b", "b1", "1", active)), named("c", "c1", "1", over), named("d", "d1", "1")}, "1")
		}, []string{"a1", "b1", "c1", "d1"}, []string{"a", "b", "d"}},
		{"another look, one changed and one is gone", func() error {
			return c.grants.Replace([]any{named("a", "a1", "1"), named("b", "b1", "2", active), named("c", "c1", "1", over)}, "2")
		}, []string{"a1", "b1", "c1", "d1†"}, []string{"b"}},
		{"another look, another grant has the name", func() error {
			return c.grants.Replace([]any{named("a", "a2", "3"), named("b", "b1", "2", active), named("c", "c1", "1", over)}, "3")
		}, []string{"a1†", "a2", "b1", "c1", "d1†"}, []string{"a"}},
		{"added", func() error { return c.grants.Add(named("e", "e1", "4")) }, []string{"a1†", "a2", "b1", "c1", "d1†", "e1"}, []string{"e"}},
		{"changed, another grant has the name", func() error { return c.grants.Update(named("e", "e2", "5")) }, []string{"a1†", "a2", "b1", "c1", "d1†", "e1†", "e2"}, []string{"e"}},
		{"deleted", func() error { return c.grants.Delete(named("b", "b1", "6", active)) }, []string{"a1†", "a2", "b1†", "c1", "d1†", "e1†", "e2"}, []string{}},
		{"over", func() error { return c.grants.Update(named("e", "e2", "7", over)) }, []string{"a1†", "a2", "b1†", "c1", "d1†", "e1†", "e2"}, []string{}},
	}
	if c.grants.HasSynced() {
		t.Error("it has synced before anything came")
	}
	for _, step := range steps {
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
		if got := inIndex(t, c); !slices.Equal(got, step.index) {
			t.Errorf("%s: the index knows %v, want %v", step.name, got, step.index)
		}
		if got := queued(c); !slices.Equal(got, step.queued) {
			t.Errorf("%s: it looks at %v, want %v", step.name, got, step.queued)
		}
	}
	if !c.grants.HasSynced() || c.grants.get("b") != nil || c.grants.get("e").UID != "e2" {
		t.Errorf("got %+v", c.grants.byName)
	}
}

// TestHeartbeatComesLast: a first look proves freshness only once the index holds
// what came with it, and the object that is there for the heartbeat is no grant.
func TestHeartbeatComesLast(t *testing.T) {
	c := newController(t)
	c.beats.prove(policies, noon)
	beat := named(HeartbeatObject, "h", "1", func(g *v1alpha1.TaskGrant) {
		g.Status.Heartbeats = map[string]string{"b": noon.Format(time.RFC3339Nano) + " " + c.beats.nonce}
	})
	if err := c.grants.Replace([]any{beat, named("a", "a1", "1")}, "1"); err != nil {
		t.Fatal(err)
	}
	if want := noon.Add(c.config.StaleAfter); !c.config.Index.FreshUntil().Equal(want) {
		t.Errorf("fresh until %v, want %v", c.config.Index.FreshUntil(), want)
	}
	if got := inIndex(t, c); !slices.Equal(got, []string{"a1"}) || c.grants.get(HeartbeatObject) != nil {
		t.Errorf("the index knows %v", got)
	}
}

// TestHeldWait: a grant that waits because another was revoked is looked at when
// that changes, in whatever way.
func TestHeldWait(t *testing.T) {
	waits := func(g *v1alpha1.TaskGrant) {
		g.Status = (&evaluation{grant: taskGrant(), policy: policy(), held: "r", now: noon}).status()
	}
	revoked := func(g *v1alpha1.TaskGrant) { g.Status = overAt(authz.EndRevoked, noon).Status }
	resume := func(g *v1alpha1.TaskGrant) {
		g.Annotations = map[string]string{v1alpha1.ResumedAnnotation: "true"}
	}
	for name, end := range map[string]func(*Controller) error{
		"resumed":         func(c *Controller) error { return c.grants.Update(named("r", "r1", "2", revoked, resume)) },
		"deleted":         func(c *Controller) error { return c.grants.Delete(named("r", "r1", "2", revoked)) },
		"gone meanwhile":  func(c *Controller) error { return c.grants.Replace([]any{named("w", "w1", "1", waits)}, "2") },
		"another by name": func(c *Controller) error { return c.grants.Update(named("r", "r2", "2")) },
	} {
		c := newController(t)
		if err := c.grants.Replace([]any{named("r", "r1", "1", revoked), named("w", "w1", "1", waits)}, "1"); err != nil {
			t.Fatal(err)
		}
		if got := c.holding(taskGrant().Spec.Agent, "shop"); got != "r" {
			t.Errorf("%q holds", got)
		}
		queued(c)
		if err := end(c); err != nil {
			t.Fatal(err)
		}
		if got := c.holding(taskGrant().Spec.Agent, "shop"); got != "" {
			t.Errorf("%s: %q holds still", name, got)
		}
		if !slices.Contains(queued(c), "w") {
			t.Errorf("%s: nobody looks at what waits", name)
		}
	}
}

// TestOnlyWhatWaitsIsWhole: everything else is as small as it can be.
func TestOnlyWhatWaitsIsWhole(t *testing.T) {
	for name, row := range map[string]struct {
		grant *v1alpha1.TaskGrant
		want  bool
	}{
		"new": {taskGrant(), true},
		"waits for people": {taskGrant(func(g *v1alpha1.TaskGrant) {
			g.Status = (&evaluation{grant: taskGrant(), policy: withPeople(), now: noon}).status()
		}), true},
		"active": {taskGrant(activeSince(noon)), false},
		"ended":  {overAt(authz.EndExpired, noon), false},
	} {
		row.grant.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "somebody"}}
		seen := seeGrant(row.grant)
		if got := seen.whole != nil; got != row.want {
			t.Errorf("%s: whole is %t", name, got)
		} else if got && seen.whole.ManagedFields != nil {
			t.Errorf("%s: it has managed fields", name)
		}
	}
}

// TestGoesOn: an active grant is left alone only while nothing speaks against it.
func TestGoesOn(t *testing.T) {
	one := int32(1)
	rows := []struct {
		name   string
		grant  *v1alpha1.TaskGrant
		policy *v1alpha1.AgentPolicy
		others []any
		want   bool
	}{
		{"active", taskGrant(activeSince(noon)), policy(), nil, true},
		{"revoked", taskGrant(activeSince(noon), func(g *v1alpha1.TaskGrant) { g.Spec.Revoked = true }), policy(), nil, false},
		{"being deleted", taskGrant(activeSince(noon), func(g *v1alpha1.TaskGrant) { g.DeletionTimestamp = &metav1.Time{Time: noon} }), policy(), nil, false},
		{"time is up", taskGrant(activeSince(noon.Add(-time.Hour))), policy(), nil, false},
		{"no policy", taskGrant(activeSince(noon)), nil, nil, false},
		{"suspended", taskGrant(activeSince(noon)), policy(func(p *v1alpha1.AgentPolicy) { p.Spec.Suspended = true }), nil, false},
		{"policy covers no longer", taskGrant(activeSince(noon)), policy(func(p *v1alpha1.AgentPolicy) { p.Spec.Allow = nil }), nil, false},
		{"a condition nobody understands", taskGrant(activeSince(noon)), policy(func(p *v1alpha1.AgentPolicy) {
			p.Spec.Gates = []v1alpha1.Gate{{Name: "g", When: "object.."}}
		}), nil, false},
		{"another spec than the status is about", taskGrant(activeSince(noon), func(g *v1alpha1.TaskGrant) { g.Spec.Task = "INC-2" }), policy(), nil, false},
		{"one more than allowed", taskGrant(activeSince(noon)), policy(func(p *v1alpha1.AgentPolicy) { p.Spec.Grant.MaxActive = &one }),
			[]any{named("o", "o1", "1", activeSince(noon.Add(-time.Minute)))}, false},
		{"as many as allowed", taskGrant(activeSince(noon)), policy(func(p *v1alpha1.AgentPolicy) { p.Spec.Grant.MaxActive = &one }),
			[]any{named("o", "o1", "1", activeSince(noon.Add(time.Minute)))}, true},
	}
	for _, row := range rows {
		c := newController(t)
		if row.policy != nil {
			if err := c.policies.GetStore().Add(row.policy); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.grants.Replace(append(row.others, row.grant), "1"); err != nil {
			t.Fatal(err)
		}
		if got, err := c.goesOn(c.grants.get("g")); got != row.want || err != nil {
			t.Errorf("%s: %t (%v)", row.name, got, err)
		}
		err := c.reconcileGrant(context.Background(), "g")
		if alone := err == nil; alone != row.want {
			t.Errorf("%s: it asks the API server, or does not: %v", row.name, err)
		}
	}
}
