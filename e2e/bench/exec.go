package bench

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"

	"github.com/taskgate/taskgate/e2e/testbed"
)

// Exec is what one contender makes of a command that prints a lot.
type Exec struct {
	Contender string `json:"contender"`
	// Speed is the megabytes of output per second.
	Speed Interval `json:"MBs"`
	// ToTwin is the speed as a part of the twin's in the same round.
	ToTwin Interval `json:"toTwin"`
	// CPU is the nanoseconds each process used per byte of output, what it does
	// afterwards included.
	CPU map[string]Interval `json:"cpuNsPerByte"`
}

const (
	execPod    = "stream"
	execRounds = 3
	execFile   = 64 << 20 // bytes of text that are printed over and over
)

// measureExec reads so many bytes of a command's output over WebSocket, through
// each contender in turn. The node is the fake one, so that the command costs
// little.
func (w *world) measureExec(ctx context.Context, size int) ([]Exec, error) {
	times := max(1, size/execFile)
	file, err := w.prepareExec(ctx)
	if err != nil {
		return nil, err
	}
	script := fmt.Sprintf("i=0; while [ $i -lt %d ]; do cat %s; i=$((i+1)); done", times, file)
	contenders := []*contender{w.direct, w.plain, w.taskgate}
	speeds, cpus := map[string][]float64{}, map[string]map[string][]float64{}
	for range execRounds {
		for _, c := range contenders {
			speed, cpu, err := w.execOnce(ctx, c, script, int64(times*execFile))
			if err != nil {
				return nil, fmt.Errorf("a command through %s: %w", c.name, err)
			}
			speeds[c.name] = append(speeds[c.name], speed)
			for process, nanoseconds := range cpu {
				if cpus[c.name] == nil {
					cpus[c.name] = map[string][]float64{}
				}
				cpus[c.name][process] = append(cpus[c.name][process], nanoseconds)
			}
		}
	}
	var rows []Exec
	for _, c := range contenders {
		row := Exec{Contender: c.name, Speed: intervalOf(speeds[c.name]), CPU: map[string]Interval{}}
		var ratios []float64
		for i, speed := range speeds[c.name] {
			ratios = append(ratios, speed/speeds[Twin][i])
		}
		row.ToTwin = intervalOf(ratios)
		for process, values := range cpus[c.name] {
			row.CPU[process] = intervalOf(values)
		}
		rows = append(rows, row)
	}
	return rows, nil
}

// prepareExec writes what is printed, lines like those of a log, and makes a pod.
func (w *world) prepareExec(ctx context.Context) (file string, err error) {
	var text bytes.Buffer
	for i := 0; text.Len() < execFile; i++ {
		fmt.Fprintf(&text, "2026-11-23T12:00:%02d.%06dZ INFO web-%d request served path=/api/v1/items/%d status=200\n", i%60, rand.N(1_000_000), i%7, rand.N(10_000))
	}
	file = filepath.Join(w.bed.Directory(), "output")
	if err := os.WriteFile(file, text.Bytes()[:execFile], 0o644); err != nil {
		return "", fmt.Errorf("writing what is to be printed: %w", err)
	}
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: execPod, Namespace: podsNamespace},
		Spec:       corev1.PodSpec{NodeName: testbed.KwokNodeName, Containers: []corev1.Container{{Name: "main", Image: "none"}}},
	}
	if _, err := w.kube.CoreV1().Pods(podsNamespace).Create(ctx, pod, metav1.CreateOptions{}); err != nil {
		return "", fmt.Errorf("making a pod: %w", err)
	}
	_, err = w.run(ctx, "", "kubectl", "-n", podsNamespace, "wait", "--for=condition=Ready", "pod/"+execPod, "--timeout=60s")
	return file, err
}

// execOnce returns the megabytes per second, and the nanoseconds per byte of each
// process of the contender.
func (w *world) execOnce(ctx context.Context, c *contender, script string, want int64) (speed float64, cpu map[string]float64, err error) {
	config := w.configOf(c)
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return 0, nil, err
	}
	target := client.CoreV1().RESTClient().Get().Resource("pods").Namespace(podsNamespace).Name(execPod).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{Command: []string{"sh", "-c", script}, Stdout: true}, scheme.ParameterCodec).URL()
	executor, err := remotecommand.NewWebSocketExecutor(config, http.MethodGet, target.String())
	if err != nil {
		return 0, nil, err
	}
	before, err := states(c)
	if err != nil {
		return 0, nil, err
	}
	var got counter
	began := time.Now()
	if err := executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: &got}); err != nil {
		return 0, nil, err
	}
	took := time.Since(began)
	if int64(got) != want {
		return 0, nil, fmt.Errorf("%d bytes of %d came", got, want)
	}
	if err := pause(ctx, 2*c.lag); err != nil {
		return 0, nil, err
	}
	after, err := states(c)
	if err != nil {
		return 0, nil, err
	}
	cpu = map[string]float64{}
	for i, hop := range c.hops {
		cpu[hop.name] = float64((after[i].cpu - before[i].cpu).Nanoseconds()) / float64(want)
	}
	return float64(want) / (1 << 20) / took.Seconds(), cpu, nil
}

// configOf is a contender as client-go knows it.
func (w *world) configOf(c *contender) *rest.Config {
	switch c {
	case w.plain:
		return &rest.Config{Host: c.url, BearerToken: "of no use", TLSClientConfig: rest.TLSClientConfig{CAFile: w.twin.ca}}
	case w.taskgate:
		access := w.bed.Environment().Alpha
		return &rest.Config{Host: c.url, BearerToken: access.Token, TLSClientConfig: rest.TLSClientConfig{CAFile: access.CA}}
	}
	return w.bed.Admin()
}

// counter counts what is written to it.
type counter int64

// Write implements io.Writer.
func (n *counter) Write(p []byte) (int, error) {
	*n += counter(len(p))
	return len(p), nil
}
