package e2e_test

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/taskgate/taskgate/recorder"
)

// way is one of the ways a request can take to the broker.
type way struct {
	name   string
	client *http.Client
	base   string
	token  string // "" where mutual TLS says who it is
}

func (w way) do(t testing.TB, method, target string, header map[string]string, body string) reply {
	t.Helper()
	all := map[string]string{}
	if w.token != "" {
		all["Authorization"] = "Bearer " + w.token
	}
	for name, value := range header {
		all[name] = value
	}
	return send(t, w.client, method, w.base+target, all, body)
}

// ways are through the agent's sidecar and, with its SVID, straight to the
// broker, over HTTP/2 and over HTTP/1.1.
func (a *agent) ways(t testing.TB) []way {
	t.Helper()
	var ways []way
	for _, http2 := range []bool{true, false} {
		protocol := map[bool]string{true: "h2", false: "h1"}[http2]
		sidecar := clientOf(t, &tls.Config{RootCAs: poolOf(t, a.CA)}, http2)
		ways = append(ways,
			way{"sidecar " + protocol, sidecar, a.URL, a.Token},
			way{"broker " + protocol, clientOf(t, a.mutual(t), http2), "https://" + a.stack.Environment().BrokerAddress, ""},
		)
	}
	return ways
}

// mutual is the TLS configuration of the agent toward the broker.
func (a *agent) mutual(t testing.TB) *tls.Config {
	t.Helper()
	svid, bundle := a.stack.svid(t, "sidecar-"+a.name)
	return mutualWith(svid, bundle)
}

func mutualWith(svid *x509svid.SVID, bundle *x509bundle.Bundle) *tls.Config {
	return tlsconfig.MTLSClientConfig(svid, bundle, tlsconfig.AuthorizeID(spiffeid.RequireFromString(brokerID)))
}

func clientOf(t testing.TB, config *tls.Config, http2 bool) *http.Client {
	transport := &http.Transport{TLSClientConfig: config, DisableCompression: true, Protocols: new(http.Protocols)}
	transport.Protocols.SetHTTP1(!http2)
	transport.Protocols.SetHTTP2(http2)
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// raw writes bytes to a fresh connection and answers all that comes back until
// the other side closes or has been silent for a while.
func raw(t testing.TB, address string, config *tls.Config, protocol string, text string) string {
	t.Helper()
	config = config.Clone()
	config.NextProtos = []string{protocol}
	if config.ServerName == "" {
		config.ServerName = "127.0.0.1" // never sent: it is no name
	}
	conn, err := tls.Dial("tcp", address, config)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	go func() { _, _ = io.WriteString(conn, text) }() // the other side may close before all is sent
	const silence = 700 * time.Millisecond
	var answer bytes.Buffer
	piece := make([]byte, 64<<10)
	for {
		_ = conn.SetReadDeadline(time.Now().Add(silence))
		n, err := conn.Read(piece)
		answer.Write(piece[:n])
		var timeout net.Error
		switch {
		case errors.As(err, &timeout) && timeout.Timeout():
			return answer.String() + "[open]"
		case err != nil:
			return answer.String()
		}
	}
}

// statuses are the status codes of the HTTP/1.1 answers in a text.
func statuses(text string) []int {
	var codes []int
	reader := bufio.NewReader(strings.NewReader(text))
	for {
		response, err := http.ReadResponse(reader, nil)
		if err != nil {
			return codes
		}
		codes = append(codes, response.StatusCode)
		if _, err := io.Copy(io.Discard, response.Body); err != nil {
			return codes
		}
	}
}

// casesRig is what the cases share: two namespaces with a few objects, an agent
// that may read pods and little else, and one that may do everything that is not
// never.
type casesRig struct {
	*stack
	reader *agent // get, list, watch pods and write config maps in case-a
	all    *agent // everything in every namespace, no gate waived
}

var cases struct {
	once sync.Once
	rig  *casesRig
}

func newCasesRig(t testing.TB) *casesRig {
	t.Helper()
	s := sharedStack(t)
	cases.once.Do(func() {
		s.apply(t, caseObjects)
		rig := &casesRig{stack: s, reader: s.newAgent(t, "case-reader"), all: s.newAgent(t, "case-all")}
		keep := &keeper{TB: t} // the rig lives as long as the testbed
		s.policy(keep, "case-reader", rig.reader, "", caseReads, caseWrites, `{namespaces: [case-a], apiGroups: [""], resources: [namespaces], verbs: [get, update, patch]}`)
		s.grant(keep, "case-reader", "case-reader", rig.reader, "2h", caseReads, caseWrites, `{namespaces: [case-a], apiGroups: [""], resources: [namespaces], verbs: [get, update, patch]}`)
		s.policy(keep, "case-all", rig.all, "", everything)
		s.grant(keep, "case-all", "case-all", rig.all, "2h", everything)
		cases.rig = rig
	})
	if cases.rig == nil {
		t.Fatal("the rig of the cases could not be made")
	}
	return cases.rig
}

const (
	caseReads  = `{namespaces: [case-a], apiGroups: [""], resources: [pods], verbs: [get, list, watch]}`
	caseWrites = `{namespaces: [case-a], apiGroups: [""], resources: [configmaps], verbs: [get, create, update, patch, delete]}`

	caseObjects = `
apiVersion: v1
kind: Namespace
metadata: {name: case-a}
---
apiVersion: v1
kind: Namespace
metadata: {name: case-b}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: builder, namespace: case-a}
---
apiVersion: v1
kind: Secret
metadata: {name: db, namespace: case-a}
stringData: {password: correct-horse}
---
apiVersion: v1
kind: Secret
metadata: {name: db, namespace: case-b}
stringData: {password: battery-staple}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, namespace: case-a}
data: {colour: blue}
---
apiVersion: v1
kind: Pod
metadata: {name: web-0, namespace: case-a}
spec: {containers: [{name: web, image: nginx}]}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: globes.case.example.org}
spec:
  group: case.example.org
  scope: Cluster
  names: {plural: globes, singular: globe, kind: Globe}
  versions:
  - {name: v1, served: true, storage: true, subresources: {status: {}}, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: gadgets.case.example.org}
spec:
  group: case.example.org
  scope: Namespaced
  names: {plural: gadgets, singular: gadget, kind: Gadget}
  versions:
  - name: v1
    served: true
    storage: true
    subresources: {status: {}, scale: {specReplicasPath: .spec.replicas, statusReplicasPath: .status.replicas}}
    schema: {openAPIV3Schema: {type: object, properties: {spec: {type: object, properties: {replicas: {type: integer}}}, status: {type: object, properties: {replicas: {type: integer}}}}}}
`
)

// keeper is a testing.TB whose cleanups never run: what is made with it stays
// until the testbed ends.
type keeper struct{ testing.TB }

// Cleanup does nothing.
func (*keeper) Cleanup(func()) {}

// row is one case: a request and what has to become of it.
type row struct {
	id     string // T-number
	name   string
	who    *agent
	method string
	target string
	header map[string]string
	body   string

	code   int
	reason string // Reason or Reason/Cause; "" means that it is forwarded
}

// sent is a row that was sent on one way. The rows of a table are judged
// together, because records reach the bucket once a second.
type sent struct {
	row
	way   string
	reply reply
}

// play sends every row on every way and judges answers, records and upstream
// calls.
func (rig *casesRig) play(t *testing.T, rows []row) {
	t.Helper()
	var all []sent
	clients := map[*agent][]way{}
	for _, r := range rows {
		if clients[r.who] == nil {
			clients[r.who] = r.who.ways(t)
		}
		for _, way := range clients[r.who] {
			got := way.do(t, r.method, r.target, r.header, r.body)
			if r.judgeAnswer(t, way.name, got) {
				all = append(all, sent{r, way.name, got})
			}
		}
	}
	rig.judgeRecords(t, all)
}

// judgeAnswer reports whether the answer is the wanted one; if not, its records
// are of no interest.
func (r *row) judgeAnswer(t *testing.T, way string, got reply) bool {
	t.Helper()
	if got.code != r.code || got.reason() != r.reason || got.auditID() == "" {
		t.Errorf("%s %s (%s): got %d %q, audit ID %q, want %d %q\n%s %.200s: %.300s", r.id, r.name, way, got.code, got.reason(), got.auditID(), r.code, r.reason, r.method, r.target, got.body)
		return false
	}
	if r.reason == "" {
		return true
	}
	message, word := got.status().Message, strings.Split(r.reason, "/")[0]
	decided := got.code == 403 && word != "BadUpgrade" && r.reason != "PolicyDenied/LegacyPath"
	if !strings.Contains(message, "[taskgate:"+word+"]") || decided && !strings.Contains(message, "Next: ") {
		t.Errorf("%s %s (%s): the message does not say why and what next: %s", r.id, r.name, way, message)
	}
	if got.header.Get("Retry-After") != "" {
		t.Errorf("%s %s (%s): it asks to be retried", r.id, r.name, way)
	}
	return true
}

// judgeRecords joins every answer with the records in the bucket and with what
// the API server saw.
func (rig *casesRig) judgeRecords(t *testing.T, all []sent) {
	t.Helper()
	var ids []string
	for _, s := range all {
		if id := s.reply.auditID(); id != "" {
			ids = append(ids, id)
		}
	}
	records, upstream := rig.journal.of(t, ids...), rig.upstream(t)
	for _, s := range all {
		id := s.reply.auditID()
		if id == "" {
			continue
		}
		if err := s.judge(records[id], len(upstream[id])); err != nil {
			t.Errorf("%s %s (%s): %v", s.id, s.name, s.way, err)
		}
	}
}

func (s *sent) judge(records []*recorder.Event, upstream int) error {
	last := records[len(records)-1]
	if last.User.Username != s.who.id || last.ResponseStatus == nil || last.ResponseStatus.Code != int32(s.code) {
		return fmt.Errorf("the record is of %s with the status %+v", last.User.Username, last.ResponseStatus)
	}
	if s.reason == "" {
		return s.judgeForwarded(records, upstream)
	}
	reason, cause, _ := strings.Cut(s.reason, "/")
	switch note := last.Annotations; {
	case note[recorder.AnnotationDecision] != "deny" || note[recorder.AnnotationReason] != reason || note[recorder.AnnotationCause] != cause:
		return fmt.Errorf("the record says %s %s/%s", note[recorder.AnnotationDecision], note[recorder.AnnotationReason], note[recorder.AnnotationCause])
	case len(records) != 1:
		return fmt.Errorf("a refusal has %d records", len(records))
	case upstream != 0:
		return fmt.Errorf("the API server saw it %d times", upstream)
	}
	return nil
}

func (s *sent) judgeForwarded(records []*recorder.Event, upstream int) error {
	first := records[0]
	switch {
	case upstream == 0:
		return errors.New("the API server did not see it")
	case len(records) < 2 || first.Stage != recorder.StageRequestReceived:
		return fmt.Errorf("it has %d records, the first of stage %s", len(records), first.Stage)
	case first.Annotations[recorder.AnnotationDecision] != "allow":
		return fmt.Errorf("the record says %s", first.Annotations[recorder.AnnotationDecision])
	}
	return nil
}

// metric reads a number of the broker's metrics, 0 if it is not there.
func (s *stack) metric(t testing.TB, name string) float64 {
	t.Helper()
	got := get(t, s.Environment().BrokerMetrics)
	for line := range strings.Lines(got) {
		var value float64
		if rest, found := strings.CutPrefix(line, name+" "); found {
			if _, err := fmt.Sscan(rest, &value); err != nil {
				t.Fatal(err)
			}
			return value
		}
	}
	return 0
}

// rssOf is the resident memory of a process in bytes.
func rssOf(t testing.TB, pid int) int64 {
	t.Helper()
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(content)) {
		var kilobytes int64
		if rest, found := strings.CutPrefix(line, "VmRSS:"); found {
			if _, err := fmt.Sscan(rest, &kilobytes); err != nil {
				t.Fatal(err)
			}
			return kilobytes << 10
		}
	}
	t.Fatalf("process %d has no memory", pid)
	return 0
}

// get reads a page of the broker's or a sidecar's health port.
func get(t testing.TB, url string) string {
	t.Helper()
	response, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = response.Body.Close() }() // only read
	content, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// playHTTP1 is play for requests that only HTTP/1.1 can carry.
func (rig *casesRig) playHTTP1(t *testing.T, rows []row) {
	t.Helper()
	var all []sent
	clients := map[*agent][]way{}
	for _, r := range rows {
		if clients[r.who] == nil {
			clients[r.who] = r.who.ways(t)
		}
		for _, way := range clients[r.who] {
			if strings.HasSuffix(way.name, "h1") {
				got := way.do(t, r.method, r.target, r.header, r.body)
				if r.judgeAnswer(t, way.name, got) {
					all = append(all, sent{r, way.name, got})
				}
			}
		}
	}
	rig.judgeRecords(t, all)
}

func newReader(text string) *bufio.Reader { return bufio.NewReader(strings.NewReader(text)) }
