package main

import (
	"bytes"
	"strings"
	"testing"
)

// run executes the command with arguments and environment variables.
func run(t *testing.T, environment map[string]string, arguments ...string) (string, error) {
	t.Helper()
	for name, value := range environment {
		t.Setenv(name, value)
	}
	command := newCommand()
	var out bytes.Buffer
	command.SetOut(&out)
	command.SetErr(&out)
	command.SetArgs(arguments)
	err := command.ExecuteContext(t.Context())
	return out.String(), err
}

func TestFlagsAndEnvironment(t *testing.T) {
	for name, test := range map[string]struct {
		environment map[string]string
		arguments   []string
		want        string // in the error
	}{
		"nothing":              {nil, nil, "broker-id: the broker's SPIFFE ID is needed"},
		"variable":             {map[string]string{"TASKGATE_BROKER": "from-variable"}, nil, `"from-variable" is not host:port`},
		"flag wins":            {map[string]string{"TASKGATE_BROKER": "from-variable"}, []string{"--broker", "from-flag"}, `"from-flag" is not host:port`},
		"empty variable":       {map[string]string{"TASKGATE_LISTEN": ""}, []string{"--namespace", "/"}, `namespace: "/"`},
		"list":                 {map[string]string{"TASKGATE_LISTEN": "127.0.0.1:1,10.0.0.1:2"}, nil, "10.0.0.1:2 is not loopback"},
		"repeated":             {nil, []string{"--listen", "127.0.0.1:1", "--listen", "10.0.0.1:2"}, "10.0.0.1:2 is not loopback"},
		"mode":                 {map[string]string{"TASKGATE_AGENT_FILE_MODE": "0777"}, nil, "agent-file-mode: 0777"},
		"not octal":            {nil, []string{"--agent-file-mode", "rw"}, `"rw" is not an octal file mode`},
		"bad variable":         {map[string]string{"TASKGATE_BROKER_ID": "broker"}, nil, "environment variable TASKGATE_BROKER_ID"},
		"bad level":            {nil, []string{"--log-level", "loud"}, "log-level"},
		"argument":             {nil, []string{"serve"}, `unknown command "serve"`},
		"probe, health":        {map[string]string{"TASKGATE_HEALTH": "10.0.0.1:1"}, []string{"probe", "live"}, "health: 10.0.0.1:1 is not loopback"},
		"probe, health, flag":  {nil, []string{"probe", "live", "--health", "127.0.0.1:1"}, "no sidecar answers at 127.0.0.1:1"},
		"probe without state":  {nil, []string{"probe"}, "accepts 1 arg"},
		"probe, another state": {nil, []string{"probe", "well"}, `invalid argument "well"`},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := run(t, test.environment, test.arguments...); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v does not say %q", err, test.want)
			}
		})
	}
}

func TestHelpTeaches(t *testing.T) {
	out, err := run(t, nil, "--help")
	if err != nil {
		t.Fatal(err)
	}
	for _, flag := range []string{
		"--broker host:port", "--broker-id", "--workload-api", "--hint", "--listen", "--health", "--state-dir", "--agent-dir",
		"--agent-file-mode", "--namespace", "--grant", "--grace", "--log-level", "--version", "TASKGATE_BROKER_ID", "probe", "kubectl --kubeconfig",
	} {
		if !strings.Contains(out, flag) {
			t.Errorf("the help does not mention %s", flag)
		}
	}
	if out, err := run(t, nil, "--version"); err != nil || !strings.HasPrefix(out, "sidecar version ") {
		t.Errorf("%q %v", out, err)
	}
}
