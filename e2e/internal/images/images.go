// Package images makes container images of static programs, without a container
// engine, as OCI archives. The make target images and the tests on a real node call
// it. The same programs give the same archive, byte for byte, on any machine.
package images

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// nobody is who programs run as in an image, as in distroless ones.
const nobody = "65532:65532"

// File is a file of an image.
type File struct {
	Path   string // without the slash in front
	Source string // file to copy; empty for a link
	Link   string // where a symbolic link leads
}

// Build makes an image that starts the first file, as nobody.
func Build(files ...File) (v1.Image, error) {
	content, err := pack(files)
	if err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil }, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		return nil, fmt.Errorf("making the layer of an image: %w", err)
	}
	base := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	image, err := mutate.AppendLayers(base, layer)
	if err != nil {
		return nil, fmt.Errorf("making an image: %w", err)
	}
	configuration, err := image.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("reading the configuration of an image: %w", err)
	}
	configuration = configuration.DeepCopy()
	configuration.OS, configuration.Architecture = "linux", runtime.GOARCH
	configuration.Config = v1.Config{Entrypoint: []string{"/" + files[0].Path}, User: nobody, WorkingDir: "/", Env: []string{"PATH=/bin:/"}}
	return mutate.ConfigFile(image, configuration)
}

// pack writes the layer. All times are zero and all owners root, so that nothing of
// the machine gets into it.
func pack(files []File) ([]byte, error) {
	var content bytes.Buffer
	writer := tar.NewWriter(&content)
	put := func(header *tar.Header, data []byte) error {
		if err := writer.WriteHeader(header); err != nil {
			return err
		}
		_, err := writer.Write(data)
		return err
	}
	for _, folder := range []string{"bin/", "etc/", "tmp/"} {
		if err := put(&tar.Header{Name: folder, Typeflag: tar.TypeDir, Mode: 0o755}, nil); err != nil {
			return nil, fmt.Errorf("packing %s: %w", folder, err)
		}
	}
	passwd := []byte("root:x:0:0:root:/:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/:/sbin/nologin\n")
	if err := put(&tar.Header{Name: "etc/passwd", Mode: 0o644, Size: int64(len(passwd))}, passwd); err != nil {
		return nil, fmt.Errorf("packing etc/passwd: %w", err)
	}
	for _, file := range files {
		header := &tar.Header{Name: file.Path, Typeflag: tar.TypeSymlink, Linkname: file.Link, Mode: 0o777}
		var data []byte
		if file.Link == "" {
			var err error
			if data, err = os.ReadFile(file.Source); err != nil {
				return nil, fmt.Errorf("reading a file of the image: %w", err)
			}
			header = &tar.Header{Name: file.Path, Mode: 0o555, Size: int64(len(data))}
		}
		if err := put(header, data); err != nil {
			return nil, fmt.Errorf("packing %s: %w", file.Path, err)
		}
	}
	if err := writer.Close(); err != nil {
		return nil, fmt.Errorf("packing a layer: %w", err)
	}
	return content.Bytes(), nil
}

// Write writes an image as an OCI archive that containerd imports under the name.
func Write(path, name string, image v1.Image) error {
	folder, err := os.MkdirTemp(filepath.Dir(path), ".image-")
	if err != nil {
		return fmt.Errorf("making a folder for an image: %w", err)
	}
	defer func() { _ = os.RemoveAll(folder) }() // what is left is no part of the result
	index, err := layout.Write(folder, empty.Index)
	if err != nil {
		return fmt.Errorf("writing an image: %w", err)
	}
	if err := index.AppendImage(image, layout.WithAnnotations(map[string]string{"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name})); err != nil {
		return fmt.Errorf("writing an image: %w", err)
	}
	content, err := archive(os.DirFS(folder))
	if err != nil {
		return err
	}
	if err := os.WriteFile(path, content, 0o644); err != nil {
		return fmt.Errorf("writing an image: %w", err)
	}
	return nil
}

// archive packs a folder in the order of names.
func archive(folder fs.FS) ([]byte, error) {
	var content bytes.Buffer
	writer := tar.NewWriter(&content)
	err := fs.WalkDir(folder, ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || path == "." {
			return err
		}
		if entry.IsDir() {
			return writer.WriteHeader(&tar.Header{Name: path + "/", Typeflag: tar.TypeDir, Mode: 0o755})
		}
		data, err := fs.ReadFile(folder, path)
		if err != nil {
			return err
		}
		if err := writer.WriteHeader(&tar.Header{Name: path, Mode: 0o644, Size: int64(len(data))}); err != nil {
			return err
		}
		_, err = writer.Write(data)
		return err
	})
	if err == nil {
		err = writer.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("packing an image: %w", err)
	}
	return content.Bytes(), nil
}
