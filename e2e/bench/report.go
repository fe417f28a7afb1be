package bench

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"github.com/taskgate/taskgate/e2e/testbed"
)

// Report is the result of a run.
type Report struct {
	Commit   string    `json:"commit"` // with + behind it where the tree was changed
	Began    time.Time `json:"began"`
	Took     string    `json:"took"`
	Command  string    `json:"command"`
	Machine  Machine   `json:"machine"`
	Rounds   int       `json:"rounds"`
	Duration string    `json:"roundDuration"`
	SPIFFE   string    `json:"spiffe"`

	Blocks           []BlockResult `json:"blocks"`
	Watches          []WatchMemory `json:"watches"`
	WatchCount       int           `json:"watchCount"`
	BigLists         []BigList     `json:"bigLists"`
	Decisions        []Decision    `json:"decisions"`
	DecisionRatio    Interval      `json:"decisionRatio"`
	Spool            []Spool       `json:"spool"`
	SyncMicroseconds float64       `json:"fdatasyncUs"`
	ManyGrants       *ManyGrants   `json:"manyGrants,omitempty"`
	Execs            []Exec        `json:"execs,omitempty"`

	Gates    []Gate   `json:"gates"`
	Problems []string `json:"problems,omitempty"`
}

// Machine is where it was measured.
type Machine struct {
	CPU      string `json:"cpu"`
	CPUs     int    `json:"cpus"`
	MemoryGB int64  `json:"memoryGB"`
	Kernel   string `json:"kernel"`
	Go       string `json:"go"`
	Spool    string `json:"spoolFileSystem"`
}

// BlockResult is one block, over all rounds that count.
type BlockResult struct {
	Part      string  `json:"part"`
	Title     string  `json:"title"`
	Clients   int     `json:"clients"`
	Disturbed bool    `json:"disturbed"` // too few rounds were quiet, so all count
	Counted   int     `json:"counted"`   // rounds
	Rows      []Row   `json:"rows"`      // one per contender
	Rounds    []round `json:"rounds"`
}

// Row is one contender in a block. The ratios are medians of the ratios within a
// round; they are empty where the other contender did not take part.
type Row struct {
	Contender string              `json:"contender"`
	P50       Interval            `json:"p50us"`
	P99       Interval            `json:"p99us"`
	RPS       Interval            `json:"rps"`
	MBs       Interval            `json:"MBs"`
	AddedP50  Interval            `json:"addedP50us"` // to direct
	AddedP99  Interval            `json:"addedP99us"`
	ToDirect  Interval            `json:"rpsToDirect"`
	ToTwin    Interval            `json:"rpsToTwin"`
	CPU       map[string]Interval `json:"cpuUsPerCall"`
}

func newReport(ctx context.Context, options Options) *Report {
	return &Report{
		Commit: commit(ctx), Began: time.Now(), Command: options.Command, Machine: thisMachine(ctx),
		Rounds: options.Rounds, Duration: options.RoundDuration.String(), SPIFFE: options.SPIFFE, WatchCount: options.Watches,
	}
}

func (r *Report) problem(part string, err error) {
	r.Problems = append(r.Problems, fmt.Sprintf("%s: %v", part, err))
}

func newBlockResult(b block, contenders []*contender, rounds []round) BlockResult {
	result := BlockResult{Part: b.part, Title: b.title, Clients: b.clients, Rounds: rounds}
	var canaries []canary
	for _, r := range rounds {
		canaries = append(canaries, r.Canary)
		if r.Counts {
			result.Counted++
		}
	}
	_, result.Disturbed = undisturbed(canaries)
	for _, c := range contenders {
		result.Rows = append(result.Rows, result.row(c.name))
	}
	return result
}

// values are one number per round that counts.
func (b *BlockResult) values(of func(map[string]turn) float64) Interval {
	var values []float64
	for _, r := range b.Rounds {
		if r.Counts {
			values = append(values, of(r.Turns))
		}
	}
	return intervalOf(values)
}

func (b *BlockResult) row(name string) Row {
	_, withDirect := b.Rounds[0].Turns[Direct]
	_, withTwin := b.Rounds[0].Turns[Twin]
	row := Row{
		Contender: name,
		P50:       b.values(func(t map[string]turn) float64 { return t[name].P50 }),
		P99:       b.values(func(t map[string]turn) float64 { return t[name].P99 }),
		RPS:       b.values(func(t map[string]turn) float64 { return t[name].RPS }),
		MBs:       b.values(func(t map[string]turn) float64 { return t[name].BytesPerSecond / (1 << 20) }),
		CPU:       map[string]Interval{},
	}
	if withDirect && name != Direct {
		row.AddedP50 = b.values(func(t map[string]turn) float64 { return t[name].P50 - t[Direct].P50 })
		row.AddedP99 = b.values(func(t map[string]turn) float64 { return t[name].P99 - t[Direct].P99 })
		row.ToDirect = b.values(func(t map[string]turn) float64 { return t[name].RPS / t[Direct].RPS })
	}
	if withTwin && name != Direct && name != Twin {
		row.ToTwin = b.values(func(t map[string]turn) float64 { return t[name].RPS / t[Twin].RPS })
	}
	for process := range b.Rounds[0].Turns[name].CPU {
		row.CPU[process] = b.values(func(t map[string]turn) float64 { return t[name].CPU[process] })
	}
	return row
}

func (r *Report) block(part string, clients int) *BlockResult {
	for i, b := range r.Blocks {
		if b.Part == part && b.Clients == clients {
			return &r.Blocks[i]
		}
	}
	return nil
}

// commit is what is being measured.
func commit(ctx context.Context) string {
	repository, err := testbed.FindRepository()
	if err != nil {
		return "unknown"
	}
	git := func(arguments ...string) (string, error) {
		output, err := exec.CommandContext(ctx, "git", append([]string{"-C", repository}, arguments...)...).Output()
		return strings.TrimSpace(string(output)), err
	}
	name, err := git("rev-parse", "--short=12", "HEAD")
	if err != nil {
		return "unknown"
	}
	if changed, err := git("status", "--porcelain", "--", ":!bench", ":!e2e/bench", ":!e2e/cmd/bench"); err != nil || changed != "" {
		name += "+"
	}
	return name
}

func thisMachine(ctx context.Context) Machine {
	m := Machine{CPU: "unknown", CPUs: runtime.NumCPU(), Kernel: "unknown", Go: runtime.Version(), Spool: "unknown"}
	if content, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(content)) {
			if name, value, _ := strings.Cut(line, ":"); strings.TrimSpace(name) == "model name" {
				m.CPU = strings.TrimSpace(value)
				break
			}
		}
	}
	if content, err := os.ReadFile("/proc/meminfo"); err == nil {
		if total, err := kilobytes(content, "MemTotal"); err == nil {
			m.MemoryGB = total >> 30
		}
	}
	if content, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		m.Kernel = strings.TrimSpace(string(content))
	}
	if output, err := exec.CommandContext(ctx, "stat", "-f", "-c", "%T", os.TempDir()).Output(); err == nil {
		m.Spool = strings.TrimSpace(string(output))
	}
	return m
}
