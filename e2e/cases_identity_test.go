package e2e_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// issuer signs certificates as an authority would that forgot its rules.
type issuer struct {
	certificate *x509.Certificate
	key         crypto.Signer
}

// spireAuthority is SPIRE's own key: what it signs, the broker trusts.
func (s *stack) spireAuthority(t testing.TB) issuer {
	t.Helper()
	content, err := os.ReadFile(s.Directory() + "/spire/server/keys.json")
	if err != nil {
		t.Fatal(err)
	}
	var stored struct{ Keys map[string]string }
	bundle, bundleErr := s.SPIRE().Bundle(t.Context())
	if err := errors.Join(json.Unmarshal(content, &stored), bundleErr); err != nil {
		t.Fatal(err)
	}
	for _, encoded := range stored.Keys {
		der, err := base64.StdEncoding.DecodeString(encoded)
		if err != nil {
			t.Fatal(err)
		}
		parsed, err := x509.ParsePKCS8PrivateKey(der)
		if err != nil {
			t.Fatal(err)
		}
		for _, authority := range bundle.X509Authorities() {
			if key := parsed.(crypto.Signer); key.Public().(*ecdsa.PublicKey).Equal(authority.PublicKey) {
				return issuer{authority, key}
			}
		}
	}
	t.Fatal("SPIRE's key is not in its folder")
	return issuer{}
}

// newAuthority is one that nobody has heard of.
func newAuthority(t testing.TB, domain string) issuer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, URIs: []*url.URL{{Scheme: "spiffe", Host: domain}},
	}
	return issuer{sign(t, template, template, key.Public(), key), key}
}

func sign(t testing.TB, template, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return certificate
}

// leaf is a client certificate for SPIFFE IDs, as an SVID is unless change says
// otherwise.
func (i issuer) leaf(t testing.TB, change func(*x509.Certificate), ids ...string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	for _, id := range ids {
		parsed, err := url.Parse(id)
		if err != nil {
			t.Fatal(err)
		}
		template.URIs = append(template.URIs, parsed)
	}
	if change != nil {
		change(template)
	}
	certificate := sign(t, template, i.certificate, key.Public(), i.key)
	return tls.Certificate{Certificate: [][]byte{certificate.Raw}, PrivateKey: key}
}

// claim is a client that presents any certificates and takes any server.
func claim(certificates ...tls.Certificate) *tls.Config {
	return &tls.Config{Certificates: certificates, InsecureSkipVerify: true}
}

// knock sends one request on a connection of its own. The error is that of the
// connection.
func (s *stack) knock(t testing.TB, config *tls.Config, http2 bool) (reply, error) {
	t.Helper()
	client := clientOf(t, config, http2)
	return ask(t, client, s.Environment().BrokerAddress, casePod)
}

func ask(t testing.TB, client *http.Client, address, target string) (reply, error) {
	t.Helper()
	request, err := newRequest(t.Context(), "GET", "https://"+address+target, "")
	if err != nil {
		t.Fatal(err)
	}
	response, err := client.Do(request)
	if err != nil {
		return reply{}, err
	}
	defer func() { _ = response.Body.Close() }() // only read
	content, err := io.ReadAll(response.Body)
	return reply{response.StatusCode, response.Header, string(content), response.Proto}, err
}

// TestStrangers do not get through the handshake: they are sent no byte of HTTP.
func TestStrangers(t *testing.T) {
	rig := newCasesRig(t)
	real, unknown := rig.spireAuthority(t), newAuthority(t, "example.org")
	a1 := rig.reader.id
	if got, err := rig.knock(t, claim(real.leaf(t, nil, a1)), true); err != nil || got.code != 200 {
		t.Fatalf("control: %d %v", got.code, err)
	}
	for _, row := range []struct {
		id, name, metric string
		config           *tls.Config
	}{
		{"T001", "no certificate", "no_cert", claim()},
		{"T002", "unknown authority", "untrusted", claim(unknown.leaf(t, nil, a1))},
		{"T003", "two URIs", "multiple_uri", claim(real.leaf(t, nil, a1, rig.all.id))},
		{"T005", "authority", "signing_leaf", claim(real.leaf(t, func(c *x509.Certificate) { c.IsCA, c.BasicConstraintsValid = true, true }, a1))},
		{"T005", "key usage", "signing_leaf", claim(real.leaf(t, func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign }, a1))},
		{"T005", "revocation lists", "signing_leaf", claim(real.leaf(t, func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCRLSign }, a1))},
		{"T003", "no URI", "", claim(real.leaf(t, nil))},
		{"T003", "no path", "", claim(real.leaf(t, nil, "spiffe://example.org"))},
		{"T003", "not SPIFFE", "", claim(real.leaf(t, nil, "https://example.org/ns/agents/sa/case-reader"))},
		{"T003", "query", "", claim(real.leaf(t, nil, a1+"?x=y"))},
		{"T003", "port", "", claim(real.leaf(t, nil, strings.Replace(a1, "example.org", "example.org:80", 1)))},
		{"T003", "dot segments", "", claim(real.leaf(t, nil, "spiffe://example.org/ns/agents/../sa/case-reader"))},
		{"T007", "another domain's authority", "", claim(rig.other(t).leaf(t, nil, a1))},
		{"T010", "expired", "expired", claim(real.leaf(t, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Second) }, a1))},
		{"T010", "not yet", "", claim(real.leaf(t, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Hour) }, a1))},
		{"T018", "TLS 1.2", "", limited(claim(real.leaf(t, nil, a1)), tls.VersionTLS12)},
		{"T018", "TLS 1.1", "", limited(claim(real.leaf(t, nil, a1)), tls.VersionTLS11)},
		{"T263", "local token", "no_cert", claim()},
	} {
		name := fmt.Sprintf("taskgate_handshake_rejected_total{reason=%q}", row.metric)
		before := rig.metric(t, name)
		for _, http2 := range []bool{true, false} {
			if got, err := rig.knock(t, row.config, http2); err == nil {
				t.Errorf("%s %s: answered %d %s", row.id, row.name, got.code, got.body)
			}
		}
		if row.metric != "" && rig.metric(t, name) != before+2 {
			t.Errorf("%s %s: %s went from %v to %v", row.id, row.name, name, before, rig.metric(t, name))
		}
	}
}

func limited(config *tls.Config, version uint16) *tls.Config {
	config.MinVersion, config.MaxVersion = tls.VersionTLS10, version
	return config
}

// TestLookalikes: a grant is for exactly one ID.
func TestLookalikes(t *testing.T) {
	rig := newCasesRig(t)
	real := rig.spireAuthority(t)
	ids := []string{
		rig.reader.id + "0", rig.reader.id + "/x", strings.Replace(rig.reader.id, "case-reader", "Case-Reader", 1), strings.TrimSuffix(rig.reader.id, "r"),
		strings.Replace(rig.reader.id, "/agents/", "/agents2/", 1), "spiffe://example.org/ns/agents/sa", "spiffe://example.org/x" + strings.TrimPrefix(rig.reader.id, "spiffe://example.org"),
	}
	calls := map[string]string{}
	for _, id := range ids {
		got, err := rig.knock(t, claim(real.leaf(t, nil, id)), true)
		if err != nil || got.code != 403 || got.reason() != "NoGrant" {
			t.Errorf("T009 %s: %d %s %v", id, got.code, got.reason(), err)
			continue
		}
		calls[got.auditID()] = id
	}
	records, upstream := rig.journal.of(t, slices.Collect(maps.Keys(calls))...), rig.upstream(t)
	for call, id := range calls {
		if records[call][0].User.Username != id || len(upstream[call]) != 0 {
			t.Errorf("T009 %s: recorded as %s", id, records[call][0].User.Username)
		}
	}
}

var otherAuthority issuer

// other is the authority of the trust domain that the broker accepts besides its
// own. SPIRE federates its bundle to the broker from the first call on.
func (rig *casesRig) other(t testing.TB) issuer {
	t.Helper()
	if otherAuthority.key == nil {
		otherAuthority = newAuthority(t, otherDomain)
		rig.federate(t, otherAuthority)
	}
	return otherAuthority
}

func (s *stack) spireAdmin(t testing.TB) *grpc.ClientConn {
	t.Helper()
	connection, err := grpc.NewClient("unix://"+s.Directory()+"/spire/server.sock", grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = connection.Close() }) // only read
	return connection
}

// federate gives the broker the bundle of another trust domain.
func (rig *casesRig) federate(t testing.TB, authority issuer) {
	t.Helper()
	connection := rig.spireAdmin(t)
	bundles, err := bundlev1.NewBundleClient(connection).BatchSetFederatedBundle(t.Context(), &bundlev1.BatchSetFederatedBundleRequest{
		Bundle: []*types.Bundle{{TrustDomain: otherDomain, X509Authorities: []*types.X509Certificate{{Asn1: authority.certificate.Raw}}}},
	})
	if err != nil || bundles.Results[0].Status.Code != 0 {
		t.Fatal(bundles, err)
	}
	ids, err := rig.SPIRE().Entries(t.Context(), spiffeid.RequireFromString(brokerID))
	if err != nil {
		t.Fatal(err)
	}
	answer, err := entryv1.NewEntryClient(connection).BatchUpdateEntry(t.Context(), &entryv1.BatchUpdateEntryRequest{
		Entries: []*types.Entry{{Id: ids[0], FederatesWith: []string{otherDomain}}}, InputMask: &types.EntryMask{FederatesWith: true},
	})
	if err != nil || answer.Results[0].Status.Code != 0 {
		t.Fatal(answer, err)
	}
	probe := authority.leaf(t, nil, "spiffe://"+otherDomain+"/probe")
	eventually(t, 20*time.Second, "that the broker learns of the other trust domain", func() error {
		_, err := rig.knock(t, claim(probe), true)
		return err
	})
}

// TestFederation: IDs of another trust domain are other IDs, and end with its
// bundle.
func TestFederation(t *testing.T) {
	rig := newCasesRig(t)
	authority := rig.other(t)
	same := "spiffe://" + otherDomain + strings.TrimPrefix(rig.reader.id, "spiffe://example.org")
	client := clientOf(t, claim(authority.leaf(t, nil, same)), true)
	got, err := ask(t, client, rig.Environment().BrokerAddress, casePod)
	if err != nil || got.reason() != "NoGrant" {
		t.Fatalf("T006: %d %s %v", got.code, got.reason(), err)
	}
	if record := rig.journal.of(t, got.auditID())[got.auditID()][0]; record.User.Username != same {
		t.Errorf("T006: recorded as %s", record.User.Username)
	}
	// The connection stays open while the trust domain is taken away.
	connection := rig.spireAdmin(t)
	if _, err := bundlev1.NewBundleClient(connection).BatchDeleteFederatedBundle(t.Context(), &bundlev1.BatchDeleteFederatedBundleRequest{
		TrustDomains: []string{otherDomain}, Mode: bundlev1.BatchDeleteFederatedBundleRequest_DISSOCIATE,
	}); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	eventually(t, 20*time.Second, "that the open connection ends", func() error {
		got, err := ask(t, client, rig.Environment().BrokerAddress, casePod)
		if err != nil {
			t.Fatalf("T014: the connection broke without an answer: %v", err)
		}
		if got.reason() == "NoGrant" {
			return fmt.Errorf("still %s", got.reason())
		}
		if got.code != 401 || got.reason() != "IdentityUnknown" {
			t.Errorf("T014: %d %s", got.code, got.reason())
		}
		if record := rig.journal.of(t, got.auditID())[got.auditID()][0]; record.User.Username != same || record.Annotations["taskgate.dev/reason"] != "IdentityUnknown" {
			t.Errorf("T014: recorded as %s %v", record.User.Username, record.Annotations)
		}
		return nil
	})
	t.Logf("T014: refused %s after the bundle was deleted", time.Since(began).Round(time.Millisecond))
	if _, err := ask(t, client, rig.Environment().BrokerAddress, casePod); err == nil {
		t.Error("T014: a new connection is accepted")
	}
	otherAuthority = issuer{}
}

// TestExpiry: an SVID that ends on an open connection ends with it.
func TestExpiry(t *testing.T) {
	rig := newCasesRig(t)
	const life = 3 * time.Second
	end := time.Now().Add(life).Truncate(time.Second).Add(time.Second)
	leaf := rig.spireAuthority(t).leaf(t, func(c *x509.Certificate) { c.NotAfter = end }, rig.reader.id)
	for _, http2 := range []bool{true, false} {
		t.Run(fmt.Sprintf("h2 %t", http2), func(t *testing.T) {
			t.Parallel()
			client := clientOf(t, claim(leaf), http2)
			var last time.Time
			for {
				began := time.Now()
				got, err := ask(t, client, rig.Environment().BrokerAddress, casePod)
				if err != nil {
					t.Fatalf("T010: %v", err)
				}
				if got.code == 200 {
					last = began
					time.Sleep(10 * time.Millisecond)
					continue
				}
				if got.code != 401 || got.reason() != "IdentityExpired" || len(rig.upstream(t)[got.auditID()]) != 0 {
					t.Errorf("T010: %d %s", got.code, got.reason())
				}
				if record := rig.journal.of(t, got.auditID())[got.auditID()][0]; record.Annotations["taskgate.dev/reason"] != "IdentityExpired" {
					t.Errorf("T010: recorded as %v", record.Annotations)
				}
				break
			}
			t.Logf("T010: the last accepted request began %s before the end", end.Sub(last).Round(time.Millisecond))
			if last.After(end) {
				t.Error("T010: a request was accepted after the end")
			}
			if _, err := ask(t, client, rig.Environment().BrokerAddress, casePod); err == nil {
				t.Error("T010: the connection stays open, or a new one is accepted")
			}
		})
	}
}

// TestResumption: no session is ever resumed.
func TestResumption(t *testing.T) {
	rig := newCasesRig(t)
	config := claim(rig.spireAuthority(t).leaf(t, nil, rig.reader.id))
	config.ClientSessionCache, config.ServerName = tls.NewLRUClientSessionCache(8), "broker.example.org"
	for range 3 {
		conn, err := tls.Dial("tcp", rig.Environment().BrokerAddress, config)
		if err != nil {
			t.Fatal(err)
		}
		_, writeErr := io.WriteString(conn, "GET /version HTTP/1.1\r\nHost: broker.example.org\r\nConnection: close\r\n\r\n")
		content, readErr := io.ReadAll(conn)
		if err := errors.Join(writeErr, readErr); err != nil || !strings.HasPrefix(string(content), "HTTP/1.1 200") {
			t.Fatalf("T018: without ALPN: %v %.200q", err, content)
		}
		state := conn.ConnectionState()
		if state.DidResume || state.Version != tls.VersionTLS13 || state.NegotiatedProtocol != "" {
			t.Errorf("T015: resumed %t, TLS %x, protocol %q", state.DidResume, state.Version, state.NegotiatedProtocol)
		}
		_ = conn.Close() // it is read to its end
	}
	if _, cached := config.ClientSessionCache.Get("broker.example.org"); cached {
		t.Error("T015: the broker sent a session ticket")
	}
}

// TestUnregistered: without a registration the SVID holds until its end, and the
// grant still decides.
func TestUnregistered(t *testing.T) {
	rig := newCasesRig(t)
	a := rig.newAgent(t, "case-leaver")
	rig.policy(t, "case-leaver", a, "", caseReads)
	rig.grant(t, "case-leaver", "case-leaver", a, "1h", caseReads)
	client := clientOf(t, a.mutual(t), true)
	entries, err := rig.SPIRE().Entries(t.Context(), spiffeid.RequireFromString(a.id))
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range entries {
		if err := rig.SPIRE().DeleteEntry(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := ask(t, client, rig.Environment().BrokerAddress, casePod); err != nil || got.code != 200 {
		t.Errorf("T027: %d %v", got.code, err)
	}
	rig.admin(t, "delete", "taskgrant", "case-leaver")
	deleted := time.Now()
	eventually(t, 2*time.Second, "T027: that the grant is gone", func() error {
		got, err := ask(t, client, rig.Environment().BrokerAddress, casePod)
		if err != nil || got.reason() != "GrantRevoked" {
			return fmt.Errorf("%d %s %w", got.code, got.reason(), err)
		}
		return nil
	})
	t.Logf("T027: refused %s after kubectl delete had returned", time.Since(deleted).Round(time.Millisecond))
}
