package mask

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

const (
	// maxObject bounds one object, in bytes of JSON: far more than the API server
	// takes, and than etcd holds.
	maxObject = 8 << 20
	// pieceSize is how much of a list is held back, so that most answers are
	// written whole or not at all.
	pieceSize = 256 << 10
	// maxDepth is that of a watch event with a Table: event, table, row, object.
	maxDepth = 5
)

// UnreadableError says where an answer could not be understood. It never quotes
// the answer.
type UnreadableError struct{ Offset int64 }

func (e *UnreadableError) Error() string {
	return fmt.Sprintf("the answer cannot be read as Secrets at byte %d", e.Offset)
}

// errUnreadable is what the steps of the walk return; Copy says where it was.
var errUnreadable = errors.New("unreadable")

// Copy reads the answer to a call on Secrets, and hands it on, masked, in pieces
// that are valid only during the call. With live set the answer is a watch, and
// each event is one piece.
//
// It returns nil at the proper end of the answer, an error of to or from as it
// is, and an *UnreadableError for everything else, after which nothing more may
// be taken for the answer.
func Copy(from io.Reader, live bool, to func(piece []byte) error) error {
	in := &bounded{from: from}
	m := &masker{in: in, decoder: json.NewDecoder(in), to: to, live: live}
	m.decoder.UseNumber()
	err := m.documents()
	switch {
	case err == nil, m.refused != nil:
		return m.refused
	case in.failed != nil:
		return in.failed
	}
	return &UnreadableError{m.decoder.InputOffset()}
}

// bounded reads at most left bytes, and remembers why it could not.
type bounded struct {
	from   io.Reader
	left   int
	failed error // of the reader below; nil at its end
}

// Read implements io.Reader.
func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, errUnreadable
	}
	n, err := b.from.Read(p[:min(len(p), b.left)])
	b.left -= n
	if err != nil && err != io.EOF {
		b.failed = err
	}
	return n, err
}

type masker struct {
	in      *bounded
	decoder *json.Decoder
	out     bytes.Buffer
	to      func([]byte) error
	live    bool
	refused error    // what to returned
	columns []string // of the Table, once it named them
}

// documents masks one object, or the events of a watch until there are no more.
func (m *masker) documents() error {
	for {
		m.in.left = maxObject
		token, err := m.decoder.Token()
		switch {
		case err == io.EOF && m.live:
			return nil
		case err != nil:
			return err
		case token != json.Delim('{'):
			return errUnreadable
		}
		kind, err := m.object(1)
		if err != nil {
			return err
		}
		if !known(kind) {
			return errUnreadable
		}
		m.out.WriteByte('\n')
		if !m.live {
			if err := m.end(); err != nil {
				return err
			}
			return m.release()
		}
		if err := m.release(); err != nil {
			return err
		}
	}
}

// end makes sure that nothing follows.
func (m *masker) end() error {
	if _, err := m.decoder.Token(); err != io.EOF {
		return errUnreadable
	}
	return nil
}

// known are the kinds of answers to calls on Secrets. What else there might be
// would come out without its fields; a client is better told.
func known(kind string) bool {
	switch kind {
	case "Secret", "SecretList", "Table", "PartialObjectMetadata", "PartialObjectMetadataList", "Status":
		return true
	}
	return false
}

// release hands on what is ready.
func (m *masker) release() error {
	if m.out.Len() > 0 {
		if m.refused = m.to(m.out.Bytes()); m.refused != nil {
			return m.refused
		}
	}
	m.out.Reset()
	if m.out.Cap() > 2*pieceSize {
		m.out = bytes.Buffer{} // one large event must not be held for ever
	}
	return nil
}
