package namespaces_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/taskgate/taskgate/e2e/internal/namespaces"
)

// TestAsk hands out three files and gets the same three, as often as it asks.
func TestAsk(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "socket")
	served := namespaces.Set{Mount: file(t, "mnt"), PID: file(t, "pid"), Network: file(t, "net")}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- namespaces.Serve(ctx, socket, served) }()
	for _, err := os.Stat(socket); err != nil; _, err = os.Stat(socket) {
	}
	for range 3 {
		got, err := namespaces.Ask(socket)
		if err != nil {
			t.Fatal(err)
		}
		for _, pair := range [][2]*os.File{{got.Mount, served.Mount}, {got.PID, served.PID}, {got.Network, served.Network}} {
			a, errA := pair[0].Stat()
			b, errB := pair[1].Stat()
			if errA != nil || errB != nil || !os.SameFile(a, b) {
				t.Errorf("%s arrived as another file (%v, %v)", pair[1].Name(), errA, errB)
			}
		}
		if err := got.Close(); err != nil {
			t.Error(err)
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if _, err := namespaces.Ask(socket); err == nil {
		t.Error("somebody answered after the end")
	}
}

func file(t *testing.T, name string) *os.File {
	t.Helper()
	opened, err := os.Open("/proc/self/ns/" + name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = opened.Close() }) // only a handle
	return opened
}

// TestAskNobody asks programs that hand out something else.
func TestAskNobody(t *testing.T) {
	for name, answer := range map[string]func(*net.UnixConn){
		"nothing":        func(*net.UnixConn) {},
		"no descriptors": func(c *net.UnixConn) { _, _ = c.Write([]byte{0}) },
		"too few":        func(c *net.UnixConn) { _, _, _ = c.WriteMsgUnix([]byte{0}, syscall.UnixRights(0, 1), nil) },
	} {
		t.Run(name, func(t *testing.T) {
			socket := filepath.Join(t.TempDir(), "socket")
			listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = listener.Close() }() // the test is over
			go func() {
				connection, err := listener.AcceptUnix()
				if err == nil {
					answer(connection)
					_ = connection.Close() // all was sent
				}
			}()
			if _, err := namespaces.Ask(socket); err == nil || !strings.Contains(err.Error(), "the namespaces to join") {
				t.Errorf("the error is %v", err)
			}
		})
	}
}

// TestGo starts more functions than a program has threads, and none gets the first.
func TestGo(t *testing.T) {
	var group sync.WaitGroup
	var mu sync.Mutex
	threads := map[int]bool{}
	release := make(chan struct{})
	const count = 50
	group.Add(count)
	started := make(chan struct{}, count)
	for range count {
		namespaces.Go(func() {
			defer group.Done()
			mu.Lock()
			threads[syscall.Gettid()] = true
			mu.Unlock()
			started <- struct{}{}
			<-release
		})
	}
	for range count {
		<-started
	}
	close(release)
	group.Wait()
	if len(threads) != count || threads[os.Getpid()] {
		t.Errorf("%d functions had %d threads, the first of the program: %t", count, len(threads), threads[os.Getpid()])
	}
}
