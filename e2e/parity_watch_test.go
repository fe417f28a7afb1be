package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
)

// largeList lists more than 1 MB whole and in pages.
func largeList(ctx context.Context, s *side, seen *story) {
	const objects = 1200 // of 1 KiB
	made := make(chan error)
	for worker := range 8 {
		go func() {
			var errs []error
			for n := worker; n < objects; n += 8 {
				_, err := s.kube.CoreV1().ConfigMaps(s.namespace).Create(ctx, &corev1.ConfigMap{
					ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("m%04d", n), Labels: map[string]string{"set": "large"}},
					Data:       map[string]string{"n": strings.Repeat("x", 1024)},
				}, metav1.CreateOptions{})
				errs = append(errs, err)
			}
			made <- errors.Join(errs...)
		}()
	}
	for range 8 {
		seen.tell("prepare", nil, <-made)
	}
	maps := kubernetes.NewForConfigOrDie(s.config).CoreV1().ConfigMaps(s.namespace)
	whole, err := maps.List(ctx, metav1.ListOptions{LabelSelector: "set=large"})
	seen.tell("whole", whole, err)
	count, options := 0, metav1.ListOptions{LabelSelector: "set=large", Limit: 500}
	for {
		page, err := maps.List(ctx, options)
		if err != nil {
			seen.tell("page", nil, err)
			return
		}
		count += len(page.Items)
		if options.Continue = page.Continue; options.Continue == "" {
			break
		}
	}
	fmt.Fprintf(seen, "%d objects in pages\n", count)
}

// TestParityOfWatches: watches of client-go with all that a reflector needs.
func TestParityOfWatches(t *testing.T) {
	sharedStack(t).apply(t, parityDefinition)
	pair := sides(t, "watches")
	var told [2]string
	for i, side := range pair {
		var seen story
		watchThings(t, side, &seen)
		told[i] = normal(side.anyNamespace(seen.String()))
	}
	same(t, "watches", told)
	for _, word := range []string{"BOOKMARK", "initial-events-end", `"code": 410`, "Expired", "it ended: [\n true"} {
		if !strings.Contains(told[0], word) {
			t.Errorf("no %s was seen: %s", word, told[0])
		}
	}
}

func watchThings(t *testing.T, s *side, seen *story) {
	ctx := t.Context()
	s.must(t, `kubectl create cm one && kubectl label cm one a=b; `+crate+`c one 1 | kubectl create -f -`)
	maps := kubernetes.NewForConfigOrDie(s.config).CoreV1().ConfigMaps(s.namespace)
	yes := true
	begin := func(what string, open func() (watch.Interface, error)) watch.Interface {
		w, err := open()
		if err != nil {
			seen.tell(what, nil, err)
			return watch.NewEmptyWatch()
		}
		t.Cleanup(w.Stop)
		return w
	}
	listed := begin("watch list", func() (watch.Interface, error) {
		return maps.Watch(ctx, metav1.ListOptions{LabelSelector: "a=b", SendInitialEvents: &yes, ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan, AllowWatchBookmarks: true})
	})
	seen.tell("added", next(t, listed), nil)
	seen.tell("that was all", next(t, listed), nil)
	s.must(t, `kubectl label cm one a=c --overwrite`)
	seen.tell("it leaves the selection", next(t, listed), nil)

	short := begin("short watch", func() (watch.Interface, error) {
		second := int64(1)
		return maps.Watch(ctx, metav1.ListOptions{LabelSelector: "none=such", TimeoutSeconds: &second, AllowWatchBookmarks: true})
	})
	bookmarks := 0 // how many there are is a matter of time
	event := next(t, short)
	for ; event.Type == watch.Bookmark; event = next(t, short) {
		bookmarks++
	}
	seen.tell("after a second, and after bookmarks, it ended", []any{bookmarks > 0, event}, nil)

	things := dynamic.NewForConfigOrDie(s.config).Resource(crates).Namespace(s.namespace)
	old := begin("watch from an old version", func() (watch.Interface, error) {
		return things.Watch(ctx, metav1.ListOptions{ResourceVersion: "1"})
	})
	gone := next(t, old)
	seen.tell("old version", []any{gone.Type, firstWords(gone.Object)}, nil)
	_, err := things.Watch(ctx, metav1.ListOptions{ResourceVersion: "one"})
	seen.tell("no version", nil, err)
	_, err = maps.List(ctx, metav1.ListOptions{Limit: 1, Continue: "none"})
	seen.tell("no token", nil, err)
}

// firstWords leaves out of a status which versions there are.
func firstWords(object any) any {
	status, isStatus := object.(*metav1.Status)
	if !isStatus {
		return object
	}
	status.Message, _, _ = strings.Cut(status.Message, ": ")
	return status
}

// next is the next event, or none if the watch has ended.
func next(t *testing.T, w watch.Interface) watch.Event {
	t.Helper()
	select {
	case event := <-w.ResultChan():
		return event
	case <-time.After(20 * time.Second):
		t.Fatal("no event within 20 s")
		return watch.Event{}
	}
}
