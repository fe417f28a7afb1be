package testbed

import (
	"fmt"
	"strings"
)

// Environment is what a testbed tells other programs: the content of its file
// env, which a shell can source. The names of the variables are a contract.
type Environment struct {
	AdminKubeconfig string `json:"adminKubeconfig"`
	Alpha           Access `json:"alpha"`
	Beta            Access `json:"beta"`

	BrokerAddress string `json:"brokerAddress"` // host:port
	BrokerMetrics string `json:"brokerMetrics"` // URL
	BrokerPID     int    `json:"brokerPID"`
	BrokerSpool   string `json:"brokerSpool"`

	TrustBundle string      `json:"trustBundle"` // file in the SPIFFE format
	AuditLog    string      `json:"auditLog"`    // the API server's; empty for an existing cluster
	Store       ObjectStore `json:"store"`
	Programs    string      `json:"programs"` // folder
}

// Access is how an agent reaches the cluster: through its sidecar.
type Access struct {
	Kubeconfig string `json:"kubeconfig"`
	URL        string `json:"url"`
	Token      string `json:"token"`
	CA         string `json:"ca"` // file
}

type variable struct{ name, value string }

func (e Environment) variables() []variable {
	list := []variable{{"ADMIN_KUBECONFIG", e.AdminKubeconfig}}
	list = append(list, e.Alpha.variables("ALPHA")...)
	list = append(list, e.Beta.variables("BETA")...)
	pid := ""
	if e.BrokerPID != 0 {
		pid = fmt.Sprint(e.BrokerPID)
	}
	list = append(list,
		variable{"BROKER_ADDR", e.BrokerAddress},
		variable{"BROKER_METRICS", e.BrokerMetrics},
		variable{"BROKER_PID", pid},
		variable{"BROKER_SPOOL", e.BrokerSpool},
		variable{"TRUST_BUNDLE", e.TrustBundle},
		variable{"AUDIT_LOG", e.AuditLog},
		variable{"S3_ENDPOINT", e.Store.Endpoint},
		variable{"S3_BUCKET", e.Store.Bucket},
	)
	list = append(list, e.Store.Admin.variables("S3_ADMIN")...)
	list = append(list, e.Store.Broker.variables("S3_BROKER")...)
	list = append(list, e.Store.Auditor.variables("S3_AUDITOR")...)
	return append(list, variable{"BIN", e.Programs})
}

func (a Access) variables(name string) []variable {
	return []variable{
		{name + "_KUBECONFIG", a.Kubeconfig},
		{name + "_URL", a.URL},
		{name + "_TOKEN", a.Token},
		{name + "_CA", a.CA},
	}
}

func (c Credentials) variables(name string) []variable {
	return []variable{{name + "_KEY", c.Key}, {name + "_SECRET", c.Secret}}
}

// Lines is the environment as KEY=value, for the Env of an exec.Cmd.
func (e Environment) Lines() []string {
	var lines []string
	for _, v := range e.variables() {
		lines = append(lines, "TASKGATE_"+v.name+"="+v.value)
	}
	return lines
}

// Shell is the environment as a file that a shell can source.
func (e Environment) Shell() string {
	var text strings.Builder
	for _, v := range e.variables() {
		fmt.Fprintf(&text, "export TASKGATE_%s=%s\n", v.name, quote(v.value))
	}
	return text.String()
}

// quote makes a word of a POSIX shell out of any text.
func quote(text string) string {
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}
