package e2e_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	auditv1 "k8s.io/apiserver/pkg/apis/audit/v1"

	"github.com/taskgate/taskgate/e2e/testbed"
	"github.com/taskgate/taskgate/recorder"
)

// streamsRig is a testbed with a real node, a pod on it, and an agent that may do
// everything without asking.
type streamsRig struct {
	*grantsRig
	wire  *faultWire // between broker and API server
	agent *agent
}

const (
	streamsSpace = "streams"
	streamsPod   = "tools"
)

const everythingInPods = `{namespaces: [streams], apiGroups: [""], resources: [pods, pods/exec, pods/attach, pods/portforward, pods/log, pods/ephemeralcontainers, events], verbs: ["*"]}`

func newStreamsRig(t *testing.T) *streamsRig {
	r := &streamsRig{wire: newFaultWire(t)}
	r.grantsRig = &grantsRig{startStack(t, testbed.Options{
		Node: testbed.RealNode, AuditLevel: auditv1.LevelMetadata,
		BrokerConfiguration: func(_ int, configuration map[string]any) { r.wire.toCluster(configuration) },
	})}
	r.allowUpstream(t, "streams", "gated", "cut", "rules", "logs")
	r.apply(t, "{apiVersion: v1, kind: Namespace, metadata: {name: "+streamsSpace+"}}")
	r.runPod(t, streamsPod, "httpd -p 8080 -h /etc && while true; do date; read line && echo heard $line || sleep 1; done")
	r.agent = r.alpha(t)
	r.allow(t, "streams", r.agent.id, openPolicy+"\nwaive: [exec, port-forward, debug]", everythingInPods)
	r.give(t, "streams", "streams", r.agent.id, "1h", everythingInPods)
	r.served(t, r.agent, "/api/v1/namespaces/streams/pods")
	return r
}

// runPod runs a shell command in a pod with the testbed's tools, and standard
// input that stays open.
func (r *streamsRig) runPod(t testing.TB, name, script string) {
	t.Helper()
	r.apply(t, fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: %s, namespace: %s}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: main, image: %q, imagePullPolicy: Never, stdin: true, command: [sh, -c, %q]}
`, name, streamsSpace, testbed.ToolsImage, script))
	r.admin(t, "--namespace="+streamsSpace, "wait", "--for=condition=Ready", "pod/"+name, "--timeout=90s")
}

// The two ways of kubectl, of which it takes the first by itself.
var streamsWays = []struct{ name, environment string }{
	{"WebSocket", "KUBECTL_REMOTE_COMMAND_WEBSOCKETS=true"},
	{"SPDY", "KUBECTL_REMOTE_COMMAND_WEBSOCKETS=false"},
}

// streams runs kubectl in the pod's namespace with a kubeconfig, an environment of its
// own and standard input.
func (r *streamsRig) streams(t testing.TB, kubeconfig, environment string, stdin []byte, arguments ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	command, stdout, stderr := r.prepare(ctx, kubeconfig, environment, arguments...)
	command.Stdin = bytes.NewReader(stdin)
	err := command.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("running kubectl: %v", err)
	}
	return result{stdout.String(), stderr.String(), command.ProcessState.ExitCode()}
}

func (r *streamsRig) prepare(ctx context.Context, kubeconfig, environment string, arguments ...string) (command *exec.Cmd, stdout, stderr *lockedBuffer) {
	command = exec.CommandContext(ctx, r.Environment().Programs+"/kubectl", append([]string{"--kubeconfig", kubeconfig, "--namespace", streamsSpace}, arguments...)...)
	command.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + r.Directory(), environment, strings.Replace(environment, "REMOTE_COMMAND", "PORT_FORWARD", 1)}
	stdout, stderr = new(lockedBuffer), new(lockedBuffer)
	command.Stdout, command.Stderr = stdout, stderr
	return command, stdout, stderr
}

// recorded is one stream as an auditor reads it.
type recorded struct {
	id      string
	events  []*recorder.Event
	channel [5]bytes.Buffer
	ended   [5]bool
	err     error // what is missing
}

func (s *recorded) annotation(name string) string {
	return s.events[slices.IndexFunc(s.events, isOutcome)].Annotations["taskgate.dev/"+name]
}

// last waits for the record of the stream that began last, and reads it.
func (r *streamsRig) last(t testing.TB, subresource string, since time.Time) *recorded {
	t.Helper()
	ended := r.ended(t, subresource, since)
	return r.stream(t, ended[len(ended)-1])
}

// first is the stream that began first after a moment.
func (r *streamsRig) first(t testing.TB, subresource string, since time.Time) *recorded {
	t.Helper()
	return r.stream(t, r.ended(t, subresource, since)[0])
}

// ended waits for the record of the end of a stream that began after a moment, and
// returns the audit IDs of all, as they ended.
func (r *streamsRig) ended(t testing.TB, subresource string, since time.Time) (ids []string) {
	t.Helper()
	eventually(t, 20*time.Second, "the record of a stream is in the bucket", func() error {
		ids = nil
		for _, e := range r.journal.all(t) {
			if e.ObjectRef != nil && e.ObjectRef.Subresource == subresource && e.Stage == recorder.StageResponseComplete && e.RequestReceivedTimestamp.After(since) {
				ids = append(ids, e.AuditID)
			}
		}
		if len(ids) == 0 {
			return errors.New("there is none")
		}
		return nil
	})
	return ids
}

// stream reads what was recorded under an audit ID.
func (r *streamsRig) stream(t testing.TB, id string) *recorded {
	t.Helper()
	var s *recorded
	for deadline := time.Now().Add(5 * time.Second); s == nil || s.err != nil && s.annotation("outcome") != recorder.OutcomeUnknown && time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		// The records that name the last chunks may come behind the closing one, but
		// for one that recovery has written.
		s = &recorded{id: id, events: r.journal.of(t, id)[id]}
		s.read(t, r.journal.Bucket)
	}
	return s
}

func (s *recorded) read(t testing.TB, bucket recorder.Bucket) {
	t.Helper()
	recording, err := recorder.FindRecording(t.Context(), bucket, s.id)
	if err != nil {
		t.Fatalf("the stream %s: %v", s.id, err)
	}
	for frame, err := range recording.Frames(t.Context(), bucket) {
		if err != nil {
			s.err = err
			return
		}
		s.channel[frame.Channel].Write(frame.Data)
		s.ended[frame.Channel] = s.ended[frame.Channel] || frame.End
	}
}

// taskgate runs taskgate as an auditor.
func (r *streamsRig) taskgate(t testing.TB, arguments ...string) result {
	t.Helper()
	return r.command(t, "", r.Environment().Programs+"/taskgate", arguments...)
}

// judgeJournal proves everything, and looks at how the streams are listed.
func (r *streamsRig) judgeJournal(t *testing.T) {
	t.Helper()
	bucket := "s3://" + r.Store().Bucket
	if got := r.taskgate(t, "verify", bucket, "--broker-id", brokerID, "--cluster", "testbed"); got.code != 0 {
		t.Errorf("verify: %s", got)
	}
	listed := r.taskgate(t, "streams", bucket)
	for _, want := range []string{"exec", "attach", "portforward", "GrantRevoked"} {
		if listed.code != 0 || !strings.Contains(listed.stdout, want) {
			t.Errorf("taskgate streams does not show %s: %s", want, listed)
		}
	}
}
