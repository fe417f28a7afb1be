package process

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// Identity tells a process from every other one, also from a later one with the
// same pid. The zero value is a process that never ran.
type Identity struct {
	PID     int    `json:"pid"`
	Started uint64 `json:"started"` // clock ticks after boot
	Boot    string `json:"boot"`    // the kernel's random id of this boot
}

// identify reads the identity of a running process.
func identify(pid int) (Identity, error) {
	status, err := readStatus(pid)
	if err != nil {
		return Identity{}, err
	}
	boot, err := bootID()
	if err != nil {
		return Identity{}, err
	}
	return Identity{PID: pid, Started: status.started, Boot: boot}, nil
}

// Alive says whether this very process is still running. A zombie is not: it
// can do nothing any more, and only waits for its parent.
func (i Identity) Alive() bool {
	if i.PID == 0 {
		return false
	}
	status, err := readStatus(i.PID)
	if err != nil || status.started != i.Started || status.state == 'Z' || status.state == 'X' {
		return false
	}
	boot, err := bootID()
	return err == nil && boot == i.Boot
}

// signal sends a signal to the process, or to its whole process group.
func (i Identity) signal(signal syscall.Signal, group bool) error {
	if !i.Alive() {
		return nil
	}
	target := i.PID
	if group {
		target = -target
	}
	if err := syscall.Kill(target, signal); err != nil && err != syscall.ESRCH {
		return fmt.Errorf("sending %s to process %d: %w", signal, i.PID, err)
	}
	return nil
}

type processStatus struct {
	state   byte
	started uint64
}

// readStatus parses /proc/PID/stat, see proc_pid_stat(5). The second field is
// the command in parentheses and may itself hold spaces and parentheses.
func readStatus(pid int) (processStatus, error) {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return processStatus{}, fmt.Errorf("reading the state of process %d: %w", pid, err)
	}
	const state, startTime = 0, 19 // counted from the field after the command
	fields := bytes.Fields(content[bytes.LastIndexByte(content, ')')+1:])
	if len(fields) <= startTime {
		return processStatus{}, fmt.Errorf("reading the state of process %d: only %d fields", pid, len(fields))
	}
	started, err := strconv.ParseUint(string(fields[startTime]), 10, 64)
	if err != nil {
		return processStatus{}, fmt.Errorf("reading the start of process %d: %w", pid, err)
	}
	return processStatus{state: fields[state][0], started: started}, nil
}

func bootID() (string, error) {
	content, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("reading the id of this boot: %w", err)
	}
	return strings.TrimSpace(string(content)), nil
}
