package bench

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/google/pprof/profile"
)

// samples are the stacks of a profile with one value each.
type samples struct {
	stacks []stack
	total  float64
}

// stack is the functions of a sample, the innermost first.
type stack struct {
	functions []string
	value     float64
}

// parseProfile reads the values of one type out of a profile.
func parseProfile(content []byte, kind string) (*samples, error) {
	parsed, err := profile.Parse(bytes.NewReader(content))
	if err != nil {
		return nil, fmt.Errorf("reading a profile: %w", err)
	}
	index := -1
	for i, t := range parsed.SampleType {
		if t.Type == kind {
			index = i
		}
	}
	if index < 0 {
		return nil, fmt.Errorf("the profile holds no %s", kind)
	}
	s := &samples{}
	for _, one := range parsed.Sample {
		st := stack{value: float64(one.Value[index])}
		for _, location := range one.Location {
			for _, l := range location.Line {
				if l.Function != nil {
					st.functions = append(st.functions, l.Function.Name)
				}
			}
		}
		s.stacks = append(s.stacks, st)
		s.total += st.value
	}
	return s, nil
}

// by adds the samples up by one word about each; "" leaves it out.
func (s *samples) by(word func([]string) string) map[string]float64 {
	sums := map[string]float64{}
	for _, st := range s.stacks {
		if w := word(st.functions); w != "" {
			sums[w] += st.value
		}
	}
	return sums
}

// cumulative adds the samples up by one word about each function on the stack;
// a word counts once per sample.
func (s *samples) cumulative(word func(string) string) map[string]float64 {
	sums := map[string]float64{}
	for _, st := range s.stacks {
		seen := map[string]bool{}
		for _, function := range st.functions {
			if w := word(function); w != "" && !seen[w] {
				seen[w] = true
				sums[w] += st.value
			}
		}
	}
	return sums
}

const ourModule = "github.com/taskgate/taskgate/"

func anyFunction(function string) string { return function }

func ourFunction(function string) string {
	name, ours := strings.CutPrefix(function, ourModule)
	if !ours {
		return ""
	}
	return name
}

func ourPackage(function string) string {
	name := ourFunction(function)
	slash := strings.LastIndex(name, "/")
	dot := strings.Index(name[slash+1:], ".")
	if dot < 0 {
		return ""
	}
	return name[:slash+1+dot]
}

func leafFunction(functions []string) string {
	if len(functions) == 0 {
		return ""
	}
	return functions[0]
}

// packageOf is the import path of a function's package.
func packageOf(function string) string {
	slash := strings.LastIndex(function, "/")
	dot := strings.Index(function[slash+1:], ".")
	if dot < 0 {
		return function
	}
	return function[:slash+1+dot]
}

// isRuntime is about packages that work on behalf of others.
func isRuntime(function string) bool {
	name := packageOf(function)
	return name == "runtime" || strings.HasPrefix(name, "internal/runtime/") || strings.HasPrefix(name, "runtime/") ||
		slices.Contains([]string{
			"internal/bytealg", "internal/poll", "internal/sync", "internal/chacha8rand", "sync", "sync/atomic", "syscall",
			"aeshashbody", "cmpbody", "gcWriteBarrier", "memeqbody", // assembly, without a package
		}, name)
}

// anyAllocator is the innermost function that is not the runtime's.
func anyAllocator(functions []string) string {
	for _, function := range functions {
		if !isRuntime(function) {
			return function
		}
	}
	return leafFunction(functions)
}

// kindOfWork names what a sample of CPU time was spent on: what the runtime and
// the kernel did on somebody's behalf, or whose code it was.
func kindOfWork(functions []string) string {
	has := func(names ...string) bool {
		for _, function := range functions {
			for _, name := range names {
				if strings.HasPrefix(function, name) {
					return true
				}
			}
		}
		return false
	}
	leaf := leafFunction(functions)
	system := strings.HasSuffix(leaf, ".Syscall6") || strings.HasPrefix(leaf, "syscall.RawSyscall")
	switch {
	case has("runtime.gcBgMarkWorker", "runtime.gcAssistAlloc", "runtime.bgsweep", "runtime.bgscavenge", "runtime.gcStart"):
		return "garbage collection"
	case system && has("syscall.Fdatasync", "os.(*File)"):
		return "system calls: disk"
	case system && has("internal/poll.(*FD).Write"):
		return "system calls: writing to sockets"
	case system && has("internal/poll.(*FD).Read"):
		return "system calls: reading from sockets"
	case has("runtime.mcall", "runtime.schedule", "runtime.findRunnable", "runtime.goready", "runtime.ready", "runtime.futex", "runtime.systemstack_switch"):
		return "scheduler and netpoll"
	case system:
		return "system calls: other"
	case has("runtime.mallocgc", "runtime.growslice", "runtime.newobject", "runtime.makeslice"):
		return "allocation"
	}
	return packageOf(anyAllocator(functions))
}

// beginAndWait names a goroutine by its first function and by what it waits in.
func beginAndWait(functions []string) string {
	if len(functions) == 0 {
		return ""
	}
	begin := functions[len(functions)-1]
	for i := len(functions) - 1; i >= 0 && isRuntime(functions[i]); i-- {
		begin = functions[max(i-1, 0)]
	}
	return begin + " … " + anyAllocator(functions)
}
