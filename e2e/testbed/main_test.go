package testbed_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

// fetchFrom makes this test program print what it gets from the Workload API at
// that socket, and end: the SPIFFE ID, the key that signed it, and the number of
// authorities to trust. A test runs it as another user.
const fetchFrom = "TASKGATE_TEST_FETCH_FROM"

func TestMain(m *testing.M) {
	if socket := os.Getenv(fetchFrom); socket != "" {
		os.Exit(fetchIdentity(socket))
	}
	if directory := os.Getenv(runsBed); directory != "" {
		os.Exit(runBed(directory))
	}
	os.Exit(m.Run())
}

func fetchIdentity(socket string) int {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	answer, err := workloadapi.FetchX509Context(ctx, workloadapi.WithAddr("unix://"+socket))
	if err != nil {
		fmt.Println(err)
		return 1
	}
	svid := answer.DefaultSVID()
	bundle, err := answer.Bundles.GetX509BundleForTrustDomain(svid.ID.TrustDomain())
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Printf("%s %x %d\n", svid.ID, svid.Certificates[0].AuthorityKeyId, len(bundle.X509Authorities()))
	return 0
}

// identityOf answers the SPIFFE ID that the Workload API gives to a process of
// the given uid, or why it gives none.
func identityOf(t *testing.T, folder, socket string, uid uint32) string {
	t.Helper()
	answer := fetch(t, folder, socket, uid)
	if id, _, found := strings.Cut(answer, " "); found && strings.HasPrefix(id, "spiffe://") {
		return id
	}
	return answer
}

// fetch runs this test program as another user, from a copy that every user can
// reach.
func fetch(t *testing.T, folder, socket string, uid uint32) string {
	t.Helper()
	program := filepath.Join(folder, "fetch")
	if _, err := os.Stat(program); err != nil {
		copyProgram(t, program)
	}
	command := exec.CommandContext(t.Context(), program)
	command.Dir = "/"
	command.Env = []string{fetchFrom + "=" + socket}
	if uid != 0 {
		command.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	}
	output, err := command.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(output))
}

func copyProgram(t *testing.T, target string) {
	t.Helper()
	source, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	from, err := os.Open(source)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = from.Close() }() // only read
	to, err := os.OpenFile(target, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(to, from)
	if err := errors.Join(err, to.Close()); err != nil {
		t.Fatal(err)
	}
}

// marked answers the processes that belong to the testbed in a directory, by
// what they were started with, not by what the testbed says.
func marked(t *testing.T, directory string) []string {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil || !bytes.Contains(content, []byte(directory)) {
			continue
		}
		arguments, _ := os.ReadFile(filepath.Join(filepath.Dir(file), "cmdline")) // only for the message
		found = append(found, strings.ReplaceAll(string(arguments), "\x00", " "))
	}
	return found
}

// eventually asks until the answer is yes.
func eventually(t *testing.T, what string, ask func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ask() {
		if time.Now().After(deadline) {
			t.Fatal("this did not happen:", what)
		}
		time.Sleep(50 * time.Millisecond)
	}
}
