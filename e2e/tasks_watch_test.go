package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/tools/cache"

	"github.com/taskgate/taskgate/api/v1alpha1"
)

func contextOf(t testing.TB) context.Context { return context.WithoutCancel(t.Context()) }

// TestTasksInformer: an informer of an agent knows its grants and nobody else's,
// and forgets what was given back.
func TestTasksInformer(t *testing.T) {
	rig := newTasksRig(t)
	ctx, cancel := context.WithCancel(t.Context())
	client := rig.one.dynamic(t)
	factory := dynamicinformer.NewDynamicSharedInformerFactory(client, 0)
	shared := factory.ForResource(grantsResource).Informer()
	listing := cache.NewSharedInformer(&cache.ListWatch{ // no WatchList: it lists, then watches
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			return client.Resource(grantsResource).List(ctx, options)
		},
		WatchFuncWithContext: client.Resource(grantsResource).Watch,
	}, &unstructured.Unstructured{}, 0)
	factory.Start(ctx.Done())
	ended := make(chan struct{})
	go func() { defer close(ended); listing.Run(ctx.Done()) }()
	t.Cleanup(func() { cancel(); factory.Shutdown(); <-ended })
	if !cache.WaitForCacheSync(ctx.Done(), shared.HasSynced, listing.HasSynced) {
		t.Fatal("the informers do not get to know what there is")
	}
	agree := func(what string, with, without string) {
		t.Helper()
		for name, store := range map[string]cache.Store{"shared": shared.GetStore(), "listing": listing.GetStore()} {
			eventually(t, 15*time.Second, name+" informer: "+what, func() error {
				var names []string
				for _, item := range store.List() {
					object := item.(*unstructured.Unstructured)
					if agent, _, _ := unstructured.NestedString(object.Object, "spec", "agent"); agent != rig.one.id {
						t.Fatalf("%s knows %s of %s", name, object.GetName(), agent)
					}
					names = append(names, object.GetName())
				}
				if with != "" && !slices.Contains(names, with) || without != "" && slices.Contains(names, without) {
					return fmt.Errorf("it knows %v", names)
				}
				return nil
			})
		}
	}
	rig.ask(t, rig.two, "tasks-informer-two")
	rig.ask(t, rig.one, "tasks-informer-one")
	agree("a new grant", "tasks-informer-one", "tasks-informer-two")
	if err := client.Resource(grantsResource).Delete(ctx, "tasks-informer-one", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	agree("given back", "", "tasks-informer-one")
	// Typed, and metadata only.
	created, err := client.Resource(grantsResource).Create(ctx, grantsObject(t, asking("tasks-informer-typed", "")), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	rig.removeAfter(t, grantsResource, "tasks-informer-typed")
	var typed v1alpha1.TaskGrant
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(created.Object, &typed); err != nil || typed.Spec.Agent != rig.one.id || typed.UID == "" {
		t.Errorf("created %+v: %v", typed.Spec, err)
	}
	light, err := metadata.NewForConfig(rig.one.config(t))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := light.Resource(grantsResource).Get(ctx, "tasks-informer-typed", metav1.GetOptions{}); err != nil || got.UID != typed.UID {
		t.Errorf("metadata: %+v %v", got, err)
	}
	list, err := light.Resource(grantsResource).List(ctx, metav1.ListOptions{})
	if err != nil || !slices.ContainsFunc(list.Items, func(m metav1.PartialObjectMetadata) bool { return m.Name == "tasks-informer-typed" }) {
		t.Errorf("metadata: %+v %v", list, err)
	}
	// A deletion that insists on another object is a conflict.
	other, version := typed.UID+"x", "1"
	for _, must := range []*metav1.Preconditions{{UID: &other}, {ResourceVersion: &version}} {
		err := client.Resource(grantsResource).Delete(ctx, "tasks-informer-typed", metav1.DeleteOptions{Preconditions: must})
		if err == nil || !strings.Contains(err.Error(), "in the precondition") {
			t.Errorf("with preconditions: %v", err)
		}
	}
	if err := client.Resource(grantsResource).Delete(ctx, "tasks-informer-typed", metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &typed.UID}}); err != nil {
		t.Error(err)
	}
}

// TestTasksWatchEnds with what allows it, and says so.
func TestTasksWatchEnds(t *testing.T) {
	rig := newTasksRig(t)
	for _, row := range []struct {
		name   string
		end    func(a *agent)
		reason string
	}{
		{"suspended", func(a *agent) {
			rig.patch(t, grantsPolicies, a.name, `{"spec":{"suspended":true}}`)
		}, "PolicyDenied"},
		{"policy-gone", func(a *agent) { rig.remove(t, grantsPolicies, a.name) }, "NoGrant"},
	} {
		a := rig.newAgent(t, "tasks-watch-"+row.name)
		rig.policy(t, a.name, a, "", tasksRule)
		var answer *http.Response
		eventually(t, 5*time.Second, "the watch begins", func() error {
			request, err := asFault(a).request(t.Context(), "GET", tasksGrants+"?watch=true", "")
			if err != nil {
				t.Fatal(err)
			}
			if answer, err = a.http.Do(request); err != nil {
				t.Fatal(err)
			}
			if answer.StatusCode != 200 {
				_ = answer.Body.Close() // not the one wanted
				return errors.New(answer.Status)
			}
			return nil
		})
		ended := make(chan string, 1)
		go func() {
			defer func() { _ = answer.Body.Close() }() // only read
			var text strings.Builder
			buffer := make([]byte, 4096)
			for {
				n, err := answer.Body.Read(buffer)
				text.Write(buffer[:n])
				if err != nil {
					ended <- text.String()
					return
				}
			}
		}()
		row.end(a)
		select {
		case text := <-ended:
			if !strings.Contains(text, `"type":"ERROR"`) || !strings.Contains(text, "[taskgate:"+row.reason+"]") {
				t.Errorf("%s: it ends with %s", row.name, text)
			}
		case <-time.After(10 * time.Second):
			t.Errorf("%s: the watch goes on", row.name)
		}
		if got := a.do(t, "POST", tasksGrants, asJSON, tasksJSON("tasks-watch-x")); got.code != 403 || !strings.HasPrefix(got.reason(), row.reason) {
			t.Errorf("%s: create: %d %s", row.name, got.code, got.body)
		}
	}
}
