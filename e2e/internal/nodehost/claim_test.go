package nodehost_test

import (
	"net"
	"net/netip"
	"testing"

	"github.com/taskgate/taskgate/e2e/internal/nodehost"
)

// TestClaim has the same directory claim twice: the second gets another network,
// until the first is given back.
func TestClaim(t *testing.T) {
	first, claim := claimed(t, "somewhere")
	second, _ := claimed(t, "somewhere")
	if first.Overlaps(second) {
		t.Errorf("both got %s", first)
	}
	if err := claim.Close(); err != nil {
		t.Fatal(err)
	}
	if third, _ := claimed(t, "somewhere"); third != first {
		t.Errorf("%s was given back, and %s was got", first, third)
	}
	if whole := netip.MustParsePrefix("198.18.0.0/15"); !whole.Contains(first.Addr()) || !whole.Contains(second.Addr()) {
		t.Errorf("%s and %s are not for tests between machines", first, second)
	}
}

func claimed(t *testing.T, directory string) (netip.Prefix, net.Listener) {
	t.Helper()
	prefix, claim, err := nodehost.Claim(directory)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = claim.Close() }) // the test is over
	return prefix, claim
}
