package testbed

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	"github.com/taskgate/taskgate/e2e/internal/process"
	"github.com/taskgate/taskgate/e2e/internal/toolset"
)

// spirePorts are those of a SPIRE server and agent.
type spirePorts struct {
	server, serverHealth, agentHealth int
}

// startSPIRE starts a SPIRE server, registers the workloads, and starts an agent
// that knows the server by its bundle and is known by a join token. Both keep
// their keys on disk, so that they can be restarted.
func (t *Testbed) startSPIRE(ctx context.Context) error {
	var listen spirePorts
	for _, port := range []*int{&listen.server, &listen.serverHealth, &listen.agentHealth} {
		var err error
		if *port, err = t.claims.Claim(); err != nil {
			return err
		}
	}
	if err := t.makeFolders("spire/server", "spire/agent"); err != nil {
		return err
	}
	if err := t.writeSPIREConfiguration(listen); err != nil {
		return err
	}
	if err := t.run(ctx, t.spireServer(listen), listen.server, listen.serverHealth); err != nil {
		return err
	}
	if err := t.connectSPIRE(); err != nil {
		return err
	}
	t.spire.port, t.spire.Address, t.spire.Program = listen.server, fmt.Sprintf("127.0.0.1:%d", listen.server), t.tools[toolset.SPIREServer]
	if err := t.spire.WriteBundle(ctx); err != nil {
		return err
	}
	for _, w := range t.workloads() {
		if _, err := t.spire.CreateEntry(ctx, Entry{ID: w.ID, UID: w.UID}); err != nil {
			return err
		}
	}
	if err := t.spire.writeJoinToken(ctx, nodeID, t.path("spire/join-token")); err != nil {
		return err
	}
	return t.run(ctx, t.spireAgent(listen), listen.agentHealth)
}

func (t *Testbed) spireServer(listen spirePorts) process.Spec {
	return process.Spec{
		Name:      ComponentSPIREServer,
		Path:      t.tools[toolset.SPIREServer],
		Arguments: []string{"run", "-config", t.path("spire/server.json")},
		Ready:     process.Probe{URL: readyURL(listen.serverHealth), Socket: t.spireSocket()},
		Advice:    "check that the disk has room, or use SPIFFE=dev",
	}
}

func (t *Testbed) spireAgent(listen spirePorts) process.Spec {
	return process.Spec{
		Name:      ComponentSPIREAgent,
		Path:      t.tools[toolset.SPIREAgent],
		Arguments: []string{"run", "-config", t.path("spire/agent.json")},
		Ready:     process.Probe{URL: readyURL(listen.agentHealth), Socket: t.path("identity/agent.sock")},
		Advice:    "look at the log of spire-server too",
	}
}

// spireSocket is where the server listens for its administrator: us.
func (t *Testbed) spireSocket() string { return t.path("spire/server.sock") }

// object is a part of a SPIRE configuration, which may be JSON.
type object map[string]any

// writeSPIREConfiguration makes everything quick: what is registered reaches
// the workloads within two seconds or so, not the usual ten.
func (t *Testbed) writeSPIREConfiguration(listen spirePorts) error {
	server := object{
		"server": object{
			"trust_domain": TrustDomain, "bind_address": "127.0.0.1", "bind_port": listen.server,
			"socket_path": t.spireSocket(), "data_dir": t.path("spire/server"), "log_level": "INFO",
			"ca_ttl": "168h", "agent_ttl": "72h", "default_x509_svid_ttl": t.options.SVIDTTL.String(),
			"experimental": object{"cache_reload_interval": "500ms"},
		},
		"plugins": object{
			"DataStore":    plugin("sql", object{"database_type": "sqlite3", "connection_string": t.path("spire/server/datastore.sqlite3")}),
			"NodeAttestor": plugin("join_token", object{}),
			"KeyManager":   plugin("disk", object{"keys_path": t.path("spire/server/keys.json")}),
		},
		"health_checks": health(listen.serverHealth),
	}
	agent := t.spireAgentConfiguration(listen, spireAgent{
		socket: t.path("identity/agent.sock"), data: t.path("spire/agent"), token: t.path("spire/join-token"),
		attestor: plugin("unix", object{}),
	})
	for name, content := range map[string]object{"server": server, "agent": agent} {
		encoded, err := json.MarshalIndent(content, "", "  ")
		if err != nil {
			return fmt.Errorf("encoding the configuration of the SPIRE %s: %w", name, err)
		}
		if err := os.WriteFile(t.path("spire", name+".json"), encoded, 0o600); err != nil {
			return fmt.Errorf("writing the configuration of the SPIRE %s: %w", name, err)
		}
	}
	return nil
}

// spireAgent is what the agents of a testbed do not share.
type spireAgent struct {
	socket, data, token string
	attestor            object
}

func (t *Testbed) spireAgentConfiguration(listen spirePorts, own spireAgent) object {
	return object{
		"agent": object{
			"trust_domain": TrustDomain, "server_address": "127.0.0.1", "server_port": listen.server,
			"socket_path": own.socket, "data_dir": own.data, "log_level": "INFO",
			"trust_bundle_path": t.path("bundle.json"), "trust_bundle_format": "spiffe",
			"join_token_file": own.token,
			"experimental":    object{"sync_interval": "1s"},
		},
		"plugins": object{
			"NodeAttestor":     plugin("join_token", object{}),
			"KeyManager":       plugin("disk", object{"directory": own.data}),
			"WorkloadAttestor": own.attestor,
		},
		"health_checks": health(listen.agentHealth),
	}
}

func plugin(name string, data object) object {
	return object{name: object{"plugin_data": data}}
}

func health(port int) object {
	return object{"listener_enabled": true, "bind_address": "127.0.0.1", "bind_port": fmt.Sprint(port), "ready_path": "/ready", "live_path": "/live"}
}

func readyURL(port int) string { return fmt.Sprintf("http://127.0.0.1:%d/ready", port) }
