// Package testbedtest starts testbeds for tests.
package testbedtest

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/taskgate/taskgate/e2e/testbed"
)

const stopPatience = time.Minute

// Start starts a testbed and stops it when the test ends. After a failure its
// directory stays, and the test says where. A testbed that cannot be started is
// the end of the test.
func Start(t testing.TB, options testbed.Options) *testbed.Testbed {
	t.Helper()
	if options.Directory == "" {
		options.Directory = Directory(t)
	}
	if options.Progress == nil {
		options.Progress = t.Output()
	}
	bed, err := testbed.Start(t.Context(), options)
	if err != nil {
		t.Fatalf("starting a testbed: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), stopPatience)
		defer cancel()
		if err := bed.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
	return bed
}

// Directory makes a folder for a testbed, which is removed when the test passed.
// Its path is short, because sockets go into it, and every uid may pass through
// it; testing's own TempDir is neither.
func Directory(t testing.TB) string {
	t.Helper()
	folder, err := os.MkdirTemp("", "taskgate-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the testbed's files stay in %s", folder)
			return
		}
		if err := os.RemoveAll(folder); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	return folder
}
