// Command dev-workload-api stands in for a SPIRE agent where there is none: it
// gives every workload an identity on a unix socket of its own. It attests
// nothing, so whoever can open the socket is that workload. For testbeds and
// demonstrations only.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/taskgate/taskgate/e2e/internal/devidentity"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := devidentity.NewCommand(os.Stderr).ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "dev-workload-api:", err)
		os.Exit(1)
	}
}
