// Package ports finds TCP ports of the loopback interface for programs that
// have to be told theirs.
//
// Asking the kernel for port 0 is not enough: it hands out ports of the range
// that outgoing connections use too, so a server that is stopped for a fault
// test may find its port taken by somebody's connection when it comes back.
// Ports here come from below that range, and stay bound until just before
// their program starts, so that two testbeds do not pick the same one.
package ports

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
)

// The kernel's default range for outgoing connections starts at 32768; the
// well-known ports of databases and the like are mostly below 15000.
const (
	lowest   = 15000
	highest  = 32000
	attempts = 200
)

// Claims holds ports that are picked but not in use yet.
type Claims struct {
	mu   sync.Mutex
	held map[int]net.Listener
}

// Claim picks a free port and keeps it bound until Release.
func (c *Claims) Claim() (int, error) {
	var last error
	for range attempts {
		port := lowest + rand.IntN(highest-lowest)
		listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			last = err
			continue
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.held == nil {
			c.held = map[int]net.Listener{}
		}
		c.held[port] = listener
		return port, nil
	}
	return 0, fmt.Errorf("finding a free port between %d and %d on 127.0.0.1: %w", lowest, highest, last)
}

// Release lets a program bind the port. Releasing one that is not held does
// nothing.
func (c *Claims) Release(port int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	listener, held := c.held[port]
	if !held {
		return nil
	}
	delete(c.held, port)
	return listener.Close()
}

// ReleaseAll gives back every port that was not used.
func (c *Claims) ReleaseAll() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var errs []error
	for port, listener := range c.held {
		errs = append(errs, listener.Close())
		delete(c.held, port)
	}
	return errors.Join(errs...)
}
