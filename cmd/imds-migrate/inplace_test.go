package main

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestInPlaceAllOrNothing checks that the first file is not changed if the second cannot be written.
func TestInPlaceAllOrNothing(t *testing.T) {
	dir := t.TempDir()
	a, gone := filepath.Join(dir, "a.yaml"), filepath.Join(dir, "gone.yaml")
	writeFile(t, a, "old")
	err := writeInPlace([]*file{changedFile(a), changedFile(gone)})
	if err == nil || !strings.HasPrefix(err.Error(), "nothing was written: "+gone+": ") {
		t.Errorf("error %v", err)
	}
	checkDirectory(t, dir, map[string]string{"a.yaml": "old"})
}

// TestInPlaceLateFailure checks that the error of a failed rename lists the files that were already
// written. Like a mount point, a directory cannot be replaced.
func TestInPlaceLateFailure(t *testing.T) {
	dir := t.TempDir()
	a, b, mount, c := filepath.Join(dir, "a.yaml"), filepath.Join(dir, "b.yaml"), filepath.Join(dir, "mount.yaml"), filepath.Join(dir, "c.yaml")
	for _, path := range []string{a, b, c} {
		writeFile(t, path, "old")
	}
	if err := os.Mkdir(mount, 0o755); err != nil {
		t.Fatal(err)
	}
	err := writeInPlace([]*file{changedFile(a), changedFile(b), changedFile(mount), changedFile(c)})
	if err == nil || !strings.HasPrefix(err.Error(), mount+": ") || !strings.HasSuffix(err.Error(), "; files that were written: "+a+", "+b) {
		t.Errorf("error %v", err)
	}
	checkDirectory(t, dir, map[string]string{"a.yaml": "new", "b.yaml": "new", "c.yaml": "old"})
	if err := writeInPlace([]*file{changedFile(mount)}); err == nil || !strings.HasSuffix(err.Error(), "; files that were written: none") {
		t.Errorf("error %v", err)
	}
}

func changedFile(path string) *file {
	return &file{name: path, path: path, changed: true, after: io.NewSectionReader(strings.NewReader("new"), 0, 3)}
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// checkDirectory checks that the directory has only these files, with these texts.
func checkDirectory(t *testing.T, dir string, want map[string]string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		if entry.IsDir() {
			continue
		}
		got, err := os.ReadFile(filepath.Join(dir, entry.Name()))
		if err != nil || string(got) != want[entry.Name()] {
			t.Errorf("%s: %q, %v, want %q", entry.Name(), got, err, want[entry.Name()])
		}
	}
}
