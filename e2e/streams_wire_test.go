package e2e_test

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/taskgate/taskgate/recorder"
)

// overLongLine is T138: with 100 ms to the API server nothing is cut off at the end.
// TASKGATE_E2E_RUNS says how often; 50 times are asked for.
func (r *streamsRig) overLongLine(t *testing.T) {
	r.wire.delay.Store(int64(50 * time.Millisecond)) // each way
	defer r.wire.delay.Store(0)
	const last = "\n2000000\n"
	for n := range numberFrom(t, "TASKGATE_E2E_RUNS", 2) {
		way := streamsWays[n%len(streamsWays)]
		began := time.Now()
		got := r.streams(t, r.agent.Kubeconfig, way.environment, nil, "exec", streamsPod, "--", "seq", "1", "2000000")
		if strings.Contains(got.stderr, "unable to upgrade connection: 404 page not found") {
			// The container runtime did not know the token it gave a moment before.
			began = time.Now()
			got = r.streams(t, r.agent.Kubeconfig, way.environment, nil, "exec", streamsPod, "--", "seq", "1", "2000000")
		}
		if got.code != 0 || !strings.HasSuffix(got.stdout, last) {
			t.Errorf("%s: exit %d after %d bytes: %.300s", way.name, got.code, len(got.stdout), got.stderr)
		}
		if seen := r.last(t, "exec", began); seen.err != nil || seen.channel[1].String() != got.stdout || seen.annotation("exit-code") != "0" {
			t.Errorf("%s: %d bytes were printed, %d are recorded, exit code %q: %v", way.name, len(got.stdout), seen.channel[1].Len(), seen.annotation("exit-code"), seen.err)
		}
	}
}

// orphan is the time after which a stream whose other side is silent is over.
const orphan = 60 * time.Second

// loseLine is T141: the connection to the API server is there, and nothing comes
// through. Streams end, and the next one works.
func (r *streamsRig) loseLine(t *testing.T) {
	began := time.Now()
	exec := r.begins(t, r.agent.Kubeconfig, "", "exec", streamsPod, "--", "sh", "-c", endless)
	forward := r.begins(t, r.agent.Kubeconfig, "", "port-forward", "pod/"+streamsPod, ":8080")
	exec.until(t, "line 3\n")
	forward.until(t, "-> 8080")
	r.wire.lose()
	lost := time.Now()
	if code := exec.wait(t, orphan+5*time.Second); code == 0 || !strings.Contains(exec.stderr.String(), "[taskgate:") {
		t.Errorf("exec ended with %d: %s", code, exec.stderr)
	}
	execTook := time.Since(lost)
	eventually(t, orphan+5*time.Second-execTook, "the record of the other stream is closed", func() error {
		time.Sleep(100 * time.Millisecond) // it may take a minute
		if !slices.ContainsFunc(r.journal.all(t), func(e *recorder.Event) bool {
			return isOutcome(e) && e.ObjectRef != nil && e.ObjectRef.Subresource == "portforward" && e.RequestReceivedTimestamp.After(began)
		}) {
			return errors.New("it is open")
		}
		return nil
	})
	t.Logf("T141: exec was over after %s, port-forward after %s", execTook.Round(time.Second), time.Since(lost).Round(time.Second))
	seen := r.last(t, "exec", began)
	if shown := exec.stdout.String(); !strings.HasPrefix(seen.channel[1].String(), shown) || seen.annotation("outcome") == recorder.OutcomeUnknown {
		t.Errorf("%d bytes were shown, %d recorded, the outcome is %s", len(shown), seen.channel[1].Len(), seen.annotation("outcome"))
	}
	// Connections that only wait the kernel's keepalives would have ended by now
	// (newDialer); what goes through a proxy it keeps.
	r.wire.cut()
	eventually(t, 25*time.Second, "the next works", func() error {
		if got := r.streams(t, r.agent.Kubeconfig, "", nil, "exec", streamsPod, "--", "echo", "again"); got.stdout != "again\n" {
			return errors.New(got.String())
		}
		return nil
	})
	// The broker's own connections heal within a minute (TestFaultCluster).
	if err := errors.Join(r.Broker(0).Stop(t.Context()), r.Broker(0).Start(t.Context())); err != nil {
		t.Fatal(err)
	}
	r.served(t, r.agent, "/api/v1/namespaces/streams/pods")
}

// followsLogs is T149: what logs -f printed is on record by size and hash, and it
// ends with the grant. TASKGATE_E2E_FOLLOW says for how many seconds; an hour is
// asked for.
func (r *streamsRig) followsLogs(t *testing.T) {
	follow := time.Duration(numberFrom(t, "TASKGATE_E2E_FOLLOW", 6)) * time.Second
	who := r.newAgent(t, "streams-logs")
	rule := `{namespaces: [streams], apiGroups: [""], resources: [pods, pods/log], verbs: [get]}`
	r.runPod(t, "chatter", endless)
	r.allow(t, "logs", who.id, openPolicy, rule)
	grant := r.give(t, "streams-logs", "logs", who.id, follow.String(), rule)
	r.served(t, who, "/api/v1/namespaces/streams/pods/chatter")
	request, err := asFault(who).request(t.Context(), http.MethodGet, "/api/v1/namespaces/streams/pods/chatter/log?follow=true", "")
	if err != nil {
		t.Fatal(err)
	}
	answer, err := who.http.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Errorf("reading the log: %v", err)
	}
	id := answer.Header.Get("Audit-Id")
	if late := time.Since(grant.Status.ExpiresAt.Time); late > 2*time.Second || late < 0 {
		t.Errorf("it ended %s after the grant", late)
	}
	records := r.journal.of(t, id)[id]
	got := records[slices.IndexFunc(records, isOutcome)].Annotations
	size, err := strconv.Atoi(got[recorder.AnnotationResponseBytes])
	if err != nil || size > len(body) {
		t.Fatalf("%d bytes were read; the record says %v", len(body), got)
	}
	if sum := sha256.Sum256(body[:size]); got[recorder.AnnotationResponseSHA256] != hex.EncodeToString(sum[:]) || got[recorder.AnnotationReason] != "GrantExpired" {
		t.Errorf("the record says %v", got)
	}
	// Behind what the pod printed stands why it ends.
	if log, why := string(body[:size]), string(body[size:]); !strings.Contains(log, "line 3\n") || strings.Contains(log, "taskgate") || !strings.Contains(why, "[taskgate:GrantExpired]") {
		t.Errorf("it was %d bytes, and ended with %q", size, why)
	}
	if got := asFault(who).call(t.Context(), http.MethodGet, "/api/v1/namespaces/streams/pods/chatter/log", ""); !got.is("GrantExpired") {
		t.Errorf("after the end: %s", got)
	}
}
