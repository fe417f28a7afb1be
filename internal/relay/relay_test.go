package relay_test

import (
	"bytes"
	"errors"
	"io"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/taskgate/taskgate/internal/relay"
)

// sizes keeps how large the reads were that a body was asked for.
type sizes struct {
	io.Reader
	asked []int
}

func (s *sizes) Read(to []byte) (int, error) {
	s.asked = append(s.asked, len(to))
	return s.Reader.Read(to)
}

// TestBodyIsWhole, in whatever pieces it comes.
func TestBodyIsWhole(t *testing.T) {
	text := strings.Repeat("0123456789abcdef", 20<<10)
	for _, live := range []bool{false, true} {
		for name, from := range map[string]io.Reader{
			"at once": strings.NewReader(text), "halves": iotest.HalfReader(strings.NewReader(text)),
			"bytes": iotest.OneByteReader(strings.NewReader(text)), "end with data": iotest.DataErrReader(strings.NewReader(text)),
		} {
			to, tapped := httptest.NewRecorder(), new(bytes.Buffer)
			n, err := relay.Body(to, from, live, func(piece []byte) error { tapped.Write(piece); return nil })
			if err != nil || n != int64(len(text)) || to.Body.String() != text || tapped.String() != text {
				t.Errorf("%s, live %v: %d bytes, %v", name, live, n, err)
			}
			if to.Flushed != live {
				t.Errorf("%s, live %v: flushed %v", name, live, to.Flushed)
			}
		}
	}
}

// TestBodyEnds with the error of whoever has one, and what tap refuses does not
// go out.
func TestBodyEnds(t *testing.T) {
	broken := errors.New("broken")
	for _, live := range []bool{false, true} {
		to := httptest.NewRecorder()
		if n, err := relay.Body(to, io.MultiReader(strings.NewReader("abc"), iotest.ErrReader(broken)), live, nil); err != broken || n != 3 {
			t.Errorf("reading, live %v: %d bytes, %v", live, n, err)
		}
		to = httptest.NewRecorder()
		if n, err := relay.Body(to, strings.NewReader("abc"), live, func([]byte) error { return broken }); err != broken || n != 0 || to.Body.Len() > 0 {
			t.Errorf("tap, live %v: %d bytes, %v", live, n, err)
		}
	}
}

// TestIdleBuffer: a stream waits with a small buffer, and takes what comes at
// once with a large one.
func TestIdleBuffer(t *testing.T) {
	from := &sizes{Reader: io.MultiReader(strings.NewReader(strings.Repeat("x", 5000)), strings.NewReader("y"))}
	if _, err := relay.Body(httptest.NewRecorder(), from, true, nil); err != nil {
		t.Fatal(err)
	}
	if small := from.asked[0]; small > 512 || len(from.asked) != 4 || from.asked[1] <= 5000 || from.asked[2] != small {
		t.Errorf("read with buffers of %v", from.asked)
	}
}
