package registration

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// Plan is what has to be done so that a server holds exactly the wanted entries of
// a set. Lists are sorted by SPIFFE ID and entry ID.
type Plan struct {
	Set       string
	Create    []Entry
	Update    []Change
	Stale     []Entry // ours, not wanted any more; deleted only on demand
	Unchanged int
	// Conflicts are wanted entries that cannot be made, because one that is not
	// ours is in their place.
	Conflicts []Conflict
	// Exposed are entries of others that give an agent's ID to more than its
	// sidecar.
	Exposed []Conflict
	// Warnings are about others that could get in the way.
	Warnings []string
}

// Change is an entry of ours that is not as it should be.
type Change struct {
	Want   Entry
	Fields []string // what differs
}

// Conflict is an entry of somebody else that matters to one of ours.
type Conflict struct {
	Other Entry
	Why   string
}

// Done reports whether nothing is left to do and nobody else gives our agents'
// identities away.
func (p *Plan) Done() bool {
	return len(p.Create)+len(p.Update)+len(p.Stale)+len(p.Conflicts)+len(p.Exposed) == 0
}

// NewPlan compares what is wanted with all that a server holds. An empty set owns
// nothing, so everything that is there is somebody else's.
func NewPlan(set string, wanted, held []Entry) *Plan {
	p := &Plan{Set: set}
	byID, byContent := map[string]*Entry{}, map[string]*Entry{}
	for i := range held {
		byID[held[i].ID] = &held[i]
		byContent[contentOf(&held[i])] = &held[i]
	}
	keep := map[string]bool{}
	for _, want := range wanted {
		have := byID[want.ID]
		switch same := byContent[contentOf(&want)]; {
		case have != nil && !owned(set, have):
			p.conflict(have, "has the ID of ours, but not the hint %q: somebody changed it. Delete it, then apply again", Hint)
		case same != nil && same.ID != want.ID:
			p.conflict(same, "is not ours and stands for %s with the very same parent and selectors; SPIRE takes no second one. Delete it, or do without ours", want.SPIFFEID)
		case have == nil:
			p.Create = append(p.Create, want)
		default:
			keep[want.ID] = true
			if fields := differences(&want, have); len(fields) > 0 {
				p.Update = append(p.Update, Change{want, fields})
			} else {
				p.Unchanged++
			}
		}
	}
	for i := range held {
		if owned(set, &held[i]) && !keep[held[i].ID] {
			p.Stale = append(p.Stale, held[i])
		}
	}
	p.lookAtOthers(wanted, held)
	p.Warnings = append(p.Warnings, reconcilers(set, held)...)
	p.sort()
	return p
}

func (p *Plan) conflict(other *Entry, format string, args ...any) {
	p.Conflicts = append(p.Conflicts, Conflict{*other, fmt.Sprintf(format, args...)})
}

func (p *Plan) sort() {
	entries := func(a, b Entry) int {
		return cmp.Or(strings.Compare(a.SPIFFEID.String(), b.SPIFFEID.String()), strings.Compare(a.ID, b.ID))
	}
	conflicts := func(a, b Conflict) int { return entries(a.Other, b.Other) }
	slices.SortFunc(p.Create, entries)
	slices.SortFunc(p.Stale, entries)
	slices.SortFunc(p.Update, func(a, b Change) int { return entries(a.Want, b.Want) })
	slices.SortFunc(p.Conflicts, conflicts)
	slices.SortFunc(p.Exposed, conflicts)
}

// contentOf is what a server allows only once (BatchCreateEntry answers
// AlreadyExists). Newlines are in none of the parts.
func contentOf(e *Entry) string {
	return strings.Join(append([]string{e.SPIFFEID.String(), e.ParentID.String()}, e.Selectors...), "\n")
}

// lookAtOthers finds entries of others that give our agents' IDs to more than the
// sidecar, or our sidecars another ID besides.
func (p *Plan) lookAtOthers(wanted, held []Entry) {
	agents, ours := map[string]bool{}, map[string]bool{}
	for _, want := range wanted {
		agents[want.SPIFFEID.String()] = true
		for _, selector := range want.Selectors {
			ours[selector] = true
		}
	}
	isOurs := func(selector string) bool { return ours[selector] }
	also := map[string]bool{}
	for i := range held {
		other := &held[i]
		if owned(p.Set, other) {
			continue
		}
		if agents[other.SPIFFEID.String()] {
			if err := onlySidecar(other, wanted); err != nil {
				p.Exposed = append(p.Exposed, Conflict{*other, fmt.Sprintf("gives the same ID away: %v. Delete it, or give the agent another ID", err)})
			}
			continue
		}
		// Only what consists of selectors of ours can match a container of ours alone.
		if len(other.Selectors) == 0 || !all(other.Selectors, isOurs) {
			continue
		}
		for _, want := range wanted {
			if all(other.Selectors, func(s string) bool { return slices.Contains(want.Selectors, s) }) {
				also[other.SPIFFEID.String()] = true
			}
		}
	}
	if len(also) > 0 {
		p.Warnings = append(p.Warnings, fmt.Sprintf("sidecars get other IDs besides their own (%s): start them with --hint %s, so that they take the right one",
			strings.Join(slices.Sorted(maps.Keys(also)), ", "), Hint))
	}
}

// onlySidecar returns nil if whoever matches the entry also matches one of ours
// with the same ID.
func onlySidecar(other *Entry, wanted []Entry) error {
	if err := CheckSelectors(other.Selectors); err != nil {
		return err
	}
	within := func(want Entry) bool {
		return want.SPIFFEID == other.SPIFFEID && all(want.Selectors, func(s string) bool { return slices.Contains(other.Selectors, s) })
	}
	if !slices.ContainsFunc(wanted, within) {
		return errors.New("the selectors name another container, image or service account than ours")
	}
	return nil
}

func all(texts []string, is func(string) bool) bool {
	return !slices.ContainsFunc(texts, func(text string) bool { return !is(text) })
}

var plainUUID = regexp.MustCompile(`^([^\s]*\.)?[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)

// reconcilers looks for the traces of a spire-controller-manager, which deletes
// every entry it does not know, unless it is confined to IDs with a prefix of its
// own (entryIDPrefix). Its entries for pods select one pod by its UID and have a random ID. One
// that has made no entry yet leaves no trace.
func reconcilers(set string, held []Entry) []string {
	prefixes := map[string]bool{}
	for i := range held {
		e := &held[i]
		match := plainUUID.FindStringSubmatch(e.ID)
		if match != nil && slices.ContainsFunc(e.Selectors, func(s string) bool { return strings.HasPrefix(s, "k8s:pod-uid:") }) {
			prefixes[match[1]] = true
		}
	}
	var warnings []string
	for _, prefix := range slices.Sorted(maps.Keys(prefixes)) {
		if strings.HasPrefix(idPrefix(set), prefix) {
			warnings = append(warnings, fmt.Sprintf("a spire-controller-manager works here, responsible for entries whose ID begins with %q: ours are among them, and it deletes them. "+
				"Set its entryIDPrefix to something else, or render ClusterSPIFFEIDs and let it do the work", prefix))
		}
	}
	return warnings
}
