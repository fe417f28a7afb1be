package registration

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc/codes"
)

// Action is what was done, or was to be done, to an entry.
type Action string

// The actions.
const (
	Created Action = "create"
	Updated Action = "update"
	Deleted Action = "delete"
)

// Outcome is what became of one entry.
type Outcome struct {
	Action Action
	Entry  Entry
	Err    error // nil if done
}

// errNotTried says that an entry was left alone because of an earlier failure.
var errNotTried = errors.New("not tried")

// errUnknown says that the server may or may not have done it.
var errUnknown = errors.New("not known whether it was done")

// Apply does what a plan says: it creates, updates, and with prune deletes what is
// stale. Stale entries are deleted only after everything else was done, so that no
// agent is without an identity in between.
//
// There is an outcome for each entry. The error is that of a call that failed as a
// whole; what it was about is not known, and the rest is not tried. In either case
// a new plan and Apply finish the work.
func (s *Server) Apply(ctx context.Context, plan *Plan, prune bool) ([]Outcome, error) {
	var updates []Entry
	for _, change := range plan.Update {
		updates = append(updates, change.Want)
	}
	work := &work{size: s.batch}
	work.do(ctx, Created, plan.Create, s.create)
	work.do(ctx, Updated, updates, s.update)
	if prune && len(plan.Stale) > 0 {
		// An old entry may be all that an agent has.
		if (work.failed || len(plan.Conflicts) > 0) && work.err == nil {
			work.err = errors.New("stale entries are left alone, because not everything that is wanted could be made")
		}
		work.do(ctx, Deleted, plan.Stale, s.remove)
	}
	return work.outcomes, work.err
}

// work goes through entries in batches until a call fails.
type work struct {
	size     int
	outcomes []Outcome
	failed   bool // some entry was not done
	err      error
}

func (w *work) do(ctx context.Context, action Action, entries []Entry, call func(context.Context, []Entry) ([]result, error)) {
	for len(entries) > 0 {
		batch := entries[:min(w.size, len(entries))]
		entries = entries[len(batch):]
		if w.err != nil {
			for _, entry := range batch {
				w.note(action, entry, errNotTried)
			}
			continue
		}
		results, err := call(ctx, batch)
		if err == nil && len(results) != len(batch) {
			err = fmt.Errorf("the SPIRE server answered about %d entries of %d", len(results), len(batch))
		}
		for i, entry := range batch {
			if err != nil {
				w.note(action, entry, errUnknown)
				continue
			}
			w.note(action, entry, judge(action, &entry, results[i]))
		}
		if err != nil {
			w.err = fmt.Errorf("to %s entries: %w", action, explain(err))
		}
	}
}

func (w *work) note(action Action, entry Entry, err error) {
	w.outcomes = append(w.outcomes, Outcome{action, entry, err})
	w.failed = w.failed || err != nil
}

// judge decides whether an entry is as wanted now. A missing status is no success, and
// success is not believed where the answer shows something else.
func judge(action Action, want *Entry, r result) error {
	code := codes.Code(r.status.GetCode())
	switch {
	case r.status == nil:
		return errUnknown
	case action == Deleted && (code == codes.OK || code == codes.NotFound):
		return nil
	case code == codes.AlreadyExists && r.entry.GetId() != want.ID:
		return fmt.Errorf("the entry %s, which is not ours, is in its place; see taskgate spire plan", r.entry.GetId())
	case code != codes.OK && code != codes.AlreadyExists:
		return fmt.Errorf("the SPIRE server refuses it: %s: %s", code, r.status.GetMessage())
	}
	have, err := fromProto(r.entry)
	if err != nil {
		return fmt.Errorf("the SPIRE server does not say what it stored: %w", err)
	}
	if fields := differences(want, &have); len(fields) > 0 || have.ID != want.ID {
		return fmt.Errorf("the SPIRE server stored it differently (%s); is it too old to know that, or is somebody else at work?", strings.Join(append(fields, have.ID), ", "))
	}
	return nil
}
