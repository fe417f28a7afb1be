package inert

import (
	"fmt"
	"slices"
	"strings"
	"unicode"
)

// lookalikes are the Cyrillic and Greek letters that fonts draw like Latin ones.
const lookalikes = "аеорсухіјѕԁԛԝһӏАВЕКМНОРСТУХІЈЅԌԚԜΑΒΕΖΗΙΚΜΝΟΡΤΥΧονρι"

// mostSuspicions keeps one text from filling the screen with them.
const mostSuspicions = 5

// Suspicious names the words of a text that may not be what they look like: words
// of letters of several scripts, and words of another script that consist of
// letters that look Latin. Each is a sentence of its own, inert.
func Suspicious(text string) []string {
	var found []string
	for _, word := range strings.FieldsFunc(text, func(r rune) bool { return !unicode.In(r, unicode.L, unicode.M, unicode.Nd) }) {
		problem := suspicion(word)
		if problem == "" || slices.Contains(found, problem) {
			continue
		}
		if len(found) == mostSuspicions {
			return append(found, "there are more words like these")
		}
		found = append(found, problem)
	}
	return found
}

func suspicion(word string) string {
	scripts, latinLooking := map[string]bool{}, true
	for _, r := range word {
		script := scriptOf(r)
		if script == "" {
			continue
		}
		scripts[script] = true
		latinLooking = latinLooking && strings.ContainsRune(lookalikes, r)
	}
	var names []string
	for name := range scripts {
		names = append(names, name)
	}
	slices.Sort(names)
	switch {
	case len(names) > 1:
		return fmt.Sprintf("%q mixes %s letters (%s)", Short(word, 64), strings.Join(names, " and "), ascii(word))
	case len(names) == 1 && names[0] != "Latin" && latinLooking:
		return fmt.Sprintf("%q is written in %s letters that look like Latin ones (%s)", Short(word, 64), names[0], ascii(word))
	}
	return ""
}

// scriptOf is the script of a letter, empty for what all scripts share. The
// scripts Japanese, Korean and Chinese are written in at once count as one.
func scriptOf(r rune) string {
	if r < 0x80 {
		if unicode.IsLetter(r) {
			return "Latin"
		}
		return ""
	}
	for name, table := range unicode.Scripts {
		if !unicode.Is(table, r) {
			continue
		}
		switch name {
		case "Common", "Inherited":
			return ""
		case "Han", "Hiragana", "Katakana", "Bopomofo", "Hangul":
			return "East Asian"
		}
		return name
	}
	return ""
}

// ascii writes a word so that every letter that is not ASCII can be told.
func ascii(word string) string {
	shown, whole := Cut(word, 64)
	var out strings.Builder
	for _, r := range shown {
		if r < 0x80 {
			out.WriteRune(r)
		} else {
			writeEscape(&out, r)
		}
	}
	if !whole {
		out.WriteString("…")
	}
	return out.String()
}
