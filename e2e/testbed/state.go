package testbed

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/taskgate/taskgate/e2e/internal/process"
)

// stateFile remembers what runs, so that another program can stop it, also
// after a crash. It marks a directory as a testbed: nothing else is ever removed.
const stateFile = "pids.json"

// environmentFile is for people and shells.
const environmentFile = "env"

// ErrNoTestbed is the answer of Open where no testbed ever was.
var ErrNoTestbed = errors.New("there is no testbed here")

// state is the content of the state file. It holds credentials of the S3 store
// in the environment of the broker, hence 0600.
type state struct {
	SPIFFE      string      `json:"spiffe"`
	S3          string      `json:"s3"`
	Node        string      `json:"node"`
	Complete    bool        `json:"complete"` // Start came to its end
	Environment Environment `json:"environment"`
	Components  []component `json:"components"` // in the order they were started
}

type component struct {
	Spec     process.Spec     `json:"spec"`
	Identity process.Identity `json:"identity"`
}

// save writes the state and the env file; it is called after every change.
func (t *Testbed) save() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.saveLocked()
}

func (t *Testbed) saveLocked() error {
	current := state{
		SPIFFE: t.options.SPIFFE, S3: t.options.S3, Node: t.options.Node,
		Complete: t.complete, Environment: t.environment,
	}
	for _, p := range t.processes {
		current.Components = append(current.Components, component{Spec: p.Spec(), Identity: p.Identity()})
	}
	content, err := json.MarshalIndent(current, "", "  ")
	if err != nil {
		return fmt.Errorf("encoding the testbed's state: %w", err)
	}
	if err := writeAtomically(t.path(stateFile), content); err != nil {
		return err
	}
	if !t.complete {
		return nil // env says that the testbed is up
	}
	return writeAtomically(t.path(environmentFile), []byte(t.environment.Shell()))
}

func readState(directory string) (state, error) {
	content, err := os.ReadFile(filepath.Join(directory, stateFile))
	if errors.Is(err, fs.ErrNotExist) {
		return state{}, fmt.Errorf("%s: %w", directory, ErrNoTestbed)
	}
	if err != nil {
		return state{}, fmt.Errorf("reading the testbed's state: %w", err)
	}
	var found state
	if err := json.Unmarshal(content, &found); err != nil {
		return state{}, fmt.Errorf("reading the testbed's state in %s: %w", directory, err)
	}
	return found, nil
}

// writeAtomically replaces a file that only we may read.
func writeAtomically(path string, content []byte) error {
	temporary := path + ".new"
	if err := os.WriteFile(temporary, content, 0o600); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	if err := os.Rename(temporary, path); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return nil
}
