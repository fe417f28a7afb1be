package control

import (
	"fmt"
	"sync"
	"unique"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/taskgate/taskgate/api/v1alpha1"
	"github.com/taskgate/taskgate/authz"
)

// seenGrant is what is kept of a TaskGrant that the watch brought. There may be a
// hundred thousand of them, so it is little, and the index of package authz holds
// the same Grant and no copy. It never changes.
type seenGrant struct {
	authz.Grant
	version     string // resource version
	requestedBy string
	over        bool // denied or ended, and that is written down
	revoked     bool // the three that holds depend on, see hold.go
	resumed     bool
	byPeople    bool
	onHold      bool
	// whole is there for as long as the grant waits; afterwards the status changes
	// only once more.
	whole      *v1alpha1.TaskGrant
	heartbeats map[string]string // of the object that is there for them
}

func seeGrant(grant *v1alpha1.TaskGrant) *seenGrant {
	intern(&grant.Spec)
	seen := &seenGrant{
		Grant: *Grant(grant), version: grant.ResourceVersion, requestedBy: grant.Spec.RequestedBy,
		over:    meta.IsStatusConditionTrue(grant.Status.Conditions, v1alpha1.GrantEnded),
		revoked: revoked(grant), resumed: resumed(grant), byPeople: byPeople(grant), onHold: onHold(grant),
	}
	if grant.Name == HeartbeatObject {
		seen.heartbeats = grant.Status.Heartbeats
	}
	if !seen.over && grant.Status.ActiveFrom == nil {
		grant.ManagedFields = nil // a write without them leaves them as they are
		seen.whole = grant
	}
	return seen
}

// intern has words that many grants have in common be there once.
func intern(spec *v1alpha1.TaskGrantSpec) {
	for _, word := range []*string{&spec.Agent, &spec.Policy, &spec.RequestedBy} {
		*word = unique.Make(*word).Value()
	}
	for i := range spec.Rules {
		rule := &spec.Rules[i]
		for _, list := range [][]string{rule.Namespaces, rule.APIGroups, rule.Resources, rule.Verbs} {
			for j := range list {
				list[j] = unique.Make(list[j]).Value()
			}
		}
	}
}

// GetObjectMeta has the reflector find the name of what it is given.
func (g *seenGrant) GetObjectMeta() metav1.Object {
	return &metav1.ObjectMeta{Name: g.Name, ResourceVersion: g.version}
}

// tombstone is the grant after its object is gone.
func (g *seenGrant) tombstone() *authz.Grant {
	gone := g.Grant
	gone.Deleted = true
	return &gone
}

// seenGrants is what a reflector fills (cache.ReflectorStore) with the grants there
// are, in place of an informer, whose several copies of each would be most of the
// broker's memory. The reflector calls it from one goroutine; the rest may be
// called by any.
type seenGrants struct {
	controller *Controller

	mu     sync.RWMutex
	synced bool
	byName map[string]*seenGrant
	holds  map[string]map[string]*seenGrant // see hold.go: key of agent and policy → name
}

func newSeenGrants(c *Controller) *seenGrants {
	return &seenGrants{controller: c, byName: map[string]*seenGrant{}, holds: map[string]map[string]*seenGrant{}}
}

// Transformer has the reflector collect the grants of a first look in their small
// form.
func (s *seenGrants) Transformer() cache.TransformFunc {
	return func(object any) (any, error) {
		if grant, ok := object.(*v1alpha1.TaskGrant); ok {
			return seeGrant(grant), nil
		}
		return object, nil
	}
}

// see understands what the reflector brings, which is in its small form already if
// it was collected.
func (s *seenGrants) see(object any) *seenGrant {
	switch object := object.(type) {
	case *v1alpha1.TaskGrant:
		return seeGrant(object)
	case *seenGrant:
		return object
	}
	panic(fmt.Sprintf("the reflector of grants brought a %T", object)) // it promises the type; an index that missed an event lies
}

// Add takes in a grant that is new.
func (s *seenGrants) Add(object any) error { return s.Update(object) }

// Update takes in a grant that is new or has changed.
func (s *seenGrants) Update(object any) error {
	grant := s.see(object)
	if grant.Name == HeartbeatObject {
		s.controller.sawBeat(grants, grant.heartbeats)
		return nil
	}
	before := s.get(grant.Name)
	s.swap(before, grant)
	if before != nil && before.UID != grant.UID {
		s.controller.grantsChanged([]*seenGrant{grant}, []*seenGrant{before})
	} else {
		s.controller.grantsChanged([]*seenGrant{grant}, nil)
	}
	return nil
}

// Delete takes out a grant.
func (s *seenGrants) Delete(object any) error {
	grant := s.see(object)
	if grant.Name == HeartbeatObject {
		return nil
	}
	s.swap(s.get(grant.Name), nil)
	s.controller.grantsChanged(nil, []*seenGrant{grant})
	return nil
}

// Replace takes in all grants that there are: at the start, and when the watch had
// to begin anew. What is known and not among them is gone, also if another grant
// has its name now.
func (s *seenGrants) Replace(objects []any, _ string) error {
	var changed, gone []*seenGrant
	var heartbeat *seenGrant
	there := make(map[string]struct{}, len(objects))
	for _, object := range objects {
		grant := s.see(object)
		if grant.Name == HeartbeatObject {
			heartbeat = grant
			continue
		}
		there[grant.Name] = struct{}{}
		before := s.get(grant.Name)
		if before != nil && before.UID != grant.UID {
			gone = append(gone, before)
		} else if before != nil && before.version == grant.version {
			continue
		}
		changed = append(changed, grant)
		s.swap(before, grant)
	}
	for _, before := range s.all() {
		if _, is := there[before.Name]; !is {
			gone = append(gone, before)
			s.swap(before, nil)
		}
	}
	s.controller.grantsChanged(changed, gone)
	if heartbeat != nil { // it proves what is in the index by now
		s.controller.sawBeat(grants, heartbeat.heartbeats)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.synced = true
	return nil
}

// Resync has nothing to do: nothing is queued between the watch and the index.
func (s *seenGrants) Resync() error { return nil }

// HasSynced reports whether all grants that there were at the start are known.
func (s *seenGrants) HasSynced() bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.synced
}

// swap puts a grant where another of its name was; either may be nil.
func (s *seenGrants) swap(before, after *seenGrant) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if before != nil {
		delete(s.byName, before.Name)
		s.unholdLocked(before)
	}
	if after != nil {
		s.byName[after.Name] = after
		s.holdLocked(after)
	}
}

// get returns nil if there is no such grant.
func (s *seenGrants) get(name string) *seenGrant {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.byName[name]
}

func (s *seenGrants) all() []*seenGrant {
	s.mu.RLock()
	defer s.mu.RUnlock()
	all := make([]*seenGrant, 0, len(s.byName))
	for _, grant := range s.byName {
		all = append(all, grant)
	}
	return all
}
