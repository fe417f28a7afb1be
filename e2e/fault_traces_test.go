package e2e_test

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/minio/minio-go/v7"

	"github.com/taskgate/taskgate/e2e/testbed"
	"github.com/taskgate/taskgate/recorder"
)

// TestFaultTraces looks for what a broker must not leave behind: values of
// Secrets and credentials where they can be read, connections and memory after
// calls that went wrong. All programs log as much as they can.
func TestFaultTraces(t *testing.T) {
	t.Parallel()
	b := startFault(t, testbed.Options{
		Node: testbed.NoNode, WithoutControllers: true, SidecarArguments: []string{"--log-level", "debug"},
		BrokerConfiguration: func(_ int, configuration map[string]any) { configuration["logLevel"] = "debug" },
	})
	t.Run("secrets", func(t *testing.T) { testSecrets(t, b) })
	t.Run("leaks", func(t *testing.T) { testLeaks(t, b) })
	t.Run("stalled reader", func(t *testing.T) { testStalledReader(t, b) })
	t.Run("credentials", func(t *testing.T) {
		for place, content := range b.traces(t) {
			for what, credential := range b.credentials(t) {
				if at := bytes.Index(content, []byte(credential)); at >= 0 {
					t.Errorf("%s holds %s: %q", place, what, content[max(0, at-100):min(len(content), at+100)])
				}
			}
		}
	})
}

// faultCanary is a value that may be nowhere but in the Secret it is of.
type faultCanary struct {
	what, value string
}

// forms are the ways the value could be written, or guessed from.
func (c faultCanary) forms() map[string]string {
	encoded := base64.StdEncoding.EncodeToString([]byte(c.value))
	hash := func(text string) string {
		sum := sha256.Sum256([]byte(text))
		return hex.EncodeToString(sum[:])
	}
	return map[string]string{
		"as it is": c.value, "in base64": encoded, "its base64 in a URL": url.QueryEscape(encoded),
		"its hash": hash(c.value), "the hash of its base64": hash(encoded),
	}
}

// testSecrets writes and reads Secrets in every way there is, some of them wrong,
// and then looks everywhere but in the API server's own files.
func testSecrets(t *testing.T, b *faultBed) {
	if err := b.Component(testbed.ComponentStore).Stop(t.Context()); err != nil { // so that the spool keeps all of it
		t.Fatal(err)
	}
	s := &faultSecrets{bed: b, test: t}
	s.withKubectl()
	s.raw()
	s.wrong()
	spool := b.spoolContent(t)
	if err := b.Component(testbed.ComponentStore).Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.sealed(t, 30*time.Second, s.answers...)
	if !bytes.Contains(spool, []byte(`"resource":"secrets"`)) {
		t.Error("the spool holds no record of a Secret: it was not looked at in time")
	}
	places := b.traces(t)
	places["the spool"] = spool
	for n, answer := range s.answers {
		if answer.reason != "" {
			places[fmt.Sprintf("refusal %d (%s)", n, answer.reason)] = []byte(answer.body)
		}
	}
	looked := 0
	for place, content := range places {
		looked += len(content)
		for _, c := range s.canaries {
			for form, text := range c.forms() {
				if at := bytes.Index(content, []byte(text)); at >= 0 {
					t.Errorf("%s: %s holds it %s: %.300q", c.what, place, form, content[max(0, at-200):min(len(content), at+100)])
				}
			}
		}
	}
	for _, records := range b.records(t) {
		for _, record := range records {
			concerns := record.ObjectRef != nil && record.ObjectRef.Resource == "secrets"
			if concerns && record.Annotations[recorder.AnnotationRequestSHA256]+record.Annotations[recorder.AnnotationResponseSHA256] != "" {
				t.Errorf("the record of a Secret holds a hash: %v", record)
			}
		}
	}
	b.mustVerify(t)
	t.Logf("%d values of Secrets written in %d calls; looked for in %d places, %d MiB", len(s.canaries), len(s.answers), len(places), looked>>20)
}

// faultSecrets makes the calls.
type faultSecrets struct {
	bed      *faultBed
	test     *testing.T
	canaries []faultCanary
	answers  []faultAnswer
}

// value makes up a new one.
func (s *faultSecrets) value(what string) string {
	value := "canary-" + rand.Text()
	s.canaries = append(s.canaries, faultCanary{what, value})
	return value
}

func (s *faultSecrets) kubectl(stdin string, arguments ...string) {
	s.test.Helper()
	environment := s.bed.Environment()
	arguments = append([]string{"--kubeconfig", environment.Alpha.Kubeconfig, "--namespace=shop"}, arguments...)
	if got := s.bed.command(s.test, stdin, environment.Programs+"/kubectl", arguments...); got.code != 0 {
		s.test.Errorf("kubectl %v: %s", arguments, got)
	}
}

func (s *faultSecrets) manifest(name, what string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Secret\nmetadata: {name: %s}\nstringData: {k: %s}\n", name, s.value(what))
}

func (s *faultSecrets) withKubectl() {
	s.test.Helper()
	s.kubectl("", "create", "secret", "generic", "one", "--from-literal=k="+s.value("kubectl create"))
	s.kubectl("", "create", "secret", "generic", "two", "--dry-run=server", "--from-literal=k="+s.value("kubectl create --dry-run"))
	s.kubectl(s.manifest("three", "kubectl apply"), "apply", "-f", "-")
	s.kubectl(s.manifest("three", "kubectl apply, again"), "apply", "-f", "-")
	s.kubectl(s.manifest("four", "kubectl apply --server-side"), "apply", "--server-side", "-f", "-")
	s.kubectl(s.manifest("three", "kubectl replace"), "replace", "-f", "-")
	for _, kind := range []string{"merge", "strategic"} {
		s.kubectl("", "patch", "secret", "one", "--type="+kind, "--patch", fmt.Sprintf(`{"stringData":{"k":%q}}`, s.value("kubectl patch "+kind)))
	}
	s.kubectl("", "patch", "secret", "one", "--type=json", "--patch", fmt.Sprintf(`[{"op":"add","path":"/stringData","value":{"k":%q}}]`, s.value("kubectl patch json")))
	s.kubectl("", "annotate", "secret", "one", "note="+s.value("kubectl annotate"))
	for _, form := range []string{"yaml", "json", "wide", "jsonpath={.data.k}"} {
		s.kubectl("", "get", "secret", "one", "--output="+form)
	}
	s.kubectl("", "get", "secrets", "--output=yaml")
	s.kubectl("", "describe", "secret", "one")
}

// raw makes calls kubectl does not make.
func (s *faultSecrets) raw() {
	s.test.Helper()
	const path = "/api/v1/namespaces/shop/secrets"
	body := func(name, what string) string {
		return fmt.Sprintf(`{"apiVersion":"v1","kind":"Secret","metadata":{"name":%q},"data":{"k":%q}}`,
			name, base64.StdEncoding.EncodeToString([]byte(s.value(what))))
	}
	for _, call := range []struct{ method, target, body string }{
		{http.MethodPost, path, body("five", "POST")},
		{http.MethodPut, path + "/five", body("five", "PUT")},
		{http.MethodPost, path + "?dryRun=All", body("six", "POST, dry run")},
		{http.MethodGet, path + "/five", ""}, {http.MethodGet, path, ""},
		{http.MethodGet, path + "?watch=true&timeoutSeconds=1", ""},
		{http.MethodDelete, path + "/five", ""},
	} {
		answer := s.bed.alpha.call(s.test.Context(), call.method, call.target, call.body)
		if !answer.ok() {
			s.test.Errorf("%s %s: %s", call.method, call.target, answer)
		}
		s.answers = append(s.answers, answer)
	}
}

// wrong makes calls that are refused somewhere on the way.
func (s *faultSecrets) wrong() {
	s.test.Helper()
	const path = "/api/v1/namespaces/shop/secrets"
	secret := func(more, what string) string {
		return fmt.Sprintf(`{"apiVersion":"v1","kind":"Secret","metadata":{"name":"wrong"%s},"stringData":{"k":%q}}`, more, s.value(what))
	}
	for _, call := range []struct{ what, method, target, media, body string }{
		{"outside the grant", http.MethodPost, "/api/v1/namespaces/elsewhere/secrets", "application/json", secret("", "outside the grant")},
		{"another namespace in the body", http.MethodPost, path, "application/json", secret(`,"namespace":"elsewhere"`, "another namespace in the body")},
		{"another name in the body", http.MethodPut, path + "/other", "application/json", secret("", "another name in the body")},
		{"a Secret sent as a config map", http.MethodPost, faultMaps, "application/json", secret("", "sent as a config map")},
		{"a list of Secrets", http.MethodPost, path, "application/json", `{"apiVersion":"v1","kind":"SecretList","items":[` + secret("", "in a SecretList") + `]}`},
		{"a list with a Secret sent as a config map", http.MethodPost, faultMaps, "application/json", `{"apiVersion":"v1","kind":"List","items":[` + secret("", "in a List sent as a config map") + `]}`},
		{"twice the same key", http.MethodPost, path, "application/json", fmt.Sprintf(`{"apiVersion":"v1","kind":"Secret","metadata":{"name":"wrong"},"stringData":{"k":%q,"k":%q}}`, s.value("duplicate key"), s.value("duplicate key, again"))},
		{"JSON that breaks off", http.MethodPost, path, "application/json", strings.TrimSuffix(secret("", "broken off"), `"}}`)},
		{"a value of the wrong kind", http.MethodPost, path, "application/json", fmt.Sprintf(`{"apiVersion":"v1","kind":"Secret","metadata":{"name":"wrong"},"data":%q}`, s.value("data is a string"))},
		{"no base64", http.MethodPost, path, "application/json", fmt.Sprintf(`{"apiVersion":"v1","kind":"Secret","metadata":{"name":"wrong"},"data":{"k":%q}}`, s.value("data is no base64")+"!")},
		{"an unknown media type", http.MethodPost, path, "text/plain", secret("", "text/plain")},
		{"protobuf that is none", http.MethodPost, path, "application/vnd.kubernetes.protobuf", "k8s\x00" + secret("", "protobuf")},
		{"a merge patch of something else", http.MethodPatch, path + "/none", "application/merge-patch+json", fmt.Sprintf(`{"stringData":{"k":%q}}`, s.value("patch of nothing"))},
		{"a JSON patch that tests", http.MethodPatch, path + "/one", "application/json-patch+json", fmt.Sprintf(`[{"op":"test","path":"/data/k","value":%q}]`, s.value("patch that tests"))},
		{"a Secret for a service account", http.MethodPost, path, "application/json", strings.Replace(secret("", "service account token"), `"kind":"Secret"`, `"kind":"Secret","type":"kubernetes.io/service-account-token"`, 1)},
		{"apply as YAML that is none", http.MethodPatch, path + "/one?fieldManager=a", "application/apply-patch+yaml", "stringData: {k: " + s.value("broken YAML") + "\n  - "},
		{"too large", http.MethodPost, path, "application/json", fmt.Sprintf(`{"apiVersion":"v1","kind":"Secret","metadata":{"name":"wrong"},"stringData":{"k":%q,"l":%q}}`, s.value("too large"), strings.Repeat("x", 3<<20))},
	} {
		request, err := s.bed.alpha.request(s.test.Context(), call.method, call.target, call.body)
		if err != nil {
			s.test.Fatal(err)
		}
		request.Header.Set("Content-Type", call.media)
		response, err := s.bed.alpha.http.Do(request)
		if err != nil {
			s.test.Errorf("%s: %v", call.what, err)
			continue
		}
		content, err := io.ReadAll(response.Body)
		if err := response.Body.Close(); err != nil {
			s.test.Error(err)
		}
		got := reply{response.StatusCode, response.Header, string(content), response.Proto}
		answer := faultAnswer{code: got.code, auditID: got.auditID(), reason: got.reason(), body: got.body, err: err}
		if answer.ok() {
			s.test.Errorf("%s was answered %s", call.what, answer)
		}
		if answer.auditID != "" {
			s.answers = append(s.answers, answer)
		}
	}
}

// spoolContent is all that lies in the spool.
func (b *faultBed) spoolContent(t *testing.T) []byte {
	t.Helper()
	var all []byte
	err := filepath.Walk(b.Environment().BrokerSpool, func(path string, info os.FileInfo, err error) error {
		if err != nil || info.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		all = append(all, bytes.TrimRight(content, "\x00")...)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// traces is every place in which records, logs and numbers can be read.
func (b *faultBed) traces(t *testing.T) map[string][]byte {
	t.Helper()
	places := map[string][]byte{"the spool, afterwards": b.spoolContent(t)}
	for _, page := range []string{"/metrics", "/readyz?verbose", "/livez"} {
		_, text := faultFetch(strings.TrimSuffix(b.Environment().BrokerMetrics, "/metrics") + page)
		places[page] = []byte(text)
	}
	logs, err := filepath.Glob(filepath.Join(b.Directory(), "log", "*.log"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range logs {
		if ours := regexp.MustCompile(`/(own-)?(broker|sidecar)-[^/]*$`); ours.MatchString(path) {
			content, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			places[filepath.Base(path)] = content
		}
	}
	client, err := b.Store().Client(b.Store().Admin)
	if err != nil {
		t.Fatal(err)
	}
	decoder, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer decoder.Close()
	for info := range client.ListObjectsIter(t.Context(), b.Store().Bucket, minio.ListObjectsOptions{Recursive: true, WithVersions: true}) {
		if info.Err != nil {
			t.Fatal(info.Err)
		}
		content := b.object(t, client, info)
		if strings.HasSuffix(info.Key, ".zst") {
			if content, err = decoder.DecodeAll(content, nil); err != nil {
				t.Errorf("%s: %v", info.Key, err)
			}
		}
		places[info.Key] = content
	}
	return places
}

func (b *faultBed) object(t *testing.T, client *minio.Client, info minio.ObjectInfo) []byte {
	t.Helper()
	object, err := client.GetObject(t.Context(), b.Store().Bucket, info.Key, minio.GetObjectOptions{VersionID: info.VersionID})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = object.Close() }() // only read
	content, err := io.ReadAll(object)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// credentials are what nobody may find, and words that come with them (T165).
func (b *faultBed) credentials(t *testing.T) map[string]string {
	t.Helper()
	kubeconfig, err := os.ReadFile(filepath.Join(b.Directory(), "broker", "kubeconfig"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(kubeconfig), "token: ")
	if !found {
		t.Fatal("the broker's kubeconfig holds no token")
	}
	token, _, _ := strings.Cut(rest, "\n")
	return map[string]string{
		"the broker's token": token, "alpha's token": b.alpha.Token, "beta's token": b.beta.Token,
		"the key of the bucket": b.Store().Broker.Secret, "a private key": "PRIVATE KEY",
		"a bearer token": "Bearer ", "an authorization header": "Authorization",
	}
}
