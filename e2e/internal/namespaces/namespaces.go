// Package namespaces hands the namespaces of one process to others, which start
// their programs in them.
//
// The owner of the namespaces serves their descriptors on a unix socket, and who
// wants to join asks there. A pid would be less: the kernel uses it again, while a
// socket that answers belongs to a process that lives. Whoever may open the socket
// may join, so it belongs into a folder that is closed to others.
package namespaces

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// patience is how long the owner may take to answer; it does so at once.
const patience = 5 * time.Second

// Set is descriptors of namespaces.
type Set struct {
	Mount, PID, Network *os.File
}

func (s Set) files() []*os.File { return []*os.File{s.Mount, s.PID, s.Network} }

// Close gives the descriptors back. A namespace lives on as long as a process is
// in it.
func (s Set) Close() error {
	var errs []error
	for _, file := range s.files() {
		errs = append(errs, file.Close())
	}
	return errors.Join(errs...)
}

// Serve hands the set to everybody who connects to the socket, until ctx ends.
func Serve(ctx context.Context, socket string, set Set) error {
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return fmt.Errorf("listening for programs that join: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = listener.Close() }) // only ends Accept
	defer stop()
	var descriptors []int
	for _, file := range set.files() {
		descriptors = append(descriptors, int(file.Fd()))
	}
	for {
		connection, err := listener.AcceptUnix()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("waiting for programs that join: %w", err)
		}
		// Who hung up in the meantime only wanted to know whether we are here.
		_, _, _ = connection.WriteMsgUnix([]byte{0}, syscall.UnixRights(descriptors...), nil)
		_ = connection.Close() // all was sent
	}
}

// Ask gets the set that is served at the socket.
func Ask(socket string) (Set, error) {
	connection, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return Set{}, fmt.Errorf("asking for the namespaces to join: %w", err)
	}
	defer func() { _ = connection.Close() }() // only read
	if err := connection.SetDeadline(time.Now().Add(patience)); err != nil {
		return Set{}, fmt.Errorf("asking for the namespaces to join: %w", err)
	}
	control := make([]byte, syscall.CmsgSpace(len(Set{}.files())*4)) // a descriptor has 4 bytes
	_, length, _, _, err := connection.ReadMsgUnix(make([]byte, 1), control)
	if err != nil {
		return Set{}, fmt.Errorf("receiving the namespaces to join: %w", err)
	}
	set, err := parse(control[:length])
	if err != nil {
		return Set{}, fmt.Errorf("reading the namespaces to join: %w", err)
	}
	return set, nil
}

func parse(control []byte) (Set, error) {
	messages, err := syscall.ParseSocketControlMessage(control)
	if err != nil {
		return Set{}, err
	}
	if len(messages) != 1 {
		return Set{}, fmt.Errorf("%d messages instead of 1", len(messages))
	}
	descriptors, err := syscall.ParseUnixRights(&messages[0])
	if err != nil {
		return Set{}, err
	}
	var files []*os.File
	for _, descriptor := range descriptors {
		unix.CloseOnExec(descriptor)
		files = append(files, os.NewFile(uintptr(descriptor), "namespace"))
	}
	if len(files) != len(Set{}.files()) {
		for _, file := range files {
			_ = file.Close() // they are of no use
		}
		return Set{}, fmt.Errorf("%d descriptors instead of %d", len(files), len(Set{}.files()))
	}
	return Set{Mount: files[0], PID: files[1], Network: files[2]}, nil
}

// Enter moves the calling thread, which must be one that Go made; what it starts
// from then on is inside. Without network it stays in the network it is in.
func (s Set) Enter(network bool) error {
	// Threads share their root and working directory; one that changes its mount
	// namespace has to have its own.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("leaving the file system of the other threads: %w", err)
	}
	if network {
		if err := unix.Setns(int(s.Network.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("joining a network namespace: %w", err)
		}
	}
	if err := unix.Setns(int(s.PID.Fd()), unix.CLONE_NEWPID); err != nil {
		return fmt.Errorf("joining a PID namespace: %w", err)
	}
	if err := unix.Setns(int(s.Mount.Fd()), unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("joining a mount namespace: %w", err)
	}
	return nil
}

// Go runs a function in a goroutine with a thread of its own, which ends with it:
// it may change its namespaces. It is never the first thread of the program, which
// does not end and is what /proc/self speaks of. The caller waits for the function.
func Go(do func()) {
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			do() // and the thread ends, because nobody unlocks it
			return
		}
		// While this goroutine holds the first thread, the next gets another.
		locked := make(chan struct{})
		go func() {
			runtime.LockOSThread()
			close(locked)
			do()
		}()
		<-locked
		runtime.UnlockOSThread()
	}()
}
