package main

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"time"
)

// tree is the files of a layer or an archive, by their paths.
type tree map[string]file

type file struct {
	content    []byte
	executable bool
	link       string // the target of a symbolic link, which only layers have
}

// add adds a file of the file system.
func (t tree) add(name, from string, executable bool) error {
	content, err := os.ReadFile(from)
	t[name] = file{content: content, executable: executable}
	return err
}

func (f file) mode() int64 {
	if f.executable {
		return 0o755
	}
	return 0o644
}

// tar returns the tree as a tar archive. Its bytes depend on nothing but the tree and the time:
// the entries are sorted, have one time, and belong to root.
func (t tree) tar(at time.Time) ([]byte, error) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	written := map[string]bool{".": true, "/": true}
	for _, name := range slices.Sorted(maps.Keys(t)) {
		var dirs []string
		for dir := path.Dir(name); !written[dir]; dir = path.Dir(dir) {
			written[dir] = true
			dirs = append(dirs, dir)
		}
		slices.Reverse(dirs)
		for _, dir := range dirs {
			if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755, ModTime: at, Format: tar.FormatUSTAR}); err != nil {
				return nil, err
			}
		}
		f := t[name]
		h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: f.mode(), Size: int64(len(f.content)), ModTime: at, Format: tar.FormatUSTAR}
		if f.link != "" {
			h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, f.link, 0o777
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.content); err != nil {
			return nil, err
		}
	}
	err := w.Close()
	return out.Bytes(), err
}

// tarGz returns the tar archive, compressed.
func (t tree) tarGz(at time.Time) ([]byte, error) {
	content, err := t.tar(at)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(content); err != nil {
		return nil, err
	}
	err = w.Close()
	return out.Bytes(), err
}

// zip returns the tree as a zip archive. Its bytes depend on nothing but the tree and the time.
func (t tree) zip(at time.Time) ([]byte, error) {
	var out bytes.Buffer
	w := zip.NewWriter(&out)
	for _, name := range slices.Sorted(maps.Keys(t)) {
		f := t[name]
		h := &zip.FileHeader{Name: name, Method: zip.Deflate, Modified: at}
		h.SetMode(os.FileMode(f.mode()))
		entry, err := w.CreateHeader(h)
		if err != nil {
			return nil, err
		}
		if _, err := io.Copy(entry, bytes.NewReader(f.content)); err != nil {
			return nil, err
		}
	}
	err := w.Close()
	return out.Bytes(), err
}
