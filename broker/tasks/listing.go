package tasks

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
)

// pieces is a body that is made piece by piece, each when it is asked for, so
// that a long list never is in memory whole.
type pieces struct {
	io.Closer
	// next adds to the buffer, or returns io.EOF when there is no more.
	next   func(*bytes.Buffer) error
	buffer bytes.Buffer
	err    error
}

// Read returns the next piece. An answer of the control cluster that breaks off
// is an error here, too.
func (p *pieces) Read(to []byte) (int, error) {
	for p.buffer.Len() == 0 && p.err == nil {
		p.err = p.next(&p.buffer)
	}
	if p.buffer.Len() > 0 {
		return p.buffer.Read(to)
	}
	return 0, p.err
}

// listing rewrites a list, or the rows of a Table, on its way.
type listing struct {
	view    *view
	decoder *json.Decoder
	array   string // the field the elements are in
	inside  bool   // … the array
	started bool
	written int // fields, or elements while inside
}

func newListing(from io.ReadCloser, v *view) io.ReadCloser {
	l := &listing{view: v, decoder: newDecoder(from), array: "items"}
	if v.form == table {
		l.array = "rows"
	}
	return &pieces{Closer: from, next: l.next}
}

// next writes the next field or element.
func (l *listing) next(to *bytes.Buffer) error {
	switch {
	case !l.started:
		l.started = true
		to.WriteByte('{')
		return l.expect('{')
	case l.inside:
		return l.element(to)
	}
	if !l.decoder.More() {
		if _, err := l.decoder.Token(); err != nil {
			return unexpected(err)
		}
		to.WriteString("}\n")
		return io.EOF
	}
	return l.field(to)
}

func (l *listing) field(to *bytes.Buffer) error {
	token, err := l.decoder.Token()
	if err != nil {
		return unexpected(err)
	}
	name, _ := token.(string)
	if name == l.array {
		l.begin(to, name)
		return l.open(to)
	}
	var value any
	if err := l.decoder.Decode(&value); err != nil {
		return unexpected(err)
	}
	if !slices.Contains([]string{"kind", "apiVersion", "metadata", "columnDefinitions"}, name) {
		return nil // lists have no other fields; one that nobody knows is not passed on
	}
	l.begin(to, name)
	return l.add(to, l.head(name, value))
}

func (l *listing) begin(to *bytes.Buffer, name string) {
	if l.written++; l.written > 1 {
		to.WriteByte(',')
	}
	fmt.Fprintf(to, "%q:", name)
}

// open begins the array; an empty one may be written as null.
func (l *listing) open(to *bytes.Buffer) error {
	token, err := l.decoder.Token()
	switch {
	case err != nil:
		return unexpected(err)
	case token == nil:
		to.WriteString("[]")
		return nil
	case token != json.Delim('['):
		return fmt.Errorf("the control cluster answered %v where a list was expected", token)
	}
	l.inside, l.written = true, 0
	to.WriteByte('[')
	return nil
}

// head is a field of the list itself. How many objects there are more of is not
// for the agent to know: some may be somebody else's.
func (l *listing) head(name string, value any) any {
	switch {
	case name == "metadata":
		return only(value, []string{"resourceVersion", "continue"})
	case name == "kind" && l.view.form == metadata:
		return "PartialObjectMetadataList"
	case name == "apiVersion" && l.view.form == metadata:
		return "meta.k8s.io/v1"
	}
	return value
}

func (l *listing) element(to *bytes.Buffer) error {
	if !l.decoder.More() {
		l.inside, l.written = false, 1
		to.WriteByte(']')
		return l.expect(']')
	}
	var object map[string]any
	if err := l.decoder.Decode(&object); err != nil {
		return unexpected(err)
	}
	shown, ok := l.view.show(object)
	if l.view.form == table {
		shown, ok = l.view.row(object)
	}
	if !ok {
		return nil
	}
	if l.written++; l.written > 1 {
		to.WriteByte(',')
	}
	return l.add(to, shown)
}

func (l *listing) add(to *bytes.Buffer, value any) error {
	encoded, err := encode(value)
	to.Write(bytes.TrimSuffix(encoded, []byte("\n")))
	return err
}

func (l *listing) expect(delimiter json.Delim) error {
	token, err := l.decoder.Token()
	if err != nil {
		return unexpected(err)
	}
	if token != delimiter {
		return fmt.Errorf("the control cluster answered %v where %v was expected", token, delimiter)
	}
	return nil
}

// unexpected makes the end of the input an error: what is read here has an end
// of its own.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
