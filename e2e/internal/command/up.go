package command

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/taskgate/taskgate/e2e/testbed"
)

func newUp(directory *string) *cobra.Command {
	var options testbed.Options
	command := &cobra.Command{
		Use:   "up",
		Short: "Start the testbed and leave it running; write its file env",
		Args:  cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			options.Directory = *directory
			options.Detached = true
			options.Progress = command.OutOrStdout()
			return up(command, options)
		},
	}
	flags := command.Flags()
	flags.StringVar(&options.SPIFFE, "spiffe", testbed.Dev, "who gives identities: dev (attests nothing) or spire (needs root)")
	flags.StringVar(&options.S3, "s3", testbed.VersityGW, "the S3 store: versitygw or minio")
	flags.StringVar(&options.Node, "node", testbed.Kwok, "the node: kwok (a fake one, pods run at once), real (containerd and a kubelet; needs root) or none")
	flags.StringVar(&options.Kubeconfig, "kubeconfig", "", "use the cluster of this kubeconfig instead of starting one")
	flags.IntVar(&options.Brokers, "brokers", 1, "how many broker replicas")
	flags.BoolVar(&options.Race, "race", false, "build taskgate with the race detector")
	flags.BoolVar(&options.WithoutTaskgate, "without-taskgate", false, "start only what is around taskgate, no broker and no sidecars")
	return command
}

// up is idempotent: a testbed that is up stays as it is.
func up(command *cobra.Command, options testbed.Options) error {
	bed, err := testbed.Open(options.Directory)
	if err == nil && running(bed) {
		return alreadyUp(command, bed, options)
	}
	if err != nil && !errors.Is(err, testbed.ErrNoTestbed) {
		command.Println("removing the remains of a testbed:", err)
	}
	begin := time.Now()
	bed, err = testbed.Start(command.Context(), options)
	if err != nil {
		return err
	}
	command.Printf("the testbed is up (%s)\n", time.Since(begin).Round(time.Second))
	return advise(command.OutOrStdout(), bed, options)
}

// running says whether anything runs; after a reboot nothing does.
func running(bed *testbed.Testbed) bool {
	for _, component := range bed.Components() {
		if component.PID() != 0 {
			return true
		}
	}
	return false
}

func alreadyUp(command *cobra.Command, bed *testbed.Testbed, wanted testbed.Options) error {
	if err := problem(bed); err != nil {
		return err
	}
	is := bed.Options()
	for _, option := range []struct{ flag, wanted, is string }{
		{"spiffe", wanted.SPIFFE, is.SPIFFE}, {"s3", wanted.S3, is.S3}, {"node", wanted.Node, is.Node},
	} {
		if command.Flags().Changed(option.flag) && option.wanted != option.is {
			return fmt.Errorf("a testbed with --%s=%s is up already: take it down to start one with %s", option.flag, option.is, option.wanted)
		}
	}
	command.Println("the testbed in", bed.Directory(), "is up already")
	return nil
}

// advise says what to try next.
func advise(output io.Writer, bed *testbed.Testbed, options testbed.Options) error {
	const admin = `  kubectl --kubeconfig "$TASKGATE_ADMIN_KUBECONFIG" get nodes        # as the administrator
`
	const agent = `  kubectl --kubeconfig "$TASKGATE_ALPHA_KUBECONFIG" get pods         # as the agent alpha, who needs a grant first
  taskgate --help
`
	text := "try:\n  source " + filepath.Join(bed.Directory(), "env") + "\n" + `  export PATH="$TASKGATE_BIN:$PATH"` + "\n" + admin
	if !options.WithoutTaskgate {
		text += agent
	}
	_, err := io.WriteString(output, text+"stop it with: testbed down (or make down)\n")
	return err
}
