package recorder

import (
	"bytes"
	"encoding/base64"
	"math/rand/v2"
	"testing"
)

// TestBase64IsTheStandards: whatever the length and the bytes, the fast encoding is
// the one of the standard library.
func TestBase64IsTheStandards(t *testing.T) {
	for size := range 2000 {
		data := make([]byte, size)
		for i := range data {
			data[i] = byte(rand.Uint32())
		}
		prefix := []byte("before")[:rand.IntN(7)]
		got, want := appendBase64(bytes.Clone(prefix), data), base64.StdEncoding.AppendEncode(bytes.Clone(prefix), data)
		if !bytes.Equal(got, want) {
			t.Fatalf("%d bytes: %s, want %s", size, got, want)
		}
	}
}
