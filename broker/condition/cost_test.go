//go:build !race

// The race detector makes each of these many times slower, and finds nothing in
// them that other tests do not show.

package condition_test

import (
	"testing"
	"time"

	"github.com/taskgate/taskgate/authz"
	"github.com/taskgate/taskgate/broker/condition"
)

// TestCostBomb: an expression that is cheap until it sees the object ends soon,
// and holds.
func TestCostBomb(t *testing.T) {
	list := make([]any, 2000)
	for i := range list {
		list[i] = int64(i)
	}
	bomb := authz.Facts{Object: map[string]any{"l": list}}
	for _, expression := range []string{
		"object.l.all(a, object.l.all(b, object.l.all(c, a + b + c >= 0))) && false",
		"object.l.map(a, object.l.map(b, object.l)).size() == 0",
		"object.l.exists(a, object.l.exists(b, string(a) + string(b) == 'x'))",
	} {
		compiled, err := condition.Compile(expression)
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if !compiled.Holds(bomb) {
			t.Errorf("%s does not hold", expression)
		}
		if took := time.Since(began); took > 30*time.Second { // without a limit, hours
			t.Errorf("%s took %s", expression, took)
		}
	}
}
