package e2e_test

import (
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// faultWire is a TCP proxy that a test can hold, cut and open again, and that can be
// as long as the way round the world. What is held is kept and delivered later, as by
// a network that is away for a while.
type faultWire struct {
	listener net.Listener
	target   atomic.Pointer[string]
	delay    atomic.Int64 // of each byte, one way, in nanoseconds

	mu    sync.Mutex
	pairs map[*faultPair]struct{}
	held  bool // connections to come are held too
}

type faultPair struct {
	ends [2]net.Conn
	gate chan struct{} // nil while bytes pass; closed to let them pass again
	lost bool          // nothing passes any more, and nobody is told
}

func newFaultWire(t testing.TB) *faultWire { return newFaultWireAt(t, "127.0.0.1") }

// newFaultWireAt listens at an address of this machine.
func newFaultWireAt(t testing.TB, host string) *faultWire {
	t.Helper()
	listener, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Fatal(err)
	}
	w := &faultWire{listener: listener, pairs: map[*faultPair]struct{}{}}
	t.Cleanup(func() {
		_ = listener.Close() // the end
		w.cut()
	})
	go w.accept()
	return w
}

func (w *faultWire) address() string { return w.listener.Addr().String() }

func (w *faultWire) accept() {
	for {
		near, err := w.listener.Accept()
		if err != nil {
			return
		}
		go w.join(near)
	}
}

func (w *faultWire) join(near net.Conn) {
	far, err := net.Dial("tcp", *w.target.Load())
	if err != nil {
		_ = near.Close() // as if nobody listened
		return
	}
	pair := &faultPair{ends: [2]net.Conn{near, far}}
	w.mu.Lock()
	if w.held {
		pair.gate = make(chan struct{})
	}
	w.pairs[pair] = struct{}{}
	w.mu.Unlock()
	var wait sync.WaitGroup
	wait.Go(func() { w.carry(pair, near, far) })
	wait.Go(func() { w.carry(pair, far, near) })
	wait.Wait()
	w.mu.Lock()
	delete(w.pairs, pair)
	w.mu.Unlock()
}

// faultPacket is bytes on their way, and when they arrive.
type faultPacket struct {
	bytes []byte
	due   time.Time
}

// carry moves bytes one way. The end of one way is the end of both.
func (w *faultWire) carry(pair *faultPair, from, to net.Conn) {
	sent := make(chan faultPacket, 1<<10) // as much may be on its way
	var wait sync.WaitGroup
	wait.Go(func() {
		for packet := range sent {
			time.Sleep(time.Until(packet.due))
			w.mu.Lock()
			gate := pair.gate
			w.mu.Unlock()
			if gate != nil {
				<-gate
			}
			if _, err := to.Write(packet.bytes); err != nil {
				_ = from.Close() // which ends the reading below
			}
		}
	})
	for {
		buffer := make([]byte, 32<<10)
		n, err := from.Read(buffer)
		if n > 0 {
			sent <- faultPacket{buffer[:n], time.Now().Add(time.Duration(w.delay.Load()))}
		}
		if err != nil {
			break
		}
	}
	close(sent)
	wait.Wait()
	_, _ = from.Close(), to.Close()
}

// hold lets nothing pass on the connections there are, and on new ones if all.
func (w *faultWire) hold(all bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.held = all
	for pair := range w.pairs {
		if pair.gate == nil {
			pair.gate = make(chan struct{})
		}
	}
}

// open lets everything pass again.
func (w *faultWire) open() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.held = false
	for pair := range w.pairs {
		if pair.gate != nil && !pair.lost {
			close(pair.gate)
			pair.gate = nil
		}
	}
}

// lose lets nothing pass on the connections there are, ever again; new ones work.
func (w *faultWire) lose() {
	w.hold(false)
	w.mu.Lock()
	defer w.mu.Unlock()
	for pair := range w.pairs {
		pair.lost = true
	}
}

// cut closes every connection there is.
func (w *faultWire) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for pair := range w.pairs {
		if pair.gate != nil {
			close(pair.gate)
			pair.gate = nil
		}
		_, _ = pair.ends[0].Close(), pair.ends[1].Close()
	}
}

// toCluster puts the wire between a broker and the API server, by changing the
// kubeconfig that the testbed wrote.
func (w *faultWire) toCluster(configuration map[string]any) {
	file := configuration["guarded"].(map[string]any)["kubeconfig"].(string)
	content, err := os.ReadFile(file)
	if err != nil {
		panic(err)
	}
	_, rest, _ := strings.Cut(string(content), "server: https://")
	server, _, _ := strings.Cut(rest, "\n")
	w.target.Store(&server)
	changed := strings.Replace(string(content), "https://"+server, "https://"+w.address(), 1)
	if err := os.WriteFile(file, []byte(changed), 0o600); err != nil {
		panic(err)
	}
}
