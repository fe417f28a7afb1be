package bench

import (
	"math"
	"testing"
	"time"
)

func TestIntervalOf(t *testing.T) {
	if got := intervalOf([]float64{math.NaN(), math.Inf(1)}); got != (Interval{}) {
		t.Errorf("no numbers make %v", got)
	}
	if got := intervalOf([]float64{7, 7, 7}); got != (Interval{Median: 7, Low: 7, High: 7, Count: 3}) {
		t.Errorf("equal values make %v", got)
	}
	values := []float64{9, 1, 5, 3, 7, 2, 8, 4, 6}
	got := intervalOf(values)
	if got.Median != 5 || got.Count != 9 || got.Low < 1 || got.Low >= 5 || got.High <= 5 || got.High > 9 {
		t.Errorf("1 to 9 make %v", got)
	}
	if values[0] != 9 {
		t.Error("the order of the values was changed")
	}
	if again := intervalOf(values); again != got {
		t.Errorf("the same values make %v, then %v", got, again)
	}
}

func TestQuantile(t *testing.T) {
	var sorted []time.Duration
	for i := range 100 {
		sorted = append(sorted, time.Duration(i)*time.Microsecond)
	}
	for q, want := range map[float64]float64{0: 0, 0.5: 50, 0.99: 99, 1: 99} {
		if got := quantile(sorted, q); got != want {
			t.Errorf("quantile %v is %v, not %v", q, got, want)
		}
	}
	if got := quantile(nil, 0.5); !math.IsNaN(got) {
		t.Errorf("the median of nothing is %v", got)
	}
}

func TestUndisturbed(t *testing.T) {
	calm := canary{SHA256: 1700, Ping: 15}
	for name, test := range map[string]struct {
		change    func(*canary)
		counts    bool
		disturbed bool
	}{
		"calm":        {func(*canary) {}, true, false},
		"slow hashes": {func(c *canary) { c.SHA256 = 1000 }, false, false},
		"slow pings":  {func(c *canary) { c.Ping = 40 }, false, false},
		"stolen":      {func(c *canary) { c.Stolen = 0.1 }, false, false},
		"others":      {func(c *canary) { c.Foreign = 0.5 }, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			rounds := []canary{calm, calm, calm, calm}
			test.change(&rounds[0])
			counts, disturbed := undisturbed(rounds)
			if counts[0] != test.counts || disturbed != test.disturbed || !counts[3] {
				t.Errorf("counts %v, disturbed %v", counts, disturbed)
			}
		})
	}
	busy := canary{SHA256: 1700, Ping: 15, Foreign: 0.5}
	counts, disturbed := undisturbed([]canary{busy, busy, busy, calm})
	if !disturbed || !counts[0] {
		t.Errorf("mostly disturbed rounds: counts %v, disturbed %v", counts, disturbed)
	}
}
