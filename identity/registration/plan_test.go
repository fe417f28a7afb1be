package registration

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestPlan(t *testing.T) {
	t.Parallel()
	wanted := entriesOf(t, description) // the nodes, then two images each of builder and fixer
	one := wanted[1]
	change := func(e Entry, do func(*Entry)) Entry { do(&e); return e }
	with := func(entries ...Entry) []Entry { return append(slices.Clone(wanted), entries...) }
	instead := func(e Entry) []Entry { return append([]Entry{wanted[0], e}, wanted[2:]...) }
	foreign := func(id string, selectors ...string) Entry {
		return Entry{ID: "f", SPIFFEID: spiffeid.RequireFromString(id), ParentID: one.ParentID, Selectors: selectors}
	}
	uuid := "6f1d3a52-9f86-4d6f-8a5c-0a54d0b9d6c1"
	for _, test := range []struct {
		name string
		held []Entry
		want string
	}{
		{"nothing there", nil, "create 5, update 0, stale 0, unchanged 0, conflicts 0, exposed 0, warnings 0"},
		{"all there", wanted, "create 0, update 0, stale 0, unchanged 5, conflicts 0, exposed 0, warnings 0"},
		{"made an administrator", instead(change(one, func(e *Entry) { e.Admin = true })), "create 0, update 1, stale 0, unchanged 4, conflicts 0, exposed 0, warnings 0"},
		{"another life", instead(change(one, func(e *Entry) { e.TTL = 7 })), "create 0, update 1, stale 0, unchanged 4, conflicts 0, exposed 0, warnings 0"},
		{"selectors taken away", instead(change(one, func(e *Entry) { e.Selectors = e.Selectors[1:] })), "create 0, update 1, stale 0, unchanged 4, conflicts 0, exposed 0, warnings 0"},
		{"one too many", with(change(one, func(e *Entry) { e.ID = "taskgate.prod.old"; e.Selectors = []string{"k8s:ns:x"} })), "create 0, update 0, stale 1, unchanged 5, conflicts 0, exposed 0, warnings 0"},
		{"of another set", with(change(one, func(e *Entry) {
			e.ID, e.SPIFFEID = "taskgate.prod-us.old", spiffeid.RequireFromString("spiffe://example.org/other")
		})), "create 0, update 0, stale 0, unchanged 5, conflicts 0, exposed 0, warnings 1"},
		{"ours by ID, not by hint", instead(change(one, func(e *Entry) { e.Hint = "" })), "create 0, update 0, stale 0, unchanged 4, conflicts 1, exposed 0, warnings 0"},
		{"the hint alone", with(change(foreign("spiffe://example.org/else", "k8s:ns:x"), func(e *Entry) { e.Hint = Hint })), "create 0, update 0, stale 0, unchanged 5, conflicts 0, exposed 0, warnings 0"},
		{"somebody was first", instead(change(one, func(e *Entry) { e.ID = uuid })), "create 0, update 0, stale 0, unchanged 4, conflicts 1, exposed 0, warnings 0"},
		{"the ID for the whole pod", with(foreign(one.SPIFFEID.String(), "k8s:ns:agents", "k8s:sa:builder")), "create 0, update 0, stale 0, unchanged 5, conflicts 0, exposed 1, warnings 0"},
		{"the ID for the agent's own container", with(foreign(one.SPIFFEID.String(), "k8s:ns:agents", "k8s:sa:builder", "k8s:container-name:agent", "k8s:container-image:"+digestOne)), "create 0, update 0, stale 0, unchanged 5, conflicts 0, exposed 1, warnings 0"},
		{"the ID, narrower", with(foreign(one.SPIFFEID.String(), append([]string{"k8s:pod-uid:1"}, one.Selectors...)...)), "create 0, update 0, stale 0, unchanged 5, conflicts 0, exposed 0, warnings 0"},
		{"a second ID for the sidecar", with(foreign("spiffe://example.org/fallback", "k8s:ns:agents", "k8s:sa:builder")), "create 0, update 0, stale 0, unchanged 5, conflicts 0, exposed 0, warnings 1"},
		{"a reconciler that deletes ours", with(change(foreign("spiffe://example.org/else", "k8s:pod-uid:1"), func(e *Entry) { e.ID = uuid })), "create 0, update 0, stale 0, unchanged 5, conflicts 0, exposed 0, warnings 1"},
		{"a reconciler that keeps to its own", with(change(foreign("spiffe://example.org/else", "k8s:pod-uid:1"), func(e *Entry) { e.ID = "spire." + uuid })), "create 0, update 0, stale 0, unchanged 5, conflicts 0, exposed 0, warnings 0"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			if got := brief(NewPlan("prod", wanted, test.held)); got != test.want {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
		})
	}
	if got := NewPlan("", nil, wanted); len(got.Stale) > 0 {
		t.Errorf("a set without a name owns %d entries", len(got.Stale))
	}
}

func TestApply(t *testing.T) {
	t.Parallel()
	f := &fakeSPIRE{}
	s := f.server(t)
	wanted := entriesOf(t, description)
	f.store(&types.Entry{Id: "foreign", SpiffeId: &types.SPIFFEID{TrustDomain: "example.org", Path: "/x"}, ParentId: &types.SPIFFEID{TrustDomain: "example.org", Path: "/y"}, Selectors: []*types.Selector{{Type: "unix", Value: "uid:1"}}})
	step := func(wanted []Entry, prune bool, want string) {
		t.Helper()
		plan := planned(t, s, wanted)
		if got := brief(plan); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
		if outcomes, err := s.Apply(t.Context(), plan, prune); err != nil || slices.ContainsFunc(outcomes, func(o Outcome) bool { return o.Err != nil }) {
			t.Errorf("%v, %v", outcomes, err)
		}
	}
	step(wanted, false, "create 5, update 0, stale 0, unchanged 0, conflicts 0, exposed 0, warnings 0")
	step(wanted, true, "create 0, update 0, stale 0, unchanged 5, conflicts 0, exposed 0, warnings 0")
	f.entries[wanted[1].ID].Admin, f.entries[wanted[2].ID].Downstream = true, true
	step(wanted, false, "create 0, update 2, stale 0, unchanged 3, conflicts 0, exposed 0, warnings 0")
	step(wanted[:2], false, "create 0, update 0, stale 3, unchanged 2, conflicts 0, exposed 0, warnings 0")
	step(wanted[:2], true, "create 0, update 0, stale 3, unchanged 2, conflicts 0, exposed 0, warnings 0")
	step(nil, true, "create 0, update 0, stale 2, unchanged 0, conflicts 0, exposed 0, warnings 0")
	if len(f.entries) != 1 || f.entries["foreign"] == nil {
		t.Errorf("left: %v", f.entries)
	}
}

// A call that fails half way leaves the rest alone, and a second time finishes it.
func TestApplyHeals(t *testing.T) {
	t.Parallel()
	for _, after := range []bool{false, true} {
		f := &fakeSPIRE{}
		s := f.server(t)
		wanted := entriesOf(t, description)
		stale := toProto(&wanted[0])
		stale.Id, stale.SpiffeId.Path = "taskgate.prod.old", "/old"
		f.store(stale)
		creates := 0
		f.fail = func(call string) (bool, error) {
			if call == "create" {
				creates++
			}
			if creates == 2 {
				creates++
				return after, status.Error(codes.Unavailable, "gone")
			}
			return false, nil
		}
		outcomes, err := s.Apply(t.Context(), planned(t, s, wanted), true)
		if err == nil || !strings.Contains(err.Error(), "gone") {
			t.Errorf("the failure is not told: %v", err)
		}
		var told []string
		for _, o := range outcomes {
			switch {
			case o.Err == nil:
				told = append(told, "done")
			case errors.Is(o.Err, errUnknown):
				told = append(told, "unknown")
			case errors.Is(o.Err, errNotTried):
				told = append(told, "not tried")
			}
		}
		if got := strings.Join(told, ", "); got != "done, done, unknown, unknown, not tried, not tried" {
			t.Error(got)
		}
		if f.entries["taskgate.prod.old"] == nil {
			t.Error("a stale entry was deleted although not everything was made")
		}
		if outcomes, err := s.Apply(t.Context(), planned(t, s, wanted), true); err != nil || slices.ContainsFunc(outcomes, func(o Outcome) bool { return o.Err != nil }) {
			t.Errorf("%v, %v", outcomes, err)
		}
		if plan := planned(t, s, wanted); !plan.Done() || plan.Unchanged != 5 {
			t.Error(brief(plan))
		}
	}
}

func TestApplyDoesNotBelieve(t *testing.T) {
	t.Parallel()
	wanted := entriesOf(t, description)
	for _, test := range []struct {
		name   string
		change func(*types.Entry)
		short  bool
		want   string
	}{
		{"the hint dropped", func(e *types.Entry) { e.Hint = "" }, false, "stored it differently (hint, "},
		{"made an administrator", func(e *types.Entry) { e.Admin = true }, false, "stored it differently (admin, "},
		{"another ID", func(e *types.Entry) { e.Id = "x" }, false, "stored it differently (x)"},
		{"too few answers", nil, true, "answered about 1 entries of 2"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			fake := &fakeSPIRE{change: test.change, short: test.short}
			outcomes, err := fake.server(t).Apply(t.Context(), &Plan{Set: "prod", Create: wanted[:2]}, true)
			if outcomes[0].Err == nil || !strings.Contains(errors.Join(outcomes[0].Err, err).Error(), test.want) {
				t.Errorf("got %v, %v", outcomes[0].Err, err)
			}
		})
	}
}

// One entry that is refused does not keep the others from being made, but nothing
// is deleted.
func TestApplyPart(t *testing.T) {
	t.Parallel()
	f := &fakeSPIRE{}
	s := f.server(t)
	wanted := entriesOf(t, strings.Replace(description, "agent/builder", "refused", 1))
	stale := wanted[0]
	stale.ID = "taskgate.prod.old"
	f.store(toProto(&stale))
	f.entries[stale.ID].SpiffeId.Path = "/old"
	outcomes, err := s.Apply(t.Context(), planned(t, s, wanted), true)
	failed := 0
	for _, o := range outcomes {
		if o.Err != nil && o.Action == Created {
			failed++
		}
	}
	if failed != 2 || err == nil || !strings.Contains(err.Error(), "left alone") || len(f.entries) != 4 {
		t.Errorf("%d failed, %v, %d entries", failed, err, len(f.entries))
	}
}

func TestUnreachable(t *testing.T) {
	t.Parallel()
	s, err := ConnectSocket("/nowhere/at/all")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Entries(t.Context()); err == nil || !strings.Contains(err.Error(), "is the server running there") {
		t.Error(err)
	}
}
