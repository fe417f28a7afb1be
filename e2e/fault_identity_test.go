package e2e_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/taskgate/taskgate/e2e/testbed"
	"github.com/taskgate/taskgate/recorder"
)

const (
	// faultTTL is the life of SVIDs in these tests. SPIRE dates them back by ten
	// seconds and renews them half way, so this is five seconds of one and then
	// the next.
	faultTTL = 20 * time.Second
	deltaUID = 64050
)

// TestFaultIdentity takes SVIDs, entries, authorities and the SPIRE agent away.
func TestFaultIdentity(t *testing.T) {
	t.Parallel()
	b := startFault(t, testbed.Options{Node: testbed.NoNode, WithoutControllers: true, SVIDTTL: faultTTL})
	for _, part := range []struct {
		name string
		test func(*testing.T, *faultBed)
	}{
		{"rotation under load", testRotation},
		{"authority revoked", testAuthorityRevoked},
		{"entry deleted", testEntryDeleted},
		{"agent dead", testAgentDead},
	} {
		t.Run(part.name, func(t *testing.T) { part.test(t, b) })
		if t.Failed() {
			if err := b.Component(testbed.ComponentSPIREAgent).Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			b.alpha.untilOK(t, 60*time.Second)
		}
	}
}

// steady calls through both sidecars until stop is called, which answers how many
// calls there were and those that did not work.
func (b *faultBed) steady(t *testing.T) (stop func() (calls int, failed []faultAnswer)) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var mu sync.Mutex
	var calls int
	var failed []faultAnswer
	var wait sync.WaitGroup
	for client := range 6 {
		a := []*faultAgent{b.alpha, b.beta}[client%2]
		wait.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				answer := a.get(context.WithoutCancel(ctx))
				if client >= 4 {
					answer = a.create(context.WithoutCancel(ctx), fmt.Sprintf("steady-%d-%d-%d", client, time.Now().UnixNano(), n))
				}
				mu.Lock()
				calls++
				if !answer.ok() {
					failed = append(failed, answer)
				}
				mu.Unlock()
				time.Sleep(10 * time.Millisecond) // the load, not a wait
			}
		})
	}
	t.Cleanup(cancel)
	return func() (int, []faultAnswer) {
		cancel()
		wait.Wait()
		return calls, failed
	}
}

// testRotation lets a dozen SVIDs come and go under load: no call may notice.
func testRotation(t *testing.T, b *faultBed) {
	const minimum = 45 * time.Second
	rotations := func() int { return strings.Count(b.log(t, "sidecar-alpha"), "holding an identity") }
	before := rotations()
	began := time.Now()
	stop := b.steady(t)
	var watches []*faultWatch
	for time.Since(began) < minimum-faultTTL {
		watches = append(watches, b.alpha.open(t, faultMaps+"?watch=true&fieldSelector=metadata.name=seed"))
		time.Sleep(2 * time.Second) // so that they begin at different ages of the SVIDs
	}
	ends := map[string]int{}
	var last []string
	for _, watch := range watches {
		last = append(last, watch.last(t, faultTTL+5*time.Second))
	}
	time.Sleep(time.Until(began.Add(minimum))) // the load is the test
	calls, failed := stop()
	if len(failed) > 0 {
		t.Errorf("%d of %d calls failed, the first: %s", len(failed), calls, failed[0])
	}
	rotated := rotations() - before
	if rotated < 4 {
		t.Errorf("alpha's SVID was renewed only %d times in %s", rotated, minimum)
	}
	if report := b.mustVerify(t); len(report.Streams) != 1 {
		t.Errorf("there are %d streams", len(report.Streams))
	}
	t.Logf("%d calls in %s while alpha's SVID was renewed %d times: %d failed", calls, minimum, rotated, len(failed))
	t.Run("watches are told", func(t *testing.T) {
		var answers []faultAnswer
		for i, watch := range watches {
			if !strings.Contains(last[i], `"type":"ERROR"`) || !strings.Contains(last[i], `"IdentityExpired"`) {
				ends["without a reason"]++
			} else {
				ends["IdentityExpired"]++
			}
			answers = append(answers, faultAnswer{auditID: watch.auditID})
		}
		records := b.sealed(t, 10*time.Second, answers...)
		for _, answer := range answers {
			annotations := records[answer.auditID][len(records[answer.auditID])-1].Annotations
			ends["recorded as "+annotations[recorder.AnnotationOutcome]+" "+annotations[recorder.AnnotationReason]]++
		}
		if ends["IdentityExpired"] != len(watches) || ends["recorded as cut IdentityExpired"] != len(watches) {
			t.Errorf("of %d watches that lived as long as an SVID, some were not told why they ended, or not recorded so: %v", len(watches), ends)
		}
		t.Logf("watches ended like this: %v", ends)
	})
}

// svidOf fetches an SVID as a uid.
func (b *faultBed) svidOf(t testing.TB, uid uint32) (*x509svid.SVID, *x509bundle.Bundle, error) {
	t.Helper()
	program := filepath.Join(b.Directory(), "bin", "e2e.test")
	if _, err := os.Stat(program); err != nil {
		self, err := os.ReadFile("/proc/self/exe")
		if err := errors.Join(err, os.WriteFile(program, self, 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	command := exec.CommandContext(t.Context(), program)
	command.Dir = "/"
	command.Env = []string{fetchFrom + "=" + filepath.Join(b.Directory(), "identity/agent.sock")}
	command.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	output, err := command.Output()
	if err != nil {
		return nil, nil, err
	}
	var got printed
	if err := json.Unmarshal(output, &got); err != nil {
		t.Fatal(err)
	}
	svid, svidErr := x509svid.Parse(got.Chain, got.Key)
	bundle, bundleErr := x509bundle.Parse(spiffeid.RequireTrustDomainFromString(testbed.TrustDomain), got.Bundle)
	return svid, bundle, errors.Join(svidErr, bundleErr)
}

// direct is a client that speaks to the broker itself, with an SVID it never
// renews.
func (b *faultBed) direct(t testing.TB, svid *x509svid.SVID, bundle *x509bundle.Bundle) (*faultAgent, *atomic.Int64) {
	t.Helper()
	dials := new(atomic.Int64)
	config := tlsconfig.MTLSClientConfig(svid, bundle, tlsconfig.AuthorizeID(spiffeid.RequireFromString(brokerID)))
	transport := &http.Transport{
		TLSClientConfig: config, ForceAttemptHTTP2: true,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			dials.Add(1)
			return (&net.Dialer{}).DialContext(ctx, network, address)
		},
	}
	t.Cleanup(transport.CloseIdleConnections)
	a := &agent{stack: b.stack, name: svid.ID.Path(), id: svid.ID.String(), http: &http.Client{Transport: transport}}
	a.URL = "https://" + b.Environment().BrokerAddress
	return &faultAgent{agent: a}, dials
}

// delta registers one more agent, whose SVID lives long, and gives it a grant.
func (b *faultBed) delta(t *testing.T) (*faultAgent, *atomic.Int64) {
	t.Helper()
	id := spiffeid.RequireFromString("spiffe://example.org/ns/agents/sa/delta")
	if _, err := b.SPIRE().CreateEntry(t.Context(), testbed.Entry{ID: id, UID: deltaUID, TTL: 10 * time.Minute}); err != nil {
		t.Fatal(err)
	}
	b.grantTo(t, "delta")
	var svid *x509svid.SVID
	var bundle *x509bundle.Bundle
	eventually(t, 20*time.Second, "delta has an SVID", func() (err error) {
		svid, bundle, err = b.svidOf(t, deltaUID)
		return err
	})
	a, dials := b.direct(t, svid, bundle)
	a.untilOK(t, 10*time.Second)
	return a, dials
}

// grantTo gives an agent one more grant.
func (b *faultBed) grantTo(t *testing.T, name string) {
	t.Helper()
	b.apply(t, grantManifest(fmt.Sprintf("fault-%s-%d", name, time.Now().UnixNano()), "fault", "spiffe://example.org/ns/agents/sa/"+name, "2h", faultRule))
}

// testAuthorityRevoked replaces SPIRE's authority, and takes the old one out of
// trust while a connection is idle that was opened under it (T013). Verification
// passes across the change, with the archived bundles only (T179).
func testAuthorityRevoked(t *testing.T, b *faultBed) {
	old, dials := b.delta(t)
	watch := old.open(t, faultMaps+"?watch=true&fieldSelector=metadata.name=seed")
	first := dials.Load()
	stop := b.steady(t)
	authority, err := b.SPIRE().RotateX509Authority(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, "workloads trust both authorities", func() error {
		_, bundle, err := b.svidOf(t, deltaUID)
		if err == nil && len(bundle.X509Authorities()) != 2 {
			err = fmt.Errorf("%d authorities", len(bundle.X509Authorities()))
		}
		return err
	})
	if err := b.SPIRE().TaintX509Authority(t.Context(), authority); err != nil {
		t.Fatal(err)
	}
	before := b.bundle(t)
	eventually(t, 30*time.Second, "workloads have SVIDs of the new authority", func() error {
		for _, uid := range []uint32{faultBrokerUID, faultBrokerUID + 1, faultBrokerUID + 2} {
			svid, _, err := b.svidOf(t, uid)
			if err != nil {
				return err
			}
			if svid.Certificates[0].CheckSignatureFrom(b.trust.X509Authorities()[0]) == nil {
				return fmt.Errorf("uid %d has one of the old", uid)
			}
		}
		return nil
	})
	if answer := old.get(t.Context()); !answer.ok() || dials.Load() != first {
		t.Errorf("before the authority is revoked: %s after %d connections", answer, dials.Load())
	}
	if err := b.SPIRE().RevokeX509Authority(t.Context(), authority); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	var refused faultAnswer
	eventually(t, 15*time.Second, "the old connection is refused", func() error {
		if refused = old.get(t.Context()); !refused.is("IdentityUnknown") {
			return fmt.Errorf("%s", refused)
		}
		return nil
	})
	took := faultSince(began)
	if refused.code != http.StatusUnauthorized || dials.Load() != first {
		t.Errorf("the old connection was answered %s after %d connections", refused, dials.Load()-first+1)
	}
	if took > 4*time.Second { // the agent asks its server every second
		t.Errorf("the old connection was refused only after %s", took)
	}
	line := watch.last(t, 5*time.Second)
	told := faultSince(began)
	if reason := faultEvent(t, line); reason != "IdentityUnknown" {
		t.Errorf("the watch on it ended with %q: %s", reason, line)
	}
	if again := old.get(t.Context()); again.err == nil {
		t.Errorf("a new connection with the old SVID was answered %s", again)
	}
	time.Sleep(2 * time.Second) // the others go on
	calls, failed := stop()
	if len(failed) > 0 {
		t.Errorf("%d of %d calls of renewed agents failed, the first: %s", len(failed), calls, failed[0])
	}
	b.sealed(t, 20*time.Second, refused, b.alpha.get(t.Context()))
	b.mustVerify(t)
	b.verifyWithheld(t, before)
	t.Logf("authority revoked: the idle connection was refused after %s, its watch told after %s; %d calls of the others, %d failed", took, told, calls, len(failed))
}

// verifyWithheld looks whether the journal is still proven where bundles are
// missing, which it must not.
func (b *faultBed) verifyWithheld(t *testing.T, both *x509bundle.Bundle) {
	t.Helper()
	config := recorder.VerifyConfig{BrokerIDs: []spiffeid.ID{spiffeid.RequireFromString(brokerID)}, Cluster: "testbed"}
	now := b.bundle(t)
	for _, row := range []struct {
		what   string
		anchor *x509bundle.Bundle
		hide   bool
		proven bool
	}{
		{"the first bundle and the archive", b.trust, false, true},
		{"the first bundle without the archive", b.trust, true, false},
		{"the newest bundle and the archive", now, false, false},
		{"both authorities and the archive", both, false, true},
	} {
		config.TrustBundles = []*x509bundle.Bundle{row.anchor}
		report, err := recorder.Verify(t.Context(), faultWithholding{b.auditor(), row.hide}, config)
		switch {
		case err != nil && (row.proven || !errors.Is(err, recorder.ErrNothingProven)):
			t.Errorf("with %s: %v", row.what, err)
		case err == nil && report.Proven() != row.proven:
			t.Errorf("with %s: proven is %t; findings: %v", row.what, report.Proven(), report.Findings[:min(3, len(report.Findings))])
		case err == nil && !row.proven:
			t.Logf("with %s it is not proven: %s", row.what, report.Findings[0])
		}
	}
}

// faultWithholding is a bucket whose archived trust bundles somebody took away.
type faultWithholding struct {
	recorder.Bucket
	hide bool
}

func (w faultWithholding) List(ctx context.Context, prefix string) iter.Seq2[recorder.Version, error] {
	return func(yield func(recorder.Version, error) bool) {
		for version, err := range w.Bucket.List(ctx, prefix) {
			if w.hide && strings.HasPrefix(version.Key, "v1/trust/") {
				continue
			}
			if !yield(version, err) {
				return
			}
		}
	}
}

// testEntryDeleted takes beta's registration away: its SVID counts until its end,
// and only as far as its grant does (T027).
func testEntryDeleted(t *testing.T, b *faultBed) {
	id := spiffeid.RequireFromString(b.beta.id)
	entries, err := b.SPIRE().Entries(t.Context(), id)
	if err != nil || len(entries) != 1 {
		t.Fatalf("beta has the entries %v: %v", entries, err)
	}
	if err := b.SPIRE().DeleteEntry(t.Context(), entries[0]); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	eventually(t, 10*time.Second, "beta is no longer known", func() error {
		if _, _, err := b.svidOf(t, faultBrokerUID+2); err == nil {
			return errors.New("it has an SVID")
		}
		return nil
	})
	if answer := b.beta.get(t.Context()); !answer.ok() {
		t.Errorf("with an SVID that is still valid: %s", answer)
	}
	b.admin(t, "delete", "taskgrant/fault-beta")
	revoked := b.beta.until(t, 5*time.Second, "GrantRevoked")
	if revoked > 2*time.Second {
		t.Errorf("a deleted grant was refused only after %s", revoked)
	}
	ended := began.Add(0)
	eventually(t, faultTTL+10*time.Second, "beta has no identity", func() error {
		answer := b.beta.get(t.Context())
		if answer.ok() {
			t.Errorf("it was served: %s", answer)
		}
		if !answer.is("NoIdentity") {
			return fmt.Errorf("%s", answer)
		}
		if answer.code != http.StatusServiceUnavailable || answer.auditID != "" || !strings.Contains(answer.body, "Next: ") {
			t.Errorf("without identity: %s", answer)
		}
		return nil
	})
	t.Logf("entry deleted: GrantRevoked %s after the grant was deleted, NoIdentity %s after the entry was", revoked, faultSince(ended))
	b.alpha.untilOK(t, time.Second)
	if _, err := b.SPIRE().CreateEntry(t.Context(), testbed.Entry{ID: id, UID: faultBrokerUID + 2}); err != nil {
		t.Fatal(err)
	}
	b.grantTo(t, "beta")
	t.Logf("entry and grant made again: served after %s", b.beta.untilOK(t, 30*time.Second))
}

// testAgentDead kills the SPIRE agent and waits until all SVIDs have ended (T025,
// T010, T011).
func testAgentDead(t *testing.T, b *faultBed) {
	svid, bundle, err := b.svidOf(t, faultBrokerUID+1)
	if err != nil {
		t.Fatal(err)
	}
	old, dials := b.direct(t, svid, bundle)
	old.untilOK(t, 10*time.Second)
	lasting, bundle, err := b.svidOf(t, deltaUID) // outlives the broker's own
	if err != nil {
		t.Fatal(err)
	}
	delta, _ := b.direct(t, lasting, bundle)
	delta.untilOK(t, 10*time.Second)
	watch := b.alpha.open(t, faultMaps+"?watch=true&fieldSelector=metadata.name=seed")
	if err := b.Component(testbed.ComponentSPIREAgent).Kill(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	end := svid.Certificates[0].NotAfter
	var expired faultAnswer
	eventually(t, faultTTL+10*time.Second, "the SVID of an open connection has ended", func() error {
		if expired = old.get(t.Context()); expired.ok() && time.Since(end) > time.Second {
			t.Errorf("%s after its end: %s", faultSince(end), expired)
		}
		if !expired.is("IdentityExpired") {
			return fmt.Errorf("%s", expired)
		}
		return nil
	})
	late := faultSince(end)
	if expired.code != http.StatusUnauthorized || dials.Load() != 1 || late > 2*time.Second {
		t.Errorf("the SVID ended at %s and %s later its connection was answered %s (%d connections)", end, late, expired, dials.Load())
	}
	if again := old.get(t.Context()); again.err == nil || dials.Load() != 2 {
		t.Errorf("the connection goes on: %s (%d connections)", again, dials.Load())
	}
	watch.last(t, faultTTL+5*time.Second) // testRotation looks at what it is told
	cut := faultSince(began)
	b.alpha.until(t, faultTTL, "NoIdentity")
	b.beta.until(t, faultTTL, "NoIdentity")
	refused := faultSince(began)
	answer := b.alpha.create(t.Context(), "nobody")
	if !answer.is("NoIdentity") || answer.took > time.Second || answer.auditID != "" {
		t.Errorf("without identity: %s", answer)
	}
	notReady := faultSince(began) + b.untilNotReady(t, faultTTL, "svid", "no usable X509-SVID")
	// A connection whose other end is still somebody, to a broker that is nobody.
	odd := delta.get(t.Context())
	if err := b.Component(testbed.ComponentSPIREAgent).Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	healed := b.alpha.untilOK(t, 30*time.Second)
	ready := healed + b.untilReady(t, 20*time.Second)
	records := b.sealed(t, 20*time.Second, expired, faultAnswer{auditID: watch.auditID})[expired.auditID]
	if last := records[len(records)-1]; last.Annotations[recorder.AnnotationReason] != "IdentityExpired" {
		t.Errorf("the record ends with %v", last.Annotations)
	}
	if odd.auditID != "" {
		b.sealed(t, 20*time.Second, odd)
	}
	b.mustVerify(t)
	t.Logf("a broker without an SVID answers on an old connection: %.60s", odd)
	t.Logf("SPIRE agent killed: a connection was refused %s after its SVID ended, the watch was cut after %s, NoIdentity after %s, broker not ready after %s; served again %s after the agent was back, ready %s",
		late, cut, refused, notReady, healed, ready)
}
