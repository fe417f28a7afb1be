package bench

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/taskgate/taskgate/e2e/testbed"
)

// chooser runs in place of the broker: the second replica is the one that does
// not record. It replaces itself by the broker, so that the pid stays.
const chooser = `#!/bin/sh
case "$*" in
*/broker-1/config.yaml*) exec %[1]s/broker-unrecorded "$@" ;;
*) exec %[1]s/broker-recorded "$@" ;;
esac
`

// buildPrograms builds taskgate into options.programs, and the broker that does
// not record if that is wanted. That one may fail: the rest can be measured.
func (w *world) buildPrograms(ctx context.Context, options worldOptions) error {
	repository, err := testbed.FindRepository()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(options.programs, 0o755); err != nil {
		return fmt.Errorf("making a folder for programs: %w", err)
	}
	options.progress("building broker, sidecar and taskgate")
	if err := testbed.BuildTaskgate(ctx, repository, options.programs, false); err != nil {
		return err
	}
	if !options.unrecorded {
		return nil
	}
	options.progress("building the broker that does not record")
	if w.unrecordedProblem = unrecorded().build(ctx, repository, filepath.Join(options.programs, "broker-unrecorded")); w.unrecordedProblem != nil {
		return nil
	}
	broker := filepath.Join(options.programs, "broker")
	if err := os.Rename(broker, filepath.Join(options.programs, "broker-recorded")); err != nil {
		return fmt.Errorf("making room for the choice of a broker: %w", err)
	}
	if err := os.WriteFile(broker, fmt.Appendf(nil, chooser, options.programs), 0o755); err != nil {
		return fmt.Errorf("writing the choice of a broker: %w", err)
	}
	return nil
}

// buildProfiled builds taskgate so that broker and sidecar serve profiles.
func buildProfiled(ctx context.Context, folder string) error {
	repository, err := testbed.FindRepository()
	if err != nil {
		return err
	}
	if err := testbed.BuildTaskgate(ctx, repository, folder, false); err != nil {
		return err
	}
	for _, name := range []string{"broker", "sidecar"} {
		if err := profiled(name).build(ctx, repository, filepath.Join(folder, name)); err != nil {
			return err
		}
	}
	return nil
}
