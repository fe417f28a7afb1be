package cli

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/duration"
	"k8s.io/client-go/tools/cache"

	"github.com/taskgate/taskgate/api/v1alpha1"
	"github.com/taskgate/taskgate/internal/inert"
)

// lookAgain is how often it is checked whether time alone has settled something.
const lookAgain = time.Second

// follow prints a line for whatever comes, changes or is settled, until the
// person has seen enough, which is no error. What may not be read is an error at
// once; a watch that breaks later is taken up again.
func (o *pendingOptions) follow(cmd *cobra.Command, c *objects) error {
	first, err := readBoard(cmd.Context(), c)
	if err != nil {
		return explain(err, "listing what waits", roleApprover)
	}
	ctx, cancel := context.WithCancel(cmd.Context())
	live, wait := watchBoard(ctx, c, !first.policiesHidden)
	defer wait()
	defer cancel()
	ticker := time.NewTicker(lookAgain)
	defer ticker.Stop()
	f := &follower{out: cmd.OutOrStdout(), json: o.output == "json", shown: map[string]*target{}, line: map[string]string{}}
	for {
		if err := f.print(live.board(), time.Now()); err != nil {
			return couldNot("%w", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-live.changed:
		case <-ticker.C:
		}
	}
}

// liveBoard is a board kept up to date by informers.
type liveBoard struct {
	changed                                chan struct{} // holds a token if something changed since it was taken
	approvals, grants, policies, decisions cache.Store   // policies is nil if they may not be read
}

// watchBoard returns once everything is there or ctx has ended; wait returns when
// the informers have stopped, which they do with ctx.
func watchBoard(ctx context.Context, c *objects, withPolicies bool) (live *liveBoard, wait func()) {
	live = &liveBoard{changed: make(chan struct{}, 1)}
	var running sync.WaitGroup
	var synced []cache.InformerSynced
	start := func(lists cache.ListerWatcher, object runtime.Object) cache.Store {
		store, informer := cache.NewInformerWithOptions(cache.InformerOptions{ListerWatcher: lists, ObjectType: object, Handler: live.handler()})
		running.Go(func() { informer.RunWithContext(ctx) })
		synced = append(synced, informer.HasSynced)
		return store
	}
	live.approvals = start(listWatch[v1alpha1.ApprovalList](c, approvals, ""), &v1alpha1.Approval{})
	live.grants = start(listWatch[v1alpha1.TaskGrantList](c, grants, ""), &v1alpha1.TaskGrant{})
	live.decisions = start(listWatch[v1alpha1.DecisionList](c, decisions, ""), &v1alpha1.Decision{})
	if withPolicies {
		live.policies = start(listWatch[v1alpha1.AgentPolicyList](c, policies, ""), &v1alpha1.AgentPolicy{})
	}
	cache.WaitForCacheSync(ctx.Done(), synced...)
	return live, running.Wait
}

func (l *liveBoard) handler() cache.ResourceEventHandler {
	note := func(any) {
		select {
		case l.changed <- struct{}{}:
		default: // it is known already
		}
	}
	return cache.ResourceEventHandlerFuncs{AddFunc: note, UpdateFunc: func(_, object any) { note(object) }, DeleteFunc: note}
}

func (l *liveBoard) board() *board {
	b := &board{approvals: stored[v1alpha1.Approval](l.approvals), grants: stored[v1alpha1.TaskGrant](l.grants)}
	if l.policies != nil {
		b.policies = stored[v1alpha1.AgentPolicy](l.policies)
	}
	for _, d := range stored[v1alpha1.Decision](l.decisions) {
		b.decisions = append(b.decisions, *d)
	}
	return b
}

func stored[T any](store cache.Store) []*T {
	var items []*T
	for _, object := range store.List() {
		items = append(items, object.(*T))
	}
	return items
}

// follower remembers what it has printed.
type follower struct {
	out   io.Writer
	json  bool
	shown map[string]*target // what waited, by UID
	line  map[string]string  // … and what was said of it
}

// print says what is new, has changed, or waits no longer.
func (f *follower) print(b *board, now time.Time) error {
	still := map[string]bool{}
	for _, t := range b.waiting(now) {
		still[t.uid] = true
		s := t.standing(now)
		line := "needs " + t.needs()
		if !s.open {
			line = s.why
		}
		if f.line[t.uid] == line {
			continue
		}
		f.shown[t.uid], f.line[t.uid] = t, line
		if err := f.say(t, s, line, now); err != nil {
			return err
		}
	}
	if len(still) == len(f.shown) {
		return nil
	}
	settled := b.targets(func(t *target) bool { return f.shown[t.uid] != nil && !still[t.uid] })
	for _, t := range settled {
		still[t.uid] = true
		if err := f.settle(t, t.standing(now), now); err != nil {
			return err
		}
	}
	for uid, t := range f.shown {
		if !still[uid] {
			if err := f.settle(t, standing{word: "Deleted", why: "it is gone"}, now); err != nil {
				return err
			}
		}
	}
	return nil
}

func (f *follower) settle(t *target, s standing, now time.Time) error {
	delete(f.shown, t.uid)
	delete(f.line, t.uid)
	return f.say(t, s, s.why, now)
}

func (f *follower) say(t *target, s standing, what string, now time.Time) error {
	if f.json {
		what := item(t, now)
		what.State, what.Why = s.word, s.why
		return printLine(f.out, what)
	}
	line := fmt.Sprintf("%s  %-8s  %s  %s", now.UTC().Format("15:04:05Z"), strings.ToLower(s.word), inert.Line(t.path()), inert.Line(what))
	if s.word == "Waiting" {
		if at := t.expires(); !at.IsZero() {
			line += ", expires in " + duration.HumanDuration(at.Sub(now))
		}
		line += fmt.Sprintf("  %s, task %s, gate %s: %s", cell(t.agent), cell(t.task), cell(t.gate()), cell(t.summary()))
	}
	_, err := fmt.Fprintln(f.out, line)
	return err
}
