package testbed

import (
	"context"
	_ "embed" // the configuration of the fake node
	"errors"
	"fmt"
	"os"
	"text/template"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/taskgate/taskgate/e2e/internal/process"
	"github.com/taskgate/taskgate/e2e/internal/toolset"
)

//go:embed kwok.yaml
var kwokConfiguration string

// startKwok starts the fake node and waits until the cluster takes it for ready.
// Its kubelet listens on loopback only: it asks nobody who they are.
func (t *Testbed) startKwok(ctx context.Context) error {
	if err := t.writeKwokFiles(); err != nil {
		return err
	}
	port, err := t.claims.Claim()
	if err != nil {
		return err
	}
	address := fmt.Sprintf("127.0.0.1:%d", port)
	spec := process.Spec{
		Name: ComponentKwok,
		Path: t.tools[toolset.Kwok],
		Arguments: []string{
			"--kubeconfig=" + t.path("kubernetes/kwok.kubeconfig"), "--config=" + t.path("kwok/kwok.yaml"),
			"--manage-all-nodes", "--node-ip=127.0.0.1", fmt.Sprintf("--node-port=%d", port), "--server-address=" + address,
			"--tls-cert-file=" + t.path("kubernetes/server.crt"), "--tls-private-key-file=" + t.path("kubernetes/server.key"),
			"--node-lease-duration-seconds=40",
		},
		Ready:  process.Probe{URL: "https://" + address + "/healthz", CA: t.path("kubernetes/ca.crt")},
		Advice: "look at the log of kube-apiserver too, or go on without pods: NODE=none",
	}
	if err := t.run(ctx, spec, port); err != nil {
		return err
	}
	begin := time.Now()
	if err := t.createKwokNode(ctx); err != nil {
		return err
	}
	t.say("node %s is ready (%s)", KwokNodeName, time.Since(begin).Round(10*time.Millisecond))
	return nil
}

func (t *Testbed) writeKwokFiles() error {
	if err := t.makeFolders("kwok/work"); err != nil {
		return err
	}
	values := struct {
		LogFile, WorkFolder string
		User                *process.User
	}{LogFile: t.path("kwok/pods.log"), WorkFolder: t.path("kwok/work")}
	if os.Geteuid() == 0 {
		const nobody = 65534
		values.User = &process.User{UID: nobody, GID: nobody}
	}
	parsed, err := template.New("kwok.yaml").Delims("<<", ">>").Parse(kwokConfiguration)
	if err != nil {
		return fmt.Errorf("reading the fake node's configuration: %w", err)
	}
	file, err := os.Create(t.path("kwok/kwok.yaml"))
	if err != nil {
		return fmt.Errorf("writing the fake node's configuration: %w", err)
	}
	if err := errors.Join(parsed.Execute(file, values), file.Close()); err != nil {
		return fmt.Errorf("writing the fake node's configuration: %w", err)
	}
	return t.AppendPodLog("hello from the testbed's fake node")
}

// AppendPodLog adds a line to what kubectl logs prints, for every pod of the fake
// node. Logs being followed show it.
func (t *Testbed) AppendPodLog(line string) error {
	file, err := os.OpenFile(t.path("kwok/pods.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("opening the log of the fake pods: %w", err)
	}
	// The format of container runtimes: time, stream, F for a full line, text.
	_, err = fmt.Fprintf(file, "%s stdout F %s\n", time.Now().UTC().Format(time.RFC3339Nano), line)
	if err := errors.Join(err, file.Close()); err != nil {
		return fmt.Errorf("writing the log of the fake pods: %w", err)
	}
	return nil
}

func (t *Testbed) createKwokNode(ctx context.Context) error {
	client, err := kubernetes.NewForConfig(t.admin)
	if err != nil {
		return fmt.Errorf("making a client of the cluster: %w", err)
	}
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{
		Name:   KwokNodeName,
		Labels: map[string]string{corev1.LabelHostname: KwokNodeName, corev1.LabelOSStable: "linux"},
	}}
	if _, err := client.CoreV1().Nodes().Create(ctx, node, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("creating the fake node: %w", err)
	}
	return t.waitForNode(ctx, client, KwokNodeName, ComponentKwok)
}
