package recorder_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/taskgate/taskgate/internal/recordertest"
	"github.com/taskgate/taskgate/internal/spiffetest"
	"github.com/taskgate/taskgate/recorder"
)

const (
	// childVariable makes the test binary a process to be killed: it names the
	// directory that holds its identity, spool and bucket.
	childVariable = "RECORDER_TEST_CHILD"
	// roundsVariable is how often to kill; more than the default takes its time.
	roundsVariable = "RECORDER_TEST_KILLS"
)

// TestKill kills a process that records from many writers at random moments, over
// and over on one spool. No record it acknowledged may be missing (T15, T163).
func TestKill(t *testing.T) {
	rounds := 20
	if testing.Short() {
		rounds = 3
	}
	if more, err := strconv.Atoi(os.Getenv(roundsVariable)); err == nil {
		rounds = more
	}
	directory := t.TempDir()
	ca, identity := writeIdentity(t, directory)
	var acknowledged []string
	for round := range rounds {
		acknowledged = append(acknowledged, runAndKill(t, directory, round)...)
	}

	config := childConfig(directory, identity)
	r := recordertest.Open(t, config)
	f := &fixture{T: t, ca: ca, config: config}
	f.close(r)
	folder, err := recorder.OpenFolder(filepath.Join(directory, "bucket"))
	if err != nil {
		t.Fatal(err)
	}
	defer folder.Close()
	report := f.verify(folder)
	for _, finding := range report.Findings {
		t.Errorf("found %s", finding)
	}
	for _, stream := range report.Streams {
		if stream.End == "open" {
			t.Errorf("%s was not closed", stream.Stream)
		}
	}
	events := scan(t, folder)
	for _, id := range acknowledged {
		if events[id] == nil {
			t.Errorf("%s was acknowledged and is lost", id)
		}
	}
	for _, event := range events {
		if event.Stage == recorder.StageRequestReceived && events["ResponseComplete "+event.AuditID] == nil {
			t.Errorf("the intent of %s has no outcome", event.AuditID)
		}
	}
	t.Logf("%d kills, %d acknowledged, %d recorded, %d unknown", rounds, len(acknowledged), report.Records, report.Unknown)
	if len(acknowledged) == 0 {
		t.Error("nothing was acknowledged: the test shows nothing")
	}
}

func runAndKill(t *testing.T, directory string, round int, environment ...string) []string {
	t.Helper()
	command := exec.Command(os.Args[0], "-test.run=^$")
	command.Env = append(os.Environ(), childVariable+"="+directory, "ROUND="+strconv.Itoa(round))
	command.Env = append(command.Env, environment...)
	command.Stderr = os.Stderr
	output, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	var acknowledged []string
	lines := bufio.NewScanner(output)
	for lines.Scan() {
		if lines.Text() == "ready" {
			timer := time.AfterFunc(rand.N(80*time.Millisecond), func() { _ = command.Process.Kill() })
			defer timer.Stop()
			continue
		}
		acknowledged = append(acknowledged, lines.Text())
	}
	_ = command.Wait() // it was killed
	return acknowledged
}

// childMain records from eight writers until it is killed, and prints what was
// acknowledged, each line in one write.
func childMain(directory string) int {
	svid, err := x509svid.Load(filepath.Join(directory, "svid.pem"), filepath.Join(directory, "key.pem"))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	bundle, err := os.ReadFile(filepath.Join(directory, "bundle.json"))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	trusted, err := recorder.ParseTrustBundle(svid.ID.TrustDomain(), bundle)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	r, err := recorder.Open(context.Background(), childConfig(directory, recordertest.FixedIdentity(svid, trusted)))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for r.Ready() != nil {
		time.Sleep(time.Millisecond)
	}
	fmt.Println("ready")
	if os.Getenv("STREAMS") != "" {
		childStreams(r)
		return 1
	}
	var group sync.WaitGroup
	for writer := range 8 {
		group.Go(func() {
			for i := 0; ; i++ {
				call := recordertest.Call(fmt.Sprintf("%s-%d-%d", os.Getenv("ROUND"), writer, i))
				if say(r, call) != nil || say(r, recordertest.Outcome(call, 200)) != nil {
					return
				}
			}
		})
	}
	group.Wait()
	return 1
}

func say(r *recorder.Recorder, event *recorder.Event) error {
	receipt, err := r.Append(event)
	if err == nil {
		err = receipt.Wait(context.Background())
	}
	if err == nil {
		_, err = fmt.Printf("%s %s\n", event.Stage, event.AuditID)
	}
	return err
}

func writeIdentity(t *testing.T, directory string) (*spiffetest.CA, recorder.Identity) {
	t.Helper()
	_, ca := recordertest.NewIdentity(t)
	svid, err := ca.Issue(spiffetest.Leaf{ID: recordertest.BrokerID()})
	if err != nil {
		t.Fatal(err)
	}
	chain, key, err := svid.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	bundle, err := ca.BundleJSON()
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"svid.pem": chain, "key.pem": key, "bundle.json": bundle} {
		if err := os.WriteFile(filepath.Join(directory, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return ca, recordertest.FixedIdentity(svid, ca.Bundle())
}

func childConfig(directory string, identity recorder.Identity) recorder.Config {
	return recorder.Config{
		Cluster: "test", Broker: "broker-0", Spool: filepath.Join(directory, "spool"),
		Store: directoryStore(filepath.Join(directory, "bucket")), Identity: identity, Retention: time.Hour,
		FileSize: 128 << 10, SegmentEvery: 5 * time.Millisecond, RetryMax: 5 * time.Millisecond,
	}
}

// directoryStore is a Store that outlives the process. Linking a finished file
// to its name creates the object at once or not at all.
type directoryStore string

func (d directoryStore) Put(_ context.Context, key string, body []byte, _ time.Time) (recorder.Stored, error) {
	path := filepath.Join(string(d), key)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return recorder.Stored{}, err
	}
	file, err := os.CreateTemp(filepath.Dir(string(d)), "object")
	if err != nil {
		return recorder.Stored{}, err
	}
	defer os.Remove(file.Name())
	_, err = file.Write(body)
	if err = errors.Join(err, file.Close()); err != nil {
		return recorder.Stored{}, err
	}
	if err := os.Link(file.Name(), path); errors.Is(err, os.ErrExist) {
		return recorder.Stored{}, recorder.ErrExists
	} else if err != nil {
		return recorder.Stored{}, err
	}
	return recorder.Stored{Version: "v1", ServerTime: time.Now()}, nil
}

func (d directoryStore) DeleteVersion(_ context.Context, key, _ string) error {
	if key == "v1/canary/none" {
		return nil
	}
	return recorder.ErrDenied
}

func (d directoryStore) Settings(context.Context) (recorder.Settings, error) {
	return recorder.Settings{ServerTime: time.Now(), ObjectLock: true, Versioning: true}, nil
}
