package bench

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/taskgate/taskgate/e2e/testbed"
)

// Decision is the price of a decision on a pinned connection, by how many grants
// other agents hold.
type Decision struct {
	Others      string   `json:"others"`
	Nanoseconds Interval `json:"nsPerOp"`
	Allocations Interval `json:"allocsPerOp"`
}

// Spool is how many records per second become durable, by how many write at
// once.
type Spool struct {
	Writers string   `json:"writers"`
	Records Interval `json:"recordsPerSecond"`
}

// microTest is one of the repository's own Go benchmarks.
type microTest struct {
	packagePath string // below the repository
	pattern     string
	benchtime   string
}

// run builds the test program once and runs it a few times; each run measures
// all cases, so that what drifts hits all of them. The result is by case, the
// part behind the slash, and unit.
func (m microTest) run(ctx context.Context, repeats int) (map[string]map[string][]float64, error) {
	repository, err := testbed.FindRepository()
	if err != nil {
		return nil, err
	}
	folder, err := os.MkdirTemp("", "taskgate-bench-micro-")
	if err != nil {
		return nil, fmt.Errorf("making a folder: %w", err)
	}
	defer func() { _ = os.RemoveAll(folder) }() // in the system's folder for temporary files
	program := filepath.Join(folder, "micro")
	build := exec.CommandContext(ctx, "go", "test", "-c", "-o", program, "./"+m.packagePath)
	build.Dir = repository
	if output, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("building the benchmark of %s: %w\n%s", m.packagePath, err, output)
	}
	found := map[string]map[string][]float64{}
	for range repeats {
		command := exec.CommandContext(ctx, program, "-test.run=^$", "-test.bench="+m.pattern, "-test.benchmem", "-test.benchtime="+m.benchtime)
		command.Dir = filepath.Join(repository, m.packagePath)
		output, err := command.CombinedOutput()
		if err != nil {
			return nil, fmt.Errorf("running the benchmark of %s: %w\n%s", m.packagePath, err, output)
		}
		collect(found, string(output))
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("%s has no benchmark that matches %s", m.packagePath, m.pattern)
	}
	return found, nil
}

// collect adds the values of lines such as
// "BenchmarkX/others=0-2  1000  12.5 ns/op  0 allocs/op".
func collect(found map[string]map[string][]float64, output string) {
	lines := bufio.NewScanner(strings.NewReader(output))
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		if len(words) < 4 || !strings.HasPrefix(words[0], "Benchmark") {
			continue
		}
		_, name, _ := strings.Cut(words[0], "/")
		if dash := strings.LastIndex(name, "-"); dash > 0 {
			name = name[:dash] // the number of CPUs
		}
		if found[name] == nil {
			found[name] = map[string][]float64{}
		}
		for i := 2; i+1 < len(words); i += 2 {
			if value, err := strconv.ParseFloat(words[i], 64); err == nil {
				found[name][words[i+1]] = append(found[name][words[i+1]], value)
			}
		}
	}
}

// measureDecision also returns the ratio of a decision among 100,000 grants of
// others to one without any.
func measureDecision(ctx context.Context, repeats int) ([]Decision, Interval, error) {
	found, err := microTest{"authz", "^BenchmarkDecide$", "300ms"}.run(ctx, repeats)
	if err != nil {
		return nil, Interval{}, err
	}
	const alone, among = "others=0", "others=100000"
	var rows []Decision
	for _, name := range []string{alone, among} {
		values := found[name]
		if len(values["ns/op"]) == 0 {
			return nil, Interval{}, fmt.Errorf("BenchmarkDecide of package authz has no case %s", name)
		}
		rows = append(rows, Decision{
			Others: strings.TrimPrefix(name, "others="), Nanoseconds: intervalOf(values["ns/op"]), Allocations: intervalOf(values["allocs/op"]),
		})
	}
	var ratios []float64
	for i, ns := range found[among]["ns/op"] {
		ratios = append(ratios, ns/found[alone]["ns/op"][i])
	}
	return rows, intervalOf(ratios), nil
}

func measureSpool(ctx context.Context, repeats int) ([]Spool, error) {
	found, err := microTest{"recorder", "^BenchmarkAppend$", "1s"}.run(ctx, repeats)
	if err != nil {
		return nil, err
	}
	var rows []Spool
	for _, writers := range []string{"1", "16", "64", "256"} {
		values := found["writers="+writers]["records/s"]
		if len(values) == 0 {
			return nil, fmt.Errorf("BenchmarkAppend of package recorder has no case writers=%s", writers)
		}
		rows = append(rows, Spool{Writers: writers, Records: intervalOf(values)})
	}
	return rows, nil
}

// syncTime is the median time of an fdatasync after a write of 4 KiB into a file
// that has its blocks already, in the folder where the spools of the benchmarks
// are: what a durable record cannot be faster than, in microseconds.
func syncTime() (float64, error) {
	file, err := os.CreateTemp("", "taskgate-bench-sync-")
	if err != nil {
		return 0, fmt.Errorf("making a file: %w", err)
	}
	took, err := syncs(file)
	if err := errors.Join(err, file.Close(), os.Remove(file.Name())); err != nil {
		return 0, fmt.Errorf("measuring fdatasync: %w", err)
	}
	slices.Sort(took)
	return quantile(took, 0.5), nil
}

func syncs(file *os.File) ([]time.Duration, error) {
	const page, pages = 4 << 10, 500
	block := make([]byte, page)
	for range pages {
		if _, err := file.Write(block); err != nil {
			return nil, err
		}
	}
	if err := file.Sync(); err != nil {
		return nil, err
	}
	var took []time.Duration
	for i := range int64(pages) {
		began := time.Now()
		if _, err := file.WriteAt(block, i*page); err != nil {
			return nil, err
		}
		if err := fdatasync(file); err != nil {
			return nil, err
		}
		took = append(took, time.Since(began))
	}
	return took, nil
}
