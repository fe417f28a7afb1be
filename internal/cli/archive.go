package cli

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"

	"github.com/taskgate/taskgate/internal/inert"
	"github.com/taskgate/taskgate/recorder"
)

// archived is one file that was copied.
type archived struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256,omitempty"` // of a regular file
	Link   string `json:"link,omitempty"`
}

// errNoArchive says that what passed is not a tar to its end. What could be read
// of it is right all the same.
var errNoArchive = errors.New("it is no archive from here on")

// maxFiles bounds what is listed of one copy.
const maxFiles = 100_000

// files lists the archive that passed on a channel.
func files(all frames, channel recorder.Channel) ([]archived, error) {
	source := newChannelReader(all, channel, 0)
	defer source.stop()
	var found []archived
	reader := tar.NewReader(source)
	for {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			_, err = io.Copy(io.Discard, source) // tells what is missing
			return found, err
		}
		var sum string
		if err == nil && header.Typeflag == tar.TypeReg {
			hash := sha256.New()
			_, err = io.Copy(hash, reader)
			sum = hex.EncodeToString(hash.Sum(nil))
		}
		switch {
		case err != nil && source.err != nil && !errors.Is(source.err, io.EOF):
			return found, source.err
		case err != nil:
			return found, fmt.Errorf("%w: %w", errNoArchive, err)
		case len(found) == maxFiles:
			return found, fmt.Errorf("there are more than %d files", maxFiles)
		}
		found = append(found, archived{Name: header.Name, Size: header.Size, SHA256: sum, Link: header.Linkname})
	}
}

// printFiles shows a copy as its files.
func printFiles(out io.Writer, s *session, channel recorder.Channel, all frames) error {
	p := &printer{out: out}
	direction := "from the pod"
	if channel == recorder.Stdin {
		direction = "to the pod"
	}
	p.line("%s", inert.Line(s.what()))
	list, err := files(all, channel)
	p.line("copied %s: %s", direction, count(len(list), "file"))
	for _, f := range list {
		line := fmt.Sprintf("  %s  %d bytes", f.Name, f.Size)
		if f.SHA256 != "" {
			line += "  sha256 " + f.SHA256
		}
		if f.Link != "" {
			line += "  link to " + f.Link
		}
		p.line("%s", inert.Line(line))
	}
	return errors.Join(p.err, err)
}
