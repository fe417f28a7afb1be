// Command images makes the container images of taskgate from the programs in a
// folder, and prints their digests: images PROGRAMS TARGET [TAG].
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/taskgate/taskgate/e2e/internal/images"
)

// registry is where the images would be published.
const registry = "images.example/taskgate/"

func main() {
	if len(os.Args) < 3 || len(os.Args) > 4 {
		fmt.Fprintln(os.Stderr, "usage: images PROGRAMS TARGET [TAG]")
		os.Exit(2)
	}
	tag := "dev"
	if len(os.Args) == 4 {
		tag = os.Args[3]
	}
	if err := run(os.Args[1], os.Args[2], tag); err != nil {
		fmt.Fprintln(os.Stderr, "images:", err)
		os.Exit(1)
	}
}

func run(programs, target, tag string) error {
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	for _, program := range []string{"sidecar", "broker", "taskgate"} {
		image, err := images.Build(images.File{Path: program, Source: filepath.Join(programs, program)})
		if err != nil {
			return err
		}
		name := registry + program
		if err := images.Write(filepath.Join(target, program+".tar"), name+":"+tag, image); err != nil {
			return err
		}
		digest, err := image.Digest()
		if err != nil {
			return fmt.Errorf("reading the digest of %s: %w", name, err)
		}
		fmt.Printf("%s@%s\n", name, digest)
	}
	return nil
}
