package tasks

import (
	"bytes"
	"encoding/json"
	"io"

	"k8s.io/apimachinery/pkg/watch"
)

// watching rewrites the events of a watch on their way.
type watching struct {
	view    *view
	decoder *json.Decoder
	// gone are the UIDs of grants the agent was told to be deleted, or was never
	// told of: they change for a while after they were given back.
	gone map[string]bool
	// columns of a Table come with the first event only; if that is not for the
	// agent, they are kept for the next.
	columns any
}

type event struct {
	Type   string         `json:"type"`
	Object map[string]any `json:"object"`
}

func newWatching(from io.ReadCloser, v *view) io.ReadCloser {
	w := &watching{view: v, decoder: newDecoder(from), gone: map[string]bool{}}
	return &pieces{Closer: from, next: w.next}
}

// next waits for the next event and writes it, or nothing if it is not for the
// agent.
func (w *watching) next(to *bytes.Buffer) error {
	var e event
	if err := w.decoder.Decode(&e); err != nil {
		return err // io.EOF between two events: the watch is over
	}
	if !w.pass(&e) {
		return nil
	}
	encoded, err := encode(&e)
	to.Write(encoded)
	return err
}

// pass makes of an event what the agent may see of it, and reports whether that
// is anything.
func (w *watching) pass(e *event) bool {
	if watch.EventType(e.Type) == watch.Error {
		return true // a Status about the watch itself
	}
	if w.view.form == table && e.Object["kind"] == "Table" {
		return w.passTable(e)
	}
	if watch.EventType(e.Type) == watch.Bookmark {
		e.Object = bookmark(e.Object, w.view.form)
		return true
	}
	if !w.concerns(e, e.Object) {
		return false
	}
	e.Object = w.view.shape(e.Object)
	return true
}

// concerns reports whether the event is about an object the agent sees. A grant
// that was given back is deleted, once.
func (w *watching) concerns(e *event, object map[string]any) bool {
	if !w.view.mayShow(object) {
		return false
	}
	if !released(object) {
		return true
	}
	meta, _ := object["metadata"].(map[string]any)
	uid, _ := meta["uid"].(string)
	known := w.gone[uid]
	w.gone[uid] = true
	if known || watch.EventType(e.Type) != watch.Modified {
		return false
	}
	e.Type = string(watch.Deleted)
	return true
}

func (w *watching) passTable(e *event) bool {
	if columns := e.Object["columnDefinitions"]; columns != nil {
		w.columns = columns
	}
	rows, _ := e.Object["rows"].([]any)
	if len(rows) != 1 {
		return false
	}
	row, _ := rows[0].(map[string]any)
	object, _ := row["object"].(map[string]any)
	if watch.EventType(e.Type) == watch.Bookmark {
		e.Object["rows"] = []any{map[string]any{"cells": row["cells"], "object": bookmark(object, metadata)}}
	} else {
		if !w.concerns(e, object) {
			return false
		}
		e.Object["rows"] = []any{w.view.shapeRow(row, object)}
	}
	e.Object["columnDefinitions"], w.columns = w.columns, nil
	return true
}

// bookmark keeps of a bookmark's object what a bookmark says: how far the watch
// has come, and that the initial events are over.
func bookmark(object map[string]any, f form) map[string]any {
	meta, _ := object["metadata"].(map[string]any)
	kept := only(meta, []string{"resourceVersion"})
	const initialEventsEnd = "k8s.io/initial-events-end"
	if annotations := only(meta["annotations"], []string{initialEventsEnd}); len(annotations) > 0 {
		kept["annotations"] = annotations
	}
	shown := map[string]any{"kind": object["kind"], "apiVersion": object["apiVersion"], "metadata": kept}
	if f == metadata {
		return partial(shown)
	}
	return shown
}
