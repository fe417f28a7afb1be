package testbed

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
)

// The images of the real node. No registry has them: a pod needs the pull policy
// Never, or IfNotPresent.
const (
	// ToolsImage has busybox under all its names: sh, sleep, cat, tar, nc and so on.
	ToolsImage = "localhost/taskgate-tools:dev"
	// PauseImage keeps the namespaces of a pod.
	PauseImage = "localhost/pause:dev"
)

const busybox = "busybox"

// checkBusybox answers nil when there is a busybox that needs no libraries.
func checkBusybox() error {
	path, err := exec.LookPath(busybox)
	if err != nil {
		return err
	}
	program, err := elf.Open(path)
	if err != nil {
		return fmt.Errorf("reading %s: %w", path, err)
	}
	defer func() { _ = program.Close() }() // only read
	for _, segment := range program.Progs {
		if segment.Type == elf.PT_INTERP {
			return fmt.Errorf("%s is not linked statically", path)
		}
	}
	return nil
}

// writeImages writes an archive with both images, in the format of docker save.
// They have the same one layer.
func writeImages(ctx context.Context, path string) error {
	layer, err := toolsLayer(ctx)
	if err != nil {
		return err
	}
	files := []entry{{name: "layer.tar", mode: 0o644, content: layer}}
	var manifest []object
	for name, command := range map[string][]string{ToolsImage: {"/bin/sh"}, PauseImage: {"/bin/sleep", "infinity"}} {
		configuration, err := json.Marshal(imageConfiguration(layer, command))
		if err != nil {
			return fmt.Errorf("encoding the configuration of %s: %w", name, err)
		}
		file := digest(configuration) + ".json"
		files = append(files, entry{name: file, mode: 0o644, content: configuration})
		manifest = append(manifest, object{"Config": file, "RepoTags": []string{name}, "Layers": []string{"layer.tar"}})
	}
	encoded, err := json.Marshal(manifest)
	if err != nil {
		return fmt.Errorf("encoding the manifest of the images: %w", err)
	}
	content, err := archive(append(files, entry{name: "manifest.json", mode: 0o644, content: encoded}))
	if err != nil {
		return err
	}
	if err := os.WriteFile(path, content, 0o644); err != nil {
		return fmt.Errorf("writing the images: %w", err)
	}
	return nil
}

func imageConfiguration(layer []byte, command []string) object {
	return object{
		"architecture": runtime.GOARCH, "os": "linux",
		"config": object{"Cmd": command, "Env": []string{"PATH=/bin"}, "WorkingDir": "/"},
		"rootfs": object{"type": "layers", "diff_ids": []string{"sha256:" + digest(layer)}},
	}
}

// toolsLayer is the files of the images: busybox, a link for each of its names,
// and the little else that programs expect.
func toolsLayer(ctx context.Context) ([]byte, error) {
	path, err := exec.LookPath(busybox)
	if err != nil {
		return nil, fmt.Errorf("finding busybox for the images: %w", err)
	}
	program, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading busybox for the images: %w", err)
	}
	names, err := exec.CommandContext(ctx, path, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("asking busybox for its names: %w", err)
	}
	files := []entry{
		{name: "bin/", mode: 0o755}, {name: "etc/", mode: 0o755}, {name: "root/", mode: 0o700}, {name: "tmp/", mode: 0o1777},
		{name: "etc/passwd", mode: 0o644, content: []byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n")},
		{name: "etc/group", mode: 0o644, content: []byte("root:x:0:\nnobody:x:65534:\n")},
		// Without it a program that is linked statically looks for libraries.
		{name: "etc/nsswitch.conf", mode: 0o644, content: []byte("passwd: files\ngroup: files\nhosts: files\n")},
		{name: "bin/" + busybox, mode: 0o755, content: program},
	}
	for name := range strings.FieldsSeq(string(names)) {
		if name != busybox {
			files = append(files, entry{name: "bin/" + name, link: busybox})
		}
	}
	return archive(files)
}

// entry is a file, a folder (its name ends in a slash) or a symbolic link.
type entry struct {
	name, link string
	mode       int64
	content    []byte
}

func (e entry) header() *tar.Header {
	header := &tar.Header{Name: e.name, Mode: e.mode, Size: int64(len(e.content)), Typeflag: tar.TypeReg}
	switch {
	case e.link != "":
		header.Typeflag, header.Linkname, header.Mode = tar.TypeSymlink, e.link, 0o777
	case strings.HasSuffix(e.name, "/"):
		header.Typeflag = tar.TypeDir
	}
	return header
}

func archive(files []entry) ([]byte, error) {
	var buffer bytes.Buffer
	writer := tar.NewWriter(&buffer)
	for _, file := range files {
		if err := writer.WriteHeader(file.header()); err != nil {
			return nil, fmt.Errorf("packing %s: %w", file.name, err)
		}
		if _, err := writer.Write(file.content); err != nil {
			return nil, fmt.Errorf("packing %s: %w", file.name, err)
		}
	}
	if err := writer.Close(); err != nil {
		return nil, fmt.Errorf("packing files: %w", err)
	}
	return buffer.Bytes(), nil
}

func digest(content []byte) string {
	hash := sha256.Sum256(content)
	return hex.EncodeToString(hash[:])
}
