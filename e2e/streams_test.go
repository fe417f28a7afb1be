package e2e_test

import (
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/taskgate/taskgate/recorder"
)

// kubectl's two ways: WebSocket, and SPDY, which it falls back to.
var kubectlWays = map[string]string{
	"websocket": "export KUBECTL_REMOTE_COMMAND_WEBSOCKETS=true KUBECTL_PORT_FORWARD_WEBSOCKETS=true; ",
	"spdy":      "export KUBECTL_REMOTE_COMMAND_WEBSOCKETS=false KUBECTL_PORT_FORWARD_WEBSOCKETS=false; ",
}

// streamsSides are both ways to the cluster, with a pod; the agent may open it.
func streamsSides(t *testing.T, name string) [2]*side {
	t.Helper()
	s := sharedStack(t)
	a := s.newAgent(t, name)
	rules := `{namespaces: ["*"], apiGroups: [""], resources: [pods, pods/exec, pods/attach, pods/portforward], verbs: [get, list, create]}`
	s.policy(t, name, a, "grant: {maxTTL: 4h, approval: None}\nwaive: [exec, port-forward]", rules)
	s.grant(t, name, name, a, "1h", rules)
	pair := [2]*side{
		s.side(t, "direct", s.Environment().AdminKubeconfig, "str-d-"+name),
		s.side(t, "agent", a.Kubeconfig, "str-a-"+name),
	}
	for _, side := range pair {
		s.admin(t, "-n", side.namespace, "run", "one", "--image=nginx")
		s.admin(t, "-n", side.namespace, "wait", "--for=condition=Ready", "pod/one", "--timeout=30s")
	}
	return pair
}

// TestParityOfStreams: exec, attach, cp and port-forward are the same on both
// sides. The fake node tells a failed command by a text and has no end of stdin.
func TestParityOfStreams(t *testing.T) {
	pair := streamsSides(t, "parity")
	for way, choose := range kubectlWays {
		t.Run(way, func(t *testing.T) {
			play(t, pair, []step{
				{run: choose + `kubectl exec one -- sh -c 'echo out; echo err >&2'`, says: "out"},
				{run: choose + `kubectl exec one -c one -- printf 'a\nb'`, says: "a\nb"},
				{run: choose + `kubectl exec one -- sh -c 'exit 7'`, says: "exit status 7", code: 1},
				{run: choose + `kubectl exec absent -- true`, says: "not found", code: 1},
				{run: choose + `kubectl exec one -c absent -- true`, says: "absent", code: 1},
				{run: choose + `echo typed | timeout 3 "$TASKGATE_BIN/kubectl" --kubeconfig "$kubeconfig" -n "$ns" exec -i one -- cat`, says: "typed", code: 124},
				{run: choose + `kubectl exec one -- head -c 3000000 /dev/zero | sha256sum`, says: "-"},
				{run: choose + `kubectl cp one:/etc/services got >/dev/null 2>&1; cmp got /etc/services && echo same`, says: "same"},
			})
			for _, side := range pair {
				f := side.follow(t, choose+`kubectl attach one`)
				eventually(t, 20*time.Second, "a line of the container", func() error { // attached at some moment
					if err := side.AppendPodLog("to " + side.name + " over " + way); err != nil {
						t.Fatal(err)
					}
					return f.shows("to " + side.name + " over " + way)
				})
				f.stop()
			}
		})
	}
}

// TestPortForwards: what goes through a forwarded port is echoed by the fake node,
// and on record with its port.
func TestPortForwards(t *testing.T) {
	pair := streamsSides(t, "ports")
	agent := pair[1]
	for way, choose := range kubectlWays {
		f := agent.follow(t, choose+`kubectl port-forward pod/one :8080`)
		f.wait(t, "Forwarding from 127.0.0.1:")
		_, rest, _ := strings.Cut(f.String(), "Forwarding from 127.0.0.1:")
		port, _, _ := strings.Cut(rest, " ")
		for n := range 2 {
			conn, err := net.Dial("tcp", "127.0.0.1:"+port)
			if err != nil {
				t.Fatal(err)
			}
			text := fmt.Sprintf("connection %d", n)
			_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
			if _, err := io.WriteString(conn, text); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, len(text))
			if _, err := io.ReadFull(conn, got); err != nil || string(got) != text {
				t.Errorf("%s: %q came back: %v", way, got, err)
			}
			conn.Close()
		}
		f.stop()
	}
}

// TestStreamIsCut: a grant that is revoked closes the terminal, and says why.
func TestStreamIsCut(t *testing.T) {
	for way, choose := range kubectlWays {
		t.Run(way, func(t *testing.T) {
			pair := streamsSides(t, "cut-"+way)
			agent := pair[1]
			f := agent.follow(t, choose+`kubectl exec one -- sh -c 'echo begun; sleep 60' 2>&1; echo ended`)
			f.wait(t, "begun")
			agent.admin(t, "patch", "taskgrant", "cut-"+way, "--type=merge", `-p={"spec":{"revoked":true}}`)
			f.wait(t, "ended")
			if !strings.Contains(f.String(), "[taskgate:GrantRevoked]") {
				t.Errorf("the terminal shows %q", f.String())
			}
			f.stop()
			eventually(t, 10*time.Second, "the closing record", func() error {
				for _, event := range agent.journal.all(t) {
					if event.Stage == recorder.StageResponseComplete && event.ObjectRef != nil && event.ObjectRef.Namespace == agent.namespace && event.Annotations[recorder.AnnotationOutcome] == "cut" &&
						event.Annotations[recorder.AnnotationReason] == "GrantRevoked" && event.Verb == "create" && event.ObjectRef.UID != "" {
						return nil
					}
				}
				return fmt.Errorf("there is none")
			})
		})
	}
}
