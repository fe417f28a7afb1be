package nodehost_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/taskgate/taskgate/e2e/internal/cgroups"
	"github.com/taskgate/taskgate/e2e/internal/nodehost"
	"github.com/taskgate/taskgate/e2e/internal/process"
)

// asHost makes this test program be a host.
const asHost = "TASKGATE_TEST_AS_HOST"

func TestMain(m *testing.M) {
	if os.Getenv(asHost) == "" {
		os.Exit(m.Run())
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	err := nodehost.NewCommand().ExecuteContext(ctx)
	stop()
	fmt.Println(err)
}

type host struct {
	folder, cgroup string
	network        nodehost.Network
	process        *process.Process
}

// start starts a host whose directory is in a folder that it hides.
func start(t *testing.T) host {
	t.Helper()
	if os.Geteuid() != 0 || cgroups.Check() != nil {
		t.Skip("a host needs root and control groups")
	}
	folder, err := os.MkdirTemp("/var/lib", "taskgate-")
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	tag := strconv.Itoa(os.Getpid())
	h := host{folder: folder, cgroup: "taskgate-test-" + tag}
	prefix, claim, err := nodehost.Claim(folder)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = claim.Close() }) // the test is over
	h.network = nodehost.Network{Interface: "tgt" + tag, Prefix: prefix}
	h.process = process.New(process.Spec{
		Name: "host", Path: self, Directory: "/", Log: filepath.Join(folder, "host.log"), Isolated: true,
		Arguments: []string{
			"--directory=" + folder, "--state=" + filepath.Join(folder, "state"), "--socket=" + h.socket(), "--cgroup=" + h.cgroup,
			"--interface=" + h.network.Interface, "--network=" + h.network.Prefix.String(),
		},
		Environment: []string{asHost + "=yes", "PATH=" + os.Getenv("PATH")},
		Ready:       process.Probe{Socket: h.socket()}, Patience: 10 * time.Second,
	}, process.Attached)
	t.Cleanup(func() {
		if err := cgroups.Remove(context.Background(), h.cgroup); err != nil {
			t.Error(err)
		}
		if err := os.RemoveAll(folder); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		if err := h.process.Kill(); err != nil {
			t.Error(err)
		}
	})
	h.launch(t)
	return h
}

func (h host) launch(t *testing.T) {
	t.Helper()
	if err := h.process.Launch(); err != nil {
		t.Fatal(err)
	}
	if err := h.process.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func (h host) socket() string { return filepath.Join(h.folder, "socket") }

// shell runs a script inside.
func (h host) shell(t *testing.T, network bool, script string) *process.Process {
	t.Helper()
	p := process.New(process.Spec{
		Name: "shell", Path: "/bin/sh", Arguments: []string{"-euc", script}, Directory: h.folder,
		Environment: []string{"PATH=" + os.Getenv("PATH")}, Log: filepath.Join(h.folder, "shell.log"),
		Inside: &process.Inside{Socket: h.socket(), Network: network},
	}, process.Attached)
	if err := os.RemoveAll(p.Spec().Log); err != nil {
		t.Fatal(err)
	}
	if err := p.Launch(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Kill(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// output waits until the script has ended.
func (h host) output(t *testing.T, network bool, script string) string {
	t.Helper()
	p := h.shell(t, network, script)
	eventually(t, "the script ends: "+script, func() bool { return !p.Alive() })
	if exit := p.Exit(); exit == nil || !exit.Success() {
		t.Errorf("the script %q: %v", script, exit)
	}
	content, err := os.ReadFile(p.Spec().Log)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(content))
}

// TestHost looks around inside, and finds nothing of it after a kill.
func TestHost(t *testing.T) {
	h := start(t)
	t.Run("processes", func(t *testing.T) {
		if got := h.output(t, false, "ls -d /proc/[0-9]* | wc -l; cat /proc/1/comm"); !strings.HasSuffix(got, "nodehost.test") || len(got) > 20 {
			t.Errorf("inside there are %s", got)
		}
	})
	t.Run("folders", func(t *testing.T) {
		if got := h.output(t, false, "ls /var/log /run; ls /var/lib; touch /var/lib/note "+h.folder+"/seen"); got != "/run:\nsettings\n\n/var/log:\n"+filepath.Base(h.folder) {
			t.Errorf("the node's own folders hold %q", got)
		}
		for name, want := range map[string]bool{"/var/lib/note": false, h.folder + "/state/lib/note": true, h.folder + "/seen": true} {
			if _, err := os.Stat(name); (err == nil) != want {
				t.Errorf("%s on the machine: %v", name, err)
			}
		}
	})
	t.Run("settings", func(t *testing.T) { testSettings(t, h) })
	t.Run("network", func(t *testing.T) { testNetwork(t, h) })
	t.Run("orphans", func(t *testing.T) {
		h.output(t, false, "for i in 1 2 3 4 5; do (sleep 0.05 &) ; done")
		eventually(t, "orphans are reaped", func() bool {
			return !strings.Contains(h.output(t, false, "cat /proc/[0-9]*/stat"), ") Z ")
		})
	})
	t.Run("kill", func(t *testing.T) { testKill(t, h) })
}

func testSettings(t *testing.T, h host) {
	const setting = "/proc/sys/kernel/panic"
	before, err := os.ReadFile(setting)
	if err != nil {
		t.Fatal(err)
	}
	if got := h.output(t, false, "cat "+setting+"; echo 77 >"+setting+"; cat "+setting); got != strings.TrimSpace(string(before))+"\n77" {
		t.Errorf("inside the setting was %q", got)
	}
	if after, err := os.ReadFile(setting); err != nil || string(after) != string(before) {
		t.Errorf("on the machine the setting was %q and is %q (%v)", before, after, err)
	}
}

func testNetwork(t *testing.T, h host) {
	listener, err := net.Listen("tcp", h.network.Machine().String()+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }() // the test is over
	if err := listener.(*net.TCPListener).SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	h.shell(t, true, "exec busybox nc "+h.network.Machine().String()+" "+port)
	connection, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if from, _, _ := net.SplitHostPort(connection.RemoteAddr().String()); from != h.network.Node().String() {
		t.Errorf("a program inside calls from %s, not %s", from, h.network.Node())
	}
	if err := connection.Close(); err != nil {
		t.Error(err)
	}
	if got := h.output(t, false, "ip -oneline link"); !strings.Contains(got, h.network.Interface) {
		t.Errorf("who keeps the machine's network sees %s", got)
	}
	if got := h.output(t, true, "ip -oneline link"); strings.Contains(got, h.network.Interface) || !strings.Contains(got, nodehost.Bridge) {
		t.Errorf("who joins the node's network sees %s", got)
	}
}

// testKill leaves a process of a session of its own behind, as a shim does.
func testKill(t *testing.T, h host) {
	marker := "31.4159" + strconv.Itoa(os.Getpid())
	h.output(t, true, "mount -t tmpfs tmpfs /mnt; setsid -f sleep "+marker)
	if !runs(t, marker) {
		t.Fatal("nothing was left running, so this test proves nothing")
	}
	if err := h.process.Kill(); err != nil {
		t.Fatal(err)
	}
	if runs(t, marker) {
		t.Error("a process has outlived the host")
	}
	eventually(t, "the interface vanishes", func() bool {
		_, err := net.InterfaceByName(h.network.Interface)
		return err != nil
	})
	if mounts, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(mounts), h.folder) {
		t.Errorf("a mount has outlived the host (%v)", err)
	}
	h.launch(t) // over what it left
	if got := h.output(t, true, "ip -oneline address; ls /var/lib"); !strings.Contains(got, h.network.Node().String()) || !strings.Contains(got, "note") {
		t.Errorf("after a restart there is %s", got)
	}
}

func runs(t *testing.T, argument string) bool {
	t.Helper()
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range lines {
		if content, err := os.ReadFile(line); err == nil && strings.Contains(string(content), "sleep\x00"+argument) {
			return true
		}
	}
	return false
}

// TestRunOutside is somebody who starts the program by hand.
func TestRunOutside(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	command := exec.CommandContext(t.Context(), self)
	command.Env = []string{asHost + "=yes"}
	if output, _ := command.CombinedOutput(); !strings.Contains(string(output), "process 1 of namespaces of its own") {
		t.Errorf("it said %s", output)
	}
}

// eventually asks until the answer is yes.
func eventually(t *testing.T, what string, ask func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !ask() {
		if time.Now().After(deadline) {
			t.Fatal("this did not happen:", what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
