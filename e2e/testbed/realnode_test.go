package testbed_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/taskgate/taskgate/e2e/testbed"
	"github.com/taskgate/taskgate/e2e/testbed/testbedtest"
)

// TestRealNode runs real containers in two testbeds side by side. One is stopped,
// the other is killed.
func TestRealNode(t *testing.T) {
	t.Run("stopped", func(t *testing.T) {
		t.Parallel()
		directory := testbedtest.Directory(t)
		t.Cleanup(func() { withoutTraces(t, directory) })
		bed := testbedtest.Start(t, testbed.Options{Directory: directory, Node: testbed.RealNode, WithoutTaskgate: true})
		const answering = `echo hello log; exec nc -ll -p 8080 -e sh -c 'while read line; do echo "answer:$line"; done'`
		pod, err := bed.RunPod(t.Context(), "shop", "web", "sh", "-c", answering)
		if err != nil {
			t.Fatal(err)
		}
		if pod.Status.HostIP == "" || pod.Status.PodIP == "" {
			t.Errorf("the pod is at %q of %q", pod.Status.PodIP, pod.Status.HostIP)
		}
		t.Run("exec", func(t *testing.T) { testExec(t, bed) })
		t.Run("logs", func(t *testing.T) {
			if got := kubectl(t, bed, "--namespace=shop", "logs", "web"); got != "hello log\n" {
				t.Errorf("logs answered %q", got)
			}
		})
		t.Run("port-forward", func(t *testing.T) { testPortForward(t, bed) })
		t.Run("cp", func(t *testing.T) { testCopy(t, bed) })
		t.Run("network", func(t *testing.T) { testPodNetwork(t, bed, pod.Status.PodIP, pod.Status.HostIP) })
		t.Run("faults", func(t *testing.T) { testNodeFaults(t, bed) })
	})
	t.Run("killed", func(t *testing.T) {
		t.Parallel()
		testKilled(t)
	})
}

func testExec(t *testing.T, bed *testbed.Testbed) {
	for script, want := range map[string]int{"exit 0": 0, "exit 42": 42, "kill -9 $$": 137} {
		err := kubectlCommand(t.Context(), bed, "--namespace=shop", "exec", "web", "--", "sh", "-c", script).Run()
		code := 0
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
			code = exit.ExitCode()
		} else if err != nil {
			t.Fatal(err)
		}
		if code != want {
			t.Errorf("%q ended with code %d, not %d", script, code, want)
		}
	}
	command := kubectlCommand(t.Context(), bed, "--namespace=shop", "exec", "-i", "web", "--", "sh", "-c", "cat; echo done >&2")
	var stdout, stderr bytes.Buffer
	command.Stdin, command.Stdout, command.Stderr = strings.NewReader("x\n"), &stdout, &stderr
	if err := command.Run(); err != nil || stdout.String() != "x\n" || stderr.String() != "done\n" {
		t.Errorf("cat answered %q and %q, %v", stdout.String(), stderr.String(), err)
	}
}

func testPortForward(t *testing.T, bed *testbed.Testbed) {
	ctx, cancel := context.WithCancel(t.Context())
	command := kubectlCommand(ctx, bed, "--namespace=shop", "port-forward", "pod/web", ":8080")
	output, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cancel()
		_ = command.Wait() // it was killed
	}()
	first, err := bufio.NewReader(output).ReadString('\n') // Forwarding from 127.0.0.1:1234 -> 8080
	fields := strings.Fields(first)
	if err != nil || len(fields) < 3 {
		t.Fatalf("port-forward said %q, %v", first, err)
	}
	if got := talk(t, fields[2]); got != "answer:ping\n" {
		t.Errorf("the pod answered %q", got)
	}
}

// talk sends a line and reads one.
func talk(t *testing.T, address string) string {
	t.Helper()
	connection, err := net.DialTimeout("tcp", address, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = connection.Close() }() // all was said
	if err := connection.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(connection, "ping\n"); err != nil {
		t.Fatal(err)
	}
	answer, err := bufio.NewReader(connection).ReadString('\n')
	if err != nil {
		t.Errorf("reading the answer: %v", err)
	}
	return answer
}

func testCopy(t *testing.T, bed *testbed.Testbed) {
	content := make([]byte, 5<<20)
	_, _ = rand.Read(content) // does not fail
	there, back := filepath.Join(t.TempDir(), "there"), filepath.Join(t.TempDir(), "back")
	if err := os.WriteFile(there, content, 0o600); err != nil {
		t.Fatal(err)
	}
	kubectl(t, bed, "cp", there, "shop/web:/tmp/copy")
	kubectl(t, bed, "cp", "shop/web:/tmp/copy", back)
	if got, err := os.ReadFile(back); err != nil || !bytes.Equal(got, content) {
		t.Errorf("%d bytes of %d came back, or others, %v", len(got), len(content), err)
	}
}

// testPodNetwork has the machine call a pod, and a pod the machine.
func testPodNetwork(t *testing.T, bed *testbed.Testbed, pod, machine string) {
	if got := talk(t, net.JoinHostPort(pod, "8080")); got != "answer:ping\n" {
		t.Errorf("the pod answered %q", got)
	}
	listener, err := net.Listen("tcp", net.JoinHostPort(machine, "0"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }() // the test is over
	go func() {
		if connection, err := listener.Accept(); err == nil {
			_, _ = io.WriteString(connection, "hello pod\n") // the test sees what arrived
			_ = connection.Close()
		}
	}()
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	if got := kubectl(t, bed, "--namespace=shop", "exec", "web", "--", "nc", "-w", "10", machine, port); got != "hello pod\n" {
		t.Errorf("the pod heard %q", got)
	}
}

// testNodeFaults restarts what a pod does not need, and then cuts the power.
func testNodeFaults(t *testing.T, bed *testbed.Testbed) {
	answers := func() bool {
		output, err := kubectlCommand(t.Context(), bed, "--namespace=shop", "exec", "web", "--", "hostname").Output()
		return err == nil && string(output) == "web\n"
	}
	restarts := func() string {
		return kubectl(t, bed, "--namespace=shop", "get", "pod", "web", "--output=jsonpath={.status.containerStatuses[0].restartCount}")
	}
	for _, name := range []string{testbed.ComponentKubelet, testbed.ComponentContainerd} {
		if err := bed.Component(name).Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the pod answers again", answers)
	if got := restarts(); got != "0" {
		t.Errorf("the pod was restarted %s times with the kubelet and containerd", got)
	}
	if err := bed.Component(testbed.ComponentNode).Kill(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{testbed.ComponentNode, testbed.ComponentContainerd, testbed.ComponentKubelet} {
		if pid := bed.Component(name).PID(); pid != 0 {
			t.Errorf("%s is alive although its node was killed", name)
		}
		if err := bed.Component(name).Start(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the pod was restarted with its node", func() bool { return restarts() == "1" && answers() })
}

// runsBed makes this test program start a testbed with a real node and a pod in
// the directory, say so, and wait to be killed.
const runsBed = "TASKGATE_TEST_RUNS_BED"

func runBed(directory string) int {
	ctx := context.Background()
	bed, err := testbed.Start(ctx, testbed.Options{Directory: directory, Node: testbed.RealNode, WithoutTaskgate: true})
	if err == nil {
		_, err = bed.RunPod(ctx, "shop", "web")
	}
	fmt.Println("started:", err)
	time.Sleep(time.Hour)
	return 1
}

// testKilled kills a program that runs a testbed, and takes down what is left.
func testKilled(t *testing.T) {
	directory := filepath.Join(testbedtest.Directory(t), "bed")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program := exec.CommandContext(t.Context(), self)
	program.Env = append(os.Environ(), runsBed+"="+directory)
	output, err := program.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := program.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(output).ReadString('\n')
	if line != "started: <nil>\n" {
		t.Errorf("it said %q, %v", line, err)
	}
	_, group := testbed.NodeTraces(directory)
	if len(members(t, group)) == 0 {
		t.Error("no pod runs, so this test proves nothing")
	}
	if err := program.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = program.Wait() // it was killed
	eventually(t, "all pods end with the program", func() bool { return len(members(t, group)) == 0 && len(marked(t, directory)) == 0 })
	if err := testbed.Down(t.Context(), directory); err != nil {
		t.Error(err)
	}
	withoutTraces(t, directory)
	if _, err := os.Stat(directory); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory is left: %v", err)
	}
}

// withoutTraces checks that the machine has nothing of a real node any more.
func withoutTraces(t *testing.T, directory string) {
	t.Helper()
	if left := marked(t, directory); len(left) > 0 {
		t.Errorf("these processes are left: %q", left)
	}
	name, group := testbed.NodeTraces(directory)
	if _, err := net.InterfaceByName(name); err == nil {
		t.Errorf("the interface %s is left", name)
	}
	if left := groups(t, group); len(left) > 0 {
		t.Errorf("these control groups are left: %q", left)
	}
	if mounts, err := os.ReadFile("/proc/self/mountinfo"); err != nil || bytes.Contains(mounts, []byte(directory)) {
		t.Errorf("a mount is left (%v)", err)
	}
}

func groups(t *testing.T, group string) []string {
	t.Helper()
	found, err := filepath.Glob("/sys/fs/cgroup/*/" + group)
	if err != nil {
		t.Fatal(err)
	}
	second, err := filepath.Glob("/sys/fs/cgroup/" + group)
	if err != nil {
		t.Fatal(err)
	}
	return append(found, second...)
}

// members answers the processes in a control group and all below it.
func members(t *testing.T, group string) []string {
	t.Helper()
	var found []string
	for _, folder := range groups(t, group) {
		_ = filepath.WalkDir(folder, func(path string, _ os.DirEntry, err error) error {
			if filepath.Base(path) == "cgroup.procs" && err == nil {
				content, _ := os.ReadFile(path) // a group that just ended has no members
				found = append(found, strings.Fields(string(content))...)
			}
			return nil // groups come and go
		})
	}
	return found
}
