// Taskgate is the program for people. See its --help.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	_ "golang.org/x/crypto/x509roots/fallback" // the image has no certificates of its own

	"github.com/taskgate/taskgate/internal/cli"
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	err := cli.Command().ExecuteContext(ctx)
	if message := cli.Message(err); message != "" {
		fmt.Fprintln(os.Stderr, "taskgate:", message)
	}
	return cli.ExitCode(err)
}
