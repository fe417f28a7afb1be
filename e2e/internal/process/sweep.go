package process

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"time"
)

// Sweep kills every process whose environment holds the given KEY=value, and
// waits until they are gone. It finds what a list of pids misses: children of
// children, and a process whose start was not written down because its parent
// was killed at that moment. nil means that none is left.
func Sweep(marker string) error {
	deadline := time.Now().Add(killPatience)
	for {
		marked := findMarked([]byte(marker))
		if len(marked) == 0 {
			return nil
		}
		var errs []error
		for _, identity := range marked {
			errs = append(errs, identity.signal(syscall.SIGKILL, false))
		}
		if err := errors.Join(errs...); err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d processes do not end even after SIGKILL, the first is %d", len(marked), marked[0].PID)
		}
		time.Sleep(pollInterval)
	}
}

// findMarked looks at the environment each process was started with. Those of
// other users cannot be read and are not ours.
func findMarked(marker []byte) []Identity {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var marked []Identity
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		environment, err := os.ReadFile("/proc/" + entry.Name() + "/environ")
		if err != nil || !hasEntry(environment, marker) {
			continue
		}
		if identity, err := identify(pid); err == nil && identity.Alive() {
			marked = append(marked, identity)
		}
	}
	return marked
}

func hasEntry(environment, marker []byte) bool {
	for entry := range bytes.SplitSeq(environment, []byte{0}) {
		if bytes.Equal(entry, marker) {
			return true
		}
	}
	return false
}
