package bench

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// WriteJSON writes everything, each round included.
func WriteJSON(to io.Writer, r *Report) error {
	encoder := json.NewEncoder(to)
	encoder.SetIndent("", " ")
	if err := encoder.Encode(r); err != nil {
		return fmt.Errorf("writing the results as JSON: %w", err)
	}
	return nil
}

// WriteFiles writes last.md and last.json.
func WriteFiles(r *Report, folder string) error {
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return fmt.Errorf("making the folder for results: %w", err)
	}
	if err := os.WriteFile(filepath.Join(folder, "last.md"), []byte(r.Markdown()), 0o644); err != nil {
		return fmt.Errorf("writing the results: %w", err)
	}
	file, err := os.Create(filepath.Join(folder, "last.json"))
	if err != nil {
		return fmt.Errorf("writing the results: %w", err)
	}
	return errors.Join(WriteJSON(file, r), file.Close())
}

// The lines of a published file between which the table stands.
const (
	tableBegin = "<!-- the table: begin -->"
	tableEnd   = "<!-- the table: end -->"
)

// Publish replaces the table in a file.
func Publish(r *Report, path string) error {
	content, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("reading the file to publish in: %w", err)
	}
	published, err := replaceTable(string(content), r.Markdown())
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if err := os.WriteFile(path, []byte(published), 0o644); err != nil {
		return fmt.Errorf("publishing the table: %w", err)
	}
	return nil
}

func replaceTable(content, table string) (string, error) {
	before, rest, begins := strings.Cut(content, tableBegin)
	_, after, ends := strings.Cut(rest, tableEnd)
	if !begins || !ends {
		return "", fmt.Errorf("there is no place for the table, between %q and %q", tableBegin, tableEnd)
	}
	return before + tableBegin + "\n" + table + tableEnd + after, nil
}
