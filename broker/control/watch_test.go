package control

import (
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/json"

	"github.com/taskgate/taskgate/api/v1alpha1"
)

func decoderOf(text string) *grantDecoder {
	body := io.NopCloser(strings.NewReader(text))
	return &grantDecoder{body: body, events: json.NewDecoderCaseSensitivePreserveInts(body)}
}

const someGrant = `{"apiVersion":"taskgate.dev/v1alpha1","kind":"TaskGrant","metadata":{"name":"g","uid":"u","resourceVersion":"7","annotations":{"a":"b"},"creationTimestamp":"2026-11-23T12:00:00Z"},` +
	`"spec":{"agent":"spiffe://example.org/a","task":"t","ttl":"30m","policy":"shop","rules":[{"namespaces":["shop"],"apiGroups":[""],"resources":["pods"],"verbs":["get"]}]},` +
	`"status":{"digest":"d","activeFrom":"2026-11-23T12:00:00.000001Z","conditions":[{"type":"Active","status":"True","reason":"Active","message":"m","lastTransitionTime":"2026-11-23T12:00:00Z"}]}}`

func TestGrantEvents(t *testing.T) {
	var want v1alpha1.TaskGrant
	if err := json.UnmarshalCaseSensitivePreserveInts([]byte(someGrant), &want); err != nil {
		t.Fatal(err)
	}
	text, kinds := "", []watch.EventType{watch.Added, watch.Modified, watch.Deleted, watch.Bookmark}
	for _, kind := range kinds {
		text += `{"type":"` + string(kind) + `","object":` + someGrant + "}\n"
	}
	decoder := decoderOf(text)
	for _, kind := range kinds {
		got, object, err := decoder.Decode()
		if err != nil || got != kind {
			t.Fatalf("got %s (%v), want %s", got, err, kind)
		}
		if diff := cmp.Diff(&want, object); diff != "" {
			t.Errorf("%s:\n%s", kind, diff)
		}
	}
	if _, _, err := decoder.Decode(); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
}

// TestGrantWatchEnds: what the reflector has to know of an end reaches it.
func TestGrantWatchEnds(t *testing.T) {
	gone := `{"type":"ERROR","object":{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"too old resource version: 1 (2)","reason":"Expired","code":410}}`
	kind, object, err := decoderOf(gone).Decode()
	if kind != watch.Error || err != nil || !apierrors.IsResourceExpired(apierrors.FromObject(object)) {
		t.Errorf("got %s %v (%v)", kind, object, err)
	}
	for name, text := range map[string]string{
		"unknown type":  `{"type":"REPLACED","object":` + someGrant + `}`,
		"no type":       `{"object":` + someGrant + `}`,
		"cut off":       `{"type":"ADDED","object":` + someGrant[:len(someGrant)/2],
		"other content": `{"type":"ADDED","object":{"spec":{"task":7}}}`,
		"a status":      `{"type":"ADDED","object":{"kind":"Status","status":"Failure"}}`,
		"no JSON":       `upstream connect error`,
	} {
		if kind, object, err := decoderOf(text).Decode(); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("%s: got %s %v (%v)", name, kind, object, err)
		}
	}
}
