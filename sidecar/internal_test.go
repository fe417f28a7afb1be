package sidecar

import (
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"
)

// TestUplinkAge shows that the connection that ends first decides, and that an
// SVID close to its end does not make every call dial.
func TestUplinkAge(t *testing.T) {
	now := time.Now()
	u := &uplink{}
	if u.stale(now.Add(1000 * time.Hour)) {
		t.Error("an uplink without connections is stale")
	}
	for _, end := range []time.Duration{time.Hour, 20 * time.Minute, 2 * time.Hour} {
		u.age(now, now.Add(end))
	}
	for after, want := range map[time.Duration]bool{0: false, 10*time.Minute - 1: false, 10 * time.Minute: true, time.Hour: true} {
		if u.stale(now.Add(after)) != want {
			t.Errorf("after %s: %t", after, !want)
		}
	}
	u = &uplink{}
	u.age(now, now.Add(time.Millisecond))
	if u.stale(now.Add(999*time.Millisecond)) || !u.stale(now.Add(time.Second)) {
		t.Error("not one second at least")
	}
}

func TestConnectionTokens(t *testing.T) {
	for text, want := range map[string][]string{
		"": nil, "close": nil, "Keep-Alive": nil, "close, keep-alive,": nil, " , ": nil,
		"Upgrade": {"Upgrade"}, "keep-alive, Upgrade": {"Upgrade"}, "X-A,x-b": {"X-A, x-b"}, "close|close, a": {"a"}, "a|b": {"a", "b"}, "closed": {"closed"},
	} {
		if got := connectionTokens(strings.Split(text, "|")); !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %q, not %q", text, got, want)
		}
	}
}

func TestDroppedHeader(t *testing.T) {
	for name, want := range map[string]bool{
		"Authorization": true, "authorization": true, "AUTHORIZATION": true, "Proxy_Authorization": true, "Cookie": true, "Cookie2": false,
		"X-Remote-User": true, "X_remote_user": true, "X-Remote": false, "X-Forwarded-For": true, "X-Forwarded": false, "Forwarded": true,
		"X-Real-Ip": true, "X-Real_ip": true, "Audit-Id": true, "Audit_id": true, "X-Spiffe-Id": true, "Taskgate-Grant": true, "Taskgate": false,
		"Impersonate-User": false, "Accept": false, "Content-Type": false, "Content-Length": true, "Content-Encoding": false, "": false,
	} {
		if droppedHeader(name) != want {
			t.Errorf("%q: %t", name, !want)
		}
	}
}

func TestBrief(t *testing.T) {
	long := "it began so: " + strings.Repeat("ä", 200) + ": connection refused"
	got := brief(errors.New(long))
	if !strings.HasPrefix(got, "it began so: ") || !strings.HasSuffix(got, ": connection refused") || len(got) > 165 {
		t.Errorf("%q", got)
	}
	if got := brief(errors.New("two\nlines\x1b[2J")); got != "two lines [2J" {
		t.Errorf("%q", got)
	}
}

func BenchmarkGuardAndHeaders(b *testing.B) {
	f := &forwarder{}
	in := map[string][]string{
		"Accept": {"application/json"}, "Accept-Encoding": {"gzip"}, "User-Agent": {"kubectl"}, "Authorization": {"Bearer x"}, "Kubectl-Command": {"kubectl get"}, "Kubectl-Session": {"x"},
	}
	b.ReportAllocs()
	for b.Loop() {
		if browserHeader(in) != "" {
			b.Fatal()
		}
		f.headers(in)
	}
}
