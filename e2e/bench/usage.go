package bench

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// cpuTime is the processor time a process has used, in nanoseconds as the
// scheduler counts them, over all threads. Threads that ended are missing; Go
// keeps its own.
func cpuTime(pid int) (time.Duration, error) {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil || len(files) == 0 {
		return 0, fmt.Errorf("process %d has no threads: did it end?", pid)
	}
	var total time.Duration
	for _, file := range files {
		content, err := os.ReadFile(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue // that thread has just ended
		}
		if err != nil {
			return 0, fmt.Errorf("reading the CPU time of process %d: %w", pid, err)
		}
		first, _, _ := strings.Cut(string(content), " ")
		nanoseconds, err := strconv.ParseInt(first, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("reading %s: %w", file, err)
		}
		total += time.Duration(nanoseconds)
	}
	return total, nil
}

// memory is what a process holds, in bytes.
type memory struct {
	resident  int64 // all of it
	anonymous int64 // without the pages of files, mostly its own program
}

func memoryOf(pid int) (memory, error) {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return memory{}, fmt.Errorf("reading the memory of process %d: %w", pid, err)
	}
	resident, residentErr := kilobytes(content, "Rss")
	anonymous, anonymousErr := kilobytes(content, "Anonymous")
	return memory{resident, anonymous}, errors.Join(residentErr, anonymousErr)
}

// resetPeak makes the kernel forget the most a process ever held (proc(5),
// clear_refs).
func resetPeak(pid int) error {
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0); err != nil {
		return fmt.Errorf("resetting the peak memory of process %d: %w", pid, err)
	}
	return nil
}

// peakMemory is the most a process held since resetPeak, in bytes.
func peakMemory(pid int) (int64, error) {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, fmt.Errorf("reading the peak memory of process %d: %w", pid, err)
	}
	return kilobytes(content, "VmHWM")
}

// kilobytes finds a line such as "Rss:  123 kB" and returns bytes.
func kilobytes(content []byte, field string) (int64, error) {
	lines := bufio.NewScanner(bytes.NewReader(content))
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		if len(words) == 3 && words[0] == field+":" {
			value, err := strconv.ParseInt(words[1], 10, 64)
			return value << 10, err
		}
	}
	return 0, fmt.Errorf("there is no %s among what the kernel says", field)
}

// descriptors is the number of open files and sockets of a process.
func descriptors(pid int) (int, error) {
	open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return 0, fmt.Errorf("counting the open files of process %d: %w", pid, err)
	}
	return len(open), nil
}

// machineTime is the CPU time of the whole machine, in clock ticks.
type machineTime struct{ busy, idle, stolen int64 }

func readMachineTime() (machineTime, error) {
	content, err := os.ReadFile("/proc/stat")
	if err != nil {
		return machineTime{}, fmt.Errorf("reading the CPU time of the machine: %w", err)
	}
	first, _, _ := strings.Cut(string(content), "\n")
	return parseMachineTime(first)
}

// parseMachineTime reads the first line of /proc/stat: user, nice, system, idle,
// iowait, irq, softirq, steal; guest time is part of user.
func parseMachineTime(line string) (machineTime, error) {
	words := strings.Fields(line)
	if len(words) < 9 || words[0] != "cpu" {
		return machineTime{}, fmt.Errorf("%q is not the CPU time of the machine", line)
	}
	var ticks [8]int64
	for i := range ticks {
		var err error
		if ticks[i], err = strconv.ParseInt(words[i+1], 10, 64); err != nil {
			return machineTime{}, fmt.Errorf("reading the CPU time of the machine: %w", err)
		}
	}
	return machineTime{
		busy:   ticks[0] + ticks[1] + ticks[2] + ticks[5] + ticks[6],
		idle:   ticks[3] + ticks[4],
		stolen: ticks[7],
	}, nil
}
