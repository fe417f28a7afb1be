package bench

import (
	"reflect"
	"testing"
)

func TestKindOfWork(t *testing.T) {
	for want, stack := range map[string][]string{
		"garbage collection":                    {"runtime.scanobject", "runtime.gcDrain", "runtime.gcBgMarkWorker"},
		"system calls: disk":                    {"internal/runtime/syscall/linux.Syscall6", "syscall.Fdatasync", ourModule + "recorder.datasync"},
		"system calls: writing to sockets":      {"internal/runtime/syscall/linux.Syscall6", "syscall.write", "internal/poll.(*FD).Write", "net.(*netFD).Write"},
		"system calls: reading from sockets":    {"internal/runtime/syscall/linux.Syscall6", "syscall.read", "internal/poll.(*FD).Read", "net.(*netFD).Read"},
		"scheduler and netpoll":                 {"runtime.netpoll", "runtime.findRunnable", "runtime.schedule", "runtime.mcall"},
		"allocation":                            {"runtime.nextFreeFast", "runtime.mallocgc", "net/http.Header.Clone"},
		"net/http":                              {"runtime.mapaccess1_faststr", "net/http.Header.Get", ourModule + "broker.buildHeader"},
		"github.com/taskgate/taskgate/recorder": {ourModule + "recorder.appendString", ourModule + "broker.(*exchange).admit"},
	} {
		if got := kindOfWork(stack); got != want {
			t.Errorf("%v is %q, not %q", stack, got, want)
		}
	}
}

func TestSums(t *testing.T) {
	s := &samples{stacks: []stack{
		{[]string{"runtime.mallocgc", ourModule + "broker.f", ourModule + "broker.f", "net/http.g"}, 2},
		{[]string{"net/http.g"}, 3},
	}}
	if got, want := s.cumulative(ourFunction), map[string]float64{"broker.f": 2}; !reflect.DeepEqual(got, want) {
		t.Errorf("our functions: %v", got)
	}
	if got, want := s.cumulative(anyFunction)["net/http.g"], 5.0; got != want {
		t.Errorf("net/http.g: %v", got)
	}
	if got, want := s.by(anyAllocator), map[string]float64{ourModule + "broker.f": 2, "net/http.g": 3}; !reflect.DeepEqual(got, want) {
		t.Errorf("allocators: %v", got)
	}
	for function, want := range map[string]string{
		ourModule + "broker.(*exchange).forward": "broker", ourModule + "broker/request.Parse": "broker/request", "net/http.Get": "",
	} {
		if got := ourPackage(function); got != want {
			t.Errorf("%s is of %q, not %q", function, got, want)
		}
	}
}

func TestCollect(t *testing.T) {
	found := map[string]map[string][]float64{}
	collect(found, `goos: linux
BenchmarkDecide/others=0-2       	 100	 43.5 ns/op	       0 B/op	       0 allocs/op
BenchmarkDecide/others=10000-2   	 100	 44.5 ns/op	       0 B/op	       0 allocs/op
PASS
BenchmarkDecide/others=0-2       	 100	 45.5 ns/op
`)
	if got, want := found["others=0"]["ns/op"], []float64{43.5, 45.5}; !reflect.DeepEqual(got, want) {
		t.Errorf("ns: %v", got)
	}
	if got, want := found["others=10000"]["allocs/op"], []float64{0}; !reflect.DeepEqual(got, want) {
		t.Errorf("allocations: %v", got)
	}
}

func TestParseMachineTime(t *testing.T) {
	got, err := parseMachineTime("cpu  289262 170620 122439 712261 22764 1 5040 853 0 0")
	if want := (machineTime{busy: 289262 + 170620 + 122439 + 1 + 5040, idle: 712261 + 22764, stolen: 853}); got != want || err != nil {
		t.Errorf("%v %v", got, err)
	}
	if _, err := parseMachineTime("intr 1 2 3 4 5 6 7 8 9"); err == nil {
		t.Error("another line was accepted")
	}
}
