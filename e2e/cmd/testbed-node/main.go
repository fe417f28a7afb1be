// Command testbed-node is the machine of a testbed's real node: process 1 of the
// namespaces in which containerd, the kubelet and all pods run. The testbed
// starts it; on its own it refuses to run.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/taskgate/taskgate/e2e/internal/nodehost"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := nodehost.NewCommand().ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "testbed-node:", err)
		os.Exit(1)
	}
}
