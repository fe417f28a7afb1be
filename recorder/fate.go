package recorder

import (
	"errors"
	"fmt"
	"sync"
)

// ErrDead says that the recorder met something only a new process can recover
// from. The text tells what.
var ErrDead = errors.New("the recorder is dead")

// fate ends a recorder once and for all. It is shared by every part of it.
type fate struct {
	dead chan struct{} // closed when cause is set

	mu    sync.Mutex
	cause error
}

func newFate() *fate { return &fate{dead: make(chan struct{})} }

// die sets the cause unless there is one, and returns the one that stands.
func (f *fate) die(cause error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.cause == nil {
		f.cause = fmt.Errorf("%w: %w", ErrDead, cause)
		close(f.dead)
	}
	return f.cause
}

func (f *fate) err() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.cause
}
