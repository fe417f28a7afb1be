package broker

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/rest"
)

// catalog is what the cluster serves, as its discovery says. A resource that is
// not in it is refused, so that a rule with wildcards does not cover what nobody
// has seen yet. It is read again every minute, and at once (but not more often
// than every two seconds) when something is asked for that it does not know.
type catalog struct {
	client discovery.DiscoveryInterface
	now    func() time.Time
	known  atomic.Pointer[map[served]kindInfo]

	mu   sync.Mutex // held while the catalog is read
	read time.Time
	err  error
}

// served names a resource with its subresource, whatever the version.
type served struct{ group, resource, subresource string }

type kindInfo struct{ namespaced bool }

const (
	catalogEvery = time.Minute
	catalogPause = 2 * time.Second
)

func newCatalog(config *rest.Config, now func() time.Time) (*catalog, error) {
	own := rest.CopyConfig(config)
	own.QPS, own.Burst = -1, -1
	client, err := discovery.NewDiscoveryClientForConfig(own)
	if err != nil {
		return nil, fmt.Errorf("making a discovery client: %w", err)
	}
	return &catalog{client: client, now: now}, nil
}

// run keeps the catalog up to date until ctx ends.
func (c *catalog) run(ctx context.Context) {
	for {
		c.refresh(catalogPause)
		pause := catalogEvery
		if c.known.Load() == nil {
			pause = catalogPause
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// ready is nil once the catalog was read.
func (c *catalog) ready() error {
	if c.known.Load() != nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return fmt.Errorf("reading what the cluster serves: %w", c.err)
	}
	return errors.New("what the cluster serves has not been read yet")
}

func (c *catalog) lookup(group, resource, subresource string) (kindInfo, bool) {
	wanted := served{group, resource, subresource}
	if kind, found := c.find(wanted); found {
		return kind, true
	}
	c.refresh(catalogPause)
	return c.find(wanted)
}

func (c *catalog) find(wanted served) (kindInfo, bool) {
	known := c.known.Load()
	if known == nil {
		return kindInfo{}, false
	}
	kind, found := (*known)[wanted]
	return kind, found
}

// refresh reads the catalog unless that was done a moment ago. Groups whose
// aggregated API server does not answer keep what was known of them.
func (c *catalog) refresh(notWithin time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := c.now(); now.Sub(c.read) < notWithin {
		return
	}
	c.read = c.now()
	_, lists, err := c.client.ServerGroupsAndResources()
	failed, partial := discovery.GroupDiscoveryFailedErrorGroups(err)
	if err != nil && !partial {
		c.err = err
		return
	}
	c.err = nil
	fresh := collect(lists)
	if old := c.known.Load(); old != nil {
		for group := range failed {
			keep(fresh, *old, group.Group)
		}
	}
	c.known.Store(&fresh)
}

func collect(lists []*metav1.APIResourceList) map[served]kindInfo {
	known := map[served]kindInfo{}
	for _, list := range lists {
		version, err := schema.ParseGroupVersion(list.GroupVersion)
		if err != nil {
			continue // not a group anything could be granted in
		}
		for _, resource := range list.APIResources {
			name, subresource, _ := strings.Cut(resource.Name, "/")
			known[served{version.Group, name, subresource}] = kindInfo{resource.Namespaced}
		}
	}
	return known
}

func keep(into, from map[served]kindInfo, group string) {
	for resource, kind := range from {
		if resource.group == group {
			into[resource] = kind
		}
	}
}
