package e2e_test

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"

	"github.com/taskgate/taskgate/e2e/testbed"
)

// numberFrom is a number that the environment may set.
func numberFrom(t testing.TB, variable string, usual int) int {
	t.Helper()
	text := os.Getenv(variable)
	if text == "" {
		return usual
	}
	number, err := strconv.Atoi(text)
	if err != nil || number < 1 {
		t.Fatalf("%s=%s is no number of anything", variable, text)
	}
	return number
}

// leavesNothing opens and closes streams, half of them over each protocol; after
// that broker and sidecar hold what they held before (T217). TASKGATE_E2E_STREAMS
// says how many; 1,000 are asked for.
func (r *streamsRig) leavesNothing(t *testing.T) {
	opens := numberFrom(t, "TASKGATE_E2E_STREAMS", 100)
	bed := &faultBed{stack: r.stack}
	broker, sidecar := r.Broker(0), r.Sidecar(testbed.Alpha)
	r.opens(t, 40)
	before, beside := faultUsageOf(t, broker.PID()), faultUsageOf(t, sidecar.PID())
	began := time.Now()
	r.opens(t, opens)
	took := time.Since(began)
	var after, nearby faultUsage
	eventually(t, 90*time.Second, "broker and sidecar hold what they held before", func() error {
		after, nearby = faultUsageOf(t, broker.PID()), faultUsageOf(t, sidecar.PID())
		if after.descriptors > before.descriptors+5 || nearby.descriptors > beside.descriptors+5 {
			return fmt.Errorf("the broker holds %s, not %s; the sidecar %s, not %s", after, before, nearby, beside)
		}
		return nil
	})
	if after.rss > before.rss+(48<<20) || nearby.rss > beside.rss+(32<<20) {
		t.Errorf("the broker grew from %s to %s, the sidecar from %s to %s", before, after, beside, nearby)
	}
	left, leftBeside := bed.goroutines(t, broker), bed.goroutines(t, sidecar)
	r.served(t, r.agent, "/api/v1/namespaces/streams/pods")
	r.opens(t, 40)
	fresh, freshBeside := bed.goroutines(t, broker), bed.goroutines(t, sidecar)
	r.served(t, r.agent, "/api/v1/namespaces/streams/pods")
	if left > fresh+20 || leftBeside > freshBeside+20 {
		t.Errorf("the broker has %d goroutines, a fresh one %d; the sidecar %d, a fresh one %d", left, fresh, leftBeside, freshBeside)
	}
	t.Logf("%d streams in %s; broker %s, then %s and %d goroutines (fresh %d); sidecar %s, then %s and %d (fresh %d)",
		opens, took, before, after, left, fresh, beside, nearby, leftBeside, freshBeside)
}

// opens runs a command so many times, eight at once.
func (r *streamsRig) opens(t testing.TB, times int) {
	t.Helper()
	config := &rest.Config{Host: r.agent.URL, BearerToken: r.agent.Token, TLSClientConfig: rest.TLSClientConfig{CAFile: r.agent.CA}}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	target := client.CoreV1().RESTClient().Get().Resource("pods").Namespace(streamsSpace).Name(streamsPod).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{Command: []string{"echo", "here"}, Stdout: true}, scheme.ParameterCodec).URL()
	var workers sync.WaitGroup
	for worker := range 8 {
		workers.Go(func() {
			for n := worker; n < times; n += 8 {
				executor, err := remotecommand.NewWebSocketExecutor(config, http.MethodGet, target.String())
				if n/8%2 == 1 {
					executor, err = remotecommand.NewSPDYExecutor(config, http.MethodPost, target)
				}
				var out bytes.Buffer
				if err == nil {
					err = executor.StreamWithContext(context.WithoutCancel(t.Context()), remotecommand.StreamOptions{Stdout: &out})
				}
				if err != nil || out.String() != "here\n" {
					t.Errorf("stream %d: %q, %v", n, out.String(), err)
					return
				}
			}
		})
	}
	workers.Wait()
}
