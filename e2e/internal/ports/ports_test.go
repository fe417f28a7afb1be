package ports_test

import (
	"fmt"
	"net"
	"testing"

	"github.com/taskgate/taskgate/e2e/internal/ports"
)

func TestClaims(t *testing.T) {
	var claims, others ports.Claims
	seen := map[int]bool{}
	for range 50 {
		for _, c := range []*ports.Claims{&claims, &others} {
			port, err := c.Claim()
			if err != nil {
				t.Fatal(err)
			}
			if seen[port] {
				t.Errorf("port %d was given twice", port)
			}
			seen[port] = true
		}
	}
	port, err := claims.Claim()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := listen(port); err == nil {
		t.Error("a claimed port could be taken")
	}
	if err := claims.Release(port); err != nil {
		t.Fatal(err)
	}
	listener, err := listen(port)
	if err != nil {
		t.Fatalf("a released port cannot be used: %v", err)
	}
	for _, err := range []error{listener.Close(), claims.Release(port), claims.ReleaseAll(), claims.ReleaseAll(), others.ReleaseAll()} {
		if err != nil {
			t.Error(err)
		}
	}
}

func listen(port int) (net.Listener, error) {
	return net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
}
