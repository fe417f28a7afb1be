package broker

import (
	"reflect"
	"strings"
	"testing"
)

func aCall() callElements {
	return callElements{
		cluster: "one", agent: alphaID, grantUID: "g-1", verb: "delete", group: "apps", version: "v1", resource: "deployments",
		subresource: "scale", namespace: "shop", name: "web", query: "a=b", mediaType: "application/json", body: []byte(`{"a":1}`),
		exec: []string{"container", "ls", "-l"}, targetUID: "u-1", targetVersion: "7",
	}
}

// TestDigestElements changes one element at a time, by reflection: a field that is
// added and not hashed fails here.
func TestDigestElements(t *testing.T) {
	seen := map[string]string{}
	note := func(what string, e callElements) {
		digest := e.digest()
		if before, found := seen[digest]; found {
			t.Errorf("%s has the digest of %s", what, before)
		}
		seen[digest] = what
	}
	unchanged := aCall()
	note("the call", unchanged)
	kind := reflect.TypeOf(unchanged)
	for i := range kind.NumField() {
		field := kind.Field(i).Name
		for _, change := range []string{"longer", "shorter", "empty"} {
			e := aCall()
			alter(t, &e, field, change)
			note(field+" "+change, e)
		}
	}
	again := aCall()
	if seen[again.digest()] != "the call" {
		t.Error("the same call has two digests")
	}
}

func alter(t *testing.T, e *callElements, field, change string) {
	t.Helper()
	text := map[string]*string{
		"cluster": &e.cluster, "agent": &e.agent, "grantUID": &e.grantUID, "verb": &e.verb, "group": &e.group, "version": &e.version,
		"resource": &e.resource, "subresource": &e.subresource, "namespace": &e.namespace, "name": &e.name, "query": &e.query,
		"mediaType": &e.mediaType, "targetUID": &e.targetUID, "targetVersion": &e.targetVersion,
	}[field]
	switch {
	case text != nil:
		*text = map[string]string{"longer": *text + "x", "shorter": (*text)[:len(*text)-1] + "\x00", "empty": ""}[change]
	case field == "body":
		e.body = map[string][]byte{"longer": append(e.body, ' '), "shorter": e.body[1:], "empty": nil}[change]
	case field == "exec":
		e.exec = map[string][]string{"longer": {"container", "-l", "ls"}, "shorter": {"container", "ls -l"}, "empty": nil}[change]
	default:
		t.Fatalf("the field %s is not known to this test", field)
	}
}

// TestDigestBoundaries moves bytes from one element into its neighbour.
func TestDigestBoundaries(t *testing.T) {
	one, other := aCall(), aCall()
	one.namespace, one.name = "ab", "c"
	other.namespace, other.name = "a", "bc"
	if one.digest() == other.digest() {
		t.Error("namespace and name run into each other")
	}
	one, other = aCall(), aCall()
	one.exec, one.targetUID = []string{"a"}, "b"
	other.exec, other.targetUID = []string{"a", "b"}, ""
	if one.digest() == other.digest() {
		t.Error("the exec parameters run into the UID")
	}
	if one.digest() != strings.ToLower(one.digest()) || len(one.digest()) != 64 {
		t.Error("not 64 hexadecimal digits")
	}
}

// FuzzDigest splits bytes into elements in two ways: only the same split may have
// the same digest.
func FuzzDigest(f *testing.F) {
	f.Add([]byte("deletenamespacesshop"), uint8(3), uint8(9), uint8(3), uint8(10))
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 1, 'a'}, uint8(0), uint8(8), uint8(1), uint8(9))
	f.Fuzz(func(t *testing.T, data []byte, a, b, c, d uint8) {
		one, other := split(data, a, b), split(data, c, d)
		same := one.namespace == other.namespace && one.name == other.name && string(one.body) == string(other.body)
		if same != (one.digest() == other.digest()) {
			t.Errorf("%q %q %q and %q %q %q", one.namespace, one.name, one.body, other.namespace, other.name, other.body)
		}
	})
}

func split(data []byte, a, b uint8) callElements {
	first := min(int(a), len(data))
	second := min(max(first, int(b)), len(data))
	return callElements{namespace: string(data[:first]), name: string(data[first:second]), body: data[second:]}
}
