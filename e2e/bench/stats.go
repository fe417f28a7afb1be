package bench

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"time"
)

// Interval is a median and the 95 % interval around it. The zero Interval is
// nothing measured; Count is how many values it is made of.
type Interval struct {
	Median float64 `json:"median"`
	Low    float64 `json:"low"`
	High   float64 `json:"high"`
	Count  int     `json:"count"`
}

// resamples is how often the bootstrap draws.
const resamples = 4000

// intervalOf is the median of values with a percentile bootstrap of it. The same
// values always give the same interval. Values that are no numbers are left out.
func intervalOf(values []float64) Interval {
	values = slices.DeleteFunc(slices.Clone(values), func(v float64) bool { return math.IsNaN(v) || math.IsInf(v, 0) })
	if len(values) == 0 {
		return Interval{}
	}
	random := rand.New(rand.NewPCG(1, uint64(len(values))))
	medians, drawn := make([]float64, resamples), make([]float64, len(values))
	for i := range medians {
		for j := range drawn {
			drawn[j] = values[random.IntN(len(values))]
		}
		medians[i] = median(drawn)
	}
	slices.Sort(medians)
	return Interval{
		Median: median(values), Count: len(values),
		Low: medians[resamples*25/1000], High: medians[resamples*975/1000],
	}
}

// median leaves the order of values as it is.
func median(values []float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(values))
	middle := len(sorted) / 2
	if len(sorted)%2 == 1 {
		return sorted[middle]
	}
	return (sorted[middle-1] + sorted[middle]) / 2
}

// quantile of sorted durations, in microseconds.
func quantile(sorted []time.Duration, q float64) float64 {
	if len(sorted) == 0 {
		return math.NaN()
	}
	return microseconds(sorted[min(int(q*float64(len(sorted))), len(sorted)-1)])
}

func microseconds(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }

// format writes an interval with so many decimals; a dash stands for nothing.
func (i Interval) format(decimals int) string {
	if i.Count == 0 {
		return "-"
	}
	return fmt.Sprintf("%.*f [%.*f, %.*f]", decimals, i.Median, decimals, i.Low, decimals, i.High)
}

func (i Interval) median(decimals int) string {
	if i.Count == 0 {
		return "-"
	}
	return fmt.Sprintf("%.*f", decimals, i.Median)
}
