package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/taskgate/taskgate/identity/registration"
)

func spireCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "spire",
		Short: "Register agents with SPIRE, and see what a pod gets",
		Long: `Spire makes the registration entries by which the sidecar of an agent's pod gets
the agent's SPIFFE ID, and nothing else in the pod does: an entry names namespace,
service account, container and the digest of the image.

There are two ways. Where spire-controller-manager or spire-server are the tools
of choice, taskgate only writes down what they are to do:

  taskgate spire render -f agents.yaml | kubectl apply -f -

Otherwise taskgate does it itself:

  taskgate spire plan -f agents.yaml    says what would change
  taskgate spire apply -f agents.yaml   does it

Use one of them: a spire-controller-manager without entryIDPrefix deletes the
entries that others make.

Then, in a pod, taskgate spire verify tells what was given out.

` + specHelp,
	}
	cmd.AddCommand(renderCommand(), planCommand(), applyCommand(), lookCommand())
	return cmd
}

const specHelp = `The description of the agents (-f) is a file like this one; what it leaves out is
as here:

  apiVersion: config.taskgate.dev/v1alpha1
  kind: SPIRERegistration
  name: prod                      # of this set of entries; one per cluster
  trustDomain: example.org
  cluster: prod                   # as its nodes attest (k8s_psat); or
                                  # parentID: spiffe://example.org/spire/agent/…
  sidecar:
    images:                       # by digest; old and new during a rollout
    - registry.example.org/taskgate/sidecar@sha256:…
    container: taskgate
  ttl: 15m
  spiffeID: spiffe://{trustDomain}/ns/{namespace}/sa/{serviceAccount}
  agents:
  - {namespace: agents, serviceAccount: fixer}

An agent may have a spiffeID of its own. federatesWith names other trust domains.
For a few agents flags do the same: --name, --trust-domain, --cluster, --image,
--agent.`

// specOptions say what is to be registered.
type specOptions struct {
	file   string
	flags  registration.Spec
	agents []string
}

func (o *specOptions) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVarP(&o.file, "filename", "f", "", "`file` with the description of the agents (- for standard input)")
	flags.StringVar(&o.flags.Name, "name", "", "`name` of the set of entries, such as that of the cluster")
	flags.StringVar(&o.flags.TrustDomain, "trust-domain", "", "SPIFFE trust domain")
	flags.StringVar(&o.flags.Cluster, "cluster", "", "`name` by which the nodes of the cluster attest (k8s_psat)")
	flags.StringVar(&o.flags.ParentID, "parent-id", "", "SPIFFE `ID` of the SPIRE agents, instead of --cluster")
	flags.StringVar(&o.flags.SPIFFEID, "spiffe-id", "", "`template` of the agents' SPIFFE IDs")
	flags.StringVar(&o.flags.TTL, "ttl", "", "life of the SVIDs")
	flags.StringVar(&o.flags.Sidecar.Container, "container", "", "`name` of the sidecar's container (default taskgate)")
	flags.StringArrayVar(&o.flags.Sidecar.Images, "image", nil, "image of the sidecar, `repository@sha256:…`; may be repeated")
	flags.StringArrayVar(&o.agents, "agent", nil, "`namespace/service-account` of an agent; may be repeated")
	for _, name := range []string{"name", "trust-domain", "cluster", "parent-id", "spiffe-id", "ttl", "container", "image", "agent"} {
		cmd.MarkFlagsMutuallyExclusive("filename", name)
	}
}

func (o *specOptions) spec(cmd *cobra.Command) (*registration.Spec, error) {
	if o.file == "" {
		return o.specFromFlags()
	}
	input := cmd.InOrStdin()
	if o.file != "-" {
		file, err := os.Open(o.file)
		if err != nil {
			return nil, fmt.Errorf("reading the description of agents: %w", err)
		}
		defer file.Close()
		input = file
	}
	data, err := io.ReadAll(input)
	if err != nil {
		return nil, fmt.Errorf("reading the description of agents: %w", err)
	}
	return registration.Parse(data)
}

func (o *specOptions) specFromFlags() (*registration.Spec, error) {
	spec := o.flags
	for _, agent := range o.agents {
		namespace, account, found := strings.Cut(agent, "/")
		if !found {
			return nil, fmt.Errorf("--agent: write namespace/service-account, not %q", agent)
		}
		spec.Agents = append(spec.Agents, registration.Agent{Namespace: namespace, ServiceAccount: account})
	}
	if len(spec.Agents) == 0 {
		return nil, errors.New("which agents? Give -f FILE, or --agent namespace/service-account and what goes with it (see --help)")
	}
	return &spec, spec.Complete()
}

type renderOptions struct {
	specOptions
	format string
}

func renderCommand() *cobra.Command {
	var o renderOptions
	cmd := &cobra.Command{
		Use:   "render -f FILE",
		Short: "Write the registration for other tools, without asking anybody",
		Long: `Render writes the registration of the agents for a tool that does it:

  --format ClusterSPIFFEID     for spire-controller-manager; it makes an entry for each pod. Only
                               this format knows serviceAccount: "*" (every one of the namespace)
                               and {podUID} in a spiffeID
  --format ClusterStaticEntry  for spire-controller-manager; an entry for all pods of an agent
  --format json                for spire-server entry create -data -

The same description always gives the same text. Nothing is asked or changed.`,
		Example: `  taskgate spire render -f agents.yaml | kubectl apply -f -
  taskgate spire render -f agents.yaml --format json | spire-server entry create -data -
  taskgate spire render --name prod --trust-domain example.org --agent agents/fixer \
    --image registry.example.org/taskgate/sidecar@sha256:…`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd) },
	}
	o.register(cmd)
	cmd.Flags().StringVar(&o.format, "format", "ClusterSPIFFEID", "ClusterSPIFFEID, ClusterStaticEntry or json")
	return cmd
}

func (o *renderOptions) run(cmd *cobra.Command) error {
	spec, err := o.spec(cmd)
	if err != nil {
		return couldNot("%w", err)
	}
	var text []byte
	switch o.format {
	case "ClusterSPIFFEID":
		text, err = spec.ClusterSPIFFEIDs()
	case "ClusterStaticEntry":
		text, err = spec.StaticEntries()
	case "json":
		text, err = spec.JSON()
	default:
		err = fmt.Errorf("--format is ClusterSPIFFEID, ClusterStaticEntry or json, not %q", o.format)
	}
	if err != nil {
		return couldNot("%w", err)
	}
	_, err = cmd.OutOrStdout().Write(text)
	return err
}

// spirePatience is how long a SPIRE server may take for all of a plan.
const spirePatience = 2 * time.Minute
