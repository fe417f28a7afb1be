package mask

import (
	"encoding/json"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// object masks what follows an opening brace. It returns the kind of the object,
// or that of the object in a watch event.
func (m *masker) object(depth int) (kind string, err error) {
	if depth > maxDepth {
		return "", errUnreadable
	}
	m.out.WriteByte('{')
	separator, said := "", words{}
	for m.decoder.More() {
		token, err := m.decoder.Token()
		if err != nil {
			return "", err
		}
		name, _ := token.(string) // the decoder takes nothing else for a key
		if taken, err := said.take(m, name); err != nil {
			return "", err
		} else if taken {
			continue
		}
		if !shown(name) {
			if err := m.decoder.Decode(new(ignored)); err != nil {
				return "", err
			}
			continue
		}
		m.out.WriteString(separator + `"` + name + `":`) // one of the names listed: plain letters
		separator = ","
		text, err := m.member(name, depth)
		if err != nil {
			return "", err
		}
		switch name {
		case "kind", "object":
			kind = text
		case "reason":
			said.reason = text
		}
	}
	if err := said.write(m, separator); err != nil {
		return "", err
	}
	return kind, m.close('}')
}

// close reads and writes a closing delimiter. What is there instead at the end of
// an answer that was cut is an error.
func (m *masker) close(delimiter byte) error {
	token, err := m.decoder.Token()
	if err == nil && token != json.Delim(delimiter) {
		return errUnreadable
	}
	m.out.WriteByte(delimiter)
	return err
}

// shown reports whether a field is shown at all.
func shown(name string) bool {
	return name == "items" || name == "rows" || name == "object" || newField(name) != nil
}

// member masks one field. It returns the text of one that is a text, and of an
// object in an event or in a row its kind.
func (m *masker) member(name string, depth int) (text string, err error) {
	switch name {
	case "items", "rows":
		return "", m.list(depth)
	case "object":
		return m.optional(depth)
	}
	field := newField(name)
	if err := m.decoder.Decode(field); err != nil {
		return "", err
	}
	switch field := field.(type) {
	case *string:
		text = *field
	case *[]any:
		m.maskCells(*field)
	case *[]metav1.TableColumnDefinition:
		m.learn(*field)
	}
	encoded, err := json.Marshal(field)
	m.out.Write(encoded)
	return text, err
}

// learn keeps the names of the columns. The later events of a watch leave the
// definitions out; they mean those of the first.
func (m *masker) learn(definitions []metav1.TableColumnDefinition) {
	if definitions == nil {
		return
	}
	m.columns = nil
	for i := range definitions {
		m.columns = append(m.columns, definitions[i].Name)
	}
}

// list masks the elements of a list one by one, and hands on what has gathered.
func (m *masker) list(depth int) error {
	token, err := m.decoder.Token()
	switch {
	case err != nil:
		return err
	case token == nil:
		m.out.WriteString("null")
		return nil
	case token != json.Delim('['):
		return errUnreadable
	}
	m.out.WriteByte('[')
	for first := true; m.decoder.More(); first = false {
		if !first {
			m.out.WriteByte(',')
		}
		m.in.left = maxObject
		if _, err := m.optional(depth); err != nil {
			return err
		}
		if !m.live && m.out.Len() >= pieceSize {
			if err := m.release(); err != nil {
				return err
			}
		}
	}
	return m.close(']')
}

// optional masks an object that may be missing.
func (m *masker) optional(depth int) (kind string, err error) {
	token, err := m.decoder.Token()
	switch {
	case err != nil:
		return "", err
	case token == nil:
		m.out.WriteString("null")
		return "", nil
	case token != json.Delim('{'):
		return "", errUnreadable
	}
	return m.object(depth + 1)
}
