// Command demo shows taskgate at work on this machine. See demo --help.
//
// Called bucket, it is the small S3 client that the demo uses.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/taskgate/taskgate/e2e/demo"
)

// interrupted is the exit code of a program that Ctrl-C ended.
const interrupted = 130

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends it at once
	name := filepath.Base(os.Args[0])
	command := demo.Command(os.Stdout, os.Stderr)
	if name == demo.BucketName {
		command = demo.Bucket(os.Stdout)
	}
	err := command.ExecuteContext(ctx)
	if err == nil {
		return
	}
	fmt.Fprintln(os.Stderr, name+":", err)
	if errors.Is(err, demo.ErrInterrupted) {
		os.Exit(interrupted)
	}
	os.Exit(1)
}
