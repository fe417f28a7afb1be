package e2e_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// TestParityOfLeaders: two replicas of a controller lead one after the other.
func TestParityOfLeaders(t *testing.T) {
	(&program{"leader", leaderElection, "leads no more"}).compare(t)
}

func leaderElection(ctx context.Context, s *side, seen *story) {
	client := kubernetes.NewForConfigOrDie(s.config)
	for _, name := range []string{"one", "two"} {
		leading, stop := context.WithCancel(ctx)
		leaderelection.RunOrDie(leading, leaderelection.LeaderElectionConfig{
			Lock:          &resourcelock.LeaseLock{LeaseMeta: metav1.ObjectMeta{Name: "lead", Namespace: s.namespace}, Client: client.CoordinationV1(), LockConfig: resourcelock.ResourceLockConfig{Identity: name}},
			LeaseDuration: 3 * time.Second, RenewDeadline: 2 * time.Second, RetryPeriod: 100 * time.Millisecond, ReleaseOnCancel: true,
			Callbacks: leaderelection.LeaderCallbacks{
				OnStartedLeading: func(context.Context) { stop() },
				OnStoppedLeading: func() { seen.tell(name, "leads no more", nil) },
			},
		})
	}
	lease, err := client.CoordinationV1().Leases(s.namespace).Get(ctx, "lead", metav1.GetOptions{})
	seen.tell("transitions", *lease.Spec.LeaseTransitions, err)
}

// TestParityOfInformers: a shared informer, with and without WatchList, knows
// what is in the cluster, also after its connection broke.
func TestParityOfInformers(t *testing.T) {
	s := sharedStack(t)
	a := s.newAgent(t, "parity-informer") // of its own, for its sidecar is restarted
	s.policy(t, "parity-informer", a, "", everything)
	s.grant(t, "parity-informer", "parity-informer", a, "1h", everything)
	way := s.side(t, "agent", a.Kubeconfig, "par-informer")
	client := kubernetes.NewForConfigOrDie(way.config)
	ctx, cancel := context.WithCancel(t.Context())
	factory := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithNamespace(way.namespace))
	typed := factory.Core().V1().ConfigMaps().Informer()
	listing := cache.NewSharedInformer(&cache.ListWatch{ // no WatchList: it lists, then watches
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			return client.CoreV1().ConfigMaps(way.namespace).List(ctx, options)
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			return client.CoreV1().ConfigMaps(way.namespace).Watch(ctx, options)
		},
	}, &corev1.ConfigMap{}, 0)
	factory.Start(ctx.Done())
	ended := make(chan struct{})
	go func() { defer close(ended); listing.Run(ctx.Done()) }()
	t.Cleanup(func() { cancel(); factory.Shutdown(); <-ended })
	if !cache.WaitForCacheSync(ctx.Done(), typed.HasSynced, listing.HasSynced) {
		t.Fatal("the informers do not get to know what there is")
	}
	agree := func(what string) {
		t.Helper()
		list, err := s.kube.CoreV1().ConfigMaps(way.namespace).List(ctx, metav1.ListOptions{})
		if err != nil || len(list.Items) == 0 {
			t.Fatal(err, len(list.Items))
		}
		var want []string
		for _, item := range list.Items {
			want = append(want, way.namespace+"/"+item.Name+"@"+item.ResourceVersion)
		}
		slices.Sort(want)
		for name, store := range map[string]cache.Store{"shared": typed.GetStore(), "listing": listing.GetStore()} {
			eventually(t, 30*time.Second, name+" informer: "+what, func() error {
				if known := versions(store); !slices.Equal(known, want) {
					return fmt.Errorf("it knows %v, there is %v", known, want)
				}
				return nil
			})
		}
	}
	way.must(t, `kubectl wait --for=create cm/kube-root-ca.crt --timeout=20s; kubectl create cm a; kubectl create cm b; kubectl label cm b x=y; kubectl create cm c; kubectl delete cm c`)
	agree("while it is connected")
	if err := s.Sidecar("parity-informer").Stop(ctx); err != nil {
		t.Fatal(err)
	}
	s.admin(t, "-n", way.namespace, "delete", "cm", "a")
	s.admin(t, "-n", way.namespace, "create", "cm", "d")
	if err := s.Sidecar("parity-informer").Start(ctx); err != nil {
		t.Fatal(err)
	}
	agree("after the sidecar was away")
	s.admin(t, "-n", way.namespace, "create", "cm", "e")
	agree("with a new watch")
}

func versions(store cache.Store) []string {
	var all []string
	for _, item := range store.List() {
		object := item.(*corev1.ConfigMap)
		all = append(all, object.Namespace+"/"+object.Name+"@"+object.ResourceVersion)
	}
	slices.Sort(all)
	return all
}
