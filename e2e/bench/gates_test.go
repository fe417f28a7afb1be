package bench

import (
	"strings"
	"testing"
)

func TestGateDecides(t *testing.T) {
	for name, test := range map[string]struct {
		gate Gate
		pass bool
		note string
	}{
		"below an upper limit":     {Gate{Limit: 10, Measured: Interval{5, 4, 6, 3}}, true, ""},
		"reaches an upper limit":   {Gate{Limit: 10, Measured: Interval{5, 4, 10, 3}}, true, ""},
		"may be above":             {Gate{Limit: 10, Measured: Interval{9, 8, 11, 3}}, false, "more rounds"},
		"above":                    {Gate{Limit: 10, Measured: Interval{12, 8, 13, 3}}, false, ""},
		"above a lower limit":      {Gate{Limit: 10, AtLeast: true, Measured: Interval{12, 11, 13, 3}}, true, ""},
		"may be below":             {Gate{Limit: 10, AtLeast: true, Measured: Interval{12, 9, 13, 3}}, false, "more rounds"},
		"not measured":             {Gate{Limit: 10}, false, "not measured"},
		"not measured, zero limit": {Gate{}, false, "not measured"},
		"nothing, and zero limit":  {Gate{Measured: Interval{0, 0, 0, 3}}, true, ""},
	} {
		t.Run(name, func(t *testing.T) {
			test.gate.decide()
			if test.gate.Pass != test.pass || !strings.Contains(test.gate.Note, test.note) || test.note == "" && test.gate.Note != "" {
				t.Errorf("%s", test.gate)
			}
		})
	}
}

func TestGateOfDifference(t *testing.T) {
	for _, test := range []struct {
		ratio Interval
		pass  bool
	}{
		{Interval{1.5, 0.9, 2, 5}, true}, // cannot be told from none
		{Interval{1.1, 1.05, 1.2, 5}, false},
		{Interval{}, false},
	} {
		r := &Report{DecisionRatio: test.ratio}
		r.judge(Options{Only: []string{PartDecision}})
		if r.Gates[0].Pass != test.pass {
			t.Errorf("%s", r.Gates[0])
		}
		if !r.Failed() {
			t.Error("gates that were not measured do not fail the report")
		}
	}
}

// TestRatiosWithinRounds: what is judged are ratios of one round, and rounds that
// do not count are left out.
func TestRatiosWithinRounds(t *testing.T) {
	turns := func(direct, twin, taskgate float64) map[string]turn {
		return map[string]turn{Direct: {P50: direct, RPS: 1 / direct}, Twin: {P50: twin, RPS: 1 / twin}, Taskgate: {P50: taskgate, RPS: 1 / taskgate}}
	}
	rounds := []round{
		{Turns: turns(100, 200, 220), Counts: true},
		{Turns: turns(1000, 2000, 2200), Counts: true}, // a slower machine, the same ratio
		{Turns: turns(100, 110, 900)},
	}
	b := newBlockResult(block{part: PartGet, clients: 1}, []*contender{{name: Direct}, {name: Twin}, {name: Taskgate}}, rounds)
	r := &Report{Blocks: []BlockResult{b}}
	if got := r.addedToTwin(); got.Count != 2 || got.Low < 1.199 || got.High > 1.201 {
		t.Errorf("added to twin: %v", got)
	}
	if got := b.Rows[2].ToTwin; got.Low < 0.909 || got.High > 0.91 {
		t.Errorf("to twin: %v", got)
	}
	if r.rateToTwin().Count != 0 {
		t.Error("one client was taken for 16")
	}
}

func TestReplaceTable(t *testing.T) {
	got, err := replaceTable("a\n"+tableBegin+"\nold\n"+tableEnd+"\nb\n", "new\n")
	if want := "a\n" + tableBegin + "\nnew\n" + tableEnd + "\nb\n"; got != want || err != nil {
		t.Errorf("%q %v", got, err)
	}
	if _, err := replaceTable("no place", "new"); err == nil {
		t.Error("a file without a place was accepted")
	}
}

func TestMarkdownShowsEverything(t *testing.T) {
	rounds := []round{{Turns: map[string]turn{Direct: {P50: 100}, Taskgate: {P50: 150, CPU: map[string]float64{"broker": 60}}}, Counts: true}}
	r := &Report{
		Commit: "abc", Command: "bench", Problems: []string{"get: broke"},
		Blocks:    []BlockResult{newBlockResult(block{part: PartGet, title: "GET, 1 client", clients: 1}, []*contender{{name: Direct}, {name: Taskgate}}, rounds)},
		Watches:   []WatchMemory{{Contender: Taskgate, Process: "broker", Resident: Interval{20, 19, 21, 3}}},
		BigLists:  []BigList{{Contender: Taskgate, Process: "sidecar", Rise: Interval{3, 2, 4, 3}}},
		Decisions: []Decision{{Others: "0", Nanoseconds: Interval{50, 49, 51, 3}}},
		Spool:     []Spool{{Writers: "64", Records: Interval{100_000, 90_000, 110_000, 3}}},
	}
	r.judge(Options{})
	text := r.Markdown()
	for _, want := range []string{
		"abc", "PROBLEM get: broke", "### GET, 1 client", "50 [50, 50]", "broker 60", "20.0 [19.0, 21.0]", "3.0 [2.0, 4.0]",
		"50.0 [49.0, 51.0]", "100000 [90000, 110000]", "PASS (e)", "FAIL (a)", "PASS (g)",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing in:\n%s", want, text)
		}
	}
}
