package bench

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/taskgate/taskgate/e2e/testbed"
)

// The parts of a run, for Options.Only.
const (
	PartDecision  = "decision"  // the price of a decision, in memory
	PartSpool     = "spool"     // durable records per second
	PartWatches   = "watches"   // memory of idle watches
	PartBigList   = "biglist"   // memory while a list of 100 MB passes
	PartGet       = "get"       // GET of a pod of 2 KB
	PartList      = "list"      // LIST of 500 pods, 1 MB
	PartCreate    = "create"    // CREATE of a small config map
	PartRecording = "recording" // GET with and without the recording
	PartGrants    = "grants"    // a broker's start before many grants
	PartExec      = "exec"      // a command that prints a lot
)

// Parts are all parts, in the order they are measured: memory before load,
// because load leaves its traces in memory.
func Parts() []string {
	return []string{PartDecision, PartSpool, PartWatches, PartBigList, PartGet, PartList, PartCreate, PartRecording, PartGrants, PartExec}
}

// Options says what to measure, and how long.
type Options struct {
	Rounds        int           // per block
	RoundDuration time.Duration // of measuring, per contender and round
	Only          []string      // parts; empty: all
	SPIFFE        string        // testbed.Dev or testbed.SPIRE

	Watches      int // idle watches
	BigListBytes int // size of the large list
	MicroRepeats int // of each micro benchmark
	Grants       int // in the API server when a broker starts
	ExecBytes    int // that a command prints

	Progress io.Writer
	Command  string // what a person typed, for the report
}

// Usual is a run for publishing.
func Usual() Options {
	return Options{
		Rounds: 10, RoundDuration: 3 * time.Second, SPIFFE: testbed.Dev,
		Watches: 1000, BigListBytes: 100 << 20, MicroRepeats: 10, Grants: 100_000, ExecBytes: 1 << 30, Progress: io.Discard,
	}
}

// Quick changes options to those of a look in passing: every part, few rounds.
func (o Options) Quick() Options {
	o.Rounds, o.RoundDuration, o.MicroRepeats, o.Grants, o.ExecBytes = 3, 600*time.Millisecond, 3, 5000, 256<<20
	return o
}

func (o Options) check() error {
	if o.Rounds < 2 || o.RoundDuration < 100*time.Millisecond || o.Watches < 1 || o.MicroRepeats < 2 || o.Grants < 1 {
		return errors.New("too little to measure: at least 2 rounds of 100ms")
	}
	for _, part := range o.Only {
		if !slices.Contains(Parts(), part) {
			return fmt.Errorf("there is no part %q; there are: %s", part, strings.Join(Parts(), ", "))
		}
	}
	return nil
}

func (o Options) wants(part string) bool {
	return len(o.Only) == 0 || slices.Contains(o.Only, part)
}

func (o Options) wantsAny(parts ...string) bool {
	return slices.ContainsFunc(parts, o.wants)
}
