package sidecar_test

import (
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/taskgate/taskgate/sidecar"
)

// TestRestart shows that a client that runs already, with the old kubeconfig and
// token in memory, goes on after the sidecar was restarted; and that it does not
// after the state was damaged, when everything is new.
func TestRestart(t *testing.T) {
	s := newStack(t, func(c *sidecar.Config) { c.Listen = []string{freeAddress(t)} })
	before := map[string]string{}
	for _, name := range []string{"kubeconfig", "serviceaccount/token", "serviceaccount/ca.crt"} {
		before[name] = string(must(os.ReadFile(filepath.Join(s.config.AgentDir, name)))(t))
	}
	old := s.running
	if err := old.stop(); err != nil {
		t.Fatal(err)
	}
	_, err := old.client.Get(old.url)
	if err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("T239: a stopped sidecar answers: %v", err)
	}
	again := start(t, s.config)
	again.waitReady()
	for name, content := range before {
		if got := string(must(os.ReadFile(filepath.Join(s.config.AgentDir, name)))(t)); got != content {
			t.Errorf("%s changed over a restart", name)
		}
	}
	if answer, body := old.get("/api"); answer.StatusCode != http.StatusOK {
		t.Errorf("the client that runs already: %d %s", answer.StatusCode, body)
	}
	if strings.Contains(again.log.String(), "new local authority") {
		t.Error("the log speaks of a new authority")
	}
	old.client.CloseIdleConnections()
	again.stop()

	file := filepath.Join(s.config.StateDir, "local-authority.pem")
	if err := os.Truncate(file, 100); err != nil {
		t.Fatal(err)
	}
	fresh := start(t, s.config)
	fresh.waitReady()
	if fresh.token == old.token {
		t.Error("the token survived the damage")
	}
	if !strings.Contains(fresh.log.String(), "made a new local authority and token") || !strings.Contains(fresh.log.String(), "is damaged") {
		t.Errorf("the log does not say why: %s", fresh.log)
	}
	if answer, body := fresh.get("/api"); answer.StatusCode != http.StatusOK {
		t.Errorf("%d %s", answer.StatusCode, body)
	}
}

func TestAgentFiles(t *testing.T) {
	for _, test := range []struct{ mode, folder fs.FileMode }{{0o600, 0o700}, {0o640, 0o750}, {0o644, 0o755}, {0o444, 0o755}} {
		t.Run(test.mode.String(), func(t *testing.T) {
			s := newStack(t, func(c *sidecar.Config) { c.AgentFileMode = test.mode })
			dir := s.config.AgentDir
			for name, want := range map[string]fs.FileMode{
				"": test.folder, "serviceaccount": test.folder, "kubeconfig": test.mode,
				"serviceaccount/token": test.mode, "serviceaccount/ca.crt": test.mode, "serviceaccount/namespace": test.mode,
			} {
				if got := must(os.Stat(filepath.Join(dir, name)))(t).Mode().Perm(); got != want {
					t.Errorf("%q has mode %v, not %v", name, got, want)
				}
			}
			if got := must(os.Stat(s.config.StateDir))(t).Mode().Perm(); got != 0o700 {
				t.Errorf("the state folder has mode %v", got)
			}
			for _, entry := range must(os.ReadDir(s.config.StateDir))(t) {
				if got := must(entry.Info())(t).Mode(); got != 0o600 {
					t.Errorf("%s has mode %v", entry.Name(), got)
				}
			}
			if got := string(must(os.ReadFile(filepath.Join(dir, "serviceaccount/namespace")))(t)); got != "shop" {
				t.Errorf("namespace %q", got)
			}
			kubeconfig := must(clientcmd.LoadFromFile(filepath.Join(dir, "kubeconfig")))(t)
			context := kubeconfig.Contexts[kubeconfig.CurrentContext]
			user := kubeconfig.AuthInfos[context.AuthInfo]
			if kubeconfig.CurrentContext != "taskgate" || context.Namespace != "shop" || user.TokenFile != filepath.Join(dir, "serviceaccount/token") || user.Token != "" {
				t.Errorf("%+v %+v", context, user)
			}
			text := string(must(os.ReadFile(filepath.Join(dir, "kubeconfig")))(t))
			if strings.Contains(text, s.token) || strings.Contains(text, "PRIVATE") {
				t.Error("a secret is in the kubeconfig")
			}
			if err := s.stop(); err != nil {
				t.Fatal(err)
			}
			start(t, s.config) // files without w bits can be written again
		})
	}
}

// TestAgentFilesStay shows that an agent that may write to its folder cannot make
// the sidecar write elsewhere.
func TestAgentFilesStay(t *testing.T) {
	outside := t.TempDir()
	config := newConfig(t, "127.0.0.1:1", "unix:///nowhere")
	if err := os.MkdirAll(config.AgentDir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(config.AgentDir, "serviceaccount")); err != nil {
		t.Fatal(err)
	}
	err := sidecar.Run(t.Context(), config)
	if err == nil || !strings.Contains(err.Error(), "writing the agent's files") {
		t.Errorf("%v", err)
	}
	if entries := must(os.ReadDir(outside))(t); len(entries) != 0 {
		t.Errorf("written outside: %v", entries)
	}

	// A link in place of a file is replaced, not followed.
	target := filepath.Join(outside, "target")
	config = newConfig(t, "127.0.0.1:1", "unix:///nowhere")
	os.MkdirAll(config.AgentDir, 0o700)
	os.WriteFile(target, []byte("untouched"), 0o600)
	os.Symlink(target, filepath.Join(config.AgentDir, "kubeconfig"))
	os.Symlink(target, filepath.Join(config.AgentDir, "kubeconfig.new"))
	start(t, config)
	if got := string(must(os.ReadFile(target))(t)); got != "untouched" {
		t.Errorf("%q", got)
	}
}

// TestFilesGone shows that readiness notices when the agent's files are missing.
func TestFilesGone(t *testing.T) {
	s := newStack(t)
	if err := os.Remove(filepath.Join(s.config.AgentDir, "serviceaccount/token")); err != nil {
		t.Fatal(err)
	}
	if _, err := sidecar.Probe(t.Context(), s.config.Health, "ready"); err == nil || !strings.Contains(err.Error(), "[-]files failed") {
		t.Errorf("%v", err)
	}
}

// TestCannotStart shows what a person reads when something is in the way.
func TestCannotStart(t *testing.T) {
	taken := must(net.Listen("tcp", "127.0.0.1:0"))(t)
	defer taken.Close()
	file := filepath.Join(t.TempDir(), "file")
	os.WriteFile(file, nil, 0o600)
	crowded := t.TempDir()
	os.WriteFile(filepath.Join(crowded, "of somebody else"), nil, 0o600)
	os.Chmod(crowded, 0o755)
	for name, test := range map[string]struct {
		change func(*sidecar.Config)
		want   []string
	}{
		"port taken":       {func(c *sidecar.Config) { c.Listen = []string{taken.Addr().String()} }, []string{"address already in use", "another sidecar", "--listen"}},
		"health taken":     {func(c *sidecar.Config) { c.Health = taken.Addr().String() }, []string{"address already in use", "--health"}},
		"second taken":     {func(c *sidecar.Config) { c.Listen = append(c.Listen, taken.Addr().String()) }, []string{"address already in use"}},
		"state is a file":  {func(c *sidecar.Config) { c.StateDir = file }, []string{"folder of the local authority", file}},
		"state is shared":  {func(c *sidecar.Config) { c.StateDir = crowded }, []string{"folder of the local authority", "others may enter", "a folder of its own"}},
		"agent is a file":  {func(c *sidecar.Config) { c.AgentDir = file }, []string{"writing the agent's files", file, "must be writable"}},
		"bad Workload API": {func(c *sidecar.Config) { c.WorkloadAPI = "http://x" }, []string{"opening the Workload API", "unix:///run/spire/agent.sock"}},
		"wildcard":         {func(c *sidecar.Config) { c.Listen = []string{"0.0.0.0:6443"} }, []string{"configuration: listen: 0.0.0.0:6443 is not loopback"}},
	} {
		t.Run(name, func(t *testing.T) {
			config := newConfig(t, "127.0.0.1:1", "unix:///nowhere")
			test.change(&config)
			err := sidecar.Run(t.Context(), config)
			for _, want := range test.want {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("%v does not say %q", err, want)
				}
			}
		})
	}
}

func TestValidate(t *testing.T) {
	good := sidecar.Config{Broker: "broker:8443", BrokerID: brokerID}
	if err := good.Validate(); err != nil {
		t.Errorf("the defaults: %v", err)
	}
	for name, test := range map[string]struct {
		change func(*sidecar.Config)
		want   string
	}{
		"no broker":         {func(c *sidecar.Config) { c.Broker = "" }, `broker: "" is not host:port`},
		"no port":           {func(c *sidecar.Config) { c.Broker = "broker" }, "is not host:port"},
		"no host":           {func(c *sidecar.Config) { c.Broker = ":8443" }, "is not host:port"},
		"port by name":      {func(c *sidecar.Config) { c.Broker = "broker:https" }, "is not a port"},
		"port 0":            {func(c *sidecar.Config) { c.Broker = "broker:0" }, "is not a port"},
		"no broker ID":      {func(c *sidecar.Config) { c.BrokerID = spiffeid.ID{} }, "broker-id: the broker's SPIFFE ID is needed"},
		"a trust domain":    {func(c *sidecar.Config) { c.BrokerID = domain.ID() }, "broker-id: the broker's SPIFFE ID is needed"},
		"all interfaces":    {func(c *sidecar.Config) { c.Listen = []string{":6443"} }, "is not an address and a port"},
		"another address":   {func(c *sidecar.Config) { c.Listen = []string{"127.0.0.1:6443", "10.0.0.1:6443"} }, "10.0.0.1:6443 is not loopback"},
		"another loopback":  {func(c *sidecar.Config) { c.Listen = []string{"127.0.0.2:6443"} }, "is not loopback"},
		"mapped":            {func(c *sidecar.Config) { c.Listen = []string{"[::ffff:127.0.0.1]:6443"} }, "is not loopback"},
		"zone":              {func(c *sidecar.Config) { c.Listen = []string{"[::1%lo]:6443"} }, "is not loopback"},
		"by name":           {func(c *sidecar.Config) { c.Listen = []string{"localhost:6443"} }, "is not an address and a port"},
		"public health":     {func(c *sidecar.Config) { c.Health = "0.0.0.0:7080" }, "health: 0.0.0.0:7080 is not loopback"},
		"same folder":       {func(c *sidecar.Config) { c.StateDir, c.AgentDir = "/a/b", "/a/./b/" }, "must not lie in one another"},
		"state in agent":    {func(c *sidecar.Config) { c.StateDir, c.AgentDir = "/a/b/state", "/a/b" }, "must not lie in one another"},
		"agent in state":    {func(c *sidecar.Config) { c.StateDir, c.AgentDir = "/a", "/a/b" }, "must not lie in one another"},
		"writable by group": {func(c *sidecar.Config) { c.AgentFileMode = 0o660 }, "agent-file-mode: 0660"},
		"executable":        {func(c *sidecar.Config) { c.AgentFileMode = 0o755 }, "agent-file-mode: 0755"},
		"unreadable":        {func(c *sidecar.Config) { c.AgentFileMode = 0o044 }, "agent-file-mode: 0044"},
		"namespace":         {func(c *sidecar.Config) { c.Namespace = "a/b" }, `namespace: "a/b" is not the name of a namespace`},
		"grant":             {func(c *sidecar.Config) { c.Grant = "a\r\nX: y" }, "is not the name of a TaskGrant"},
		"grace":             {func(c *sidecar.Config) { c.Grace = -time.Second }, "grace: -1s is negative"},
	} {
		t.Run(name, func(t *testing.T) {
			config := good
			test.change(&config)
			if err := config.Validate(); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v does not say %q", err, test.want)
			}
		})
	}
	everything := sidecar.Config{Listen: []string{":1"}, Health: "x", Namespace: "/"}
	if err := everything.Validate(); strings.Count(err.Error(), "\n") != 4 {
		t.Errorf("not all problems are named at once: %v", err)
	}
}

// TestSecondListener serves IPv6 and a second port, as for kubernetes.default.svc.
func TestSecondListener(t *testing.T) {
	second := freeAddress(t)
	s := newStack(t, func(c *sidecar.Config) { c.Listen = append(c.Listen, second, "[::1]:0") })
	request := s.request("GET", "/api", "")
	request.URL.Host = second
	if answer, _ := s.do(request); answer.StatusCode != http.StatusOK {
		t.Errorf("%d", answer.StatusCode)
	}
}

func TestHealth(t *testing.T) {
	s := newStack(t)
	for path, want := range map[string]string{
		"/livez": "ok\n", "/readyz": "ok\n", "/startupz": "ok\n", "/livez?verbose": "livez check passed\n",
		"/readyz?verbose": "[+]shutdown ok\n[+]files ok\n[+]svid ok\nreadyz check passed\n",
	} {
		answer := must(http.Get("http://" + s.config.Health + path))(t)
		body := make([]byte, 1000)
		n, _ := answer.Body.Read(body)
		answer.Body.Close()
		if answer.StatusCode != http.StatusOK || string(body[:n]) != want {
			t.Errorf("%s: %d %q", path, answer.StatusCode, body[:n])
		}
	}
	for name, change := range map[string]func(*http.Request){
		"other Host": func(r *http.Request) { r.Host = "evil.com" },
		"a page":     func(r *http.Request) { r.Header.Set("Origin", "null") },
		"other path": func(r *http.Request) { r.URL.Path = "/metrics" },
		"other verb": func(r *http.Request) { r.Method = "POST" },
	} {
		request := must(http.NewRequest("GET", "http://"+s.config.Health+"/readyz?verbose", nil))(t)
		change(request)
		answer := must(http.DefaultClient.Do(request))(t)
		answer.Body.Close()
		if answer.StatusCode/100 != 4 {
			t.Errorf("%s: %d", name, answer.StatusCode)
		}
	}
	http.DefaultClient.CloseIdleConnections()
	if _, err := sidecar.Probe(t.Context(), s.config.Health, "well"); err == nil || !strings.Contains(err.Error(), "use startup, ready or live") {
		t.Errorf("%v", err)
	}
	if _, err := sidecar.Probe(t.Context(), "10.0.0.1:7080", "live"); err == nil || !strings.Contains(err.Error(), "is not loopback") {
		t.Errorf("%v", err)
	}
	if _, err := sidecar.Probe(t.Context(), freeAddress(t), "live"); err == nil || !strings.Contains(err.Error(), "no sidecar answers at") {
		t.Errorf("%v", err)
	}
}
