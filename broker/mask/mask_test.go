package mask_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"github.com/taskgate/taskgate/broker/mask"
)

// canary is a value no answer may hold; the second is how data spells it.
const canary, canary64 = "hunter2-canary", "aHVudGVyMi1jYW5hcnk="

func copied(text string, live bool) (string, error) {
	var out strings.Builder
	err := mask.Copy(strings.NewReader(text), live, func(piece []byte) error { out.Write(piece); return nil })
	return out.String(), err
}

// secret is one as the API server shows it, with the canary wherever there is
// room for a value.
const secret = `{"kind":"Secret","apiVersion":"v1","metadata":{"name":"db","namespace":"shop","uid":"u1","resourceVersion":"7",` +
	`"creationTimestamp":"2026-11-23T12:00:00Z","labels":{"app":"db"},"annotations":{"note":"` + canary + `","kubectl.kubernetes.io/last-applied-configuration":` +
	`"{\"apiVersion\":\"v1\",\"data\":{\"password\":\"` + canary64 + `\"},\"kind\":\"Secret\",\"metadata\":{\"annotations\":{\"note\":\"` + canary + `\"},\"name\":\"db\"},\"stringData\":{\"x\":\"` + canary + `\"}}\n"},` +
	`"managedFields":[{"manager":"kubectl","fieldsV1":{"v:` + canary + `":{}}}]},"data":{"password":"` + canary64 + `"},"stringData":{"x":"` + canary + `"},"immutable":true,"type":"Opaque","surprise":{"value":"` + canary + `"}}`

const maskedSecret = `{"kind":"Secret","apiVersion":"v1","metadata":{"name":"db","namespace":"shop","uid":"u1","resourceVersion":"7",` +
	`"creationTimestamp":"2026-11-23T12:00:00Z","labels":{"app":"db"},"annotations":{"kubectl.kubernetes.io/last-applied-configuration":` +
	`"{\"apiVersion\":\"v1\",\"data\":{\"password\":\"W3JlZGFjdGVkXQ==\"},\"kind\":\"Secret\",\"metadata\":{\"name\":\"db\",\"annotations\":{\"note\":\"[redacted]\"}},\"stringData\":{\"x\":\"[redacted]\"}}\n","note":"[redacted]"}},` +
	`"data":{"password":"W3JlZGFjdGVkXQ=="},"stringData":{"x":"[redacted]"},"immutable":true,"type":"Opaque"}`

const columns = `[{"name":"Name","type":"string","format":"name","description":"","priority":0},{"name":"Data","type":"string","format":"","description":"","priority":0}]`

// TestCopy: what may be shown is shown, and nothing else.
func TestCopy(t *testing.T) {
	partial := `{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","metadata":{"name":"db","annotations":{"note":"%s"}}}`
	rows := []struct {
		name, given, want string
		live              bool
	}{
		{"a Secret", secret, maskedSecret, false},
		{"keys sorted, as others write them", `{"apiVersion":"v1","data":{"k":"` + canary64 + `"},"kind":"Secret"}`, `{"apiVersion":"v1","data":{"k":"W3JlZGFjdGVkXQ=="},"kind":"Secret"}`, false},
		{"a list", `{"kind":"SecretList","apiVersion":"v1","metadata":{"resourceVersion":"9","continue":"c","remainingItemCount":3},"items":[` + secret + `,` + secret + `]}`,
			`{"kind":"SecretList","apiVersion":"v1","metadata":{"resourceVersion":"9","continue":"c","remainingItemCount":3},"items":[` + maskedSecret + `,` + maskedSecret + `]}`, false},
		{"an empty list", `{"kind":"SecretList","apiVersion":"v1","metadata":{},"items":null}`, `{"kind":"SecretList","apiVersion":"v1","metadata":{},"items":null}`, false},
		{"a Table", `{"kind":"Table","apiVersion":"meta.k8s.io/v1","metadata":{},"columnDefinitions":` + columns + `,"rows":[{"cells":["db",1],"object":` + fmt.Sprintf(partial, canary) + `},{"cells":["db",2],"object":null},{"cells":["db",12345678901234567890],"object":` + secret + `}]}`,
			`{"kind":"Table","apiVersion":"meta.k8s.io/v1","metadata":{},"columnDefinitions":` + columns + `,"rows":[{"cells":["db",1],"object":` + fmt.Sprintf(partial, mask.Text) + `},{"cells":["db",2],"object":null},{"cells":["db",12345678901234567890],"object":` + maskedSecret + `}]}`, false},
		{"a Table with a column nobody knows", `{"kind":"Table","columnDefinitions":[{"name":"Password"}],"rows":[{"cells":["` + canary + `","` + canary + `"]}]}`,
			`{"kind":"Table","columnDefinitions":[{"name":"Password","type":"","format":"","description":"","priority":0}],"rows":[{"cells":["[redacted]","[redacted]"]}]}`, false},
		{"a Table whose columns come too late", `{"kind":"Table","rows":[{"cells":["` + canary + `"]}],"columnDefinitions":` + columns + `}`,
			`{"kind":"Table","rows":[{"cells":["[redacted]"]}],"columnDefinitions":` + columns + `}`, false},
		{"metadata only", `{"kind":"PartialObjectMetadataList","items":[` + fmt.Sprintf(partial, canary) + `]}`, `{"kind":"PartialObjectMetadataList","items":[` + fmt.Sprintf(partial, mask.Text) + `]}`, false},
		{"not found", `{"kind":"Status","status":"Failure","message":"secrets \"x\" not found","reason":"NotFound","details":{"name":"x","kind":"secrets"},"code":404}`,
			`{"kind":"Status","status":"Failure","reason":"NotFound","code":404,"message":"secrets \"x\" not found","details":{"name":"x","kind":"secrets"}}`, false},
		{"an error that quotes the object", `{"kind":"Status","message":"patch: Invalid value: ` + canary64 + `","reason":"Invalid","details":{"causes":[{"reason":"FieldValueInvalid","message":"` + canary64 + `","field":"patch"}]},"code":422}`,
			`{"kind":"Status","reason":"Invalid","code":422,"message":"the cluster refused this; its words could quote values of the Secret and are masked","details":{"causes":[{"reason":"FieldValueInvalid","message":"[redacted]","field":"patch"}]}}`, false},
		{"an error without a reason", `{"kind":"Status","message":"` + canary + `"}`, `{"kind":"Status","message":"the cluster refused this; its words could quote values of the Secret and are masked"}`, false},
		{"an annotation that is no object", `{"kind":"Secret","metadata":{"annotations":{"kubectl.kubernetes.io/last-applied-configuration":"` + canary + `"}}}`,
			`{"kind":"Secret","metadata":{"annotations":{"kubectl.kubernetes.io/last-applied-configuration":"[redacted]"}}}`, false},
		{"an annotation that lies about the initial events", `{"kind":"Secret","metadata":{"annotations":{"k8s.io/initial-events-end":"` + canary + `"}}}`,
			`{"kind":"Secret","metadata":{"annotations":{"k8s.io/initial-events-end":"[redacted]"}}}`, false},
		{"a watch", `{"type":"ADDED","object":` + secret + "}\n" + `{"type":"BOOKMARK","object":{"kind":"Secret","apiVersion":"v1","metadata":{"resourceVersion":"8","creationTimestamp":null,"annotations":{"k8s.io/initial-events-end":"true"}}}}` + "\n" +
			`{"type":"ERROR","object":{"kind":"Status","message":"too old resource version","reason":"Expired","code":410}}`,
			`{"type":"ADDED","object":` + maskedSecret + "}\n" + `{"type":"BOOKMARK","object":{"kind":"Secret","apiVersion":"v1","metadata":{"resourceVersion":"8","annotations":{"k8s.io/initial-events-end":"true"}}}}` + "\n" +
				`{"type":"ERROR","object":{"kind":"Status","reason":"Expired","code":410,"message":"too old resource version"}}`, true},
		{"a watch of a Table names the columns once", `{"type":"ADDED","object":{"kind":"Table","columnDefinitions":` + columns + `,"rows":[{"cells":["a",1]}]}}` + `{"type":"ADDED","object":{"kind":"Table","columnDefinitions":null,"rows":[{"cells":["b",2]}]}}`,
			`{"type":"ADDED","object":{"kind":"Table","columnDefinitions":` + columns + `,"rows":[{"cells":["a",1]}]}}` + "\n" + `{"type":"ADDED","object":{"kind":"Table","columnDefinitions":null,"rows":[{"cells":["b",2]}]}}`, true},
		{"a watch without events", "", "", true},
	}
	for _, row := range rows {
		got, err := copied(row.given, row.live)
		if err != nil {
			t.Errorf("%s: %v", row.name, err)
		}
		if diff := cmp.Diff(row.want, strings.TrimSuffix(got, "\n")); diff != "" {
			t.Errorf("%s (-want +got):\n%s", row.name, diff)
		}
	}
}

// TestUnreadable: what is not understood is not shown, and not quoted.
func TestUnreadable(t *testing.T) {
	for name, given := range map[string]string{
		"nothing": "", "no JSON": canary, "a text": `"` + canary + `"`, "a list": `[` + secret + `]`, "no kind": `{"data":{"a":"` + canary64 + `"}}`,
		"another kind": `{"kind":"ConfigMap","data":{"a":"` + canary + `"}}`, "cut": secret[:len(secret)-9], "two objects": secret + secret,
		"data that is no object": `{"kind":"Secret","data":"` + canary64 + `"}`, "metadata that is none": `{"kind":"Secret","metadata":"` + canary + `"}`,
		"items that are none": `{"kind":"SecretList","items":{"a":"` + canary + `"}}`, "an item that is none": `{"kind":"SecretList","items":["` + canary + `"]}`,
		"labels that are no text": `{"kind":"Secret","metadata":{"labels":{"a":{"b":"` + canary + `"}}}}`, "a number as the kind": `{"kind":5}`,
		"too deep":     strings.Repeat(`{"object":`, 9) + secret + strings.Repeat("}", 9),
		"an event":     `{"type":"ADDED","object":{"kind":"ConfigMap"}}`,
		"one too long": `{"kind":"Secret","data":{"a":"` + strings.Repeat("x", 9<<20) + `"}}`,
		"one too long in a field that is left out": `{"kind":"Secret","other":"` + strings.Repeat("x", 9<<20) + `"}`,
	} {
		got, err := copied(given, false)
		var unreadable *mask.UnreadableError
		if !errors.As(err, &unreadable) || strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: got %v", name, err)
		}
		if got != "" {
			t.Errorf("%s: shows %.200s", name, got)
		}
	}
	half := `{"type":"ADDED","object":` + secret + "}\n" + `{"type":"MODIFIED","object":` + secret[:40]
	got, err := copied(half, true)
	if strings.Count(got, "\n") != 1 || !errors.As(err, new(*mask.UnreadableError)) {
		t.Errorf("a watch that was cut shows %s and %v", got, err)
	}
}

// TestErrorsPass: what the reader and the writer say is not taken for a defect of
// the answer.
func TestErrorsPass(t *testing.T) {
	gone := errors.New("gone")
	read := io.MultiReader(strings.NewReader(secret[:50]), iotest.ErrReader(gone))
	if err := mask.Copy(read, false, func([]byte) error { return nil }); !errors.Is(err, gone) {
		t.Errorf("reading: %v", err)
	}
	if err := mask.Copy(strings.NewReader(secret), false, func([]byte) error { return gone }); !errors.Is(err, gone) {
		t.Errorf("writing: %v", err)
	}
}

// TestWatchIsNotHeldBack: an event is out before the next one begins.
func TestWatchIsNotHeldBack(t *testing.T) {
	reader, writer := io.Pipe()
	pieces := make(chan string)
	done := make(chan error)
	go func() {
		done <- mask.Copy(reader, true, func(piece []byte) error { pieces <- string(piece); return nil })
	}()
	for range 3 {
		go func() { _, _ = io.WriteString(writer, `{"type":"ADDED","object":`+secret+"}") }() // without the line's end
		if got := <-pieces; got != `{"type":"ADDED","object":`+maskedSecret+"}\n" {
			t.Errorf("got %s", got)
		}
	}
	_ = writer.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestManyItems: a list is handed on in pieces, in memory that does not grow.
func TestManyItems(t *testing.T) {
	const items = 2_000
	reader, writer := io.Pipe()
	big := strings.Replace(secret, canary64, strings.Repeat("QUJD", 4096), 1) // 16 KiB of value each
	go func() {
		_, _ = io.WriteString(writer, `{"kind":"SecretList","apiVersion":"v1","metadata":{"resourceVersion":"1"},"items":[`)
		for i := range items {
			if i > 0 {
				_, _ = io.WriteString(writer, ",")
			}
			_, _ = io.WriteString(writer, big)
		}
		_, _ = io.WriteString(writer, `]}`)
		_ = writer.Close()
	}()
	largest, total, found := 0, 0, 0
	if err := mask.Copy(reader, false, func(piece []byte) error {
		largest, total, found = max(largest, len(piece)), total+len(piece), found+bytes.Count(piece, []byte(`"name":"db","namespace"`))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if largest > 300<<10 || total < 1<<20 || found != items {
		t.Errorf("%d bytes in pieces of up to %d, %d items", total, largest, found)
	}
}

// TestTypedClients decode what comes out: the mask in data is base64.
func TestTypedClients(t *testing.T) {
	got, err := copied(secret, false)
	var typed corev1.Secret
	if err := errors.Join(err, json.Unmarshal([]byte(got), &typed)); err != nil {
		t.Fatal(err)
	}
	if string(typed.Data["password"]) != mask.Text || typed.Labels["app"] != "db" || typed.ManagedFields != nil || !*typed.Immutable {
		t.Errorf("%+v", typed)
	}
}

// TestAccept: whatever a client wants, JSON is asked for, in the form it wants.
func TestAccept(t *testing.T) {
	for wish, want := range map[string]string{
		"":                                    "application/json",
		"*/*":                                 "application/json",
		"text/html":                           "application/json",
		";;":                                  "application/json",
		"application/yaml":                    "application/json",
		"application/vnd.kubernetes.protobuf": "application/json",
		"application/vnd.kubernetes.protobuf;stream=watch,application/json":                               "application/json, application/json",
		"application/json;as=Table;v=v1;g=meta.k8s.io,application/json":                                   "application/json; as=Table; g=meta.k8s.io; v=v1, application/json",
		"application/cbor;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1;q=0.9,application/json;x=1,a/b": "application/json; as=PartialObjectMetadataList; g=meta.k8s.io; q=0.9; v=v1, application/json",
	} {
		if got := mask.Accept([]string{wish}); got != want {
			t.Errorf("%q: got %q, want %q", wish, got, want)
		}
	}
	for _, row := range []struct {
		media, encoding string
		want            bool
	}{
		{"application/json", "", true}, {"application/json;charset=utf-8", "identity", true}, {"", "", false}, {"application/json", "gzip", false},
		{"application/yaml", "", false}, {"application/vnd.kubernetes.protobuf", "", false}, {"text/plain", "", false},
	} {
		if got := mask.Readable(row.media, row.encoding); got != row.want {
			t.Errorf("%q %q: %v", row.media, row.encoding, got)
		}
	}
}

// FuzzCopy: whatever the answer is, no value of a Secret in it comes out, and
// what comes out whole is JSON that stays as it is when it is masked again.
func FuzzCopy(f *testing.F) {
	for _, seed := range []string{secret, `{"kind":"SecretList","items":[` + secret + `]}`, `{"type":"ADDED","object":` + secret + `}`,
		`{"kind":"Table","columnDefinitions":` + columns + `,"rows":[{"cells":["db"],"object":` + secret + `}]}`,
		`{"kind":"Status","message":"x","reason":"NotFound","details":{"causes":[{"message":"x"}]}}`, `{"Data":{"a":1},"DATA":null,"kind":"Secret"}`} {
		f.Add([]byte(seed), false)
		f.Add([]byte(seed), true)
	}
	f.Fuzz(func(t *testing.T, given []byte, live bool) {
		first, err := copied(planted(given), live)
		if strings.Contains(first, planting) {
			t.Errorf("shows a value: %s of %s", first, planted(given))
		}
		if err != nil {
			return
		}
		second, err := copied(first, live)
		if err != nil || second != first {
			t.Errorf("%s becomes %s, %v", first, second, err)
		}
	})
}

const planting = "PLANTED-VALUE"

// planted puts a value behind every key that may hold one, at any depth.
func planted(given []byte) string {
	var value any
	if json.Unmarshal(given, &value) != nil {
		return string(given)
	}
	encoded, err := json.Marshal(plant(value, false))
	if err != nil {
		return string(given)
	}
	return string(encoded)
}

func plant(value any, hidden bool) any {
	switch value := value.(type) {
	case map[string]any:
		for name, below := range value {
			// Metadata below data is a value like any other.
			value[name] = plant(below, hidden || name == "data" || name == "stringData" || name == "annotations" || name == "managedFields")
		}
	case []any:
		for i := range value {
			value[i] = plant(value[i], hidden)
		}
	case string:
		if hidden {
			return planting
		}
	}
	return value
}
