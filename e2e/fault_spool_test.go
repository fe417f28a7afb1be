package e2e_test

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/taskgate/taskgate/e2e/testbed"
)

// bulky is a call that is refused, and leaves a record of a megabyte.
func (a *faultAgent) bulky(t testing.TB) faultAnswer {
	body := fmt.Sprintf(`{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"bulky"},"data":{"k":%q}}`, strings.Repeat("x", 1<<20))
	return a.call(t.Context(), http.MethodPost, "/api/v1/namespaces/elsewhere/configmaps", body)
}

// fill writes records until the spool takes no more.
func (a *faultAgent) fill(t *testing.T) (recorded []faultAnswer) {
	t.Helper()
	for range 200 {
		answer := a.bulky(t)
		if answer.is("RecorderUnavailable") {
			return recorded
		}
		if !answer.is("OutsideGrant") {
			t.Fatalf("while the spool fills: %s", answer)
		}
		recorded = append(recorded, answer)
	}
	t.Fatalf("the spool still takes records after %d MiB", len(recorded))
	return nil
}

// testSpoolLimit has the spool reach its limit while the bucket is away (T195).
func testSpoolLimit(t *testing.T, b *faultBed, _ *faultS3) {
	if code, _ := b.terminate(t); code != 0 {
		t.Errorf("the broker ended with %d", code)
	}
	broker := b.runBroker(t, func(config map[string]any) {
		config["recorder"].(map[string]any)["spoolLimit"] = 48 << 20
		config["recorder"].(map[string]any)["ageLimit"] = "10m"
	}, nil)
	b.alpha.untilOK(t, 20*time.Second)
	if err := b.Component(testbed.ComponentStore).Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	recorded := b.alpha.fill(t)
	if answer := b.beta.get(t.Context()); !answer.is("RecorderUnavailable") {
		t.Errorf("with a full spool: %s", answer)
	}
	faultUntil(t, 5*time.Second, broker.health, "recorder", "raise the limit")
	used := faultSize(t, b.Environment().BrokerSpool)
	if used > 49<<20 {
		t.Errorf("the spool takes %d bytes and may take %d", used, 48<<20)
	}
	if err := b.Component(testbed.ComponentStore).Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	healed := b.alpha.untilOK(t, 30*time.Second)
	b.sealed(t, 30*time.Second, recorded...)
	if code, output := broker.stop(t); code != 0 {
		t.Errorf("the broker ended with %d: %s", code, output)
	}
	if report := b.mustVerify(t); report.Unknown != 0 {
		t.Errorf("%d outcomes are unknown", report.Unknown)
	}
	b.startBroker(t)
	t.Logf("a spool of 48 MiB took %d records of 1 MiB (%d MiB on disk), then RecorderUnavailable; served again %s after the store was back", len(recorded), used>>20, healed)
}

// testSpoolFull has the spool on a disk that fills up (T201).
func testSpoolFull(t *testing.T, b *faultBed, _ *faultS3) {
	if os.Geteuid() != 0 {
		t.Skip("mounting a small file system needs root")
	}
	if code, _ := b.terminate(t); code != 0 {
		t.Errorf("the broker ended with %d", code)
	}
	disk := filepath.Join(b.Directory(), "small")
	if err := os.Mkdir(disk, 0o755); err != nil {
		t.Fatal(err)
	}
	sized := func(mib int) string { return fmt.Sprintf("size=%dm,mode=0755,uid=%d,gid=%[2]d", mib, faultBrokerUID) }
	if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, sized(40)); err != nil {
		t.Fatalf("mounting a small file system: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(disk, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	broker := b.runBroker(t, func(config map[string]any) {
		config["recorder"].(map[string]any)["spool"] = disk + "/spool"
		config["recorder"].(map[string]any)["ageLimit"] = "10m"
	}, nil)
	b.alpha.untilOK(t, 20*time.Second)
	if err := b.Component(testbed.ComponentStore).Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	recorded := b.alpha.fill(t)
	if answer := b.beta.create(t.Context(), "full"); !answer.is("RecorderUnavailable") {
		t.Errorf("with a full disk: %s", answer)
	}
	faultUntil(t, 5*time.Second, broker.health, "recorder", "no space left on device; free some space")
	// Somebody makes room.
	if err := syscall.Mount("tmpfs", disk, "tmpfs", syscall.MS_REMOUNT, sized(80)); err != nil {
		t.Fatal(err)
	}
	roomy := b.alpha.untilOK(t, 10*time.Second)
	first := len(recorded)
	recorded = append(recorded, b.alpha.fill(t)...)
	if err := b.Component(testbed.ComponentStore).Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	healed := b.alpha.untilOK(t, 30*time.Second)
	b.sealed(t, 30*time.Second, recorded...)
	if code, output := broker.stop(t); code != 0 {
		t.Errorf("the broker ended with %d: %s", code, output)
	}
	b.mustVerify(t)
	b.startBroker(t)
	t.Logf("a disk of 40 MiB took %d records of 1 MiB, then RecorderUnavailable; with 40 MiB more served again after %s and took %d more; served again %s after the store was back",
		first, roomy, len(recorded)-first, healed)
}

// faultSize is what the files below a folder take.
func faultSize(t testing.TB, folder string) (size int64) {
	t.Helper()
	err := filepath.Walk(folder, func(_ string, info os.FileInfo, err error) error {
		if err == nil && !info.IsDir() {
			size += info.Size()
		}
		if errors.Is(err, os.ErrNotExist) {
			return nil // it was sealed meanwhile
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return size
}
